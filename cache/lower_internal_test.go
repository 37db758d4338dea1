package cache

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"coppice.dev/coppice/internal/disk"
	"coppice.dev/coppice/namespace"
)

// lowered is a tree whose content is in a closed cache, and nowhere else.
func lowered(t *testing.T) (*fixture, string) {
	t.Helper()
	f := newFixture(t, 3, 40, 900, layoutOf{5, 4, 0})
	dir := t.TempDir()
	c := openTest(t, Options{Dir: dir})
	if err := c.Reader(f.origin).Hydrate(t.Context(), f.root, nil); err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	return f, dir
}

// Two private caches over a lower one on a disk that cannot be written: everything is read from there,
// without a network, and nothing is copied but catalogs.
func TestLower(t *testing.T) {
	f, dir := lowered(t)
	if err := syscall.Mount(dir, dir, "", syscall.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	if err := syscall.Mount("", dir, "", syscall.MS_REMOUNT|syscall.MS_BIND|syscall.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		c := openTest(t, Options{Dir: t.TempDir(), Lower: []string{filepath.Join(dir, "none"), dir}})
		r := c.Reader(away{})
		if err := r.Hydrate(t.Context(), f.root, nil); err != nil {
			t.Fatal(err)
		}
		f.readAll(t, r)
		s := c.Stats()
		if s.Segments != 0 || s.Requests != 0 || len(s.Lower) != 2 || s.Lower[0].Error == "" || s.Lower[1].Error != "" ||
			s.Lower[1].Hits < uint64(len(f.refs)) {
			t.Errorf("%+v", s)
		}
	}
}

// A lower cache that its owner is filling is used as far as it goes, and does not disturb the owner.
func TestLowerInUse(t *testing.T) {
	f := newFixture(t, 2, 30, 900, layoutOf{5, 4, 0})
	dir := t.TempDir()
	owner := openTest(t, Options{Dir: dir})
	or := owner.Reader(f.origin)
	c := openTest(t, Options{Dir: t.TempDir(), Lower: []string{dir}})
	r := c.Reader(f.origin)
	for i, ref := range f.refs {
		if err := f.read(t.Context(), or, ref); err != nil {
			t.Fatal(err)
		}
		if i%7 == 0 {
			if err := owner.flushIndex(); err != nil {
				t.Fatal(err)
			}
		}
		if err := f.read(t.Context(), r, ref); err != nil {
			t.Fatal(err)
		}
	}
	if err := owner.Close(); err != nil {
		t.Fatal(err)
	}
	again := openTest(t, Options{Dir: dir})
	if good := f.offline(t, again, "the owner's"); good != len(f.refs) || again.Stats().IndexMade != 0 {
		t.Errorf("%d of %d chunks left, %+v", good, len(f.refs), again.Stats())
	}
}

// Whatever is wrong with a lower cache, all reads are right, and offline those that can be are.
func TestLowerDamaged(t *testing.T) {
	f, dir := lowered(t)
	old := func(b []byte) []byte { return bytes.ReplaceAll(b, bucketChunks, []byte("chunks/9")) }
	for what, damage := range map[string]func(t *testing.T, dir string){
		"no index":     func(t *testing.T, dir string) { remove(t, dir, "index.db") },
		"other format": func(t *testing.T, dir string) { change(t, dir, "index.db", old) },
		"garbage index": func(t *testing.T, dir string) {
			change(t, dir, "index.db", func(b []byte) []byte { return content(1, len(b)) })
		},
		"cut index":   func(t *testing.T, dir string) { change(t, dir, "index.db", func(b []byte) []byte { return b[:4096] }) },
		"no segments": func(t *testing.T, dir string) { remove(t, dir, "segments") },
		"cut segments": func(t *testing.T, dir string) {
			change(t, dir, "segments/*.seg", func(b []byte) []byte { return b[:len(b)/2] })
		},
		"rotten segments": func(t *testing.T, dir string) { change(t, dir, "segments/*.seg", rot) },
		"rotten index":    func(t *testing.T, dir string) { change(t, dir, "index.db", rot) },
		"rotten objects":  func(t *testing.T, dir string) { change(t, dir, "objects/*/*", rot) },
		"no objects":      func(t *testing.T, dir string) { remove(t, dir, "objects") },
	} {
		t.Run(strings.ReplaceAll(what, " ", "-"), func(t *testing.T) {
			bad := copyDir(t, dir)
			damage(t, bad)
			c := openTest(t, Options{Dir: t.TempDir(), Lower: []string{bad}})
			f.readAll(t, c.Reader(f.origin))
			if err := c.Reader(f.origin).HydrateMetadata(t.Context(), f.root); err != nil {
				t.Error(err)
			}
			if c.Stats().Requests == 0 {
				t.Error("no damage was noticed")
			}
			f.readAll(t, c.Reader(f.origin))
		})
	}
}

// It vanishes while it is used.
func TestLowerVanishes(t *testing.T) {
	f, dir := lowered(t)
	c := openTest(t, Options{Dir: t.TempDir(), Lower: []string{dir}, FrameBytes: 1})
	r := c.Reader(f.origin)
	half := len(f.refs) / 2
	for i, ref := range f.refs {
		if i == half {
			if err := os.RemoveAll(dir); err != nil {
				t.Fatal(err)
			}
			for _, l := range c.segments.lowers { // as if time had gone by
				l.close()
			}
		}
		if err := f.read(t.Context(), r, ref); err != nil {
			t.Fatal(err)
		}
	}
	if s := c.Stats(); s.Lower[0].Error == "" || s.Lower[0].Hits != uint64(half) {
		t.Errorf("%+v", s)
	}
}

// The owner of a lower cache cannot have other bytes read: what it says is right is held against digests.
func TestLowerIsNotTrusted(t *testing.T) {
	f, _ := lowered(t)
	evil := openTest(t, Options{Dir: t.TempDir()})
	lie := content(99, 900)
	for _, ref := range f.refs {
		evil.keepForged(t, ref.Digest, lie)
	}
	if err := evil.Close(); err != nil {
		t.Fatal(err)
	}
	c := openTest(t, Options{Dir: t.TempDir(), Lower: []string{evil.o.Dir}})
	f.readAll(t, c.Reader(f.origin))
	f.readAll(t, c.Reader(f.origin))
	if s := c.Stats(); s.Corrupt == 0 || s.Lower[0].Hits != 0 {
		t.Errorf("%+v", s)
	}
}

// keepForged puts other bytes into a cache under the name of a chunk, all checksums right.
func (c *Cache) keepForged(t *testing.T, d namespace.Digest, b []byte) {
	t.Helper()
	m := &made{c: c}
	m.add(d, b)
	m.flush()
}

func rot(b []byte) []byte {
	for i := 100; i < len(b); i += 400 {
		b[i] ^= 0x40
	}
	return b
}

func remove(t *testing.T, dir, name string) {
	t.Helper()
	if err := os.RemoveAll(filepath.Join(dir, name)); err != nil {
		t.Fatal(err)
	}
}

// change edits all files that match.
func change(t *testing.T, dir, pattern string, edit func([]byte) []byte) {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, pattern))
	if err != nil || len(names) == 0 {
		t.Fatalf("no %s: %v", pattern, err)
	}
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err == nil {
			_ = os.Chmod(name, 0o600)
			err = os.WriteFile(name, edit(b), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func FuzzPages(f *testing.F) {
	dir := f.TempDir()
	x, err := openIndex(filepath.Join(dir, "index.db"), disk.System{}, slog.New(slog.DiscardHandler))
	if err != nil {
		f.Fatal(err)
	}
	for i := range 300 {
		x.put(numbered(i))
	}
	if err := x.flush(); err != nil {
		f.Fatal(err)
	}
	x.close()
	b, err := os.ReadFile(filepath.Join(dir, "index.db"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add(b[:8192])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := openPages(bytes.NewReader(b))
		if err != nil {
			return
		}
		for i := range 10 {
			d, _ := numbered(i)
			key := keyOf(&d)
			if v, err := p.get(bucketChunks, key[:]); err != nil && !namespace.IsKind(err, namespace.Corrupt) {
				t.Errorf("%x, %v", v, err)
			}
		}
	})
}

// Looking up pages finds what the library put there, and nothing else.
func TestPages(t *testing.T) {
	dir := t.TempDir()
	const n = 20000
	x, err := openIndex(filepath.Join(dir, "index.db"), disk.System{}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	for i := range n {
		x.put(numbered(i))
	}
	if err := x.flush(); err != nil {
		t.Fatal(err)
	}
	x.close()
	file, err := os.Open(filepath.Join(dir, "index.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	p, err := openPages(file)
	if err != nil {
		t.Fatal(err)
	}
	for i := range n + 100 {
		d, want := numbered(i)
		key := keyOf(&d)
		v, err := p.get(bucketChunks, key[:])
		if err != nil {
			t.Fatal(err)
		}
		if e, ok := decodeExtent(&d, v); ok != (i < n) || ok && e != want {
			t.Fatalf("entry %d: %+v, %v", i, e, ok)
		}
	}
}
