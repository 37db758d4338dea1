package policy

import (
	"fmt"
	"slices"
	"time"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/rollout/offer"
	"coppice.dev/coppice/rollout/window"
)

const (
	minute = time.Minute
	hour   = time.Hour
)

// Gate is a condition under which a version may change.
type Gate string

// The gates. DeadlineGate is open once the deadline has passed: in an "any" it lets things happen
// that the others would keep waiting.
const (
	WindowGate   Gate = "window"
	DeadlineGate Gate = "deadline"
	DeferGate    Gate = "defer"
	LinkGate     Gate = "link"
	SlotGate     Gate = "slot"
	BusyGate     Gate = "busy"
	PowerGate    Gate = "power"
	WhenGate     Gate = "when"
)

var gates = []Gate{WindowGate, DeadlineGate, DeferGate, LinkGate, SlotGate, BusyGate, PowerGate, WhenGate}

// Gates lists the gates.
func Gates() []Gate { return slices.Clone(gates) }

func (g Gate) index() int { return slices.Index(gates, g) }

// mask is a set of gates: bit i is gates[i].
type mask uint8

const (
	inWindow mask = 1 << iota
	pastDeadline
	notDeferred
	onLink
	hasSlot
	notBusy
	hasPower
	whenHolds

	allGates = ^mask(0)
	// unforeseen gates may open at any moment: nobody knows when a person leaves.
	unforeseen = onLink | hasSlot | notBusy | hasPower | whenHolds
)

func maskOf(list []Gate) mask {
	var m mask
	for _, g := range list {
		if i := g.index(); i >= 0 {
			m |= 1 << i
		}
	}
	return m
}

// Rule composes gates: one gate, or all of some rules, or any of some. Exactly one field is set.
type Rule struct {
	Gate Gate   `json:"gate,omitempty"`
	All  []Rule `json:"all,omitempty"`
	Any  []Rule `json:"any,omitempty"`
}

// DefaultRule: link, slot, power and when must be open; and either the deadline has passed, or
// window, deferral and the people at the machine agree.
func DefaultRule() Rule {
	one := func(g Gate) Rule { return Rule{Gate: g} }
	return Rule{All: []Rule{one(LinkGate), one(SlotGate), one(PowerGate), one(WhenGate),
		{Any: []Rule{one(DeadlineGate), {All: []Rule{one(WindowGate), one(DeferGate), one(BusyGate)}}}}}}
}

// truth is a rule as a table: bit m is whether it holds when exactly the gates of mask m are open.
type truth [4]uint64

func (t *truth) holds(open mask) bool { return t[open>>6]>>(open&63)&1 != 0 }

// compile checks a rule and works out its table.
func (r *Rule) compile(path string) (truth, error) {
	nodes := 0
	if err := r.check(path, 1, &nodes); err != nil {
		return truth{}, err
	}
	var t truth
	for m := range 256 {
		if r.holds(mask(m)) {
			t[m>>6] |= 1 << (m & 63)
		}
	}
	return t, nil
}

func (r *Rule) check(path string, depth int, nodes *int) error {
	*nodes++
	set := 0
	for _, there := range []bool{r.Gate != "", r.All != nil, r.Any != nil} {
		if there {
			set++
		}
	}
	switch {
	case depth > ruleDepthMax || *nodes > RuleNodesMax:
		return namespace.E(namespace.Limit, "check policy", path, fmt.Errorf("a rule of more than %d parts or %d levels", RuleNodesMax, ruleDepthMax))
	case set != 1:
		return fault(path, "want exactly one of gate, all and any")
	case r.Gate != "" && r.Gate.index() < 0:
		return fault(path+".gate", "no gate is named %q; there are %v", r.Gate, Gates())
	case r.Gate == "" && len(r.All)+len(r.Any) == 0:
		return fault(path, "an empty list: all of nothing is always, any of nothing never")
	}
	for at, list := range map[string][]Rule{"all": r.All, "any": r.Any} {
		for i := range list {
			if err := list[i].check(fmt.Sprintf("%s.%s[%d]", path, at, i), depth+1, nodes); err != nil {
				return err
			}
		}
	}
	return nil
}

func (r *Rule) holds(open mask) bool {
	switch {
	case r.Gate != "":
		return open&(1<<r.Gate.index()) != 0
	case r.All != nil:
		return !slices.ContainsFunc(r.All, func(r Rule) bool { return !r.holds(open) })
	}
	return slices.ContainsFunc(r.Any, func(r Rule) bool { return r.holds(open) })
}

// Effective is a policy for one severity: every field of Settings is set. Immutable.
type Effective struct {
	Settings  Settings
	Overruled []Overruled

	from     map[string]Setting
	severity offer.Severity
	rule     truth
	used     mask // gates that the rule looks at
	skips    mask // skipped by the severity
	hurry    mask // skipped when a person asks
	windows  *window.Set
	when     *When // nil: asks nothing
	calendar *window.Calendar
	zone     *time.Location // of calendar

	after, grace, most time.Duration
	slot               string
	activate, fetch    [linkCount]Use
	sessions, inhibit  bool
	lockFile, ac       bool
	battery            int
}

// finish resolves what decisions need at once. The settings were checked layer by layer.
func (e *Effective) finish(sev offer.Severity) (err error) {
	s := &e.Settings
	e.severity = sev
	if e.windows, err = window.Compile(s.Windows, "$.windows"); err != nil {
		return err
	}
	if e.rule, err = s.Gates.compile("$.gates"); err != nil {
		return err
	}
	if *s.When != "" {
		if e.when, err = CompileWhen(*s.When, "$.when"); err != nil {
			return err
		}
	}
	for m := range 256 {
		for i := range 8 {
			if bit := mask(1) << i; e.rule.holds(mask(m)) != e.rule.holds(mask(m)^bit) {
				e.used |= bit
			}
		}
	}
	if sev == offer.Emergency {
		e.skips = maskOf(s.Emergency)
	}
	e.hurry = maskOf(s.Hurry)
	e.after, e.grace, e.most = time.Duration(*s.Deadline.After), time.Duration(*s.Deadline.Grace), time.Duration(*s.Busy.Most)
	e.slot = *s.Slot
	for i := range linkCount {
		e.activate[i], e.fetch[i] = *s.Activate.list()[i], *s.Fetch.list()[i]
	}
	e.sessions, e.inhibit, e.lockFile = *s.Busy.Sessions, *s.Busy.Inhibitors, *s.Busy.LockFile
	e.ac, e.battery = *s.Power.AC, *s.Power.Battery
	return nil
}

// From returns where the value of a key comes from. Unknown keys: the zero Setting.
func (e *Effective) From(key string) Setting { return e.from[key] }

// Severity returns the severity that e is for.
func (e *Effective) Severity() offer.Severity { return e.severity }

// Slot returns the pool whose lease is needed, "" for none.
func (e *Effective) Slot() string { return e.slot }

// Prepare returns e with its windows worked out from an instant to another for a zone, which makes
// answers in between cheap. The answers are the same.
func (e *Effective) Prepare(from, to time.Time, zone *time.Location) *Effective {
	p := *e
	p.calendar, p.zone = e.windows.Calendar(from, to, zone), zone
	return &p
}

// Answer is what the gates say.
type Answer struct {
	Open bool
	// NeedsSlot: everything else is open; a lease of the pool would be used at once. Asking for
	// one earlier would keep it from others.
	NeedsSlot bool

	open, skipped mask
}

// Answer asks the gates. It does not allocate, unless the policy has a When.
func (e *Effective) Answer(q *Question, now time.Time) Answer {
	a := Answer{skipped: e.skips}
	if q.Hurry {
		a.skipped |= e.hurry
	}
	mandatory := false
	a.open = a.skipped
	if e.used&inWindow != 0 {
		st := e.windowState(q, now)
		mandatory = st.Mandatory
		a.set(inWindow, st.Open)
	}
	deadline, _ := e.Deadline(q)
	a.set(pastDeadline, !deadline.IsZero() && !now.Before(deadline))
	a.set(notDeferred, mandatory || !now.Before(q.Deferred))
	a.set(onLink, e.usable(&e.activate, q, a.open&pastDeadline != 0))
	a.set(hasSlot, e.slot == "" || q.Facts.Slot.Held && now.Before(q.Facts.Slot.Until))
	a.set(notBusy, e.busy(q, now) == "")
	a.set(hasPower, e.power(q) == "")
	if e.when == nil {
		a.set(whenHolds, true)
	} else if e.rule.holds(a.open|whenHolds|hasSlot) && !e.rule.holds(a.open) {
		// An expression is asked only where its answer changes something.
		a.set(whenHolds, e.when.Ask(e.inputs(q, now)) == nil)
	}
	a.Open = e.rule.holds(a.open)
	a.NeedsSlot = !a.Open && e.rule.holds(a.open|hasSlot)
	return a
}

func (a *Answer) set(g mask, open bool) {
	if open {
		a.open |= g
	}
}

func (e *Effective) windowState(q *Question, now time.Time) window.State {
	if e.zone == q.Facts.Zone && e.calendar.Covers(now) {
		return e.calendar.At(now)
	}
	return e.windows.At(now, q.Facts.Zone)
}

// Deadline returns the instant from which DeadlineGate is open, and which clock set it: "first
// offered" or "became reachable". The zero Time: there is no deadline.
func (e *Effective) Deadline(q *Question) (at time.Time, clock string) {
	if e.after == 0 || q.Pending.IsZero() {
		return time.Time{}, ""
	}
	at, clock = q.Pending.Add(e.after), "first offered"
	if g := q.Facts.ReachableSince; e.grace > 0 && !g.IsZero() {
		if g = g.Add(e.grace); g.After(at) {
			at, clock = g, "became reachable"
		}
	}
	return at, clock
}

// MayFetch reports whether content may be fetched over the link there is.
func (e *Effective) MayFetch(q *Question, now time.Time) bool {
	at, _ := e.Deadline(q)
	return q.Facts.Link != OfflineLink && e.usable(&e.fetch, q, !at.IsZero() && !now.Before(at))
}

func (e *Effective) usable(uses *[linkCount]Use, q *Question, overdue bool) bool {
	if q.Facts.Link >= linkCount {
		return false
	}
	switch uses[q.Facts.Link] {
	case Always:
		return true
	case Wanted:
		return q.Hurry || overdue
	case Urgent:
		return e.severity.Rank() >= offer.Critical.Rank()
	}
	return false
}

// busy returns what keeps the machine busy, "" if nothing that counts does.
func (e *Effective) busy(q *Question, now time.Time) string {
	f := &q.Facts.Busy
	switch {
	case !e.sessions && !e.inhibit && !e.lockFile:
		return ""
	case e.most > 0 && !q.Staged.IsZero() && !now.Before(q.Staged.Add(e.most)):
		return ""
	case !f.Known:
		return "whether the machine is in use is not known"
	case e.sessions && f.Sessions > 0:
		return "somebody is logged in"
	case e.inhibit && f.Inhibitor != "":
		return "inhibited by " + f.Inhibitor
	case e.lockFile && f.LockFile != "":
		return "the lock file " + f.LockFile + " is there"
	}
	return ""
}

func (e *Effective) power(q *Question) string {
	p := &q.Facts.Power
	switch {
	case !e.ac && e.battery == 0:
		return ""
	case !p.Known:
		return "the state of the power supply is not known"
	case e.ac && !p.AC:
		return "on battery"
	case !p.AC && p.Percent < e.battery:
		return "the battery is too low"
	}
	return ""
}
