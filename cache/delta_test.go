package cache_test

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"coppice.dev/coppice/cache"
	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/catalog"
	"coppice.dev/coppice/namespace/object"
	"coppice.dev/coppice/namespace/object/delta"
	"coppice.dev/coppice/namespace/storetest"
)

// versions is a tree in several versions of one origin: of each file of its directory, a few bytes change
// from one to the next, and every version has the delta upon the one before.
func versions(t *testing.T, n int) (all []*tree, mem *storetest.Faulty) {
	t.Helper()
	files := append(smallFiles(1, 40, true), bytes.Repeat([]byte("a large file, in several chunks "), 100_000))
	for v := range n {
		var now [][]byte
		for i, f := range files {
			b := bytes.Clone(f)
			if len(b) > 100 && i%3 != 0 {
				copy(b[50:], fmt.Sprintf("version %d of %d", v, i))
			}
			now = append(now, b)
		}
		all = append(all, newTree(t, now))
	}
	origin := all[0].mem
	for v, tr := range all {
		copyAll(t, origin, tr.mem)
		if v > 0 {
			putDelta(t, origin, all[v-1], tr)
		}
	}
	return all, &storetest.Faulty{Origin: origin}
}

func copyAll(t *testing.T, to, from *storetest.Mem) {
	t.Helper()
	for _, class := range namespace.Classes() {
		err := from.List(t.Context(), class, func(k namespace.Key, _ int64) error {
			b, err := storetest.ReadAll(t.Context(), from, k, 0, -1)
			if err == nil && to != from {
				err = to.Put(t.Context(), k, b)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// blobOf returns a catalog of a tree and its plaintext.
func blobOf(t *testing.T, tr *tree, d namespace.Digest) (*catalog.Catalog, []byte) {
	t.Helper()
	stored, err := storetest.ReadAll(t.Context(), tr.mem, namespace.Key{Class: namespace.Blob, Digest: d}, 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	b, err := object.DecodeBlob(stored, d, namespace.CatalogBytesMax)
	if err != nil {
		t.Fatal(err)
	}
	c, err := catalog.Open(b)
	if err != nil {
		t.Fatal(err)
	}
	return c, b
}

// putDelta stores the deltas of the root and of the directory of tr, upon those of old.
func putDelta(t *testing.T, mem *storetest.Mem, old, tr *tree) {
	t.Helper()
	for _, pair := range [][2]namespace.Digest{{old.root, tr.root}, {old.dirs[0], tr.dirs[0]}} {
		was, wasBytes := blobOf(t, old, pair[0])
		now, nowBytes := blobOf(t, tr, pair[1])
		patch, err := delta.Diff(delta.Bytes, wasBytes, nowBytes)
		if err != nil {
			t.Fatal(err)
		}
		o := &delta.Object{Catalog: pair[1], CatalogBytes: uint64(len(nowBytes)), Predecessors: []namespace.Digest{pair[0]}}
		var payloads [][]byte
		seen := map[namespace.Digest]bool{}
		for i := range now.Len() {
			lo, hi := now.Chunks(i)
			if hi == lo || seen[now.Chunk(lo).Digest] {
				continue
			}
			seen[now.Chunk(lo).Digest] = true
			wlo, whi := was.Chunks(i)
			e := delta.Entry{Lo: uint32(lo), Hi: uint32(hi), Size: now.Entry(i).Size, Method: delta.Difference, Frame: 1}
			var from []byte
			for k := wlo; k < whi; k++ {
				e.Base = append(e.Base, delta.Extent{Digest: was.Chunk(k).Digest, Size: was.ChunkLen(k)})
				from = append(from, plainOf(t, old, was.Chunk(k).Digest)...)
			}
			var to []byte
			for k := lo; k < hi; k++ {
				to = append(to, plainOf(t, tr, now.Chunk(k).Digest)...)
			}
			p, err := delta.Diff(delta.Bytes, from, to)
			if err != nil {
				t.Fatal(err)
			}
			o.Entries, payloads = append(o.Entries, e), append(payloads, p)
		}
		b, err := delta.Encode(o, payloads, patch)
		if err != nil {
			t.Fatal(err)
		}
		put(t, mem, namespace.Delta, pair[1], b)
	}
}

func plainOf(t *testing.T, tr *tree, d namespace.Digest) []byte {
	t.Helper()
	for _, c := range tr.chunks {
		if c.ref.Digest == d {
			return c.plain
		}
	}
	t.Fatalf("no chunk %v", d)
	return nil
}

// fetchedBy hydrates a tree and returns the bytes that came for it.
func fetchedBy(t *testing.T, c *cache.Cache, from namespace.Fetcher, tr *tree) uint64 {
	t.Helper()
	before := c.Stats().Fetched
	if err := c.Reader(from).Hydrate(t.Context(), tr.root, nil); err != nil {
		t.Fatal(err)
	}
	readAll(t, c.Reader(offline), tr.chunks)
	return c.Stats().Fetched - before
}

// With the old version here, the new one is made from it: catalogs and files, versions skipped or not.
func TestDeltas(t *testing.T) {
	all, from := versions(t, 4)
	full := fetchedBy(t, open(t, cache.Options{Dir: t.TempDir()}), from, all[3])
	for _, steps := range [][]int{{0, 1, 2, 3}, {0, 3}, {1, 3}} {
		c := open(t, cache.Options{Dir: t.TempDir()})
		fetchedBy(t, c, from, all[steps[0]])
		for _, v := range steps[1:] {
			if n := fetchedBy(t, c, from, all[v]); n > full/8 {
				t.Errorf("%v: %d bytes came for version %d, %d without deltas", steps, n, v, full)
			}
		}
		if s := c.Stats(); s.Corrupt != 0 {
			t.Errorf("%v: %+v", steps, s)
		}
		if rep, err := c.Verify(t.Context(), false); err != nil || rep.Damaged != 0 {
			t.Errorf("%v: verify: %+v, %v", steps, rep, err)
		}
	}
}

// The first hydration asks for few deltas, whatever the number of catalogs.
func TestDeltasCostAFreshCacheLittle(t *testing.T) {
	dirs := make([][][]byte, 50)
	for i := range dirs {
		dirs[i] = smallFiles(uint64(i), 3, false)
	}
	tr := newTree(t, dirs...)
	asked := 0
	tr.from.SetPlan(func(c storetest.Call) storetest.Fault {
		if c.Op == "Get" && c.Key.Class == namespace.Delta {
			asked++
		}
		return storetest.Fault{}
	})
	fetchedBy(t, open(t, cache.Options{Dir: t.TempDir()}), tr.from, tr)
	if asked > 12 { // three, and those under way meanwhile
		t.Errorf("%d deltas asked for", asked)
	}
}

// A delta that is wrong, in whatever way, costs its bytes: chunks are fetched, and all is right.
func TestHostileDeltas(t *testing.T) {
	all, _ := versions(t, 2)
	key := namespace.Key{Class: namespace.Delta, Digest: all[1].dirs[0]}
	honest, err := storetest.ReadAll(t.Context(), all[0].mem, key, 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	other, err := storetest.ReadAll(t.Context(), all[0].mem, namespace.Key{Class: namespace.Delta, Digest: all[1].root}, 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	bad := map[string][]byte{"empty": {}, "garbage": []byte(strings.Repeat("no delta ", 99)), "another": other}
	for i := range 40 {
		b := bytes.Clone(honest)
		b[i*len(b)/40] ^= 0x55
		bad[fmt.Sprintf("flipped at %d", i*len(b)/40)] = b
		bad[fmt.Sprintf("cut at %d", i*len(b)/40)] = honest[:i*len(b)/40]
	}
	for name, b := range bad {
		mem := storetest.NewMem()
		copyAll(t, mem, all[0].mem)
		put(t, mem, namespace.Delta, key.Digest, b)
		c := open(t, cache.Options{Dir: t.TempDir()})
		fetchedBy(t, c, mem, all[0])
		fetchedBy(t, c, mem, all[1])
		if rep, err := c.Verify(t.Context(), false); err != nil || rep.Damaged != 0 {
			t.Errorf("%s: %+v, %v", name, rep, err)
		}
		shut(t, c)
	}
}
