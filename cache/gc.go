package cache

import (
	"context"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"

	"coppice.dev/coppice/namespace"
)

// Keep says what [Cache.GC] keeps.
type Keep struct {
	// Trees are root catalogs: all that the cache holds of these trees is kept.
	Trees []namespace.Digest
	// Objects are kept themselves, as manifests.
	Objects []namespace.Digest
	// Chunk, if set, keeps the chunks for which it is true besides. It must be quick.
	Chunk func(namespace.Digest) bool
}

// GCReport says what GC dropped, or would.
type GCReport struct {
	DryRun   bool  `json:"dry_run"`
	Trees    int   `json:"trees"`    // kept
	Chunks   int   `json:"chunks"`   // of kept trees
	Segments int   `json:"segments"` // dropped, with nothing in them that is kept
	Moved    int   `json:"moved"`    // segments of which what is kept was written anew
	Objects  int   `json:"objects"`  // catalogs, manifests, locators dropped
	Bytes    int64 `json:"bytes"`    // freed
	// Unknown counts catalogs of kept trees that are not here: what they refer to was not kept.
	Unknown int `json:"unknown,omitempty"`
}

// gcWorth is what of a segment must be free to be worth writing the rest anew: one in so many bytes.
const gcWorth = 4

// GC drops what keep does not name, while the cache is in use; what is fetched meanwhile stays. Segments
// that hold little else are written anew without it. With dryRun it only says what it would do. Memory:
// eight bytes a kept chunk. Kinds: Canceled, Limit (no room to write anew), Internal.
func (c *Cache) GC(ctx context.Context, keep Keep, dryRun bool) (GCReport, error) {
	rep := GCReport{DryRun: dryRun, Trees: len(keep.Trees)}
	all := c.segments.all()
	if !dryRun {
		for _, s := range all {
			c.segments.finish(s)
		}
	}
	live, catalogs := c.mark(ctx, keep, &rep)
	for _, s := range all {
		if ctx.Err() != nil {
			return rep, namespace.E(namespace.Canceled, "collect", "cache", ctx.Err())
		}
		if err := c.collect(s, live, dryRun, &rep); err != nil {
			return rep, err
		}
	}
	c.collectObjects(catalogs, dryRun, &rep)
	if dryRun {
		return rep, nil
	}
	return rep, c.flushIndex()
}

// short is the beginning of a digest: two chunks that share one are both kept.
func short(d namespace.Digest) uint64 { return le.Uint64(d[:8]) }

// mark collects the chunks of kept trees, as far as their catalogs are here, and the objects to keep.
func (c *Cache) mark(ctx context.Context, keep Keep, rep *GCReport) (live func(namespace.Digest) bool, objects map[namespace.Digest]bool) {
	objects = map[namespace.Digest]bool{}
	for _, d := range keep.Objects {
		objects[d] = true
	}
	var chunks []uint64
	todo := slices.Clone(keep.Trees)
	for len(todo) > 0 && ctx.Err() == nil {
		d := todo[len(todo)-1]
		if todo = todo[:len(todo)-1]; objects[d] {
			continue
		}
		objects[d] = true
		cat, err := c.objects.open(d)
		if err != nil {
			rep.Unknown++
			continue
		}
		for i := range cat.NumChunks() {
			if ch := cat.Chunk(i); !ch.Hole() {
				chunks = append(chunks, short(ch.Digest))
			}
		}
		todo = append(todo, cat.AllNested()...)
	}
	slices.Sort(chunks)
	chunks = slices.Compact(chunks)
	rep.Chunks = len(chunks)
	return func(d namespace.Digest) bool {
		_, found := slices.BinarySearch(chunks, short(d))
		return found || keep.Chunk != nil && keep.Chunk(d)
	}, objects
}

// collect drops a segment, or writes anew what lives in it, if that is worth it.
func (c *Cache) collect(s *segment, live func(namespace.Digest) bool, dryRun bool, rep *GCReport) error {
	c.room.Lock() // no eviction of it meanwhile
	defer c.room.Unlock()
	if c.segments.get(s.id) == nil {
		return nil
	}
	size := s.size.Load()
	var kept int64
	_, err := s.scan(0, func(rec record) error {
		for _, e := range rec.extents(s.id) {
			if cur, ok := c.index.get(e.digest); ok && cur == e.extent && live(e.digest) {
				kept += int64(rec.end() - rec.at)
				break
			}
		}
		return nil
	})
	free := int64(size) - kept
	if err != nil || kept > 0 && free*gcWorth < int64(size) || size == 0 && dryRun {
		return err
	}
	rep.Bytes += free
	if kept > 0 {
		rep.Moved++
	} else {
		rep.Segments++
	}
	if dryRun {
		return nil
	}
	return c.rewrite(s, live)
}

// collectObjects drops the objects that are not named. Catalogs in use stay usable.
func (c *Cache) collectObjects(keep map[namespace.Digest]bool, dryRun bool, rep *GCReport) {
	c.objects.each(func(path string, info fs.FileInfo) {
		name, _, _ := strings.Cut(filepath.Base(path), ".")
		d, err := namespace.ParseHex(name)
		if err == nil && keep[d] {
			return
		}
		if !dryRun {
			if c.objects.remove(path) != nil {
				return
			}
			c.objectBytes.Add(-info.Size())
		}
		rep.Objects++
		rep.Bytes += info.Size()
	})
}

// Object returns a small object that is here, of at most limit bytes, verified. Kinds: NotExist, Corrupt
// (it was damaged, and is gone now), Limit.
func (c *Cache) Object(d namespace.Digest, limit int64) ([]byte, error) {
	return c.objects.read(d, limit)
}

// rewrite appends the records of a segment anew, those that are right and hold a chunk which the index
// knows to be there and which live, if not nil, wants, and drops the segment. What was durable stays so.
func (c *Cache) rewrite(s *segment, live func(namespace.Digest) bool) error {
	c.segments.finish(s)
	var moved []located
	_, err := s.scan(0, func(rec record) error {
		var keep []located
		for _, e := range rec.extents(s.id) {
			if cur, ok := c.index.get(e.digest); ok && cur == e.extent && (live == nil || live(e.digest)) {
				keep = append(keep, e)
			}
		}
		if len(keep) == 0 || s.verify(rec) != nil {
			return nil
		}
		at, err := c.copyRecord(s, rec)
		if err != nil {
			return err
		}
		moved = append(moved, at...)
		return nil
	})
	if err != nil {
		return err // what was copied is there twice, until one of them is evicted
	}
	if len(moved) > 0 {
		if err := c.segments.sync(true); err != nil {
			return err
		}
	}
	return c.evict(s)
}

// copyRecord appends a record anew and makes its chunks known there.
func (c *Cache) copyRecord(s *segment, rec record) ([]located, error) {
	b := make([]byte, rec.end()-rec.at)
	if _, err := s.file.ReadAt(b, int64(rec.at)); err != nil {
		return nil, namespace.E(namespace.Corrupt, "read", s.file.Name(), err)
	}
	seg, at, err := c.segments.append(b)
	if err != nil {
		return nil, err
	}
	rec.at = at
	c.count.moved.Add(uint64(len(b)))
	c.enter(seg, rec)
	return rec.extents(seg), nil
}
