package catalog

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"strings"

	"coppice.dev/coppice/namespace"
)

// Difference is a set of the ways in which two entries of one path differ.
type Difference uint16

// The differences.
const (
	DiffAdded   Difference = 1 << iota // only in the second tree
	DiffRemoved                        // only in the first
	DiffType
	DiffContent // bytes, target or device numbers
	DiffMode
	DiffOwner
	DiffMtime
	DiffXattrs
	DiffLinks // hard-link group
)

var diffNames = []string{"added", "removed", "type", "content", "mode", "owner", "mtime", "xattrs", "links"}

// String returns the names of the differences, joined by commas.
func (d Difference) String() string {
	var names []string
	for i, n := range diffNames {
		if d&(1<<i) != 0 {
			names = append(names, n)
		}
	}
	return strings.Join(names, ",")
}

// Side is one of two compared entries; Catalog is nil where there is none.
type Side struct {
	Catalog *Catalog
	Entry   Entry
}

// Change is one path at which two trees differ.
type Change struct {
	Path          string
	What          Difference
	Before, After Side
}

// Diff calls fn for every path at which the trees a and b differ, depth first, names sorted. What
// is below an added or a removed directory is reported as well. Subtrees in equal catalogs are
// not read, so the cost follows the change. Kinds: those of the loader and of fn, Corrupt.
func Diff(ctx context.Context, l Loader, a, b namespace.Digest, fn func(Change) error) error {
	if a == b {
		return nil
	}
	d := differ{ctx: ctx, l: l, fn: fn}
	ca, err := l.Catalog(ctx, a)
	if err != nil {
		return err
	}
	cb, err := l.Catalog(ctx, b)
	if err != nil {
		return err
	}
	return d.compare("", Side{ca, ca.Entry(0)}, Side{cb, cb.Entry(0)})
}

type differ struct {
	ctx context.Context
	l   Loader
	fn  func(Change) error
}

// compare reports the difference at path and goes on below.
func (d *differ) compare(path string, a, b Side) error {
	if a.Entry.IsNested() && b.Entry.IsNested() {
		na, _ := a.Catalog.Nested(a.Entry.Index)
		nb, _ := b.Catalog.Nested(b.Entry.Index)
		if na == nb {
			return nil
		}
	}
	a, err := d.enter(a)
	if err != nil {
		return err
	}
	if b, err = d.enter(b); err != nil {
		return err
	}
	what := Compare(a, b)
	if what != 0 {
		if err := d.fn(Change{path, what, a, b}); err != nil {
			return err
		}
	}
	return d.children(path, a, b)
}

// enter replaces a nested directory by the root of its own catalog.
func (d *differ) enter(s Side) (Side, error) {
	if s.Catalog == nil || !s.Entry.IsNested() {
		return s, nil
	}
	sub, err := s.Catalog.Enter(d.ctx, d.l, s.Entry.Index)
	if err != nil {
		return Side{}, err
	}
	return Side{sub, sub.Entry(0)}, nil
}

// children merges the two sorted lists of children.
func (d *differ) children(path string, a, b Side) error {
	alo, ahi := a.Catalog.Children(a.Entry.Index)
	blo, bhi := b.Catalog.Children(b.Entry.Index)
	for alo < ahi || blo < bhi {
		order := 0
		switch {
		case alo == ahi:
			order = 1
		case blo == bhi:
			order = -1
		default:
			order = bytes.Compare(a.Catalog.name(alo), b.Catalog.name(blo))
		}
		var err error
		switch {
		case order < 0:
			err = d.only(path, Side{a.Catalog, a.Catalog.Entry(alo)}, DiffRemoved)
			alo++
		case order > 0:
			err = d.only(path, Side{b.Catalog, b.Catalog.Entry(blo)}, DiffAdded)
			blo++
		default:
			ea, eb := a.Catalog.Entry(alo), b.Catalog.Entry(blo)
			err = d.compare(Join(path, ea.Name), Side{a.Catalog, ea}, Side{b.Catalog, eb})
			alo++
			blo++
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// only reports s, which one tree has and the other has not, and all below it.
func (d *differ) only(dir string, s Side, what Difference) error {
	top := Join(dir, s.Entry.Name)
	err := walk(d.ctx, d.l, top, s.Catalog, s.Entry, strings.Count(top, "/"),
		func(path string, c *Catalog, e Entry) error {
			side := Side{c, e}
			if what == DiffAdded {
				return d.fn(Change{Path: path, What: what, After: side})
			}
			return d.fn(Change{Path: path, What: what, Before: side})
		})
	if errors.Is(err, fs.SkipDir) { // a file's callback may say it as well
		return nil
	}
	return err
}

// Compare returns how two entries differ, names and children aside. Directories' link counts
// follow from their children and are not compared.
func Compare(a, b Side) Difference {
	var what Difference
	x, y := a.Entry, b.Entry
	set := func(differs bool, d Difference) {
		if differs {
			what |= d
		}
	}
	set(x.Type != y.Type, DiffType)
	set(x.Mode != y.Mode, DiffMode)
	set(x.UID != y.UID || x.GID != y.GID, DiffOwner)
	set(x.MtimeSec != y.MtimeSec || x.MtimeNsec != y.MtimeNsec, DiffMtime)
	set(!bytes.Equal(a.Catalog.str(a.Catalog.xattrs, x.xattr), b.Catalog.str(b.Catalog.xattrs, y.xattr)), DiffXattrs)
	if x.Type == Dir || y.Type == Dir {
		return what
	}
	set(!bytes.Equal(a.Catalog.Link(x.Index), b.Catalog.Link(y.Index)) || x.Nlink != y.Nlink, DiffLinks)
	set(x.Size != y.Size || !bytes.Equal(a.Catalog.content(x.Index), b.Catalog.content(y.Index)), DiffContent)
	return what
}

// content returns the bytes that stand for entry i's content: chunk list or target.
func (c *Catalog) content(i int) []byte {
	e := c.Entry(i)
	switch e.Type {
	case File:
		return c.chunks[int(e.first)*chunkSize:][:int(e.count)*chunkSize]
	case Symlink:
		return c.Target(i)
	}
	return nil
}
