package builder_test

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"coppice.dev/coppice/builder"
	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/storetest"
)

// TestPreviousMakesNoDifference imports a tree whose large files changed in every way, with and
// without the help of the tree before: the digests must be the same.
func TestPreviousMakesNoDifference(t *testing.T) {
	dir := t.TempDir()
	random := rand.NewChaCha8([32]byte{1})
	content := make([]byte, 5<<20)
	_, _ = random.Read(content)
	write := func(name string, b []byte) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	names := []string{"same", "first", "middle", "last", "longer", "shorter", "zeroed", "gone", "sparse"}
	for _, n := range names {
		write(n, content)
	}
	store := storetest.NewMem()
	load := loader(store)
	first, err := builder.Import(t.Context(), store, builder.DirSource{Path: dir}, builder.Options{})
	if err != nil {
		t.Fatal(err)
	}
	flip := func(at int) []byte {
		b := bytes.Clone(content)
		b[at] ^= 1
		return b
	}
	write("first", flip(0))
	write("middle", flip(len(content)/2))
	write("last", flip(len(content)-1))
	write("longer", append(bytes.Clone(content), 1))
	write("shorter", content[:len(content)-1])
	zeroed := bytes.Clone(content)
	clear(zeroed[1<<20 : 3<<20])
	write("zeroed", zeroed)
	if err := os.Remove(filepath.Join(dir, "gone")); err != nil {
		t.Fatal(err)
	}
	with, err := builder.Import(t.Context(), store, builder.DirSource{Path: dir}, builder.Options{Previous: first.Root, Loader: load})
	if err != nil {
		t.Fatal(err)
	}
	without, err := builder.Import(t.Context(), storetest.NewMem(), builder.DirSource{Path: dir}, builder.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if with.Root != without.Root || with.Root == first.Root {
		t.Errorf("root %v with the tree before, %v without, %v of that", with.Root, without.Root, first.Root)
	}
	missing, err := builder.Import(t.Context(), store, builder.DirSource{Path: dir}, builder.Options{Previous: namespace.Sum(nil), Loader: load})
	if err != nil || missing.Root != with.Root {
		t.Errorf("a tree before that is not there: %v, %v", missing.Root, err)
	}
}
