package cache

import (
	"context"
	"sync"
	"time"

	"coppice.dev/coppice/namespace"
)

// flightKey names what is being fetched: a frame of a pack, or an object, by a negative off.
type flightKey struct {
	digest namespace.Digest
	off    int64
}

const (
	offCatalog = -1
	offLocator = -2
)

// flight is a fetch under way. It is finished whoever gives up waiting (C4).
type flight struct {
	done chan struct{} // closed when err, or plain, is set
	err  error
	// plain is the whole frame if it could not be kept: the disk is full.
	plain []byte
	// follow starts the fetch of what comes next, once; nil if nothing should.
	follow func()
	// alarm is closed when somebody waits for a flight that nobody waited for, and for those that go
	// with it.
	alarm *alarm
}

// alarm is a channel that many may close.
type alarm struct {
	once   sync.Once
	closed chan struct{}
}

func (a *alarm) raise() { a.once.Do(func() { close(a.closed) }) }

// flights holds what is being fetched, so that concurrent misses are one request.
type flights struct {
	ctx    context.Context // ends with the cache
	cancel context.CancelFunc
	work   sync.WaitGroup

	mu      sync.Mutex
	stopped bool
	byKey   map[flightKey]*flight
}

func newFlights() *flights {
	fs := &flights{byKey: map[flightKey]*flight{}}
	fs.ctx, fs.cancel = context.WithCancel(context.Background())
	return fs
}

// stop breaks off what is under way and waits for it to end. Nothing begins any more.
func (fs *flights) stop() {
	fs.mu.Lock()
	fs.stopped = true
	fs.mu.Unlock()
	fs.cancel()
	fs.work.Wait()
}

// find returns the flight of a key, nil if there is none.
func (fs *flights) find(key flightKey) *flight {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	return fs.byKey[key]
}

// begin registers flights for the keys, up to the first one that is under way already, and runs fly
// for them, which ends them. follow goes with the first. The flight under the first key comes back,
// and whether this call began it.
func (fs *flights) begin(keys []flightKey, follow func(), fly func([]*flight)) (first *flight, begun bool) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if fs.stopped {
		f := &flight{done: make(chan struct{}), err: namespace.E(namespace.Unavailable, "fetch", keys[0].digest.String(), context.Canceled)}
		close(f.done)
		return f, false
	}
	if f := fs.byKey[keys[0]]; f != nil {
		return f, false
	}
	var all []*flight
	wanted := &alarm{closed: make(chan struct{})}
	for _, k := range keys {
		if fs.byKey[k] != nil {
			break
		}
		f := &flight{done: make(chan struct{}), alarm: wanted}
		fs.byKey[k] = f
		all = append(all, f)
	}
	all[0].follow = follow
	fs.work.Go(func() { fly(all) })
	return all[0], true
}

// end finishes a flight.
func (fs *flights) end(key flightKey, f *flight, plain []byte, err error) {
	f.plain, f.err = plain, err
	fs.mu.Lock()
	delete(fs.byKey, key)
	fs.mu.Unlock()
	close(f.done)
}

// fetchTimeout bounds a fetch nobody may be waiting for any more.
const fetchTimeout = 5 * time.Minute

// once runs fetch for key, unless that is under way, in a goroutine of its own, and waits for it.
func (fs *flights) once(ctx context.Context, key flightKey, fetch func(context.Context) error) error {
	f, _ := fs.begin([]flightKey{key}, nil, func(f []*flight) {
		ctx, cancel := context.WithTimeout(fs.ctx, fetchTimeout)
		defer cancel()
		fs.end(key, f[0], nil, fetch(ctx))
	})
	return f.wait(ctx, key)
}

// wait waits for a flight to end, as long as ctx lasts. Kinds: the flight's, Unavailable, Canceled.
func (f *flight) wait(ctx context.Context, key flightKey) error {
	select {
	case <-f.done:
		return f.err
	default:
	}
	select {
	case <-f.done:
		return f.err
	case <-ctx.Done():
		return namespace.E(namespace.KindOf(ctx.Err()), "fetch", key.digest.String(), ctx.Err())
	}
}

// triggers are what is to be started when a frame is demanded for the first time: the fetch of the
// window behind the one that it begins. Safe for concurrent use; the zero value is empty.
type triggers struct {
	mu sync.Mutex
	at map[frameKey]func()
}

// triggersMax bounds them; a reader that went elsewhere leaves its last one behind.
const triggersMax = 64

func (t *triggers) set(key frameKey, fn func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.at == nil || len(t.at) >= triggersMax {
		t.at = map[frameKey]func(){}
	}
	t.at[key] = fn
}

// fire runs what was set for key, once.
func (t *triggers) fire(key frameKey) {
	t.mu.Lock()
	fn := t.at[key]
	delete(t.at, key)
	t.mu.Unlock()
	if fn != nil {
		fn()
	}
}
