package builder

import (
	"context"
	"fmt"
	"path"
	"strings"
	"time"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/catalog"
)

// Edit changes a stored tree without running anything. Exactly one field is set but for Owner and Mode.
type Edit struct {
	// Drop removes what matches a pattern: an absolute path whose components are those of [path.Match],
	// or "**" for any number of directories. What is below goes as well; that nothing matches is no error.
	Drop string
	// DropFiles is Drop of what is no directory.
	DropFiles string
	// Empty truncates the files that match.
	Empty string
	// Copy puts the directory or file at this path of the machine to the absolute path To: a directory's
	// content into a directory, made if need be.
	Copy, To string
	// Owner and Mode replace those of what is copied; of a directory, Mode is that of its files.
	Owner *[2]uint32
	Mode  *uint16
}

// EditSource imports the stored tree Base with edits, in order. Only catalogs on the way to what changes
// are written.
type EditSource struct {
	Base   namespace.Digest // root catalog; zero for an empty tree
	Loader catalog.Loader
	Edits  []Edit
	Latest time.Time // as in OverlaySource
}

// read implements Source.
func (s EditSource) read(ctx context.Context, p *pipeline) (*scan, error) {
	e := &editor{ctx: ctx, loader: s.Loader, root: newDirectory().node, lost: map[string]bool{}}
	if !s.Base.IsZero() {
		var err error
		if e, err = newEditor(ctx, s.Loader, s.Base); err != nil {
			return nil, err
		}
	}
	copied := make([]*scan, len(s.Edits))
	out := &scan{root: e.root}
	for i, edit := range s.Edits {
		if edit.Copy == "" {
			continue
		}
		var err error
		if copied[i], err = (DirSource{Path: edit.Copy}).read(ctx, p); err != nil {
			return nil, err
		}
		if !s.Latest.IsZero() {
			clampTimes(copied[i].root, s.Latest)
		}
		out.groups = append(out.groups, copied[i].groups...)
	}
	out.finish = func(ctx context.Context) error {
		e.ctx = ctx
		for i, edit := range s.Edits {
			if err := e.apply(edit, copied[i]); err != nil {
				return err
			}
		}
		if s.Base.IsZero() {
			return nil
		}
		groups, err := e.regroup(s.Base, e.lost)
		out.groups = append(out.groups, groups...)
		return err
	}
	return out, nil
}

func (e *editor) apply(edit Edit, copied *scan) error {
	switch {
	case copied != nil:
		return e.copyIn(edit, copied.root)
	case edit.Empty != "":
		return e.match(edit.Empty, func(dir, n *catalog.Node) error {
			if n.Type != catalog.File || n.Size == 0 {
				return nil
			}
			empty := *n
			empty.Size, empty.Chunks, empty.Link, empty.Nlink = 0, nil, "", 1
			return e.put(dir, &empty)
		})
	case edit.DropFiles != "":
		return e.match(edit.DropFiles, func(dir, n *catalog.Node) error {
			if n.Type == catalog.Dir {
				return nil
			}
			return e.remove(dir, n.Name)
		})
	}
	return e.match(edit.Drop, func(dir, n *catalog.Node) error { return e.remove(dir, n.Name) })
}

// match calls fn for every node that a pattern matches, with its directory. fn may remove or replace it.
func (e *editor) match(pattern string, fn func(dir, n *catalog.Node) error) error {
	names, err := splitPattern(pattern)
	if err != nil {
		return err
	}
	return e.matchBelow(e.root, names, fn)
}

func (e *editor) matchBelow(dir *catalog.Node, names []string, fn func(dir, n *catalog.Node) error) error {
	if names[0] == "**" {
		if len(names) > 1 {
			if err := e.matchBelow(dir, names[1:], fn); err != nil {
				return err
			}
		}
	} else if !strings.ContainsAny(names[0], `*?[\`) { // no need to look into what surely does not match
		if dir.Nested != nil {
			c, err := e.loader.Catalog(e.ctx, dir.Nested.Digest)
			if err != nil {
				return err
			}
			if _, ok := c.Lookup(0, []byte(names[0])); !ok {
				return nil
			}
		}
	}
	if err := e.open(dir); err != nil {
		return err
	}
	for _, n := range append([]*catalog.Node(nil), dir.Children...) {
		below, here := names[1:], names[0] == "**"
		if here {
			below = names
		} else if ok, _ := path.Match(names[0], n.Name); !ok { // splitPattern has looked at its form
			continue
		}
		var err error
		switch {
		case len(names) == 1:
			if err = fn(dir, n); err == nil && here && n.Type == catalog.Dir && find(dir, n.Name) == n {
				err = e.matchBelow(n, below, fn)
			}
		case n.Type == catalog.Dir:
			err = e.matchBelow(n, below, fn)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// CheckPattern returns an Invalid error unless s can be a pattern of an [Edit].
func CheckPattern(s string) error {
	_, err := splitPattern(s)
	return err
}

func splitPattern(s string) ([]string, error) {
	if _, err := path.Match(s, ""); err != nil || !strings.HasPrefix(s, "/") || path.Clean(s) != s || s == "/" {
		return nil, namespace.E(namespace.Invalid, "read pattern", s, fmt.Errorf("want an absolute, clean path below /, with *, ? and [] in its names, or ** for any directories"))
	}
	return strings.Split(s[1:], "/"), nil
}

// copyIn lays a scanned directory over the tree at the edit's target.
func (e *editor) copyIn(edit Edit, from *catalog.Node) error {
	adopt(edit, from)
	names := strings.Split(strings.Trim(edit.To, "/"), "/")
	dir := e.root
	for _, name := range names {
		if name == "" {
			continue
		}
		if err := e.open(dir); err != nil {
			return err
		}
		next := find(dir, name)
		if next == nil {
			next = newDirectory().node
			next.Name = name
			dir.Children = append(dir.Children, next)
		}
		if next.Type != catalog.Dir {
			return namespace.E(namespace.Exist, "copy to", edit.To, fmt.Errorf("%s is a %v", name, next.Type))
		}
		dir = next
	}
	return e.mergeIn(dir, from)
}

// mergeIn puts what from holds into dir: directories into directories, all else in place of what is there.
func (e *editor) mergeIn(dir, from *catalog.Node) error {
	if err := e.open(dir); err != nil {
		return err
	}
	for _, n := range from.Children {
		old := find(dir, n.Name)
		if old != nil && old.Type == catalog.Dir && n.Type == catalog.Dir {
			if err := e.mergeIn(old, n); err != nil {
				return err
			}
			continue
		}
		if err := e.put(dir, n); err != nil {
			return err
		}
	}
	return nil
}

// adopt gives what is copied the owner and mode of the edit.
func adopt(edit Edit, n *catalog.Node) {
	if edit.Owner != nil {
		n.UID, n.GID = edit.Owner[0], edit.Owner[1]
	}
	if edit.Mode != nil && n.Type == catalog.File {
		n.Mode = *edit.Mode
	}
	for _, c := range n.Children {
		adopt(edit, c)
	}
}

// clampTimes sets every modification time that is later than latest to it, in what was read: what a tree
// holds already is not looked at.
func clampTimes(n *catalog.Node, latest time.Time) {
	at := time.Unix(n.MtimeSec, int64(n.MtimeNsec))
	if at.After(latest) {
		n.MtimeSec, n.MtimeNsec = latest.Unix(), uint32(latest.Nanosecond())
	}
	for _, c := range n.Children {
		clampTimes(c, latest)
	}
}
