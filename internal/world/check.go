package world

import (
	"fmt"
	"time"

	"coppice.dev/coppice/rollout/endpoint"
	"coppice.dev/coppice/rollout/offer"
	"coppice.dev/coppice/rollout/policy"
)

// checker is what the world knows of a machine, independently of what its agent believes.
//
// Its sentences: a swap shows what is wholly here (generation), nothing below the highest floor the
// machine had agreed to (floor), nothing that failed here (denied), and changes nothing against a
// halt (halt), to anything but what is wanted (wanted), before the machine was confirmed after a snapshot (confirmed) or while the policy
// says no (gate); nor does it come back for ever to what takes the machine down (loops). Work that
// failed is not done again at once (patience); no slot is held for nothing (hoards). What is kept never forgets a seq (seq), and calls proven only what passed (proof).
// In the end every reachable machine runs what is wanted (converges), or gives a reason that is so
// (why).
type checker struct {
	m       *machine
	ran     int    // version shown last; -1: none ever
	before  int    // version shown before that
	back    int    // version that it was kept to go back to; -1: none
	kept    bool   // that ran is active was kept
	halted  bool   // ran nothing until the channel was halted
	proven  uint32 // versions whose probes passed here
	good    int    // version that was kept as proven last; -1: none
	denied  uint32 // versions that were taken back here
	seq     uint64 // highest kept
	floor   uint64 // highest floor of the records up to seq that were obeyed
	doubted bool   // put back to a snapshot, and the origin not reached since
	skewed  bool   // its clock was wrong at some time today
	owed    time.Duration
	owes    bool
	off     time.Time     // put off until
	hurry   uint64        // seq that a person wanted at once
	began   time.Duration // of the proof that is going on
	boots   int           // restarts since ran was shown, not proven
	failed  [2]struct {   // fetching, showing: what failed last, and when
		v  int
		at time.Duration
	}
}

func (c *checker) reset() { c.ran, c.before, c.good, c.back = -1, -1, -1, -1 }

// settled notes a machine that starts with a version.
func (c *checker) settled(v int) {
	c.ran, c.before, c.good, c.kept, c.proven, c.seq, c.floor = v, v, v, true, 1<<v, 1, 1
}

func (c *checker) fail(check, format string, args ...any) {
	m := c.m
	m.r.Broken[check]++
	v := Violation{check, m.w.seed, m.index + 1, m.now, fmt.Sprintf(format, args...)}
	m.trace("VIOLATION %s: %s", v.Check, v.What)
	if len(m.r.Violations) < violationsMax {
		m.r.Violations = append(m.r.Violations, v)
	}
}

// record returns the offer that the machine has agreed to.
func (c *checker) record() *offer.Offer {
	if c.seq == 0 {
		return nil
	}
	return &c.m.w.offers[c.seq-1].Offer
}

// keeps looks at a state that is kept over another.
func (c *checker) keeps(old, s *endpoint.State) {
	if s.Seq < c.seq {
		c.fail("seq", "keeps seq %d after %d", s.Seq, c.seq)
	}
	if s.Seq != c.seq || s.Hurry {
		c.failed[0].at, c.failed[1].at = 0, 0 // something has changed
	}
	if s.Seq != c.seq {
		c.seq = s.Seq
		c.floor = max(c.floor, c.record().Floor)
	}
	c.kept = c.kept || c.ran >= 0 && s.Active.Content == c.content(c.ran)
	if g := &s.LastGood; !g.IsZero() {
		v := c.m.w.index(g.Content)
		if v != c.good && c.proven&(1<<v) == 0 {
			c.fail("proof", "calls version %d proven; its probes did not pass here", v)
		}
		c.good = v
	}
	if s.Phase == endpoint.Reverted && old.Phase == endpoint.Verifying {
		c.m.r.Reverts++
		c.denied |= 1 << c.m.w.index(old.Active.Content)
		if c.back = c.m.w.index(s.Active.Content); c.back != c.good {
			c.fail("proof", "goes back to version %d, which was not proven last", c.back)
		}
	}
	if s.Active.Content != old.Active.Content && s.Active.Content != 0 {
		c.above(c.m.w.index(s.Active.Content), "keeps as active")
	}
	if s.Phase == endpoint.Verifying && old.Phase != endpoint.Verifying {
		c.began = c.m.now
	}
	want := c.m.w.index(s.Desired.Content)
	if s.Phase == endpoint.Healthy && want == c.ran {
		c.owes, c.off, c.hurry = false, time.Time{}, 0
	} else if !c.owes && want != c.ran {
		c.owes, c.owed = true, c.m.now
	}
}

// above holds a version against the floor.
func (c *checker) above(v int, does string) {
	if o := c.record(); o != nil && c.content(v) < c.floor && len(o.Exception) == 0 {
		c.fail("floor", "%s version %d with content %d, the floor is %d", does, v, c.content(v), c.floor)
	}
}

func (c *checker) passes(v int) { c.proven |= 1 << v }

func (c *checker) allows(v int)         { c.denied &^= 1 << v }
func (c *checker) hurried()             { c.hurry, c.off = c.seq, time.Time{} }
func (c *checker) defers(t time.Time)   { c.off, c.hurry = t, 0 }
func (c *checker) origin()              { c.doubted = false }
func (c *checker) restored()            { c.doubted = true }
func (c *checker) content(v int) uint64 { return c.m.w.versions[v].Content }

// canGoBack reports whether there is another version that was proven, and may be shown.
func (c *checker) canGoBack() bool {
	return c.good >= 0 && c.good != c.ran && c.content(c.good) >= c.floor && c.denied&(1<<c.good) == 0
}

// fails notes that work (0: fetching, 1: showing) failed, and again looks whether it is tried
// sooner than anything could have changed.
func (c *checker) fails(work, v int) {
	c.failed[work].v, c.failed[work].at = v, c.m.now
}

func (c *checker) again(work, v int) {
	if f := &c.failed[work]; f.at > 0 && f.v == v && c.m.now-f.at < 15*time.Second && !c.skewed {
		c.fail("patience", "tries version %d again %s after it failed", v, c.m.now-f.at)
	}
}

// idle looks at a machine that has nothing to do.
func (c *checker) idle() {
	m := c.m
	if s := &m.f.Slot; !s.Held || !m.local().Before(s.Until) {
		return
	}
	switch m.ram.Phase {
	case endpoint.Healthy, endpoint.Reverted, endpoint.Failed, endpoint.Gated:
		c.fail("hoards", "holds a slot in phase %s", m.ram.Phase)
	}
}

// pinned are the versions that a cache never drops: the active one and the one before.
func (c *checker) pinned() (set uint32) {
	for _, g := range []*endpoint.Generation{&c.m.disk.Active, &c.m.disk.LastGood} {
		if !g.IsZero() {
			set |= 1 << c.m.w.index(g.Content)
		}
	}
	return set
}

// shows looks at a swap before it is done.
func (c *checker) shows(v int) {
	m := c.m
	defer func() {
		if v != c.ran {
			c.halted = c.ran < 0 && c.record() != nil && c.record().Halt
			if v != c.back {
				c.back = -1
			}
			c.before, c.ran, c.kept, c.boots = c.ran, v, false, 0
		}
	}()
	if m.content&(1<<v) == 0 {
		c.fail("generation", "shows version %d, of which parts are missing", v)
	}
	if c.denied&(1<<v) != 0 {
		c.fail("denied", "shows version %d, which failed here", v)
	}
	if c.boots > 5 && v == c.ran && c.canGoBack() {
		c.fail("loops", "shows version %d after %d restarts, though it could go back to %d", v, c.boots, c.good)
	}
	if v == c.ran || v == m.serving {
		return // what ran before the restart runs again: no change
	}
	if v == c.back {
		return // it was kept that the machine goes back to it: needs nobody's leave
	}
	if v == c.before && !c.kept {
		return // the machine went down before it could note that it had changed
	}
	o := c.record()
	if o == nil {
		c.fail("halt", "shows version %d without a record", v)
		return
	}
	if m.disk.Active.Content != c.content(v) { // else that was held against the floor when it was kept
		c.above(v, "shows")
	}
	c.leave(v, o)
}

// leave holds a change of version against all that could forbid it.
func (c *checker) leave(v int, o *offer.Offer) {
	local := c.m.local()
	want, err := o.For(c.m.f.ID)
	if o.Halt && c.ran < 0 && !o.Base.IsZero() {
		want = o.Base
	}
	if err != nil || c.m.w.index(want.Content) != v {
		c.fail("wanted", "changes to version %d, but %s is wanted", v, want.Version)
	}
	switch {
	case c.doubted:
		c.fail("confirmed", "changes to version %d though it was put back to a snapshot and has not reached the origin", v)
	case o.Halt && c.ran >= 0:
		c.fail("halt", "changes to version %d though the channel is halted", v)
	case local.Before(o.NotBefore):
		c.fail("halt", "changes to version %d before %s", v, o.NotBefore)
	case !o.Expires.IsZero() && !local.Before(o.Expires):
		c.fail("halt", "changes to version %d after %s, when its offer expired", v, o.Expires)
	case v == c.good && c.ran != c.good:
		return // back to what was proven last, from what was not kept as proven
	}
	if why := c.forbids(o); why != "" {
		c.fail("gate", "changes to version %d though %s", v, why)
	}
}

// forbids says why a machine's policy is against a change now, "" if it is not. It knows the
// policies by what they are for, and shares no code with them.
func (c *checker) forbids(o *offer.Offer) string {
	m := c.m
	local := m.local()
	skip := o.Severity == offer.Emergency // window, deferral, people, slot
	hurry := c.hurry != 0 && c.hurry == c.seq
	overdue := m.kind == laptop && (c.skewed || c.owes && m.now-c.owed >= 8*time.Hour && local.Sub(m.f.ReachableSince) >= time.Hour)
	if local.Before(c.off) && !c.skewed && !skip && !hurry && !overdue {
		return "a person put it off"
	}
	switch m.kind {
	case night:
		if !skip && !hurry && !inNight(local.In(m.f.Zone)) {
			return "it is not night"
		}
	case office:
		if h := local.In(m.f.Zone).Hour(); !skip && !hurry && h >= 8 && h < 18 {
			return "it is office hours"
		}
	case laptop:
		if p := &m.f.Power; !p.AC && p.Percent < 30 {
			return "the battery is low"
		}
		if b := &m.f.Busy; !skip && !hurry && !overdue && (!b.Known || b.Sessions > 0) {
			return "somebody uses it"
		}
	case pooled:
		if s := &m.f.Slot; !skip && (!s.Held || !local.Before(s.Until)) {
			return "it has no slot"
		}
	case metered:
		if m.f.Link == policy.OfflineLink || m.f.Link == policy.Metered && o.Severity != offer.Critical && o.Severity != offer.Emergency {
			return "the link is " + m.f.Link.String()
		}
	case asked:
		if m.f.Link == policy.VPN {
			return "the link is vpn"
		}
	}
	return ""
}

// inNight looks back, minute by minute, for the clock passing 01:00 within four hours.
func inNight(t time.Time) bool {
	after := func(t time.Time) bool { return t.Hour() >= 1 }
	for back := range 4 * 60 {
		now, before := t.Add(-time.Duration(back)*time.Minute), t.Add(-time.Duration(back+1)*time.Minute)
		if after(now) && (!after(before) || before.Day() != now.Day()) {
			return true
		}
	}
	return false
}

// end looks at the machine when the day is over.
func (c *checker) end() {
	m := c.m
	if m.asleep || m.away || m.f.Link == policy.OfflineLink {
		m.r.Apart++
		return
	}
	last := &m.w.offers[len(m.w.offers)-1].Offer
	if m.disk.Seq != last.Seq {
		c.fail("converges", "has seen seq %d of %d", m.disk.Seq, last.Seq)
		return
	}
	want, err := last.For(m.f.ID)
	if err != nil {
		c.fail("converges", "%v", err)
		return
	}
	if last.Halt && c.halted && !last.Base.IsZero() {
		want = last.Base // it ran nothing when the halt came, and keeps what was there before
	}
	m.observe()
	if m.f.Serving == want.Manifest && m.disk.Phase == endpoint.Healthy && c.proven&(1<<c.ran) != 0 {
		m.r.Converged++
		return
	}
	if p := m.ram.Phase; m.f.Serving == want.Manifest && (p == endpoint.Prefetching || p == endpoint.Staged || p == endpoint.Gated) {
		c.fail("converges", "waits in phase %s for what it has", p)
		return
	}
	if m.disk.Phase == endpoint.Verifying && (m.f.Serving == want.Manifest || m.serving < 0) && c.lie("verify", want, last) == "" {
		m.r.Waiting["proof"]++
		return
	}
	x := m.c.Explain(&m.ram, m.offer(), &m.f, m.p, m.local())
	reasons := 0
	for _, h := range x.Holds {
		reasons++
		if lie := c.lie(h.Gate, want, last); lie != "" {
			c.fail("why", "%s: says %q, but %s", m.ram.Phase, h.Why, lie)
			return
		}
	}
	if reasons == 0 && len(x.Gates.Blocking) > 0 {
		if reasons++; c.forbids(last) == "" && !c.skewed {
			c.fail("why", "%s: says that gates are closed (%v), but they are not", m.ram.Phase, x.Gates.Blocking)
			return
		}
	}
	if reasons == 0 {
		c.fail("converges", "runs version %d, wanted is %s; in phase %s, and gives no reason: %s", m.serving, want.Version, m.ram.Phase, x.Sentence)
		return
	}
	if m.kind == pooled && len(x.Holds) == 0 && !m.asking && !m.local().Before(c.off) {
		c.fail("why", "%s: waits for a slot that it has not asked for", m.ram.Phase)
		return
	}
	name := "gate"
	if len(x.Holds) > 0 {
		name = x.Holds[0].Gate
	}
	m.r.Waiting[name]++
}

// lie returns why a reason is not true, "" if it is.
func (c *checker) lie(gate string, want offer.Target, o *offer.Offer) string {
	m := c.m
	w := m.w.index(want.Content)
	is := false
	switch gate {
	case "denied":
		is = c.denied&(1<<w) != 0
	case "floor":
		is = want.Content < c.floor && len(o.Exception) == 0
	case "frozen":
		is = o.Halt && c.ran >= 0 || !o.Expires.IsZero() && !m.local().Before(o.Expires) || c.doubted
	case "notBefore":
		is = m.local().Before(o.NotBefore)
	case "failed":
		soon := m.disk.Retry.Before(m.local().Add(2 * endpoint.RetryMax))
		is = soon && m.f.FetchFailed.Of == want.Manifest || soon && m.f.ShowFailed.Of == want.Manifest || want.Content < c.floor ||
			m.disk.Code == endpoint.Unhealthy && m.w.badOn(c.ran, m.index) != fine && !c.canGoBack()
	case "fetch":
		is = m.content&(1<<w) == 0 && m.fetching || m.serving < 0 || m.f.Link == policy.Metered && o.Severity != offer.Critical && o.Severity != offer.Emergency
	case "verify":
		is = c.ran >= 0 && m.now-c.began < 11*time.Minute
	}
	if !is {
		return "that is not so"
	}
	return ""
}

func endpointSeverity(m *machine) offer.Severity {
	if o := m.offer(); o != nil {
		return o.Severity
	}
	return offer.Routine
}
