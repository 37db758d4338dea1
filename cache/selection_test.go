package cache_test

import (
	"context"
	"fmt"
	"testing"

	"coppice.dev/coppice/cache"
	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/catalog"
)

// shelf is a loader of catalogs in memory.
type shelf map[namespace.Digest]*catalog.Catalog

// Catalog implements catalog.Loader.
func (s shelf) Catalog(_ context.Context, d namespace.Digest) (*catalog.Catalog, error) {
	if c := s[d]; c != nil {
		return c, nil
	}
	return nil, namespace.E(namespace.NotExist, "load", d.String(), nil)
}

func (s shelf) add(t *testing.T, dir *catalog.Node) catalog.Nested {
	t.Helper()
	b, err := catalog.Encode(dir)
	if err != nil {
		t.Fatal(err)
	}
	c, err := catalog.Open(b)
	if err != nil {
		t.Fatal(err)
	}
	d := namespace.Sum(b)
	s[d] = c
	return catalog.Nested{Digest: d, Entries: c.Total(), Bytes: c.Bytes()}
}

func file(name string, size int) *catalog.Node {
	return &catalog.Node{Name: name, Attr: catalog.Attr{Type: catalog.File, Mode: 0o644, Size: uint64(size), Nlink: 1},
		Chunks: []catalog.Chunk{{Digest: namespace.Sum([]byte(name)), End: uint64(size)}}}
}

func symlink(name, to string) *catalog.Node {
	return &catalog.Node{Name: name, Attr: catalog.Attr{Type: catalog.Symlink, Mode: 0o777, Size: uint64(len(to)), Nlink: 1}, Target: to}
}

// selected makes a tree with a catalog of its own at usr/lib:
//
//	bin -> usr/bin   etc/hosts=1   usr/bin/py -> py3   usr/bin/py3=2   usr/bin/lib -> ../lib
//	usr/lib/a.so=4   usr/lib/b.so=8   usr/lib/mod/c.py=16   loop -> loop/x   out -> /../../nowhere
func selected(t *testing.T) (shelf, namespace.Digest) {
	t.Helper()
	s := shelf{}
	ref := s.add(t, dirNode("", file("a.so", 4), file("b.so", 8), dirNode("mod", file("c.py", 16))))
	lib := dirNode("lib")
	lib.Nested = &ref
	lib.Nlink = s[ref.Digest].Entry(0).Nlink
	root := dirNode("", symlink("bin", "usr/bin"), dirNode("etc", file("hosts", 1)), symlink("loop", "loop/x"), symlink("out", "/../../nowhere"),
		dirNode("usr", dirNode("bin", symlink("lib", "../lib"), symlink("py", "py3"), file("py3", 2)), lib))
	return s, s.add(t, root).Digest
}

func TestResolve(t *testing.T) {
	s, root := selected(t)
	for _, c := range []struct {
		what  cache.Selection
		files int64
		bytes int64
	}{
		{cache.Selection{}, 0, 0},
		{cache.Selection{All: true}, 5, 31},
		{cache.Selection{Paths: []string{"/"}}, 5, 31},
		{cache.Selection{Paths: []string{"etc/hosts"}}, 1, 1},
		{cache.Selection{Paths: []string{"/usr/lib"}}, 3, 28},
		{cache.Selection{Paths: []string{"/usr/lib/*.so"}}, 2, 12},
		{cache.Selection{Paths: []string{"**/*.py"}}, 1, 16},
		{cache.Selection{Paths: []string{"/usr/lib/{a,b}.so", "usr/lib/a.so"}}, 2, 12},
		{cache.Selection{Paths: []string{"usr/lib/mod/"}}, 1, 16},
		{cache.Selection{Paths: []string{"usr/bin/py"}}, 1, 2}, // with what the link leads to
		{cache.Selection{Paths: []string{"bin"}}, 4, 30},       // the directory, and what its links lead to
		{cache.Selection{Paths: []string{"usr/bin/lib"}}, 3, 28},
		{cache.Selection{Paths: []string{"loop", "out", "no/such"}}, 0, 0},
		{cache.Selection{Paths: []string{cache.Exactly("usr/lib/a.so"), cache.Exactly("/usr/lib/mod"), cache.Exactly(""), cache.Exactly("etc/*")}}, 1, 4},
	} {
		t.Run(fmt.Sprint(c.what), func(t *testing.T) {
			set, err := cache.Resolve(t.Context(), s, root, c.what)
			if err != nil {
				t.Fatal(err)
			}
			again, err := cache.Resolve(t.Context(), s, root, c.what)
			if err != nil || again.Digest != set.Digest {
				t.Errorf("resolved twice: %v, %v", set.Digest, err)
			}
			if set.Bytes != c.bytes || set.Chunks != c.files {
				t.Errorf("%d chunks, %d bytes; want %d, %d bytes", set.Chunks, set.Bytes, c.files, c.bytes)
			}
		})
	}
}

// A plain path through a symlinked directory means what it leads to.
func TestResolveThroughLink(t *testing.T) {
	s, root := selected(t)
	set, err := cache.Resolve(t.Context(), s, root, cache.Selection{Paths: []string{"/bin/py", "/usr/bin/lib/mod"}})
	if err != nil || set.Bytes != 2+16 {
		t.Errorf("%d bytes, %v", set.Bytes, err)
	}
}

func TestResolveRefuses(t *testing.T) {
	s, root := selected(t)
	for _, p := range []string{"", "[", "a{b"} {
		_, err := cache.Resolve(t.Context(), s, root, cache.Selection{Paths: []string{p}})
		if !namespace.IsKind(err, namespace.Invalid) {
			t.Errorf("%q: %v", p, err)
		}
	}
	many := cache.Selection{Paths: make([]string, 2000)}
	for i := range many.Paths {
		many.Paths[i] = "*"
	}
	if _, err := cache.Resolve(t.Context(), s, root, many); !namespace.IsKind(err, namespace.Limit) {
		t.Errorf("2000 patterns: %v", err)
	}
	if _, err := cache.Resolve(t.Context(), shelf{}, root, cache.Selection{}); !namespace.IsKind(err, namespace.NotExist) {
		t.Errorf("no catalog: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := cache.Resolve(ctx, s, root, cache.Selection{All: true}); !namespace.IsKind(err, namespace.Canceled) {
		t.Errorf("canceled: %v", err)
	}
}
