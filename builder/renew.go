package builder

import (
	"context"
	"sync"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/catalog"
	"coppice.dev/coppice/namespace/object"
)

// renew makes sure that k is there and stays for the grace period of a garbage collection that may
// be running: whoever relies on an object that it did not write calls it before a ref names what
// is built on it. A store that cannot be collected is asked whether it holds k. Kinds: NotExist,
// those of Ager.Renew.
func renew(ctx context.Context, store namespace.Store, k namespace.Key) error {
	if a, ok := store.(namespace.Ager); ok {
		return a.Renew(ctx, k)
	}
	_, err := store.Stat(ctx, k)
	return err
}

// renewer renews each of the objects of one class once. Safe for concurrent use.
type renewer struct {
	store namespace.Store
	class namespace.Class

	mu   sync.Mutex
	done map[namespace.Digest]bool // false: not there
}

func newRenewer(store namespace.Store, class namespace.Class) *renewer {
	return &renewer{store: store, class: class, done: map[namespace.Digest]bool{}}
}

// has renews d and reports whether it is there.
func (r *renewer) has(ctx context.Context, d namespace.Digest) (bool, error) {
	r.mu.Lock()
	ok, asked := r.done[d]
	r.mu.Unlock()
	if asked {
		return ok, nil
	}
	err := renew(ctx, r.store, namespace.Key{Class: r.class, Digest: d})
	if err != nil && !namespace.IsKind(err, namespace.NotExist) {
		return false, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.done[d] = err == nil
	return err == nil, nil
}

// Hold makes sure that everything of the tree at root is in store, and stays there for the grace
// period of any garbage collection: to be called before a new ref names a tree that was there
// already. Its cost is that of the tree's catalogs, not of its content, which is not looked at.
// Kinds: NotExist (something is missing, as of a version that was collected), Corrupt, those of the
// store. Safe for concurrent use.
func Hold(ctx context.Context, store namespace.Store, root namespace.Digest) error {
	packs := newRenewer(store, namespace.Pack)
	return newCrawl().run(ctx, []catalogAt{{digest: root}}, func(ctx context.Context, at catalogAt) ([]catalogAt, error) {
		c, err := loadCatalog(ctx, store, at.digest)
		if err != nil {
			return nil, err
		}
		if err := holdChunks(ctx, store, at.digest, c, packs); err != nil {
			return nil, err
		}
		if err := renew(ctx, store, namespace.Key{Class: namespace.Blob, Digest: at.digest}); err != nil {
			return nil, collected(err)
		}
		return nestedAt(c, at), nil
	})
}

// HoldNamespace is [Hold] of all trees of the namespace version whose manifest is d, and of d.
func HoldNamespace(ctx context.Context, store namespace.Store, d namespace.Digest) error {
	m, err := readManifest(ctx, store, d)
	if err != nil {
		return collected(err)
	}
	for _, mount := range m.Mounts {
		if err := Hold(ctx, store, mount.Tree); err != nil {
			return err
		}
	}
	if err := Hold(ctx, store, m.Root); err != nil {
		return err
	}
	return collected(renew(ctx, store, namespace.Key{Class: namespace.Blob, Digest: d}))
}

// holdChunks holds what the locator of catalog c leads to. One that is missing or damaged holds
// nothing: it is derived, and is made anew from the index by who needs it.
func holdChunks(ctx context.Context, store namespace.Store, d namespace.Digest, c *catalog.Catalog, packs *renewer) error {
	l, err := loadLocator(ctx, store, d, c)
	switch {
	case namespace.IsKind(err, namespace.NotExist), namespace.IsKind(err, namespace.Corrupt):
		return nil
	case err != nil:
		return err
	}
	for _, p := range l.Packs() {
		ok, err := packs.has(ctx, p)
		if err == nil && !ok {
			err = namespace.E(namespace.NotExist, "hold", namespace.Key{Class: namespace.Pack, Digest: p}.String(), nil)
		}
		if err != nil {
			return collected(err)
		}
	}
	return collected(renew(ctx, store, namespace.Key{Class: namespace.Locator, Digest: d}))
}

// collected says where an object may have gone.
func collected(err error) error {
	if err == nil || !namespace.IsKind(err, namespace.NotExist) {
		return err
	}
	return namespace.WithHint(err, "`coppice origin gc` drops versions that are not kept: choose a newer one, or import it again")
}

// loadCatalog reads and verifies a catalog.
func loadCatalog(ctx context.Context, from namespace.Fetcher, d namespace.Digest) (*catalog.Catalog, error) {
	stored, err := getAll(ctx, from, namespace.Key{Class: namespace.Blob, Digest: d}, namespace.CatalogBytesMax)
	if err != nil {
		return nil, collected(err)
	}
	b, err := object.DecodeBlob(stored, d, namespace.CatalogBytesMax)
	if err != nil {
		return nil, err
	}
	return catalog.Open(b)
}

// loadLocator reads the locator of catalog c, named d, and checks that it is one of c.
func loadLocator(ctx context.Context, from namespace.Fetcher, d namespace.Digest, c *catalog.Catalog) (*object.Locator, error) {
	k := namespace.Key{Class: namespace.Locator, Digest: d}
	stored, err := getAll(ctx, from, k, namespace.LocatorBytesMax)
	if err != nil {
		return nil, err
	}
	return openLocatorOf(k, stored, c)
}

// openLocatorOf decodes a locator and checks that it has a place for each chunk of c.
func openLocatorOf(k namespace.Key, stored []byte, c *catalog.Catalog) (*object.Locator, error) {
	l, err := object.OpenLocator(stored)
	if err != nil {
		return nil, namespace.E(namespace.KindOf(err), "read", k.String(), err)
	}
	if l.Len() != c.NumChunks() {
		return nil, corrupt(k, "%d places for %d chunks", l.Len(), c.NumChunks())
	}
	for i := range l.Len() {
		if l.Place(i).IsZero() != c.Chunk(i).Hole() {
			return nil, corrupt(k, "place %d is none, or that of a hole", i)
		}
	}
	return l, nil
}
