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
//   - after a crash of the machine what was not synced may be anything, in the index too: records that
//     were not synced are read and checked, and entries that lead to what is lost are deleted, so that
//     what the index knows can be read.
//
// Closed segments are synced as time goes by, so that little is ever in doubt.

// doubtful is how many of the newest segments are checked after a crash whose index is lost as well,
// and with it the memory of what was synced.
const doubtful = 2

// settle makes index and segments agree. crashed says that the machine may have.
func (c *Cache) settle(crashed bool) error {
	covered := c.index.covered()
	for seg := range covered {
		c.segments.reserve(seg)
		if c.segments.get(seg) == nil {
			c.index.cover(seg, coverage{}) // its entries count as none, and are purged in the background
		}
	}
	lost := map[uint32]*survey{}
	all := c.segments.all()
	for i, s := range all {
		was, known := covered[s.id]
		size := s.size.Load()
		s.synced.Store(min(was.synced, size))
		from, doubt := was.end, crashed && (known || i >= len(all)-doubtful)
		switch {
		case was.end > size: // cut short: the last record that is whole may begin anywhere
			from, doubt = 0, true
		case doubt:
			from = min(from, s.synced.Load())
		}
		found, end, err := c.indexFrom(s, from, doubt)
		if err != nil {
			return err
		}
		if doubt && was.end > from {
			lost[s.id] = found
		}
		s.truncate(c.o.ops, end)
		s.covered.Store(s.size.Load())
		if s.coverage() != was {
			c.index.cover(s.id, s.coverage())
		}
	}
	if len(lost) > 0 {
		err := c.index.purge(c.closing, func(seg, at uint32) bool { return lost[seg] != nil && lost[seg].lost(at) })
		if namespace.IsKind(err, namespace.Corrupt) {
			return c.healIndex()
		}
		if err != nil {
			return err
		}
	}
	return c.flushIndex()
}

// survey is what was found of a segment from an offset on: where whole records have their bytes.
type survey struct {
	from uint32
	at   map[uint32]struct{}
}

// lost reports whether stored bytes at an offset were looked for and not found.
func (f *survey) lost(at uint32) bool {
	_, found := f.at[at]
	return at >= f.from && !found
}

// indexFrom indexes the records of a segment from off on and returns where the last one ends; with
// verify those only whose stored bytes are right, and it returns them.
func (c *Cache) indexFrom(s *segment, off uint32, verify bool) (found *survey, end uint32, err error) {
	found = &survey{off, map[uint32]struct{}{}}
	end, err = s.scan(off, func(rec record) error {
		if verify && s.check(rec) != nil {
			return nil
		}
		for _, e := range rec.extents(s.id) {
			c.index.put(e.digest, e.extent)
		}
		if verify {
			found.at[rec.payload()] = struct{}{}
		}
		if c.index.waiting() >= flushEntries {
			return c.index.flush()
		}
		return nil
	})
	return found, end, err
}

// syncSegments makes segments survive a crash and remembers that: all, or those that are closed.
func (c *Cache) syncSegments(all bool) error {
	done, err := c.segments.sync(all)
	for _, s := range done {
		c.index.cover(s.id, s.coverage())
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
	if err := c.index.replace(); err != nil {
		return err
	}
	for _, s := range c.segments.all() {
		if _, _, err := c.indexFrom(s, 0, false); err != nil {
			return err
		}
		c.index.cover(s.id, s.coverage())
	}
	return nil
}
