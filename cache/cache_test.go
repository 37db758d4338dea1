package cache_test

import (
	"bytes"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"

	"coppice.dev/coppice/cache"
	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/storetest"
)

// Every chunk reads the same when it is fetched, when it is here, after a restart and without a
// network.
func TestReadChunk(t *testing.T) {
	tr := newTree(t, smallFiles(1, 200, true), append(smallFiles(2, 50, false), storetest.Bytes(3, 3<<20+17)))
	dir := t.TempDir()
	c := open(t, cache.Options{Dir: dir})
	r := c.Reader(tr.from)
	readAll(t, r, tr.chunks)
	cold := c.Stats()
	if cold.Requests == 0 || cold.Fetched < uint64(tr.stored) {
		t.Errorf("nothing was fetched: %+v", cold)
	}
	readAll(t, r, tr.chunks)
	readAll(t, c.Reader(offline), tr.chunks)
	if warm := c.Stats(); warm.Requests != cold.Requests || warm.Hits <= cold.Hits {
		t.Errorf("what is here was asked for again: %+v, then %+v", cold, warm)
	}
	shut(t, c)

	c = open(t, cache.Options{Dir: dir})
	readAll(t, c.Reader(offline), tr.chunks)
	if s := c.Stats(); s.Requests != 0 || s.Corrupt != 0 {
		t.Errorf("after a restart: %+v", s)
	}
}

func TestReadChunkParts(t *testing.T) {
	tr := newTree(t, [][]byte{storetest.Bytes(1, 5000), storetest.Bytes(2, 1<<20)})
	c := open(t, cache.Options{Dir: t.TempDir()})
	r := c.Reader(tr.from)
	for _, ch := range tr.chunks {
		size := int64(len(ch.plain))
		for _, off := range []int64{0, 1, size / 2, size - 1, size} {
			for _, n := range []int64{0, 1, 4096, size} {
				p := make([]byte, n)
				got, err := r.ReadChunk(t.Context(), ch.ref, p, off)
				want := ch.plain[off:min(off+n, size)]
				if err != nil || !bytes.Equal(p[:got], want) {
					t.Errorf("[%d, +%d) of %d: %d bytes, %v", off, n, size, got, err)
				}
			}
		}
		for _, off := range []int64{-1, size + 1} {
			if _, err := r.ReadChunk(t.Context(), ch.ref, nil, off); !namespace.IsKind(err, namespace.Invalid) {
				t.Errorf("offset %d: %v, want invalid", off, err)
			}
		}
	}
}

// A reference that its catalog does not hold is refused, before anything is asked for by it.
func TestReadChunkOfNoCatalog(t *testing.T) {
	tr := newTree(t, smallFiles(1, 3, false))
	r := open(t, cache.Options{Dir: t.TempDir()}).Reader(tr.from)
	for name, change := range map[string]func(*namespace.ChunkRef){
		"index":  func(r *namespace.ChunkRef) { r.Index = 1 },
		"behind": func(r *namespace.ChunkRef) { r.Index = 1 << 31 },
		"digest": func(r *namespace.ChunkRef) { r.Digest[0]++ },
		"zero":   func(r *namespace.ChunkRef) { r.Digest = namespace.Digest{} },
		"size":   func(r *namespace.ChunkRef) { r.Size++ },
		"huge":   func(r *namespace.ChunkRef) { r.Size = 1<<32 - 1 },
	} {
		ref := tr.chunks[0].ref
		change(&ref)
		if _, err := r.ReadChunk(t.Context(), ref, make([]byte, 10), 0); !namespace.IsKind(err, namespace.Invalid) {
			t.Errorf("%s: %v, want invalid", name, err)
		}
	}
	if n := tr.from.Calls("Get"); n > 1 { // the catalog
		t.Errorf("%d requests", n)
	}
}

// Concurrent misses of one frame are one request, and its neighbours come along.
func TestConcurrentMisses(t *testing.T) {
	tr := newTree(t, smallFiles(1, 60, false)) // some frames, one window
	gate := make(chan struct{})
	tr.from.SetPlan(func(c storetest.Call) storetest.Fault {
		if c.Key.Class == namespace.Pack {
			return storetest.Fault{Gate: gate}
		}
		return storetest.Fault{}
	})
	c := open(t, cache.Options{Dir: t.TempDir()})
	r := c.Reader(tr.from)
	if err := r.HydrateMetadata(t.Context(), tr.root); err != nil {
		t.Fatal(err)
	}
	tr.from.Reset()
	var all sync.WaitGroup
	var asked sync.WaitGroup
	for range 16 {
		asked.Add(1)
		all.Go(func() {
			asked.Done()
			if err := read(t.Context(), r, tr.chunks[0]); err != nil {
				t.Error(err)
			}
		})
	}
	asked.Wait()
	close(gate)
	all.Wait()
	if n := packRequests(tr.from); n != 1 {
		t.Errorf("16 misses of one frame: %d requests", n)
	}
	readAll(t, r, tr.chunks)
	if n := packRequests(tr.from); n != 1 {
		t.Errorf("its neighbours did not come along: %d requests", n)
	}
}

func packRequests(f *storetest.Faulty) (n int) {
	for _, c := range f.Log() {
		if c.Op == "Get" && c.Key.Class == namespace.Pack {
			n++
		}
	}
	return n
}

// A tree that is read in order costs few requests, and nothing is fetched twice.
func TestSequentialRequests(t *testing.T) {
	tr := newTree(t, smallFiles(1, 1000, false), smallFiles(2, 1000, true), [][]byte{storetest.Bytes(3, 5<<20)})
	c := open(t, cache.Options{Dir: t.TempDir()})
	r := c.Reader(tr.from)
	readAll(t, r, tr.chunks)
	n, most := packRequests(tr.from), int(tr.stored/(256<<10))
	t.Logf("%d requests for %d bytes in %d frames", n, tr.stored, tr.frames)
	if n > most {
		t.Errorf("%d requests, at most %d", n, most)
	}
	if b := tr.from.BytesRead(); b > tr.stored*11/10+1<<20 {
		t.Errorf("%d bytes fetched for %d", b, tr.stored)
	}
}

// Chunks in reverse, which no window helps, are right all the same, and no frame comes twice.
func TestReverse(t *testing.T) {
	tr := newTree(t, smallFiles(1, 300, false))
	c := open(t, cache.Options{Dir: t.TempDir()})
	r := c.Reader(tr.from)
	for i := len(tr.chunks) - 1; i >= 0; i-- {
		if err := read(t.Context(), r, tr.chunks[i]); err != nil {
			t.Fatal(err)
		}
	}
	if b := tr.from.BytesRead(); b > tr.stored+1<<20 {
		t.Errorf("%d bytes fetched for %d", b, tr.stored)
	}
}

// Many readers of everything at once, through two views of the cache.
func TestParallelReaders(t *testing.T) {
	tr := newTree(t, smallFiles(1, 400, true), smallFiles(2, 400, false))
	c := open(t, cache.Options{Dir: t.TempDir(), FrameBytes: 1 << 20})
	views := []*cache.Reader{c.Reader(tr.from), c.Reader(tr.from)}
	var all sync.WaitGroup
	for g := range 6 {
		all.Go(func() {
			for i := range tr.chunks {
				ch := tr.chunks[(i*(2*g+1)+g*100)%len(tr.chunks)]
				if err := read(t.Context(), views[g%2], ch); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	all.Wait()
	if s := c.Stats(); s.Corrupt != 0 || s.Unkept != 0 {
		t.Errorf("%+v", s)
	}
}

// What was hydrated is read without a network, also after a restart.
func TestHydrate(t *testing.T) {
	tr := newTree(t, smallFiles(1, 300, true), [][]byte{storetest.Bytes(4, 3<<20)}, smallFiles(2, 300, false))
	dir := t.TempDir()
	c := open(t, cache.Options{Dir: dir})
	r := c.Reader(tr.from)
	if err := r.HydrateMetadata(t.Context(), tr.root); err != nil {
		t.Fatal(err)
	}
	if n := packRequests(tr.from); n != 0 {
		t.Errorf("%d requests for content", n)
	}
	var last, total int64
	if err := r.Hydrate(t.Context(), tr.root, func(done, of int64) { last, total = max(last, done), of }); err != nil {
		t.Fatal(err)
	}
	if last != total || total == 0 {
		t.Errorf("progress ended at %d of %d", last, total)
	}
	if n := packRequests(tr.from); n > tr.frames/2 {
		t.Errorf("%d requests for %d frames", n, tr.frames)
	}
	shut(t, c)
	c = open(t, cache.Options{Dir: dir})
	r = c.Reader(offline)
	if err := r.Hydrate(t.Context(), tr.root, nil); err != nil {
		t.Errorf("hydrating what is here: %v", err)
	}
	readAll(t, r, tr.chunks)
}

// Hydration does not take for here what was lost with its segment, whatever the index says.
func TestHydrateAfterLoss(t *testing.T) {
	tr := newTree(t, smallFiles(1, 100, true), smallFiles(2, 100, false))
	for name, lose := range map[string]func(path string) error{
		"removed":   os.Remove,
		"truncated": func(path string) error { return os.Truncate(path, 100_000) },
		"damaged":   func(path string) error { return os.WriteFile(path, make([]byte, 500_000), 0o600) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := fill(t, tr)
			for _, p := range glob(t, dir, "segments/*.seg") {
				if err := lose(p); err != nil {
					t.Fatal(err)
				}
			}
			c := open(t, cache.Options{Dir: dir})
			if name == "damaged" {
				if _, err := c.Verify(t.Context(), true); err != nil {
					t.Fatal(err)
				}
			}
			if err := c.Reader(tr.from).Hydrate(t.Context(), tr.root, nil); err != nil {
				t.Fatal(err)
			}
			readAll(t, c.Reader(offline), tr.chunks)
		})
	}
}

func TestHydrateFails(t *testing.T) {
	tr := newTree(t, smallFiles(1, 300, false))
	tr.replace(t, namespace.Pack, tr.packs[0], func([]byte) []byte { return nil })
	r := open(t, cache.Options{Dir: t.TempDir()}).Reader(tr.from)
	if err := r.Hydrate(t.Context(), tr.root, nil); !namespace.IsKind(err, namespace.NotExist) {
		t.Errorf("without its pack: %v", err)
	}
}

func TestBlob(t *testing.T) {
	tr := newTree(t, smallFiles(1, 10, false))
	b := []byte(strings.Repeat("a manifest\n", 100))
	d := namespace.Sum(b)
	putBlob(t, tr, b)
	dir := t.TempDir()
	c := open(t, cache.Options{Dir: dir})
	for _, r := range []*cache.Reader{c.Reader(tr.from), c.Reader(offline)} {
		got, err := r.Blob(t.Context(), d, 1<<20)
		if err != nil || !bytes.Equal(got, b) {
			t.Errorf("%d bytes, %v", len(got), err)
		}
	}
	if _, err := c.Reader(tr.from).Blob(t.Context(), namespace.Sum([]byte("none")), 1<<20); !namespace.IsKind(err, namespace.NotExist) {
		t.Errorf("what is not there: %v", err)
	}
	other := []byte(strings.Repeat("larger\n", 1000))
	putBlob(t, tr, other)
	if _, err := c.Reader(tr.from).Blob(t.Context(), namespace.Sum(other), 100); !namespace.IsKind(err, namespace.Limit) {
		t.Errorf("more than its limit: %v", err)
	}
}

// One process has a cache; the next is told which.
func TestOpenTwice(t *testing.T) {
	dir := t.TempDir()
	c := open(t, cache.Options{Dir: dir})
	_, err := cache.Open(cache.Options{Dir: dir, QuotaBytes: quota})
	if !namespace.IsKind(err, namespace.Exist) {
		t.Fatalf("opened twice: %v", err)
	}
	if h := namespace.HintOf(err); !strings.Contains(h, strconv.Itoa(os.Getpid())) {
		t.Errorf("the hint %q does not name process %d", h, os.Getpid())
	}
	shut(t, c)
	c = open(t, cache.Options{Dir: dir})
	shut(t, c)
	if err := c.Close(); err != nil {
		t.Errorf("closed twice: %v", err)
	}
}

func TestOpenRefuses(t *testing.T) {
	if _, err := cache.Open(cache.Options{Dir: t.TempDir(), QuotaBytes: 1 << 20}); !namespace.IsKind(err, namespace.Invalid) {
		t.Errorf("a tiny quota: %v", err)
	}
	file := t.TempDir() + "/file"
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := cache.Open(cache.Options{Dir: file, QuotaBytes: quota}); err == nil {
		t.Error("a file was opened as a cache")
	}
}
