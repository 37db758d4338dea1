package cache

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"coppice.dev/coppice/namespace"
)

// After a failure an origin is left alone for a moment that doubles with each failure, so that
// offline the first read waits for its bound and the next thousand fail at once.
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
