package catalog_test

import (
	"fmt"
	"reflect"
	"slices"
	"testing"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/catalog"
)

// sized returns a file of chunks of 10 bytes each, named after what it holds; "-" is a hole.
func sized(name string, chunks ...string) *catalog.Node {
	n := &catalog.Node{Name: name, Attr: catalog.Attr{Type: catalog.File, Mode: 0o644, Nlink: 1}}
	for _, c := range chunks {
		n.Size += 10
		ch := catalog.Chunk{End: n.Size}
		if c != "-" {
			ch.Digest = namespace.Sum([]byte(c))
		}
		n.Chunks = append(n.Chunks, ch)
	}
	return n
}

// TestProfileThereAndBack: what was read of a tree is a profile, which means the same chunks there, and
// what is left of them in the next version.
func TestProfileThereAndBack(t *testing.T) {
	s := store{}
	bin := dir("bin")
	for i := range namespace.CatalogEntriesSplit {
		bin.Children = append(bin.Children, sized(fmt.Sprintf("tool%05d", i), fmt.Sprint("tool", i)))
	}
	tree := dir("", bin, dir("etc", sized("conf", "conf"), sized("empty")), dir("lib", sized("big", "b0", "b1", "-", "b3", "b4"), sized("copy", "conf")))
	root := s.split(t, tree)
	ctx := t.Context()
	nested, _, err := catalog.Resolve(ctx, s, root, "bin")
	if err != nil || nested.Total() < namespace.CatalogEntriesSplit {
		t.Fatalf("bin is not a catalog of its own: %v", err)
	}
	access := func(path string, chunk int) catalog.Access {
		c, e, err := catalog.Resolve(ctx, s, root, path)
		if err != nil {
			t.Fatal(err)
		}
		lo, _ := c.Chunks(e.Index)
		for d := range s {
			if got, err := s.Catalog(ctx, d); err == nil && got.Total() == c.Total() && got.Len() == c.Len() {
				return catalog.Access{Catalog: d, Index: uint32(lo + chunk)}
			}
		}
		t.Fatal("no such catalog")
		return catalog.Access{}
	}
	tool := access("bin/tool00007", 0)
	accesses := []catalog.Access{
		{Catalog: root, Index: catalog.AccessCatalog}, {Catalog: tool.Catalog, Index: catalog.AccessCatalog}, tool,
		access("lib/big", 3), access("lib/big", 0), access("lib/big", 1), access("etc/conf", 0), tool,
		{Catalog: namespace.Sum([]byte("another tree")), Index: 1}, {Catalog: root, Index: 1 << 30},
	}
	entries, others, err := catalog.ProfileEntries(ctx, s, accesses, root)
	want := []namespace.ProfileEntry{{Path: "bin"}, {Path: "bin/tool00007"}, {Path: "lib/big", Off: 30, Len: 10},
		{Path: "lib/big", Off: 0, Len: 20}, {Path: "etc/conf"}}
	if err != nil || others != 2 || !reflect.DeepEqual(entries, want) {
		t.Fatalf("%+v, %d others, %v", entries, others, err)
	}

	p := &namespace.Profile{Format: 1, Name: "p", Entries: append(entries,
		namespace.ProfileEntry{Path: "lib/copy"}, namespace.ProfileEntry{Path: "etc/empty"}, namespace.ProfileEntry{Path: "etc/conf/below"},
		namespace.ProfileEntry{Path: "gone"}, namespace.ProfileEntry{Path: "lib/big", Off: 45, Len: 1000}, namespace.ProfileEntry{Path: "lib/big", Off: 90, Len: 9})}
	r, err := catalog.ResolveProfile(ctx, s, root, p)
	if err != nil {
		t.Fatal(err)
	}
	var got []namespace.Digest
	for _, c := range r.Chunks {
		cat, err := s.Catalog(ctx, c.Catalog)
		if err != nil || cat.Chunk(int(c.Index)).Digest != c.Digest || cat.ChunkLen(int(c.Index)) != uint64(c.Size) {
			t.Errorf("%+v is not a chunk of its catalog", c)
		}
		got = append(got, c.Digest)
	}
	if !slices.Equal(got, sums("tool7", "b3", "b0", "b1", "conf", "b4")) || r.Absent != 3 ||
		!slices.Equal(r.Catalogs, []namespace.Digest{root, tool.Catalog}) {
		t.Errorf("%d chunks, %d absent, %d catalogs", len(got), r.Absent, len(r.Catalogs))
	}

	// The next version: a file went, another is cut in other places.
	tree = dir("", dir("bin", sized("tool00001", "tool1")), dir("etc", sized("conf", "conf"), sized("empty")),
		dir("lib", sized("big", "n0", "b1", "n2", "b3", "n4"), sized("copy", "conf")))
	next := s.split(t, tree)
	if again, others, err := catalog.ProfileEntries(ctx, s, append(accesses, catalog.Access{Catalog: next, Index: catalog.AccessCatalog}), next, root); err != nil ||
		others != 2 || !reflect.DeepEqual(again, entries) {
		t.Errorf("of two versions: %+v, %d others, %v", again, others, err)
	}
	if r, err = catalog.ResolveProfile(ctx, s, next, p); err != nil || r.Absent != 4 || len(r.Catalogs) != 1 ||
		len(r.Chunks) != 5 || r.Chunks[0].Digest != namespace.Sum([]byte("b3")) {
		t.Errorf("in the next version: %+v, %v", r, err)
	}
	if _, err := catalog.ResolveProfile(ctx, s, namespace.Sum([]byte("none")), p); err == nil {
		t.Error("a root that is not there resolves")
	}
}

func sums(all ...string) (d []namespace.Digest) {
	for _, s := range all {
		d = append(d, namespace.Sum([]byte(s)))
	}
	return d
}
