package catalog

import (
	"context"
	"fmt"
	"sort"
	"strings"

	"coppice.dev/coppice/namespace"
)

// Resolution is what a profile means for one root catalog: the catalogs that list its paths, and the
// chunks it reads, each once, in its order; holes are left out. Absent counts the entries of which that
// tree has nothing.
type Resolution struct {
	Catalogs []namespace.Digest
	Chunks   []namespace.ChunkRef
	Absent   int
}

// ResolveProfile finds what a profile names in the tree whose root catalog is root. Ranges are widened
// to whole chunks. It loads the catalogs on the way to the profile's paths and no others. It stops at
// the first catalog that cannot be had. Kinds: those of the loader, Corrupt.
func ResolveProfile(ctx context.Context, l Loader, root namespace.Digest, p *namespace.Profile) (*Resolution, error) {
	r := &resolver{l: l, opened: map[namespace.Digest]*Catalog{}, seen: map[namespace.Digest]bool{}}
	if _, err := r.open(ctx, root, nil, 0); err != nil {
		return nil, err
	}
	for _, e := range p.Entries {
		if err := r.entry(ctx, root, e); err != nil {
			return nil, err
		}
	}
	return &r.Resolution, nil
}

type resolver struct {
	Resolution
	l      Loader
	opened map[namespace.Digest]*Catalog
	seen   map[namespace.Digest]bool // chunks
}

// open loads a catalog, nested at entry i of above if that is not nil.
func (r *resolver) open(ctx context.Context, d namespace.Digest, above *Catalog, i int) (c *Catalog, err error) {
	if c = r.opened[d]; c != nil {
		return c, nil
	}
	if above == nil {
		c, err = r.l.Catalog(ctx, d)
	} else {
		c, err = above.Enter(ctx, r.l, i)
	}
	if err != nil {
		return nil, err
	}
	r.opened[d], r.Catalogs = c, append(r.Catalogs, d)
	return c, nil
}

// entry adds what one entry of a profile names.
func (r *resolver) entry(ctx context.Context, root namespace.Digest, e namespace.ProfileEntry) error {
	d, c, i := root, r.opened[root], 0
	for name := range strings.SplitSeq(string(e.Path), "/") {
		next, ok := c.Lookup(i, []byte(name))
		if !ok {
			r.Absent++
			return nil
		}
		i = next
		ref, nested := c.Nested(i)
		if !nested {
			continue
		}
		sub, err := r.open(ctx, ref.Digest, c, i)
		if err != nil {
			return err
		}
		d, c, i = ref.Digest, sub, 0
	}
	lo, hi := c.Chunks(i)
	if e.Len > 0 {
		first, _, ok := c.FindChunk(i, e.Off)
		if !ok {
			r.Absent++
			return nil
		}
		lo = first
	}
	for k := lo; k < hi; k++ {
		ch, size := c.Chunk(k), c.ChunkLen(k)
		if e.Len > 0 && ch.End-size >= e.Off+e.Len {
			break
		}
		if ch.Hole() || r.seen[ch.Digest] {
			continue
		}
		r.seen[ch.Digest] = true
		r.Chunks = append(r.Chunks, namespace.ChunkRef{Catalog: d, Index: uint32(k), Digest: ch.Digest, Size: uint32(size)})
	}
	return nil
}

// Access is a first access to a tree, as an endpoint notes it: chunk Index of the chunk table of a
// catalog, or, if Index is [AccessCatalog], the catalog itself.
type Access struct {
	Catalog namespace.Digest
	Index   uint32
}

// AccessCatalog is the Index of an Access that loaded a catalog.
const AccessCatalog = ^uint32(0)

// ProfileEntries is the way back from ResolveProfile: accesses to the trees whose root catalogs are roots,
// which are versions of one namespace, as entries of a profile, in their order. Accesses to anything else
// are left out, and counted in others. It loads all catalogs of the trees. Kinds: those of the loader,
// Corrupt.
func ProfileEntries(ctx context.Context, l Loader, all []Access, roots ...namespace.Digest) (entries []namespace.ProfileEntry, others int, err error) {
	places := map[namespace.Digest]*placed{}
	for _, root := range roots {
		if err := placeCatalogs(ctx, l, root, places); err != nil {
			return nil, 0, err
		}
	}
	for _, a := range all {
		at := places[a.Catalog]
		if at == nil {
			others++
			continue
		}
		e, ok := at.entry(a.Index)
		if !ok {
			others++
			continue
		}
		if n := len(entries) - 1; n >= 0 && e.Len > 0 && entries[n].Path == e.Path && entries[n].Len > 0 && entries[n].Off+entries[n].Len == e.Off {
			entries[n].Len += e.Len // they go on
			continue
		}
		if e.Path != "" { // the root needs no mention
			entries = append(entries, e)
		}
	}
	return namespace.Tidy(entries), others, nil
}

// placed is a catalog, where it is in a tree, and its files by their chunks.
type placed struct {
	c     *Catalog
	path  string
	files []int // with chunks, in order; nil: not looked for yet
}

// placeCatalogs finds the path of every catalog of a tree that is not in all, the first of several.
func placeCatalogs(ctx context.Context, l Loader, root namespace.Digest, all map[namespace.Digest]*placed) error {
	if all[root] != nil {
		return nil
	}
	c, err := l.Catalog(ctx, root)
	if err != nil {
		return err
	}
	all[root] = &placed{c: c}
	for queue := []*placed{all[root]}; len(queue) > 0; queue = queue[1:] {
		at := queue[0]
		for i := range at.c.Len() {
			ref, ok := at.c.Nested(i)
			if !ok || all[ref.Digest] != nil {
				continue
			}
			sub, err := at.c.Enter(ctx, l, i)
			if err != nil {
				return err
			}
			all[ref.Digest] = &placed{c: sub, path: at.pathOf(i)}
			queue = append(queue, all[ref.Digest])
		}
		if err := ctx.Err(); err != nil {
			return namespace.E(namespace.KindOf(err), "look through", root.String(), err)
		}
	}
	return nil
}

// pathOf returns the path of entry i, relative to the tree's root.
func (p *placed) pathOf(i int) string {
	var names []string
	for ; i > 0 && len(names) <= namespace.DepthMax; i = p.c.Parent(i) {
		names = append(names, string(p.c.Entry(i).Name))
	}
	path := p.path
	for k := len(names) - 1; k >= 0; k-- {
		path = Join(path, []byte(names[k]))
	}
	return path
}

// entry says which bytes of which file chunk k is.
func (p *placed) entry(k uint32) (namespace.ProfileEntry, bool) {
	if k == AccessCatalog {
		return namespace.ProfileEntry{Path: namespace.PathText(p.path)}, true
	}
	if int(k) >= p.c.NumChunks() {
		return namespace.ProfileEntry{}, false
	}
	if p.files == nil {
		for i := range p.c.Len() {
			if lo, hi := p.c.Chunks(i); hi > lo {
				p.files = append(p.files, i)
			}
		}
	}
	n := sort.Search(len(p.files), func(n int) bool { lo, _ := p.c.Chunks(p.files[n]); return lo > int(k) }) - 1
	if n < 0 {
		return namespace.ProfileEntry{}, false
	}
	lo, hi := p.c.Chunks(p.files[n])
	e := namespace.ProfileEntry{Path: namespace.PathText(p.pathOf(p.files[n]))}
	if int(k) < lo || int(k) >= hi {
		return e, false
	}
	if hi-lo > 1 {
		e.Len = p.c.ChunkLen(int(k))
		e.Off = p.c.Chunk(int(k)).End - e.Len
	}
	return e, true
}

// String says what an access is of, for logs.
func (a Access) String() string {
	if a.Index == AccessCatalog {
		return "catalog " + a.Catalog.String()
	}
	return fmt.Sprintf("chunk %d of catalog %s", a.Index, a.Catalog)
}
