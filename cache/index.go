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

// The index's buckets: beginning of a chunk's digest → extent, and segment → coverage. An index with
// others was made by another version: it is made anew.
var (
	bucketChunks  = []byte("chunks/2")
	bucketCovered = []byte("covered/2")
)

const (
	flushEvery = time.Second
	// flushEntries bounds what a commit dirties, hence its memory and the free pages that stay in the
	// file: keys are random, a page each.
	flushEntries = 1024
	// pendingMax is where whoever fetches waits for the index, so that memory stays bounded.
	pendingMax = 16 * flushEntries
)

// indexKey is the beginning of a digest. Of two chunks that share one, of which there are none but on
// purpose, one is always missing: the value checks the whole digest.
type indexKey [12]byte

// extentValue is an extent as it is in the index, little endian; all zero: none. A page of the index
// holds as many more chunks as this is smaller.
//
//	0  u24 segment    3  u32 at    7  u24 stored    10 u24 plain, the codec in its two highest bits
//	13 u24 off        16 u24 size  19 u64 sum       27 48 bits of the xxhash of the digest and bytes 0-26
type extentValue [33]byte

const (
	extentCheck = 27
	codecShift  = 22 // plain ≤ FrameBytesMax < 1<<22
)

func put24(b []byte, v uint32)           { b[0], b[1], b[2] = byte(v), byte(v>>8), byte(v>>16) }
func get24(b []byte) uint32              { return uint32(b[0]) | uint32(b[1])<<8 | uint32(b[2])<<16 }
func keyOf(d *namespace.Digest) indexKey { return indexKey(d[:len(indexKey{})]) }

// encodeExtent returns the value for a digest. It checks itself and the digest, so that a flipped bit
// cannot lead to other content (C2).
func encodeExtent(d *namespace.Digest, e extent) (v extentValue) {
	put24(v[0:], e.seg)
	le.PutUint32(v[3:], e.at)
	put24(v[7:], e.stored)
	put24(v[10:], e.plain|uint32(e.codec)<<codecShift)
	put24(v[13:], e.off)
	put24(v[16:], e.size)
	le.PutUint64(v[19:], e.sum)
	sum := extentSum(d, v[:extentCheck])
	copy(v[extentCheck:], sum[:])
	return v
}

func extentSum(d *namespace.Digest, b []byte) (sum [8]byte) {
	var buf [namespace.DigestSize + extentCheck]byte
	n := copy(buf[:], d[:])
	n += copy(buf[n:], b)
	le.PutUint64(sum[:], xxhash.Sum64(buf[:n]))
	return sum
}

func decodeExtent(d *namespace.Digest, v []byte) (extent, bool) {
	if len(v) != len(extentValue{}) {
		return extent{}, false
	}
	if sum := extentSum(d, v[:extentCheck]); !bytes.Equal(v[extentCheck:], sum[:len(v)-extentCheck]) {
		return extent{}, false
	}
	plain := get24(v[10:])
	return extent{seg: get24(v), at: le.Uint32(v[3:]), stored: get24(v[7:]), plain: plain & (1<<codecShift - 1),
		off: get24(v[13:]), size: get24(v[16:]), codec: object.Codec(plain >> codecShift), sum: le.Uint64(v[19:])}, true
}

// index finds chunks. New entries are kept in memory and committed together. Safe for concurrent
// use.
type index struct {
	path string
	log  *slog.Logger
	ops  disk.Ops
	full chan struct{} // asks for a flush
	size atomic.Int64  // of the file, bytes, after the last commit
	bad  atomic.Bool   // damaged: bbolt met a page that makes no sense

	flushing sync.Mutex // one flush at a time

	dbMu sync.RWMutex // held for writing while db is replaced
	db   *bbolt.DB
	file *os.File // db's

	mu        sync.Mutex
	pending   map[indexKey]extentValue // not yet committed; zero: deleted
	committed map[indexKey]extentValue // being committed
	ends      map[uint32]uint32        // how far segments are covered, not yet committed; zero: deleted
}

// openIndex opens the index, or makes a new one if it cannot be read.
func openIndex(path string, ops disk.Ops, log *slog.Logger) (*index, error) {
	x := &index{path: path, ops: ops, log: log, full: make(chan struct{}, 1), pending: map[indexKey]extentValue{}, ends: map[uint32]uint32{}}
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
	if err := x.ops.Remove(x.path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return disk.Error("remove", x.path, err)
	}
	x.bad.Store(false)
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
// crash of the machine mixes up is found, at the latest when it is read, and made anew. Its list of
// free pages is kept in it: finding them by a walk of all pages, bbolt would meet damage where nothing
// can recover from its panic.
func (x *index) open() error {
	return guard(func() error {
		open := func(path string, _ int, _ os.FileMode) (f *os.File, err error) {
			f, err = x.ops.Open(path)
			x.file = f
			return f, err
		}
		db, err := bbolt.Open(x.path, 0o600, &bbolt.Options{Timeout: time.Second, NoSync: true, FreelistType: bbolt.FreelistMapType, OpenFile: open})
		if err != nil {
			return err
		}
		err = db.Update(makeBuckets)
		if err != nil {
			db.Close()
			return err
		}
		x.db = db
		if x.measure(); x.bad.Load() {
			x.db = nil
			db.Close()
			return errors.New("it is larger than it knows")
		}
		return nil
	})
}

func makeBuckets(tx *bbolt.Tx) error {
	for _, name := range [][]byte{bucketChunks, bucketCovered} {
		if _, err := tx.CreateBucketIfNotExists(name); err != nil {
			return err
		}
	}
	return tx.ForEach(func(name []byte, _ *bbolt.Bucket) error {
		if !bytes.Equal(name, bucketChunks) && !bytes.Equal(name, bucketCovered) {
			return fmt.Errorf("it has a bucket %q: another version made it", name)
		}
		return nil
	})
}

// slack is what the file of an index may have beyond the pages that it knows of: it grows ahead.
const slack = 64 << 20

// measure notes the size of the file. One that is far larger than the database knows has a damaged list
// of free pages, by which pages were written anywhere: it is to be made anew.
func (x *index) measure() {
	info, err := os.Stat(x.path)
	if err != nil {
		return
	}
	x.size.Store(info.Size())
	known := info.Size()
	_ = guard(func() error {
		return x.db.View(func(tx *bbolt.Tx) error { known = tx.Size(); return nil })
	})
	if info.Size() > 2*known+slack {
		x.bad.Store(true)
	}
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

// lookup is one get: all that it needs in one piece of memory.
type lookup struct {
	d   namespace.Digest
	key indexKey
	e   extent
	ok  bool
}

func (l *lookup) in(tx *bbolt.Tx) error {
	l.e, l.ok = decodeExtent(&l.d, tx.Bucket(bucketChunks).Get(l.key[:]))
	return nil
}

// get finds a chunk. A damaged entry counts as none.
func (x *index) get(d namespace.Digest) (e extent, ok bool) {
	key := keyOf(&d)
	x.mu.Lock()
	v, found := x.pending[key]
	if !found {
		v, found = x.committed[key]
	}
	x.mu.Unlock()
	if found {
		return decodeExtent(&d, v[:])
	}
	l := &lookup{d: d, key: key}
	err := x.use(func(db *bbolt.DB) error { return db.View(l.in) })
	return l.e, l.ok && err == nil
}

// put notes where a chunk is.
func (x *index) put(d namespace.Digest, e extent) {
	x.mu.Lock()
	x.pending[keyOf(&d)] = encodeExtent(&d, e)
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
	if cur, ok := x.get(d); !ok || cur != e {
		return
	}
	key, v := keyOf(&d), encodeExtent(&d, e)
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, newer := range []map[indexKey]extentValue{x.pending, x.committed} {
		if cur, ok := newer[key]; ok && cur != v { // put since
			return
		}
	}
	x.pending[key] = extentValue{}
}

// cover notes that a segment is indexed up to end, once the entries put before are committed; 0 forgets
// the segment.
func (x *index) cover(seg, end uint32) {
	x.mu.Lock()
	x.ends[seg] = end
	x.mu.Unlock()
}

// covered returns up to where segments are indexed, as far as is committed.
func (x *index) covered() map[uint32]uint32 {
	all := map[uint32]uint32{}
	_ = x.use(func(db *bbolt.DB) error {
		return db.View(func(tx *bbolt.Tx) error {
			return tx.Bucket(bucketCovered).ForEach(func(k, v []byte) error {
				if len(k) == 4 && len(v) == 4 {
					all[le.Uint32(k)] = le.Uint32(v)
				}
				return nil
			})
		})
	})
	return all
}

// purge deletes the entries whose place gone says is lost, without looking at their checks. What is put
// meanwhile stays. Memory is bounded. It ends early when closing is closed.
func (x *index) purge(closing <-chan struct{}, gone func(seg, at uint32) bool) error {
	for from := []byte{}; from != nil; {
		var err error
		if from, err = x.purgeFrom(from, gone); err != nil {
			return err
		}
		select {
		case <-closing:
			return nil
		default:
		}
	}
	return nil
}

// purgeFrom is one step of purge. No commit may come between looking and deleting: it could bring a newer
// entry of the same key.
func (x *index) purgeFrom(from []byte, gone func(seg, at uint32) bool) (next []byte, err error) {
	x.flushing.Lock()
	defer x.flushing.Unlock()
	var found []indexKey
	err = x.use(func(db *bbolt.DB) error {
		return db.View(func(tx *bbolt.Tx) error {
			var err error
			found, next, err = lost(tx.Bucket(bucketChunks).Cursor(), from, gone)
			return err
		})
	})
	if err == nil && len(found) > 0 {
		none := map[indexKey]extentValue{}
		for part := range slices.Chunk(found, flushEntries) {
			if err = x.update(func(tx *bbolt.Tx) error { return writeChunks(tx.Bucket(bucketChunks), part, none) }); err != nil {
				break
			}
		}
		_ = x.use(func(*bbolt.DB) error { x.measure(); return nil })
	}
	return next, err
}

// purgeStep bounds the entries looked at in one transaction, which keeps pages from being used again.
const purgeStep = 64 << 10

// lost returns the keys that purge deletes among purgeStep entries from a key on, and where to go on;
// nil: that was all.
func lost(c *bbolt.Cursor, from []byte, gone func(seg, at uint32) bool) (found []indexKey, next []byte, err error) {
	k, v := c.Seek(from)
	var last []byte
	for n := 0; k != nil; k, v = c.Next() {
		if last != nil && bytes.Compare(last, k) >= 0 {
			return nil, nil, namespace.E(namespace.Corrupt, "check", "index", errors.New("entries out of order"))
		}
		if n++; n > purgeStep {
			return found, bytes.Clone(k), nil
		}
		last = k
		if len(k) == len(indexKey{}) && (len(v) != len(extentValue{}) || gone(get24(v), le.Uint32(v[3:]))) {
			found = append(found, indexKey(k))
		}
	}
	return found, nil, nil
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
	x.committed, x.pending, x.ends = chunks, map[indexKey]extentValue{}, map[uint32]uint32{}
	x.mu.Unlock()
	err := x.commit(chunks, ends)
	_ = x.use(func(*bbolt.DB) error { x.measure(); return nil })
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
	if err := x.use(func(*bbolt.DB) error { return x.ops.Sync(x.file) }); err != nil {
		return disk.Error("sync", x.path, err)
	}
	return nil
}

// commit writes entries in order, which keeps pages together, and then how far they cover segments.
func (x *index) commit(chunks map[indexKey]extentValue, ends map[uint32]uint32) error {
	order := slices.SortedFunc(maps.Keys(chunks), func(a, b indexKey) int { return bytes.Compare(a[:], b[:]) })
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

func writeChunks(b *bbolt.Bucket, part []indexKey, chunks map[indexKey]extentValue) error {
	for _, key := range part {
		var err error
		if v := chunks[key]; v == (extentValue{}) {
			err = b.Delete(key[:])
		} else {
			err = b.Put(key[:], v[:])
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func writeEnds(b *bbolt.Bucket, ends map[uint32]uint32) error {
	for seg, end := range ends {
		key := le.AppendUint32(nil, seg)
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
