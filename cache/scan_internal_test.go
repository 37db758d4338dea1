package cache

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/object"
)

// away is an origin that nobody can reach.
type away struct{}

func (away) Get(_ context.Context, k namespace.Key, _, _ int64) (io.ReadCloser, error) {
	return nil, namespace.E(namespace.Unavailable, "get", k.String(), errors.New("no route to host"))
}

// offline returns how many chunks can be read without a network; none may be wrong, and what the cache
// says it holds must be among them.
func (f *fixture) offline(t testing.TB, c *Cache, what string) (good int) {
	t.Helper()
	r := c.Reader(away{})
	for _, ref := range f.refs {
		held := c.holds(ref.Digest)
		err := f.read(t.Context(), r, ref)
		switch {
		case err == nil:
			good++
		case namespace.IsKind(err, namespace.Internal):
			t.Fatal(err)
		case held:
			t.Errorf("%s: chunk %s is said to be here: %v", what, ref.Digest.Short(), err)
		}
	}
	return good
}

// A damaged header costs its record, and no other, when the index is lost as well.
func TestScanPassesDamage(t *testing.T) {
	f, dir := small(t, false)
	seg := filepath.Join(dir, "segments", "00000001.seg")
	s, err := openSegment(filepath.Dir(seg), filepath.Base(seg), os.O_RDWR)
	if err != nil {
		t.Fatal(err)
	}
	var recs []record
	if _, err := s.scan(0, func(r record) error { recs = append(recs, r); return nil }); err != nil || len(recs) < 4 {
		t.Fatalf("%d records, %v", len(recs), err)
	}
	s.file.Close()
	for _, i := range []int{0, len(recs) / 2, len(recs) - 1} {
		for _, off := range []uint32{0, 5, 17, 30, 38, recordHeader + 3} {
			rotten := copyDir(t, dir)
			flip(t, filepath.Join(rotten, "segments", "00000001.seg"), int64(recs[i].at+off))
			if err := os.Remove(filepath.Join(rotten, "index.db")); err != nil {
				t.Fatal(err)
			}
			c := openTest(t, Options{Dir: rotten})
			if good, want := f.offline(t, c, "a damaged header"), len(f.refs)-len(recs[i].chunks); good != want {
				t.Errorf("record %d damaged at %d: %d of %d chunks, want %d", i, off, good, len(f.refs), want)
			}
		}
	}
}

// Stored bytes that look like a record are not believed when the header of their own record is damaged.
func TestScanDistrusts(t *testing.T) {
	victim := namespace.Sum([]byte("what the victim wants to read"))
	evil := []byte("what somebody else put there!")
	forged := append(make([]byte, recordPrefix(make([]object.FrameChunk, 1))), evil...)
	sealRecord(forged, object.Raw, uint32(len(evil)), []object.FrameChunk{{Digest: victim, Len: uint32(len(evil))}})
	outer := append(make([]byte, recordPrefix(make([]object.FrameChunk, 1))), forged...)
	sealRecord(outer, object.Raw, uint32(len(forged)), []object.FrameChunk{{Digest: namespace.Sum(forged), Len: uint32(len(forged))}})
	dir := t.TempDir()
	c := openTest(t, Options{Dir: dir})
	for range 2 {
		if _, _, err := c.segments.append(outer); err != nil {
			t.Fatal(err)
		}
	}
	c.crash()
	flip(t, filepath.Join(dir, "segments", "00000001.seg"), 8)
	c = openTest(t, Options{Dir: dir})
	if _, ok := c.index.get(victim); ok {
		t.Error("a forged record was indexed")
	}
	if _, ok := c.index.get(namespace.Sum(forged)); !ok {
		t.Error("the whole record behind it was not")
	}
}
