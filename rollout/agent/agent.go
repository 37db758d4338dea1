// Package agent is the loop around the mind of an endpoint: it measures, asks [endpoint.Plan] what to
// do, keeps the answer durably, and does it.
//
// The decisions are rollout/endpoint's, the work is that of the interfaces here; this package has the
// order of things and nothing else. State is kept before work begins, so a crash between any two steps
// leads on from wherever the machine really is. Each channel has its own [Loop] and goroutine: one that
// hangs holds up no other.
package agent

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/rollout/endpoint"
	"coppice.dev/coppice/rollout/offer"
	"coppice.dev/coppice/rollout/policy"
)

// Seen is what a channel says, verified.
type Seen struct {
	Offer  *offer.Offer
	Layers []policy.Layer // that came with it; not the machine's own
	// Confirmed: the origin itself has answered, not a memory of it.
	Confirmed bool
}

// Source has the newest verified record of one channel.
type Source interface {
	// Look returns what the channel says now or, beside an Unavailable error, what was verified last,
	// if that is known. Other errors come alone: what is shown is refused, and nothing changes.
	Look(ctx context.Context) (Seen, error)
}

// Machine is one mount. Its methods are idempotent. Show is not called concurrently with itself, nor
// Fetch with Fetch.
type Machine interface {
	// Here reports whether all of a version's content is here that the mount's scope names.
	Here(ctx context.Context, t offer.Target) (bool, error)
	// Fetch gets it, beside the version that is shown.
	Fetch(ctx context.Context, t offer.Target) error
	// Show mounts a version entirely, or leaves what is.
	Show(ctx context.Context, t offer.Target) error
	// Serving returns the manifest that is mounted; zero: none.
	Serving() namespace.Digest
}

// Prober finds out whether the version that is mounted is well.
type Prober interface {
	// Probe returns nil if it is; a Canceled error, or one while ctx is over, says nothing; any other
	// names the probe that failed and what it said.
	Probe(ctx context.Context, t offer.Target) error
}

// Sensed is what the machine around a mount looks like.
type Sensed struct {
	policy.Facts               // but ReachableSince, which the loop knows
	Boot         uint64        // see endpoint.Facts
	Awake        time.Duration // see endpoint.Facts
	Machine      uint64        // see endpoint.Facts
}

// Sensors measure it. Sense is called at each decision: it must be cheap and must not block.
type Sensors interface{ Sense() Sensed }

// Keeper keeps the encoded state of one channel.
type Keeper interface {
	Load() ([]byte, error) // nil if there is none yet
	Keep(b []byte) error   // returns when it is durable
}

// Slots asks for leases of the policy's pool. What is held, Sense says. Neither method may block.
type Slots interface {
	Lease(pool string)
	Release()
}

// Options of a loop. All are required but those that name a default.
type Options struct {
	Channel string
	ID      string // the endpoint's
	Source  Source
	Machine Machine
	Prober  Prober
	Sensors Sensors
	Keeper  Keeper
	Slots   Slots          // default: there is no pool, and no slot is ever held
	Layers  []policy.Layer // of the machine itself
	Poll    time.Duration  // between looks; default 30 s, ±10 %
	// Notify is told of each new state, in order, and of each change of Online. It must not block.
	Notify func(Status)
	Logger *slog.Logger // default: discard
}

// Status is where a loop is.
type Status struct {
	Channel   string
	State     endpoint.State
	Offer     *offer.Offer // nil: none is at hand
	Serving   namespace.Digest
	Online    bool
	LastError string    // of looking, keeping or of a policy; "" if the last went well
	LastFresh time.Time // when the origin last confirmed what is known
	Condition []endpoint.Condition
}

// senseEvery is how often facts are measured though nothing happened: people come and go.
const senseEvery = 10 * time.Second

// stepsMax is how many decisions may follow one event: the longest way through the phases, twice. More
// are a defect, and must not become a busy loop.
const stepsMax = 60

// Loop follows one channel for one mount. Make it with [New], then call Run once; the other methods
// are safe for concurrent use.
type Loop struct {
	o    Options
	kick chan struct{} // something changed; capacity 1
	look chan struct{} // look at once; capacity 1

	mu         sync.Mutex
	state      endpoint.State
	seen       Seen
	policy     *policy.Policy
	facts      endpoint.Facts
	online     bool
	lastError  string
	fresh      time.Time
	conditions []endpoint.Condition

	fetch, probe job
}

// New returns a loop with the state that was kept. Kinds: those of Keeper.Load, endpoint.DecodeState
// and policy.Compile.
func New(o Options) (*Loop, error) {
	if o.Poll <= 0 {
		o.Poll = 30 * time.Second
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Notify == nil {
		o.Notify = func(Status) {}
	}
	l := &Loop{o: o, kick: make(chan struct{}, 1), look: make(chan struct{}, 1)}
	b, err := o.Keeper.Load()
	if err == nil && b != nil {
		l.state, err = endpoint.DecodeState(b, o.Channel)
	}
	if err == nil {
		l.policy, err = policy.Compile(o.Layers)
	}
	l.facts.ID = o.ID
	return l, err
}

// Run follows the channel until ctx ends; then all work it began is over.
func (l *Loop) Run(ctx context.Context) {
	var work sync.WaitGroup
	ctx, cancel := context.WithCancel(ctx)
	defer work.Wait()
	defer cancel()
	work.Go(func() { l.follow(ctx) })
	for ctx.Err() == nil {
		wake := l.think(ctx, &work)
		t := time.NewTimer(wake)
		select {
		case <-ctx.Done():
		case <-l.kick:
		case <-t.C:
		}
		t.Stop()
	}
}

// Hint says that the channel may have moved: it is looked at once.
func (l *Loop) Hint() { poke(l.look) }

// Sensed says that a fact may have changed.
func (l *Loop) Sensed() { poke(l.kick) }

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// follow looks at the channel, now and then or when it is told to.
func (l *Loop) follow(ctx context.Context) {
	for ctx.Err() == nil {
		seen, err := l.o.Source.Look(ctx)
		if ctx.Err() != nil {
			return
		}
		l.saw(seen, err)
		t := time.NewTimer(l.o.Poll - l.o.Poll/10 + rand.N(l.o.Poll/5+1))
		select {
		case <-ctx.Done():
		case <-l.look:
		case <-t.C:
		}
		t.Stop()
	}
}

// saw takes what a look found.
func (l *Loop) saw(seen Seen, err error) {
	l.mu.Lock()
	now, was := time.Now(), l.online
	l.online = err == nil
	if l.online && !was {
		l.facts.ReachableSince = now
	}
	if err == nil {
		l.fresh = now
		l.facts.Confirmed = l.facts.Confirmed || seen.Confirmed
	}
	if o := seen.Offer; o != nil && (l.seen.Offer == nil || o.Seq >= l.seen.Offer.Seq) {
		p, perr := policy.Compile(append(append([]policy.Layer(nil), l.o.Layers...), seen.Layers...))
		if perr == nil {
			l.seen, l.policy = seen, p
		}
		err = errors.Join(err, perr)
	}
	l.fail(err)
	l.mu.Unlock()
	poke(l.kick)
}

// fail notes an error, or that there is none. l.mu is held.
func (l *Loop) fail(err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	if text != "" && text != l.lastError {
		l.o.Logger.Warn("channel not followed", "channel", l.o.Channel, "error", err)
	}
	l.lastError = text
}

// think asks for decisions until there is nothing to do at once, and returns how long that may last.
func (l *Loop) think(ctx context.Context, work *sync.WaitGroup) time.Duration {
	for range stepsMax {
		d, err := l.decide(ctx)
		if err != nil || ctx.Err() != nil {
			return senseEvery // not kept: nothing is done either
		}
		if d.Again {
			continue
		}
		l.fetch.only(d.Do, endpoint.Fetch)
		l.probe.only(d.Do, endpoint.Probe)
		if l.do(ctx, work, d.Do) {
			continue
		}
		wake := senseEvery
		if !d.Wake.IsZero() {
			wake = min(wake, max(time.Until(d.Wake), time.Millisecond))
		}
		return wake
	}
	l.o.Logger.Error("no end of decisions", "channel", l.o.Channel)
	return senseEvery
}

// decide measures, plans, and keeps the new state.
func (l *Loop) decide(ctx context.Context) (endpoint.Decision, error) {
	sensed, serving := l.o.Sensors.Sense(), l.o.Machine.Serving()
	l.findHere(ctx)
	l.mu.Lock()
	defer l.mu.Unlock()
	f, since := &l.facts, l.facts.ReachableSince
	if f.Machine != 0 && sensed.Machine != f.Machine {
		f.Confirmed = false
	}
	f.Facts, f.Boot, f.Awake, f.Machine, f.Serving = sensed.Facts, sensed.Boot, sensed.Awake, sensed.Machine, serving
	f.ReachableSince = since
	now := time.Now()
	d := endpoint.Plan(&l.state, l.seen.Offer, f, l.policy, now)
	if d.Changed {
		if err := l.keep(d.State); err != nil {
			return d, err
		}
	}
	m := endpoint.Measured{LastFresh: l.fresh}
	l.conditions = endpoint.Assess(l.conditions, &l.state, l.seen.Offer, f, &m, l.policy, now)
	l.o.Notify(l.status())
	return d, nil
}

// keep makes s durable, and then what the loop believes. l.mu is held.
func (l *Loop) keep(s endpoint.State) error {
	b, err := s.Encode()
	if err == nil {
		err = l.o.Keeper.Keep(b)
	}
	if err != nil {
		l.fail(err)
		return err
	}
	if s.Phase != l.state.Phase {
		l.o.Logger.Info("phase", "channel", l.o.Channel, "from", l.state.Phase, "to", s.Phase, "seq", s.Seq, "detail", s.Detail)
	}
	l.state = s
	return nil
}

// findHere asks the machine for what is tried, once for each version: it may take a while.
func (l *Loop) findHere(ctx context.Context) {
	l.mu.Lock()
	t, known := l.state.Trying, l.facts.Here == l.state.Trying.Manifest
	l.mu.Unlock()
	if t.IsZero() || known || l.fetch.running() {
		return
	}
	if here, err := l.o.Machine.Here(ctx, t.Target); err == nil && here {
		l.set(func(f *endpoint.Facts) { f.Here = t.Manifest })
	}
}

func (l *Loop) set(change func(*endpoint.Facts)) {
	l.mu.Lock()
	change(&l.facts)
	l.mu.Unlock()
}
