package builder

import (
	"context"
	"fmt"
	"math/bits"
	"sync"
	"time"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/object"
)

// CollectOptions of [Collect].
type CollectOptions struct {
	// Retain says what must stay: [Policy.Retain] of the origin's refs. It is asked more than once.
	Retain func(context.Context) (Retained, error)
	// Grace protects what is younger, referred to or not. It must be longer than any import takes,
	// and than an endpoint keeps using a locator that it read before a repacking.
	Grace time.Duration
	// Repack is the share of a pack's plaintext below which what is live is copied to new packs: 0 to
	// 1, 0 for never.
	Repack float64
	// DryRun changes nothing and reports what would be.
	DryRun bool
	// Progress, if set, is told how many objects were looked at, of what kind. From one goroutine at
	// a time.
	Progress func(doing string, objects uint64)
	// Warn, if set, is told of damage that was met and does not matter here.
	Warn func(subject, reason string)
}

// Tally counts objects and their stored bytes.
type Tally struct {
	Objects uint64 `json:"objects"`
	Bytes   uint64 `json:"bytes"`
}

func (t *Tally) add(bytes int64) {
	t.Objects++
	t.Bytes += uint64(bytes)
}

// Swept says what became of the objects of a class. Waiting is what nothing retains, but is
// younger than the grace period.
type Swept struct {
	Kept    Tally `json:"kept"`
	Waiting Tally `json:"waiting"`
	Deleted Tally `json:"deleted"`
}

// CollectReport says what [Collect] did, or with DryRun would do.
type CollectReport struct {
	Catalogs uint64 // retained
	// Classes holds an entry for each namespace.Class.
	Classes map[string]*Swept
	// Repacked are the packs that were copied: they wait for their grace period from now on. Moved
	// is what their live part became; its Bytes are an estimate with DryRun.
	Repacked, Moved Tally
	Missing         []string // versions that the policy retains and an earlier collection dropped
}

// Collect deletes what nothing retains. It runs beside imports, publishers and endpoints; docs/
// decisions/0005 has the argument why none of them is hurt. A crash at any point leaves every
// retained version whole, and the next call goes on.
//
// The store must be a namespace.Ager. Memory: a digest for each retained catalog, a bit for each
// chunk of a pack, the largest segment of the index, and the bounded caches.
// Kinds: Invalid (the store cannot tell ages), Corrupt (of what must stay something cannot be read,
// so that what it refers to is not known: nothing was deleted), those of the store, Canceled.
func Collect(ctx context.Context, store namespace.Store, o CollectOptions) (CollectReport, error) {
	ager, ok := store.(namespace.Ager)
	if !ok {
		return CollectReport{}, namespace.E(namespace.Invalid, "collect", "", fmt.Errorf("this store cannot tell how old its objects are"))
	}
	c := &collector{ctx: ctx, store: store, ager: ager, o: o, before: time.Now().Add(-o.Grace),
		crawl: newCrawl(), blobs: map[namespace.Digest]bool{}, packs: map[namespace.Digest]*packUse{},
		emptied: map[namespace.Digest]bool{}, must: map[namespace.Digest]bool{}, absent: map[namespace.Digest]bool{}, there: map[namespace.Digest]bool{}, dirs: newPackDirs(store)}
	c.report.Classes = map[string]*Swept{}
	for _, class := range namespace.Classes() {
		c.report.Classes[class.String()] = &Swept{}
	}
	for _, step := range []func() error{c.mark, c.repack, c.sweep, c.rewriteIndex} {
		if err := step(); err != nil {
			return c.report, err
		}
	}
	return c.report, nil
}

type collector struct {
	ctx    context.Context
	store  namespace.Store
	ager   namespace.Ager
	o      CollectOptions
	before time.Time // what is not older stays
	crawl  *crawl
	dirs   *packDirs

	dropped []namespace.Digest
	must    map[namespace.Digest]bool // roots that no collection can have dropped
	emptied map[namespace.Digest]bool // packs whose live part was moved by this run
	there   map[namespace.Digest]bool // packs that the sweep left

	mu     sync.Mutex                // guards what follows
	absent map[namespace.Digest]bool // roots that were dropped before
	blobs  map[namespace.Digest]bool // retained, other than catalogs
	packs  map[namespace.Digest]*packUse
	report CollectReport
	looked uint64
}

// packUse says which chunks of a pack are live, a bit each by their number in its directory. whole:
// it could not be told, so all are.
type packUse struct {
	live        []uint64
	chunks      int
	liveBytes   uint64 // plaintext
	plain, size uint64 // of the pack: plaintext, stored
	whole       bool
}

func (u *packUse) has(i int) bool { return u.live[i/64]>>(i%64)&1 == 1 }

// count returns the number of live chunks.
func (u *packUse) count() (n int) {
	for _, w := range u.live {
		n += bits.OnesCount64(w)
	}
	return n
}

// share is the live part of the pack's plaintext.
func (u *packUse) share() float64 { return float64(u.liveBytes) / float64(max(1, u.plain)) }

// mark finds all that is retained. It asks for the roots until nothing is added, so that the last
// answer is not older than the end of the marking.
func (c *collector) mark() error {
	for {
		kept, err := c.o.Retain(c.ctx)
		if err != nil {
			return err
		}
		c.dropped, c.report.Missing = kept.Dropped, kept.Missing
		added := false
		for _, d := range kept.Blobs {
			added = added || !c.blobs[d]
			c.blobs[d] = true
		}
		if err := c.markLayouts(kept.Layouts); err != nil {
			return err
		}
		var starts []catalogAt
		for _, t := range kept.Trees {
			c.must[t.Root] = c.must[t.Root] || t.Newest
			if !c.crawl.seen[t.Root] {
				starts = append(starts, catalogAt{digest: t.Root})
			}
		}
		if !added && len(starts) == 0 {
			for _, t := range kept.Trees {
				if c.absent[t.Root] {
					c.report.Missing = append(c.report.Missing, t.Name)
				}
			}
			return nil
		}
		if err := c.crawl.run(c.ctx, starts, c.visit); err != nil {
			return namespace.WithHint(err, "nothing was deleted; `coppice origin verify` names what is damaged, and which versions need it")
		}
	}
}

// visit marks one catalog's locator and chunks.
func (c *collector) visit(ctx context.Context, at catalogAt) ([]catalogAt, error) {
	cat, err := loadCatalog(ctx, c.store, at.digest)
	if namespace.IsKind(err, namespace.NotExist) && at.root == at.digest && !c.must[at.root] {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.absent[at.root] = true
		return nil, nil // collected before: records go on naming what was dropped, roots are dropped first
	}
	if err != nil {
		return nil, broken(err)
	}
	l, err := loadLocator(ctx, c.store, at.digest, cat)
	if err != nil {
		return nil, broken(err)
	}
	live := map[*packDir][]object.Place{}
	whole := map[namespace.Digest]error{}
	var dir *packDir
	for i := range l.Len() {
		p := l.Place(i)
		if p.IsZero() || whole[p.Pack] != nil {
			continue
		}
		if dir == nil || dir.pack != p.Pack {
			if dir, err = c.dirs.get(ctx, p.Pack); err != nil {
				if !damaged(err) {
					return nil, err
				}
				whole[p.Pack], dir = err, nil
				continue
			}
		}
		live[dir] = append(live[dir], p)
	}
	c.markPlaces(live, whole)
	c.tick("marking")
	return nestedAt(cat, at), nil
}

// damaged reports whether err says that stored data is missing or not what it should be.
func damaged(err error) bool {
	switch namespace.KindOf(err) {
	case namespace.NotExist, namespace.Limit, namespace.Invalid, namespace.Corrupt:
		return true
	}
	return false
}

// broken turns the errors of damaged data into Corrupt, and leaves others.
func broken(err error) error {
	if !damaged(err) {
		return err
	}
	return namespace.E(namespace.Corrupt, "", "", err)
}

func (c *collector) markPlaces(live map[*packDir][]object.Place, whole map[namespace.Digest]error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.report.Catalogs++
	for d, err := range whole {
		c.use(d).whole = true
		c.warn(namespace.Key{Class: namespace.Pack, Digest: d}.String(), err.Error())
	}
	for dir, places := range live {
		u := c.use(dir.pack)
		if u.live == nil {
			u.live, u.chunks, u.size = make([]uint64, (dir.chunks+63)/64), dir.chunks, uint64(dir.size)
			for _, f := range dir.frames {
				u.plain += uint64(f.Plain)
			}
		}
		for _, p := range places {
			i, chunk, ok := dir.find(p)
			switch {
			case !ok:
				u.whole = true
			case !u.has(i):
				u.live[i/64] |= 1 << (i % 64)
				u.liveBytes += uint64(chunk.Len)
			}
		}
	}
}

func (c *collector) use(pack namespace.Digest) *packUse {
	u := c.packs[pack]
	if u == nil {
		u = &packUse{}
		c.packs[pack] = u
	}
	return u
}

// warn tells of damage; c.mu is held, or nothing runs beside.
func (c *collector) warn(subject, reason string) {
	if c.o.Warn != nil {
		c.o.Warn(subject, reason)
	}
}

func (c *collector) tick(doing string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.looked++; c.o.Progress != nil {
		c.o.Progress(doing, c.looked)
	}
}

// sweep deletes what is not marked and old. The roots of dropped versions go first: a version is
// either whole or has no root, also when this is cut short.
func (c *collector) sweep() error {
	c.looked = 0
	for _, d := range c.dropped {
		if _, err := c.drop(namespace.Key{Class: namespace.Blob, Digest: d}, -1); err != nil {
			return err
		}
	}
	for _, class := range []namespace.Class{namespace.Blob, namespace.Locator, namespace.Delta, namespace.Pack} {
		err := c.store.List(c.ctx, class, func(k namespace.Key, size int64) error {
			gone, err := c.drop(k, size)
			if class == namespace.Pack && !gone {
				c.there[k.Digest] = true
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// live reports whether something retains k.
func (c *collector) live(k namespace.Key) bool {
	switch k.Class {
	case namespace.Pack:
		return c.packs[k.Digest] != nil && !c.emptied[k.Digest]
	case namespace.Blob:
		return c.blobs[k.Digest] || c.crawl.seen[k.Digest]
	}
	return c.crawl.seen[k.Digest] && !c.absent[k.Digest] // locators and deltas live as long as their catalog
}

// drop deletes k if nothing retains it and it is old, and counts it. size < 0: not known yet.
func (c *collector) drop(k namespace.Key, size int64) (gone bool, err error) {
	c.tick("sweeping")
	swept := c.report.Classes[k.Class.String()]
	if c.live(k) {
		if size >= 0 {
			swept.Kept.add(size)
		}
		return false, nil
	}
	if size < 0 {
		size, err = c.store.Stat(c.ctx, k)
		if namespace.IsKind(err, namespace.NotExist) {
			return true, nil
		}
		if err != nil {
			return false, err
		}
		if c.o.DryRun {
			return false, nil // it is met again, and counted then
		}
		gone, err = c.ager.DeleteOlder(c.ctx, k, c.before)
		if gone {
			swept.Deleted.add(size)
		}
		return gone, err
	}
	if c.o.DryRun {
		t, err := c.ager.Time(c.ctx, k)
		if err != nil && !namespace.IsKind(err, namespace.NotExist) {
			return false, err
		}
		gone = err == nil && t.Before(c.before)
	} else if gone, err = c.ager.DeleteOlder(c.ctx, k, c.before); err != nil {
		return false, err
	}
	if gone {
		swept.Deleted.add(size)
	} else {
		swept.Waiting.add(size)
	}
	return gone, nil
}

// rewriteIndex makes the index say nothing of packs that are gone, and name the emptied ones without
// a record, so that nobody builds on them again.
func (c *collector) rewriteIndex() error {
	var keys []namespace.Key
	sizes := map[namespace.Key]int64{}
	err := c.store.List(c.ctx, namespace.Index, func(k namespace.Key, size int64) error {
		keys, sizes[k] = append(keys, k), size
		return nil
	})
	if err != nil {
		return err
	}
	swept := c.report.Classes[namespace.Index.String()]
	for _, k := range keys {
		stays, err := c.rewriteSegment(k)
		if err != nil {
			return err
		}
		if stays {
			swept.Kept.add(sizes[k])
		} else {
			swept.Deleted.add(sizes[k])
		}
	}
	return nil
}

// rewriteSegment replaces one segment by what remains of it. stays: all of it does.
func (c *collector) rewriteSegment(k namespace.Key) (stays bool, err error) {
	b, err := getAll(c.ctx, c.store, k, namespace.IndexBytesMax)
	if namespace.IsKind(err, namespace.NotExist) {
		return false, nil // a builder merged it meanwhile
	}
	if err != nil {
		return false, err
	}
	x, err := object.OpenIndex(b)
	if err != nil || namespace.Sum(b) != k.Digest {
		return false, c.discard(k) // derived, and damaged
	}
	gone := map[namespace.Digest]bool{}
	var packs []namespace.Digest
	changed := false
	for _, d := range x.Packs() {
		if gone[d], err = c.isGone(d); err != nil {
			return false, err
		}
		if !gone[d] {
			packs = append(packs, d)
		}
		changed = changed || gone[d] || c.emptied[d]
	}
	if !changed {
		return true, nil
	}
	var recs []object.IndexRecord
	for r := range x.Records() {
		if !gone[r.Place.Pack] && !c.emptied[r.Place.Pack] {
			recs = append(recs, r)
		}
	}
	if len(packs) > 0 && !c.o.DryRun {
		s, err := putSegment(c.ctx, c.store, packs, recs)
		if err != nil || s.digest == k.Digest { // emptied before, and without records since
			return true, err
		}
		c.report.Classes[k.Class.String()].Kept.add(s.size)
	}
	return false, c.discard(k)
}

// isGone reports whether a pack is not there, or with DryRun would not be. One that came after the
// sweep is.
func (c *collector) isGone(d namespace.Digest) (bool, error) {
	if c.there[d] {
		return false, nil
	}
	_, err := c.store.Stat(c.ctx, namespace.Key{Class: namespace.Pack, Digest: d})
	if err != nil && !namespace.IsKind(err, namespace.NotExist) {
		return false, err
	}
	return err != nil || c.o.DryRun, nil
}

func (c *collector) discard(k namespace.Key) error {
	if c.o.DryRun {
		return nil
	}
	return c.store.Delete(c.ctx, k)
}
