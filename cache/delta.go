package cache

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/catalog"
	"coppice.dev/coppice/namespace/object"
	"coppice.dev/coppice/namespace/object/delta"
)

const (
	// deltaHead is how much of a delta object is asked for at first: its index and the catalog's patch,
	// mostly.
	deltaHead = 64 << 10
	// deltaTries is how many catalogs in a row may have no delta that helps before no more are asked
	// for: a cache that is filled for the first time should not pay a request a catalog.
	deltaTries = 3
	// deltaChain bounds the versions that may be skipped: each costs its own delta.
	deltaChain = 8
	// deltaWorth is what a chain may cost of what the files would, in percent of their plaintext: about
	// what chunks are compressed to.
	deltaWorth = 30
	// deltaFrame is the plaintext at which small chunks that were made are kept together.
	deltaFrame  = 128 << 10
	deltaSuffix = ".delta"
)

// update makes what is new in a tree from what is here of older ones, by the origin's deltas. It only
// ever saves bytes: whatever goes wrong, chunks are fetched as if there were no deltas, and nothing is
// kept that has not the digest it should have. Safe for concurrent use.
type update struct {
	r    *Reader
	pace func(ctx context.Context, n int64) error // waits until n bytes may be fetched; nil: at once

	mu      sync.Mutex
	useless int // catalogs in a row whose delta did not help
	held    map[namespace.Digest]*heldDelta
}

// heldDelta is a delta object as far as it was fetched: its index and what came with it.
type heldDelta struct {
	*delta.Object
	head []byte
}

func newUpdate(r *Reader) *update { return &update{r: r, held: map[namespace.Digest]*heldDelta{}} }

// catalog tries to make a catalog that is not here.
func (u *update) catalog(ctx context.Context, d namespace.Digest) {
	if _, err := u.r.c.objects.open(d); err == nil || u.hopeless() {
		return
	}
	if b := u.r.c.lowerObject(d, namespace.CatalogBytesMax); b != nil {
		u.r.keepObject(d, "", b)
		return
	}
	made := u.makeCatalog(ctx, d, deltaChain)
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.useless++; made {
		u.useless = 0
	}
}

// forget removes the deltas that were used: everything that they make is here.
func (u *update) forget() {
	u.mu.Lock()
	defer u.mu.Unlock()
	for d, h := range u.held {
		if h != nil {
			_ = os.Remove(u.r.c.objects.path(d, deltaSuffix))
		}
	}
}

func (u *update) hopeless() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.useless >= deltaTries
}

// makeCatalog makes a catalog from its predecessor, which may have to be made first.
func (u *update) makeCatalog(ctx context.Context, d namespace.Digest, depth int) bool {
	h := u.open(ctx, d)
	if h == nil || h.CatalogBytes == 0 || h.CatalogBytes > namespace.CatalogBytesMax || len(h.Predecessors) == 0 {
		return false
	}
	base, err := u.r.c.objects.read(h.Predecessors[0], namespace.CatalogBytesMax)
	if err != nil {
		if depth == 0 || !u.makeCatalog(ctx, h.Predecessors[0], depth-1) {
			return false
		}
		if base, err = u.r.c.objects.read(h.Predecessors[0], namespace.CatalogBytesMax); err != nil {
			return false
		}
	}
	var frame []byte
	err = u.frames(ctx, d, h, []int{0}, func(_ int, plain []byte) error { frame = plain; return nil })
	if err != nil {
		return false
	}
	b, err := delta.MakeCatalog(h.Object, base, frame)
	if err != nil || namespace.Sum(b) != d {
		u.doubt(d, err)
		return false
	}
	return u.r.keepObject(d, "", b)
}

// doubt notes a delta that does not make what it should; what it was for is fetched.
func (u *update) doubt(d namespace.Digest, err error) {
	u.r.c.count.corrupt.Add(1)
	u.r.c.log.Warn("a delta makes something else; done without", "catalog", d.String(), "error", err)
}

// open returns the delta object of a catalog, nil if there is none that can be used.
func (u *update) open(ctx context.Context, d namespace.Digest) *heldDelta {
	u.mu.Lock()
	h, known := u.held[d]
	u.mu.Unlock()
	if known {
		return h
	}
	path := u.r.c.objects.path(d, deltaSuffix)
	head, err := os.ReadFile(path)
	if err != nil {
		if head, err = u.fetchHead(ctx, d); err == nil {
			u.r.keepObject(d, deltaSuffix, head)
		}
	}
	if err == nil {
		var o *delta.Object
		if o, err = delta.Open(head, d); err == nil {
			h = &heldDelta{o, head}
		} else {
			_ = os.Remove(path)
			u.doubt(d, err)
		}
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.held[d] = h
	return h
}

// fetchHead fetches the index of a delta object and what lies behind it, up to deltaHead bytes.
func (u *update) fetchHead(ctx context.Context, d namespace.Digest) ([]byte, error) {
	key := namespace.Key{Class: namespace.Delta, Digest: d}
	head, err := u.part(ctx, key, 0, deltaHead)
	if err != nil {
		return nil, err
	}
	need, err := delta.Need(head)
	if err != nil {
		u.doubt(d, err)
		return nil, err
	}
	if need > int64(len(head)) {
		more, err := u.part(ctx, key, int64(len(head)), need-int64(len(head)))
		if err != nil {
			return nil, err
		}
		head = append(head, more...)
	}
	return head, nil
}

// part fetches up to n bytes of an object.
func (u *update) part(ctx context.Context, key namespace.Key, off, n int64) ([]byte, error) {
	if u.pace != nil {
		if err := u.pace(ctx, n); err != nil {
			return nil, err
		}
	}
	body, err := u.r.get(ctx, key, off, n)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	b, err := io.ReadAll(io.LimitReader(body, n))
	u.r.c.count.fetched.Add(uint64(len(b)))
	if err != nil {
		u.r.link.note(err)
	}
	return b, err
}

// frames calls fn with the plaintext of the frames asked for, which are in order: from what is here, or
// in one request, from the first that is not on.
func (u *update) frames(ctx context.Context, d namespace.Digest, h *heldDelta, wanted []int, fn func(i int, plain []byte) error) error {
	var body io.ReadCloser
	at := int64(0)
	for _, i := range wanted {
		if i >= len(h.Frames) {
			return namespace.E(namespace.Corrupt, "read delta", d.String(), fmt.Errorf("frame %d of %d", i, len(h.Frames)))
		}
		f := h.Frames[i]
		end := f.Off + int64(f.Len)
		var stored []byte
		if end <= int64(len(h.head)) {
			stored = h.head[f.Off:end]
		} else {
			if body == nil {
				last := h.Frames[wanted[len(wanted)-1]]
				var err error
				at = f.Off
				if u.pace != nil {
					if err := u.pace(ctx, last.Off+int64(last.Len)-at); err != nil {
						return err
					}
				}
				if body, err = u.r.get(ctx, namespace.Key{Class: namespace.Delta, Digest: d}, at, last.Off+int64(last.Len)-at); err != nil {
					return err
				}
				defer body.Close()
			}
			if _, err := io.CopyN(io.Discard, body, f.Off-at); err != nil {
				return err
			}
			stored = make([]byte, f.Len)
			if _, err := io.ReadFull(body, stored); err != nil {
				u.r.link.note(err)
				return err
			}
			at = end
			u.r.c.count.fetched.Add(uint64(f.Len))
		}
		plain, err := delta.DecodeFrame(f, stored)
		if err != nil {
			u.doubt(d, err)
			return err
		}
		if err := fn(i, plain); err != nil {
			return err
		}
	}
	return nil
}

// files makes those wanted files of a catalog that are not here and that its delta knows how to make.
func (u *update) files(ctx context.Context, d namespace.Digest, want *chosen) {
	if u.hopeless() {
		return
	}
	missing := map[namespace.Digest]bool{}
	l := u.r.c.missing(want)
	want.each(func(i int, ch catalog.Chunk) {
		if l.has(i) {
			missing[ch.Digest] = true
		}
	})
	if len(missing) > 0 {
		u.make(ctx, d, want.cat, missing, deltaChain)
	}
}

// make makes the files of catalog d that hold chunks of missing, as far as it can: bases that are not
// here are made first, by the deltas of the catalogs they are from, if that is worth it.
func (u *update) make(ctx context.Context, d namespace.Digest, cat *catalog.Catalog, missing map[namespace.Digest]bool, depth int) {
	h := u.open(ctx, d)
	if h == nil {
		return
	}
	var entries []*delta.Entry
	bases := map[namespace.Digest]bool{} // chunks of bases that are not here
	var worth uint64
	for i := range h.Entries {
		e := &h.Entries[i]
		if int(e.Hi) > cat.NumChunks() || !anyMissing(cat, e, missing) {
			continue
		}
		entries = append(entries, e)
		for _, x := range e.Base {
			if !x.Digest.IsZero() && !u.r.c.holds(x.Digest) {
				bases[x.Digest] = true
				worth += x.Size
			}
		}
	}
	if len(bases) > 0 && depth > 0 {
		u.makeBases(ctx, h, bases, worth, depth-1)
	}
	entries = slices.DeleteFunc(entries, func(e *delta.Entry) bool { return !u.baseHere(e) })
	var wanted []int
	for _, e := range entries {
		wanted = append(wanted, int(e.Frame))
	}
	slices.Sort(wanted)
	w := &made{c: u.r.c}
	err := u.frames(ctx, d, h, slices.Compact(wanted), func(i int, plain []byte) error {
		for _, e := range entries {
			if int(e.Frame) == i && ctx.Err() == nil {
				u.file(d, cat, e, plain, w)
			}
		}
		return ctx.Err()
	})
	w.flush()
	if err != nil && ctx.Err() == nil {
		u.r.c.log.Info("a delta was not used to its end", "catalog", d.String(), "error", err)
	}
}

func anyMissing(cat *catalog.Catalog, e *delta.Entry, missing map[namespace.Digest]bool) bool {
	for k := e.Lo; k < e.Hi; k++ {
		if missing[cat.Chunk(int(k)).Digest] {
			return true
		}
	}
	return false
}

// makeBases makes chunks of the predecessors of a delta, unless their own deltas cost more than the
// files they are for.
func (u *update) makeBases(ctx context.Context, h *heldDelta, bases map[namespace.Digest]bool, worth uint64, depth int) {
	for _, p := range h.Predecessors {
		before := u.open(ctx, p)
		if before == nil {
			continue
		}
		var cost uint64
		for _, f := range before.Frames {
			cost += uint64(f.Len)
		}
		if cost > worth*deltaWorth/100 {
			continue
		}
		if _, err := u.r.c.objects.open(p); err != nil && !u.makeCatalog(ctx, p, depth) {
			continue
		}
		if cat, err := u.r.c.objects.open(p); err == nil {
			u.make(ctx, p, cat, bases, depth)
		}
	}
}

// baseHere reports whether the cache holds the old file of an entry.
func (u *update) baseHere(e *delta.Entry) bool {
	return !slices.ContainsFunc(e.Base, func(x delta.Extent) bool { return !x.Digest.IsZero() && !u.r.c.holds(x.Digest) })
}

// file makes one file and keeps its chunks.
func (u *update) file(d namespace.Digest, cat *catalog.Catalog, e *delta.Entry, frame []byte, w *made) {
	base := make([]byte, 0, e.BaseBytes())
	for _, x := range e.Base {
		at := len(base)
		base = base[:at+int(x.Size)]
		if x.Digest.IsZero() {
			continue
		}
		n, err := u.r.c.readLocal(namespace.ChunkRef{Digest: x.Digest, Size: uint32(x.Size)}, base[at:], 0)
		if err != nil || n != int(x.Size) {
			return // it rotted, or was evicted; the file is fetched
		}
	}
	b, err := delta.Make(e, base, frame)
	if err != nil {
		u.doubt(d, err)
		return
	}
	for k := int(e.Lo); k < int(e.Hi); k++ {
		ch, n := cat.Chunk(k), cat.ChunkLen(k)
		if n > uint64(len(b)) {
			u.doubt(d, fmt.Errorf("a file that is too short"))
			return
		}
		if !ch.Hole() {
			if namespace.Sum(b[:n]) != ch.Digest {
				u.doubt(d, fmt.Errorf("not chunk %v", ch.Digest))
				return
			}
			if !u.r.c.holds(ch.Digest) {
				w.add(ch.Digest, b[:n])
			}
		}
		b = b[n:]
	}
}

// made collects chunks that were made into frames for the cache. One goroutine at a time.
type made struct {
	c      *Cache
	plain  []byte
	chunks []object.FrameChunk
}

// add keeps a verified chunk; b is copied.
func (m *made) add(d namespace.Digest, b []byte) {
	if len(m.plain)+len(b) > namespace.FrameBytesMax {
		m.flush()
	}
	m.chunks = append(m.chunks, object.FrameChunk{Digest: d, Off: uint32(len(m.plain)), Len: uint32(len(b))})
	m.plain = append(m.plain, b...)
	if len(m.plain) >= deltaFrame || len(m.chunks) == namespace.FrameChunksMax {
		m.flush()
	}
}

// flush writes what was collected. If the disk is full it is fetched again when it is read.
func (m *made) flush() {
	if len(m.chunks) == 0 {
		return
	}
	stored, codec := object.EncodeFrame(m.plain)
	f := planned{Place: object.Place{FrameLen: uint32(len(stored)), FramePlain: uint32(len(m.plain)), Codec: codec}, chunks: m.chunks}
	rec := append(make([]byte, recordPrefix(m.chunks), recordPrefix(m.chunks)+len(stored)), stored...)
	if seg, r, err := m.c.append(f, rec); err == nil {
		m.c.enter(seg, r)
	}
	m.plain, m.chunks = m.plain[:0], nil
	if m.c.index.waiting() > pendingMax {
		_ = m.c.index.flush() // if it fails, the next regular one says so
	}
}
