package builder

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/catalog"
)

// link completes the tree: names of one file get the same content and the path of the first of
// them, in the order in which a walk meets them. Names outside the tree do not count.
func (s *scan) link(ctx context.Context) error {
	if s.finish != nil {
		if err := s.finish(ctx); err != nil {
			return err
		}
	}
	group := map[*catalog.Node][]*catalog.Node{}
	for _, names := range s.groups {
		first := names[0]
		for _, n := range names {
			name := n.Name
			*n = *first
			n.Name, n.Nlink = name, uint32(len(names))
			if len(names) > 1 {
				group[n] = names
			}
		}
	}
	l := linker{group: group}
	return l.walk(s.root, make([]byte, 0, 256), 0)
}

type linker struct {
	group map[*catalog.Node][]*catalog.Node
}

// walk visits names in order and checks the depth on the way, which the format bounds.
func (l *linker) walk(n *catalog.Node, path []byte, depth int) error {
	if depth > namespace.DepthMax {
		return namespace.E(namespace.Limit, "import", string(path),
			fmt.Errorf("more than %d directories deep", namespace.DepthMax))
	}
	slices.SortFunc(n.Children, func(a, b *catalog.Node) int { return cmp.Compare(a.Name, b.Name) })
	for _, c := range n.Children {
		at := path
		if len(at) > 0 {
			at = append(at, '/')
		}
		at = append(at, c.Name...)
		if c.Type == catalog.Dir {
			if err := l.walk(c, at, depth+1); err != nil {
				return err
			}
			continue
		}
		if names := l.group[c]; names != nil && c.Link == "" {
			if len(at) > namespace.PathBytesMax {
				return namespace.E(namespace.Limit, "import", string(at),
					fmt.Errorf("a path of %d bytes, at most %d", len(at), namespace.PathBytesMax))
			}
			for _, other := range names {
				other.Link = string(at)
			}
		}
	}
	return nil
}
