package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/rollout/endpoint"
	"coppice.dev/coppice/rollout/offer"
	"coppice.dev/coppice/rollout/policy"
	"coppice.dev/coppice/rollout/window"
)

// desk is a machine and all that surrounds it. It outlives the loop that runs on it, as a machine does.
type desk struct {
	t      *testing.T
	mu     sync.Mutex
	offer  *offer.Offer
	away   bool
	layers []policy.Layer

	kept     []byte
	keeps    int
	full     bool // the disk
	crashAt  int  // cancels the loop after so many keeps; 0: never
	cancel   context.CancelFunc
	here     map[namespace.Digest]bool
	serving  namespace.Digest
	shows    []namespace.Digest
	sick     map[namespace.Digest]bool
	hangs    map[namespace.Digest]bool // fetching them never ends
	missing  map[namespace.Digest]bool
	sessions int
	boot     uint64
}

func newDesk(t *testing.T) *desk {
	return &desk{t: t, here: map[namespace.Digest]bool{}, sick: map[namespace.Digest]bool{}, hangs: map[namespace.Digest]bool{},
		missing: map[namespace.Digest]bool{}, boot: 1}
}

func target(n uint64) offer.Target {
	return offer.Target{Version: namespace.Version{Name: "desk", N: n}, Manifest: namespace.Sum(fmt.Append(nil, n)), Content: n}
}

func (d *desk) publish(seq, n uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.offer = &offer.Offer{Format: offer.Format, Channel: "desk", Seq: seq, PrevSeq: seq - 1, Target: target(n), Severity: offer.Routine}
}

func (d *desk) set(change func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	change()
}

func (d *desk) Look(context.Context) (Seen, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.away {
		return Seen{}, namespace.E(namespace.Unavailable, "look", "desk", errors.New("no route"))
	}
	return Seen{Offer: d.offer, Confirmed: true}, nil
}

func (d *desk) Here(_ context.Context, t offer.Target) (bool, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.here[t.Manifest], nil
}

func (d *desk) Fetch(ctx context.Context, t offer.Target) error {
	d.mu.Lock()
	hangs, missing, away := d.hangs[t.Manifest], d.missing[t.Manifest], d.away
	d.mu.Unlock()
	wait := time.After(2 * time.Second)
	if hangs {
		wait = nil
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-wait:
	}
	switch {
	case away:
		return namespace.E(namespace.Unavailable, "fetch", "desk", errors.New("no route"))
	case missing:
		return namespace.E(namespace.NotExist, "fetch", "desk", errors.New("no such version"))
	}
	d.set(func() { d.here[t.Manifest] = true })
	return nil
}

// Show holds the promise that state is kept before it is acted on.
func (d *desk) Show(_ context.Context, t offer.Target) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	s, err := endpoint.DecodeState(d.kept, "kept")
	if err != nil || s.Active.Manifest != t.Manifest && s.Staged.Manifest != t.Manifest {
		d.t.Errorf("%s is shown, kept is %+v, %v", t.Version, s, err)
	}
	if !d.here[t.Manifest] {
		d.t.Errorf("%s is shown before it is here", t.Version)
	}
	d.serving, d.shows = t.Manifest, append(d.shows, t.Manifest)
	return nil
}

func (d *desk) Serving() namespace.Digest {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.serving
}

func (d *desk) Probe(_ context.Context, t offer.Target) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.serving != t.Manifest {
		d.t.Errorf("%s is probed, but not shown", t.Version)
	}
	if d.sick[t.Manifest] {
		return errors.New("session: exit status 1")
	}
	return nil
}

func (d *desk) Sense() Sensed {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := Sensed{Boot: d.boot, Awake: time.Since(time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC))}
	s.Zone, s.Busy = time.UTC, policy.Activity{Known: true, Sessions: d.sessions}
	s.Power = policy.Supply{Known: true, AC: true, Percent: 100}
	if d.away {
		s.Link = policy.OfflineLink
	}
	return s
}

func (d *desk) Load() ([]byte, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.kept, nil
}

func (d *desk) Keep(b []byte) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.full {
		return namespace.E(namespace.Limit, "keep", "desk", errors.New("no space left on device"))
	}
	d.kept = b
	if d.keeps++; d.keeps == d.crashAt {
		d.cancel()
	}
	return nil
}

// run has a loop live on the desk for a while.
func (d *desk) run(during func(*Loop)) {
	d.t.Helper()
	l, err := New(Options{Channel: "desk", ID: "desk-7", Source: d, Machine: d, Prober: d, Sensors: d, Keeper: d, Layers: d.layers})
	if err != nil {
		d.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(d.t.Context())
	d.set(func() { d.cancel = cancel })
	var running sync.WaitGroup
	running.Go(func() { l.Run(ctx) })
	during(l)
	cancel()
	running.Wait()
}

// pass lets virtual time go by.
func pass(t time.Duration) {
	<-time.After(t)
	synctest.Wait()
}

func (d *desk) want(l *Loop, phase endpoint.Phase, n uint64) {
	d.t.Helper()
	s := l.Status()
	if s.State.Phase != phase || d.Serving() != target(n).Manifest {
		d.t.Fatalf("%s (%s %s), serving version %d: %t; want %s, version %d", s.State.Phase, s.State.Code, s.State.Detail, n, d.Serving() == target(n).Manifest, phase, n)
	}
}

func story(t *testing.T, tell func(*desk)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { tell(newDesk(t)) })
}

func TestActivatesAndReverts(t *testing.T) {
	story(t, func(d *desk) {
		d.sick[target(2).Manifest] = true
		d.publish(1, 1)
		d.run(func(l *Loop) {
			pass(time.Minute)
			d.want(l, endpoint.Healthy, 1)
			d.publish(2, 2)
			pass(5 * time.Minute)
			d.want(l, endpoint.Reverted, 1)
			s := l.Status().State
			if len(s.Denied) != 1 || !strings.Contains(s.Denied[0].Reason, "session: exit status 1") {
				t.Fatalf("denied: %+v", s.Denied)
			}
			d.publish(3, 2) // the same again
			pass(time.Hour)
			d.want(l, l.Status().State.Phase, 1)
			d.set(func() { d.sick = nil })
			if err := l.Allow(target(2).Version); err != nil {
				t.Fatal(err)
			}
			d.publish(4, 2)
			pass(time.Hour)
			d.want(l, endpoint.Healthy, 2)
		})
		if len(d.shows) != 4 {
			t.Errorf("%d swaps: the denied version was shown again", len(d.shows))
		}
	})
}

// TestCrashes takes the loop down after each step that it keeps, and has another one go on.
func TestCrashes(t *testing.T) {
	for _, sick := range []bool{false, true} {
		for at := 1; at <= 14; at++ {
			story(t, func(d *desk) {
				d.publish(1, 1)
				d.run(func(l *Loop) { pass(time.Minute); d.want(l, endpoint.Healthy, 1) })
				d.sick[target(2).Manifest] = sick
				d.publish(2, 2)
				d.crashAt = d.keeps + at
				d.run(func(*Loop) { pass(10 * time.Minute) })
				d.run(func(l *Loop) {
					pass(30 * time.Minute)
					if sick {
						d.want(l, endpoint.Reverted, 1)
					} else {
						d.want(l, endpoint.Healthy, 2)
					}
				})
			})
		}
	}
}

func TestOfflineAndBack(t *testing.T) {
	story(t, func(d *desk) {
		d.publish(1, 1)
		d.run(func(*Loop) { pass(time.Minute) })
		d.away = true
		d.publish(2, 2)
		d.run(func(l *Loop) { // begins without a network
			pass(time.Hour)
			d.want(l, endpoint.Healthy, 1)
			if s := l.Status(); s.Online || !strings.Contains(s.LastError, "no route") {
				t.Errorf("online %t, %q", s.Online, s.LastError)
			}
			d.set(func() { d.away = false })
			l.Hint()
			pass(20 * time.Second)
			d.want(l, endpoint.Healthy, 2)
		})
	})
}

func TestNewerOfferEndsAFetch(t *testing.T) {
	story(t, func(d *desk) {
		d.publish(1, 1)
		d.hangs[target(2).Manifest] = true
		d.run(func(l *Loop) {
			pass(time.Minute)
			d.publish(2, 2)
			pass(time.Minute)
			d.want(l, endpoint.Prefetching, 1)
			d.publish(3, 3)
			pass(2 * time.Minute)
			d.want(l, endpoint.Healthy, 3)
		})
	})
}

func TestFetchFails(t *testing.T) {
	story(t, func(d *desk) {
		d.publish(1, 1)
		d.missing[target(1).Manifest] = true
		d.run(func(l *Loop) {
			pass(20 * time.Second)
			if s := l.Status().State; s.Phase != endpoint.Failed || s.Code != endpoint.NotFound {
				t.Fatalf("%s %s", s.Phase, s.Code)
			}
			d.set(func() { d.missing = nil })
			pass(2 * time.Hour)
			d.want(l, endpoint.Healthy, 1)
		})
	})
}

// TestDiskIsFull holds that nothing is done that could not be kept.
func TestDiskIsFull(t *testing.T) {
	story(t, func(d *desk) {
		d.publish(1, 1)
		d.full = true
		d.run(func(l *Loop) {
			pass(time.Hour)
			if len(d.shows) != 0 || !d.Serving().IsZero() {
				t.Error("shown without a memory")
			}
			d.set(func() { d.full = false })
			pass(time.Minute)
			d.want(l, endpoint.Healthy, 1)
		})
	})
}

func TestPeople(t *testing.T) {
	story(t, func(d *desk) {
		each, total, count := window.Duration(8*time.Hour), window.Duration(24*time.Hour), 3
		d.layers = []policy.Layer{{Level: policy.Endpoint, Name: "desk-7", Seq: 1, Settings: policy.Settings{
			Defer: policy.Deferral{Each: &each, Total: &total, Count: &count}}}}
		d.publish(1, 1)
		d.run(func(l *Loop) {
			pass(time.Minute)
			if err := l.Defer(time.Hour); !namespace.IsKind(err, namespace.NotExist) {
				t.Errorf("nothing is owed: %v", err)
			}
			d.hangs[target(2).Manifest] = true
			d.publish(2, 2)
			pass(time.Minute)
			if err := l.Defer(4 * time.Hour); err != nil {
				t.Fatal(err)
			}
			if err := l.Defer(9 * time.Hour); !namespace.IsKind(err, namespace.Denied) {
				t.Errorf("more than the policy allows: %v", err)
			}
			d.set(func() { d.hangs = nil })
			d.publish(3, 3)
			pass(time.Hour)
			d.want(l, endpoint.Gated, 1)
			if x := l.Explain(); !slices.ContainsFunc(x.Gates.Blocking, func(b policy.Blocking) bool { return b.Gate == string(policy.DeferGate) }) {
				t.Errorf("%+v", x)
			}
			if err := l.Now(); err != nil {
				t.Fatal(err)
			}
			pass(time.Minute)
			d.want(l, endpoint.Healthy, 3)
		})
	})
}
