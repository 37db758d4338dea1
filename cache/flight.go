package cache

import (
	"context"
	"sync"
	"time"

	"coppice.dev/coppice/namespace"
)

// flightKey names what is being fetched: a frame of a pack, or (off 0) an object.
type flightKey struct {
	digest namespace.Digest
	off    int64
}

// flight is a fetch under way. It is finished whoever gives up waiting (C4).
type flight struct {
	done chan struct{} // closed when err, or plain, is set
	err  error
	// plain is the whole frame if it could not be kept: the disk is full.
	plain []byte
	// follow starts the fetch of what comes next, once; nil if nothing should.
	follow func()
}

// flights holds what is being fetched, so that concurrent misses are one request.
type flights struct {
	work sync.WaitGroup

	mu    sync.Mutex
	byKey map[flightKey]*flight
}

func newFlights() *flights { return &flights{byKey: map[flightKey]*flight{}} }

// wait returns when nothing is under way.
func (fs *flights) wait() { fs.work.Wait() }

// find returns the flight of a key, nil if there is none.
func (fs *flights) find(key flightKey) *flight {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	return fs.byKey[key]
}

// begin registers flights for the keys, up to the first one that is under way already.
func (fs *flights) begin(keys []flightKey) []*flight {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	var begun []*flight
	for _, k := range keys {
		if fs.byKey[k] != nil {
			break
		}
		f := &flight{done: make(chan struct{})}
		fs.byKey[k] = f
		begun = append(begun, f)
	}
	return begun
}

// end finishes a flight.
func (fs *flights) end(key flightKey, f *flight, plain []byte, err error) {
	f.plain, f.err = plain, err
	fs.mu.Lock()
	if fs.byKey[key] == f {
		delete(fs.byKey, key)
	}
	fs.mu.Unlock()
	close(f.done)
}

// fetchTimeout bounds a fetch nobody may be waiting for any more.
const fetchTimeout = 5 * time.Minute

// once runs fetch for key, unless that is under way, in a goroutine of its own, and waits for it.
func (fs *flights) once(ctx context.Context, timeout time.Duration, key flightKey, fetch func(context.Context) error) error {
	fs.mu.Lock()
	f := fs.byKey[key]
	if f == nil {
		f = &flight{done: make(chan struct{})}
		fs.byKey[key] = f
		fs.work.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), fetchTimeout)
			defer cancel()
			fs.end(key, f, nil, fetch(ctx))
		})
	}
	fs.mu.Unlock()
	return f.wait(ctx, timeout, key)
}

// wait waits for a flight to end, for a bounded time. Kinds: the flight's, Unavailable, Canceled.
func (f *flight) wait(ctx context.Context, timeout time.Duration, key flightKey) error {
	t := time.NewTimer(timeout)
	defer t.Stop()
	select {
	case <-f.done:
		return f.err
	case <-t.C:
		return namespace.E(namespace.Unavailable, "fetch", key.digest.String(), context.DeadlineExceeded)
	case <-ctx.Done():
		return namespace.E(namespace.KindOf(ctx.Err()), "fetch", key.digest.String(), ctx.Err())
	}
}
