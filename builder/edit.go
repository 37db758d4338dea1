package builder

import (
	"context"
	"slices"
	"strings"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/catalog"
)

// editor is a stored tree that is being changed: catalogs become nodes where something changes
// below, the rest stays nested references, so that the cost follows the change. The result is
// what an import of the changed tree would give, digest for digest. Not safe for concurrent use.
type editor struct {
	ctx    context.Context
	loader catalog.Loader
	base   namespace.Digest
	root   *catalog.Node
	// lost holds the hard-link groups, by the path of their first name, of which a name was removed or
	// replaced: the others have to be told.
	lost map[string]bool
}

func newEditor(ctx context.Context, loader catalog.Loader, base namespace.Digest) (*editor, error) {
	c, err := loader.Catalog(ctx, base)
	if err != nil {
		return nil, err
	}
	e := &editor{ctx: ctx, loader: loader, base: base, root: c.Nodes(), lost: map[string]bool{}}
	return e, e.unshed(e.root)
}

// open writes the nested catalog of directory n, if it has one, out below it.
func (e *editor) open(n *catalog.Node) error {
	if n.Nested == nil {
		return nil
	}
	sub, err := e.loader.Catalog(e.ctx, n.Nested.Digest)
	if err != nil {
		return err
	}
	n.Children, n.Nested = sub.Nodes().Children, nil
	return e.unshed(n)
}

// unshed writes out those catalogs below n which are there only since a directory above them was too
// heavy (catalog.Split): whether they stay depends on what changes beside them. One that reaches the
// weight of a catalog by itself stays whatever happens around it.
func (e *editor) unshed(n *catalog.Node) error {
	for _, c := range n.Children {
		if c.Type != catalog.Dir {
			continue
		}
		if c.Nested == nil {
			if err := e.unshed(c); err != nil {
				return err
			}
			continue
		}
		sub, err := e.loader.Catalog(e.ctx, c.Nested.Digest)
		if err != nil {
			return err
		}
		if sub.Len() < namespace.CatalogEntriesSplit {
			if err := e.open(c); err != nil {
				return err
			}
		}
	}
	return nil
}

// find returns the node at path, "" for the root, nil if there is none. It opens catalogs on the way.
func (e *editor) find(path string) (*catalog.Node, error) {
	at := e.root
	for name := range strings.SplitSeq(path, "/") {
		if name == "" {
			continue
		}
		if at.Type != catalog.Dir {
			return nil, nil
		}
		if err := e.open(at); err != nil {
			return nil, err
		}
		if at = find(at, name); at == nil {
			return nil, nil
		}
	}
	return at, nil
}

// put places n in directory dir under its name, in place of what is there.
func (e *editor) put(dir, n *catalog.Node) error {
	if err := e.remove(dir, n.Name); err != nil {
		return err
	}
	dir.Children = append(dir.Children, n)
	return nil
}

// remove takes name, with all below it, out of directory dir; that it is not there is no error.
func (e *editor) remove(dir *catalog.Node, name string) error {
	if err := e.open(dir); err != nil {
		return err
	}
	for i, c := range dir.Children {
		if c.Name == name {
			dir.Children = slices.Delete(dir.Children, i, i+1)
			return e.lose(c)
		}
	}
	return nil
}

// lose notes that n, and all below it, is not part of the tree any more.
func (e *editor) lose(n *catalog.Node) error {
	if n.Link != "" {
		e.lost[n.Link] = true
	}
	if err := e.open(n); err != nil {
		return err
	}
	for _, c := range n.Children {
		if err := e.lose(c); err != nil {
			return err
		}
	}
	return nil
}

// regroup returns the hard-link groups that lost a name, as far as they are left: names of the tree
// whose root catalog is from, at which the edited tree still has a node of that group. The nodes are
// marked as new ones, for scan.link to complete.
func (e *editor) regroup(from namespace.Digest, lost map[string]bool) ([][]*catalog.Node, error) {
	if len(lost) == 0 {
		return nil, nil
	}
	paths := map[string][]string{}
	err := catalog.Walk(e.ctx, e.loader, from, func(path string, c *catalog.Catalog, entry catalog.Entry) error {
		if link := c.Link(entry.Index); link != nil && lost[string(link)] {
			paths[string(link)] = append(paths[string(link)], path)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	var groups [][]*catalog.Node
	for link, names := range paths {
		var group []*catalog.Node
		for _, path := range names {
			n, err := e.find(path)
			if err != nil {
				return nil, err
			}
			if n != nil && n.Link == link {
				group = append(group, n)
			}
		}
		for _, n := range group {
			n.Link = ""
		}
		if len(group) > 0 {
			groups = append(groups, group)
		}
	}
	return groups, nil
}
