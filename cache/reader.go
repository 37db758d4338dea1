package cache

import (
	"context"
	"errors"
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
	link link

	watch Watch // nil: requests tell

	expected expected // of a prefetch
	urgent   urgency  // reads that wait
	pace     pace
	meter    meter
}

// Reader returns a view of the cache that fills misses from an origin.
func (c *Cache) Reader(from namespace.Fetcher) *Reader { return &Reader{c: c, from: from} }

// Catalog implements catalog.Loader. The catalog stays valid until the cache is closed. It may wait
// for the network, for Options.Timeout at most.
// Kinds: NotExist, Corrupt, Limit, Unavailable, Denied, Canceled.
func (r *Reader) Catalog(ctx context.Context, d namespace.Digest) (*catalog.Catalog, error) {
	cat, err := r.c.objects.open(d)
	if err == nil {
		return cat, nil
	}
	ctx, cancel, err := r.bounded(ctx, d)
	if err == nil {
		defer cancel()
		r.c.waits.note(catalog.Access{Catalog: d, Index: catalog.AccessCatalog})
		defer r.urgent.begin()()
		cat, err = r.catalog(ctx, d)
	}
	if err != nil {
		r.missed(ctx, Miss{Object: d}, err)
	}
	return cat, err
}

// catalog is Catalog without a bound of its own.
func (r *Reader) catalog(ctx context.Context, d namespace.Digest) (*catalog.Catalog, error) {
	cat, err := r.c.objects.open(d)
	if err == nil {
		return cat, nil
	}
	if namespace.IsKind(err, namespace.Corrupt) {
		r.c.count.corrupt.Add(1)
	}
	err = r.c.flights.once(ctx, flightKey{d, offCatalog}, func(ctx context.Context) error {
		b := r.c.lowerObject(d, namespace.CatalogBytesMax)
		if b == nil {
			var err error
			if b, err = r.fetchBlob(ctx, d, namespace.CatalogBytesMax); err != nil {
				return err
			}
		}
		if r.keepObject(d, "", b) {
			return nil
		}
		return r.c.objects.adopt(d, b)
	})
	if err != nil {
		return nil, r.explain(ctx, err, d)
	}
	return r.c.objects.open(d)
}

// keepObject writes an object to disk and reports whether it could.
func (r *Reader) keepObject(d namespace.Digest, suffix string, b []byte) bool {
	err := r.c.reserve(int64(len(b)))
	if err == nil {
		defer r.c.unreserve(int64(len(b)))
		err = r.c.objects.write(d, suffix, b)
	}
	if err != nil {
		r.c.degrade(err)
		return false
	}
	if suffix == "" {
		r.c.guard.stale.Store(true) // a catalog says what is held
	}
	return true
}

// Blob returns a small object of at most limit bytes, verified. It may wait for the network, for
// Options.Timeout at most. Kinds: those of Catalog.
func (r *Reader) Blob(ctx context.Context, d namespace.Digest, limit int64) ([]byte, error) {
	b, err := r.c.objects.read(d, limit)
	if err == nil {
		return b, nil
	}
	if namespace.IsKind(err, namespace.Corrupt) {
		r.c.count.corrupt.Add(1)
	}
	if b = r.c.lowerObject(d, limit); b == nil {
		ctx, cancel, err := r.bounded(ctx, d)
		if err == nil {
			defer cancel()
			b, err = r.fetchBlob(ctx, d, limit)
		}
		if err != nil {
			err = r.explain(ctx, err, d)
			r.missed(ctx, Miss{Object: d}, err)
			return nil, err
		}
	}
	r.keepObject(d, "", b)
	return b, nil
}

// fetchBlob fetches and verifies an object. Where somebody watches there may be several sources: then
// another one is asked for what the first had wrong.
func (r *Reader) fetchBlob(ctx context.Context, d namespace.Digest, limit int64) ([]byte, error) {
	b, err := r.tryBlob(ctx, d, limit)
	if namespace.IsKind(err, namespace.Corrupt) && r.watch != nil {
		if again, aerr := r.tryBlob(ctx, d, limit); aerr == nil {
			return again, nil
		}
	}
	return b, err
}

// tryBlob is fetchBlob from one source, which hears of it if its bytes are wrong.
func (r *Reader) tryBlob(ctx context.Context, d namespace.Digest, limit int64) ([]byte, error) {
	b, reject, err := r.fetchAll(ctx, namespace.Key{Class: namespace.Blob, Digest: d}, limit)
	if err != nil {
		return nil, err
	}
	plain, err := object.DecodeBlob(b, d, limit)
	if err != nil {
		r.c.count.corrupt.Add(1)
		err = namespace.E(namespace.KindOf(err), "fetch", "blob "+d.String(), err)
		reject(err)
		return nil, err
	}
	return plain, nil
}

// get asks the origin, unless it is left alone for a moment.
func (r *Reader) get(ctx context.Context, k namespace.Key, off, n int64) (io.ReadCloser, error) {
	if err := r.asks(k.String()); err != nil {
		return nil, err
	}
	r.c.count.requests.Add(1)
	r.meter.begin()
	body, err := r.from.Get(ctx, k, off, n)
	r.link.note(err)
	if err != nil {
		r.meter.end()
		return nil, err
	}
	return r.meter.watch(body), nil
}

// fetchAll fetches the stored bytes of an object whose plaintext has at most limit bytes. reject tells
// their source that they are wrong.
func (r *Reader) fetchAll(ctx context.Context, k namespace.Key, limit int64) (b []byte, reject func(error), err error) {
	body, err := r.get(ctx, k, 0, -1)
	if err != nil {
		return nil, nil, err
	}
	defer body.Close()
	// What cannot be compressed is stored as it is, behind a header.
	bound := limit + limit/64 + 1024
	b, err = io.ReadAll(io.LimitReader(body, bound+1))
	r.c.count.fetched.Add(uint64(len(b)))
	if err != nil {
		r.link.note(err)
		return nil, nil, namespace.E(fetchKind(err), "fetch", k.String(), err)
	}
	if int64(len(b)) > bound {
		return nil, nil, namespace.E(namespace.Limit, "fetch", k.String(), fmt.Errorf("more than %d bytes", bound))
	}
	return b, func(err error) { namespace.Reject(body, err) }, nil
}

// locator returns the locator of a catalog, from here or from the origin; one that is old was found
// to lead nowhere.
func (r *Reader) locator(ctx context.Context, cat namespace.Digest, old *object.Locator) (*object.Locator, error) {
	if l := r.c.objects.locator(cat); l != nil && l != old {
		return l, nil
	}
	err := r.c.flights.once(ctx, flightKey{cat, offLocator}, func(ctx context.Context) error {
		if l := r.c.objects.locator(cat); l != nil && l != old {
			return nil // by whoever was faster
		}
		if r.lowerLocator(cat, old) {
			return nil
		}
		key := namespace.Key{Class: namespace.Locator, Digest: cat}
		b, reject, err := r.fetchAll(ctx, key, namespace.LocatorBytesMax)
		if err != nil {
			return err
		}
		l, err := object.OpenLocator(b)
		if err != nil {
			r.c.count.corrupt.Add(1)
			reject(err)
			return namespace.E(namespace.KindOf(err), "fetch", key.String(), err)
		}
		r.c.objects.keep(cat, l)
		r.keepObject(cat, locatorSuffix, b)
		return nil
	})
	if err != nil {
		return nil, err
	}
	if l := r.c.objects.locator(cat); l != nil {
		return l, nil
	}
	return nil, namespace.E(namespace.Unavailable, "fetch", "locator "+cat.String(), errors.New("dropped as soon as it was here"))
}

// lowerLocator takes a locator from a lower cache, unless one was found to lead nowhere already.
func (r *Reader) lowerLocator(cat namespace.Digest, old *object.Locator) bool {
	if old != nil {
		return false
	}
	for _, l := range r.c.segments.lowers {
		b := l.object(cat, locatorSuffix, namespace.LocatorBytesMax)
		if loc, err := object.OpenLocator(b); b != nil && err == nil {
			r.c.objects.keep(cat, loc)
			r.keepObject(cat, locatorSuffix, b)
			return true
		}
	}
	return false
}

// readAttempts bounds how often a read starts anew: after bit rot, after an eviction under its feet,
// with a fresh locator.
const readAttempts = 4

// ReadChunk copies bytes [off, off+len(p)) of a chunk, fewer at its end, into p. It may wait for the
// network, for Options.Timeout at most. Kinds: Unavailable, Corrupt, NotExist, Denied, Limit,
// Canceled, and Invalid if ref is not a chunk of its catalog.
func (r *Reader) ReadChunk(ctx context.Context, ref namespace.ChunkRef, p []byte, off int64) (int, error) {
	if off < 0 || off > int64(ref.Size) {
		return 0, namespace.E(namespace.Invalid, "read", "chunk "+ref.Digest.String(), fmt.Errorf("offset %d of %d bytes", off, ref.Size))
	}
	if n, err := r.c.readLocal(ref, p, off); err == nil {
		return n, nil
	}
	r.c.count.misses.Add(1)
	n, err := r.readRemote(ctx, ref, p, off)
	if err != nil {
		r.missed(ctx, Miss{Object: ref.Digest, Catalog: ref.Catalog, Index: ref.Index, Size: ref.Size}, err)
	}
	return n, err
}

// readRemote is ReadChunk for what is not here.
func (r *Reader) readRemote(ctx context.Context, ref namespace.ChunkRef, p []byte, off int64) (int, error) {
	ctx, cancel, err := r.bounded(ctx, ref.Digest)
	if err != nil {
		return r.searched(ref, p, off, err)
	}
	defer cancel()
	if r.promote(ctx, ref.Digest) {
		if n, err := r.c.readLocal(ref, p, off); err == nil {
			return n, nil
		}
	}
	r.c.waits.note(catalog.Access{Catalog: ref.Catalog, Index: ref.Index})
	for range readAttempts {
		var got []byte
		if got, err = r.fetchChunk(ctx, ref); err != nil {
			err = r.explain(ctx, err, ref.Digest)
			return r.searched(ref, p, off, err)
		}
		if got != nil { // the disk is full: straight from the network
			return copy(p, got[off:]), nil
		}
		var n int
		if n, err = r.c.readLocal(ref, p, off); err == nil {
			return n, nil
		}
	}
	return 0, namespace.E(namespace.Unavailable, "read", "chunk "+ref.Digest.String(), fmt.Errorf("the cache loses what it fetches: %w", err))
}

// searched answers a read that failed from what the index had lost, if that can be found.
func (r *Reader) searched(ref namespace.ChunkRef, p []byte, off int64, err error) (int, error) {
	if namespace.IsKind(err, namespace.Unavailable) && r.c.recoverIndex() {
		if n, lerr := r.c.readLocal(ref, p, off); lerr == nil {
			return n, nil
		}
	}
	return 0, err
}

// holds reports whether a chunk is here, as far as can be told without reading it.
func (c *Cache) holds(d namespace.Digest) bool {
	e, ok := c.find(d)
	return ok && c.segments.holds(e)
}

// errMiss says that a chunk is not here. It does not leave this package.
var errMiss = errors.New("not in the cache")

// readLocal copies part of a chunk that is here. If it is damaged, or was evicted, its entry is
// dropped, and that is the error.
func (c *Cache) readLocal(ref namespace.ChunkRef, p []byte, off int64) (int, error) {
	e, ok := c.find(ref.Digest)
	if !ok || e.size != ref.Size {
		return 0, errMiss
	}
	key := frameKey{e.seg, e.at}
	f, first, err := c.frames.get(key, e.plain, true, func(buf []byte) ([]byte, error) { return c.load(e, buf) })
	if err != nil {
		if namespace.IsKind(err, namespace.Corrupt) {
			c.count.corrupt.Add(1)
			c.log.Warn("damaged in the cache, fetched again", "chunk", ref.Digest.String(), "error", err)
		}
		if now, ok := c.index.get(ref.Digest); ok && now != e { // carried over meanwhile
			return c.readLocal(ref, p, off)
		}
		c.index.drop(ref.Digest, e)
		c.refuseLower(e, err)
		return 0, err
	}
	defer c.frames.release(f)
	if err := c.fromLower(f, e, ref.Digest); err != nil {
		c.count.corrupt.Add(1)
		c.refuseLower(e, err)
		return 0, err
	}
	if first {
		c.count.frames.Add(1)
		c.noteDemand(e)
		c.triggers.fire(key)
	}
	if uint64(e.off)+uint64(e.size) > uint64(len(f.buf)) {
		c.index.drop(ref.Digest, e)
		return 0, namespace.E(namespace.Corrupt, "read", "chunk "+ref.Digest.String(), fmt.Errorf("outside its frame"))
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
