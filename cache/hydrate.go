package cache

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

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
	r.c.guard.stale.Store(true) // what is held of the tree can be told now
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

// FillOptions say what Fill fetches, and how.
type FillOptions struct {
	Select Selection
	// Rate bounds the bytes fetched in a second, on average over a quarter of one; 0: no bound. Metadata
	// is not counted.
	Rate int64
	// Progress, if set, is told of the plaintext bytes done and in total. It is called by several
	// goroutines, one at a time.
	Progress func(done, total int64)
}

// Hydrate is Fill of everything.
func (r *Reader) Hydrate(ctx context.Context, root namespace.Digest, progress func(done, total int64)) error {
	_, err := r.Fill(ctx, root, FillOptions{Select: Selection{All: true}, Progress: progress})
	return err
}

// fillRounds bounds how often Fill looks again for what is missing: something may rot under it.
const fillRounds = 3

// Fill fetches what is selected of the tree whose root catalog is root and is not here. When it returns
// nil, all of it is here, verified and durable, as the proof says. What it fetches is not evicted before
// it returns; what does not fit is an error before any content is fetched or evicted. Idempotent; it can
// be interrupted, and what was fetched stays. It has no bound but ctx.
// Kinds: those of Catalog and ReadChunk; Limit if the quota or the disk has no room.
func (r *Reader) Fill(ctx context.Context, root namespace.Digest, o FillOptions) (Proof, error) {
	h := &hydration{r: r, update: newUpdate(r), slots: make(chan struct{}, hydrateParallel), progress: o.Progress, window: windowMax}
	if o.Rate > 0 {
		h.window = min(max(o.Rate/4, windowRated), windowMax)
		h.pace = rate.NewLimiter(rate.Limit(o.Rate), int(h.window+namespace.FrameBytesMax))
		h.update.pace = h.wait
	}
	err := r.eachCatalog(ctx, root, h.update, func(context.Context, namespace.Digest, *catalog.Catalog) error { return nil })
	r.c.guard.stale.Store(true)
	if err != nil {
		return Proof{}, err
	}
	set, err := Resolve(ctx, localLoader{r.c}, root, o.Select)
	if err != nil {
		return Proof{}, err
	}
	h.total = set.Bytes
	r.c.protect(h, set)
	defer r.c.protect(h, nil)
	for round := 0; ; round++ {
		gap, err := r.c.gapOf(ctx, set)
		if err != nil {
			return Proof{}, err
		}
		if gap.chunks == 0 {
			break
		}
		if round == fillRounds {
			return Proof{}, r.c.tooLittle(set, gap.bytes, r.c.capacity())
		}
		if err := h.fill(ctx, set, gap, o.Select.All); err != nil {
			return Proof{}, err
		}
	}
	h.note(set.Bytes) // all of it, whoever brought it
	h.update.forget()
	return r.c.prove(set)
}

// prove syncs everything and says that a set, which was found complete, is safe.
func (c *Cache) prove(set *Set) (Proof, error) {
	for _, d := range set.catalogs {
		if !c.objects.stored(d) {
			return Proof{}, c.tooLittle(set, set.Bytes, c.capacity())
		}
	}
	if err := c.sync(); err != nil {
		return Proof{}, err
	}
	return Proof{Set: set.Digest, Chunks: set.Chunks, Bytes: set.Bytes, At: time.Now().UTC().Truncate(time.Second)}, nil
}

// tooLittle says that a set does not fit.
func (c *Cache) tooLittle(set *Set, wanted, possible int64) error {
	err := namespace.E(namespace.Limit, "hydrate", set.Root.String(), fmt.Errorf("needs %s, the quota of %s leaves %s",
		humanBytes(wanted), humanBytes(c.quota.Load()), humanBytes(possible)))
	return namespace.WithHint(err, "raise --quota, give the cache's disk more room, or pin less")
}

// hydration is one run of Fill.
type hydration struct {
	r        *Reader
	update   *update
	slots    chan struct{} // one for each request under way
	pace     *rate.Limiter // nil: as fast as it goes
	window   int64         // stored bytes of a request
	total    int64
	progress func(done, total int64)

	need atomic.Int64 // bytes on disk that are still to come, about

	mu   sync.Mutex // held while progress runs
	done int64
}

// ahead returns how much room the hydration will still take.
func (h *hydration) ahead() int64 { return max(h.need.Load(), 0) }

// wait waits until n more bytes may be fetched.
func (h *hydration) wait(ctx context.Context, n int64) error {
	if h.pace == nil {
		return nil
	}
	for n > 0 {
		part := min(n, int64(h.pace.Burst()))
		if err := h.pace.WaitN(ctx, int(part)); err != nil {
			return namespace.E(namespace.Canceled, "hydrate", "", err)
		}
		n -= part
	}
	return nil
}

// note counts n bytes as done. Equal chunks count each, of which the total knows nothing.
func (h *hydration) note(n int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.done = min(h.done+n, h.total)
	if h.progress != nil {
		h.progress(h.done, h.total)
	}
}

// fill fetches what is missing of a set, if there is room for it.
func (h *hydration) fill(ctx context.Context, set *Set, gap gap, all bool) error {
	h.note(max(set.Bytes-gap.bytes-h.done, 0))
	need := gap.bytes + gap.chunks*(indexEntryBytes+tableEntry)
	free := h.r.c.capacity()
	if need > free || !all { // whole frames come, and compressed: ask where they are
		var err error
		if need, err = h.weigh(ctx, set, gap); err != nil {
			return err
		}
		if need > free {
			return h.r.c.tooLittle(set, need, free)
		}
	}
	h.need.Store(need)
	defer h.need.Store(0)
	var batch []namespace.Digest
	var chunks int64
	for n, d := range set.catalogs {
		if gap.in[d] > 0 {
			batch = append(batch, d)
			chunks += gap.in[d]
		}
		if chunks >= batchChunks || n == len(set.catalogs)-1 {
			if err := h.batch(ctx, set, batch); err != nil {
				return err
			}
			batch, chunks = nil, 0
		}
	}
	return nil
}

const (
	// hydrateCatalogs is how many catalogs are looked into at a time.
	hydrateCatalogs = 4
	// batchChunks is how many missing chunks are planned together, since catalogs share packs; some 100
	// bytes each.
	batchChunks = 64 << 10
)

// weigh returns how many bytes on disk the missing chunks of a set take, in the frames that they are in.
func (h *hydration) weigh(ctx context.Context, set *Set, gap gap) (int64, error) {
	var total atomic.Int64
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(hydrateCatalogs)
	for _, d := range set.catalogs {
		if gap.in[d] == 0 {
			continue
		}
		g.Go(func() error {
			src, err := h.source(gctx, d, set.chosen[d].cat)
			if err == nil {
				total.Add(h.r.c.weighIn(src, set.chosen[d]))
			}
			return err
		})
	}
	err := g.Wait()
	return total.Load(), err
}

// source finds the locator of a catalog.
func (h *hydration) source(ctx context.Context, d namespace.Digest, cat *catalog.Catalog) (source, error) {
	loc, err := h.r.locator(ctx, d, nil)
	if err == nil && loc.Len() != cat.NumChunks() {
		loc, err = h.r.locator(ctx, d, loc)
	}
	if err == nil && loc.Len() != cat.NumChunks() {
		err = namespace.E(namespace.Corrupt, "hydrate", "locator "+d.String(), fmt.Errorf("of another catalog"))
	}
	return source{d, cat, loc}, err
}

// batch fetches what is missing of some catalogs: made from older ones where a delta knows how, the rest
// in few requests, some of them at a time.
func (h *hydration) batch(ctx context.Context, set *Set, ids []namespace.Digest) error {
	jobs := make([]*job, len(ids))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(hydrateCatalogs)
	for n, d := range ids {
		g.Go(func() (err error) {
			jobs[n], err = h.job(gctx, d, set.chosen[d])
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	jobs = slices.DeleteFunc(jobs, func(j *job) bool { return j == nil })
	g, gctx = errgroup.WithContext(ctx)
	for _, w := range cover(jobs, h.window, gapHydrate) {
		if err := h.begin(gctx, w); err != nil {
			break // g has the reason, or it is ctx's
		}
		g.Go(func() error { return h.await(gctx, w) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	if ctx.Err() != nil {
		return namespace.E(namespace.KindOf(ctx.Err()), "hydrate", set.Root.String(), ctx.Err())
	}
	return nil
}

// job makes what it can of a catalog by deltas, and finds out where the rest is; nil if nothing is left.
func (h *hydration) job(ctx context.Context, d namespace.Digest, want *chosen) (*job, error) {
	before := h.r.c.missing(want)
	h.update.files(ctx, d, want)
	left := h.r.c.missing(want)
	h.arrived(before.bytes - left.bytes)
	if left.chunks == 0 {
		return nil, nil
	}
	src, err := h.source(ctx, d, want.cat)
	if err != nil {
		return nil, err
	}
	j := &job{src, left}
	for i := range src.loc.Len() { // a locator that is wrong: a read has it fetched anew, or says so
		if src.loc.Place(i).IsZero() && left.has(i) {
			if err := h.ensure(ctx, due{j, i}); err != nil {
				return nil, err
			}
		}
	}
	return j, nil
}

// arrived notes that n bytes of plaintext are here that were not.
func (h *hydration) arrived(n int64) {
	h.need.Add(-n)
	h.note(n)
}

// begin starts the request for a window when it may.
func (h *hydration) begin(ctx context.Context, w window) error {
	select {
	case h.slots <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	if err := h.wait(ctx, w.bytes()); err != nil {
		<-h.slots
		return err
	}
	h.r.launch(w, nil, func() { <-h.slots }, false)
	return nil
}

// await waits for the frames of a window. A read makes sure of each chunk whatever went wrong, and says
// what did.
func (h *hydration) await(ctx context.Context, w window) error {
	for k, f := range w.frames {
		if fl := h.r.c.flights.find(f.key()); fl != nil {
			_ = fl.wait(ctx, f.key()) // what it may fail with, the read fails with
		}
		for _, x := range w.due[k] {
			if err := h.ensure(ctx, x); err != nil {
				return err
			}
		}
	}
	return nil
}

// ensure has a chunk here: it came, or a read brings it.
func (h *hydration) ensure(ctx context.Context, x due) error {
	ch, n := x.job.cat.Chunk(x.chunk), x.job.cat.ChunkLen(x.chunk)
	if !h.r.c.holds(ch.Digest) {
		ref := namespace.ChunkRef{Catalog: x.job.id, Index: uint32(x.chunk), Digest: ch.Digest, Size: uint32(n)}
		var probe [1]byte
		if _, err := h.r.ReadChunk(ctx, ref, probe[:], 0); err != nil {
			return err
		}
	}
	h.arrived(int64(n))
	return nil
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
	covered := s.covered.Load() // what comes meanwhile need not be met
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
	if end < covered {
		damaged++
	}
	rep.Damaged += damaged
	if damaged > 0 && repair {
		return c.rewrite(s, nil) // without what is damaged
	}
	return nil
}
