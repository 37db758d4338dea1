package builder

import (
	"bytes"
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
	switch _, err := s.store.Stat(s.ctx, key); {
	case err == nil:
		return d, nil
	case !namespace.IsKind(err, namespace.NotExist):
		return d, err
	}
	s.written++
	return d, s.store.Put(s.ctx, key, object.EncodeBlob(b))
}

// locate stores the locator of catalog c, unless one is there whose packs all exist.
func (s *sealer) locate(d namespace.Digest, c *catalog.Catalog) error {
	key := namespace.Key{Class: namespace.Locator, Digest: d}
	old, err := getAll(s.ctx, s.store, key, namespace.LocatorBytesMax)
	if err != nil && !namespace.IsKind(err, namespace.NotExist) && !namespace.IsKind(err, namespace.Limit) {
		return err
	}
	if err == nil && s.usable(old, c) {
		return nil
	}
	places := make([]object.Place, c.NumChunks())
	for i := range places {
		ch := c.Chunk(i)
		if ch.Hole() {
			continue
		}
		p, ok := s.known.place(ch.Digest)
		if !ok {
			return namespace.E(namespace.Internal, "locate chunk", ch.Digest.String(), fmt.Errorf("stored nowhere"))
		}
		places[i] = p
	}
	b := object.EncodeLocator(places)
	if bytes.Equal(b, old) {
		return nil
	}
	return s.store.Put(s.ctx, key, b)
}

// usable reports whether a stored locator still leads to every chunk of c.
func (s *sealer) usable(stored []byte, c *catalog.Catalog) bool {
	l, err := object.OpenLocator(stored)
	if err != nil || l.Len() != c.NumChunks() {
		return false
	}
	for _, d := range l.Packs() {
		if !s.known.has(d) {
			return false
		}
	}
	for i := range l.Len() {
		if c.Chunk(i).Hole() != l.Place(i).IsZero() {
			return false
		}
	}
	return true
}
