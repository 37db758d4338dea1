package builder_test

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"coppice.dev/coppice/builder"
	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/catalog"
	"coppice.dev/coppice/namespace/storetest"
)

func TestStoredReadsWhatWasImported(t *testing.T) {
	store, dir := storetest.NewMem(), t.TempDir()
	makeEverything(t, dir, false)
	large := make([]byte, 5<<20)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(large)
	clear(large[1<<20 : 2<<20]) // a hole
	write(t, dir, "large", large)
	root := importDir(t, store, dir).Root
	s := builder.NewStored(store)
	files := 0
	must(t, catalog.Walk(t.Context(), s, root, func(path string, c *catalog.Catalog, e catalog.Entry) error {
		if e.Type != catalog.File {
			return nil
		}
		files++
		want, err := os.ReadFile(filepath.Join(dir, path))
		must(t, err)
		got, err := s.ReadFile(t.Context(), c, e.Index, 1<<30)
		must(t, err)
		if !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes that differ", path, len(got))
		}
		return nil
	}))
	if files == 0 {
		t.Fatal("no files")
	}
	c, e, err := catalog.Resolve(t.Context(), s, root, "large")
	must(t, err)
	f := s.Open(t.Context(), c, e.Index)
	for _, off := range []int64{4 << 20, 1<<20 + 5, 0, 5<<20 - 1} {
		_, err := f.Seek(off, io.SeekStart)
		must(t, err)
		b := make([]byte, 1)
		if _, err := io.ReadFull(f, b); err != nil || b[0] != large[off] {
			t.Errorf("byte %d: %d, %v; want %d", off, b[0], err, large[off])
		}
	}
	_, err = s.ReadFile(t.Context(), c, e.Index, 100)
	wantKind(t, "a file over the limit", err, namespace.Limit)
}

func TestStoredRefusesDamage(t *testing.T) {
	store, dir := storetest.NewMem(), t.TempDir()
	noise := make([]byte, 3<<20)
	_, _ = rand.NewChaCha8([32]byte{2}).Read(noise)
	write(t, dir, "noise", noise)
	root := importDir(t, store, dir).Root
	must(t, store.List(t.Context(), namespace.Pack, func(k namespace.Key, n int64) error {
		b, err := storetest.ReadAll(t.Context(), store, k, 0, -1)
		must(t, err)
		b[100] ^= 1
		must(t, store.Delete(context.Background(), k))
		return store.Put(context.Background(), k, b)
	}))
	s := builder.NewStored(store)
	c, e, err := catalog.Resolve(t.Context(), s, root, "noise")
	must(t, err)
	_, err = s.ReadFile(t.Context(), c, e.Index, 1<<30)
	wantKind(t, "a flipped bit", err, namespace.Corrupt)
}
