package catalog

import (
	"cmp"
	"slices"

	"coppice.dev/coppice/namespace"
)

// The rule by which Split cuts, part of the format: other values would give other digests.
const (
	splitAt    = namespace.CatalogEntriesSplit // a subtree this heavy becomes a catalog
	splitOver  = 4 * splitAt                   // a directory heavier than this sheds children
	splitFloor = 16                            // children lighter than this are never shed
)

// Split encodes the tree under root as nested catalogs, bottom up, and returns the root catalog's
// digest. emit receives every catalog's bytes, children before parents, with the node it stands
// for, stores them and returns their digest; it may be called for one catalog at a time only.
// The tree is consumed: split directories end up as nested references.
//
// The rule: the weight of a directory is 1 plus that of its children; a child that became a
// catalog, or is no directory, weighs 1. A directory that weighs more than 32k entries sheds its
// child directories, first those of at least 4k entries, then 2k, and so on down to 16, until it
// does not; one that then weighs 8k or more becomes a catalog. It depends on nothing but the
// tree, so an unchanged subtree keeps its catalogs whatever happens beside it.
// Kinds: those of [Encode] and of emit.
func Split(root *Node, emit func(b []byte, root *Node) (namespace.Digest, error)) (namespace.Digest, error) {
	s := splitter{emit: emit}
	if _, err := s.visit(root, true); err != nil {
		return namespace.Digest{}, err
	}
	ref, err := s.seal(root)
	return ref.Digest, err
}

type splitter struct {
	emit func([]byte, *Node) (namespace.Digest, error)
}

// visit cuts below n, and n itself unless it is the root, and returns n's remaining weight.
func (s *splitter) visit(n *Node, root bool) (int, error) {
	slices.SortFunc(n.Children, func(a, b *Node) int { return cmp.Compare(a.Name, b.Name) })
	weight := 1
	weights := map[*Node]int{}
	for _, c := range n.Children {
		w := 1
		if c.Type == Dir && c.Nested == nil {
			var err error
			if w, err = s.visit(c, false); err != nil {
				return 0, err
			}
			if c.Nested == nil {
				weights[c] = w
			}
		}
		weight += w
	}
	for floor := splitAt / 2; weight > splitOver && floor >= splitFloor; floor /= 2 {
		for _, c := range n.Children {
			if w := weights[c]; w >= floor {
				if err := s.cut(c); err != nil {
					return 0, err
				}
				delete(weights, c)
				weight -= w - 1
			}
		}
	}
	if !root && weight >= splitAt {
		return 1, s.cut(n)
	}
	return weight, nil
}

// cut makes n a nested reference to a catalog of its own.
func (s *splitter) cut(n *Node) error {
	ref, err := s.seal(n)
	if err == nil {
		n.Children, n.Nested = nil, &ref
	}
	return err
}

// seal encodes and emits the catalog whose root is n.
func (s *splitter) seal(n *Node) (Nested, error) {
	top := *n
	top.Name = ""
	b, ref, err := encode(&top)
	if err != nil {
		return Nested{}, err
	}
	n.Nlink = top.Nlink
	ref.Digest, err = s.emit(b, n)
	return ref, err
}
