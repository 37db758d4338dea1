package endpoint

import (
	"hash/fnv"
	"time"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/rollout/offer"
	"coppice.dev/coppice/rollout/policy"
)

// Facts are what the endpoint measures: how things are, not what happened.
type Facts struct {
	policy.Facts
	ID      string           // the endpoint's; one without is offered nothing
	Serving namespace.Digest // the manifest that is mounted; zero: none
	Here    namespace.Digest // the manifest fetched ahead, if all of its content is here; zero: none
	Boot    uint64           // differs after each restart of the machine; not 0
	Awake   time.Duration    // how long the machine has been awake in this boot (CLOCK_MONOTONIC)
	// Machine differs after the machine was put back to an earlier state (a virtual machine's
	// generation id); 0: cannot be told. Confirmed: since then the origin itself, not a cache,
	// has answered, and the offer is what it said.
	Machine   uint64
	Confirmed bool

	FetchFailed Failure
	ShowFailed  Failure
	Probe       Verdict
}

// Failure is the outcome of work that failed; the zero Failure is none. It stays until the same
// work is done for another attempt.
type Failure struct {
	Of      namespace.Digest
	Attempt uint64
	At      time.Time
	Code    Code
	Detail  string
}

// Verdict is what the probes said of a version, in one attempt. Neither: they are not done.
type Verdict struct {
	Of      namespace.Digest
	Attempt uint64
	Passed  bool
	Failed  bool
	Reason  string // of Failed: which probe, and what it said
}

// Action is work to do: a verb, on a target, for an attempt. Its outcome is reported with both.
type Action struct {
	Verb    Verb
	Target  Generation
	Attempt uint64
}

// Decision is what Plan decides.
type Decision struct {
	State   State  // the new state; to be kept before anything else is done, if Changed
	Changed bool   // State differs from what Plan was given
	Again   bool   // ask again at once: nothing needs to happen in between
	Do      Action // work; Verb Nothing for none
	// Wake is when to ask again though no fact changed; zero: only when one does.
	Wake time.Time
}

// Plan decides the next step. offer is the newest record that was verified, nil if none is at hand;
// one with a lower seq than the state has accepted is not obeyed, and nothing changes until the
// right one is at hand again. Plan keeps no reference to its arguments, except to the text in them.
func Plan(s *State, o *offer.Offer, f *Facts, p *policy.Policy, now time.Time) Decision {
	return (&planner{rows: &rows}).plan(s, o, f, p, now)
}

// planner is Plan with a table of one's choice, for tests.
type planner struct {
	rows *[Lost][]row
}

// view is what one decision looks at.
type view struct {
	s      *State
	o      *offer.Offer
	f      *Facts
	e      *policy.Effective
	now    time.Time
	target offer.Target // of a newer offer
	q      policy.Question
	answer policy.Answer
}

func (pl *planner) plan(s *State, o *offer.Offer, f *Facts, p *policy.Policy, now time.Time) Decision {
	var v view
	v.look(s, o, f, p, now)
	r := match(pl.rows, s.Phase, v.conditions())
	d := Decision{State: *s}
	if r.to != stay {
		d.State.Phase, d.State.Since = r.to, now
	}
	v.apply(r.then, &d.State)
	d.Changed = r.to != stay || r.then != keep
	if r.do != Nothing {
		d.Do = Action{r.do, d.State.Active, d.State.Attempt}
		switch {
		case r.do == Fetch:
			d.Do.Target = d.State.Trying
		case r.do == Show && d.State.Phase == Activating:
			d.Do.Target = d.State.Staged
		}
	}
	if d.Again = d.Changed && r.do == Nothing; !d.Again {
		d.Wake = v.wake(&d.State)
	}
	return d
}

func newView(s *State, o *offer.Offer, f *Facts, p *policy.Policy, now time.Time) *view {
	v := new(view)
	v.look(s, o, f, p, now)
	return v
}

func (v *view) look(s *State, o *offer.Offer, f *Facts, p *policy.Policy, now time.Time) {
	v.s, v.o, v.f, v.now = s, o, f, now
	sev := offer.Routine
	if o != nil {
		sev = o.Severity
	}
	v.e = p.For(sev)
	v.q = policy.Question{Facts: &f.Facts, Pending: s.Pending, Staged: s.Ready, Deferred: s.Deferred, Hurry: s.Hurry}
}

// conditions finds out what is true. Gates are asked in the phases that look at them only.
func (v *view) conditions() (c cond) {
	s, f := v.s, v.f
	set := func(bit cond, is bool) {
		if is {
			c |= bit
		}
	}
	set(skewed, v.now.Before(s.Since))
	set(restored, f.Machine != s.Machine && f.Machine != 0)
	set(confirmed, s.Unconfirmed && f.Confirmed)
	set(newer, v.newer())
	set(moved, s.Desired.Manifest != s.Trying.Manifest)
	set(wanted, s.Desired.Manifest != s.Active.Manifest)
	set(proven, s.Active.Manifest == s.LastGood.Manifest && !s.Active.IsZero())
	set(back, s.Desired.Manifest == s.LastGood.Manifest)
	set(denied, s.denied(&s.Trying.Manifest))
	set(sunk, !v.permits(&s.Trying))
	set(frozen, v.hold() != free)
	set(early, v.o != nil && v.now.Before(v.o.NotBefore))
	set(here, f.Here == s.Trying.Manifest && !s.Trying.IsZero())
	set(due, !s.Retry.IsZero() && !v.now.Before(s.Retry))

	show := &s.Active
	if s.Phase == Activating {
		show = &s.Staged
	}
	set(shown, show.Manifest == f.Serving || s.Phase != Activating && show.IsZero())
	set(stuck, f.ShowFailed.Of == show.Manifest && !f.ShowFailed.At.IsZero() && v.now.Sub(f.ShowFailed.At) < retryMin)

	switch s.Phase {
	case Prefetching:
		set(mayFetch, v.e.MayFetch(&v.q, v.now))
		set(broke, f.FetchFailed.Of == s.Trying.Manifest && f.FetchFailed.Attempt == s.Attempt && f.FetchFailed.Code != NoCode)
	case Staged, Gated, Activating:
		v.answer = v.e.Answer(&v.q, v.now)
		wayBack := s.Active.Manifest != s.LastGood.Manifest && s.Trying.Manifest == s.LastGood.Manifest
		set(open, v.answer.Open || wayBack)
		set(needsSlot, v.answer.NeedsSlot)
		set(broke, f.ShowFailed.Of == s.Staged.Manifest && f.ShowFailed.Attempt == s.Attempt && f.ShowFailed.Code != NoCode)
	case Verifying:
		set(restarted, f.Boot != s.Boot)
		verdict := f.Probe.Of == s.Active.Manifest && f.Probe.Attempt == s.Attempt
		set(passed, verdict && f.Probe.Passed && !f.Probe.Failed)
		set(refuted, v.refutation() != "")
		set(fallback, v.fallback())
	}
	set(idleSlot, f.Slot.Held && (s.Phase != Gated || c&open == 0 || c&holds != 0))
	return c
}

func (v *view) newer() bool {
	if v.o == nil || v.o.Seq <= v.s.Seq {
		return false
	}
	t, err := v.o.For(v.f.ID)
	if err != nil {
		return false
	}
	if v.o.Halt && v.s.Active.IsZero() && !v.o.Base.IsZero() {
		t = v.o.Base // a machine that runs nothing gets what was there before
	}
	v.target = t
	return true
}

// permits reports whether a generation is above the floor, or allowed below it.
func (v *view) permits(g *Generation) bool {
	return g.Content >= v.s.Floor || v.o != nil && v.o.Seq == v.s.Seq && len(v.o.Exception) > 0 && g.Manifest == v.s.Desired.Manifest
}

// hold is why nothing may change at all.
type hold uint8

const (
	free hold = iota
	nameless
	unconfirmed
	recordless
	halted
	expired
)

func (v *view) hold() hold {
	switch o := v.o; {
	case v.f.ID == "":
		return nameless
	case v.s.Unconfirmed:
		return unconfirmed
	case o == nil || o.Seq < v.s.Seq:
		return recordless
	case o.Halt && !v.s.Active.IsZero():
		return halted
	case !o.Expires.IsZero() && !v.now.Before(o.Expires):
		return expired
	}
	return free
}

// refutation returns why the active generation is not proven and will not be, "" while it may be.
func (v *view) refutation() string {
	s, f := v.s, v.f
	switch {
	case f.Probe.Failed && f.Probe.Of == s.Active.Manifest && f.Probe.Attempt == s.Attempt:
		return "probe failed: " + f.Probe.Reason
	case f.Boot == s.Boot && v.timeLeft(s) <= 0:
		return "no verdict in time"
	case s.Boots > *v.e.Settings.Verify.Boots:
		return "the machine restarted again and again"
	}
	return ""
}

// timeLeft returns how long the proof may still take. It is counted on the clock that stands still
// while the machine sleeps, and that nobody sets: a closed lid proves nothing against a version.
func (v *view) timeLeft(s *State) time.Duration {
	return time.Duration(*v.e.Settings.Verify.Within) - (v.f.Awake - s.Began)
}

// fallback reports whether there is something to go back to.
func (v *view) fallback() bool {
	g := &v.s.LastGood
	return !g.IsZero() && g.Manifest != v.s.Active.Manifest && v.permits(g) && !v.s.denied(&g.Manifest)
}

// apply does what a row says to the state.
func (v *view) apply(then effect, s *State) {
	switch then {
	case accept:
		v.accept(s)
	case rebase:
		v.rebase(s)
	case try:
		s.Trying, s.Code, s.Detail, s.Retry, s.Tries = s.Desired, NoCode, "", time.Time{}, 0
		s.Attempt++
		s.Staged, s.Ready = Generation{}, time.Time{}
		if s.Pending.IsZero() && s.Desired.Manifest != s.Active.Manifest {
			s.Pending = v.now
		}
	case stage:
		s.Staged, s.Ready = s.Trying, v.now
	case begin:
		if v.s.Phase == Activating {
			s.Active = s.Staged
			s.Staged, s.Ready = Generation{}, time.Time{}
		}
		s.Began, s.Boot, s.Boots = v.f.Awake, v.f.Boot, 0
		s.Attempt++
	case countBoot:
		s.Boot, s.Began = v.f.Boot, v.f.Awake
		s.Boots++
		s.Attempt++
	case prove:
		s.LastGood = s.Active
		s.Code, s.Detail, s.Tries = NoCode, "", 0
		if s.Desired.Manifest == s.Active.Manifest {
			settle(s)
		}
	case forget:
		settle(s)
	case revert:
		s.Detail = clip(v.refutation())
		s.deny(&s.Active, s.Detail, v.now)
		s.Active = s.LastGood
	case fail:
		w := &v.f.FetchFailed
		if v.s.Phase == Activating {
			w = &v.f.ShowFailed
		}
		v.retryLater(s, w.Code, w.Detail)
	case doubt:
		v.retryLater(s, Unhealthy, v.refutation())
	case floored:
		s.Code, s.Detail, s.Retry = Floored, "", time.Time{}
	case distrust:
		s.Unconfirmed = s.Machine != 0 || s.Unconfirmed
		s.Machine = v.f.Machine
	case trust:
		s.Unconfirmed = false
	}
}

// settle notes that nothing is owed.
func settle(s *State) {
	s.Pending, s.Deferred, s.Deferrals, s.PutOff, s.Hurry = time.Time{}, time.Time{}, 0, 0, false
}

func (v *view) accept(s *State) {
	s.Seq, s.Floor = v.o.Seq, max(s.Floor, v.o.Floor)
	s.Desired = Generation{v.o.Seq, v.target}
	s.Hurry = false
	for _, g := range []*Generation{&s.Trying, &s.Staged, &s.Active} {
		if g.Manifest == s.Desired.Manifest {
			*g = s.Desired // the same version, under a newer seq
		}
	}
	if s.Phase == Failed {
		s.Retry = v.now // the new record may allow what the old one did not
	}
}

// rebase takes what was noted by a clock that ran ahead as noted now.
func (v *view) rebase(s *State) {
	s.Since = v.now
	for _, t := range []*time.Time{&s.Pending, &s.Ready} {
		if t.After(v.now) {
			*t = v.now
		}
	}
	if latest := v.now.Add(RetryMax); s.Retry.After(latest) {
		s.Retry = latest
	}
	if latest := v.now.Add(time.Duration(*v.e.Settings.Defer.Each)); s.Deferred.After(latest) {
		s.Deferred = latest
	}
}

// retryLater waits longer after each failure, and not as long as the neighbours do.
func (v *view) retryLater(s *State, code Code, detail string) {
	wait := min(retryMin<<min(s.Tries, 10), RetryMax)
	h := fnv.New32a()
	_, _ = h.Write([]byte(v.f.ID))
	wait -= wait / 4 * time.Duration((h.Sum32()+uint32(s.Attempt)*2654435761)>>24) / 256
	s.Code, s.Detail, s.Retry = code, clip(detail), v.now.Add(wait)
	s.Tries++
	s.Attempt++
}

// wake returns when time alone may change the decision.
func (v *view) wake(s *State) (at time.Time) {
	take := func(t time.Time) {
		if t.After(v.now) && (at.IsZero() || t.Before(at)) {
			at = t
		}
	}
	switch s.Phase {
	case Failed:
		take(s.Retry)
	case Verifying:
		take(v.now.Add(v.timeLeft(s)))
	case Prefetching:
		if t, _ := v.e.Deadline(&v.q); !t.IsZero() {
			take(t)
		}
	case Gated:
		if t, more := v.e.Wake(&v.q, v.now); more {
			take(t)
		}
		if v.o != nil {
			take(v.o.NotBefore)
		}
	}
	if f := &v.f.ShowFailed; f.Of == s.Active.Manifest && !f.At.IsZero() {
		take(f.At.Add(retryMin))
	}
	return at
}
