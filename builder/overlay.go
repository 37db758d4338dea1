package builder

import (
	"context"
	"strings"
	"time"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/catalog"
)

// OverlaySource imports what an overlay file system shows: the stored tree Base with the changes that
// the overlay's upper directory holds. Only the upper directory is read, and only the catalogs above
// what changed are written, so the cost is that of the change. Whiteouts, opaque directories,
// copied-up files and directories whose attributes alone changed mean what they mean to the kernel
// (Documentation/filesystems/overlayfs.rst); the overlay must have been mounted without redirect_dir
// and metacopy, whose marks are refused.
type OverlaySource struct {
	Base   namespace.Digest // root catalog
	Loader catalog.Loader   // of it
	Upper  string           // directory; its own attributes are the root's
	// Latest, if it is not zero, is the latest modification time of what the upper directory holds: a
	// later one is set to it, so that the result does not depend on the clock.
	Latest time.Time
}

// The attributes of overlayfs, as root and in a user namespace.
var overlayXattrs = []string{"trusted.overlay.", "user.overlay."}

// read implements Source.
func (o OverlaySource) read(ctx context.Context, p *pipeline) (*scan, error) {
	e, err := newEditor(ctx, o.Loader, o.Base)
	if err != nil {
		return nil, err
	}
	upper, err := DirSource{Path: o.Upper}.read(ctx, p)
	if err != nil {
		return nil, err
	}
	if !o.Latest.IsZero() {
		clampTimes(upper.root, o.Latest)
	}
	s := &scan{root: e.root, groups: upper.groups}
	s.finish = func(ctx context.Context) error { // of files, the marks of overlayfs are known when they have been read
		e.ctx = ctx
		if err := e.merge("", e.root, upper.root); err != nil {
			return err
		}
		groups, err := e.regroup(o.Base, e.lost)
		s.groups = append(s.groups, groups...)
		return err
	}
	return s, nil
}

// merge makes directory n, at path, what it is with the directory up laid over it.
func (e *editor) merge(path string, n, up *catalog.Node) error {
	opaque, err := stripOverlay(path, up)
	if err != nil {
		return err
	}
	n.Attr, n.Xattrs = up.Attr, up.Xattrs
	if opaque {
		if err := e.lose(n); err != nil {
			return err
		}
		n.Children = nil
	}
	if err := e.open(n); err != nil {
		return err
	}
	was := make(map[string]*catalog.Node, len(n.Children))
	for _, c := range n.Children {
		was[c.Name] = c
	}
	for _, c := range up.Children {
		if err := e.lay(join(path, c.Name), n, was[c.Name], c); err != nil {
			return err
		}
	}
	return nil
}

// lay lays one name of an upper directory over old, which dir has under that name, or nil.
func (e *editor) lay(path string, dir, old, up *catalog.Node) error {
	switch {
	case isWhiteout(up):
		if old == nil {
			return nil
		}
		return e.remove(dir, up.Name)
	case up.Type != catalog.Dir:
		if _, err := stripOverlay(path, up); err != nil {
			return err
		}
		if old == nil {
			dir.Children = append(dir.Children, up)
			return nil
		}
		return e.put(dir, up)
	case old != nil && old.Type == catalog.Dir:
		return e.merge(path, old, up)
	}
	// A directory of its own; a whiteout may be left in it of what was made and removed meanwhile.
	fresh := &catalog.Node{Name: up.Name, Attr: up.Attr}
	if err := e.merge(path, fresh, up); err != nil {
		return err
	}
	if old == nil {
		dir.Children = append(dir.Children, fresh)
		return nil
	}
	return e.put(dir, fresh)
}

// isWhiteout reports whether n is how overlayfs writes down that a name was removed.
func isWhiteout(n *catalog.Node) bool { return n.Type == catalog.CharDevice && n.Size == 0 }

// stripOverlay takes the marks of overlayfs off n and reports whether it is opaque: hides what is
// below it in the lower tree.
func stripOverlay(path string, n *catalog.Node) (opaque bool, err error) {
	kept := n.Xattrs[:0]
	for _, x := range n.Xattrs {
		mark := overlayMark(x.Name)
		switch mark {
		case "":
			kept = append(kept, x)
		case "opaque":
			opaque = string(x.Value) == "y"
		case "redirect", "metacopy":
			return false, namespace.E(namespace.Invalid, "import", path,
				invalid("an overlay's %s mark; mount it without", mark))
		}
	}
	n.Xattrs = kept
	if len(kept) == 0 {
		n.Xattrs = nil
	}
	return opaque, nil
}

// overlayMark returns the name of an overlayfs mark without its prefix, "" for any other attribute.
func overlayMark(name string) string {
	for _, prefix := range overlayXattrs {
		if mark, ok := strings.CutPrefix(name, prefix); ok {
			return mark
		}
	}
	return ""
}
