package cache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/object"
)

// fetchChunk fetches a chunk with its neighbours. It returns nil when the chunk is in the cache, or
// the chunk's bytes if it could not be kept.
func (r *Reader) fetchChunk(ctx context.Context, ref namespace.ChunkRef) ([]byte, error) {
	subject := "chunk " + ref.Digest.String()
	var err error
	var old *object.Locator
	for range 2 {
		var got []byte
		if got, old, err = r.tryChunk(ctx, ref, old); err == nil {
			return got, nil
		}
		// A locator may be out of date: packs are rewritten. Anything else is what it is.
		switch namespace.KindOf(err) {
		case namespace.Corrupt, namespace.NotExist:
		case namespace.Invalid: // a range behind the end of a pack; the reference itself was checked
			if old == nil {
				return nil, err
			}
			err = namespace.E(namespace.Corrupt, "", "", err)
		default:
			return nil, namespace.E(namespace.KindOf(err), "read", subject, err)
		}
	}
	return nil, namespace.E(namespace.KindOf(err), "read", subject, err)
}

// tryChunk fetches a chunk by a locator that is not old, and returns the one that was used.
func (r *Reader) tryChunk(ctx context.Context, ref namespace.ChunkRef, old *object.Locator) ([]byte, *object.Locator, error) {
	cat, err := r.catalog(ctx, ref.Catalog)
	if err != nil {
		return nil, nil, err
	}
	i := int(ref.Index)
	if i >= cat.NumChunks() || cat.Chunk(i).Digest != ref.Digest || cat.ChunkLen(i) != uint64(ref.Size) || ref.Digest.IsZero() {
		return nil, nil, namespace.E(namespace.Invalid, "fetch", "chunk "+ref.Digest.String(),
			fmt.Errorf("not chunk %d of catalog %s", i, ref.Catalog))
	}
	loc, err := r.locator(ctx, ref.Catalog, old)
	if err != nil {
		return nil, old, err
	}
	if loc.Len() != cat.NumChunks() || loc.Place(i).IsZero() ||
		uint64(loc.Place(i).Off)+uint64(ref.Size) > uint64(loc.Place(i).FramePlain) {
		return nil, loc, namespace.E(namespace.Corrupt, "fetch", "locator "+ref.Catalog.String(),
			fmt.Errorf("it does not say where chunk %s is", ref.Digest))
	}
	place := loc.Place(i)
	key := flightKey{place.Pack, place.FrameOff}
	fl := r.flyTo(source{ref.Catalog, cat, loc}, i, key)
	if err := fl.wait(ctx, key); err != nil {
		return nil, loc, err
	}
	if fl.plain == nil {
		return nil, loc, nil
	}
	// The frame may have come by another locator, for other chunks: this one is not verified yet.
	end := uint64(place.Off) + uint64(ref.Size)
	if end > uint64(len(fl.plain)) || namespace.Sum(fl.plain[place.Off:end]) != ref.Digest {
		return nil, loc, r.c.mismatch(ref.Digest, place)
	}
	return fl.plain[place.Off:end], loc, nil
}

func (c *Cache) mismatch(d namespace.Digest, p object.Place) error {
	c.count.corrupt.Add(1)
	return namespace.E(namespace.Corrupt, "verify", fmt.Sprintf("chunk %s in pack %s at %d", d, p.Pack, p.FrameOff),
		errors.New("its bytes are others"))
}

// flyTo returns the flight that brings the frame of chunk i, starting it if need be.
func (r *Reader) flyTo(src source, i int, key flightKey) *flight {
	fl := r.c.flights.find(key)
	if fl == nil {
		limit, sequential := r.run.limit(src.loc.Place(i))
		if !sequential {
			limit = r.pace.window()
		}
		w := r.c.plan(src, i, limit, gapMax)
		r.run.planned(w.frames[len(w.frames)-1])
		fl = r.launch(w, r.following(sequential, src, w.next, limit), nil, true)
	}
	if fl.alarm != nil {
		fl.alarm.raise()
	}
	if fl.follow != nil {
		fl.follow()
	}
	return fl
}

// following returns what fetches the window behind one that ends at chunk i, once; nil if nothing
// says that it will be wanted.
func (r *Reader) following(sequential bool, src source, i int, limit int64) func() {
	if !sequential {
		return nil
	}
	var once sync.Once
	return func() { once.Do(func() { r.prefetch(src, i, min(2*limit, windowMax)) }) }
}

// prefetch fetches the window from chunk i on; nobody waits for it yet.
func (r *Reader) prefetch(src source, i int, limit int64) {
	for ; i < src.loc.Len(); i++ {
		if src.loc.Place(i).IsZero() {
			continue
		}
		if r.c.holds(src.cat.Chunk(i).Digest) {
			return
		}
		w := r.c.plan(src, i, limit, gapMax)
		r.run.planned(w.frames[len(w.frames)-1])
		r.launch(w, r.following(true, src, w.next, limit), nil, true)
		return
	}
}

// launch starts to fetch a window, as far as nobody else does already, and returns the flight of its
// first frame, whoever brings it. show says that the frames will be read soon. ended, if not nil, is
// called when the request is over, or at once if there is none.
func (r *Reader) launch(w window, follow, ended func(), show bool) *flight {
	keys := make([]flightKey, len(w.frames))
	for i, f := range w.frames {
		keys[i] = f.key()
	}
	fl, begun := r.c.flights.begin(keys, follow, func(fl []*flight) {
		r.fetch(w.frames[:len(fl)], fl, show)
		if ended != nil {
			ended()
		}
	})
	if !begun && ended != nil {
		ended()
	}
	return fl
}

// fetch gets frames in one request and ends their flights one after the other, as they arrive.
func (r *Reader) fetch(frames []planned, fl []*flight, show bool) {
	done, err := 0, error(nil)
	// A frame that arrived between the miss and now was brought by a flight that has just ended. Whoever
	// waits for one behind it asks again.
	missing := slices.IndexFunc(frames, r.here)
	if missing < 0 {
		missing = len(frames)
	}
	if missing > 0 {
		ctx, cancel := context.WithTimeout(r.c.flights.ctx, fetchTimeout)
		defer cancel()
		if !show {
			ctx = namespace.InBackground(ctx, fl[0].alarm.closed)
		}
		done, err = r.fetchRange(ctx, frames[:missing], fl, show)
	}
	for i := max(done, missing); i < len(frames); i++ {
		r.c.flights.end(frames[i].key(), fl[i], nil, nil)
	}
	frames = frames[:missing]
	for i := done; i < len(frames); i++ {
		r.c.flights.end(frames[i].key(), fl[i], nil, err)
	}
}

// here reports whether all known chunks of a frame are in the cache.
func (r *Reader) here(f planned) bool {
	for _, ch := range f.chunks {
		if !r.c.holds(ch.Digest) {
			return false
		}
	}
	return true
}

// fetchRange gets frames and returns how many of them have arrived, right or wrong.
func (r *Reader) fetchRange(ctx context.Context, frames []planned, fl []*flight, show bool) (done int, err error) {
	first, last := frames[0], frames[len(frames)-1]
	key := namespace.Key{Class: namespace.Pack, Digest: first.Pack}
	arrived := func() {}
	if show {
		arrived = r.urgent.begin()
		defer arrived()
	}
	clock := r.pace.start()
	body, err := r.get(ctx, key, first.FrameOff, last.end()-first.FrameOff)
	if err != nil {
		return 0, err
	}
	clock.answered()
	defer body.Close()
	scratch := r.c.scratch.get()
	defer r.c.scratch.put(scratch)
	at := first.FrameOff
	for i, f := range frames {
		if i > 0 || !show { // nobody waits for it, as far as is known: who waits goes before
			clock.paused(r.urgent.yield(ctx))
		}
		rec, err := readFrame(body, f, &at, *scratch)
		if err != nil {
			err = namespace.E(fetchKind(err), "fetch", key.String(), err)
			r.link.note(err)
			return i, err
		}
		*scratch = rec
		r.link.note(nil)
		r.c.count.fetched.Add(uint64(f.FrameLen))
		plain, err := r.c.admit(f, rec, fl[i].follow, show)
		if namespace.IsKind(err, namespace.Corrupt) {
			namespace.Reject(body, err)
		}
		r.c.flights.end(f.key(), fl[i], plain, err)
		arrived()
		clock.received(int64(f.FrameLen))
		if r.c.index.waiting() > pendingMax {
			_ = r.c.index.flush() // if it fails, the next regular one says so
		}
	}
	return len(frames), nil
}

// fetchKind says what an error of a body means: one that ends early is the network's.
func fetchKind(err error) namespace.Kind {
	if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
		return namespace.Unavailable
	}
	return namespace.KindOf(err)
}

// readFrame reads the stored bytes of a frame, skipping a gap before it, into a record without its
// header, in buf's memory if it is large enough. at is where body stands.
func readFrame(body io.Reader, f planned, at *int64, buf []byte) ([]byte, error) {
	if _, err := io.CopyN(io.Discard, body, f.FrameOff-*at); err != nil {
		return nil, err
	}
	prefix := recordPrefix(f.chunks)
	if need := prefix + int(f.FrameLen); cap(buf) < need {
		buf = make([]byte, need)
	} else {
		buf = buf[:need]
	}
	_, err := io.ReadFull(body, buf[prefix:])
	*at = f.end()
	return buf, err
}

// admit verifies the chunks of a frame and keeps it; rec is its record, header missing. If it cannot
// be kept, its plain bytes are returned. Corrupt: the frame is not what the catalog says.
func (c *Cache) admit(f planned, rec []byte, follow func(), show bool) ([]byte, error) {
	memory := c.frames.memory(f.FramePlain)
	plain, err := object.DecodeFrame(memory, rec[recordPrefix(f.chunks):], f.Codec, int(f.FramePlain))
	if err != nil {
		c.frames.give(memory)
		c.count.corrupt.Add(1)
		return nil, namespace.E(namespace.Corrupt, "verify", fmt.Sprintf("frame at %d of pack %s", f.FrameOff, f.Pack), err)
	}
	for _, ch := range f.chunks {
		if uint64(ch.Off)+uint64(ch.Len) > uint64(len(plain)) || namespace.Sum(plain[ch.Off:][:ch.Len]) != ch.Digest {
			c.frames.give(plain)
			return nil, c.mismatch(ch.Digest, f.Place)
		}
	}
	seg, r, err := c.append(f, rec)
	if err != nil {
		return plain, nil
	}
	key := frameKey{seg, r.payload()}
	if follow != nil {
		c.triggers.set(key, follow)
	}
	if show {
		c.show(key, f.FramePlain, plain)
	} else {
		c.frames.give(plain)
	}
	c.enter(seg, r)
	return nil, nil
}

// append writes a verified frame to the newest segment; rec is its record, header missing. An error
// has been noted: the cache reads through.
func (c *Cache) append(f planned, rec []byte) (seg uint32, r record, err error) {
	sum := sealRecord(rec, f.Codec, f.FramePlain, f.chunks)
	if err = c.reserve(int64(len(rec))); err != nil {
		c.degrade(err)
		return 0, r, err
	}
	defer c.unreserve(int64(len(rec)))
	seg, at, err := c.segments.append(rec)
	if err != nil {
		c.degrade(err)
		return 0, r, err
	}
	c.recovered()
	return seg, record{at: at, stored: f.FrameLen, plain: f.FramePlain, codec: f.Codec, sum: sum, chunks: f.chunks}, nil
}

// enter makes the chunks of an appended frame known.
func (c *Cache) enter(seg uint32, r record) {
	for _, e := range r.extents(seg) {
		c.index.put(e.digest, e.extent)
	}
	if s := c.segments.get(seg); s != nil {
		c.index.cover(seg, s.entered(r.at))
	}
}

// show puts a frame that is decoded already among the decoded ones, which own plain then.
func (c *Cache) show(key frameKey, size uint32, plain []byte) {
	f, _, err := c.frames.get(key, size, false, func(buf []byte) ([]byte, error) {
		c.frames.give(buf)
		return plain, nil
	})
	if err == nil {
		c.frames.release(f)
	}
}
