package cache

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// A damaged index is made anew, whatever byte of it is wrong, cleanly closed or not.
func TestIndexRot(t *testing.T) {
	for _, crash := range []bool{false, true} {
		f, dir := small(t, crash)
		size := fileSize(t, filepath.Join(dir, "index.db"))
		step := max(size/150, 1)
		for at := int64(0); at < size; at += step + 13 {
			rotten := copyDir(t, dir)
			flip(t, filepath.Join(rotten, "index.db"), at)
			survives(t, f, rotten, fmt.Sprintf("index flipped at %d", at))
		}
		for _, n := range []int64{0, 1, 4096, 8192, 10000, size / 2, size - 4096} {
			rotten := copyDir(t, dir)
			if err := os.Truncate(filepath.Join(rotten, "index.db"), n); err != nil {
				t.Fatal(err)
			}
			survives(t, f, rotten, fmt.Sprintf("index cut at %d", n))
		}
		zero := copyDir(t, dir)
		if err := os.WriteFile(filepath.Join(zero, "index.db"), make([]byte, size), 0o600); err != nil {
			t.Fatal(err)
		}
		survives(t, f, zero, "index of zeros")
	}
}
