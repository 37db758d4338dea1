package builder

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/catalog"
)

// Conflict is a path that two changes of one tree disagree about.
type Conflict struct {
	Path         string             // relative to the root
	Mine, Theirs catalog.Difference // what each did to it
}

// ConflictError says that a rebase met conflicts. Paths are in order. Kind: Exist.
type ConflictError struct{ Conflicts []Conflict }

// Error implements error, with the first few paths.
func (c *ConflictError) Error() string {
	const shown = 10
	var b strings.Builder
	fmt.Fprintf(&b, "%d paths were changed by both", len(c.Conflicts))
	for i, x := range c.Conflicts {
		if i == shown {
			fmt.Fprintf(&b, "\n  and %d more", len(c.Conflicts)-shown)
			break
		}
		fmt.Fprintf(&b, "\n  /%s  (%v here, %v there)", x.Path, x.Mine, x.Theirs)
	}
	return b.String()
}

// RebaseSource imports the tree Onto with the changes that lead from Base to Mine: a three-way merge
// of stored trees, which reads no content. Changes are disjoint, or equal, or, of a directory's time
// alone, the later one counts; all else is a [ConflictError].
type RebaseSource struct {
	Base, Mine, Onto namespace.Digest // root catalogs
	Loader           catalog.Loader
}

// read implements Source.
func (r RebaseSource) read(ctx context.Context, _ *pipeline) (*scan, error) {
	mine, err := changesOf(ctx, r.Loader, r.Base, r.Mine)
	if err != nil {
		return nil, err
	}
	theirs, err := changesOf(ctx, r.Loader, r.Base, r.Onto)
	if err != nil {
		return nil, err
	}
	if found := conflicts(mine, theirs); len(found) > 0 {
		return nil, namespace.E(namespace.Exist, "rebase", "", &ConflictError{found})
	}
	e, err := newEditor(ctx, r.Loader, r.Onto)
	if err != nil {
		return nil, err
	}
	taken := map[string]bool{}
	for _, c := range mine.order {
		if err := e.redo(c, theirs.at[c.Path], taken); err != nil {
			return nil, err
		}
	}
	groups, err := e.regroup(r.Mine, taken)
	if err != nil {
		return nil, err
	}
	left, err := e.regroup(r.Onto, e.lost)
	return &scan{root: e.root, groups: append(groups, left...)}, err
}

// changes is what leads from one tree to another.
type changes struct {
	order []catalog.Change // as a walk meets them, directories before what is in them
	at    map[string]*catalog.Change
}

func changesOf(ctx context.Context, l catalog.Loader, from, to namespace.Digest) (*changes, error) {
	all := &changes{at: map[string]*catalog.Change{}}
	err := catalog.Diff(ctx, l, from, to, func(c catalog.Change) error {
		all.order = append(all.order, c)
		return nil
	})
	for i := range all.order {
		all.at[all.order[i].Path] = &all.order[i]
	}
	return all, err
}

// conflicts returns the paths at which two changes of one tree cannot both be had.
func conflicts(mine, theirs *changes) []Conflict {
	var found []Conflict
	for _, m := range mine.order {
		t := theirs.at[m.Path]
		switch {
		case t == nil:
			if dir := gone(theirs, m); dir != nil {
				found = append(found, Conflict{m.Path, m.What, dir.What})
			}
		case !agree(m, *t):
			found = append(found, Conflict{m.Path, m.What, t.What})
		}
	}
	for _, t := range theirs.order {
		if mine.at[t.Path] == nil {
			if dir := gone(mine, t); dir != nil {
				found = append(found, Conflict{t.Path, dir.What, t.What})
			}
		}
	}
	slices.SortFunc(found, func(a, b Conflict) int { return cmp.Compare(a.Path, b.Path) })
	return found
}

// gone returns the change of others by which a directory above c is none any more, if c needs it.
func gone(others *changes, c catalog.Change) *catalog.Change {
	if c.What&catalog.DiffRemoved != 0 {
		return nil
	}
	for i := len(c.Path) - 1; i > 0; i-- {
		if c.Path[i] != '/' {
			continue
		}
		if o := others.at[c.Path[:i]]; o != nil && (o.After.Catalog == nil || o.After.Entry.Type != catalog.Dir) {
			return o
		}
	}
	return nil
}

// agree reports whether two changes of one path have the same outcome, or, of directories, differ in
// the time only.
func agree(a, b catalog.Change) bool {
	if a.After.Catalog == nil || b.After.Catalog == nil {
		return a.After.Catalog == b.After.Catalog
	}
	differ := catalog.Compare(a.After, b.After)
	if a.After.Entry.Type == catalog.Dir && b.After.Entry.Type == catalog.Dir {
		differ &^= catalog.DiffMtime
	}
	return differ == 0
}

// redo makes one change again, on a tree in which the same path changed as theirs says. taken collects
// the hard-link groups of what was taken over.
func (e *editor) redo(c catalog.Change, theirs *catalog.Change, taken map[string]bool) error {
	parent, name := splitPath(c.Path)
	dir, err := e.find(parent)
	if err != nil {
		return err
	}
	if c.What&catalog.DiffRemoved != 0 {
		if dir == nil || dir.Type != catalog.Dir {
			return nil // with a directory above it
		}
		return e.remove(dir, name)
	}
	n := c.After.Catalog.Node(c.After.Entry.Index)
	n.Name, n.Nested = name, nil
	if n.Type == catalog.Dir {
		old, err := e.find(c.Path)
		if err != nil {
			return err
		}
		if old != nil && old.Type == catalog.Dir {
			later := n.Attr
			if theirs != nil && cmp.Or(cmp.Compare(old.MtimeSec, n.MtimeSec), cmp.Compare(old.MtimeNsec, n.MtimeNsec)) > 0 {
				later.MtimeSec, later.MtimeNsec = old.MtimeSec, old.MtimeNsec
			}
			old.Attr, old.Xattrs = later, n.Xattrs
			return nil
		}
	}
	if n.Link != "" {
		taken[n.Link] = true
	}
	return e.put(dir, n)
}

// splitPath returns the directory and the last name of a path; both are "" of the root.
func splitPath(path string) (dir, name string) {
	if i := strings.LastIndexByte(path, '/'); i >= 0 {
		return path[:i], path[i+1:]
	}
	return "", path
}
