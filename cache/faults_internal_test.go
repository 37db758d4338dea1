package cache

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.etcd.io/bbolt"

	"coppice.dev/coppice/namespace"
)

// Each class of bytes of each type of file, damaged while the cache is closed. Nothing wrong is served,
// what is whole is read without a network, what is not comes back with one.
func TestDamageByClass(t *testing.T) {
	f, dir := small(t, false)
	if err := openTest(t, Options{Dir: dir}).Reader(f.origin).Hydrate(t.Context(), f.root, nil); err != nil {
		t.Fatal(err)
	}
	dir = copyDir(t, dir)
	seg := filepath.Join(dir, "segments", "00000001.seg")
	s, err := openSegment(filepath.Dir(seg), filepath.Base(seg), os.O_RDWR)
	if err != nil || s == nil {
		t.Fatal(err)
	}
	var recs []record
	_, err = s.scan(0, func(r record) error { recs = append(recs, r); return nil })
	s.file.Close()
	if err != nil || len(recs) < 4 {
		t.Fatalf("%d records, %v", len(recs), err)
	}
	classes := map[string]func(r record) uint32{
		"magic": func(r record) uint32 { return r.at }, "stored bytes": func(r record) uint32 { return r.at + 4 },
		"plain bytes": func(r record) uint32 { return r.at + 9 }, "codec": func(r record) uint32 { return r.at + 12 },
		"chunks": func(r record) uint32 { return r.at + 16 }, "zeros": func(r record) uint32 { return r.at + 21 },
		"checksum of the bytes": func(r record) uint32 { return r.at + 25 }, "checksum of the header": func(r record) uint32 { return r.at + 35 },
		"digest in the table": func(r record) uint32 { return r.at + recordHeader + 7 }, "offset in the table": func(r record) uint32 { return r.at + recordHeader + 32 },
		"length in the table": func(r record) uint32 { return r.at + recordHeader + 37 },
		"first byte":          func(r record) uint32 { return r.payload() }, "last byte": func(r record) uint32 { return r.end() - 1 },
	}
	n := 0
	for what, where := range classes {
		for _, i := range []int{0, len(recs) / 2, len(recs) - 1} {
			for _, index := range []string{"kept", "deleted", "from the future"} {
				if n++; n%4 != 0 && !long {
					continue
				}
				rotten := copyDir(t, dir)
				flip(t, filepath.Join(rotten, "segments", "00000001.seg"), int64(where(recs[i])))
				disturbIndex(t, rotten, index)
				want := len(f.refs) - len(recs[i].chunks)
				f.heals(t, rotten, want, fmt.Sprintf("%s of record %d, index %s", what, i, index))
			}
		}
	}
	for _, pattern := range []string{"objects/*/" + strings.Repeat("?", 64), "objects/*/*.loc"} {
		names, _ := filepath.Glob(filepath.Join(dir, pattern))
		for _, name := range names {
			for at := int64(0); at < fileSize(t, name); at += max(1, fileSize(t, name)/6) {
				rotten := copyDir(t, dir)
				flip(t, filepath.Join(rotten, strings.TrimPrefix(name, dir)), at)
				f.heals(t, rotten, len(f.refs), fmt.Sprintf("%s at %d", filepath.Base(name), at))
			}
		}
	}
}

// disturbIndex deletes a closed cache's index, or makes it one of a later version.
func disturbIndex(t *testing.T, dir, how string) {
	t.Helper()
	path := filepath.Join(dir, "index.db")
	switch how {
	case "deleted":
		remove(t, dir, "index.db")
	case "from the future":
		db, err := bbolt.Open(path, 0o600, nil)
		if err == nil {
			err = db.Update(func(tx *bbolt.Tx) error {
				b, err := tx.CreateBucket([]byte("chunks/3"))
				if err == nil {
					err = b.Put([]byte("x"), []byte("y"))
				}
				return err
			})
		}
		if err == nil {
			err = db.Close()
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// heals opens a damaged cache: at least want chunks are read without a network, what Verify finds it can
// drop, all is read with a network, and then without.
func (f *fixture) heals(t *testing.T, dir string, want int, what string) {
	t.Helper()
	c, err := Open(Options{Dir: dir, QuotaBytes: 1 << 30})
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	defer c.Close()
	r := c.Reader(away{})
	good := 0
	for _, ref := range f.refs {
		if err := f.read(t.Context(), r, ref); err == nil {
			good++
		} else if strings.Contains(err.Error(), "WRONG") {
			t.Fatalf("%s: %v", what, err)
		}
	}
	if good < want {
		t.Errorf("%s: %d chunks without a network, want %d", what, good, want)
	}
	if _, err := c.Verify(t.Context(), true); err != nil {
		t.Errorf("%s: %v", what, err)
	}
	if rep, err := c.Verify(t.Context(), false); err != nil || rep.Damaged != 0 {
		t.Errorf("%s: after a repair %+v, %v", what, rep, err)
	}
	if err := c.Reader(f.origin).Hydrate(t.Context(), f.root, nil); err != nil {
		t.Errorf("%s: %v", what, err)
	}
	if good := f.offline(t, c, what); good != len(f.refs) {
		t.Errorf("%s: %d of %d chunks after it was hydrated", what, good, len(f.refs))
	}
}

// A real file system of every size, from too small to be opened on. Reads are right throughout, and the
// process may die without room.
func TestRealDiskFails(t *testing.T) {
	f := newFixture(t, 2, 40, 4000, layoutOf{4, 5, 0})
	step := 48 << 10
	if long {
		step = 4 << 10
	}
	for room := 16 << 10; room < 640<<10; room += step {
		dir := t.TempDir()
		if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d", room)); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
		c, err := Open(Options{Dir: dir, QuotaBytes: quotaMin})
		if err != nil {
			if !namespace.IsKind(err, namespace.Limit) {
				t.Errorf("%d bytes: %v", room, err)
			}
			continue
		}
		f.readAll(t, c.Reader(f.origin))
		_ = c.sync() // it may fail; what follows holds all the same
		f.offline(t, c, fmt.Sprintf("%d bytes", room))
		_ = c.flushIndex()
		c.crash()
		c, err = Open(Options{Dir: dir, QuotaBytes: quotaMin})
		if err != nil && !namespace.IsKind(err, namespace.Limit) {
			t.Fatalf("%d bytes: it does not open again: %v", room, err)
		}
		if err == nil {
			f.offline(t, c, fmt.Sprintf("%d bytes, again", room))
			f.readAll(t, c.Reader(f.origin))
			_ = c.Close()
		}
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Fatal(err)
		}
	}
}

// The clock is years off, either way, between the uses of segments: what was used last is evicted last.
func TestClock(t *testing.T) {
	for _, off := range []time.Duration{-30 * 365 * 24 * time.Hour, 30 * 365 * 24 * time.Hour} {
		f, dir := small(t, false)
		when := time.Now().Add(off)
		names, _ := filepath.Glob(filepath.Join(dir, "*", "*"))
		for _, name := range names {
			if err := os.Chtimes(name, when, when); err != nil {
				t.Fatal(err)
			}
		}
		c := openTest(t, Options{Dir: dir})
		for range 3 {
			s, err := c.segments.create()
			if err != nil {
				t.Fatal(err)
			}
			s.closed.Store(true)
			c.segments.start = c.segments.start.Add(-10 * time.Second) // time goes by
		}
		if good := f.offline(t, c, "clock"); good != len(f.refs) { // uses the first one
			t.Errorf("clock off by %v: %d chunks", off, good)
		}
		if old := c.segments.oldest(); old == nil || old.id == 1 {
			t.Errorf("clock off by %v: the segment used last would be evicted first", off)
		}
	}
}

// An origin serves objects of another one that are valid there, and its own under each other's names.
// Nothing of it is taken.
func TestOtherOriginsObjects(t *testing.T) {
	f, other := newFixture(t, 2, 30, 900, layoutOf{4, 4, 0}), newFixture(t, 2, 30, 901, layoutOf{4, 4, 0})
	for what, from := range map[string]swapped{
		"another origin's": {f.origin.Origin, other.origin.Origin, true, nil},
		"its own, mixed":   {f.origin.Origin, f.origin.Origin, true, nil},
	} {
		for _, class := range namespace.Classes() {
			from.class = &class
			c := openTest(t, Options{Dir: t.TempDir(), Timeout: time.Second})
			r := c.Reader(from)
			for _, ref := range f.refs {
				if err := f.read(t.Context(), r, ref); err != nil && strings.Contains(err.Error(), "WRONG") {
					t.Fatalf("%s %v: %v", what, class, err)
				}
			}
			if class == namespace.Pack && f.offline(t, c, what) != 0 {
				t.Errorf("%s %v was kept", what, class)
			}
			f.readAll(t, c.Reader(f.origin)) // the right one heals it
		}
	}
}

// swapped serves, of one class, whatever the other origin has, in no order but the same for a key.
type swapped struct {
	right, wrong namespace.Origin
	on           bool
	class        *namespace.Class
}

func (s swapped) Get(ctx context.Context, k namespace.Key, off, n int64) (io.ReadCloser, error) {
	if k.Class != *s.class {
		return s.right.Get(ctx, k, off, n)
	}
	var all []namespace.Key
	err := s.wrong.List(ctx, k.Class, func(o namespace.Key, size int64) error {
		if o != k && size > off {
			all = append(all, o)
		}
		return nil
	})
	if err != nil || len(all) == 0 {
		return s.right.Get(ctx, k, off, n)
	}
	least := all[0]
	for _, o := range all {
		if o.Digest.Hex() < least.Digest.Hex() {
			least = o
		}
	}
	return s.wrong.Get(ctx, least, off, n)
}

// An index whose list of free pages is damaged writes pages anywhere, into a file that is mostly a hole. It
// is made anew.
func TestIndexTooLarge(t *testing.T) {
	f, dir := small(t, false)
	path := filepath.Join(dir, "index.db")
	if err := os.Truncate(path, 1<<30); err != nil {
		t.Fatal(err)
	}
	c := openTest(t, Options{Dir: dir})
	if good := f.offline(t, c, "too large"); good != len(f.refs) || fileSize(t, path) > slack {
		t.Errorf("%d of %d chunks, and a file of %d bytes", good, len(f.refs), fileSize(t, path))
	}
	if err := os.Truncate(path, 1<<30); err != nil {
		t.Fatal(err)
	}
	c.index.put(numbered(1))
	if err := c.flushIndex(); err != nil {
		t.Fatal(err)
	}
	if good := f.offline(t, c, "too large"); good != len(f.refs) || fileSize(t, path) > slack || c.Stats().IndexMade != 1 {
		t.Errorf("while it is used: %d of %d chunks, and a file of %d bytes", good, len(f.refs), fileSize(t, path))
	}
}
