package builder

import (
	"archive/tar"
	"context"
	"fmt"
	"io"
	"strings"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/catalog"
)

// Layer is one tar archive of a [LayersSource].
type Layer struct {
	// Name is the layer's name in errors.
	Name string
	// Open returns the archive from its beginning, plain or compressed as [TarSource] reads it. It
	// is called twice, one call after the other is closed; for the last layer, once. Reading must
	// fail if the bytes are not those that were promised: nothing else checks them.
	Open func(ctx context.Context) (io.ReadCloser, error)
}

// LayersSource imports the tree that tar archives make when they are applied one on top of the
// other, as container images have them. Names may be absolute, which means from the root of the
// tree; apart from that, what [TarSource] refuses is refused here.
//
// An entry ".wh.NAME" removes NAME of the layers below, and ".wh..wh..opq" all that layers below
// have in its directory, whatever else the layer holds and in whatever order. One that removes
// nothing is warned of. A directory on a directory keeps the children and takes the attributes;
// anything else replaces what was there. A hard link may name a file of a layer below.
//
// Layers are read twice, so that content which a later layer removes or replaces is not stored.
type LayersSource struct {
	Layers []Layer // the lowest first
}

// Names with which a layer removes what those below have.
const (
	whiteout       = ".wh."
	whiteoutMeta   = ".wh..wh."
	whiteoutOpaque = ".wh..wh..opq"
)

// layersRead is the state of one import of layers.
type layersRead struct {
	*tarRead
	last    bool            // the layer being read is the last one
	n       int             // its next entry
	content [][]layerExtent // by layer
}

// layerExtent is a file whose content is entry n of a layer.
type layerExtent struct {
	n    int
	size int64
	node *catalog.Node
}

// read implements Source.
func (l LayersSource) read(ctx context.Context, p *pipeline) (*scan, error) {
	if len(l.Layers) > namespace.LayersMax {
		return nil, namespace.E(namespace.Limit, "import", "layers",
			fmt.Errorf("%d of them, at most %d", len(l.Layers), namespace.LayersMax))
	}
	r := &layersRead{tarRead: newTarRead(p), content: make([][]layerExtent, len(l.Layers))}
	defer func() { r.batch.buf.release() }()
	for i, layer := range l.Layers {
		r.model.layer, r.last, r.n = i+1, i == len(l.Layers)-1, 0
		if err := r.open(ctx, layer, r.apply); err != nil {
			return nil, err
		}
	}
	kept := r.model.files()
	for i, layer := range l.Layers {
		if err := r.store(ctx, layer, r.content[i], kept); err != nil {
			return nil, err
		}
	}
	if err := r.flush(); err != nil {
		return nil, err
	}
	return r.model.scan(), nil
}

func (r *layersRead) open(ctx context.Context, layer Layer, fn func(*tar.Header) error) error {
	raw, err := layer.Open(ctx)
	if err != nil {
		return err
	}
	defer raw.Close()
	return r.entries(ctx, raw, layer.Name, fn)
}

// apply changes the model as one entry of the current layer says. Content is left for later, when
// it is known to be kept; that of the last layer is read at once.
func (r *layersRead) apply(h *tar.Header) error {
	n := r.n
	r.n++
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	path, err := layerName(h.Name)
	if err != nil {
		return err
	}
	if done, err := r.whiteout(h, path); done || err != nil {
		return err
	}
	if h.Typeflag == tar.TypeLink {
		target, err := layerName(h.Linkname)
		if err != nil {
			return fmt.Errorf("hard link to %s: %w", quote(h.Linkname), err)
		}
		return r.model.hardLink(path, target)
	}
	node, err := tarNode(h)
	if err != nil {
		return err
	}
	if err := r.model.put(path, node); err != nil {
		return err
	}
	if node.Type != catalog.File || h.Size == 0 {
		return nil
	}
	if r.last {
		return r.tarRead.content(node, h.Size)
	}
	i := r.model.layer - 1
	r.content[i] = append(r.content[i], layerExtent{n, h.Size, node})
	return nil
}

// layerName is splitName of a name that may be absolute.
func layerName(name string) ([]string, error) {
	if relative := strings.TrimLeft(name, "/"); relative != "" || name == "" {
		return splitName(relative)
	}
	return nil, nil
}

// whiteout applies an entry that removes something. done says that there is nothing else to it.
func (r *layersRead) whiteout(h *tar.Header, path []string) (done bool, err error) {
	for i, part := range path {
		name, ok := strings.CutPrefix(part, whiteout)
		if !ok {
			continue
		}
		at, last := path[:i], i == len(path)-1
		switch {
		case part == whiteoutOpaque && last:
			return true, r.removed(h, func() (bool, error) { return r.model.opaque(at) })
		case strings.HasPrefix(part, whiteoutMeta):
			r.p.warn(r.name+" "+quote(h.Name), "bookkeeping of a union file system; left out")
			return true, nil
		case !last || name == "" || name == "." || name == "..":
			return true, invalid("not a name that removes another")
		}
		return true, r.removed(h, func() (bool, error) { return r.model.remove(at, name) })
	}
	return false, nil
}

func (r *layersRead) removed(h *tar.Header, remove func() (bool, error)) error {
	found, err := remove()
	if err == nil && !found {
		r.p.warn(r.name+" "+quote(h.Name), "removes what no layer below has")
	}
	return err
}

// store reads a layer once more for the content that is kept.
func (r *layersRead) store(ctx context.Context, layer Layer, all []layerExtent, kept map[*catalog.Node]bool) error {
	var want []layerExtent
	for _, c := range all {
		if kept[c.node] {
			want = append(want, c)
		}
	}
	if len(want) == 0 {
		return nil
	}
	r.n = 0
	err := r.open(ctx, layer, func(h *tar.Header) error {
		n := r.n
		r.n++
		if len(want) == 0 || want[0].n != n {
			return nil
		}
		c := want[0]
		want = want[1:]
		if h.Size != c.size || tarTypes[h.Typeflag] != catalog.File {
			return namespace.E(namespace.Unavailable, "", "", errChanged)
		}
		return r.tarRead.content(c.node, c.size)
	})
	if err == nil && len(want) > 0 {
		err = namespace.E(namespace.Unavailable, "import", layer.Name, errChanged)
	}
	return err
}

// find returns the directory at path, nil if there is none.
func (m *model) find(path []string) (*member, error) {
	at := m.root
	for i, name := range path {
		if at = at.children[name]; at == nil {
			return nil, nil
		}
		if at.node.Type != catalog.Dir {
			return nil, invalid("its parent %q is a %v", strings.Join(path[:i+1], "/"), at.node.Type)
		}
	}
	return at, nil
}

// opaque removes what layers below the current one have in the directory at path, and reports
// whether there is such a directory.
func (m *model) opaque(path []string) (bool, error) {
	dir, err := m.find(path)
	if dir == nil || err != nil {
		return false, err
	}
	m.prune(dir)
	return true, nil
}

// remove removes what layers below the current one have of name in the directory at path, and
// reports whether there was anything of that name.
func (m *model) remove(path []string, name string) (bool, error) {
	dir, err := m.find(path)
	if dir == nil || err != nil {
		return false, err
	}
	child := dir.children[name]
	if child == nil {
		return false, nil
	}
	if !m.keep(child) {
		delete(dir.children, name)
	}
	return true, nil
}

// prune removes what layers below the current one have in dir. A second call finds nothing more,
// so that repeated entries cost nothing.
func (m *model) prune(dir *member) {
	if dir.pruned == m.layer {
		return
	}
	dir.pruned = m.layer
	for name, child := range dir.children {
		if !m.keep(child) {
			delete(dir.children, name)
		}
	}
}

// keep removes what layers below the current one have in c, and reports whether anything is left.
func (m *model) keep(c *member) bool {
	if c.node.Type != catalog.Dir {
		return c.layer == m.layer
	}
	m.prune(c)
	if c.layer == m.layer || len(c.children) == 0 {
		return c.layer == m.layer
	}
	// Only the layer below described the directory itself.
	c.node, c.layer = newDirectory().node, m.layer
	return true
}

// files returns the files that the model holds.
func (m *model) files() map[*catalog.Node]bool {
	all := map[*catalog.Node]bool{}
	var visit func(*member)
	visit = func(dir *member) {
		for _, c := range dir.children {
			if c.node.Type == catalog.File {
				all[c.node] = true
			} else if c.children != nil {
				visit(c)
			}
		}
	}
	visit(m.root)
	return all
}
