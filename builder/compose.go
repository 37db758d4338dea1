package builder

import (
	"cmp"
	"context"
	"fmt"
	"path"
	"slices"
	"strings"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/catalog"
	"coppice.dev/coppice/namespace/object"
)

// MountError says which mount of a composition cannot be: Index counts from 0 in the list given.
type MountError struct {
	Index int
	Path  string
	Err   error
}

// Error implements error.
func (e *MountError) Error() string { return e.Err.Error() }

// Unwrap returns the cause.
func (e *MountError) Unwrap() error { return e.Err }

// Compose stores the root catalog of a namespace in which every tree of mounts is at its path, and
// returns its digest and totals. The order of mounts does not matter. A tree at "/" is the ground
// that others are put on; without one it is an empty directory. Parents that lack are created,
// root's, mode 0755, time 0. Only catalogs on the way to a mount are written anew, with their
// locators; trees themselves are referred to.
//
// A mount replaces an empty directory, or with Replace any directory. Errors that a mount causes
// hold a [*MountError]: Exist (something else is at its path or above it), Invalid (the path),
// NotExist (its tree). Further Kinds: those of the loader and of the store.
func Compose(ctx context.Context, store namespace.Store, loader catalog.Loader, mounts []namespace.ManifestMount) (
	root namespace.Digest, entries, bytes uint64, err error) {
	c := &composer{ctx: ctx, store: store, loader: loader}
	order, err := mountOrder(mounts)
	if err != nil {
		return root, 0, 0, err
	}
	for _, i := range order {
		// Held before it is read: it may be a version that is about to be collected.
		err := Hold(ctx, store, mounts[i].Tree)
		if err == nil {
			err = c.mount(mounts[i])
		}
		if err != nil {
			return root, 0, 0, mountError(i, mounts[i].Path, err)
		}
	}
	return c.finish()
}

func mountError(i int, path string, err error) error {
	return namespace.E(namespace.KindOf(err), "compose", path, &MountError{i, path, err})
}

// mountOrder checks paths and returns the order of mounting: what is above comes first.
func mountOrder(mounts []namespace.ManifestMount) ([]int, error) {
	if len(mounts) == 0 || len(mounts) > namespace.MountsMax {
		return nil, namespace.E(namespace.Invalid, "compose", "",
			fmt.Errorf("%d mounts, want 1 to %d", len(mounts), namespace.MountsMax))
	}
	order := make([]int, len(mounts))
	for i, m := range mounts {
		order[i] = i
		if !path.IsAbs(m.Path) || path.Clean(m.Path) != m.Path || strings.IndexByte(m.Path, 0) >= 0 ||
			len(m.Path) >= namespace.PathBytesMax {
			return nil, mountError(i, m.Path, invalid("want an absolute, clean path"))
		}
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(mounts[a].Path, mounts[b].Path) })
	for k := 1; k < len(order); k++ {
		if p := mounts[order[k]].Path; p == mounts[order[k-1]].Path {
			return nil, mountError(order[k], p, namespace.E(namespace.Exist, "", "",
				fmt.Errorf("mount %d is at this path already", order[k-1]+1)))
		}
	}
	return order, nil
}

// composer holds the part of the namespace that is written out: opened catalogs, those above
// first.
type composer struct {
	ctx    context.Context
	store  namespace.Store
	loader catalog.Loader
	opened []*openedCatalog
	known  *known // the origin's index; loaded when a locator does not help
}

// openedCatalog is a catalog in writable form. from is the one it was, zero for none.
type openedCatalog struct {
	top      *catalog.Node
	from     namespace.Digest
	treeRoot bool
}

// mount puts one tree at its path.
func (c *composer) mount(m namespace.ManifestMount) error {
	tree, err := c.loader.Catalog(c.ctx, m.Tree)
	if err != nil {
		return err
	}
	if m.Path == "/" {
		c.opened = append(c.opened, &openedCatalog{top: tree.Nodes(), from: m.Tree})
		return nil
	}
	if len(c.opened) == 0 {
		c.opened = append(c.opened, &openedCatalog{top: newDirectory().node})
	}
	names := strings.Split(m.Path[1:], "/")
	dir, err := c.descend(names[:len(names)-1])
	if err != nil {
		return err
	}
	at := find(dir, names[len(names)-1])
	if at == nil {
		at = &catalog.Node{}
		dir.Children = append(dir.Children, at)
	} else if err := replaceable(at, m.Replace); err != nil {
		return err
	}
	e := tree.Entry(0)
	*at = catalog.Node{
		Name: names[len(names)-1], Attr: e.Attr, Xattrs: tree.Xattrs(0),
		Nested: &catalog.Nested{Digest: m.Tree, Entries: tree.Total(), Bytes: tree.Bytes(), TreeRoot: true},
	}
	return nil
}

// replaceable returns an Exist error unless a mount may take n's place.
func replaceable(n *catalog.Node, replace bool) error {
	switch {
	case !replace && n.Type != catalog.Dir:
		return namespace.WithHint(namespace.E(namespace.Exist, "", "", fmt.Errorf("a %v is there", n.Type)),
			"set replace: true to hide it")
	case !replace && (len(n.Children) > 0 || n.Nested != nil && n.Nested.Entries > 1):
		return namespace.WithHint(namespace.E(namespace.Exist, "", "", fmt.Errorf("a directory that is not empty is there")),
			"set replace: true to hide what it holds")
	}
	return nil
}

// descend returns the directory at the path that names make, opening catalogs and creating
// directories on the way.
func (c *composer) descend(names []string) (*catalog.Node, error) {
	dir := c.opened[0].top
	for i, name := range names {
		next := find(dir, name)
		if next == nil {
			next = newDirectory().node
			next.Name = name
			dir.Children = append(dir.Children, next)
		}
		if next.Type != catalog.Dir {
			return nil, namespace.E(namespace.Exist, "", "",
				fmt.Errorf("/%s, above it, is a %v", strings.Join(names[:i+1], "/"), next.Type))
		}
		if next.Nested != nil {
			if err := c.open(next); err != nil {
				return nil, err
			}
		}
		dir = next
	}
	return dir, nil
}

// open writes a nested catalog out below n.
func (c *composer) open(n *catalog.Node) error {
	ref := *n.Nested
	sub, err := c.loader.Catalog(c.ctx, ref.Digest)
	if err != nil {
		return err
	}
	n.Children, n.Nested = sub.Nodes().Children, nil
	c.opened = append(c.opened, &openedCatalog{top: n, from: ref.Digest, treeRoot: ref.TreeRoot})
	return nil
}

func find(dir *catalog.Node, name string) *catalog.Node {
	for _, c := range dir.Children {
		if c.Name == name {
			return c
		}
	}
	return nil
}

// finish stores the opened catalogs, those below first: each was opened after what is above it.
func (c *composer) finish() (root namespace.Digest, entries, bytes uint64, err error) {
	for i, o := range slices.Backward(c.opened) {
		ref, err := c.seal(o)
		if err != nil {
			return root, 0, 0, err
		}
		if i == 0 {
			return ref.Digest, ref.Entries, ref.Bytes, nil
		}
		o.top.Children, o.top.Nested = nil, &ref
	}
	return root, 0, 0, namespace.E(namespace.Internal, "compose", "", fmt.Errorf("nothing was composed"))
}

// seal encodes and stores an opened catalog and its locator. One in which nothing changed gives
// the bytes it was made from, and is stored already.
func (c *composer) seal(o *openedCatalog) (catalog.Nested, error) {
	top := *o.top
	top.Name = ""
	b, err := catalog.Encode(&top)
	if err != nil {
		return catalog.Nested{}, err
	}
	o.top.Nlink = top.Nlink
	sealed, err := catalog.Open(b)
	if err != nil {
		return catalog.Nested{}, err
	}
	d := namespace.Sum(b)
	ref := catalog.Nested{Digest: d, Entries: sealed.Total(), Bytes: sealed.Bytes(), TreeRoot: o.treeRoot}
	if d == o.from {
		return ref, nil
	}
	if err := c.locate(d, sealed, o.from); err != nil {
		return ref, err
	}
	return ref, c.store.Put(c.ctx, namespace.Key{Class: namespace.Blob, Digest: d}, object.EncodeBlob(b))
}

// locate stores the locator of a rewritten catalog. Its chunks are some of those of the catalog
// it was made from, whose locator says where they are.
func (c *composer) locate(d namespace.Digest, sealed *catalog.Catalog, from namespace.Digest) error {
	where := map[namespace.Digest]object.Place{}
	if sealed.NumChunks() > 0 {
		if err := c.oldPlaces(from, where); err != nil {
			return err
		}
	}
	places := make([]object.Place, sealed.NumChunks())
	for i := range places {
		ch := sealed.Chunk(i)
		if ch.Hole() {
			continue
		}
		p, ok := where[ch.Digest]
		if !ok {
			var err error
			if p, err = c.search(ch.Digest); err != nil {
				return err
			}
		}
		places[i] = p
	}
	return c.store.Put(c.ctx, namespace.Key{Class: namespace.Locator, Digest: d}, object.EncodeLocator(places))
}

// oldPlaces reads the locator of catalog d into where. One that is missing or damaged is left
// out: the index serves.
func (c *composer) oldPlaces(d namespace.Digest, where map[namespace.Digest]object.Place) error {
	old, err := c.loader.Catalog(c.ctx, d)
	if err != nil {
		return err
	}
	stored, err := getAll(c.ctx, c.store, namespace.Key{Class: namespace.Locator, Digest: d}, namespace.LocatorBytesMax)
	if err != nil {
		if namespace.IsKind(err, namespace.NotExist) {
			return nil
		}
		return err
	}
	l, err := object.OpenLocator(stored)
	if err != nil || l.Len() != old.NumChunks() {
		return nil
	}
	for i := range l.Len() {
		if p := l.Place(i); !p.IsZero() {
			where[old.Chunk(i).Digest] = p
		}
	}
	return nil
}

// search finds a chunk in the origin's index.
func (c *composer) search(d namespace.Digest) (object.Place, error) {
	if c.known == nil {
		k, err := loadKnown(c.ctx, c.store, nil)
		if err != nil {
			return object.Place{}, err
		}
		c.known = k
	}
	p, ok, err := c.known.place(c.ctx, d)
	if err != nil {
		return p, err
	}
	if !ok {
		return p, namespace.E(namespace.Corrupt, "compose", "chunk "+d.String(), fmt.Errorf("no pack holds it"))
	}
	return p, nil
}
