package main

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"coppice.dev/coppice/cache"
	"coppice.dev/coppice/internal/netwatch"
	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/origin"
)

// scene is a network and a source as a test sets them.
type scene struct {
	mu      sync.Mutex
	facts   netwatch.Facts
	alive   bool
	down    bool
	took    time.Duration
	probes  int
	resets  int
	pace    int64
	allowed func(string) bool
}

func (s *scene) Probe(ctx context.Context) error {
	s.mu.Lock()
	s.probes++
	took := s.took
	s.mu.Unlock()
	select {
	case <-time.After(took):
	case <-ctx.Done():
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.down = !s.alive
	if !s.alive {
		return namespace.E(namespace.Unavailable, "probe", "", errors.New("nobody there"))
	}
	return nil
}

func (s *scene) Usable() bool { s.mu.Lock(); defer s.mu.Unlock(); return !s.down }
func (s *scene) Down() bool   { s.mu.Lock(); defer s.mu.Unlock(); return s.down }
func (s *scene) Targets() []origin.Target {
	return []origin.Target{{Addr: netip.MustParseAddr("10.0.0.9"), Sure: true}}
}
func (s *scene) Reset()       { s.do(func() { s.resets++ }) }
func (s *scene) Pace(n int64) { s.do(func() { s.pace = n }) }

func (s *scene) Allow(ok func(string) bool) { s.do(func() { s.allowed = ok }) }

func (s *scene) do(fn func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fn()
}

func (s *scene) num(n *int) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return *n
}

func (s *scene) policy() (int64, func(string) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.pace, s.allowed
}

func (s *scene) network(f netwatch.Facts) { s.do(func() { s.facts = f }) }

var (
	cable  = netwatch.Facts{Target: netip.MustParseAddr("10.0.0.9"), Route: &netwatch.Route{Iface: netwatch.Iface{Name: "eth0", Usable: true}}}
	hotel  = netwatch.Facts{Target: netip.MustParseAddr("10.0.0.9"), Route: &netwatch.Route{Iface: netwatch.Iface{Name: "wlan0", Usable: true}}}
	tether = netwatch.Facts{Target: netip.MustParseAddr("10.0.0.9"), Route: cable.Route, MeteredFlag: netwatch.Yes}
	none   = netwatch.Facts{Target: netip.MustParseAddr("10.0.0.9")}
)

// keep runs a keeper over a scene in virtual time.
func keep(t *testing.T, rules linkRules, test func(t *testing.T, s *scene, k *linkKeeper)) {
	synctest.Test(t, func(t *testing.T) {
		s := &scene{facts: cable, alive: true, took: 10 * time.Millisecond}
		k := newLinkKeeper(rules, func(netip.Addr) (netwatch.Facts, error) {
			s.mu.Lock()
			defer s.mu.Unlock()
			return s.facts, nil
		}, slog.New(slog.DiscardHandler))
		k.attach(s)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { defer close(ended); k.run(ctx) }()
		test(t, s, k)
		cancel()
		<-ended
	})
}

func wantLink(t *testing.T, k *linkKeeper, what string, state netwatch.State, class netwatch.Class) {
	t.Helper()
	if s := k.status(); s.State != state || s.Class != class || s.Why == "" {
		t.Errorf("%s: %+v, want %v, %v", what, s, state, class)
	}
}

func (s *scene) goes(k *linkKeeper, f netwatch.Facts) {
	s.network(f)
	k.event(netwatch.Event{})
	time.Sleep(time.Second)
}

// A laptop on a cable, without one, in a hotel, and asleep in between.
func TestLinkKeeperTravels(t *testing.T) {
	keep(t, defaultRules(), func(t *testing.T, s *scene, k *linkKeeper) {
		time.Sleep(time.Second)
		wantLink(t, k, "on a cable", netwatch.Online, netwatch.LAN)
		if l := k.Link(); l.State != cache.LinkOnline || l.Heard.IsZero() || k.gate() != nil {
			t.Errorf("online: %+v, the gate says %v", l, k.gate())
		}
		<-k.wake
		changed := k.Link().Changed
		s.goes(k, none)
		wantLink(t, k, "unplugged", netwatch.Disconnected, netwatch.Offline)
		select {
		case <-changed:
		default:
			t.Error("nobody was told")
		}
		if !namespace.IsKind(k.gate(), namespace.Unavailable) {
			t.Errorf("offline, the gate says %v", k.gate())
		}
		start := time.Now()
		if err := k.Reach(t.Context()); !namespace.IsKind(err, namespace.Unavailable) || time.Since(start) != 0 {
			t.Errorf("offline, reached after %v: %v", time.Since(start), err)
		}
		before := s.num(&s.probes)
		time.Sleep(time.Hour)
		if s.num(&s.probes) != before {
			t.Errorf("%d probes without a network", s.num(&s.probes)-before)
		}
		s.goes(k, hotel)
		wantLink(t, k, "in a hotel", netwatch.Online, netwatch.LAN)
		<-k.wake
		if s.num(&s.resets) != 1 {
			t.Errorf("%d resets of old connections", s.num(&s.resets))
		}
		// It slept, and woke up where nobody answers.
		s.do(func() { s.alive = false })
		before = s.num(&s.probes)
		k.event(netwatch.Event{Slept: 8 * time.Hour})
		time.Sleep(100 * time.Millisecond)
		if s.num(&s.probes) != before+1 || s.num(&s.resets) != 2 {
			t.Errorf("after a sleep: %d probes, %d resets", s.num(&s.probes)-before, s.num(&s.resets))
		}
		wantLink(t, k, "after a sleep", netwatch.Unreachable, netwatch.LAN)
		// Another network, with the same class.
		s.do(func() { s.alive = true })
		s.goes(k, cable)
		wantLink(t, k, "at home", netwatch.Online, netwatch.LAN)
		if s.num(&s.resets) != 3 {
			t.Errorf("another network: %d resets", s.num(&s.resets))
		}
	})
}

// Readers share a probe, wait out a blip, and are told at once after that.
func TestLinkKeeperReach(t *testing.T) {
	keep(t, defaultRules(), func(t *testing.T, s *scene, k *linkKeeper) {
		time.Sleep(time.Second)
		reach := func(bound time.Duration) (time.Duration, error) {
			ctx, cancel := context.WithTimeout(t.Context(), bound)
			defer cancel()
			start := time.Now()
			err := k.Reach(ctx)
			return time.Since(start), err
		}
		if took, err := reach(time.Second); took != 0 || err != nil {
			t.Errorf("online: %v after %v", err, took)
		}
		s.do(func() { s.alive, s.down = false, true })
		k.poke()
		time.Sleep(10 * time.Millisecond)
		time.AfterFunc(700*time.Millisecond, func() { s.do(func() { s.alive = true }) })
		if took, err := reach(2 * time.Second); err != nil || took < 600*time.Millisecond {
			t.Errorf("a server that restarted: %v after %v", err, took)
		}
		s.do(func() { s.alive, s.down, s.took = false, true, time.Second })
		k.poke()
		time.Sleep(10 * time.Millisecond)
		if took, err := reach(2 * time.Second); !namespace.IsKind(err, namespace.Unavailable) || took > 3*time.Second {
			t.Errorf("one that is away: %v after %v", err, took)
		}
		// A reader that gave up in silence is enough: the next one is told.
		s.do(func() { s.alive, s.down, s.took = true, false, 10*time.Millisecond })
		time.Sleep(time.Minute)
		s.do(func() { s.alive, s.took = false, 4*time.Second })
		k.Suspect(false)
		time.Sleep(1500 * time.Millisecond)
		wantLink(t, k, "silent for a while", netwatch.Online, netwatch.LAN)
		k.Suspect(true)
		wantLink(t, k, "given up", netwatch.Unreachable, netwatch.LAN)
		if took, err := reach(2 * time.Second); !namespace.IsKind(err, namespace.Unavailable) || took > time.Second {
			t.Errorf("the next reader: %v after %v", err, took)
		}
		if took, err := reach(2 * time.Second); !namespace.IsKind(err, namespace.Unavailable) || took > 0 {
			t.Errorf("the one after that: %v after %v", err, took)
		}
		s.do(func() { s.down, s.took = true, time.Second })
		time.Sleep(10 * time.Minute)
		before, waited := s.num(&s.probes), time.Duration(0)
		start := time.Now()
		for range 1000 {
			took, err := reach(2 * time.Second)
			if err == nil {
				t.Fatal("nobody answers")
			}
			waited += took
			time.Sleep(10 * time.Millisecond)
		}
		if total := time.Since(start); waited > total/2 || s.num(&s.probes) == before || s.num(&s.probes)-before > 10 {
			t.Errorf("1000 reads waited %v of %v, for %d probes", waited, total, s.num(&s.probes)-before)
		}
	})
}

// What nobody waits for runs where the class allows it, stops when it is another, and goes on later.
func TestLinkKeeperBackground(t *testing.T) {
	rules := defaultRules()
	rules.Classes[netwatch.Metered] = linkPolicy{Rate: 1 << 20, Sources: []string{"http://relay"}}
	keep(t, rules, func(t *testing.T, s *scene, k *linkKeeper) {
		time.Sleep(time.Second)
		s.goes(k, tether)
		wantLink(t, k, "tethered", netwatch.Online, netwatch.Metered)
		if pace, ok := s.policy(); pace != 1<<20 || ok == nil || ok("http://other") || !ok("http://relay/") {
			t.Errorf("the policy did not reach the sources: %d", pace)
		}
		var runs, breaks atomic.Int64
		finish := make(chan struct{})
		done := make(chan error, 1)
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			done <- k.background(ctx, func(ctx context.Context) error {
				runs.Add(1)
				if _, yes := namespace.Background(ctx); !yes {
					t.Error("not marked as background")
				}
				select {
				case <-finish:
					return nil
				case <-ctx.Done():
					breaks.Add(1)
					return ctx.Err()
				}
			})
		}()
		time.Sleep(time.Hour)
		if runs.Load() != 0 {
			t.Error("it ran on a metered link")
		}
		s.goes(k, cable)
		s.goes(k, tether)
		s.goes(k, none)
		s.goes(k, cable)
		time.Sleep(time.Minute)
		if runs.Load() != 2 || breaks.Load() != 1 {
			t.Errorf("%d runs, %d broken off", runs.Load(), breaks.Load())
		}
		if pace, ok := s.policy(); pace != 0 || ok != nil {
			t.Error("a policy outlived its class")
		}
		close(finish)
		if err := <-done; err != nil {
			t.Error(err)
		}
		final := errors.New("no room")
		if err := k.background(ctx, func(context.Context) error { return final }); !errors.Is(err, final) {
			t.Errorf("an error that waiting does not mend: %v", err)
		}
		s.goes(k, none)
		go func() { done <- k.background(ctx, func(context.Context) error { return nil }) }()
		time.Sleep(time.Minute)
		cancel()
		if err := <-done; !namespace.IsKind(err, namespace.Canceled) {
			t.Errorf("given up: %v", err)
		}
	})
}

// A source that is down while another answers is probed from time to time.
func TestLinkKeeperSide(t *testing.T) {
	keep(t, defaultRules(), func(t *testing.T, s *scene, k *linkKeeper) {
		time.Sleep(time.Second)
		before := s.num(&s.probes)
		one := &twoOf{scene: s}
		k.mu.Lock()
		k.src = one
		k.mu.Unlock()
		k.poke()
		time.Sleep(10 * time.Minute)
		if n := s.num(&s.probes) - before; n < 15 || n > 40 {
			t.Errorf("%d probes in ten minutes", n)
		}
		wantLink(t, k, "one of two", netwatch.Online, netwatch.LAN)
	})
}

// twoOf is two sources, one of which is down for ever.
type twoOf struct{ *scene }

func (*twoOf) Usable() bool { return true }
func (*twoOf) Down() bool   { return true }
