package disk_test

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"coppice.dev/coppice/internal/disk"
)

// What was synced survives every crash; of what was not, some crashes leave all, some nothing and some
// a part.
func TestDoubleCrash(t *testing.T) {
	root := t.TempDir()
	d, err := disk.NewDouble(root)
	if err != nil {
		t.Fatal(err)
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(root, "f")
	f, err := d.Create(file)
	must(err)
	defer f.Close()
	old, fresh := bytes.Repeat([]byte("o"), 8192), bytes.Repeat([]byte("n"), 8192)
	_, err = d.WriteAt(f, old, 0)
	must(err)
	must(d.Sync(f))
	must(d.SyncDir(root))
	_, err = d.WriteAt(f, fresh, 4096)
	must(err)
	g, err := d.Create(filepath.Join(root, "g.new"))
	must(err)
	g.Close()
	must(d.Rename(filepath.Join(root, "g.new"), filepath.Join(root, "g")))
	seen := map[string]int{}
	for seed := range 400 {
		to := t.TempDir()
		must(d.Crash(to, rand.New(rand.NewPCG(1, uint64(seed)))))
		b, err := os.ReadFile(filepath.Join(to, "f"))
		must(err)
		if len(b) < 8192 || !bytes.Equal(b[:4096], old[:4096]) {
			t.Fatalf("what was synced is lost: %d bytes", len(b))
		}
		switch tail := b[4096:]; {
		case bytes.Equal(tail, old[4096:]):
			seen["old"]++
		case bytes.Equal(tail, fresh):
			seen["new"]++
		default:
			seen["torn"]++
		}
		for _, name := range []string{"g", "g.new"} {
			if _, err := os.Stat(filepath.Join(to, name)); err == nil {
				seen[name]++
			}
		}
	}
	for _, what := range []string{"old", "new", "torn", "g", "g.new"} {
		if seen[what] == 0 {
			t.Errorf("no crash leaves %s: %v", what, seen)
		}
	}
}

// A failed operation has no effect, and is counted.
func TestDoubleFails(t *testing.T) {
	root := t.TempDir()
	d, err := disk.NewDouble(root)
	if err != nil {
		t.Fatal(err)
	}
	broken := errors.New("broken")
	d.Plan(func(n int, op, _ string) error {
		if n == 1 && op == "WriteAt" {
			return broken
		}
		return nil
	})
	f, err := d.Create(filepath.Join(root, "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := d.WriteAt(f, []byte("x"), 0); !errors.Is(err, broken) {
		t.Errorf("a planned failure: %v", err)
	}
	if _, err := d.WriteAt(f, []byte("y"), 0); err != nil || d.Count() != 3 {
		t.Errorf("%v after %d operations", err, d.Count())
	}
	if b, _ := os.ReadFile(filepath.Join(root, "f")); string(b) != "y" {
		t.Errorf("%q", b)
	}
}
