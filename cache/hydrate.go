package cache

import (
	"context"
	"fmt"
	"sync"

	"golang.org/x/sync/errgroup"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/catalog"
)

// hydrateParallel is how many requests hydration keeps under way: enough to hide latency, few
// enough to leave reads their share.
const hydrateParallel = 3

// HydrateMetadata fetches all catalogs of the tree whose root catalog is root. When it returns nil,
// they are on disk, durably. Idempotent; what was fetched when it fails stays. It has no bound but
// ctx. Kinds: those of Catalog.
func (r *Reader) HydrateMetadata(ctx context.Context, root namespace.Digest) error {
	err := r.eachCatalog(ctx, root, newUpdate(r), func(context.Context, namespace.Digest, *catalog.Catalog) error { return nil })
	if err != nil {
		return err
	}
	return r.c.objects.sync()
}

// eachCatalog calls fn for all catalogs of a tree, a few at a time, each once. Those that are not here
// are made from older ones, where u knows how.
func (r *Reader) eachCatalog(ctx context.Context, root namespace.Digest, u *update, fn func(context.Context, namespace.Digest, *catalog.Catalog) error) error {
	seen := map[namespace.Digest]bool{root: true}
	for level := []namespace.Digest{root}; len(level) > 0; {
		g, gctx := errgroup.WithContext(ctx)
		g.SetLimit(8)
		below := make([][]namespace.Digest, len(level))
		for i, d := range level {
			g.Go(func() error {
				u.catalog(gctx, d)
				cat, err := r.catalog(gctx, d)
				if err != nil {
					return err
				}
				below[i] = cat.AllNested()
				return fn(gctx, d, cat)
			})
		}
		if err := g.Wait(); err != nil {
			return err
		}
		level = level[:0]
		for _, refs := range below {
			for _, d := range refs {
				if !seen[d] {
					seen[d] = true
					level = append(level, d)
				}
			}
		}
	}
	return nil
}

// Hydrate fetches everything of the tree whose root catalog is root that is not here. When it
// returns nil, all of it is on disk, durably. progress, if set, is told of the plaintext bytes done
// and in total; it is called by several goroutines, one at a time. Idempotent; it can be interrupted,
// and what was fetched stays. It has no bound but ctx.
// Kinds: those of Catalog and ReadChunk; Limit if the quota or the disk has no room for the tree.
func (r *Reader) Hydrate(ctx context.Context, root namespace.Digest, progress func(done, total int64)) error {
	u := newUpdate(r)
	u.catalog(ctx, root)
	top, err := r.catalog(ctx, root)
	if err != nil {
		return err
	}
	h := &hydration{r: r, update: u, slots: make(chan struct{}, hydrateParallel), total: int64(top.Bytes()), progress: progress}
	lost := r.c.count.evictions.Load() + r.c.count.unkept.Load()
	if err := r.eachCatalog(ctx, root, u, h.catalog); err != nil {
		return err
	}
	if r.c.count.evictions.Load()+r.c.count.unkept.Load() != lost {
		if err := r.eachCatalog(ctx, root, u, r.c.checkHere); err != nil {
			return err
		}
	}
	u.forget()
	return r.c.sync()
}

// checkHere returns a Limit error unless all chunks of a catalog are in the cache.
func (c *Cache) checkHere(_ context.Context, d namespace.Digest, cat *catalog.Catalog) error {
	for i := range cat.NumChunks() {
		ch := cat.Chunk(i)
		if ch.Hole() {
			continue
		}
		if !c.holds(ch.Digest) {
			err := namespace.E(namespace.Limit, "hydrate", "catalog "+d.String(),
				fmt.Errorf("its content does not fit into the cache (%d of %d bytes used)", c.used(), c.o.QuotaBytes))
			return namespace.WithHint(err, "give the cache a larger quota, or its disk more room")
		}
	}
	return nil
}

// hydration is one run of Hydrate.
type hydration struct {
	r        *Reader
	update   *update
	slots    chan struct{} // one for each request under way
	total    int64
	progress func(done, total int64)

	mu   sync.Mutex // held while progress runs
	done int64
}

// note counts n bytes as done. Equal files count each, of which the total may know nothing.
func (h *hydration) note(n int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.done = min(h.done+n, h.total)
	if h.progress != nil {
		h.progress(h.done, h.total)
	}
}

// catalog fetches the chunks of one catalog: requests are launched ahead, in the order of chunks,
// while their results are waited for one after the other.
func (h *hydration) catalog(ctx context.Context, d namespace.Digest, cat *catalog.Catalog) error {
	h.update.files(ctx, d, cat)
	if h.allHere(cat) {
		h.note(int64(cat.Bytes()))
		return nil
	}
	loc, err := h.r.locator(ctx, d, nil)
	if err == nil && loc.Len() != cat.NumChunks() {
		loc, err = h.r.locator(ctx, d, loc)
	}
	if err != nil {
		return err
	}
	if loc.Len() != cat.NumChunks() {
		return namespace.E(namespace.Corrupt, "hydrate", "locator "+d.String(), fmt.Errorf("of another catalog"))
	}
	src := source{d, cat, loc}
	ahead := 0 // chunks before it are here, or were asked for
	for i := range cat.NumChunks() {
		if cat.Chunk(i).Hole() {
			continue
		}
		if !h.r.c.holds(cat.Chunk(i).Digest) {
			if ahead, err = h.launch(ctx, src, max(ahead, i)); err != nil {
				return err
			}
			if err := h.await(ctx, src, i); err != nil {
				return err
			}
		}
		h.note(int64(cat.ChunkLen(i)))
	}
	return nil
}

// allHere reports whether the cache holds all chunks of a catalog.
func (h *hydration) allHere(cat *catalog.Catalog) bool {
	for i := range cat.NumChunks() {
		if ch := cat.Chunk(i); !ch.Hole() && !h.r.c.holds(ch.Digest) {
			return false
		}
	}
	return true
}

// launch starts requests for what is missing from chunk i on, as long as there are slots, and waits
// for the first of them. It returns the chunk up to which everything was asked for.
func (h *hydration) launch(ctx context.Context, src source, i int) (int, error) {
	for first := true; i < src.loc.Len(); first = false {
		if i = h.nextMissing(src, i); i == src.loc.Len() {
			break
		}
		select {
		case h.slots <- struct{}{}:
		default:
			if !first {
				return i, nil
			}
			select {
			case h.slots <- struct{}{}:
			case <-ctx.Done():
				return i, namespace.E(namespace.KindOf(ctx.Err()), "hydrate", src.id.String(), ctx.Err())
			}
		}
		w := h.r.c.plan(src, i, windowMax, gapHydrate)
		h.r.launch(w, nil, func() { <-h.slots }, false)
		i = w.next
	}
	return i, nil
}

// nextMissing returns the first chunk from i on that is neither here nor on its way.
func (h *hydration) nextMissing(src source, i int) int {
	for ; i < src.loc.Len(); i++ {
		p := src.loc.Place(i)
		if p.IsZero() || h.r.c.flights.find(flightKey{p.Pack, p.FrameOff}) != nil {
			continue
		}
		if !h.r.c.holds(src.cat.Chunk(i).Digest) {
			return i
		}
	}
	return i
}

// await waits for chunk i. The read that comes last makes sure of it whatever went wrong.
func (h *hydration) await(ctx context.Context, src source, i int) error {
	if p := src.loc.Place(i); !p.IsZero() {
		key := flightKey{p.Pack, p.FrameOff}
		if f := h.r.c.flights.find(key); f != nil {
			_ = f.wait(ctx, key) // what it may fail with, the read fails with
		}
	}
	ch := src.cat.Chunk(i)
	if h.r.c.holds(ch.Digest) {
		return nil
	}
	ref := namespace.ChunkRef{Catalog: src.id, Index: uint32(i), Digest: ch.Digest, Size: uint32(src.cat.ChunkLen(i))}
	var probe [1]byte
	_, err := h.r.ReadChunk(ctx, ref, probe[:], 0)
	return err
}

// VerifyReport is the result of Verify.
type VerifyReport struct {
	Checked int `json:"checked"` // records and objects
	Damaged int `json:"damaged"`
}

// Verify reads everything and holds it against checksums and digests. With repair, what is damaged is
// dropped, to be fetched again when it is needed. Kinds: Canceled.
func (c *Cache) Verify(ctx context.Context, repair bool) (VerifyReport, error) {
	var rep VerifyReport
	for _, s := range c.segments.all() {
		if err := c.verifySegment(ctx, s, &rep, repair); err != nil {
			return rep, err
		}
	}
	c.verifyObjects(ctx, repair, &rep)
	if ctx.Err() != nil {
		return rep, namespace.E(namespace.Canceled, "verify", "cache", ctx.Err())
	}
	return rep, nil
}

// verifySegment is Verify for one segment, which may be appended to meanwhile, or evicted.
func (c *Cache) verifySegment(ctx context.Context, s *segment, rep *VerifyReport, repair bool) error {
	end, damaged := uint32(0), 0
	_, err := s.scan(0, func(rec record) error {
		if ctx.Err() != nil {
			return namespace.E(namespace.Canceled, "verify", "cache", ctx.Err())
		}
		if rec.at != end { // a header is damaged: what is there cannot be found by scanning
			damaged++
		}
		end = rec.end()
		rep.Checked++
		if s.verify(rec) != nil {
			damaged++
		}
		return nil
	})
	if err != nil || c.segments.get(s.id) == nil {
		return err
	}
	if end < s.covered.Load() {
		damaged++
	}
	rep.Damaged += damaged
	if damaged > 0 && repair {
		return c.rewrite(s, nil) // without what is damaged
	}
	return nil
}
