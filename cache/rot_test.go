package cache_test

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"coppice.dev/coppice/cache"
	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/storetest"
)

// fill reads all of a tree into a new cache and closes it.
func fill(t testing.TB, tr *tree) (dir string) {
	t.Helper()
	dir = t.TempDir()
	c := open(t, cache.Options{Dir: dir})
	readAll(t, c.Reader(tr.from), tr.chunks)
	shut(t, c)
	return dir
}

// glob returns the files of a cache that match, without those that are being written.
func glob(t testing.TB, dir string, patterns ...string) (paths []string) {
	t.Helper()
	for _, p := range patterns {
		all, err := filepath.Glob(filepath.Join(dir, p))
		if err != nil {
			t.Fatal(err)
		}
		paths = append(paths, all...)
	}
	if len(paths) == 0 {
		t.Fatalf("no %v in %s", patterns, dir)
	}
	return paths
}

// edit changes a file in place.
func edit(t testing.TB, path string, change func(b []byte) []byte) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, change(b), 0o600); err != nil {
		t.Fatal(err)
	}
}

func flip(rng *rand.Rand, n int) func(b []byte) []byte {
	return func(b []byte) []byte {
		for range n {
			b[rng.IntN(len(b))] ^= 1 << rng.IntN(8)
		}
		return b
	}
}

// Whatever bits flip while the cache is closed: reads are right, since what is damaged is fetched
// again, and right or refused where it cannot be.
func TestBitRot(t *testing.T) {
	for _, what := range []struct {
		name, pattern string
		counts        bool // a flip is noticed, if anything is lost by it
		derived       bool // nothing is lost by it, network or not
	}{
		{"segments", "segments/*.seg", true, false},
		{"catalogs", "objects/??/" + strings.Repeat("?", 64), true, false},
		{"locators", "objects/??/*.loc", false, true},
		{"index", "index.db", false, true},
	} {
		t.Run(what.name, func(t *testing.T) {
			tr := newTree(t, smallFiles(1, 100, true), smallFiles(2, 60, false))
			dir := fill(t, tr)
			rng := rand.New(rand.NewPCG(7, 7))
			for range 15 {
				paths := glob(t, dir, what.pattern)
				edit(t, paths[rng.IntN(len(paths))], flip(rng, 1+rng.IntN(3)))
				rotten(t, tr, dir, what.counts, what.derived)
			}
		})
	}
}

// rotten opens a damaged cache and reads everything: first without a network, then with one.
func rotten(t *testing.T, tr *tree, dir string, counts, derived bool) {
	t.Helper()
	c := open(t, cache.Options{Dir: dir})
	defer c.Close()
	good := readSome(t, c.Reader(offline), tr.chunks)
	if derived && good < len(tr.chunks) {
		t.Errorf("%d of %d chunks without a network, and none is damaged", good, len(tr.chunks))
	}
	readAll(t, c.Reader(tr.from), tr.chunks)
	if counts && good < len(tr.chunks) && c.Stats().Corrupt == 0 && c.Stats().Requests == 0 {
		t.Errorf("damage was neither counted nor healed: %+v", c.Stats())
	}
	shut(t, c)
	// What was fetched again is here now, and still right.
	c = open(t, cache.Options{Dir: dir})
	defer c.Close()
	if again := readSome(t, c.Reader(offline), tr.chunks); again != len(tr.chunks) {
		t.Errorf("%d of %d chunks after healing", again, len(tr.chunks))
	}
	shut(t, c)
}

// Damage of stored bytes that is noticed while the cache is open is counted, and healed by one fetch.
func TestRotWhileOpen(t *testing.T) {
	tr := newTree(t, smallFiles(1, 60, false))
	dir := fill(t, tr)
	c := open(t, cache.Options{Dir: dir})
	for _, p := range glob(t, dir, "segments/*.seg") {
		f, err := os.OpenFile(p, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		info, _ := f.Stat()
		for at := info.Size() / 50; at < info.Size(); at += info.Size() / 20 {
			if _, err := f.WriteAt([]byte{0xa5}, at); err != nil {
				t.Fatal(err)
			}
		}
		f.Close()
	}
	if good := readSome(t, c.Reader(offline), tr.chunks); good == len(tr.chunks) {
		t.Error("no damage was noticed")
	}
	if c.Stats().Corrupt == 0 {
		t.Error("no damage was counted")
	}
	readAll(t, c.Reader(tr.from), tr.chunks)
	readAll(t, c.Reader(offline), tr.chunks)
}

// Verify finds damage; with repair it drops it, and what is fetched again is whole.
func TestVerify(t *testing.T) {
	tr := newTree(t, smallFiles(1, 100, false))
	dir := fill(t, tr)
	c := open(t, cache.Options{Dir: dir})
	rep, err := c.Verify(t.Context(), false)
	if err != nil || rep.Damaged != 0 || rep.Checked < tr.frames {
		t.Fatalf("a whole cache: %+v, %v", rep, err)
	}
	shut(t, c)
	edit(t, glob(t, dir, "segments/*.seg")[0], func(b []byte) []byte {
		b[len(b)-1] ^= 1 // stored bytes of the last record
		return b
	})
	c = open(t, cache.Options{Dir: dir})
	for range 2 { // without repair it stays
		if rep, err = c.Verify(t.Context(), false); err != nil || rep.Damaged != 1 {
			t.Errorf("one damaged record: %+v, %v", rep, err)
		}
	}
	if rep, err = c.Verify(t.Context(), true); err != nil || rep.Damaged != 1 {
		t.Errorf("repair of one damaged record: %+v, %v", rep, err)
	}
	if good := readSome(t, c.Reader(offline), tr.chunks); good == 0 || good == len(tr.chunks) {
		t.Errorf("%d of %d chunks can be read", good, len(tr.chunks))
	}
	readAll(t, c.Reader(tr.from), tr.chunks)
	if s := c.Stats(); s.Corrupt != 0 {
		t.Errorf("a read met what repair should have dropped: %+v", s)
	}
	readAll(t, c.Reader(offline), tr.chunks)
}

// A damaged header hides what follows: repair drops the segment.
func TestVerifyHeader(t *testing.T) {
	tr := newTree(t, smallFiles(1, 100, false))
	dir := fill(t, tr)
	c := open(t, cache.Options{Dir: dir})
	f, err := os.OpenFile(glob(t, dir, "segments/*.seg")[0], os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte("X"), 0); err != nil {
		t.Fatal(err)
	}
	if rep, err := c.Verify(t.Context(), true); err != nil || rep.Damaged == 0 {
		t.Errorf("a damaged header: %+v, %v", rep, err)
	}
	readAll(t, c.Reader(tr.from), tr.chunks)
	if rep, err := c.Verify(t.Context(), true); err != nil || rep.Damaged != 0 {
		t.Errorf("after the repair: %+v, %v", rep, err)
	}
	readAll(t, c.Reader(offline), tr.chunks)
}

func TestVerifyObjects(t *testing.T) {
	tr := newTree(t, smallFiles(1, 30, false))
	dir := fill(t, tr)
	for _, p := range glob(t, dir, "objects/??/*") {
		edit(t, p, func(b []byte) []byte { return bytes.ToUpper(append(b, 'x')) })
	}
	c := open(t, cache.Options{Dir: dir})
	rep, err := c.Verify(t.Context(), true)
	if err != nil || rep.Damaged != len(tr.dirs)*2 {
		t.Errorf("%d damaged objects: %+v, %v", len(tr.dirs)*2, rep, err)
	}
	readAll(t, c.Reader(tr.from), tr.chunks)
	if _, err := c.Reader(tr.from).Catalog(t.Context(), tr.dirs[0]); err != nil {
		t.Error(err)
	}
	if rep, err := c.Verify(t.Context(), false); err != nil || rep.Damaged != 0 {
		t.Errorf("after the repair: %+v, %v", rep, err)
	}
}

// Verify finds no damage in a cache that is being filled.
func TestVerifyWhileFilling(t *testing.T) {
	tr := newTree(t, smallFiles(1, 1500, false))
	c := open(t, cache.Options{Dir: t.TempDir()})
	r := c.Reader(tr.from)
	filled := make(chan struct{})
	go func() {
		defer close(filled)
		readSome(t, r, tr.chunks)
	}()
	for {
		rep, err := c.Verify(t.Context(), false)
		if err != nil || rep.Damaged != 0 {
			t.Errorf("%+v, %v", rep, err)
		}
		select {
		case <-filled:
			return
		default:
		}
	}
}

func TestVerifyCanceled(t *testing.T) {
	tr := newTree(t, smallFiles(1, 30, false))
	c := open(t, cache.Options{Dir: fill(t, tr)})
	ctx, cancel := contextCanceled(t)
	defer cancel()
	if _, err := c.Verify(ctx, true); !namespace.IsKind(err, namespace.Canceled) {
		t.Errorf("canceled: %v", err)
	}
}

// copyDir copies a cache as it is, while it may be written.
func copyDir(t testing.TB, from, to string) {
	t.Helper()
	err := filepath.WalkDir(from, func(path string, e os.DirEntry, err error) error {
		if errors.Is(err, os.ErrNotExist) {
			return nil // renamed meanwhile
		}
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(from, path)
		if e.IsDir() {
			return os.MkdirAll(filepath.Join(to, rel), 0o700)
		}
		b, err := os.ReadFile(path)
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(to, rel), b, 0o600)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// A cache that is copied at any moment while it is filled, which is worse than a crash since parts
// of it are of different moments, opens, and all reads are right.
func TestCrash(t *testing.T) {
	tr := newTree(t, smallFiles(1, 400, true), smallFiles(2, 400, false))
	dir := t.TempDir()
	c := open(t, cache.Options{Dir: dir})
	r := c.Reader(tr.from)
	var copies []string
	for i, ch := range tr.chunks {
		if err := read(t.Context(), r, ch); err != nil {
			t.Fatal(err)
		}
		if i%97 == 0 {
			to := t.TempDir()
			copyDir(t, dir, to)
			copies = append(copies, to)
		}
	}
	shut(t, c)
	for _, d := range copies {
		opensRight(t, tr, d)
	}
}

// opensRight opens a cache and reads all of a tree, offline as far as it is there.
func opensRight(t *testing.T, tr *tree, dir string) (offlineGood int) {
	t.Helper()
	c := open(t, cache.Options{Dir: dir})
	defer c.Close()
	offlineGood = readSome(t, c.Reader(offline), tr.chunks)
	readAll(t, c.Reader(tr.from), tr.chunks)
	shut(t, c)
	return offlineGood
}

// unclean makes a closed cache look as if its process had died.
func unclean(t testing.TB, dir string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, "lock"), []byte("1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
}

// A segment that ends anywhere loses the record it ends in, and no other.
func TestTornSegment(t *testing.T) {
	tr := newTree(t, smallFiles(1, 12, true), smallFiles(2, 12, true))
	whole := fill(t, tr)
	full := glob(t, whole, "segments/*.seg")
	last := filepath.Base(full[len(full)-1])
	info, err := os.Stat(full[len(full)-1])
	if err != nil {
		t.Fatal(err)
	}
	step := max(97, info.Size()/97/40*97) // some 20 sizes, anywhere in headers, tables and frames
	for size := int64(0); size < info.Size(); size += 2 * step {
		for _, withIndex := range []bool{true, false} {
			dir := t.TempDir()
			copyDir(t, whole, dir)
			unclean(t, dir)
			if err := os.Truncate(filepath.Join(dir, "segments", last), size); err != nil {
				t.Fatal(err)
			}
			if !withIndex {
				if err := os.Remove(filepath.Join(dir, "index.db")); err != nil {
					t.Fatal(err)
				}
			}
			opensRight(t, tr, dir)
			if good := opensRight(t, tr, dir); good != len(tr.chunks) {
				t.Fatalf("cut at %d: %d of %d chunks after they were fetched again", size, good, len(tr.chunks))
			}
		}
	}
}

// What is deleted is made anew: the index from segments, without a network; the rest by fetching.
func TestDeleted(t *testing.T) {
	tr := newTree(t, smallFiles(1, 200, true), smallFiles(2, 100, false))
	whole := fill(t, tr)
	for _, what := range []struct {
		pattern string
		offline bool // all can still be read without a network
	}{{"index.db", true}, {"segments/*.seg", false}, {"objects/??/*.loc", true}, {"objects/??", true}, {"segments", false}, {"objects", true}, {"lock", true}} {
		t.Run(strings.ReplaceAll(what.pattern, "/", " "), func(t *testing.T) {
			dir := t.TempDir()
			copyDir(t, whole, dir)
			unclean(t, dir)
			for _, p := range glob(t, dir, what.pattern) {
				if err := os.RemoveAll(p); err != nil {
					t.Fatal(err)
				}
			}
			if good := opensRight(t, tr, dir); (good == len(tr.chunks)) != what.offline {
				t.Errorf("%d of %d chunks without a network", good, len(tr.chunks))
			}
		})
	}
}

// Garbage where the index, a segment or an object should be is no reason to fail.
func TestGarbage(t *testing.T) {
	tr := newTree(t, smallFiles(1, 100, false))
	whole := fill(t, tr)
	for _, pattern := range []string{"index.db", "segments/*.seg", "objects/??/*"} {
		for _, b := range [][]byte{nil, []byte("x"), storetest.Bytes(5, 4096), storetest.Bytes(6, 100_000), make([]byte, 64<<10)} {
			dir := t.TempDir()
			copyDir(t, whole, dir)
			for _, p := range glob(t, dir, pattern) {
				edit(t, p, func([]byte) []byte { return b })
			}
			opensRight(t, tr, dir)
		}
	}
	for _, name := range []string{"segments/00000000.seg", "segments/4294967295.seg", "segments/x.seg", "segments/00000099.seg.tmp", "objects/ab/.new-1", "objects/ab/x"} {
		dir := t.TempDir()
		copyDir(t, whole, dir)
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, storetest.Bytes(1, 1000), 0o600); err != nil {
			t.Fatal(err)
		}
		opensRight(t, tr, dir)
		if good := opensRight(t, tr, dir); good != len(tr.chunks) {
			t.Errorf("with a stray %s: %d of %d chunks kept", name, good, len(tr.chunks))
		}
	}
}
