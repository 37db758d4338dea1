package catalog_test

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/catalog"
)

func dir(name string, children ...*catalog.Node) *catalog.Node {
	return &catalog.Node{Name: name, Attr: catalog.Attr{Type: catalog.Dir, Mode: 0o755}, Children: children}
}

func file(name, content string) *catalog.Node {
	n := &catalog.Node{Name: name, Attr: catalog.Attr{Type: catalog.File, Mode: 0o644, Nlink: 1, Size: uint64(len(content))}}
	if content != "" {
		n.Chunks = []catalog.Chunk{{Digest: namespace.Sum([]byte(content)), End: n.Size}}
	}
	return n
}

func symlink(name, target string) *catalog.Node {
	return &catalog.Node{Name: name, Target: target,
		Attr: catalog.Attr{Type: catalog.Symlink, Mode: 0o777, Nlink: 1, Size: uint64(len(target))}}
}

// sample holds one of everything.
func sample() *catalog.Node {
	linked := func(name string) *catalog.Node {
		n := file(name, "shared")
		n.Nlink, n.Link = 2, "bin/a"
		return n
	}
	sparse := file("sparse", "")
	sparse.Size = 10 << 30
	sparse.Chunks = []catalog.Chunk{
		{End: 1 << 30},
		{Digest: namespace.Sum([]byte("x")), End: 1<<30 + 4096},
		{Digest: namespace.Sum([]byte("y")), End: 1<<30 + 8192},
		{End: 10 << 30},
	}
	caps := file("ping", "elf")
	caps.Mode = 0o4755
	caps.Xattrs = []catalog.Xattr{xattr("user.z", "last"), xattr("security.capability", "\x01\x00\x00\x02"), xattr("user.empty", "")}
	old := file("old", "x")
	old.MtimeSec, old.MtimeNsec = -1, 999999999
	dev := &catalog.Node{Name: "null", Attr: catalog.Attr{Type: catalog.CharDevice, Mode: 0o666, Nlink: 1, Size: 1<<32 | 3}}
	blk := &catalog.Node{Name: "sda", Attr: catalog.Attr{Type: catalog.BlockDevice, Nlink: 1, Size: 8 << 32}}
	fifo := &catalog.Node{Name: "pipe", Attr: catalog.Attr{Type: catalog.Fifo, Mode: 0o600, Nlink: 1}}
	root := dir("",
		dir("dev", dev, blk, fifo), dir("empty"),
		dir("bin", linked("b"), linked("a"), caps, symlink("sh", "bash"), symlink("abs", "/bin/bash")),
		sparse, old, file("zero", ""), file("\xff\xfe\n", "bytes"), file(strings.Repeat("n", 255), "long"))
	root.UID, root.GID = 1<<32-2, 7
	return root
}

func encode(t testing.TB, n *catalog.Node) []byte {
	t.Helper()
	b, err := catalog.Encode(n)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func open(t testing.TB, b []byte) *catalog.Catalog {
	t.Helper()
	c, err := catalog.Open(b)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestRoundTrip(t *testing.T) {
	b := encode(t, sample())
	c := open(t, b)
	if again := encode(t, c.Nodes()); !bytes.Equal(b, again) {
		t.Fatal("Encode(Nodes(Open(b))) is not b")
	}
	if c.Total() != uint64(c.Len()) {
		t.Errorf("total %d of %d entries", c.Total(), c.Len())
	}
	if want := uint64(len("shared")+len("elf")+len("x")+len("bytes")+len("long")) + 8192; c.Bytes() != want {
		t.Errorf("%d bytes, want %d", c.Bytes(), want)
	}
}

func TestEncodeIgnoresOrder(t *testing.T) {
	want := encode(t, sample())
	n := sample()
	for range 20 {
		shuffle(n)
		if !bytes.Equal(encode(t, n), want) {
			t.Fatal("the order of children changed the bytes")
		}
	}
}

func shuffle(n *catalog.Node) {
	rand.Shuffle(len(n.Children), func(i, j int) { n.Children[i], n.Children[j] = n.Children[j], n.Children[i] })
	for _, c := range n.Children {
		shuffle(c)
	}
}

func TestLookup(t *testing.T) {
	c := open(t, encode(t, sample()))
	bin, ok := c.Lookup(0, []byte("bin"))
	if !ok {
		t.Fatal("bin is not there")
	}
	for i := 1; i < c.Len(); i++ {
		p := c.Parent(i)
		if got, ok := c.Lookup(p, c.Entry(i).Name); !ok || got != i {
			t.Errorf("entry %d is not found under its parent %d", i, p)
		}
	}
	for _, name := range []string{"", "aa", "bin", "zzzz", "a\x00"} {
		if i, ok := c.Lookup(bin, []byte(name)); ok {
			t.Errorf("found %q at %d", name, i)
		}
	}
	ping, _ := c.Lookup(bin, []byte("ping"))
	if v, ok := c.Xattr(ping, "security.capability"); !ok || !bytes.Equal(v, []byte{1, 0, 0, 2}) {
		t.Errorf("capability is %v", v)
	}
	if v, ok := c.Xattr(ping, "user.empty"); !ok || len(v) != 0 {
		t.Errorf("empty xattr is %v, %v", v, ok)
	}
	if got := len(c.Xattrs(ping)); got != 3 {
		t.Errorf("%d xattrs", got)
	}
	b, _ := c.Lookup(bin, []byte("b"))
	if got := string(c.Link(b)); got != "bin/a" {
		t.Errorf("link is %q", got)
	}
	if e := c.Entry(b); e.Nlink != 2 || e.Size != 6 {
		t.Errorf("linked file has %d names and %d bytes", e.Nlink, e.Size)
	}
}

func TestFindChunk(t *testing.T) {
	c := open(t, encode(t, sample()))
	i, _ := c.Lookup(0, []byte("sparse"))
	lo, _ := c.Chunks(i)
	for _, x := range []struct {
		off, start uint64
		chunk      int
		ok         bool
	}{
		{0, 0, 0, true}, {1<<30 - 1, 0, 0, true}, {1 << 30, 1 << 30, 1, true},
		{1<<30 + 4096, 1<<30 + 4096, 2, true}, {10<<30 - 1, 1<<30 + 8192, 3, true}, {10 << 30, 0, 0, false},
	} {
		k, start, ok := c.FindChunk(i, x.off)
		if ok != x.ok || ok && (k-lo != x.chunk || start != x.start) {
			t.Errorf("byte %d is in extent %d from %d (%v), want %d from %d", x.off, k-lo, start, ok, x.chunk, x.start)
		}
	}
	if got := c.ChunkLen(lo + 1); got != 4096 {
		t.Errorf("extent 1 has %d bytes", got)
	}
	if got := c.ChunkLen(lo); got != 1<<30 {
		t.Errorf("extent 0 has %d bytes", got)
	}
}

func TestEncodeRefuses(t *testing.T) {
	change := func(f func(n *catalog.Node)) *catalog.Node {
		n := file("f", "x")
		f(n)
		return dir("", n)
	}
	for name, x := range map[string]struct {
		root *catalog.Node
		kind namespace.Kind
	}{
		"dot":         {dir("", file("..", "")), namespace.Invalid},
		"slash":       {dir("", file("a/b", "")), namespace.Invalid},
		"nul":         {dir("", file("a\x00", "")), namespace.Invalid},
		"long name":   {dir("", file(strings.Repeat("n", 256), "")), namespace.Limit},
		"twice":       {dir("", file("a", ""), file("a", "")), namespace.Exist},
		"named root":  {dir("x"), namespace.Invalid},
		"file root":   {file("", "x"), namespace.Invalid},
		"mode":        {change(func(n *catalog.Node) { n.Mode = 0o10000 }), namespace.Invalid},
		"nsec":        {change(func(n *catalog.Node) { n.MtimeNsec = 1e9 }), namespace.Invalid},
		"type":        {change(func(n *catalog.Node) { n.Type = 99 }), namespace.Invalid},
		"size":        {change(func(n *catalog.Node) { n.Size++ }), namespace.Invalid},
		"lone link":   {change(func(n *catalog.Node) { n.Nlink = 2 }), namespace.Invalid},
		"children":    {change(func(n *catalog.Node) { n.Children = []*catalog.Node{file("y", "")} }), namespace.Invalid},
		"target":      {dir("", symlink("l", "")), namespace.Invalid},
		"long target": {dir("", symlink("l", strings.Repeat("t", 4096))), namespace.Invalid},
		"xattr twice": {change(func(n *catalog.Node) { n.Xattrs = []catalog.Xattr{xattr("user.a", ""), xattr("user.a", "")} }), namespace.Invalid},
		"xattr large": {change(func(n *catalog.Node) { n.Xattrs = []catalog.Xattr{xattr("user.a", strings.Repeat("v", 1<<17))} }), namespace.Invalid},
		"big chunk": {change(func(n *catalog.Node) {
			n.Size = namespace.ChunkBytesMax + 1
			n.Chunks[0].End = n.Size
		}), namespace.Invalid},
	} {
		if _, err := catalog.Encode(x.root); !namespace.IsKind(err, x.kind) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestOpenRefusesEveryChange flips each bit of a catalog: what still opens must re-encode to the
// same bytes, so that no two byte strings mean the same tree.
func TestOpenRefusesEveryChange(t *testing.T) {
	b := encode(t, sample())
	refused := 0
	for i := range b {
		for bit := range 8 {
			m := bytes.Clone(b)
			m[i] ^= 1 << bit
			if !reopens(t, m) {
				refused++
			}
		}
	}
	if refused < len(b) {
		t.Errorf("only %d of %d changes were refused", refused, 8*len(b))
	}
	for n := range b {
		if _, err := catalog.Open(b[:n]); !namespace.IsKind(err, namespace.Corrupt) {
			t.Fatalf("cut at %d: %v", n, err)
		}
	}
	if _, err := catalog.Open(append(bytes.Clone(b), 0)); err == nil {
		t.Error("a byte too many was accepted")
	}
}

// reopens reports whether b opens; if it does, it must be canonical.
func reopens(t testing.TB, b []byte) bool {
	c, err := catalog.Open(b)
	if err != nil {
		if !namespace.IsKind(err, namespace.Corrupt) {
			t.Fatalf("the wrong kind: %v", err)
		}
		return false
	}
	again, err := catalog.Encode(c.Nodes())
	if err != nil || !bytes.Equal(again, b) {
		t.Fatalf("accepted bytes that are not canonical: %v", err)
	}
	return true
}

func FuzzOpen(f *testing.F) {
	f.Add(encode(f, sample()))
	f.Add(encode(f, dir("")))
	nested := dir("sub")
	nested.Nested, nested.Nlink = &catalog.Nested{Digest: namespace.Sum(nil), Entries: 9, Bytes: 1, TreeRoot: true}, 3
	f.Add(encode(f, dir("", nested, file("x", "y"))))
	f.Fuzz(func(t *testing.T, b []byte) { reopens(t, b) })
}

// store keeps catalogs in memory.
type store map[namespace.Digest][]byte

func (s store) put(b []byte, _ *catalog.Node) (namespace.Digest, error) {
	d := namespace.Sum(b)
	s[d] = b
	return d, nil
}

func (s store) Catalog(_ context.Context, d namespace.Digest) (*catalog.Catalog, error) {
	b, ok := s[d]
	if !ok {
		return nil, namespace.E(namespace.NotExist, "load", d.String(), nil)
	}
	return catalog.Open(b)
}

func (s store) split(t testing.TB, root *catalog.Node) namespace.Digest {
	t.Helper()
	d, err := catalog.Split(root, s.put)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// wide makes dirs directories of files files each.
func wide(name string, dirs, files int) *catalog.Node {
	root := dir(name)
	for i := range dirs {
		d := dir(fmt.Sprintf("d%05d", i))
		for k := range files {
			d.Children = append(d.Children, file(fmt.Sprintf("f%05d", k), fmt.Sprint(name, i, k)))
		}
		root.Children = append(root.Children, d)
	}
	return root
}

func TestSplitBoundsCatalogs(t *testing.T) {
	for name, x := range map[string]struct {
		root             *catalog.Node
		entries, largest int
	}{
		"small":     {wide("", 10, 10), 111, 111},
		"one dir":   {wide("", 1, 100_000), 100_002, 100_001},
		"many dirs": {wide("", 600, 100), 60_601, 33_000},
		"deep":      {dir("", dir("usr", wide("share", 300, 60), wide("lib", 300, 60))), 36_604, 33_000},
	} {
		s := store{}
		root := s.split(t, x.root)
		largest, count := 0, 0
		for _, b := range s {
			largest = max(largest, open(t, b).Len())
		}
		err := catalog.Walk(t.Context(), s, root, func(string, *catalog.Catalog, catalog.Entry) error { count++; return nil })
		if err != nil || count != x.entries || largest > x.largest {
			t.Errorf("%s: %d entries, largest catalog %d (%d catalogs): %v", name, count, largest, len(s), err)
		}
	}
}

// TestSplitKeepsUnchangedCatalogs changes one file: only the catalogs on its way may be new.
func TestSplitKeepsUnchangedCatalogs(t *testing.T) {
	build := func(change bool) *catalog.Node {
		root := dir("", dir("usr", wide("share", 300, 60), wide("lib", 300, 60)), wide("opt", 100, 100))
		if change {
			root.Children[0].Children[0].Children[7].Children[3] = file("f00003", "patched")
		}
		return root
	}
	s := store{}
	a := s.split(t, build(false))
	before := len(s)
	b := s.split(t, build(true))
	if before < 4 || len(s)-before > 3 {
		t.Errorf("%d catalogs, %d new for a change of one file", before, len(s)-before)
	}
	var changes []string
	err := catalog.Diff(t.Context(), s, a, b, func(c catalog.Change) error {
		changes = append(changes, c.Path+" "+c.What.String())
		return nil
	})
	if want := []string{"usr/share/d00007/f00003 content"}; err != nil || !slices.Equal(changes, want) {
		t.Errorf("diff is %v, %v", changes, err)
	}
}

func TestDiff(t *testing.T) {
	s := store{}
	a := s.split(t, dir("", dir("gone", file("x", "1")), file("mode", ""), file("type", ""), symlink("to", "a"), dir("same", file("f", "f"))))
	mode := file("mode", "")
	mode.Mode, mode.UID, mode.MtimeSec = 0o600, 5, 9
	mode.Xattrs = []catalog.Xattr{xattr("user.a", "b")}
	b := s.split(t, dir("", dir("new", file("y", "1")), mode, dir("type"), symlink("to", "b"), dir("same", file("f", "f"))))
	var got []string
	if err := catalog.Diff(t.Context(), s, a, b, func(c catalog.Change) error {
		got = append(got, c.Path+": "+c.What.String())
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	want := []string{"gone: removed", "gone/x: removed", "mode: mode,owner,mtime,xattrs", "new: added", "new/y: added", "to: content", "type: type,mode"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q\nwant %q", got, want)
	}
}

func TestEnterRefusesAnotherCatalog(t *testing.T) {
	s := store{}
	root := s.split(t, dir("", wide("big", 100, 100)))
	lying := catalog.LoaderFunc(func(ctx context.Context, d namespace.Digest) (*catalog.Catalog, error) {
		if d != root {
			return catalog.Open(encode(t, dir("", file("evil", "x"))))
		}
		return s.Catalog(ctx, d)
	})
	err := catalog.Walk(t.Context(), lying, root, func(string, *catalog.Catalog, catalog.Entry) error { return nil })
	if !namespace.IsKind(err, namespace.Corrupt) {
		t.Errorf("a catalog that is not the one meant: %v", err)
	}
}

func TestResolve(t *testing.T) {
	s := store{}
	root := s.split(t, dir("", wide("big", 100, 100), symlink("l", "big")))
	for path, found := range map[string]bool{"": true, "big": true, "big/d00003/f00009": true, "/big/": true, "l/d00003": false, "none": false} {
		if _, _, err := catalog.Resolve(t.Context(), s, root, path); (err == nil) != found {
			t.Errorf("%q: %v", path, err)
		}
	}
}

func BenchmarkOpen(b *testing.B) {
	data := encode(b, wide("", 80, 100))
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		open(b, data)
	}
}

func BenchmarkLookup(b *testing.B) {
	c := open(b, encode(b, wide("", 80, 100)))
	name := []byte("f00050")
	d, _ := c.Lookup(0, []byte("d00040"))
	for b.Loop() {
		if _, ok := c.Lookup(d, name); !ok {
			b.Fatal("lost")
		}
	}
}

func xattr(name, value string) catalog.Xattr { return catalog.Xattr{Name: name, Value: []byte(value)} }
