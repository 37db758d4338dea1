package builder

import (
	"context"
	"fmt"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/catalog"
	"coppice.dev/coppice/namespace/object"
)

// sealer stores catalogs and their locators.
type sealer struct {
	ctx   context.Context
	store namespace.Store
	known *known

	root           namespace.Digest
	entries, bytes uint64
	written        uint64
}

// seal splits the tree and stores its catalogs, children before parents.
func (s *sealer) seal(root *catalog.Node) error {
	d, err := catalog.Split(root, s.emit)
	if err != nil {
		return err
	}
	s.root = d
	return nil
}

// emit stores one catalog, its locator first: a catalog whose locator is missing could be
// mounted and not be read. The last call is for the root.
func (s *sealer) emit(b []byte, _ *catalog.Node) (namespace.Digest, error) {
	d := namespace.Sum(b)
	c, err := catalog.Open(b)
	if err != nil {
		return d, err
	}
	s.entries, s.bytes = c.Total(), c.Bytes()
	if err := s.locate(d, c); err != nil {
		return d, err
	}
	key := namespace.Key{Class: namespace.Blob, Digest: d}
	switch err := renew(s.ctx, s.store, key); {
	case err == nil:
		return d, nil
	case !namespace.IsKind(err, namespace.NotExist):
		return d, err
	}
	s.written++
	return d, s.store.Put(s.ctx, key, object.EncodeBlob(b))
}

// locate stores the locator of catalog c, unless one is there whose packs all exist, and stay.
func (s *sealer) locate(d namespace.Digest, c *catalog.Catalog) error {
	key := namespace.Key{Class: namespace.Locator, Digest: d}
	old, err := getAll(s.ctx, s.store, key, namespace.LocatorBytesMax)
	if err != nil && !namespace.IsKind(err, namespace.NotExist) && !namespace.IsKind(err, namespace.Limit) {
		return err
	}
	if err == nil {
		ok, err := s.usable(old, c)
		if err != nil {
			return err
		}
		if ok {
			if err := renew(s.ctx, s.store, key); !namespace.IsKind(err, namespace.NotExist) {
				return err
			}
		}
	}
	places := make([]object.Place, c.NumChunks())
	for i := range places {
		ch := c.Chunk(i)
		if ch.Hole() {
			continue
		}
		p, ok, err := s.known.place(s.ctx, ch.Digest)
		if err != nil {
			return err
		}
		if !ok { // it was when the chunk was read: that is longer ago than the grace period
			err := namespace.E(namespace.Unavailable, "locate chunk", ch.Digest.String(), fmt.Errorf("its pack was collected meanwhile"))
			return namespace.WithHint(err, "import again; `coppice origin gc --grace` must be longer than any import takes")
		}
		places[i] = p
	}
	return s.store.Put(s.ctx, key, object.EncodeLocator(places))
}

// usable reports whether a stored locator still leads to every chunk of c, and will.
func (s *sealer) usable(stored []byte, c *catalog.Catalog) (bool, error) {
	l, err := openLocatorOf(namespace.Key{Class: namespace.Locator}, stored, c)
	if err != nil {
		return false, nil // damaged: it is replaced
	}
	for _, d := range l.Packs() {
		if ok, err := s.known.renewed.has(s.ctx, d); err != nil || !ok {
			return false, err
		}
	}
	return true, nil
}
