package cache

import (
	"context"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/catalog"
	"coppice.dev/coppice/namespace/object"
)

// hydrateParallel is how many requests hydration keeps under way: enough to hide latency, few
// enough to leave reads their share.
const hydrateParallel = 3

// HydrateMetadata fetches all catalogs of the tree whose root catalog is root. Idempotent; what was
// fetched when it fails stays. Kinds: those of Catalog.
func (r *Reader) HydrateMetadata(ctx context.Context, root namespace.Digest) error {
	return r.eachCatalog(ctx, root, func(context.Context, namespace.Digest, *catalog.Catalog) error { return nil })
}

// eachCatalog calls fn for all catalogs of a tree, a few at a time, each once.
func (r *Reader) eachCatalog(ctx context.Context, root namespace.Digest, fn func(context.Context, namespace.Digest, *catalog.Catalog) error) error {
	seen := map[namespace.Digest]bool{root: true}
	for level := []namespace.Digest{root}; len(level) > 0; {
		g, gctx := errgroup.WithContext(ctx)
		g.SetLimit(8)
		below := make([][]namespace.Digest, len(level))
		for i, d := range level {
			g.Go(func() error {
				cat, err := r.Catalog(gctx, d)
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

// Hydrate fetches everything of the tree whose root catalog is root that is not here. progress, if
// set, is told of the plaintext bytes done and in total; it is called by several goroutines, one at
// a time. Idempotent; it can be interrupted, and what was fetched stays.
// Kinds: those of Catalog and ReadChunk.
func (r *Reader) Hydrate(ctx context.Context, root namespace.Digest, progress func(done, total int64)) error {
	top, err := r.Catalog(ctx, root)
	if err != nil {
		return err
	}
	if progress == nil {
		progress = func(int64, int64) {}
	}
	var done atomic.Int64
	serial := make(chan struct{}, 1)
	note := func(n int64) {
		d := done.Add(n)
		serial <- struct{}{}
		progress(d, int64(top.Bytes()))
		<-serial
	}
	slots := make(chan struct{}, hydrateParallel)
	return r.eachCatalog(ctx, root, func(ctx context.Context, d namespace.Digest, cat *catalog.Catalog) error {
		return r.hydrateCatalog(ctx, d, cat, slots, note)
	})
}

// hydrateCatalog fetches the chunks of one catalog, window by window.
func (r *Reader) hydrateCatalog(ctx context.Context, d namespace.Digest, cat *catalog.Catalog, slots chan struct{}, note func(int64)) error {
	if cat.NumChunks() == 0 {
		return nil
	}
	loc, err := r.locator(ctx, d, false)
	if err != nil {
		return err
	}
	if loc.Len() != cat.NumChunks() {
		if loc, err = r.locator(ctx, d, true); err != nil {
			return err
		}
	}
	for i := range cat.NumChunks() {
		ch := cat.Chunk(i)
		if ch.Hole() {
			continue
		}
		if _, here := r.c.index.get(ch.Digest); !here {
			select {
			case slots <- struct{}{}:
			case <-ctx.Done():
				return namespace.E(namespace.KindOf(ctx.Err()), "hydrate", d.String(), ctx.Err())
			}
			err := r.hydrateWindow(ctx, d, cat, loc, i)
			<-slots
			if err != nil {
				return err
			}
		}
		note(int64(cat.ChunkLen(i)))
	}
	return nil
}

// hydrateWindow fetches the largest window from chunk i on and waits for its end. The read that
// comes last makes sure of chunk i whatever went wrong with the window.
func (r *Reader) hydrateWindow(ctx context.Context, d namespace.Digest, cat *catalog.Catalog, loc *object.Locator, i int) error {
	if i < loc.Len() && !loc.Place(i).IsZero() {
		w := r.plan(cat, loc, i, windowMax)
		if fl, _ := r.launch(w); fl != nil {
			last := w.frames[len(w.frames)-1]
			if f := r.c.flights.find(last.key()); f != nil {
				_ = f.wait(ctx, fetchTimeout, last.key())
			}
		}
	}
	var probe [1]byte
	_, err := r.ReadChunk(ctx, namespace.ChunkRef{Catalog: d, Index: uint32(i), Digest: cat.Chunk(i).Digest, Size: uint32(cat.ChunkLen(i))}, probe[:], 0)
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
		end, err := s.scan(0, func(rec record) error {
			if ctx.Err() != nil {
				return namespace.E(namespace.Canceled, "verify", "cache", ctx.Err())
			}
			rep.Checked++
			if c.verifyRecord(s.id, rec) == nil {
				return nil
			}
			rep.Damaged++
			if repair {
				for _, e := range rec.extents(s.id) {
					c.index.drop(e.digest, e.extent)
				}
			}
			return nil
		})
		if err != nil {
			return rep, err
		}
		if end < s.size { // a header is damaged: what follows cannot be found by scanning
			rep.Damaged++
			if repair {
				if err := c.evict(s); err != nil {
					return rep, err
				}
			}
		}
	}
	c.verifyObjects(&rep)
	return rep, nil
}

// verifyRecord decodes a record and hashes its chunks.
func (c *Cache) verifyRecord(seg uint32, rec record) error {
	if len(rec.chunks) == 0 {
		return nil
	}
	all := rec.extents(seg)
	plain, err := c.load(all[0].extent, nil)
	if err != nil {
		return err
	}
	for _, e := range all {
		if namespace.Sum(plain[e.extent.off:][:e.extent.size]) != e.digest {
			return namespace.E(namespace.Corrupt, "verify", e.digest.String(), nil)
		}
	}
	return nil
}
