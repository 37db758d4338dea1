package cache

import (
	"errors"
	"time"

	"coppice.dev/coppice/namespace"
)

// What a process that died, or a machine, leaves of segments and index is made to agree when the cache
// is opened, without reading what need not be:
//
//   - after a clean end there is nothing to do;
//   - after the death of the process alone everything that was written is there: only records behind
//     the last commit of the index are read;
//   - after a crash of the machine what was not synced may be anything, in the index too: segments that
//     are not sealed are read and checked, and entries that lead to what is lost are deleted, so that
//     what the index knows can be read.
//
// Closed segments are synced and sealed as time goes by, so that little is ever in doubt.

// settle makes index and segments agree. crashed says that the machine may have.
func (c *Cache) settle(crashed bool) error {
	covered := c.index.covered()
	for seg := range covered {
		c.segments.reserve(seg)
		if c.segments.get(seg) == nil {
			c.index.cover(seg, 0) // its entries count as none, and are purged in the background
		}
	}
	lost := map[uint32]survey{}
	for _, s := range c.segments.all() {
		from, size := covered[s.id], s.size.Load()
		doubt := from > size || crashed && !s.sealed.Load()
		if doubt { // the last record that is whole may begin anywhere
			from = 0
		}
		found, end, err := c.indexFrom(s, from, doubt)
		if err != nil {
			return err
		}
		if doubt {
			lost[s.id] = found
		}
		s.truncate(c.o.ops, end)
		s.covered.Store(s.size.Load())
		if end != covered[s.id] {
			c.index.cover(s.id, end)
		}
	}
	if len(lost) > 0 || crashed {
		err := c.index.purge(c.closing, func(seg, at uint32) bool {
			return c.segments.get(seg) == nil || lost[seg] != nil && lost[seg].lost(at)
		})
		if namespace.IsKind(err, namespace.Corrupt) {
			return c.healIndex()
		}
		if err != nil {
			return err
		}
	}
	if err := c.flushIndex(); err != nil {
		return err
	}
	for _, s := range c.segments.all() {
		if s.torn.Load() { // what is whole in it moves, or it would be read again after every crash
			if err := c.rewrite(s, nil); err != nil {
				c.log.Warn("a segment that a crash tore is kept as it is", "segment", s.id, "error", err)
			}
		}
	}
	return nil
}

// survey is where the whole records of a segment have their bytes.
type survey map[uint32]struct{}

func (f survey) lost(at uint32) bool {
	_, found := f[at]
	return !found
}

// indexFrom indexes the records of a segment from off on and returns where the last one ends; with
// verify those only whose stored bytes are right, and it returns them.
func (c *Cache) indexFrom(s *segment, off uint32, verify bool) (found survey, end uint32, err error) {
	found = survey{}
	end, err = s.scan(off, func(rec record) error {
		if verify && s.check(rec) != nil {
			s.torn.Store(true)
			return nil
		}
		for _, e := range rec.extents(s.id) {
			c.index.put(e.digest, e.extent)
		}
		if verify {
			found[rec.payload()] = struct{}{}
		}
		if c.index.waiting() >= rebuildEntries {
			return c.index.flush()
		}
		return nil
	})
	return found, end, err
}

// rebuildEntries is how many entries are collected when many are made anew, 25 MB: committed in order of
// their keys, those of one page come together, which takes a quarter of the time.
const rebuildEntries = 256 << 10

// syncSegments makes what was appended survive a crash, all or what is in closed segments. After a
// failed sync the kernel may take for written what is not, and say so: the records are written anew,
// elsewhere, before anything is promised of them.
func (c *Cache) syncSegments(all bool) error {
	err := c.segments.sync(all)
	for _, s := range c.segments.all() {
		if !s.failed.Load() {
			continue
		}
		if err = c.rewrite(s, nil); err == nil {
			err = c.segments.sync(all)
		}
		if err != nil {
			return err
		}
	}
	return err
}

// flushLoop commits from time to time until the cache is closed, and has a damaged index made anew.
func (c *Cache) flushLoop() {
	tick := time.NewTicker(flushEvery)
	defer tick.Stop()
	for {
		select {
		case <-c.closing:
			return
		case <-tick.C:
		case <-c.index.full:
		}
		if err := c.flushIndex(); err != nil {
			c.log.Error("cache index not written; tried again later", "error", err)
		}
		if err := c.syncSegments(false); err != nil {
			c.log.Error("segments of the cache not synced; tried again later", "error", err)
		}
	}
}

// flushIndex commits what is pending. If the index turns out to be damaged it is made anew first.
func (c *Cache) flushIndex() error {
	err := c.index.flush()
	if !c.index.bad.Load() {
		return err
	}
	if err := c.healIndex(); err != nil {
		return err
	}
	return c.index.flush()
}

// recoverEvery is how often, at most, a read that nobody can answer makes sure that the index lost
// nothing: reading the headers of all records costs about a second for a million chunks.
const recoverEvery = 10 * time.Minute

// recoverIndex has an index made anew that does not know of chunks which the segments hold: damage
// can make an entry that no lookup finds, and offline nobody would fetch it again. It reports whether
// the caller should look once more; others wait meanwhile.
func (c *Cache) recoverIndex() bool {
	c.recovering.Lock()
	defer c.recovering.Unlock()
	if time.Since(c.searched) < recoverEvery && !c.index.bad.Load() {
		return time.Since(c.searched) < c.o.Timeout // while this caller waited for the network
	}
	if !c.index.bad.Load() && c.lostNothing() {
		c.searched = time.Now()
		return true
	}
	c.index.bad.Store(true)
	if err := c.flushIndex(); err != nil {
		c.log.Error("cache index not made anew; tried again later", "error", err)
	}
	c.searched = time.Now()
	return true
}

// errLost ends a scan that met a chunk which the index lost. It does not leave this file.
var errLost = errors.New("lost")

// lostNothing reports whether the index knows of every chunk that can be read. What was dropped since
// it is damaged is rightly not in it.
func (c *Cache) lostNothing() bool {
	for _, s := range c.segments.all() {
		_, err := s.scan(0, func(rec record) error {
			for _, e := range rec.extents(s.id) {
				if _, ok := c.index.get(e.digest); !ok && s.verify(rec) == nil {
					return errLost
				}
			}
			return nil
		})
		if errors.Is(err, errLost) {
			return false
		}
	}
	return true
}

// healIndex makes a damaged index anew from the segments.
func (c *Cache) healIndex() error {
	c.log.Warn("the cache's index is damaged and is made anew", "path", c.index.path)
	c.count.corrupt.Add(1)
	c.count.made.Add(1)
	if err := c.index.replace(); err != nil {
		return err
	}
	for _, s := range c.segments.all() {
		if _, _, err := c.indexFrom(s, 0, !s.sealed.Load()); err != nil {
			return err
		}
		c.index.cover(s.id, s.covered.Load())
	}
	return nil
}
