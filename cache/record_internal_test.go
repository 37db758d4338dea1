package cache

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/catalog"
)

// TestWaits: what was waited for is remembered once, in order, also over a restart.
func TestWaits(t *testing.T) {
	f := newFixture(t, 2, 10, 3000, layoutOf{1, 100, 0})
	dir := t.TempDir()
	c, err := Open(Options{Dir: dir, QuotaBytes: 1 << 30})
	if err != nil {
		t.Fatal(err)
	}
	r := c.Reader(f.origin)
	second := f.refs[10].Catalog
	if _, err := r.Catalog(t.Context(), second); err != nil {
		t.Fatal(err)
	}
	for _, i := range []int{15, 3, 15, 12} { // 12 is before 15 in its pack, and 16 behind it comes along
		if err := f.read(t.Context(), r, f.refs[i]); err != nil {
			t.Fatal(err)
		}
	}
	want := []catalog.Access{{Catalog: second, Index: catalog.AccessCatalog}, {Catalog: second, Index: 5}, {Catalog: f.refs[0].Catalog, Index: 3}, {Catalog: second, Index: 2}}
	if got := c.Waits(); !slices.Equal(got, want) {
		t.Errorf("waits are %v, want %v", got, want)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	c = openTest(t, Options{Dir: dir})
	if got := c.Waits(); !slices.Equal(got, want) {
		t.Errorf("after a restart %v", got)
	}
	c.ForgetWaits(want[:2])
	c.waits.note(want[0])
	if got := c.Waits(); !slices.Equal(got, []catalog.Access{want[2], want[3], want[0]}) {
		t.Errorf("after some were forgotten: %v", got)
	}
}

// TestWaitsDamaged: whatever is in the file, what is right before the damage is kept and the next ones
// are written so that they are read again.
func TestWaitsDamaged(t *testing.T) {
	a := catalog.Access{Catalog: namespace.Sum([]byte("a")), Index: 7}
	b := catalog.Access{Catalog: namespace.Sum([]byte("b")), Index: catalog.AccessCatalog}
	good := encodeWait(encodeWait([]byte(waitsMagic), a), b)
	bad := slices.Clone(good)
	bad[len(waitsMagic)+waitRecord+3] ^= 1
	for name, test := range map[string]struct {
		file []byte
		want []catalog.Access
	}{
		"whole": {good, []catalog.Access{a, b}}, "none": {nil, nil}, "cut magic": {good[:3], nil},
		"cut record": {good[:len(good)-1], []catalog.Access{a}}, "flipped": {bad, []catalog.Access{a}},
		"of another kind": {[]byte("something else altogether"), nil}, "twice": {encodeWait(slices.Clone(good), a), []catalog.Access{a, b}},
		"too large": {make([]byte, waitsMax*waitRecord+100), nil},
	} {
		path := filepath.Join(t.TempDir(), "waits")
		if test.file != nil {
			if err := os.WriteFile(path, test.file, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		var m, again waits
		m.open(path)
		if !slices.Equal(m.all, test.want) {
			t.Errorf("%s: %v", name, m.all)
		}
		next := catalog.Access{Catalog: namespace.Sum([]byte("next"))}
		m.note(next)
		m.close()
		m.note(catalog.Access{Catalog: namespace.Sum([]byte("after"))})
		again.open(path)
		if !slices.Equal(again.all, append(slices.Clone(test.want), next)) {
			t.Errorf("%s, and one more: %v", name, again.all)
		}
		again.close()
	}
}

func TestWaitsBound(t *testing.T) {
	path := filepath.Join(t.TempDir(), "waits")
	var m, again waits
	m.open(path)
	for i := range waitsMax + 10 {
		m.note(catalog.Access{Catalog: namespace.Sum([]byte("c")), Index: uint32(i)})
	}
	m.close()
	again.open(path)
	defer again.close()
	if n := len(again.all); n != waitsMax/2+10 || again.all[0].Index != waitsMax/2 || len(again.seen) != n {
		t.Errorf("%d are remembered, from %v on", len(again.all), again.all[0])
	}
}

func TestRecorder(t *testing.T) {
	f := newFixture(t, 2, 10, 3000, layoutOf{2, 100, 0})
	c := openTest(t, Options{Dir: t.TempDir()})
	f.readAll(t, c.Reader(f.origin)) // that it is here does not matter
	rec := c.Reader(f.origin).Record()
	if _, err := rec.Catalog(t.Context(), f.root); err != nil {
		t.Fatal(err)
	}
	for _, i := range []int{7, 2, 7} {
		p := make([]byte, 10)
		if _, err := rec.ReadChunk(t.Context(), f.refs[i], p, 5); err != nil {
			t.Fatal(err)
		}
	}
	want := []catalog.Access{{Catalog: f.root, Index: catalog.AccessCatalog}, {Catalog: f.refs[7].Catalog, Index: 7}, {Catalog: f.refs[2].Catalog, Index: 2}}
	if got := rec.Accesses(); !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

// FuzzWaits opens whatever lies where the waits should be: what is kept of it reads the same again.
func FuzzWaits(f *testing.F) {
	a := catalog.Access{Catalog: namespace.Sum([]byte("a")), Index: 7}
	f.Add(encodeWait([]byte(waitsMagic), a))
	f.Add([]byte(waitsMagic))
	f.Add([]byte("something else"))
	f.Fuzz(func(t *testing.T, b []byte) {
		path := filepath.Join(t.TempDir(), "waits")
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		var first, again waits
		first.open(path)
		first.close()
		again.open(path)
		defer again.close()
		if !slices.Equal(first.all, again.all) || len(again.all) > waitsMax {
			t.Fatalf("%v, then %v", first.all, again.all)
		}
	})
}
