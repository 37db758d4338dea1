package world

import (
	"fmt"
	"math"
	"strconv"
	"time"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/rollout/endpoint"
	"coppice.dev/coppice/rollout/offer"
	"coppice.dev/coppice/rollout/policy"
)

// event is what happens next to a machine. Each kind is pending at most once.
type event uint8

const (
	deliver event = iota // a hint brought the record
	poll                 // the machine fetches the record by itself
	fetched              // content came, or did not
	probed               // the probes are done
	wake                 // the decision asked to be asked again
	granted              // the pool answered
	doze                 // the lid closes, or opens
	linkUp               // another link
	people               // somebody logs in or out, plugs in or out
	person               // somebody puts the change off, or wants it now
	fault                // something else goes wrong
	eventCount
)

const never = time.Duration(math.MaxInt64)

// machine is one endpoint and all that surrounds it. ram is what the agent knows, disk what it kept.
type machine struct {
	c     *Config
	w     *script
	r     *Result
	index int
	kind  kind
	dice  dice
	f     endpoint.Facts
	p     *policy.Policy

	now  time.Duration
	at   [eventCount]time.Duration
	skew time.Duration // of the machine's clock

	ram, disk endpoint.State
	held      int // offers[held-1] is the newest record the agent has; 0: none
	pub       int // the next publication
	hinted    int // the one whose hint was sent, or lost

	content          uint32 // bit v: all of version v is here
	serving          int    // version mounted; -1: none
	asleep, away     bool   // away: to the end of the day
	fetching, asking bool
	fetch, probe     endpoint.Action
	probing, lost    bool // lost: the pool's answer will not come

	snap                 snapshot
	check                checker
	booted, dozed, slept time.Duration // slept: since booted

	loops int // restarts by a bad version today
}

// snapshot is a copy of a machine, to be put back later.
type snapshot struct {
	taken   bool
	disk    endpoint.State
	held    int
	content uint32
	serving int
	check   checker
}

var ids = func() (list [10_000]string) {
	for i := range list {
		list[i] = "machine-" + strconv.Itoa(i+1)
	}
	return list
}()

func idOf(i int) string {
	if i < len(ids) {
		return ids[i]
	}
	return "machine-" + strconv.Itoa(i+1)
}

func (m *machine) reset(c *Config, w *script, index int, r *Result) {
	*m = machine{c: c, w: w, r: r, index: index, pub: 1, serving: -1}
	d := &m.dice
	d.seed(w.seed, uint64(index)+1)
	zone := d.in(zoneCount)
	m.kind = kind(d.in(int(kindCount)))
	if m.kind == asked && !d.one(4) { // expressions are slow: fewer of them find as much
		m.kind = free
	}
	m.p = w.policies[zone][m.kind]
	com, _ := shared()
	m.f = endpoint.Facts{ID: idOf(index), Boot: 1, Machine: 7}
	m.f.Zone, m.f.ReachableSince = com.zones[zone], w.start.Add(-time.Hour)
	m.f.Busy, m.f.Power = policy.Activity{Known: true}, policy.Supply{Known: true, AC: true, Percent: 100}
	for i := range m.at {
		m.at[i] = never
	}
	m.check.m = m
	m.check.reset()
	if !d.one(20) { // most run the first version already
		g := endpoint.Generation{Seq: 1, Target: w.versions[0].Target}
		m.disk = endpoint.State{Phase: endpoint.Healthy, Since: w.start.Add(-time.Hour), Seq: 1, Floor: 1, Desired: g, Trying: g, Active: g, LastGood: g, Machine: 7}
		m.held, m.content, m.serving = 1, 1, 0
		m.check.settled(0)
	} else {
		m.at[poll] = d.between(0, time.Hour)
	}
	m.ram = m.disk
	m.trace("policy %d, zone %s, the day begins %s", m.kind, m.f.Zone, w.start.Format(time.RFC3339))
	for i := range w.offers {
		o := &w.offers[i]
		m.trace("at %s seq %d: %s, floor %d, %s, halt %t, notBefore %s, expires %s", o.at, o.Seq, o.Target.Version, o.Floor, o.Severity, o.Halt, o.NotBefore, o.Expires)
	}
	m.expect()
	if d.one(3) {
		m.at[doze] = d.between(0, quiet)
	}
	if d.one(3) || m.kind == metered || m.kind == asked {
		m.at[linkUp] = d.between(0, quiet)
	}
	if m.kind == laptop {
		m.at[people] = d.between(0, time.Hour)
	}
	if d.one(6) {
		m.at[person] = d.between(time.Hour, quiet)
	}
	if d.one(3) {
		m.at[fault] = d.between(0, quiet)
	}
}

// expect arranges for the next publication to reach the machine: perhaps at once by a hint, and
// surely by its next poll.
func (m *machine) expect() {
	if m.pub >= len(m.w.offers) {
		return
	}
	t := m.w.offers[m.pub].at
	if m.hinted != m.pub && !m.dice.one(5) {
		m.at[deliver] = max(m.now, t+m.dice.between(0, 20*time.Second))
	}
	m.hinted = m.pub
	if m.at[poll] == never {
		m.at[poll] = max(m.now, t+m.dice.between(0, 5*time.Minute))
	}
}

// live runs the machine's day.
func (m *machine) live() {
	m.think(nil)
	for {
		e := event(0)
		for i := range m.at {
			if m.at[i] < m.at[e] {
				e = event(i)
			}
		}
		if m.at[e] >= dayEnd {
			break
		}
		m.now, m.at[e] = m.at[e], never
		m.happen(e)
	}
	m.now = dayEnd - 1 // what begins with the next day is not of this one
	m.check.end()
}

func (m *machine) local() time.Time { return m.w.start.Add(m.now + m.skew) }

func (m *machine) trace(format string, args ...any) {
	if m.c.Trace != nil {
		fmt.Fprintf(m.c.Trace, "%d/%d %12s %-11s ", m.w.seed, m.index+1, m.now.Truncate(time.Second), m.ram.Phase)
		fmt.Fprintf(m.c.Trace, format+"\n", args...)
	}
}

func (m *machine) happen(e event) {
	switch e {
	case deliver, poll:
		m.receive(e)
	case fetched:
		m.fetchEnds()
	case probed:
		m.probeEnds()
	case wake:
		m.think(nil)
	case granted:
		m.asking = false
		if !m.lost && m.f.Link != policy.OfflineLink {
			m.f.Slot = policy.Slot{Held: true, Until: m.local().Add(20 * time.Minute)}
			m.trace("slot granted")
		}
		m.think(nil)
	case doze:
		m.sleep()
	case linkUp:
		m.relink()
	case people:
		m.f.Busy.Sessions = m.dice.in(2)
		m.f.Busy.Known = m.now > quiet || !m.dice.one(6)
		m.f.Power.AC = m.dice.one(2)
		m.f.Power.Percent = m.dice.in(100)
		m.at[people] = m.now + m.dice.between(20*time.Minute, 4*time.Hour)
		m.trace("people %d known %t, power %t %d%%", m.f.Busy.Sessions, m.f.Busy.Known, m.f.Power.AC, m.f.Power.Percent)
		m.think(nil)
	case person:
		m.ask()
	case fault:
		m.goWrong()
	}
}

// receive brings a record: the newest there is, or what a stale cache has.
func (m *machine) receive(e event) {
	newest := 0
	for newest < len(m.w.offers) && m.w.offers[newest].at <= m.now {
		newest++
	}
	if m.f.Link == policy.OfflineLink {
		if e == poll {
			m.at[poll] = m.now + 10*time.Minute
		}
		return
	}
	stale := m.now < quiet && m.dice.one(15)
	got := newest
	if stale {
		got = 1 + m.dice.in(newest)
		if m.at[poll] == never {
			m.at[poll] = m.now + m.dice.between(time.Minute, 5*time.Minute)
		}
	}
	m.f.Confirmed = m.f.Confirmed || !stale
	if !stale {
		m.check.origin()
	}
	m.pub = newest
	m.expect()
	m.trace("receives seq %d of %d", got, newest)
	if got <= m.held { // the shell keeps the newest; the core is shown the old one all the same
		m.think(&m.w.offers[got-1].Offer)
	} else {
		m.held = got
	}
	m.think(nil)
}

func (m *machine) offer() *offer.Offer {
	if m.held == 0 {
		return nil
	}
	return &m.w.offers[m.held-1].Offer
}

// crashes reports whether the machine goes down just now.
func (m *machine) crashes() bool {
	return m.now < quiet && m.dice.one(300)
}

// stepsMax is how many decisions may follow one event: the longest way through the phases, twice.
const stepsMax = 60

// think asks for decisions until there is nothing more to do at once. A record that is not nil is
// shown instead of the newest.
func (m *machine) think(o *offer.Offer) {
	if m.asleep {
		return
	}
	if o == nil {
		o = m.offer()
	}
	for range stepsMax {
		m.observe()
		d := m.c.Plan(&m.ram, o, &m.f, m.p, m.local())
		m.r.Decisions++
		if m.crashes() {
			m.crash("before keeping")
			return
		}
		if d.Changed {
			if d.State.Phase != m.ram.Phase {
				m.trace("-> %s %s", d.State.Phase, d.State.Detail)
			}
			m.ram = d.State
			if !m.c.Forgetful {
				m.check.keeps(&m.disk, &d.State)
				m.disk = d.State
			}
			if m.crashes() {
				m.crash("after keeping")
				return
			}
		}
		m.at[wake] = never
		if !d.Wake.IsZero() {
			m.at[wake] = max(m.now, d.Wake.Sub(m.w.start)-m.skew)
		}
		again := d.Again
		if d.Do.Verb != endpoint.Nothing {
			if !m.do(&d.Do) {
				return
			}
			again = again || d.Do.Verb == endpoint.Show || d.Do.Verb == endpoint.Release
		}
		if !again {
			m.check.idle()
			return
		}
	}
	m.check.fail("livelock", "%d decisions follow one event; in phase %s", stepsMax, m.ram.Phase)
	m.now, m.asleep = dayEnd, true
	for i := range m.at {
		m.at[i] = never
	}
}

// observe measures the facts that the machine's own state decides.
func (m *machine) observe() {
	m.f.Serving, m.f.Here, m.f.Awake = namespace.Digest{}, namespace.Digest{}, m.now-m.booted-m.slept
	if m.serving >= 0 {
		m.f.Serving = m.w.versions[m.serving].Manifest
	}
	if t := &m.ram.Trying; !t.IsZero() && m.content&(1<<m.w.index(t.Content)) != 0 {
		m.f.Here = t.Manifest
	}
}

// do does work, and reports whether the machine is still up.
func (m *machine) do(a *endpoint.Action) bool {
	switch a.Verb {
	case endpoint.Fetch:
		if !m.fetching || m.fetch.Attempt != a.Attempt {
			m.check.again(0, m.w.index(a.Target.Content))
			m.fetching, m.fetch = true, *a
			m.at[fetched] = m.now + m.dice.between(time.Second, 10*time.Minute)
		}
	case endpoint.Lease:
		if !m.asking {
			m.asking, m.lost = true, m.now < quiet && m.dice.one(5)
			m.at[granted] = m.now + m.dice.between(time.Second, 15*time.Minute)
		}
	case endpoint.Release:
		m.f.Slot = policy.Slot{}
	case endpoint.Probe:
		if !m.probing || m.probe.Attempt != a.Attempt {
			m.probing, m.probe = true, *a
			m.at[probed] = m.now + m.dice.between(5*time.Second, time.Minute)
		}
	case endpoint.Show:
		return m.show(a)
	}
	return true
}

func (m *machine) show(a *endpoint.Action) bool {
	if m.crashes() {
		m.crash("before the swap")
		return false
	}
	v := m.w.index(a.Target.Content)
	m.check.again(1, v)
	if m.now < quiet && m.dice.one(40) {
		m.check.fails(1, v)
		m.trace("showing %d fails", v)
		m.f.ShowFailed = endpoint.Failure{Of: a.Target.Manifest, Attempt: a.Attempt, At: m.local(), Code: endpoint.Unshown, Detail: "world"}
		return true
	}
	m.check.shows(v)
	m.trace("shows %d", v)
	m.r.Swaps++
	m.serving = v
	if m.w.badOn(v, m.index) == restarts && m.at[fault] > m.now+time.Minute {
		m.at[fault] = m.now + m.dice.between(2*time.Second, 10*time.Second)
	}
	if m.crashes() {
		m.crash("after the swap")
		return false
	}
	return true
}
