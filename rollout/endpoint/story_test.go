package endpoint

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/rollout/offer"
	"coppice.dev/coppice/rollout/policy"
	"coppice.dev/coppice/rollout/window"
)

var noon = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

func target(n uint64) offer.Target {
	v := namespace.Version{Name: "desktop", N: n}
	return offer.Target{Version: v, Manifest: namespace.Sum([]byte(v.String())), Content: n}
}

// box is a machine whose work is done at once and goes well, unless a test says otherwise.
type box struct {
	t     *testing.T
	s     State
	o     *offer.Offer
	f     Facts
	p     *policy.Policy
	now   time.Time
	done  []string // work, in order
	slow  bool     // nothing is done at once
	probe func(v namespace.Version) (passed, failed bool)
}

func newBox(t *testing.T, layers ...policy.Layer) *box {
	p, err := policy.Compile(layers)
	if err != nil {
		t.Fatal(err)
	}
	b := &box{t: t, p: p, now: noon, probe: func(namespace.Version) (bool, bool) { return true, false }}
	b.f = Facts{ID: "box", Boot: 1}
	b.f.Zone, b.f.Busy, b.f.Power, b.f.ReachableSince = time.UTC, policy.Activity{Known: true}, policy.Supply{Known: true, AC: true}, noon
	return b
}

func (b *box) offer(seq uint64, t offer.Target, change ...func(*offer.Offer)) {
	b.t.Helper()
	b.o = &offer.Offer{Format: offer.Format, Channel: "c", Seq: seq, PrevSeq: seq - 1, Target: t, Severity: offer.Routine, Reason: "story"}
	for _, c := range change {
		c(b.o)
	}
	if err := b.o.Check(); err != nil {
		b.t.Fatal(err)
	}
}

// run goes on until nothing more happens by itself, and returns the phases it went through.
func (b *box) run() string {
	b.t.Helper()
	path := []string{b.s.Phase.String()}
	for range 100 {
		d := Plan(&b.s, b.o, &b.f, b.p, b.now)
		if d.State.Phase != b.s.Phase {
			path = append(path, d.State.Phase.String())
		}
		if kept, err := d.State.Encode(); err != nil {
			b.t.Fatal(err)
		} else if b.s, err = DecodeState(kept, "box"); err != nil { // what is not kept is lost
			b.t.Fatal(err)
		}
		if d.Do.Verb != Nothing {
			b.done = append(b.done, fmt.Sprintf("%s %s", d.Do.Verb, d.Do.Target.Version))
		}
		if !d.Again && !b.do(d.Do) {
			return strings.Join(path, " ")
		}
	}
	b.t.Fatalf("no end: %s", path[max(0, len(path)-10):])
	return ""
}

// do does work, and reports whether that changed anything.
func (b *box) do(a Action) bool {
	if b.slow {
		return false
	}
	switch a.Verb {
	case Fetch:
		b.f.Here = a.Target.Manifest
	case Show:
		b.f.Serving = a.Target.Manifest
	case Probe:
		passed, failed := b.probe(a.Target.Version)
		v := Verdict{a.Target.Manifest, a.Attempt, passed, failed, "story"}
		if v == b.f.Probe || !passed && !failed {
			return false
		}
		b.f.Probe = v
	default:
		return false
	}
	return true
}

func (b *box) expect(got, want string) {
	b.t.Helper()
	if got != want {
		b.t.Errorf("went %s\nwant %s", got, want)
	}
}

const upgrade = "Offered Prefetching Staged Activating Verifying Healthy"

func TestFirstVersionAndTheNext(t *testing.T) {
	b := newBox(t)
	b.expect(b.run(), "Idle")
	b.offer(1, target(1))
	b.expect(b.run(), "Idle "+upgrade)
	b.offer(2, target(2))
	b.expect(b.run(), "Healthy "+upgrade)
	if b.s.Active.Version.N != 2 || b.s.LastGood.Seq != 2 || !b.s.Pending.IsZero() {
		t.Errorf("%+v", b.s)
	}
	b.offer(3, target(2)) // the same version under a newer seq: nothing to do
	b.expect(b.run(), "Healthy")
	if b.s.Active.Seq != 3 || b.s.Seq != 3 {
		t.Errorf("seq %d active %d", b.s.Seq, b.s.Active.Seq)
	}
}

func TestFailedProofIsTakenBackAndRemembered(t *testing.T) {
	b := newBox(t)
	b.probe = func(v namespace.Version) (bool, bool) { return v.N != 2, v.N == 2 }
	b.offer(1, target(1))
	b.run()
	b.offer(2, target(2))
	b.expect(b.run(), "Healthy Offered Prefetching Staged Activating Verifying Reverted")
	if d, is := b.s.Denial(target(2).Manifest); !is || d.Reason != "probe failed: story" || b.f.Serving != target(1).Manifest {
		t.Errorf("%+v, %v", b.s, d)
	}
	x := Explain(&b.s, b.o, &b.f, b.p, b.now)
	if x.Done() || !strings.Contains(x.Sentence, "desktop@2 failed here on 2026-11-23 12:00:00Z: probe failed: story") {
		t.Errorf("%+v", x)
	}
	b.offer(3, target(3))
	b.expect(b.run(), "Reverted "+upgrade)
	b.offer(4, target(2)) // again: refused without a try
	b.done = nil
	b.expect(b.run(), "Healthy Offered Reverted")
	if len(b.done) != 0 || b.f.Serving != target(3).Manifest {
		t.Errorf("did %v", b.done)
	}
	b.probe = func(namespace.Version) (bool, bool) { return true, false }
	s, err := b.s.Allow(target(2).Manifest)
	if err != nil {
		t.Fatal(err)
	}
	b.s = s
	b.expect(b.run(), "Reverted "+upgrade)
	if _, err := b.s.Allow(target(2).Manifest); !namespace.IsKind(err, namespace.NotExist) {
		t.Errorf("allowed twice: %v", err)
	}
}

func TestRollbackDoesNotWaitForTheVerdict(t *testing.T) {
	b := newBox(t, policy.Layer{Level: policy.Global, Settings: policy.Settings{Slot: new("pool")}})
	b.offer(1, target(1))
	b.f.Slot = policy.Slot{Held: true, Until: noon.Add(time.Hour)}
	b.run()
	b.probe = func(namespace.Version) (bool, bool) { return false, false }
	b.offer(2, target(2))
	b.expect(b.run(), "Healthy Offered Prefetching Staged Activating Verifying")
	b.f.Slot = policy.Slot{} // and needs no gate: the change is still going on
	b.offer(3, target(1), func(o *offer.Offer) { o.RollbackOf = 2 })
	b.expect(b.run(), "Verifying Superseded Offered Prefetching Staged Activating Verifying")
	if b.f.Serving != target(1).Manifest {
		t.Error("still on what was taken back")
	}
}

func TestFloorIsNeverGoneBelow(t *testing.T) {
	b := newBox(t)
	b.offer(1, target(1))
	b.run()
	b.probe = func(v namespace.Version) (bool, bool) { return false, true }
	b.offer(2, target(2), func(o *offer.Offer) { o.Floor = 2 })
	b.expect(b.run(), "Healthy Offered Prefetching Staged Activating Verifying Failed") // nothing to go back to
	if b.s.Code != Unhealthy || b.f.Serving != target(2).Manifest {
		t.Errorf("%+v", b.s)
	}
	b.probe = func(v namespace.Version) (bool, bool) { return true, false }
	b.now = b.s.Retry
	b.expect(b.run(), "Failed Offered Verifying Healthy") // it gets well
	b.offer(3, target(1), func(o *offer.Offer) { o.Floor = 2; o.Signers, o.Exception = []string{"ann"}, []string{"ann"} })
	b.expect(b.run(), "Healthy "+upgrade)
}

func TestHaltStopsAllButTheFirst(t *testing.T) {
	halt := func(o *offer.Offer) { o.Halt, o.Base = true, target(1) }
	b := newBox(t)
	b.offer(5, target(2), halt)
	b.expect(b.run(), "Idle "+upgrade) // it has to run something: what was there before
	if b.f.Serving != target(1).Manifest {
		t.Error("a new machine took what is halted")
	}
	b.offer(6, target(2))
	b.slow = true
	b.run()
	b.slow = false
	b.f.Here = target(2).Manifest
	b.offer(7, target(2), halt)
	b.expect(b.run(), "Prefetching Staged Gated")
	s, err := b.s.HurryUp(b.now)
	if err != nil {
		t.Fatal(err)
	}
	b.s = s
	b.expect(b.run(), "Gated") // nobody is stronger
	if x := Explain(&b.s, b.o, &b.f, b.p, b.now); len(x.Holds) != 1 || x.Holds[0].Gate != "frozen" || x.Sentence != "the channel is halted: story" {
		t.Errorf("%+v", x)
	}
	b.offer(8, target(2))
	b.expect(b.run(), "Gated Activating Verifying Healthy")
}

func TestRetriesSpreadAndSlowDown(t *testing.T) {
	b := newBox(t)
	b.offer(1, target(1))
	b.slow = true
	last := time.Duration(0)
	for try := range 12 {
		b.run()
		b.f.FetchFailed = Failure{target(1).Manifest, b.s.Attempt, b.now, NotFound, "no such\n  version"}
		b.run()
		if b.s.Phase != Failed || b.s.Code != NotFound || b.s.Detail != "no such version" {
			t.Fatalf("try %d: %+v", try, b.s)
		}
		wait := b.s.Retry.Sub(b.now)
		if wait < 3*last/4 || wait > RetryMax || wait < retryMin/2 {
			t.Errorf("try %d waits %s after %s", try, wait, last)
		}
		if d := Plan(&b.s, b.o, &b.f, b.p, b.now); !d.Wake.Equal(b.s.Retry) {
			t.Errorf("wakes at %s, not at %s", d.Wake, b.s.Retry)
		}
		last, b.now = wait, b.s.Retry
	}
	if last < 3*RetryMax/4 {
		t.Errorf("the last wait was %s", last)
	}
}

func TestNoIDNoRecordNoTrust(t *testing.T) {
	b := newBox(t)
	b.f.ID = ""
	b.offer(1, target(1))
	b.expect(b.run(), "Idle")
	if x := Explain(&b.s, b.o, &b.f, b.p, b.now); !strings.Contains(fmt.Sprint(x.Holds), "no id") {
		t.Errorf("%+v", x)
	}
	b.f.ID, b.f.Machine = "box", 1
	b.expect(b.run(), "Idle "+upgrade)
	b.f.Machine = 2 // put back
	b.offer(2, target(2))
	b.expect(b.run(), "Healthy Offered Prefetching")
	if !b.s.Unconfirmed {
		t.Error("trusts its memory")
	}
	b.f.Confirmed = true
	b.expect(b.run(), "Prefetching Staged Activating Verifying Healthy")
	b.o = nil
	b.expect(b.run(), "Healthy")
}

func TestDefer(t *testing.T) {
	b := newBox(t)
	b.offer(1, target(1))
	b.run()
	e := b.p.For(offer.Routine)
	q := func() *policy.Question { return &policy.Question{Facts: &b.f.Facts, Pending: b.s.Pending} }
	if _, err := b.s.Defer(time.Hour, e, q(), b.now); !namespace.IsKind(err, namespace.NotExist) {
		t.Errorf("nothing is owed: %v", err)
	}
	b.offer(2, target(2))
	b.slow = true
	b.run()
	for i, c := range []struct {
		d    time.Duration
		kind namespace.Kind
		why  string
	}{{9 * time.Hour, namespace.Denied, "at most 8h at a time (default @ seq 0)"}, {-1, namespace.Invalid, "more than 0"}} {
		if _, err := b.s.Defer(c.d, e, q(), b.now); !namespace.IsKind(err, c.kind) || !strings.Contains(err.Error(), c.why) {
			t.Errorf("%d: %v", i, err)
		}
	}
	for range 5 {
		s, err := b.s.Defer(8*time.Hour, e, q(), b.now)
		if err != nil {
			t.Fatal(err)
		}
		b.s = s
	}
	if _, err := b.s.Defer(time.Hour, e, q(), b.now); !namespace.IsKind(err, namespace.Denied) {
		t.Errorf("a sixth time: %v", err)
	}
	b.slow = false
	b.expect(b.run(), "Prefetching Staged Gated")
	b.now = b.s.Deferred
	b.expect(b.run(), "Gated Activating Verifying Healthy")
	if b.s.Deferrals != 0 || !b.s.Deferred.IsZero() {
		t.Errorf("%+v", b.s)
	}
}

func TestConditions(t *testing.T) {
	within, then := new(window.Duration(time.Hour)), new("quarantine")
	b := newBox(t, policy.Layer{Level: policy.Global, Settings: policy.Settings{Offline: policy.Offline{After: within, Then: then}}})
	b.offer(1, target(1))
	b.run()
	drift := 3
	first := Assess(nil, &b.s, b.o, &b.f, &Measured{Drift: &drift, LastFresh: noon}, b.p, noon)
	b.f.Link = policy.OfflineLink
	later := Assess(first, &b.s, b.o, &b.f, &Measured{Drift: &drift, LastFresh: noon}, b.p, noon.Add(2*time.Hour))
	want := map[Type][2]Status{Reachable: {True, False}, Compliant: {True, True}, Drifted: {True, True}, RebootPending: {Unknown, Unknown},
		MixedGeneration: {Unknown, Unknown}, LeaseValid: {True, False}, Quarantined: {False, True}}
	for i, typ := range Types() {
		a, l := first[i], later[i]
		if a.Type != typ || (want[typ] != [2]Status{a.Status, l.Status}) || a.ObservedSeq != 1 {
			t.Errorf("%+v, later %+v", a, l)
		}
		if moved := l.Changed.After(a.Changed); moved != (a.Status != l.Status) {
			t.Errorf("%s changed at %s, then %s", typ, a.Changed, l.Changed)
		}
	}
	g := Sighting{Healthy, 4, noon, noon.Add(time.Hour)}
	if p, _ := g.See(noon.Add(time.Hour)); p != Healthy {
		t.Errorf("seen as %s", p)
	}
	if p, since := g.See(noon.Add(time.Hour + 1)); p != Lost || !since.Equal(noon.Add(time.Hour)) {
		t.Errorf("seen as %s since %s", p, since)
	}
}

func FuzzDecodeState(f *testing.F) {
	s := State{Phase: Gated, Seq: 3, Desired: Generation{3, target(3)}, Denied: []Denial{{Manifest: target(1).Manifest, Reason: "x"}}}
	b, err := s.Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(strings.Replace(string(b), "Gated", "Lost", 1)))
	f.Add([]byte(strings.Replace(string(b), `"format":1`, `"format":2`, 1)))
	p, err := policy.Compile(nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := DecodeState(b, "fuzz")
		if err != nil {
			return
		}
		if again, err := s.Encode(); err != nil || string(again) != string(b) {
			t.Fatalf("%q %q %v", b, again, err)
		}
		o := &offer.Offer{Format: 1, Channel: "c", Seq: 9, Target: target(9), Severity: offer.Critical, Reason: "x"}
		fct := &Facts{ID: "x", Boot: 1}
		for range 50 { // whatever was kept, decisions go on
			s = Plan(&s, o, fct, p, noon).State
		}
		_ = Explain(&s, o, fct, p, noon)
	})
}
