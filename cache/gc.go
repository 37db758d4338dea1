package cache

import (
	"coppice.dev/coppice/namespace"
)

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
