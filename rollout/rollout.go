// Package rollout decides which namespace version an endpoint runs, and when.
//
// Today it is the follower: it waits for a channel's pointer, holds it against what was seen
// before, has the version staged and activated, and remembers. It knows no network, no kernel
// and no disk layout: those are the interfaces of [Options].
//
// What to believe is [Trust]'s to say. A pointer is remembered before it is acted on. A crash in between is repaired at the next
// start, which activates the remembered pointer; the other order could forget a seq that was
// already shown to users, and accept its replay.
package rollout

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"time"

	"coppice.dev/coppice/namespace"
)

// Trust decides which pointer of a channel to believe, and remembers it.
type Trust interface {
	// Accept returns the pointer that the channel has now, having verified and durably remembered it.
	// record is what the channel's ref shows: a hint that there is news, and nothing more. The pointer
	// may be the one that was accepted before. Kinds: Denied, Stale, Corrupt, Invalid, Limit (what is
	// shown is refused), NotExist, Unavailable, Canceled, Internal.
	Accept(ctx context.Context, channel string, record []byte) (namespace.Pointer, error)
	// Recall returns the pointer that was accepted last, false if there is none, without the origin.
	// An Unavailable error says why the origin must be asked before anything is started.
	Recall(ctx context.Context, channel string) (namespace.Pointer, bool, error)
}

// Activator makes the endpoint run a namespace version. Both methods are idempotent and are not
// called concurrently by one follower.
type Activator interface {
	// Stage makes ready whatever lets Activate be quick. Failing leaves the active version alone.
	Stage(ctx context.Context, p namespace.Pointer) error
	// Activate shows the version, entirely, or fails and leaves the old one.
	Activate(ctx context.Context, p namespace.Pointer) error
}

// Options configure a Follower. Reader, Trust and Activator are required.
type Options struct {
	Channel   string
	Reader    namespace.RefReader // a namespace.RefWaiter is used as one
	Trust     Trust
	Activator Activator
	Poll      time.Duration // between polls of a source that cannot wait; default 30 s, ±10 %
	// Check is how often Trust is asked though the ref did not change: timestamps expire, and what a
	// publisher that died did not tell is found so. Default 5 minutes, ±10 %.
	Check  time.Duration
	Logger *slog.Logger // default: discard
	// Notify, if set, is told of every change of Status. It must not block.
	Notify func(Status)
	// Wake, if set, says that the way to the origin may be open again: a pause after a failure, or between
	// polls, ends.
	Wake <-chan struct{}
}

// Status says where a follower is.
type Status struct {
	Desired    namespace.Pointer // the newest accepted pointer
	Active     namespace.Pointer // what Activate succeeded for last
	Online     bool              // the last attempt to read the pointer reached the origin
	LastError  string            // of reading, staging or activating; "" if the last went well
	LastChange time.Time
}

// Follower follows one channel. Make it with [New], then call Start and Run from one goroutine.
type Follower struct {
	o      Options
	status Status
	raw    []byte    // the record of which status.Desired came
	bad    []byte    // what the origin shows instead, and was refused; nil if it shows raw
	check  time.Time // when Trust is asked again, whatever the record

	told   string // the failure that was logged last
	toldAt time.Time
}

// tellAgain is how often a failure that stays the same is logged: a laptop is away for weeks.
const tellAgain = time.Hour

// tell logs a failure, unless that was done a moment ago.
func (f *Follower) tell(err error, retry time.Duration) {
	if now := time.Now(); err.Error() != f.told || now.Sub(f.toldAt) >= tellAgain {
		f.told, f.toldAt = err.Error(), now
		f.o.Logger.Warn("channel not followed", "channel", f.o.Channel, "error", err, "retry", retry)
	}
}

// retryAfter bounds the wait after a failure: short at first, for a blip; then as long as a poll.
const retryAfterMin = 200 * time.Millisecond

// New returns a follower; it does nothing yet.
func New(o Options) *Follower {
	if o.Poll <= 0 {
		o.Poll = 30 * time.Second
	}
	if o.Check <= 0 {
		o.Check = 5 * time.Minute
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Notify == nil {
		o.Notify = func(Status) {}
	}
	return &Follower{o: o}
}

// Start activates a version once: what the origin points at or, if the origin cannot be reached,
// what was remembered. A pointer that is refused (signature, seq) is an error even if an older one
// is remembered: somebody is tampering, and a person who starts a mount should know.
// Kinds: NotExist, Denied, Stale, Corrupt, Unavailable, those of the activator.
func (f *Follower) Start(ctx context.Context) error {
	p, known, doubt := f.o.Trust.Recall(ctx, f.o.Channel)
	if doubt != nil && !namespace.IsKind(doubt, namespace.Unavailable) {
		return doubt
	}
	f.status.Desired = p
	b, err := f.o.Reader.Ref(ctx, f.ref())
	if err == nil {
		err = f.accept(ctx, b)
	}
	if namespace.IsKind(err, namespace.Unavailable) && known {
		if doubt != nil {
			return doubt
		}
		f.o.Logger.Warn("origin not reached, going on with the pointer seen last", "channel", f.o.Channel, "error", err)
		f.note(func(s *Status) { s.Online, s.LastError = false, err.Error() })
		err = nil
	}
	if err != nil {
		return err
	}
	return f.activate(ctx)
}

// Run follows the channel until ctx ends. Failures are logged, kept in the status and tried
// again; the active version stays. It returns ctx's error.
func (f *Follower) Run(ctx context.Context) error {
	wait, failed := retryAfterMin, false
	for ctx.Err() == nil {
		err := f.step(ctx, failed)
		if failed = err != nil; failed && ctx.Err() == nil {
			f.tell(err, wait)
			online := !namespace.IsKind(err, namespace.Unavailable)
			f.note(func(s *Status) { s.Online, s.LastError = online, err.Error() })
			woken := f.pause(ctx, jitter(wait))
			if wait = min(2*wait, f.o.Poll); woken {
				wait = retryAfterMin
			}
			continue
		}
		wait, f.told = retryAfterMin, ""
	}
	return namespace.E(namespace.Canceled, "follow", f.o.Channel, ctx.Err())
}

// step waits for a new pointer and acts on it. again says that the last step failed, and has waited
// since.
func (f *Follower) step(ctx context.Context, again bool) error {
	b, err := f.next(ctx, again)
	if err != nil {
		return err
	}
	if err := f.accept(ctx, b); err != nil {
		f.bad = nil
		switch namespace.KindOf(err) {
		case namespace.Denied, namespace.Stale, namespace.Corrupt, namespace.Invalid:
			f.bad = b // it will not get better: wait for another
		}
		return err
	}
	f.bad = nil
	if f.status.Active.Seq == f.status.Desired.Seq {
		f.note(func(s *Status) { s.Online, s.LastError = true, "" })
		return nil
	}
	return f.activate(ctx)
}

// next returns the channel's record when it may have changed, or at once if that is a poll and again is set.
func (f *Follower) next(ctx context.Context, again bool) ([]byte, error) {
	have := f.raw
	if f.bad != nil {
		have = f.bad
	}
	if f.status.Active.Seq != f.status.Desired.Seq {
		// Accepted before, but not yet active: do not wait for another, but take one that is there.
		if b, err := f.o.Reader.Ref(ctx, f.ref()); err == nil && string(b) != string(f.bad) {
			return b, nil
		}
		return f.raw, nil
	}
	due, cancel := context.WithDeadline(ctx, f.check)
	defer cancel()
	b, err := f.look(due, have, again)
	if due.Err() != nil && ctx.Err() == nil && (err != nil || string(b) == string(have)) {
		return f.o.Reader.Ref(ctx, f.ref()) // time for a check
	}
	return b, err
}

// look waits for another record than have, as long as ctx allows; where that is a poll, and again is set, it
// polls at once.
func (f *Follower) look(ctx context.Context, have []byte, again bool) ([]byte, error) {
	if w, ok := f.o.Reader.(namespace.RefWaiter); ok {
		start := time.Now()
		b, err := w.WaitRef(ctx, f.ref(), have)
		// A static server answers at once: then this is a poll, and must not become a flood.
		if err == nil && string(b) == string(have) && time.Since(start) < time.Second {
			f.pause(ctx, jitter(f.o.Poll))
		}
		return b, err
	}
	if !again {
		f.pause(ctx, jitter(f.o.Poll))
	}
	if ctx.Err() != nil {
		return have, nil
	}
	return f.o.Reader.Ref(ctx, f.ref())
}

// accept has a record verified and remembered.
func (f *Follower) accept(ctx context.Context, b []byte) error {
	if string(b) == string(f.raw) && time.Now().Before(f.check) {
		return nil
	}
	p, err := f.o.Trust.Accept(ctx, f.o.Channel, b)
	if namespace.IsKind(err, namespace.Unavailable) {
		return err
	}
	f.check = time.Now().Add(jitter(f.o.Check))
	if err != nil {
		return err
	}
	f.raw = b
	f.note(func(s *Status) { s.Desired, s.Online = p, true })
	return nil
}

func (f *Follower) activate(ctx context.Context) error {
	p := f.status.Desired
	if p.Manifest == f.status.Active.Manifest { // another seq, the same version: nothing to swap
		f.note(func(s *Status) { s.Active, s.LastError = p, "" })
		return nil
	}
	start := time.Now()
	if err := f.o.Activator.Stage(ctx, p); err != nil {
		return err
	}
	staged := time.Now()
	if err := f.o.Activator.Activate(ctx, p); err != nil {
		return err
	}
	f.o.Logger.Info("activated", "channel", p.Channel, "seq", p.Seq, "version", p.Version.String(),
		"staged", staged.Sub(start), "swapped", time.Since(staged))
	f.note(func(s *Status) { s.Active, s.LastError = p, "" })
	return nil
}

func (f *Follower) note(change func(*Status)) {
	change(&f.status)
	f.status.LastChange = time.Now()
	f.o.Notify(f.status)
}

func (f *Follower) ref() namespace.RefName {
	return namespace.RefName{Kind: namespace.ChannelRef, Name: f.o.Channel}
}

// jitter spreads a fleet that was started together.
func jitter(d time.Duration) time.Duration {
	return d - d/10 + time.Duration(rand.Int64N(int64(d)/5+1))
}

// pause waits for d, until ctx ends or somebody wakes the follower, which it reports.
func (f *Follower) pause(ctx context.Context, d time.Duration) (woken bool) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	case <-f.o.Wake:
		return true
	}
	return false
}
