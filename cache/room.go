package cache

import (
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"time"

	"coppice.dev/coppice/namespace"
)

// objectsShare is the part of the quota that catalogs, manifests and locators may take: one in so
// many bytes.
const objectsShare = 4

// makeRoom keeps the bound: it drops the least recently used segments, and objects if those are too
// many, until n more bytes fit. It fails softly: what cannot be dropped now is tried next time.
func (c *Cache) makeRoom(n int64) {
	c.room.Lock()
	defer c.room.Unlock()
	if c.objectBytes.Load() > c.o.QuotaBytes/objectsShare {
		c.dropObjects()
	}
	for c.used()+n > c.o.QuotaBytes {
		old := c.segments.oldest()
		if old == nil {
			return // only the one that is written is left
		}
		if err := c.evict(old); err != nil {
			c.log.Error("segment not evicted", "segment", old.id, "error", err)
			return
		}
	}
}

// used is what is on disk, in bytes.
func (c *Cache) used() int64 { return c.segments.bytes() + c.objectBytes.Load() + c.index.size.Load() }

// evict drops a segment: first what points at it, then itself.
func (c *Cache) evict(s *segment) error {
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

// dropObjects removes the objects that were used longest ago, down to half of their share. What is
// mapped stays usable; its file comes back when it is fetched again.
func (c *Cache) dropObjects() {
	type file struct {
		path string
		info fs.FileInfo
	}
	var all []file
	var total int64
	c.objects.each(func(path string, info fs.FileInfo) {
		all = append(all, file{path, info})
		total += info.Size()
	})
	sort.Slice(all, func(i, j int) bool { return all[i].info.ModTime().Before(all[j].info.ModTime()) })
	for _, f := range all {
		if total <= c.o.QuotaBytes/objectsShare/2 {
			break
		}
		if c.objects.remove(f.path) == nil {
			total -= f.info.Size()
		}
	}
	c.objectBytes.Store(total)
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
