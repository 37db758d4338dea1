package cache

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
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
	extentBytes  = 44
	flushEvery   = time.Second
	flushEntries = 8192 // bounds what a commit dirties: random keys, a page each
)

// encodeExtent returns the value for a digest. Its last 8 bytes check key and value, so that a
// flipped bit cannot lead to other content (C2).
func encodeExtent(d namespace.Digest, e extent) []byte {
	b := make([]byte, 0, extentBytes)
	for _, v := range []uint32{e.seg, e.at, e.stored, e.plain, e.off, e.size, uint32(e.codec)} {
		b = le.AppendUint32(b, v)
	}
	b = le.AppendUint64(b, e.sum)
	return le.AppendUint64(b, extentSum(d, b))
}

func extentSum(d namespace.Digest, b []byte) uint64 {
	h := xxhash.New()
	_, _ = h.Write(d[:])
	_, _ = h.Write(b)
	return h.Sum64()
}

func decodeExtent(d namespace.Digest, b []byte) (extent, bool) {
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
	db   *bbolt.DB
	full chan struct{} // asks for a flush

	mu        sync.Mutex
	pending   map[namespace.Digest]extent // not yet committed; size 0 and seg 0: deleted
	committed map[namespace.Digest]extent // being committed
	ends      map[uint32]uint32           // segments' covered ends, not yet committed
}

// openIndex opens the index, or makes a new one if it cannot be read.
func openIndex(path string, log *slog.Logger) (*index, error) {
	x := &index{path: path, log: log, full: make(chan struct{}, 1), pending: map[namespace.Digest]extent{}, ends: map[uint32]uint32{}}
	if x.open() == nil {
		return x, nil
	}
	log.Warn("the cache's index cannot be read and is made anew", "path", path)
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, disk.Error("remove", path, err)
	}
	if err := x.open(); err != nil {
		return nil, disk.Error("open", path, err)
	}
	return x, nil
}

// guard turns a panic of bbolt, which is what it does on damaged pages, into an error.
func guard(f func() error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = namespace.E(namespace.Corrupt, "use", "index", fmt.Errorf("%v", r))
		}
	}()
	return f()
}

func (x *index) open() error {
	return guard(func() error {
		db, err := bbolt.Open(x.path, 0o600, &bbolt.Options{Timeout: time.Second, NoFreelistSync: true, FreelistType: bbolt.FreelistMapType})
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
		return nil
	})
}

func (x *index) close() { _ = guard(x.db.Close) }

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
	err := guard(func() error {
		return x.db.View(func(tx *bbolt.Tx) error {
			e, ok = decodeExtent(d, tx.Bucket(bucketChunks).Get(d[:]))
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
	_ = guard(func() error {
		return x.db.View(func(tx *bbolt.Tx) error {
			if v := tx.Bucket(bucketCovered).Get(le.AppendUint32(nil, seg)); len(v) == 4 {
				end = le.Uint32(v)
			}
			return nil
		})
	})
	return end
}

// flush commits what is pending. Kinds: Limit, Corrupt, Internal.
func (x *index) flush() error {
	x.mu.Lock()
	if len(x.pending) == 0 && len(x.ends) == 0 || x.committed != nil {
		x.mu.Unlock()
		return nil
	}
	chunks, ends := x.pending, x.ends
	x.committed, x.pending, x.ends = chunks, map[namespace.Digest]extent{}, map[uint32]uint32{}
	x.mu.Unlock()
	err := guard(func() error {
		return x.db.Update(func(tx *bbolt.Tx) error { return write(tx, chunks, ends) })
	})
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
	return disk.Error("commit", x.path, err)
}

func write(tx *bbolt.Tx, chunks map[namespace.Digest]extent, ends map[uint32]uint32) error {
	b := tx.Bucket(bucketChunks)
	for d, e := range chunks {
		var err error
		if e.seg == 0 {
			err = b.Delete(d[:])
		} else {
			err = b.Put(d[:], encodeExtent(d, e))
		}
		if err != nil {
			return err
		}
	}
	b = tx.Bucket(bucketCovered)
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

// flushLoop returns a function that commits from time to time until closing is closed.
func (x *index) flushLoop(closing <-chan struct{}) func() {
	return func() {
		tick := time.NewTicker(flushEvery)
		defer tick.Stop()
		for {
			select {
			case <-closing:
				return
			case <-tick.C:
			case <-x.full:
			}
			if err := x.flush(); err != nil {
				x.log.Error("cache index not written; tried again later", "error", err)
			}
		}
	}
}
