package builder_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"coppice.dev/coppice/builder"
	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/catalog"
	"coppice.dev/coppice/namespace/object"
	"coppice.dev/coppice/namespace/object/delta"
	"coppice.dev/coppice/namespace/storetest"
)

// twoTrees imports a tree and what became of it, and returns the directory of the latter.
func twoTrees(t *testing.T, store namespace.Store) (old, new namespace.Digest, dir string) {
	t.Helper()
	dir = t.TempDir()
	program := storetest.Bytes(1, 1200<<10)
	sparse := append(append(storetest.Bytes(2, 600<<10), make([]byte, 512<<10)...), storetest.Bytes(3, 100<<10)...)
	text := []byte(strings.Repeat("It is a truth universally acknowledged.\n", 200))
	write(t, dir, "usr/bin/program", program)
	write(t, dir, "usr/lib/libfoo.so.1.2.3", storetest.Bytes(4, 100<<10))
	write(t, dir, "usr/lib/modules-6.1/kernel", storetest.Bytes(5, 60<<10))
	write(t, dir, "usr/lib/gone", storetest.Bytes(6, 1000))
	write(t, dir, "sparse", sparse)
	write(t, dir, "same", text)
	for i := range 50 {
		write(t, dir, fmt.Sprintf("doc/%d", i), storetest.Bytes(uint64(100+i), 3000))
	}
	old = importDir(t, store, dir).Root

	for i := 0; i < len(program); i += 5000 {
		program[i]++
	}
	write(t, dir, "usr/bin/program", program)
	must(t, os.Link(dir+"/usr/bin/program", dir+"/usr/bin/program-3"), os.Remove(dir+"/usr/lib/libfoo.so.1.2.3"),
		os.Rename(dir+"/usr/lib/modules-6.1", dir+"/usr/lib/modules-6.2"), os.Remove(dir+"/usr/lib/gone"))
	write(t, dir, "usr/lib/libfoo.so.1.2.4", append(storetest.Bytes(4, 100<<10), "more"...))
	write(t, dir, "usr/lib/modules-6.2/kernel", append([]byte("new"), storetest.Bytes(5, 60<<10)...))
	sparse[5]++
	write(t, dir, "sparse", append(sparse, 1, 2, 3))
	for i := range 50 {
		write(t, dir, fmt.Sprintf("doc/%d", i), append(storetest.Bytes(uint64(100+i), 3000), "revised"...))
	}
	write(t, dir, "random", storetest.Bytes(7, 100<<10))
	write(t, dir, "empty", nil)
	return old, importDir(t, store, dir).Root, dir
}

// deltaOf reads a stored delta object.
func deltaOf(t *testing.T, store namespace.Store, c namespace.Digest) (*delta.Object, []byte) {
	t.Helper()
	rc, err := store.Get(t.Context(), namespace.Key{Class: namespace.Delta, Digest: c}, 0, -1)
	must(t, err)
	defer rc.Close()
	var b bytes.Buffer
	_, err = b.ReadFrom(rc)
	must(t, err)
	o, err := delta.Open(b.Bytes(), c)
	must(t, err)
	return o, b.Bytes()
}

func frameOf(t *testing.T, o *delta.Object, b []byte, i uint32) []byte {
	t.Helper()
	f := o.Frames[i]
	plain, err := delta.DecodeFrame(f, b[f.Off:f.Off+int64(f.Len)])
	must(t, err)
	return plain
}

func TestDeltasMakeTheNewTree(t *testing.T) {
	store := storetest.NewMem()
	old, new, dir := twoTrees(t, store)
	r, err := builder.Deltas(t.Context(), store, old, new, builder.DeltaOptions{Warn: func(path, reason string) { t.Errorf("%s: %s", path, reason) }})
	must(t, err)
	// All but the random file, which nothing makes smaller.
	if want := uint64(1 + 1 + 1 + 1 + 50); r.Files != want+1 || r.Covered != want || r.Objects != 1 {
		t.Errorf("%d files, %d covered in %d objects; want %d and 1", r.Files, r.Covered, r.Objects, want)
	}
	if r.DeltaBytes > 20<<10 || r.PlainBytes < 2<<20 || r.RestBytes < 50<<10 || r.RestBytes > 101<<10 {
		t.Errorf("report %+v", r)
	}
	o, b := deltaOf(t, store, new)
	s := builder.NewStored(store)
	if base, err := s.Catalog(t.Context(), old); err != nil || o.Predecessors[0] != s.Digest(base) {
		t.Fatalf("made from %v, %v; want %v", o.Predecessors, err, old)
	}
	checkCatalog(t, store, o, frameOf(t, o, b, 0))

	chunks := oldChunks(t, s, old)
	made := 0
	must(t, catalog.Walk(t.Context(), s, new, func(path string, c *catalog.Catalog, e catalog.Entry) error {
		lo, hi := c.Chunks(e.Index)
		if lo == hi {
			return nil
		}
		x, ok := o.Find(uint32(lo))
		if !ok {
			return nil
		}
		made++
		if int(x.Lo) != lo || int(x.Hi) != hi || x.Size != e.Size {
			t.Errorf("%s: entry %+v of extents %d to %d, %d bytes", path, x, lo, hi, e.Size)
		}
		var base []byte
		for _, part := range x.Base {
			if part.Digest.IsZero() {
				base = append(base, make([]byte, part.Size)...)
				continue
			}
			base = append(base, chunks[part.Digest]...)
		}
		got, err := delta.Make(x, base, frameOf(t, o, b, x.Frame))
		must(t, err)
		want, err := os.ReadFile(filepath.Join(dir, path))
		must(t, err)
		if !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes that differ from the file", path, len(got))
		}
		return nil
	}))
	if made != int(r.Covered) { // of a file with two names, the first
		t.Errorf("%d paths are made", made)
	}
}

func checkCatalog(t *testing.T, store namespace.Store, o *delta.Object, frame []byte) {
	t.Helper()
	blob := func(d namespace.Digest) []byte {
		rc, err := store.Get(t.Context(), namespace.Key{Class: namespace.Blob, Digest: d}, 0, -1)
		must(t, err)
		defer rc.Close()
		var b bytes.Buffer
		_, err = b.ReadFrom(rc)
		must(t, err)
		plain, err := object.DecodeBlob(b.Bytes(), d, namespace.CatalogBytesMax)
		must(t, err)
		return plain
	}
	got, err := delta.MakeCatalog(o, blob(o.Predecessors[0]), frame)
	must(t, err)
	if namespace.Sum(got) != o.Catalog {
		t.Error("another catalog is made")
	}
}

// oldChunks returns what an endpoint that has the tree root has.
func oldChunks(t *testing.T, s *builder.Stored, root namespace.Digest) map[namespace.Digest][]byte {
	t.Helper()
	all := map[namespace.Digest][]byte{}
	must(t, catalog.Walk(t.Context(), s, root, func(path string, c *catalog.Catalog, e catalog.Entry) error {
		if e.Type != catalog.File {
			return nil
		}
		b, err := s.ReadFile(t.Context(), c, e.Index, 1<<30)
		must(t, err)
		for lo, hi := c.Chunks(e.Index); lo < hi; lo++ {
			n := c.ChunkLen(lo)
			all[c.Chunk(lo).Digest], b = b[:n:n], b[n:]
		}
		return nil
	}))
	return all
}

func TestDeltasAreTheSameAgain(t *testing.T) {
	store := storetest.NewMem()
	old, new, _ := twoTrees(t, store)
	_, err := builder.Deltas(t.Context(), store, old, new, builder.DeltaOptions{})
	must(t, err)
	_, first := deltaOf(t, store, new)
	key := namespace.Key{Class: namespace.Delta, Digest: new}
	must(t, store.Put(t.Context(), key, []byte("replaced")))
	_, err = builder.Deltas(t.Context(), store, old, new, builder.DeltaOptions{})
	must(t, err)
	if _, again := deltaOf(t, store, new); !bytes.Equal(first, again) {
		t.Error("two runs made different objects")
	}
}

func TestDeltasOfEqualTrees(t *testing.T) {
	store := storetest.NewMem()
	_, new, _ := twoTrees(t, store)
	r, err := builder.Deltas(t.Context(), store, new, new, builder.DeltaOptions{})
	must(t, err)
	if r != (builder.DeltaReport{}) {
		t.Errorf("report %+v of nothing", r)
	}
}

func TestDeltasCanceled(t *testing.T) {
	store := storetest.NewMem()
	old, new, _ := twoTrees(t, store)
	ctx, cancel := context.WithCancel(t.Context())
	_, err := builder.Deltas(ctx, store, old, new, builder.DeltaOptions{Progress: func(files, all, b, bAll uint64) {
		if files > all || b > bAll {
			t.Errorf("%d of %d files, %d of %d bytes", files, all, b, bAll)
		}
		cancel()
	}})
	wantKind(t, "canceled", err, namespace.Canceled)
}

func TestVerifyStoreChecksDeltas(t *testing.T) {
	store := storetest.NewMem()
	old, new, _ := twoTrees(t, store)
	_, err := builder.Deltas(t.Context(), store, old, new, builder.DeltaOptions{})
	must(t, err)
	o, good := deltaOf(t, store, new)
	last := o.Frames[len(o.Frames)-1]
	damaged := slices.Clone(good)
	damaged[last.Off+4] ^= 0xff // the frame's header
	for name, c := range map[string]struct {
		b    []byte
		want uint64
	}{
		"as written":       {good, 0},
		"a damaged frame":  {damaged, 1},
		"cut off":          {good[:len(good)-1], 1},
		"a trailing byte":  {append(slices.Clone(good), 0), 1},
		"something else":   {[]byte("something else"), 1},
		"another's object": {nil, 1},
	} {
		key := namespace.Key{Class: namespace.Delta, Digest: new}
		if c.b == nil {
			key.Digest, c.b = old, good
		}
		must(t, store.Put(t.Context(), namespace.Key{Class: namespace.Delta, Digest: new}, good), store.Put(t.Context(), key, c.b))
		r, err := builder.VerifyStore(t.Context(), store, []namespace.Digest{old, new}, builder.VerifyOptions{})
		must(t, err, store.Delete(t.Context(), namespace.Key{Class: namespace.Delta, Digest: old}))
		if r.Problems != c.want {
			t.Errorf("%s: %d problems, want %d", name, r.Problems, c.want)
		}
	}
}
