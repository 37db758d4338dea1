package cache

import (
	"cmp"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"time"

	"coppice.dev/coppice/namespace"
)

// objectsShare is the part of the quota that catalogs, manifests and locators may take: one in so
// many bytes.
const objectsShare = 4

// carryShare bounds the work of making room: a segment is dropped only if at least one in so many of its
// bytes goes, since what is held of it has to be copied.
const carryShare = 8

// reserve makes room for n more bytes and sets them aside until unreserve is called for them: the bound is
// kept at every instant, however many write. It drops segments, least recently used first, carrying over
// what is held of them, and objects if those are too many. Limit: there is no room but what is held.
func (c *Cache) reserve(n int64) error {
	c.room.Lock()
	defer c.room.Unlock()
	if objects, share := c.objectBytes.Load(), c.quota.Load()/objectsShare; objects > share && objects > c.objectsLeft+share/8 {
		c.dropObjects()
	}
	for c.used()+n > c.limit() {
		old := c.victim()
		if old == nil && c.segments.roll() {
			continue
		}
		if old == nil {
			return namespace.E(namespace.Limit, "keep", "cache", fmt.Errorf("of its quota of %s all but %s is pinned or in use",
				humanBytes(c.quota.Load()), humanBytes(max(c.limit()-c.used(), 0))))
		}
		if err := c.evict(old); err != nil {
			c.log.Error("segment not evicted", "segment", old.id, "error", err)
			return err
		}
	}
	c.reserved.Add(n)
	return nil
}

// unreserve gives back what was reserved: it has been written, or will not be.
func (c *Cache) unreserve(n int64) { c.reserved.Add(-n) }

// limit is the bound of what may be written: the quota, less what carrying over takes for a moment.
func (c *Cache) limit() int64 {
	q := c.quota.Load()
	if c.guard.idle() {
		return q
	}
	return q - int64(grainOf(q))
}

// used is what is on disk or about to be, in bytes.
func (c *Cache) used() int64 { return c.onDisk() + c.reserved.Load() }

func (c *Cache) onDisk() int64 {
	return c.segments.bytes() + c.objectBytes.Load() + c.index.size.Load()
}

// victim returns the least recently used segment of which enough can go; nil if there is none. With room
// held.
func (c *Cache) victim() *segment {
	c.refreshGuard()
	for _, s := range c.segments.byUse() {
		if size := int64(s.size.Load()); c.heldIn(s) <= size-size/carryShare {
			return s
		}
	}
	return nil
}

// grainOf returns the size at which a segment is closed.
func grainOf(quota int64) uint32 { return uint32(min(quota/segmentShare, segmentMax)) }

// setGrain changes the size at which a segment is closed.
func (ss *segments) setGrain(n uint32) {
	ss.appending.Lock()
	defer ss.appending.Unlock()
	ss.grain = n
}

// roll closes the segment that is appended to if it is full, so that it can be dropped; a smaller quota
// may have made it so.
func (ss *segments) roll() bool {
	ss.appending.Lock()
	defer ss.appending.Unlock()
	ss.mu.RLock()
	s := ss.byID[ss.last]
	ss.mu.RUnlock()
	if s == nil || s.size.Load() < ss.grain {
		return false
	}
	_, err := ss.create()
	return err == nil // or the next write says what is wrong
}

// byUse returns all segments but the one that is appended to, least recently used first.
func (ss *segments) byUse() []*segment {
	ss.mu.RLock()
	defer ss.mu.RUnlock()
	var all []*segment
	for _, s := range ss.byID {
		if s.id != ss.last {
			all = append(all, s)
		}
	}
	slices.SortFunc(all, func(a, b *segment) int {
		return cmp.Or(cmp.Compare(a.lastUse.Load(), b.lastUse.Load()), cmp.Compare(a.id, b.id))
	})
	return all
}

// evict drops a segment: what is held of it is carried over, then goes what points at it, then itself.
func (c *Cache) evict(s *segment) error {
	if err := c.carry(s); err != nil {
		return err
	}
	_, err := s.scan(0, func(rec record) error {
		for _, e := range rec.extents(s.id) {
			c.index.drop(e.digest, e.extent)
		}
		return nil
	})
	if err != nil {
		return err
	}
	// What a damaged header hid from the scan stays in the index and counts as none: ids of segments are
	// not used again.
	c.index.cover(s.id, 0)
	c.count.evictions.Add(1)
	return c.segments.remove(s)
}

// dropObjects removes the objects that were used longest ago and are not held, down to half of their
// share. What is mapped stays usable; its file comes back when it is fetched again.
func (c *Cache) dropObjects() {
	type file struct {
		path string
		info fs.FileInfo
	}
	var all []file
	var total int64
	c.refreshGuard()
	c.objects.each(func(path string, info fs.FileInfo) {
		all = append(all, file{path, info})
		total += info.Size()
	})
	sort.Slice(all, func(i, j int) bool { return all[i].info.ModTime().Before(all[j].info.ModTime()) })
	for _, f := range all {
		if total <= c.quota.Load()/objectsShare/2 {
			break
		}
		if d, err := namespace.ParseHex(filepath.Base(f.path)); err == nil && c.guard.object(d) {
			continue
		}
		if c.objects.remove(f.path) == nil {
			total -= f.info.Size()
		}
	}
	c.objectBytes.Store(total)
	c.objectsLeft = total
}

// degradedRetry is how often a full disk is complained about.
const degradedRetry = time.Minute

// degrade notes that something could not be kept, most likely since the disk is full: the cache goes
// on, reading through. Every miss tries again.
func (c *Cache) degrade(err error) {
	c.count.unkept.Add(1)
	now := time.Now().Unix()
	if last := c.degradedAt.Load(); now-last >= int64(degradedRetry/time.Second) && c.degradedAt.CompareAndSwap(last, now) {
		c.log.Error("the cache cannot keep what it fetches; reading through", "kind", namespace.KindOf(err).String(), "error", err)
	}
	c.through.Store(true)
}

// recovered notes that something could be kept.
func (c *Cache) recovered() {
	if c.through.CompareAndSwap(true, false) {
		c.log.Info("the cache keeps what it fetches again")
	}
}

// sweepTemporary removes what a crash left of objects being written.
func (c *Cache) sweepTemporary() {
	left, _ := filepath.Glob(filepath.Join(c.o.Dir, "objects", "*", temporary+"*"))
	for _, path := range left {
		_ = os.Remove(path)
	}
}
