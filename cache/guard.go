package cache

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"coppice.dev/coppice/internal/disk"
	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/catalog"
)

// warden knows what must not be evicted: what holds name, and what is being hydrated. It is made anew,
// when room is needed, after either has changed. Its tables are guarded by Cache.room.
type warden struct {
	stale   atomic.Bool
	version uint64
	chunks  []uint64 // keys, sorted
	objects map[namespace.Digest]struct{}
	kept    map[uint32]keptBytes // by segment

	mu    sync.Mutex
	sets  map[*hydration]*Set // being hydrated
	holds atomic.Int64        // how many holds and sets there are
}

// keptBytes is how much of a segment, when it had size bytes, is held according to a version of the
// warden.
type keptBytes struct {
	version uint64
	size    uint32
	bytes   int64
}

// idle reports whether nothing is held.
func (g *warden) idle() bool { return g.holds.Load() == 0 }

// chunk reports whether a chunk is held.
func (g *warden) chunk(d namespace.Digest) bool {
	_, ok := slices.BinarySearch(g.chunks, chunkKey(d))
	return ok
}

// object reports whether a catalog or manifest is held.
func (g *warden) object(d namespace.Digest) bool {
	_, ok := g.objects[d]
	return ok
}

// protect holds a set while h runs; release it by a nil set.
func (c *Cache) protect(h *hydration, s *Set) {
	c.guard.mu.Lock()
	if s != nil {
		c.guard.sets[h] = s
	} else {
		delete(c.guard.sets, h)
	}
	c.guard.mu.Unlock()
	c.countHolds()
}

// countHolds notes that something is, or is no longer, held.
func (c *Cache) countHolds() {
	c.guard.mu.Lock()
	c.guard.holds.Store(int64(len(c.guard.sets) + len(c.holding.all())))
	c.guard.mu.Unlock()
	c.guard.stale.Store(true)
}

// refreshGuard makes the warden's tables anew if it is stale. With room held.
func (c *Cache) refreshGuard() {
	g := &c.guard
	if !g.stale.Swap(false) {
		return
	}
	before := g.chunks
	g.chunks, g.objects = nil, map[namespace.Digest]struct{}{}
	for _, h := range c.holding.all() {
		for _, gen := range h.Generations {
			g.objects[gen.Manifest] = struct{}{}
			c.guardTree(gen.Root, h.Wanted(gen))
		}
	}
	g.mu.Lock()
	for _, s := range g.sets {
		g.add(s)
	}
	g.mu.Unlock()
	slices.Sort(g.chunks)
	g.chunks = slices.Compact(g.chunks)
	if !slices.Equal(before, g.chunks) {
		g.version++
	}
}

func (g *warden) add(s *Set) {
	g.chunks = append(g.chunks, s.keys...)
	for _, d := range s.catalogs {
		g.objects[d] = struct{}{}
	}
}

// guardTree holds a selection of a tree. As long as some of its catalogs are not here, nobody knows what
// is selected in what is, so all of that is held.
func (c *Cache) guardTree(root namespace.Digest, s Selection) {
	if set, err := Resolve(context.Background(), localLoader{c}, root, s); err == nil {
		c.guard.add(set)
		return
	}
	seen := map[namespace.Digest]bool{root: true}
	for todo := []namespace.Digest{root}; len(todo) > 0; {
		d := todo[0]
		todo = todo[1:]
		cat, err := c.objects.open(d)
		if err != nil {
			continue
		}
		c.guard.objects[d] = struct{}{}
		for i := 0; i < cat.NumChunks() && !s.Empty(); i++ {
			c.guard.chunks = append(c.guard.chunks, chunkKey(cat.Chunk(i).Digest))
		}
		for _, below := range cat.AllNested() {
			if !seen[below] {
				seen[below] = true
				todo = append(todo, below)
			}
		}
	}
}

// localLoader loads catalogs that are here. NotExist: one is not.
type localLoader struct{ c *Cache }

// Catalog implements catalog.Loader.
func (l localLoader) Catalog(_ context.Context, d namespace.Digest) (*catalog.Catalog, error) {
	return l.c.objects.open(d)
}

// heldIn returns how many bytes of a segment's records are held. With room held.
func (c *Cache) heldIn(s *segment) (n int64) {
	g := &c.guard
	if len(g.chunks) == 0 {
		return 0
	}
	if k, ok := g.kept[s.id]; ok && k.version == g.version && k.size == s.size.Load() {
		return k.bytes
	}
	k := keptBytes{version: g.version, size: s.size.Load()}
	_, _ = s.scan(0, func(rec record) error {
		if c.heldRecord(s, rec) {
			k.bytes += int64(rec.end() - rec.at)
		}
		return nil
	})
	g.kept[s.id] = k
	return k.bytes
}

// heldRecord reports whether a record has a chunk that is held and is read from there.
func (c *Cache) heldRecord(s *segment, rec record) bool {
	return slices.ContainsFunc(rec.extents(s.id), func(l located) bool {
		if !c.guard.chunk(l.digest) {
			return false
		}
		e, ok := c.index.get(l.digest)
		return ok && e == l.extent
	})
}

// carry copies what is held of a segment to the newest one. The copies are synced before it returns, and
// their entries replace the old ones, so that the segment can go: a crash at any time leaves one of the
// two, or both. With room held.
func (c *Cache) carry(s *segment) error {
	c.refreshGuard()
	if c.heldIn(s) == 0 {
		return nil
	}
	copied := false
	_, err := s.scan(0, func(rec record) error {
		if !c.heldRecord(s, rec) {
			return nil
		}
		copied = true
		return c.carryRecord(s, rec)
	})
	if err == nil && copied {
		err = c.segments.sync(true)
	}
	delete(c.guard.kept, s.id)
	return err
}

// carryRecord copies a record. One that is damaged is left behind, to be fetched again.
func (c *Cache) carryRecord(s *segment, rec record) error {
	if err := s.verify(rec); err != nil {
		c.count.corrupt.Add(1)
		c.log.Warn("damaged in the cache, to be fetched again", "segment", s.id, "at", rec.at, "error", err)
		return nil
	}
	_, err := c.copyRecord(s, rec)
	return err
}

// capacity returns how many more bytes could be kept without touching what is held, and what is set
// aside for hydrations that run.
func (c *Cache) capacity() (free int64) {
	c.room.Lock()
	defer c.room.Unlock()
	c.refreshGuard()
	var evictable int64
	for _, s := range c.segments.byUse() {
		if size := int64(s.size.Load()); c.heldIn(s) <= size-size/carryShare {
			evictable += size - c.heldIn(s)
		}
	}
	free = c.limit() - c.used() + evictable
	if onDisk, err := disk.Free(c.o.Dir); err == nil {
		free = min(free, onDisk+evictable)
	}
	c.guard.mu.Lock()
	defer c.guard.mu.Unlock()
	for h := range c.guard.sets {
		free -= h.ahead()
	}
	return max(free, 0)
}

// humanBytes prints bytes for an error.
func humanBytes(n int64) string {
	const units = "KMGTPE"
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	f, i := float64(n), -1
	for f >= 1024 && i < len(units)-1 {
		f /= 1024
		i++
	}
	return fmt.Sprintf("%.1f %ciB", f, units[i])
}
