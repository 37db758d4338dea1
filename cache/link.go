package cache

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"coppice.dev/coppice/namespace"
)

// LinkState says what is known of the way to an origin.
type LinkState uint8

// The states of a link.
const (
	LinkUnreachable LinkState = iota // there is a network, but the origin does not answer
	LinkOnline                       // it answers
	LinkOffline                      // there is no network
)

// Link is what a [Watch] knows at a moment.
type Link struct {
	State LinkState
	Heard time.Time // when the origin answered last, and proved to be it
	// Changed is closed when State or Heard is another.
	Changed <-chan struct{}
}

// A Watch knows of the way to an origin what requests alone find out by time-outs. Safe for
// concurrent use.
type Watch interface {
	// Link returns what is known now. It does not block.
	Link() Link
	// Reach is called by a read that needs the origin while it is LinkUnreachable: it finds out whether the
	// origin answers by now, unless that was found out a moment ago. Kinds: Unavailable, those of ctx.
	Reach(ctx context.Context) error
	// Suspect says that a read waits in silence, so that one had better find out why; or that it gave up,
	// so that nobody should wait like that again before there is a sign of life. It does not block.
	Suspect(gaveUp bool)
}

// SetWatch makes r go by what w knows: a read of what is not here fails at once while there is no
// network, and after Options.Silence when the origin is not heard of. Before the first read.
func (r *Reader) SetWatch(w Watch) { r.watch = w }

// Why a read gave up waiting: causes of contexts, which explain turns into errors.
var (
	errOffline = errors.New("there is no network")
	errSilent  = errors.New("the origin does not answer")
	errLate    = errors.New("the origin did not deliver it in time")
)

// bounded gives a read that needs the network the time that it may take. With a watch that is nothing
// without a network, Options.Silence without a sign of life, and Options.Timeout in any case. Without
// one it is little, while the origin is known not to answer, so that whoever goes through a tree
// offline waits once and not for each file.
func (r *Reader) bounded(ctx context.Context, d namespace.Digest) (context.Context, context.CancelFunc, error) {
	if r.watch == nil {
		bound := r.c.o.Timeout
		if r.link.down() {
			bound = min(probeTimeout, bound)
		}
		ctx, cancel := context.WithTimeoutCause(ctx, bound, errLate)
		return ctx, cancel, nil
	}
	if err := r.reach(ctx, d); err != nil {
		return ctx, func() {}, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	go r.attend(ctx, cancel)
	return ctx, func() { cancel(nil) }, nil
}

// reach returns an error if it is known that the origin cannot be asked.
func (r *Reader) reach(ctx context.Context, d namespace.Digest) error {
	switch r.watch.Link().State {
	case LinkOffline:
		return unavailable(d, errOffline)
	case LinkOnline:
		return nil
	}
	bound, cancel := context.WithTimeout(ctx, r.c.o.Silence)
	defer cancel()
	err := r.watch.Reach(bound)
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return namespace.E(namespace.KindOf(ctx.Err()), "fetch", d.String(), ctx.Err())
	}
	return unavailable(d, fmt.Errorf("%w: %w", errSilent, err))
}

// attend ends a read's patience. It returns when the read is over.
func (r *Reader) attend(ctx context.Context, giveUp context.CancelCauseFunc) {
	start := time.Now()
	late := time.NewTimer(r.c.o.Timeout)
	defer late.Stop()
	look := time.NewTimer(r.c.o.Silence / 4)
	defer look.Stop()
	for {
		link := r.watch.Link()
		if link.State == LinkOffline {
			giveUp(errOffline)
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-late.C:
			giveUp(errLate)
			return
		case <-link.Changed:
		case <-look.C:
			heard := r.link.heardAt()
			for _, t := range []time.Time{link.Heard, start} {
				if t.After(heard) {
					heard = t
				}
			}
			silent := time.Since(heard)
			if silent >= r.c.o.Silence {
				r.watch.Suspect(true)
				giveUp(errSilent)
				return
			}
			if silent >= r.c.o.Silence/4 {
				r.watch.Suspect(false)
			}
			look.Reset(max(min(r.c.o.Silence/4, r.c.o.Silence-silent), time.Millisecond))
		}
	}
}

// explain makes of a context's end what it means to whoever reads.
func (r *Reader) explain(ctx context.Context, err error, d namespace.Digest) error {
	cause := context.Cause(ctx)
	for _, why := range []error{errOffline, errSilent, errLate} {
		if errors.Is(cause, why) {
			r.link.gaveUp(why, r.c.o.Timeout)
			return unavailable(d, why)
		}
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return unavailable(d, err)
	}
	return err
}

func unavailable(d namespace.Digest, why error) error {
	return namespace.E(namespace.Unavailable, "fetch", d.String(), fmt.Errorf(notHere+": %w", why))
}

const notHere = "it is not in the cache"

// After a failure an origin that nobody watches is left alone for a moment that doubles with each
// failure, so that offline the first read waits for its bound and the next thousand fail at once.
const (
	linkPauseMin = 250 * time.Millisecond
	linkPauseMax = 5 * time.Second
	// probeTimeout bounds a read that finds out whether an origin that did not answer does again: longer
	// than the pauses between the attempts of a request that is under way.
	probeTimeout = 2 * time.Second
)

// link remembers whether an origin answers. Safe for concurrent use; the zero value is up.
type link struct {
	mu    sync.Mutex
	pause time.Duration // 0: up
	until time.Time
	err   error
	heard time.Time // when bytes arrived last
}

// asks returns an error while the origin is to be left alone.
func (r *Reader) asks(subject string) error {
	if r.watch == nil {
		return r.link.check(subject)
	}
	if r.watch.Link().State == LinkOffline {
		return namespace.E(namespace.Unavailable, "fetch", subject, errOffline)
	}
	return nil
}

// check returns an Unavailable error while the origin is left alone.
func (l *link) check(subject string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.pause == 0 || time.Now().After(l.until) {
		return nil
	}
	return namespace.E(namespace.Unavailable, "fetch", subject, fmt.Errorf("the origin did not answer a moment ago: %w", l.err))
}

// down reports whether the last that was heard of the origin was nothing.
func (l *link) down() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.pause != 0
}

// heardAt returns when bytes arrived last.
func (l *link) heardAt() time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.heard
}

// note is told how a request ended.
func (l *link) note(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case !namespace.IsKind(err, namespace.Unavailable):
		if !namespace.IsKind(err, namespace.Canceled) { // any answer is a sign of life
			l.pause = 0
			l.heard = time.Now()
		}
	case errors.Is(err, context.Canceled): // the cache is being closed
	default:
		l.fail(err)
	}
}

// gaveUp is told that a read waited for its bound. A link that is only slow is not to be left alone.
func (l *link) gaveUp(err error, bound time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if time.Since(l.heard) >= bound {
		l.fail(err)
	}
}

// fail doubles the pause, unless one is under way; with mu held.
func (l *link) fail(err error) {
	now := time.Now()
	if l.pause != 0 && now.Before(l.until) {
		return
	}
	l.pause = min(max(2*l.pause, linkPauseMin), linkPauseMax)
	l.until = now.Add(l.pause)
	l.err = err
}
