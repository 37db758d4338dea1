package cache

import (
	"context"

	"go.etcd.io/bbolt"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/catalog"
)

// indexEntryBytes is about what a chunk takes in the index's file: an entry and its share of half-full
// pages.
const indexEntryBytes = 110

// gap is what is missing of a set.
type gap struct {
	chunks, bytes int64                      // equal ones count each
	in            map[namespace.Digest]int64 // by catalog: chunks
}

// lack is what is missing of the chosen chunks of a catalog.
type lack struct {
	chunks, bytes int64
	bits          []uint64
}

func (l *lack) has(i int) bool { return l.bits[i/64]>>(i%64)&1 != 0 }

// missing finds out which of the chosen chunks are not here, in one transaction of the index. What it
// does not find there is looked up once more: it may have been committed since the transaction began.
func (c *Cache) missing(want *chosen) *lack {
	here := make([]uint64, len(want.bits))
	_ = c.index.together(func(get func(namespace.Digest) (extent, bool)) { // if it fails, each is looked up below
		want.each(func(i int, ch catalog.Chunk) {
			if e, ok := get(ch.Digest); ok && c.segments.holds(e) {
				here[i/64] |= 1 << (i % 64)
			}
		})
	})
	l := &lack{bits: make([]uint64, len(want.bits))}
	want.each(func(i int, ch catalog.Chunk) {
		if here[i/64]>>(i%64)&1 != 0 || c.holds(ch.Digest) {
			return
		}
		l.chunks++
		l.bytes += int64(want.cat.ChunkLen(i))
		l.bits[i/64] |= 1 << (i % 64)
	})
	return l
}

// gapOf finds out what is missing of a set. Kinds: Canceled.
func (c *Cache) gapOf(ctx context.Context, set *Set) (gap, error) {
	g := gap{in: map[namespace.Digest]int64{}}
	for _, d := range set.catalogs {
		if ctx.Err() != nil {
			return g, namespace.E(namespace.Canceled, "check", set.Root.String(), ctx.Err())
		}
		if want := set.chosen[d]; want != nil {
			if l := c.missing(want); l.chunks > 0 {
				g.in[d] = l.chunks
				g.chunks += l.chunks
				g.bytes += l.bytes
			}
		}
	}
	return g, nil
}

// weighIn returns how many bytes on disk the missing chunks of a source take, in the frames they are in.
func (c *Cache) weighIn(src source, want *chosen) (n int64) {
	l := c.missing(want)
	for _, w := range cover([]*job{{src, l}}, 1, 0) {
		n += int64(w.frames[0].FrameLen) + recordHeader
	}
	return n + l.chunks*(indexEntryBytes+tableEntry)
}

// together calls fn with a get that is quicker than index.get for many digests in turn, since they share a
// transaction. It fails, when fn may have run in part, if the index is damaged.
func (x *index) together(fn func(get func(namespace.Digest) (extent, bool))) error {
	return x.use(func(db *bbolt.DB) error {
		return db.View(func(tx *bbolt.Tx) error {
			b := tx.Bucket(bucketChunks)
			fn(func(d namespace.Digest) (extent, bool) {
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
				return decodeExtent(&d, b.Get(key[:]))
			})
			return nil
		})
	})
}
