package packages

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/catalog"
)

// memory is trees held in memory: Files for tests.
type memory struct {
	catalogs map[namespace.Digest]*catalog.Catalog
	contents map[namespace.Digest]string
	reads    int
}

func (m *memory) Catalog(_ context.Context, d namespace.Digest) (*catalog.Catalog, error) {
	c, ok := m.catalogs[d]
	if !ok {
		return nil, namespace.E(namespace.NotExist, "read", d.String(), nil)
	}
	return c, nil
}

func (m *memory) ReadFile(_ context.Context, c *catalog.Catalog, i int, limit uint64) ([]byte, error) {
	m.reads++
	e := c.Entry(i)
	if e.Size > limit {
		return nil, namespace.E(namespace.Limit, "read", string(e.Name), nil)
	}
	lo, hi := c.Chunks(i)
	var b []byte
	for ; lo < hi; lo++ {
		b = append(b, m.contents[c.Chunk(lo).Digest]...)
	}
	return b, nil
}

// tree is what a test puts into memory: content by path. "-> x" is a symlink to x; a path that ends in
// "/" is a directory; options for the mode are in modes, for capabilities in caps.
type tree struct {
	files map[string]string
	modes map[string]uint16
	caps  map[string][]byte
}

func (m *memory) put(t *testing.T, in tree) namespace.Digest {
	t.Helper()
	root := &catalog.Node{Attr: catalog.Attr{Type: catalog.Dir, Mode: 0o755}}
	for p, content := range in.files {
		dir := root
		parts := strings.Split(strings.TrimSuffix(p, "/"), "/")
		if !strings.HasSuffix(p, "/") {
			parts = parts[:len(parts)-1]
		}
		for i, name := range parts {
			dir = child(dir, name)
			if mode, ok := in.modes[strings.Join(parts[:i+1], "/")]; ok {
				dir.Mode = mode
			}
		}
		if strings.HasSuffix(p, "/") {
			continue
		}
		n := &catalog.Node{Name: p[strings.LastIndex(p, "/")+1:], Attr: catalog.Attr{Type: catalog.File, Mode: 0o644, Nlink: 1, Size: uint64(len(content))}}
		if mode, ok := in.modes[p]; ok {
			n.Mode = mode
		}
		if target, ok := strings.CutPrefix(content, "-> "); ok {
			n.Type, n.Mode, n.Target, n.Size = catalog.Symlink, 0o777, target, uint64(len(target))
		} else {
			m.chunk(n, content)
		}
		if v := in.caps[p]; v != nil {
			n.Xattrs = []catalog.Xattr{{Name: "security.capability", Value: v}}
		}
		dir.Children = append(dir.Children, n)
	}
	d, err := catalog.Split(root, func(b []byte, _ *catalog.Node) (namespace.Digest, error) {
		c, err := catalog.Open(b)
		m.catalogs[namespace.Sum(b)] = c
		return namespace.Sum(b), err
	})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// chunk cuts content as an import would: small files are one chunk.
func (m *memory) chunk(n *catalog.Node, content string) {
	end := 0
	for end < len(content) {
		size := min(len(content)-end, namespace.ChunkWholeMax)
		part := content[end:][:size]
		end += size
		d := namespace.Sum([]byte(part))
		m.contents[d] = part
		n.Chunks = append(n.Chunks, catalog.Chunk{Digest: d, End: uint64(end)})
	}
}

func child(dir *catalog.Node, name string) *catalog.Node {
	for _, c := range dir.Children {
		if c.Name == name {
			return c
		}
	}
	c := &catalog.Node{Name: name, Attr: catalog.Attr{Type: catalog.Dir, Mode: 0o755}}
	dir.Children = append(dir.Children, c)
	return c
}

func newMemory() *memory {
	return &memory{map[namespace.Digest]*catalog.Catalog{}, map[namespace.Digest]string{}, 0}
}

// readTree reads the table of a tree and checks that it can be stored.
func readTree(t *testing.T, files map[string]string) *Table {
	t.Helper()
	m := newMemory()
	table, err := Read(t.Context(), m, m.put(t, tree{files: files}))
	if err != nil {
		t.Fatal(err)
	}
	b, err := table.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Decode(b, "test"); err != nil {
		t.Fatal(err)
	}
	return table
}

// lines tells a table's packages in one line each.
func lines(table *Table) []string {
	var all []string
	for _, p := range table.Packages {
		s := p.String()
		if p.Arch != "" {
			s += " " + p.Arch
		}
		if p.Source != "" {
			s += fmt.Sprintf(" from %s %s", p.Source, p.SourceVersion)
		}
		all = append(all, strings.TrimSpace(s))
	}
	return all
}
