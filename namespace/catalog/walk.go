package catalog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"

	"coppice.dev/coppice/namespace"
)

// Enter loads the catalog that directory i of c refers to and checks that it is the one meant:
// its root repeats the directory's attributes and its totals are those of the reference.
// Kinds: those of the loader, Corrupt.
func (c *Catalog) Enter(ctx context.Context, l Loader, i int) (*Catalog, error) {
	ref, ok := c.Nested(i)
	if !ok {
		return nil, namespace.E(namespace.Internal, "enter catalog", string(c.name(i)), fmt.Errorf("not nested"))
	}
	sub, err := l.Catalog(ctx, ref.Digest)
	if err != nil {
		return nil, err
	}
	if sub.Total() != ref.Entries || sub.Bytes() != ref.Bytes ||
		!bytes.Equal(c.AppendIdentity(nil, i), sub.AppendIdentity(nil, 0)) {
		return nil, namespace.E(namespace.Corrupt, "enter catalog", ref.Digest.String(),
			fmt.Errorf("does not match the directory that refers to it"))
	}
	return sub, nil
}

// Walk calls fn for every entry of the tree whose root catalog is root, depth first, names
// sorted, a directory before its children. path is relative to the root ("" for itself), "/"
// between names. A nested directory is visited once, as entry 0 of its own catalog. fn may
// return fs.SkipDir to leave a directory out. Kinds: those of the loader and of fn, Corrupt.
func Walk(ctx context.Context, l Loader, root namespace.Digest, fn func(path string, c *Catalog, e Entry) error) error {
	c, err := l.Catalog(ctx, root)
	if err != nil {
		return err
	}
	return walk(ctx, l, "", c, c.Entry(0), 0, fn)
}

func walk(ctx context.Context, l Loader, path string, c *Catalog, e Entry, depth int,
	fn func(string, *Catalog, Entry) error) error {
	if err := ctx.Err(); err != nil {
		return namespace.E(namespace.KindOf(err), "walk", path, err)
	}
	if depth > namespace.DepthMax {
		return namespace.E(namespace.Limit, "walk", path, fmt.Errorf("more than %d directories deep", namespace.DepthMax))
	}
	if e.IsNested() {
		sub, err := c.Enter(ctx, l, e.Index)
		if err != nil {
			return err
		}
		c, e = sub, sub.Entry(0)
	}
	if err := fn(path, c, e); err != nil {
		if e.Type == Dir && errors.Is(err, fs.SkipDir) {
			return nil
		}
		return err
	}
	for lo, hi := c.Children(e.Index); lo < hi; lo++ {
		child := c.Entry(lo)
		if err := walk(ctx, l, Join(path, child.Name), c, child, depth+1, fn); err != nil {
			return err
		}
	}
	return nil
}

// Join returns the path of name in directory dir, which is "" for the root.
func Join(dir string, name []byte) string {
	if dir == "" {
		return string(name)
	}
	return dir + "/" + string(name)
}

// Resolve finds the entry at path, relative to the root catalog, without following symlinks. A
// nested directory is returned as entry 0 of its own catalog. Kinds: NotExist, those of the
// loader, Corrupt.
func Resolve(ctx context.Context, l Loader, root namespace.Digest, path string) (*Catalog, Entry, error) {
	c, err := l.Catalog(ctx, root)
	if err != nil {
		return nil, Entry{}, err
	}
	i := 0
	for rest := []byte(path); len(rest) > 0; {
		name, tail, _ := bytes.Cut(rest, []byte("/"))
		rest = tail
		if len(name) == 0 {
			continue
		}
		next, ok := c.Lookup(i, name)
		if !ok {
			return nil, Entry{}, namespace.E(namespace.NotExist, "resolve", path, nil)
		}
		if i = next; c.Entry(i).IsNested() {
			if c, err = c.Enter(ctx, l, i); err != nil {
				return nil, Entry{}, err
			}
			i = 0
		}
	}
	return c, c.Entry(i), nil
}

// WalkFrom is Walk of the subtree at path, relative to the root catalog; the paths it passes to
// fn stay relative to the root. Kinds: NotExist, those of Walk.
func WalkFrom(ctx context.Context, l Loader, root namespace.Digest, path string,
	fn func(path string, c *Catalog, e Entry) error) error {
	c, e, err := Resolve(ctx, l, root, path)
	if err != nil {
		return err
	}
	return walk(ctx, l, path, c, e, bytes.Count([]byte(path), []byte("/")), fn)
}
