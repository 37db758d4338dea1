package cache

import "sync"

// Frames are decoded ahead of a reader that goes through a segment from front to back, which is how
// a tree is read whose content was fetched in order: on another processor, while the reader's
// process is busy with what it has.
const (
	aheadFrames = 4
	aheadQueue  = 16
)

// ahead is where the last demand was and where the next would be if it goes on.
type ahead struct {
	mu    sync.Mutex
	next  frameKey // of the frame behind the last demanded one
	queue chan frameKey
}

// noteDemand is told of the first demand for each frame. Records are consecutive but for their
// headers, so the frame behind e starts a header after its end.
func (c *Cache) noteDemand(e extent) {
	c.ahead.mu.Lock()
	// The next record's header and table lie between: its stored bytes begin a little later.
	sequential := e.seg == c.ahead.next.seg && e.at >= c.ahead.next.at && e.at-c.ahead.next.at <= recordHeader+tableEntry*512
	c.ahead.next = frameKey{e.seg, e.at + e.stored}
	c.ahead.mu.Unlock()
	if sequential {
		select {
		case c.ahead.queue <- frameKey{e.seg, e.at + e.stored}:
		default: // busy with what was asked before
		}
	}
}

// aheadLoop decodes what noteDemand asks for until the cache is closed.
func (c *Cache) aheadLoop() {
	for {
		select {
		case <-c.closing:
			return
		case from := <-c.ahead.queue:
			c.decodeAhead(from)
		}
	}
}

// decodeAhead decodes up to aheadFrames records from the one that starts at from.
func (c *Cache) decodeAhead(from frameKey) {
	s := c.segments.get(from.seg)
	if s == nil {
		return
	}
	at := from.at
	for range aheadFrames {
		rec, err := readRecord(s.file, at)
		if err != nil {
			return
		}
		at = rec.end()
		if len(rec.chunks) == 0 || c.frames.has(frameKey{s.id, rec.payload()}) {
			continue
		}
		e := rec.extents(s.id)[0].extent
		f, _, err := c.frames.get(frameKey{e.seg, e.at}, e.plain, false, func(buf []byte) ([]byte, error) { return c.load(e, buf) })
		if err != nil {
			return // whoever demands it meets the error, and has it healed
		}
		c.frames.release(f)
	}
}

// scratch lends buffers for stored bytes.
type scratch struct{ pool sync.Pool }

func (s *scratch) get() *[]byte {
	if b, ok := s.pool.Get().(*[]byte); ok {
		return b
	}
	return new([]byte)
}

func (s *scratch) put(b *[]byte) { s.pool.Put(b) }
