package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"coppice.dev/coppice/cache"
	"coppice.dev/coppice/internal/netwatch"
	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/origin"
)

// linkKeeper knows the way from one mount to its sources: it turns what the kernel tells and probes
// find into a state (netwatch.Machine) and a class (netwatch.Classify), and acts on them: sources are
// chosen, connections dropped, background work allowed, the follower woken. It implements
// cache.Watch. Safe for concurrent use.
type linkKeeper struct {
	log   *slog.Logger
	src   prober
	facts func(netip.Addr) (netwatch.Facts, error)
	rules linkRules
	now   func() time.Time
	wake  chan struct{} // for the follower: the way may be open again

	ctx    context.Context // of probes; ends with run
	stop   context.CancelFunc
	kick   chan struct{}       // there is something to look at
	events chan netwatch.Event // of the network

	mu       sync.Mutex
	machine  netwatch.Machine
	state    netwatch.State // as told to everybody
	heard    time.Time
	changed  chan struct{} // closed and replaced when state or heard changes
	class    netwatch.Class
	why      string
	route    string // what the class was judged by, to see that it is another
	lastErr  error  // of the last probe
	probing  *probeRun
	silent   bool      // it is unreachable because a reader waited in vain: the others need not
	side     time.Time // when sources that are down are probed next, though others are up
	sideWait time.Duration
	permit   context.Context // of background work; ended while there may be none
	revoke   context.CancelFunc
}

// prober is what the keeper needs of origin.Sources.
type prober interface {
	Probe(ctx context.Context) error
	Usable() bool
	Down() bool
	Targets() []origin.Target
	Reset()
	Allow(func(location string) bool)
	Pace(bytesPerSecond int64)
}

// probeRun is a probe under way.
type probeRun struct {
	start time.Time
	done  chan struct{}
	err   error
}

const (
	sideMin = 500 * time.Millisecond
	sideMax = 30 * time.Second
)

// newLinkKeeper makes a keeper that knows the network, but has asked nobody yet.
func newLinkKeeper(rules linkRules, facts func(netip.Addr) (netwatch.Facts, error), log *slog.Logger) *linkKeeper {
	k := &linkKeeper{log: log, facts: facts, rules: rules, now: time.Now, wake: make(chan struct{}, 1),
		kick: make(chan struct{}, 1), events: make(chan netwatch.Event, 1), changed: make(chan struct{})}
	k.permit, k.revoke = context.WithCancel(context.Background())
	k.revoke()
	k.ctx, k.stop = context.WithCancel(context.Background())
	return k
}

// attach gives the keeper its sources and has it look at the network.
func (k *linkKeeper) attach(src prober) {
	k.src = src
	k.look(netwatch.Event{})
}

// gate is origin.SourcesOptions.Gate.
func (k *linkKeeper) gate() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.state == netwatch.Disconnected {
		return namespace.E(namespace.Unavailable, "reach", "origin", fmt.Errorf("there is no network: %s", k.why))
	}
	return nil
}

// poke has the keeper look at its sources. It does not block.
func (k *linkKeeper) poke() {
	select {
	case k.kick <- struct{}{}:
	default: // it will
	}
}

// event tells of a change of the network. It does not block.
func (k *linkKeeper) event(e netwatch.Event) {
	for {
		select {
		case k.events <- e:
			return
		case old := <-k.events: // not looked at yet: one look serves both
			e.Slept = max(e.Slept, old.Slept)
		}
	}
}

// run keeps the link until ctx ends.
func (k *linkKeeper) run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		timer.Reset(k.due())
		select {
		case <-ctx.Done():
			k.stop()
			k.mu.Lock()
			p := k.probing
			k.mu.Unlock()
			if p != nil {
				<-p.done
			}
			return
		case e := <-k.events:
			k.look(e)
		case <-k.kick:
		case <-timer.C:
		}
	}
}

// meetWithin bounds how long a new mount waits to know its link, so that its first status does.
const meetWithin = time.Second

// meet waits until the sources were asked for the first time.
func (k *linkKeeper) meet(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, meetWithin)
	defer cancel()
	_ = k.Reach(ctx) // what comes of it is in the state
}

// due does what is to be done now and returns how long there is nothing after that.
func (k *linkKeeper) due() time.Duration {
	k.mu.Lock()
	defer k.mu.Unlock()
	now := k.now()
	if !k.src.Usable() {
		k.machine.Lost(now)
	}
	probe, wait := k.machine.Due(now)
	k.settle(now)
	if k.state == netwatch.Online && k.src.Down() {
		if k.side.IsZero() {
			k.sideWait = sideMin
			k.side = now.Add(k.sideWait)
		}
		if left := k.side.Sub(now); left <= 0 {
			k.sideWait = min(2*k.sideWait, sideMax)
			k.side = now.Add(k.sideWait)
			probe = true
		} else if !probe {
			wait = min(wait, left)
		}
	} else {
		k.side = time.Time{}
	}
	if probe {
		k.startProbe()
		return time.Second // its end pokes
	}
	return max(wait, time.Millisecond)
}

// startProbe asks the sources, unless that is under way; with mu held.
func (k *linkKeeper) startProbe() *probeRun {
	if k.probing != nil {
		return k.probing
	}
	p := &probeRun{start: k.now(), done: make(chan struct{})}
	k.probing = p
	go func() {
		defer close(p.done)
		p.err = k.src.Probe(k.ctx)
		k.mu.Lock()
		defer k.mu.Unlock()
		k.probing = nil
		now := k.now()
		k.machine.Probed(p.err == nil, now.Sub(p.start), now)
		k.lastErr = p.err
		if p.err == nil {
			k.heard, k.silent = now, false
			k.tell()
		}
		k.settle(now)
		k.poke()
	}()
	return p
}

// look finds out what the network is now.
func (k *linkKeeper) look(e netwatch.Event) {
	class, why, route := k.judge()
	k.mu.Lock()
	now := k.now()
	back := k.state == netwatch.Disconnected && class != netwatch.Offline
	k.machine.Network(class != netwatch.Offline, now)
	moved := k.route != "" && route != "" && route != k.route
	if route != "" {
		k.route = route
	}
	if e.Slept > 0 {
		k.log.Info("the machine slept", "for", e.Slept.Round(time.Second))
	}
	news := class != k.class || k.why == ""
	if moved || e.Slept > 0 || news {
		k.machine.Changed(now)
	}
	if news {
		k.log.Info("link", "class", class.String(), "why", why)
	}
	k.class, k.why = class, why
	policy := k.rules.Classes[class]
	k.settle(now)
	k.mu.Unlock()
	if news {
		k.src.Allow(policy.allows())
		k.src.Pace(policy.Rate)
	}
	if moved || back || e.Slept > 0 { // what was connected is not any more, and would be waited for
		k.src.Reset()
	}
}

// judge classifies the way to the most preferred source that there is a way to. route names what it
// leads over.
func (k *linkKeeper) judge() (class netwatch.Class, why, route string) {
	for _, t := range k.src.Targets() {
		addrs := []netip.Addr{t.Addr}
		if !t.Sure && t.Addr.IsValid() {
			addrs = append(addrs, netip.Addr{}) // its name may lead elsewhere now
		}
		for _, a := range addrs {
			f, err := k.facts(a)
			if err != nil {
				return netwatch.Internet, "not known: " + err.Error(), "" // rather try than not
			}
			c, w := netwatch.Classify(f, k.rules.Config)
			if c != netwatch.Offline {
				if f.Route != nil {
					route = f.Route.Iface.Name + " " + f.Route.Source.String()
				}
				return c, w, route
			}
			if why == "" {
				why = w
			}
		}
	}
	return netwatch.Offline, why, ""
}

// settle tells everybody of the machine's state, if it is another; with mu held.
func (k *linkKeeper) settle(now time.Time) {
	was := k.state
	state, _ := k.machine.State()
	if state != was {
		k.state = state
		level := slog.LevelInfo
		if state == netwatch.Unreachable && was == netwatch.Online {
			level = slog.LevelWarn
		}
		k.log.Log(context.Background(), level, "link", "state", state.String(), "was", was.String(), "class", k.class.String(), "error", k.lastErr)
		k.tell()
		if state == netwatch.Online {
			select {
			case k.wake <- struct{}{}:
			default:
			}
		}
	}
	allowed := k.state == netwatch.Online && k.rules.Classes[k.class].Background
	switch has := k.permit.Err() == nil; {
	case allowed && !has:
		k.permit, k.revoke = context.WithCancel(context.Background())
		k.tell()
	case !allowed && has:
		k.revoke()
	}
}

// tell wakes those who wait for a change; with mu held.
func (k *linkKeeper) tell() {
	close(k.changed)
	k.changed = make(chan struct{})
}

// Link implements cache.Watch.
func (k *linkKeeper) Link() cache.Link {
	k.mu.Lock()
	defer k.mu.Unlock()
	l := cache.Link{State: cache.LinkUnreachable, Heard: k.heard, Changed: k.changed}
	switch k.state {
	case netwatch.Online:
		l.State = cache.LinkOnline
	case netwatch.Disconnected:
		l.State = cache.LinkOffline
	}
	return l
}

// blip is how long after its last answer a source that fails is waited for by every reader: a server
// that is restarted should not be noticed. After that, those who come while it is left alone for a
// moment are told so at once.
const blip = 2 * time.Second

// pauseShort is a pause that a reader waits for rather than being told what was true before it: where
// sources refuse at once, there is no other.
const pauseShort = 10 * time.Millisecond

// Reach implements cache.Watch.
func (k *linkKeeper) Reach(ctx context.Context) error {
	for {
		p, wait, known := k.demand()
		if wait == 0 {
			return known
		}
		t := time.NewTimer(wait)
		var done <-chan struct{}
		if p != nil {
			done = p.done
		}
		select {
		case <-done:
			if p.err == nil || !k.blipping() {
				t.Stop()
				return p.err
			}
		case <-t.C:
			if p != nil {
				return known
			}
		case <-ctx.Done():
			t.Stop()
			return known
		}
		t.Stop()
	}
}

// blipping reports whether the sources answered a moment ago.
func (k *linkKeeper) blipping() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	_, since := k.machine.State()
	return !k.silent && k.now().Sub(since) < blip
}

// demand returns the probe that a reader is to wait for, and for how long; or no probe, and how long it
// should wait before it asks again; or, with no time to wait, what is known now.
func (k *linkKeeper) demand() (p *probeRun, wait time.Duration, known error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	now := k.now()
	state, since := k.machine.State()
	switch state {
	case netwatch.Online:
		return nil, 0, nil
	case netwatch.Disconnected:
		return nil, 0, namespace.E(namespace.Unavailable, "reach", "origin", fmt.Errorf("there is no network: %s", k.why))
	}
	why := k.lastErr
	if why == nil {
		why = errors.New("nothing was heard of it")
	}
	known = namespace.E(namespace.Unavailable, "reach", "origin", fmt.Errorf("it did not answer a moment ago: %w", why))
	if p = k.probing; p == nil && k.machine.Demand(now) {
		p = k.startProbe()
	}
	if p != nil { // one that takes longer than a reader waits at all is waited for by nobody
		return p, max(blip-now.Sub(p.start), 0), known
	}
	pause := max(k.machine.DemandAt().Sub(now), time.Millisecond)
	if left := blip - now.Sub(since); left > 0 && !k.silent {
		return nil, min(left, pause), known
	}
	if pause <= pauseShort {
		return nil, pause, known
	}
	return nil, 0, known
}

// Suspect implements cache.Watch.
func (k *linkKeeper) Suspect(gaveUp bool) {
	k.mu.Lock()
	now := k.now()
	k.machine.Suspect(now)
	if gaveUp && k.state == netwatch.Online {
		k.silent = true
		k.machine.Lost(now)
		k.settle(now)
	}
	k.mu.Unlock()
	k.poke()
}

// backgroundPause bounds the pauses between attempts of background work that a source breaks off.
const (
	backgroundPauseMin = time.Second
	backgroundPauseMax = time.Minute
)

// background runs work when the link allows it, and again when the link broke it off, until it is done
// or ctx ends. The context of the work ends when it must stop.
func (k *linkKeeper) background(ctx context.Context, work func(context.Context) error) error {
	for pause := backgroundPauseMin; ; pause = min(2*pause, backgroundPauseMax) {
		permit, err := k.allowed(ctx)
		if err != nil {
			return err
		}
		wctx, cancel := context.WithCancel(namespace.InBackground(ctx, nil))
		stop := context.AfterFunc(permit, cancel)
		err = work(wctx)
		stop()
		cancel()
		again := permit.Err() != nil || namespace.IsKind(err, namespace.Unavailable)
		if err == nil || ctx.Err() != nil || !again {
			return err
		}
		t := time.NewTimer(pause)
		select {
		case <-t.C:
		case <-ctx.Done():
		}
		t.Stop()
	}
}

// next waits until the link is another, or for d, or until ctx ends.
func (k *linkKeeper) next(ctx context.Context, d time.Duration) {
	k.mu.Lock()
	changed := k.changed
	k.mu.Unlock()
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-changed:
	case <-t.C:
	case <-ctx.Done():
	}
}

// allowed waits until background work may run, and returns the context that says for how long.
func (k *linkKeeper) allowed(ctx context.Context) (context.Context, error) {
	for {
		k.mu.Lock()
		permit, changed := k.permit, k.changed
		k.mu.Unlock()
		if permit.Err() == nil {
			return permit, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, namespace.E(namespace.Canceled, "wait for", "link", ctx.Err())
		}
	}
}

// linkStatus is the link in a status. Class says what it is, Why what that was judged by, Error why the
// sources do not answer.
type linkStatus struct {
	State      netwatch.State        `json:"state"` // online, unreachable, offline
	Since      time.Time             `json:"since,omitzero"`
	Class      netwatch.Class        `json:"class"`
	Why        string                `json:"why"`
	Background bool                  `json:"background"`     // what nobody waits for is fetched
	Rate       int64                 `json:"rate,omitempty"` // of that, in bytes a second
	Error      string                `json:"error,omitempty"`
	Sources    []origin.SourceStatus `json:"sources"`
}

// status returns the link as it is, without the sources.
func (k *linkKeeper) status() linkStatus {
	k.mu.Lock()
	defer k.mu.Unlock()
	_, since := k.machine.State()
	s := linkStatus{State: k.state, Since: since, Class: k.class, Why: k.why, Background: k.permit.Err() == nil,
		Rate: k.rules.Classes[k.class].Rate}
	if k.lastErr != nil && k.state != netwatch.Online {
		s.Error = k.lastErr.Error()
	}
	return s
}
