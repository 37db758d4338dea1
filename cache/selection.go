package cache

import (
	"cmp"
	"context"
	"crypto/sha256"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/bmatcuk/doublestar/v4"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/catalog"
)

// Selection says which content of a tree is wanted. The metadata of a tree is always wanted, all of it:
// a tree of which half can be listed is no tree. The zero value selects no content.
type Selection struct {
	All bool `json:"all,omitempty"`
	// Paths are patterns of paths in the tree, a leading "/" or not: "*" and "?" within a name, "[a-z]",
	// "{a,b}", "**" across names. What matches is taken with everything below it; a symlink is taken with
	// what it leads to in the tree. One that begins with "=" is no pattern, and means what is at that path
	// alone: of a directory nothing.
	Paths []string `json:"paths,omitempty"`
}

const (
	// selectionPathsMax bounds the patterns of a selection: more than a profile of a desktop session has.
	selectionPathsMax = 1 << 18
	// selectionPatternsMax bounds those of them that are no plain paths, each of which is held against
	// every entry of a tree.
	selectionPatternsMax = 1 << 10
	// linksMax bounds the symlinks followed one after the other: what the kernel follows.
	linksMax = 40
)

// Empty reports whether s selects no content.
func (s Selection) Empty() bool { return !s.All && len(s.Paths) == 0 }

// String says what is selected, for people.
func (s Selection) String() string {
	switch {
	case s.All:
		return "everything"
	case len(s.Paths) == 0:
		return "metadata"
	case len(s.Paths) > 4:
		return fmt.Sprintf("%s and %d more", strings.Join(s.Paths[:3], " "), len(s.Paths)-3)
	}
	return strings.Join(s.Paths, " ")
}

// Check returns an Invalid error for a pattern that cannot match anything, or a Limit one.
func (s Selection) Check() error {
	if len(s.Paths) > selectionPathsMax {
		return namespace.E(namespace.Limit, "select", "paths", fmt.Errorf("%d of them, at most %d", len(s.Paths), selectionPathsMax))
	}
	patterns := 0
	for _, p := range s.Paths {
		if len(p) > namespace.PathBytesMax {
			return namespace.E(namespace.Limit, "select", p[:64]+"…", fmt.Errorf("a path of %d bytes, at most %d", len(p), namespace.PathBytesMax))
		}
		if isPattern(p) {
			patterns++
		}
		if isExact(p) {
			continue
		}
		if cleanPath(p) == "" && p != "/" || !doublestar.ValidatePattern(cleanPath(p)) {
			return namespace.E(namespace.Invalid, "select", fmt.Sprintf("%q", p), fmt.Errorf("not a pattern of paths"))
		}
	}
	if patterns > selectionPatternsMax {
		return namespace.E(namespace.Limit, "select", "paths", fmt.Errorf("%d patterns with wildcards, at most %d", patterns, selectionPatternsMax))
	}
	return nil
}

func isPattern(p string) bool { return !isExact(p) && strings.ContainsAny(p, `*?[{\`) }

func isExact(p string) bool { return strings.HasPrefix(p, "=") }

// Exactly returns the element of Selection.Paths that means what is at p alone.
func Exactly(p string) string { return "=" + p }

// cleanPath returns a path as catalogs have it: relative to the root, "" for that.
func cleanPath(p string) string { return strings.TrimPrefix(path.Clean("/"+p), "/") }

// matcher tells which paths a selection means.
type matcher struct {
	all      bool
	plain    map[string]bool
	exact    map[string]bool
	patterns []string
}

func newMatcher(s Selection) *matcher {
	m := &matcher{all: s.All, plain: map[string]bool{}, exact: map[string]bool{}}
	for _, p := range s.Paths {
		if isExact(p) {
			m.exact[cleanPath(p[1:])] = true
			continue
		}
		switch p = cleanPath(p); {
		case p == "":
			m.all = true
		case isPattern(p):
			m.patterns = append(m.patterns, p)
		default:
			m.plain[p] = true
		}
	}
	return m
}

// match reports whether the path itself is meant; what is above it is the caller's concern.
func (m *matcher) match(p string) bool {
	if m.all || m.plain[p] {
		return true
	}
	for _, g := range m.patterns {
		if doublestar.MatchUnvalidated(g, p) {
			return true
		}
	}
	return false
}

// Set is a selection resolved against one tree: an exact set of objects. It is a function of the two,
// whatever the cache holds. Not safe for concurrent use while it is made; immutable after.
type Set struct {
	Root     namespace.Digest
	Bytes    int64 // plaintext of their chunks, equal ones counted once
	Chunks   int64 // different ones
	Digest   namespace.Digest
	catalogs []namespace.Digest // all of the tree, in the order they were met
	chosen   map[namespace.Digest]*chosen
	keys     []uint64 // of the chunks, sorted
}

// chosen marks chunks of a catalog.
type chosen struct {
	cat  *catalog.Catalog
	bits []uint64
}

func (c *chosen) add(lo, hi int) {
	for ; lo < hi; lo++ {
		c.bits[lo/64] |= 1 << (lo % 64)
	}
}

func (c *chosen) has(i int) bool { return c.bits[i/64]>>(i%64)&1 != 0 }

// each calls fn for every chosen chunk that is no hole.
func (c *chosen) each(fn func(i int, ch catalog.Chunk)) {
	for i := range c.cat.NumChunks() {
		if c.has(i) {
			if ch := c.cat.Chunk(i); !ch.Hole() {
				fn(i, ch)
			}
		}
	}
}

// each calls fn for every chunk of the set, in tree order; one that several files have, as often.
func (s *Set) each(fn func(cat *catalog.Catalog, i int, ch catalog.Chunk)) {
	for _, d := range s.catalogs {
		if c := s.chosen[d]; c != nil {
			c.each(func(i int, ch catalog.Chunk) { fn(c.cat, i, ch) })
		}
	}
}

// Resolve finds the set that a selection means in the tree whose root catalog is root. It reads
// metadata only. Kinds: those of the loader, Corrupt, Limit, Invalid, Canceled.
func Resolve(ctx context.Context, l catalog.Loader, root namespace.Digest, s Selection) (*Set, error) {
	if err := s.Check(); err != nil {
		return nil, err
	}
	r := resolver{ctx: ctx, l: l, set: &Set{Root: root, chosen: map[namespace.Digest]*chosen{}}, m: newMatcher(s), followed: map[string]bool{}}
	if r.m.all || s.Empty() {
		if err := r.whole(root); err != nil {
			return nil, err
		}
		r.finish()
		return r.set, nil
	}
	if err := r.visit("", root, r.m.match("")); err != nil {
		return nil, err
	}
	for p := range r.m.plain { // one may lead through a symlink, which the walk does not
		r.links = append(r.links, linkTo{p, linksMax})
	}
	for n := 0; n < len(r.links); n++ { // following one may find more
		if err := r.follow(r.links[n].path, r.links[n].left); err != nil {
			return nil, err
		}
	}
	r.finish()
	return r.set, nil
}

// resolver is one run of Resolve.
type resolver struct {
	ctx      context.Context
	l        catalog.Loader
	set      *Set
	m        *matcher
	links    []linkTo
	followed map[string]bool
}

// linkTo is a path that a selected symlink leads to, and how many more may follow one another.
type linkTo struct {
	path string
	left int
}

// whole selects all or nothing, for which no entry has to be looked at.
func (r *resolver) whole(root namespace.Digest) error {
	r.set.catalogs = []namespace.Digest{root}
	r.set.chosen[root] = nil
	for n := 0; n < len(r.set.catalogs); n++ {
		d := r.set.catalogs[n]
		if err := r.ctx.Err(); err != nil {
			return namespace.E(namespace.KindOf(err), "select", root.String(), err)
		}
		cat, err := r.l.Catalog(r.ctx, d)
		if err != nil {
			return err
		}
		if r.m.all {
			r.set.chosen[d] = &chosen{cat: cat, bits: make([]uint64, (cat.NumChunks()+63)/64)}
			r.set.chosen[d].add(0, cat.NumChunks())
		}
		for _, below := range cat.AllNested() {
			if _, known := r.set.chosen[below]; !known {
				r.set.catalogs, r.set.chosen[below] = append(r.set.catalogs, below), nil
			}
		}
	}
	return nil
}

// visit selects in the catalog d and those below it; d is that of the directory at dir. taken says that
// everything in it is.
func (r *resolver) visit(dir string, d namespace.Digest, taken bool) error {
	cat, err := r.l.Catalog(r.ctx, d)
	if err != nil {
		return err
	}
	if _, known := r.set.chosen[d]; !known {
		r.set.catalogs = append(r.set.catalogs, d)
		r.set.chosen[d] = nil
	}
	return r.entries(dir, d, cat, 0, taken, linksMax)
}

// entries selects in directory i of a catalog, whose path is dir.
func (r *resolver) entries(dir string, d namespace.Digest, cat *catalog.Catalog, i int, taken bool, links int) error {
	if err := r.ctx.Err(); err != nil {
		return namespace.E(namespace.KindOf(err), "select", dir, err)
	}
	if strings.Count(dir, "/") > namespace.DepthMax {
		return namespace.E(namespace.Limit, "select", dir[:64]+"…", fmt.Errorf("more than %d directories deep", namespace.DepthMax))
	}
	for lo, hi := cat.Children(i); lo < hi; lo++ {
		e := cat.Entry(lo)
		p := catalog.Join(dir, e.Name)
		if err := r.entry(p, d, cat, e, taken || r.m.match(p), links); err != nil {
			return err
		}
	}
	return nil
}

// entry selects the entry at p, if it is taken, and in what is below it.
func (r *resolver) entry(p string, d namespace.Digest, cat *catalog.Catalog, e catalog.Entry, taken bool, links int) error {
	switch {
	case e.IsNested():
		ref, _ := cat.Nested(e.Index)
		return r.visit(p, ref.Digest, taken)
	case e.Type == catalog.Dir:
		return r.entries(p, d, cat, e.Index, taken, links)
	case !taken && !r.m.exact[p]:
		return nil
	case e.Type == catalog.File:
		c := r.set.chosen[d]
		if c == nil {
			c = &chosen{cat: cat, bits: make([]uint64, (cat.NumChunks()+63)/64)}
			r.set.chosen[d] = c
		}
		lo, hi := cat.Chunks(e.Index)
		c.add(lo, hi)
	case e.Type == catalog.Symlink && !r.m.all && links > 0:
		to := string(cat.Target(e.Index))
		if !strings.HasPrefix(to, "/") {
			to = path.Join(path.Dir("/"+p), to)
		}
		if to = cleanPath(to); to != "" && !r.followed[to] {
			r.followed[to] = true
			r.links = append(r.links, linkTo{to, links - 1})
		}
	}
	return nil
}

// follow takes what is at p with everything below it, through symlinks on the way. That nothing is
// there is no error: links may lead out of the tree.
func (r *resolver) follow(p string, links int) error {
	d := r.set.Root
	cat, err := r.l.Catalog(r.ctx, d)
	if err != nil {
		return err
	}
	i, at := 0, ""
	names := strings.Split(p, "/")
	for k, name := range names {
		next, ok := cat.Lookup(i, []byte(name))
		if !ok {
			return nil
		}
		at = path.Join(at, name)
		e := cat.Entry(next)
		last := k == len(names)-1
		if e.Type == catalog.Symlink && !last { // the rest of the path is below where it leads
			to := string(cat.Target(next))
			if !strings.HasPrefix(to, "/") {
				to = path.Join(path.Dir("/"+at), to)
			}
			if to = cleanPath(path.Join(to, path.Join(names[k+1:]...))); links > 0 && to != "" && !r.followed[to] {
				r.followed[to] = true
				r.links = append(r.links, linkTo{to, links - 1})
			}
			return nil
		}
		if last {
			return r.entry(at, d, cat, e, true, links)
		}
		if i = next; e.IsNested() {
			ref, _ := cat.Nested(next)
			if cat, err = r.l.Catalog(r.ctx, ref.Digest); err != nil {
				return err
			}
			d, i = ref.Digest, 0
		}
	}
	return nil
}

// finish counts and names the set: by its root and its chunks, in tree order.
func (r *resolver) finish() {
	type sized struct {
		key uint64
		n   uint32
	}
	var all []sized // not a map: a tree may have millions
	s := r.set
	h := sha256.New()
	h.Write(s.Root[:])
	s.each(func(cat *catalog.Catalog, i int, ch catalog.Chunk) {
		h.Write(ch.Digest[:])
		all = append(all, sized{chunkKey(ch.Digest), uint32(cat.ChunkLen(i))})
	})
	s.Digest = namespace.Digest(h.Sum(nil))
	slices.SortFunc(all, func(a, b sized) int { return cmp.Compare(a.key, b.key) })
	all = slices.CompactFunc(all, func(a, b sized) bool { return a.key == b.key })
	s.keys = make([]uint64, len(all))
	for i, x := range all {
		s.keys[i] = x.key
		s.Bytes += int64(x.n)
	}
	s.Chunks = int64(len(all))
}

// chunkKey stands for a digest where taking two for one another costs nothing but a little room.
func chunkKey(d namespace.Digest) uint64 { return le.Uint64(d[:]) }
