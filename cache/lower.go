package cache

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"coppice.dev/coppice/internal/disk"
	"coppice.dev/coppice/namespace"
)

// A lower cache is the directory of another cache that is only read: in an image, on a read-only disk,
// on a server. It is asked before the network is. Nothing is written there and nothing locked, so any
// number of caches may share one, also while its owner uses it. Nothing in it is trusted: a chunk is held
// against its digest whenever its frame was decoded anew, catalogs are copied when they are first used. One
// that is damaged, of another format or gone is said to be, counted, and ignored.

const (
	// lowersMax bounds them: a segment's id in memory has 8 bits for which one it is in.
	lowersMax = 255
	lowerBits = 24
	// lowerBadMax is how many damaged frames a lower cache may have before it is left alone.
	lowerBadMax = 1 << 12
	// lowerFailuresMax is how many reads in a row may fail before it is left alone, for lowerPause.
	lowerFailuresMax = 8
	lowerPause       = 30 * time.Second
	// lowerRefresh is how old the view of its index may be: its owner may be filling it.
	lowerRefresh = 5 * time.Second
)

// lower is a lower cache. Safe for concurrent use.
type lower struct {
	dir  string
	n    uint32 // 1 or more
	log  *slog.Logger
	hits atomic.Uint64

	mu       sync.Mutex
	file     *os.File // the index
	pages    *pages
	opened   time.Time
	segments map[uint32]*segment
	bad      map[frameKey]struct{}
	failures int
	until    time.Time // left alone
	err      error     // why; nil: it is used
}

// LowerStats says how a lower cache fares. Error is empty if it is used.
type LowerStats struct {
	Dir     string `json:"dir"`
	Hits    uint64 `json:"hits"`    // chunk reads answered from there
	Damaged int    `json:"damaged"` // frames that were refused
	Error   string `json:"error,omitempty"`
}

func isLower(seg uint32) bool { return seg > segmentIDMax }

// openLowers prepares lower caches. One that is not there now may come.
func openLowers(dirs []string, log *slog.Logger) ([]*lower, error) {
	if len(dirs) > lowersMax {
		return nil, namespace.E(namespace.Limit, "open cache", "lower caches", fmt.Errorf("%d, at most %d", len(dirs), lowersMax))
	}
	var all []*lower
	for i, dir := range dirs {
		l := &lower{dir: dir, n: uint32(i + 1), log: log.With("lower", dir), segments: map[uint32]*segment{}, bad: map[frameKey]struct{}{}}
		l.mu.Lock()
		l.usable()
		l.mu.Unlock()
		all = append(all, l)
	}
	return all, nil
}

// usable opens the index, anew if it was opened long ago, and reports whether the lower cache can be asked;
// with mu held.
func (l *lower) usable() bool {
	now := time.Now()
	if now.Before(l.until) {
		return false
	}
	if l.pages != nil && now.Sub(l.opened) < lowerRefresh {
		return true
	}
	l.closeIndex()
	f, err := os.Open(filepath.Join(l.dir, "index.db"))
	if err != nil {
		l.leave(disk.Error("open", filepath.Join(l.dir, "index.db"), err))
		return false
	}
	p, err := openPages(f)
	if err == nil {
		_, err = p.get(bucketChunks, make([]byte, len(indexKey{}))) // of this format?
	}
	if err != nil {
		f.Close()
		l.leave(err)
		return false
	}
	l.file, l.pages, l.opened = f, p, now
	l.recovered()
	return true
}

func (l *lower) closeIndex() {
	if l.file != nil {
		l.file.Close()
	}
	l.file, l.pages = nil, nil
}

// leave has the lower cache not asked for a while, and says so once; with mu held.
func (l *lower) leave(err error) {
	if l.err == nil {
		l.log.Warn("a lower cache cannot be used; going on without it", "error", err)
	}
	l.err, l.until = err, time.Now().Add(lowerPause)
	l.closeIndex()
}

func (l *lower) recovered() {
	if l.err != nil {
		l.log.Info("a lower cache can be used again")
	}
	l.err, l.failures = nil, 0
}

// find returns where a chunk is in the lower cache.
func (l *lower) find(d namespace.Digest) (extent, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.usable() {
		return extent{}, false
	}
	key := keyOf(&d)
	v, err := l.pages.get(bucketChunks, key[:])
	if err != nil {
		l.failed(err)
		return extent{}, false
	}
	e, ok := decodeExtent(&d, v)
	if !ok {
		return extent{}, false
	}
	e.seg |= l.n << lowerBits
	if _, bad := l.bad[frameKey{e.seg, e.at}]; bad {
		return extent{}, false
	}
	return e, l.segment(e) != nil
}

// segment returns the segment of an extent, nil if it is not there whole; with mu held.
func (l *lower) segment(e extent) *segment {
	id, end := e.seg&segmentIDMax, uint64(e.at)+uint64(e.stored)
	s := l.segments[id]
	if s != nil && end <= uint64(s.size.Load()) {
		return s
	}
	if s == nil {
		dir := filepath.Join(l.dir, "segments")
		var err error
		if s, err = openSegment(dir, segmentName(id), os.O_RDONLY); err != nil || s == nil {
			return nil // evicted there
		}
		l.segments[id] = s
	}
	if info, err := s.file.Stat(); err == nil { // it may grow
		s.size.Store(uint32(min(info.Size(), 2*segmentMax)))
	}
	if end > uint64(s.size.Load()) {
		return nil
	}
	return s
}

// get returns a segment that find named.
func (l *lower) get(id uint32) *segment {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.segments[id]
}

// refuse notes that a frame of the lower cache is damaged, or could not be read.
func (l *lower) refuse(key frameKey, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.log.Warn("damaged in a lower cache, not used", "segment", key.seg&segmentIDMax, "at", key.at, "error", err)
	if len(l.bad) < lowerBadMax {
		l.bad[key] = struct{}{}
		l.failed(err)
		return
	}
	l.leave(fmt.Errorf("more than %d frames are damaged: %w", lowerBadMax, err))
}

// failed counts failures in a row; with mu held.
func (l *lower) failed(err error) {
	l.failures++
	if l.failures >= lowerFailuresMax {
		l.leave(err)
	}
}

// served notes that a chunk was read from there and is right.
func (l *lower) served() {
	l.hits.Add(1)
	l.mu.Lock()
	l.failures = 0
	l.mu.Unlock()
}

// object reads a small object of at most limit bytes; nil: it is not there.
func (l *lower) object(d namespace.Digest, suffix string, limit int64) []byte {
	h := d.Hex()
	f, err := os.Open(filepath.Join(l.dir, "objects", h[:2], h+suffix))
	if err != nil {
		return nil
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() || info.Size() > limit {
		return nil
	}
	b := make([]byte, info.Size())
	if _, err := f.ReadAt(b, 0); err != nil {
		return nil
	}
	return b
}

func (l *lower) stats() LowerStats {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := LowerStats{Dir: l.dir, Hits: l.hits.Load(), Damaged: len(l.bad)}
	if l.err != nil {
		s.Error = l.err.Error()
	}
	return s
}

func (l *lower) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closeIndex()
	for _, s := range l.segments {
		s.file.Close()
	}
	l.segments = map[uint32]*segment{}
}

// find returns where a chunk is: in this cache, or in a lower one.
func (c *Cache) find(d namespace.Digest) (extent, bool) {
	e, ok := c.index.get(d)
	if ok && c.segments.holds(e) {
		return e, true
	}
	for _, l := range c.segments.lowers {
		if e, ok := l.find(d); ok {
			return e, true
		}
	}
	return e, ok
}

// refuseLower notes damage if a frame is in a lower cache.
func (c *Cache) refuseLower(e extent, err error) {
	if isLower(e.seg) {
		c.segments.lowers[e.seg>>lowerBits-1].refuse(frameKey{e.seg, e.at}, err)
	}
}

// fromLower holds a chunk of a decoded frame against its digest if the frame is in a lower cache, where
// nobody else did; once for each time that it is decoded.
func (c *Cache) fromLower(f *frame, e extent, d namespace.Digest) error {
	if !isLower(e.seg) {
		return nil
	}
	if !f.verified(d, e.off, e.size) {
		return namespace.E(namespace.Corrupt, "verify", "chunk "+d.String(), errors.New("its bytes in the lower cache are others"))
	}
	c.segments.lowers[e.seg>>lowerBits-1].served()
	return nil
}

// lowerObject reads a verified object of at most limit bytes from a lower cache; nil: none has it.
func (c *Cache) lowerObject(d namespace.Digest, limit int64) []byte {
	for _, l := range c.segments.lowers {
		if b := l.object(d, "", limit); b != nil {
			if namespace.Sum(b) == d {
				return b
			}
			c.count.corrupt.Add(1)
			l.log.Warn("damaged in a lower cache, not used", "object", d.String())
		}
	}
	return nil
}
