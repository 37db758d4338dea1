package cache

import (
	"context"
	"fmt"
	"io"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/catalog"
	"coppice.dev/coppice/namespace/object"
)

// Reader is the cache as seen with one origin behind it: what is not here is fetched from there.
// All Readers of a cache share what is in it. Safe for concurrent use.
type Reader struct {
	c    *Cache
	from namespace.Fetcher
	run  runs
}

// Reader returns a view of the cache that fills misses from an origin.
func (c *Cache) Reader(from namespace.Fetcher) *Reader { return &Reader{c: c, from: from} }

// Catalog implements catalog.Loader. The catalog stays valid until the cache is closed.
// Kinds: NotExist, Corrupt, Limit, Unavailable, Denied, Canceled.
func (r *Reader) Catalog(ctx context.Context, d namespace.Digest) (*catalog.Catalog, error) {
	cat, err := r.c.objects.open(d)
	if err == nil {
		return cat, nil
	}
	if namespace.IsKind(err, namespace.Corrupt) {
		r.c.count.corrupt.Add(1)
	}
	err = r.c.flights.once(ctx, r.c.o.Timeout, flightKey{digest: d}, func(ctx context.Context) error {
		b, err := r.fetchBlob(ctx, d, namespace.CatalogBytesMax)
		if err != nil {
			return err
		}
		r.c.makeRoom(int64(len(b)))
		return r.c.objects.write(d, "", b)
	})
	if err != nil {
		return nil, err
	}
	return r.c.objects.open(d)
}

// Blob returns a small object of at most limit bytes, verified. Kinds: those of Catalog.
func (r *Reader) Blob(ctx context.Context, d namespace.Digest, limit int64) ([]byte, error) {
	if b, err := r.c.objects.read(d); err == nil {
		return b, nil
	}
	b, err := r.fetchBlob(ctx, d, limit)
	if err != nil {
		return nil, err
	}
	if err := r.c.objects.write(d, "", b); err != nil {
		r.c.degrade(err)
	}
	return b, nil
}

// fetchBlob fetches and verifies an object.
func (r *Reader) fetchBlob(ctx context.Context, d namespace.Digest, limit int64) ([]byte, error) {
	b, err := r.fetchAll(ctx, namespace.Key{Class: namespace.Blob, Digest: d}, limit)
	if err != nil {
		return nil, err
	}
	plain, err := object.DecodeBlob(b, d, limit)
	if err != nil {
		r.c.count.corrupt.Add(1)
		return nil, namespace.E(namespace.Corrupt, "fetch", "blob "+d.String(), err)
	}
	return plain, nil
}

// fetchAll fetches the stored bytes of an object whose plaintext has at most limit bytes.
func (r *Reader) fetchAll(ctx context.Context, k namespace.Key, limit int64) ([]byte, error) {
	r.c.count.requests.Add(1)
	body, err := r.from.Get(ctx, k, 0, -1)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	// What cannot be compressed is stored as it is, behind a header.
	bound := limit + limit/64 + 1024
	b, err := io.ReadAll(io.LimitReader(body, bound+1))
	r.c.count.fetched.Add(uint64(len(b)))
	if err != nil {
		return nil, namespace.E(namespace.KindOf(err), "fetch", k.String(), err)
	}
	if int64(len(b)) > bound {
		return nil, namespace.E(namespace.Limit, "fetch", k.String(), fmt.Errorf("more than %d bytes", bound))
	}
	return b, nil
}

// locator returns the locator of a catalog, from here or from the origin. fresh forces the latter.
func (r *Reader) locator(ctx context.Context, cat namespace.Digest, fresh bool) (*object.Locator, error) {
	if fresh {
		r.c.objects.forgetLocator(cat)
	} else if l := r.c.objects.locator(cat); l != nil {
		return l, nil
	}
	key := namespace.Key{Class: namespace.Locator, Digest: cat}
	b, err := r.fetchAll(ctx, key, namespace.LocatorBytesMax)
	if err != nil {
		return nil, err
	}
	l, err := object.OpenLocator(b)
	if err != nil {
		return nil, namespace.E(namespace.Corrupt, "fetch", key.String(), err)
	}
	r.c.objects.keep(cat, l)
	if err := r.c.objects.write(cat, ".loc", b); err != nil {
		r.c.degrade(err)
	}
	return l, nil
}

// readAttempts bounds how often a read starts anew: after bit rot, after an eviction under its feet,
// with a fresh locator.
const readAttempts = 4

// ReadChunk copies bytes [off, off+len(p)) of a chunk, fewer at its end, into p. It may wait for the
// network, for Options.Timeout at most. Kinds: Unavailable, Corrupt, NotExist, Denied, Limit,
// Canceled.
func (r *Reader) ReadChunk(ctx context.Context, ref namespace.ChunkRef, p []byte, off int64) (int, error) {
	if off < 0 || off > int64(ref.Size) {
		return 0, namespace.E(namespace.Invalid, "read", "chunk "+ref.Digest.String(), fmt.Errorf("offset %d of %d bytes", off, ref.Size))
	}
	var err error
	for range readAttempts {
		e, ok := r.c.index.get(ref.Digest)
		if ok && e.size == ref.Size {
			var n int
			if n, err = r.c.copyLocal(ref.Digest, e, p, off); err == nil {
				return n, nil
			}
			continue // it was dropped: look again
		}
		var got []byte
		if got, err = r.fetchChunk(ctx, ref); err != nil {
			return 0, err
		}
		if got != nil { // the disk is full: straight from the network
			return copy(p, got[off:]), nil
		}
	}
	return 0, namespace.E(namespace.KindOf(err), "read", "chunk "+ref.Digest.String(), err)
}

// copyLocal copies part of a chunk that is here. If it is damaged, or was evicted, its entry is
// dropped, and that is the error.
func (c *Cache) copyLocal(d namespace.Digest, e extent, p []byte, off int64) (int, error) {
	key := frameKey{e.seg, e.at}
	f, first, err := c.frames.get(key, e.plain, true, func(buf []byte) ([]byte, error) { return c.load(e, buf) })
	if err != nil {
		if namespace.IsKind(err, namespace.Corrupt) {
			c.count.corrupt.Add(1)
			c.log.Warn("damaged in the cache, fetched again", "chunk", d.String(), "error", err)
		}
		c.index.drop(d, e)
		return 0, err
	}
	defer c.frames.release(f)
	if first {
		c.count.frames.Add(1)
		c.noteDemand(e)
	}
	if uint64(e.off)+uint64(e.size) > uint64(len(f.buf)) {
		c.index.drop(d, e)
		return 0, namespace.E(namespace.Corrupt, "read", "chunk "+d.String(), fmt.Errorf("outside its frame"))
	}
	c.count.hits.Add(1)
	return copy(p, f.buf[e.off:][:e.size][off:]), nil
}

// load reads and decodes a frame.
func (c *Cache) load(e extent, buf []byte) ([]byte, error) {
	scratch := c.scratch.get()
	defer c.scratch.put(scratch)
	stored, err := c.segments.read(e, *scratch)
	if err != nil {
		return nil, err
	}
	*scratch = stored
	return object.DecodeFrame(buf, stored, e.codec, int(e.plain))
}
