package cache

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/catalog"
	"coppice.dev/coppice/namespace/object"
)

// A miss fetches more than the frame it needs: the frames behind it in the pack, up to a window of
// stored bytes, since packs are laid out in the order in which trees are read. The window grows
// while misses go on where the last one ended.
const (
	windowMin = 1 << 20
	windowMax = 8 << 20
	// gapMax is how much of a pack is fetched for nothing rather than in two requests.
	gapMax = 64 << 10
	// lookMax bounds the chunks looked at to plan a window: some of them may be in other packs.
	lookMax = 64 << 10
)

// planned is a frame to fetch and the chunks that are known to be in it.
type planned struct {
	object.Place
	chunks []object.FrameChunk
}

func (p planned) end() int64     { return p.FrameOff + int64(p.FrameLen) }
func (p planned) key() flightKey { return flightKey{p.Pack, p.FrameOff} }

// window is a plan: consecutive frames of one pack, and the chunk after the last of them.
type window struct {
	frames []planned
	next   int
}

// fetchChunk fetches a chunk with its neighbours. It returns nil when the chunk is in the cache, or
// the chunk's bytes if it could not be kept.
func (r *Reader) fetchChunk(ctx context.Context, ref namespace.ChunkRef) ([]byte, error) {
	var err error
	for attempt := range 2 {
		var place object.Place
		var fl *flight
		if place, fl, err = r.flyTo(ctx, ref, attempt > 0); err == nil {
			err = fl.wait(ctx, r.c.o.Timeout, flightKey{place.Pack, place.FrameOff})
		}
		if err == nil {
			if fl.plain == nil {
				return nil, nil
			}
			return fl.plain[place.Off:][:ref.Size], nil
		}
		// A locator may be out of date: packs are rewritten. Anything else is what it is.
		if k := namespace.KindOf(err); k != namespace.Corrupt && k != namespace.NotExist {
			return nil, err
		}
	}
	return nil, err
}

// flyTo returns the flight that brings a chunk, starting it if need be.
func (r *Reader) flyTo(ctx context.Context, ref namespace.ChunkRef, fresh bool) (object.Place, *flight, error) {
	// Loading a catalog or a locator waits for the network as well, and no longer than a read may.
	ctx, cancel := context.WithTimeout(ctx, r.c.o.Timeout)
	defer cancel()
	cat, err := r.Catalog(ctx, ref.Catalog)
	if err != nil {
		return object.Place{}, nil, err
	}
	loc, err := r.locator(ctx, ref.Catalog, fresh)
	if err != nil {
		return object.Place{}, nil, err
	}
	i := int(ref.Index)
	if i >= loc.Len() || loc.Len() != cat.NumChunks() || loc.Place(i).IsZero() ||
		uint64(loc.Place(i).Off)+uint64(ref.Size) > uint64(loc.Place(i).FramePlain) {
		return object.Place{}, nil, namespace.E(namespace.Corrupt, "fetch", "locator "+ref.Catalog.String(),
			fmt.Errorf("it does not say where chunk %s is", ref.Digest))
	}
	place := loc.Place(i)
	fl := r.c.flights.find(flightKey{place.Pack, place.FrameOff})
	if fl == nil {
		fl = r.start(cat, loc, i)
	}
	if fl.follow != nil {
		fl.follow()
	}
	return place, fl, nil
}

// start plans a window from chunk i on and fetches it. It returns the flight of i's frame.
func (r *Reader) start(cat *catalog.Catalog, loc *object.Locator, i int) *flight {
	place := loc.Place(i)
	limit, sequential := r.run.limit(place)
	w := r.plan(cat, loc, i, limit)
	r.run.planned(w.frames[len(w.frames)-1])
	fl, more := r.launch(w)
	if fl == nil { // somebody was faster
		if fl = r.c.flights.find(flightKey{place.Pack, place.FrameOff}); fl == nil {
			fl = &flight{done: closed}
		}
		return fl
	}
	if sequential && more {
		var once sync.Once
		fl.follow = func() { once.Do(func() { r.prefetch(cat, loc, w.next, limit) }) }
	}
	return fl
}

// closed is a channel that is closed: for flights that are over.
var closed = func() chan struct{} { c := make(chan struct{}); close(c); return c }()

// prefetch fetches the window from chunk i on; nobody waits for it yet.
func (r *Reader) prefetch(cat *catalog.Catalog, loc *object.Locator, i int, limit int64) {
	for ; i < loc.Len(); i++ {
		p := loc.Place(i)
		if p.IsZero() {
			continue
		}
		if _, here := r.c.index.get(cat.Chunk(i).Digest); here {
			return
		}
		w := r.plan(cat, loc, i, limit)
		r.run.planned(w.frames[len(w.frames)-1])
		r.launch(w)
		return
	}
}

// plan collects the frames to fetch for chunk i: its own, and those behind it in its pack that are
// not here, until limit stored bytes.
func (r *Reader) plan(cat *catalog.Catalog, loc *object.Locator, i int, limit int64) window {
	first := loc.Place(i)
	for i > 0 && loc.Place(i-1).Pack == first.Pack && loc.Place(i-1).FrameOff == first.FrameOff {
		i-- // chunks of the same frame that come before
	}
	w := window{frames: []planned{{Place: first}}}
	cur := &w.frames[0]
	for end := min(i+lookMax, loc.Len()); i < end; i++ {
		p := loc.Place(i)
		w.next = i
		if p.IsZero() || p.Pack != first.Pack || p.FrameOff < cur.FrameOff {
			continue // a hole, or a duplicate of what is elsewhere
		}
		chunk := cat.Chunk(i)
		if p.FrameOff != cur.FrameOff {
			_, here := r.c.index.get(chunk.Digest)
			if here || p.FrameOff < cur.end() || p.FrameOff-cur.end() > gapMax || p.FrameOff+int64(p.FrameLen)-first.FrameOff > limit {
				break
			}
			w.frames = append(w.frames, planned{Place: p})
			cur = &w.frames[len(w.frames)-1]
		}
		if n := len(cur.chunks); n == 0 || cur.chunks[n-1].Digest != chunk.Digest {
			cur.chunks = append(cur.chunks, object.FrameChunk{Digest: chunk.Digest, Off: p.Off, Len: uint32(cat.ChunkLen(i))})
		}
	}
	return w
}

// launch starts to fetch a window, as far as nobody else does already. It returns the flight of its
// first frame, nil if that is under way, and whether all of the window was launched.
func (r *Reader) launch(w window) (*flight, bool) {
	keys := make([]flightKey, len(w.frames))
	for i, f := range w.frames {
		keys[i] = f.key()
	}
	begun := r.c.flights.begin(keys)
	if len(begun) == 0 {
		return nil, false
	}
	frames := w.frames[:len(begun)]
	r.c.flights.work.Go(func() { r.fetch(frames, begun) })
	return begun[0], len(begun) == len(w.frames)
}

// fetch gets frames in one request and ends their flights one after the other, as they arrive.
func (r *Reader) fetch(frames []planned, fl []*flight) {
	ctx, cancel := context.WithTimeout(context.Background(), fetchTimeout)
	defer cancel()
	done := 0
	err := func() error {
		first, last := frames[0], frames[len(frames)-1]
		key := namespace.Key{Class: namespace.Pack, Digest: first.Pack}
		r.c.count.requests.Add(1)
		body, err := r.from.Get(ctx, key, first.FrameOff, last.end()-first.FrameOff)
		if err != nil {
			return err
		}
		defer body.Close()
		at := first.FrameOff
		for i, f := range frames {
			stored, err := readFrame(body, f, &at)
			r.c.count.fetched.Add(uint64(len(stored)))
			if err != nil {
				return namespace.E(fetchKind(err), "fetch", key.String(), err)
			}
			plain, err := r.c.admit(f, stored)
			r.c.flights.end(f.key(), fl[i], plain, err)
			done++
		}
		return nil
	}()
	for i := done; i < len(frames); i++ {
		r.c.flights.end(frames[i].key(), fl[i], nil, err)
	}
}

// fetchKind says what an error of a body means: one that ends early is the network's.
func fetchKind(err error) namespace.Kind {
	if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
		return namespace.Unavailable
	}
	return namespace.KindOf(err)
}

// readFrame reads the stored bytes of a frame, skipping a gap before it. at is where body stands.
func readFrame(body io.Reader, f planned, at *int64) ([]byte, error) {
	if _, err := io.CopyN(io.Discard, body, f.FrameOff-*at); err != nil {
		return nil, err
	}
	stored := make([]byte, f.FrameLen)
	n, err := io.ReadFull(body, stored)
	*at = f.end()
	return stored[:n], err
}

// admit verifies the chunks of a frame and keeps it. If it cannot be kept, its plain bytes are
// returned. Corrupt: the frame is not what the catalog says.
func (c *Cache) admit(f planned, stored []byte) ([]byte, error) {
	plain, err := object.DecodeFrame(nil, stored, f.Codec, int(f.FramePlain))
	if err != nil {
		c.count.corrupt.Add(1)
		return nil, namespace.E(namespace.Corrupt, "verify", fmt.Sprintf("frame at %d of pack %s", f.FrameOff, f.Pack), err)
	}
	for _, ch := range f.chunks {
		if uint64(ch.Off)+uint64(ch.Len) > uint64(len(plain)) || namespace.Sum(plain[ch.Off:][:ch.Len]) != ch.Digest {
			c.count.corrupt.Add(1)
			return nil, namespace.E(namespace.Corrupt, "verify",
				fmt.Sprintf("chunk %s in pack %s at %d", ch.Digest, f.Pack, f.FrameOff), errors.New("its bytes are others"))
		}
	}
	rec, sum := encodeRecord(stored, f.Codec, f.FramePlain, f.chunks)
	c.makeRoom(int64(len(rec)))
	seg, at, err := c.segments.append(rec)
	if err != nil {
		c.degrade(err)
		return plain, nil
	}
	c.recovered()
	r := record{at: at, stored: uint32(len(stored)), plain: f.FramePlain, codec: f.Codec, sum: sum, chunks: f.chunks}
	if fr, _, err := c.frames.get(frameKey{seg, r.payload()}, r.plain, false, func(buf []byte) ([]byte, error) {
		return append(buf[:0], plain...), nil
	}); err == nil {
		c.frames.release(fr)
	}
	for _, e := range r.extents(seg) {
		c.index.put(e.digest, e.extent)
	}
	c.index.cover(seg, r.end())
	return nil, nil
}

// runs tells a sequence of misses from a random one.
type runs struct {
	mu    sync.Mutex
	pack  namespace.Digest
	end   int64
	width int64
}

// limit returns the width of the window for a miss at p, and whether it goes on where the last
// window ended. A new pack that begins at its beginning goes on as well.
func (r *runs) limit(p object.Place) (int64, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	near := bytes.Equal(r.pack[:], p.Pack[:]) && p.FrameOff >= r.end && p.FrameOff-r.end <= gapMax
	turned := r.pack != p.Pack && p.FrameOff < 64 && r.width > 0
	if near || turned {
		r.width = min(2*r.width, windowMax)
		return r.width, true
	}
	r.width = windowMin
	return r.width, false
}

// planned notes where the newest window ends.
func (r *runs) planned(last planned) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.pack, r.end = last.Pack, last.end()
}
