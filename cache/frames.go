package cache

import (
	"container/list"
	"sync"

	"coppice.dev/coppice/namespace"
)

// frameKey names a frame in a segment: where its stored bytes are.
type frameKey struct {
	seg, at uint32
}

// frame is a decoded frame. Whoever got it from frames may read buf until it calls release.
type frame struct {
	key   frameKey
	buf   []byte
	err   error
	ready chan struct{} // closed when buf or err is set

	mu    sync.Mutex
	right map[namespace.Digest]uint32 // chunks that were verified, by their offset

	// guarded by frames.mu
	refs    int
	elem    *list.Element
	size    int  // of buf's memory, once it counts
	demand  bool // was asked for, not only decoded ahead
	dropped bool
}

// verified holds a chunk of the frame against its digest, unless that was done. The caller holds the
// frame.
func (f *frame) verified(d namespace.Digest, off, size uint32) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if at, ok := f.right[d]; ok && at == off {
		return true
	}
	if uint64(off)+uint64(size) > uint64(len(f.buf)) || namespace.Sum(f.buf[off:][:size]) != d {
		return false
	}
	if f.right == nil {
		f.right = map[namespace.Digest]uint32{}
	}
	f.right[d] = off
	return true
}

// frames keeps decoded frames, bounded in bytes, least recently used out first. The memory of frames
// is used again, so a frame is only read between get and release.
type frames struct {
	bound int
	pools [frameClasses]sync.Pool // of *[]byte with room for frameClassMin<<class bytes

	mu    sync.Mutex
	byKey map[frameKey]*frame
	lru   *list.List // front: most recent; of *frame
	bytes int
}

func newFrames(bound int) *frames {
	return &frames{bound: bound, byKey: map[frameKey]*frame{}, lru: list.New()}
}

// get returns the frame key of size plain bytes, calling load if it is not there. load is given memory
// to use and is called once for concurrent gets. first says that this is the first demand for the
// frame.
func (fs *frames) get(key frameKey, size uint32, demand bool, load func(buf []byte) ([]byte, error)) (f *frame, first bool, err error) {
	fs.mu.Lock()
	f, ok := fs.byKey[key]
	if ok {
		f.refs++
		first = demand && !f.demand
		f.demand = f.demand || demand
		fs.lru.MoveToFront(f.elem)
		fs.mu.Unlock()
		<-f.ready
	} else {
		f = &frame{key: key, ready: make(chan struct{}), refs: 1, demand: demand}
		f.elem = fs.lru.PushFront(f)
		fs.byKey[key] = f
		fs.mu.Unlock()
		first = demand
		f.buf, f.err = load(fs.memory(size))
		close(f.ready)
		fs.mu.Lock()
		if f.err != nil {
			fs.drop(f)
		} else if !f.dropped {
			f.size = cap(f.buf)
			fs.bytes += f.size
		}
		fs.shrink()
		fs.mu.Unlock()
	}
	if f.err != nil {
		err = f.err
		fs.release(f)
		return nil, false, err
	}
	return f, first, nil
}

// has reports whether the frame is there, or being decoded.
func (fs *frames) has(key frameKey) bool {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	return fs.byKey[key] != nil
}

// release ends the use of a frame.
func (fs *frames) release(f *frame) {
	fs.mu.Lock()
	f.refs--
	free := f.refs == 0 && f.dropped
	fs.mu.Unlock()
	if free {
		fs.recycle(f)
	}
}

// forget drops a frame, if it is there.
func (fs *frames) forget(key frameKey) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if f := fs.byKey[key]; f != nil {
		fs.drop(f)
	}
}

// drop takes a frame out; with mu held.
func (fs *frames) drop(f *frame) {
	if f.dropped {
		return
	}
	f.dropped = true
	delete(fs.byKey, f.key)
	fs.lru.Remove(f.elem)
	fs.bytes -= f.size
}

// shrink drops the least recently used frames that nobody reads, until the bound holds.
func (fs *frames) shrink() {
	for e := fs.lru.Back(); e != nil && fs.bytes > fs.bound; {
		f := e.Value.(*frame)
		e = e.Prev()
		if f.refs == 0 {
			fs.drop(f)
			fs.recycle(f)
		}
	}
}

// Memory comes in powers of two, so that what one frame leaves fits the next one of its kind.
const (
	frameClassMin = 128 << 10
	frameClasses  = 6
)

// class returns the least class with room for n bytes.
func class(n int) int {
	c := 0
	for c < frameClasses-1 && n > frameClassMin<<c {
		c++
	}
	return c
}

// recycle gives a dropped frame's memory back.
func (fs *frames) recycle(f *frame) { fs.give(f.buf) }

// give gives back memory that nobody uses any more.
func (fs *frames) give(buf []byte) {
	if c := class(cap(buf)); cap(buf) == frameClassMin<<c {
		fs.pools[c].Put(&buf)
	}
}

// memory returns a buffer with room for size bytes.
func (fs *frames) memory(size uint32) []byte {
	c := class(int(size))
	if p, ok := fs.pools[c].Get().(*[]byte); ok {
		return (*p)[:0]
	}
	return make([]byte, 0, frameClassMin<<c)
}
