package cache

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cespare/xxhash/v2"
	"go.etcd.io/bbolt"

	"coppice.dev/coppice/internal/disk"
	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/object"
)

// The index's buckets: chunk digest → extent, and segment → how far it is covered.
var (
	bucketChunks  = []byte("chunks/1")
	bucketCovered = []byte("covered/1")
)

const (
	extentBytes = 44
	flushEvery  = time.Second
	// flushEntries bounds what a commit dirties, hence its memory: keys are random, a page each.
	flushEntries = 2048
	// pendingMax is where whoever fetches waits for the index, so that memory stays bounded.
	pendingMax = 8 * flushEntries
)

// encodeExtent returns the value for a digest. Its last 8 bytes check key and value, so that a
// flipped bit cannot lead to other content (C2).
func encodeExtent(d namespace.Digest, e extent) []byte {
	b := make([]byte, 0, extentBytes)
	for _, v := range []uint32{e.seg, e.at, e.stored, e.plain, e.off, e.size, uint32(e.codec)} {
		b = le.AppendUint32(b, v)
	}
	b = le.AppendUint64(b, e.sum)
	return le.AppendUint64(b, extentSum(&d, b))
}

func extentSum(d *namespace.Digest, b []byte) uint64 {
	var buf [namespace.DigestSize + extentBytes - 8]byte
	n := copy(buf[:], d[:])
	n += copy(buf[n:], b)
	return xxhash.Sum64(buf[:n])
}

func decodeExtent(d *namespace.Digest, b []byte) (extent, bool) {
	if len(b) != extentBytes || le.Uint64(b[36:]) != extentSum(d, b[:36]) {
		return extent{}, false
	}
	return extent{seg: le.Uint32(b), at: le.Uint32(b[4:]), stored: le.Uint32(b[8:]), plain: le.Uint32(b[12:]),
		off: le.Uint32(b[16:]), size: le.Uint32(b[20:]), codec: object.Codec(b[24]), sum: le.Uint64(b[28:])}, true
}

// index finds chunks. New entries are kept in memory and committed together. Safe for concurrent
// use.
type index struct {
	path string
	log  *slog.Logger
	full chan struct{} // asks for a flush
	size atomic.Int64  // of the file, bytes, after the last commit
	bad  atomic.Bool   // damaged: bbolt met a page that makes no sense

	flushing sync.Mutex // one flush at a time

	dbMu sync.RWMutex // held for writing while db is replaced
	db   *bbolt.DB

	mu        sync.Mutex
	pending   map[namespace.Digest]extent // not yet committed; seg 0: deleted
	committed map[namespace.Digest]extent // being committed
	ends      map[uint32]uint32           // segments' covered ends, not yet committed
}

// openIndex opens the index, or makes a new one if it cannot be read.
func openIndex(path string, log *slog.Logger) (*index, error) {
	x := &index{path: path, log: log, full: make(chan struct{}, 1), pending: map[namespace.Digest]extent{}, ends: map[uint32]uint32{}}
	err := x.open()
	if err == nil {
		return x, nil
	}
	log.Warn("the cache's index cannot be read and is made anew", "path", path, "error", err)
	if err := x.replace(); err != nil {
		return nil, err
	}
	return x, nil
}

// replace makes a new, empty index in place of a damaged one.
func (x *index) replace() error {
	x.dbMu.Lock()
	defer x.dbMu.Unlock()
	if x.db != nil {
		_ = guard(x.db.Close) // it is thrown away
		x.db = nil
	}
	if err := os.Remove(x.path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return disk.Error("remove", x.path, err)
	}
	if err := x.open(); err != nil {
		return disk.Error("open", x.path, err)
	}
	x.bad.Store(false)
	return nil
}

// guard turns a panic of bbolt, which is what it does on damaged pages, or a fault in the file's
// mapping into an error.
func guard(f func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			err = namespace.E(namespace.Corrupt, "use", "index", fmt.Errorf("%v", r))
		}
	}()
	return f()
}

// use runs f on the database. Damage is remembered, for the next flush to heal it.
func (x *index) use(f func(*bbolt.DB) error) error {
	x.dbMu.RLock()
	defer x.dbMu.RUnlock()
	if x.db == nil {
		return namespace.E(namespace.Corrupt, "use", "index", errors.New("it could not be made anew"))
	}
	err := guard(func() error { return f(x.db) })
	if namespace.IsKind(err, namespace.Corrupt) {
		x.bad.Store(true)
	}
	return err
}

// open opens or creates the file. Commits are not synced, which would cost more than all else: what a
// crash of the machine mixes up is found, at the latest when it is read, and made anew. Its list of free pages is kept in it: finding them by a walk of all
// pages, bbolt would meet damage where nothing can recover from its panic.
func (x *index) open() error {
	return guard(func() error {
		db, err := bbolt.Open(x.path, 0o600, &bbolt.Options{Timeout: time.Second, NoSync: true, FreelistType: bbolt.FreelistMapType})
		if err != nil {
			return err
		}
		err = db.Update(func(tx *bbolt.Tx) error {
			_, err := tx.CreateBucketIfNotExists(bucketChunks)
			if err == nil {
				_, err = tx.CreateBucketIfNotExists(bucketCovered)
			}
			return err
		})
		if err != nil {
			db.Close()
			return err
		}
		x.db = db
		x.measure()
		return nil
	})
}

func (x *index) measure() {
	if info, err := os.Stat(x.path); err == nil {
		x.size.Store(info.Size())
	}
}

// check walks all entries, until closing is closed: a crash may have left pages that are not what
// others say of them. What it finds, the next flush heals.
func (x *index) check(closing <-chan struct{}) {
	_ = x.use(func(db *bbolt.DB) error { // use remembers damage
		return db.View(func(tx *bbolt.Tx) error {
			for _, name := range [][]byte{bucketChunks, bucketCovered} {
				if err := checkOrder(tx.Bucket(name), closing); err != nil {
					return err
				}
			}
			return nil
		})
	})
}

func checkOrder(b *bbolt.Bucket, closing <-chan struct{}) error {
	var last []byte
	c := b.Cursor()
	n := 0
	for k, _ := c.First(); k != nil; k, _ = c.Next() {
		if last != nil && bytes.Compare(last, k) >= 0 {
			return namespace.E(namespace.Corrupt, "check", "index", errors.New("entries out of order"))
		}
		last = k
		if n++; n%1024 == 0 {
			select {
			case <-closing:
				return nil
			default:
			}
		}
	}
	return nil
}

func (x *index) close() {
	x.dbMu.Lock()
	defer x.dbMu.Unlock()
	if x.db != nil {
		_ = guard(x.db.Close) // everything in it was committed
		x.db = nil
	}
	if x.bad.Load() {
		_ = os.Remove(x.path) // or the next Open meets the damage
	}
}

// get finds a chunk. A damaged entry counts as none.
func (x *index) get(d namespace.Digest) (e extent, ok bool) {
	x.mu.Lock()
	e, ok = x.pending[d]
	if !ok {
		e, ok = x.committed[d]
	}
	x.mu.Unlock()
	if ok {
		return e, e.seg != 0
	}
	err := x.use(func(db *bbolt.DB) error {
		return db.View(func(tx *bbolt.Tx) error {
			e, ok = decodeExtent(&d, tx.Bucket(bucketChunks).Get(d[:]))
			return nil
		})
	})
	return e, ok && err == nil
}

// put notes where a chunk is.
func (x *index) put(d namespace.Digest, e extent) {
	x.mu.Lock()
	x.pending[d] = e
	n := len(x.pending)
	x.mu.Unlock()
	if n >= flushEntries {
		select {
		case x.full <- struct{}{}:
		default:
		}
	}
}

// drop forgets a chunk if it is at e.
func (x *index) drop(d namespace.Digest, e extent) {
	if cur, ok := x.get(d); ok && cur == e {
		x.put(d, extent{})
	}
}

// cover notes that a segment is indexed up to end; once the entries put before are committed.
func (x *index) cover(seg, end uint32) {
	x.mu.Lock()
	x.ends[seg] = end
	x.mu.Unlock()
}

// covered returns up to where a segment is indexed.
func (x *index) covered(seg uint32) (end uint32) {
	_ = x.use(func(db *bbolt.DB) error {
		return db.View(func(tx *bbolt.Tx) error {
			if v := tx.Bucket(bucketCovered).Get(le.AppendUint32(nil, seg)); len(v) == 4 {
				end = le.Uint32(v)
			}
			return nil
		})
	})
	return end
}

// leads reports whether the index covers what segments do not have: after a crash that lost what was
// not synced, or if somebody removed them. Its entries would pass for content that is here.
func (x *index) leads(ss *segments) (leads bool) {
	_ = x.use(func(db *bbolt.DB) error {
		return db.View(func(tx *bbolt.Tx) error {
			return tx.Bucket(bucketCovered).ForEach(func(k, v []byte) error {
				if len(k) != 4 || len(v) != 4 {
					leads = true
				} else if s := ss.get(le.Uint32(k)); s == nil || le.Uint32(v) > s.size.Load() {
					leads = true
				}
				return nil
			})
		})
	})
	return leads
}

// waiting returns how many entries are not committed.
func (x *index) waiting() int {
	x.mu.Lock()
	defer x.mu.Unlock()
	return len(x.pending)
}

// flush commits what is pending, a bounded number of entries at a time. Kinds: Limit, Corrupt,
// Internal.
func (x *index) flush() error {
	x.flushing.Lock()
	defer x.flushing.Unlock()
	x.mu.Lock()
	if len(x.pending) == 0 && len(x.ends) == 0 {
		x.mu.Unlock()
		return nil
	}
	chunks, ends := x.pending, x.ends
	x.committed, x.pending, x.ends = chunks, map[namespace.Digest]extent{}, map[uint32]uint32{}
	x.mu.Unlock()
	err := x.commit(chunks, ends)
	x.measure()
	x.mu.Lock()
	defer x.mu.Unlock()
	x.committed = nil
	if err == nil {
		return nil
	}
	// Kept for the next try; what was put meanwhile is newer.
	for d, e := range chunks {
		if _, newer := x.pending[d]; !newer {
			x.pending[d] = e
		}
	}
	for s, end := range ends {
		if _, newer := x.ends[s]; !newer {
			x.ends[s] = end
		}
	}
	return err
}

// sync makes what was committed survive a crash.
func (x *index) sync() error {
	if err := x.use(func(db *bbolt.DB) error { return db.Sync() }); err != nil {
		return disk.Error("sync", x.path, err)
	}
	return nil
}

// commit writes entries in order, which keeps pages together, and then how far they cover segments.
func (x *index) commit(chunks map[namespace.Digest]extent, ends map[uint32]uint32) error {
	order := slices.SortedFunc(maps.Keys(chunks), func(a, b namespace.Digest) int { return bytes.Compare(a[:], b[:]) })
	for part := range slices.Chunk(order, flushEntries) {
		if err := x.update(func(tx *bbolt.Tx) error { return writeChunks(tx.Bucket(bucketChunks), part, chunks) }); err != nil {
			return err
		}
	}
	return x.update(func(tx *bbolt.Tx) error { return writeEnds(tx.Bucket(bucketCovered), ends) })
}

func (x *index) update(f func(tx *bbolt.Tx) error) error {
	err := x.use(func(db *bbolt.DB) error { return db.Update(f) })
	if err != nil && !namespace.IsKind(err, namespace.Corrupt) {
		err = disk.Error("commit", x.path, err)
	}
	return err
}

func writeChunks(b *bbolt.Bucket, part []namespace.Digest, chunks map[namespace.Digest]extent) error {
	for _, d := range part {
		var err error
		if e := chunks[d]; e.seg == 0 {
			err = b.Delete(d[:])
		} else {
			err = b.Put(d[:], encodeExtent(d, e))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func writeEnds(b *bbolt.Bucket, ends map[uint32]uint32) error {
	for s, end := range ends {
		key := le.AppendUint32(nil, s)
		var err error
		if end == 0 {
			err = b.Delete(key)
		} else {
			err = b.Put(key, le.AppendUint32(nil, end))
		}
		if err != nil {
			return err
		}
	}
	return nil
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
				if _, ok := c.index.get(e.digest); !ok && c.verifyRecord(s.id, rec) == nil {
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
	err := c.index.replace()
	if err == nil {
		err = c.catchUp()
	}
	return err
}
