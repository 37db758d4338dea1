package builder

import (
	"fmt"
	"strings"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/catalog"
)

// model is the tree that the entries of an archive describe, in memory; or those of several
// archives, each a layer on top of those before.
type model struct {
	root  *member
	layer int // that is being applied; 0 when there are none
}

// member is one name. Names of one file share the node until the scan.
type member struct {
	node     *catalog.Node
	children map[string]*member // of a directory
	layer    int                // the last one with an entry of this name
	pruned   int                // the last one that emptied this directory of what lower layers had
}

func newModel() *model { return &model{root: newDirectory()} }

// newDirectory returns a directory as it is when no entry describes it.
func newDirectory() *member {
	return &member{node: &catalog.Node{Attr: catalog.Attr{Type: catalog.Dir, Mode: 0o755}}}
}

// splitName checks a name of an archive and returns its components, none for the root.
func splitName(name string) ([]string, error) {
	if name == "" || len(name) >= namespace.PathBytesMax {
		return nil, invalid("a name of %d bytes", len(name))
	}
	if name[0] == '/' {
		return nil, invalid("an absolute name")
	}
	var path []string
	for part := range strings.SplitSeq(name, "/") {
		switch {
		case part == "" || part == ".":
			continue
		case part == "..":
			return nil, invalid("a name that leads upwards")
		case strings.IndexByte(part, 0) >= 0:
			return nil, invalid("a name with a zero byte")
		case len(part) > namespace.NameBytesMax:
			return nil, namespace.E(namespace.Limit, "", "",
				fmt.Errorf("a component of %d bytes, at most %d", len(part), namespace.NameBytesMax))
		}
		path = append(path, part)
	}
	if len(path) > namespace.DepthMax {
		return nil, namespace.E(namespace.Limit, "", "", fmt.Errorf("%d directories deep", len(path)))
	}
	return path, nil
}

// parent returns the directory that holds path's last component, creating those that lack.
func (m *model) parent(path []string) (*member, error) {
	at := m.root
	for i, name := range path[:len(path)-1] {
		next := at.children[name]
		if next == nil {
			next = newDirectory()
			next.layer = m.layer
			at.set(name, next)
		}
		if next.node.Type != catalog.Dir {
			return nil, invalid("its parent %q is a %v", strings.Join(path[:i+1], "/"), next.node.Type)
		}
		at = next
	}
	return at, nil
}

func (m *member) set(name string, child *member) {
	if m.children == nil {
		m.children = map[string]*member{}
	}
	m.children[name] = child
}

// put places node at path. A directory on a directory keeps the children; anything else replaces
// what was there.
func (m *model) put(path []string, node *catalog.Node) error {
	if len(path) == 0 {
		if node.Type != catalog.Dir {
			return invalid("the root is a %v", node.Type)
		}
		m.root.node, m.root.layer = node, m.layer
		return nil
	}
	dir, err := m.parent(path)
	if err != nil {
		return err
	}
	name := path[len(path)-1]
	if old := dir.children[name]; old != nil && old.node.Type == catalog.Dir && node.Type == catalog.Dir {
		old.node, old.layer = node, m.layer
		return nil
	}
	dir.set(name, &member{node: node, layer: m.layer})
	return nil
}

// hardLink makes path another name of target, which an earlier entry described.
func (m *model) hardLink(path, target []string) error {
	if len(path) == 0 {
		return invalid("the root is a hard link")
	}
	at := m.root
	for _, name := range target {
		if at = at.children[name]; at == nil {
			return invalid("a hard link to %q, which no entry before describes", strings.Join(target, "/"))
		}
	}
	if at.node.Type == catalog.Dir {
		return invalid("a hard link to the directory %q", strings.Join(target, "/"))
	}
	dir, err := m.parent(path)
	if err != nil {
		return err
	}
	dir.set(path[len(path)-1], &member{node: at.node, layer: m.layer})
	return nil
}

// scan returns the tree. Every name gets a node of its own; those of one file are a group.
func (m *model) scan() *scan {
	s := &scan{root: m.root.node}
	names := map[*catalog.Node][]*catalog.Node{}
	var visit func(dir *member)
	visit = func(dir *member) {
		for name, child := range dir.children {
			n := child.node
			if child.children != nil {
				visit(child)
			}
			if others, ok := names[n]; ok {
				n = &catalog.Node{}
				names[child.node] = append(others, n)
			} else {
				names[n] = []*catalog.Node{n}
			}
			n.Name = name
			dir.node.Children = append(dir.node.Children, n)
		}
	}
	visit(m.root)
	for _, group := range names {
		if len(group) > 1 {
			s.groups = append(s.groups, group)
		}
	}
	return s
}
