package builder

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/object"
	"coppice.dev/coppice/namespace/storetest"
)

func digestOf(i int) namespace.Digest { return namespace.Sum(fmt.Append(nil, i)) }

// Every catalog of a graph with many ways to each is visited once, whatever the order.
func TestCrawlVisitsOnce(t *testing.T) {
	const n = 1000
	var mu sync.Mutex
	seen := map[namespace.Digest]int{}
	number := map[namespace.Digest]int{}
	for i := range n {
		number[digestOf(i)] = i
	}
	c := newCrawl()
	visit := func(_ context.Context, at catalogAt) ([]catalogAt, error) {
		mu.Lock()
		defer mu.Unlock()
		seen[at.digest]++
		var below []catalogAt
		for k := 1; k < 5; k++ {
			below = append(below, catalogAt{digest: digestOf((number[at.digest]*3 + k) % n), root: at.root})
		}
		return below, nil
	}
	for range 2 { // the second run finds nothing new
		if err := c.run(t.Context(), []catalogAt{{digest: digestOf(0)}, {digest: digestOf(7)}}, visit); err != nil {
			t.Fatal(err)
		}
	}
	if len(seen) != n {
		t.Errorf("%d of %d were visited", len(seen), n)
	}
	for d, times := range seen {
		if times != 1 {
			t.Errorf("%d was visited %d times", number[d], times)
		}
	}
}

func TestCrawlEndsWithTheFirstError(t *testing.T) {
	bad := errors.New("bad")
	err := newCrawl().run(t.Context(), []catalogAt{{digest: digestOf(0)}}, func(_ context.Context, at catalogAt) ([]catalogAt, error) {
		if at.path == "xxxxx" {
			return nil, bad
		}
		return []catalogAt{{digest: namespace.Sum(at.digest[:]), path: at.path + "x"}}, nil
	})
	if !errors.Is(err, bad) {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	err = newCrawl().run(ctx, []catalogAt{{digest: digestOf(0)}}, func(_ context.Context, at catalogAt) ([]catalogAt, error) {
		cancel()
		return []catalogAt{{digest: namespace.Sum(at.digest[:])}}, nil // for ever
	})
	if !namespace.IsKind(err, namespace.Canceled) {
		t.Error(err)
	}
}

// Directories are kept as long as there is room, and lead to chunks and to nothing else.
func TestPackDirs(t *testing.T) {
	store := &storetest.Faulty{Origin: storetest.NewMem()}
	var packs []namespace.Digest
	for i := range 10 {
		w := object.NewPackWriter()
		for j := range 3 {
			plain := storetest.Bytes(uint64(10*i+j), 300)
			stored, codec := object.EncodeFrame(plain)
			chunks := []object.FrameChunk{{Digest: namespace.Sum(plain[:100]), Len: 100}, {Digest: namespace.Sum(plain[100:]), Off: 100, Len: 200}}
			if err := w.Add(stored, codec, 300, chunks); err != nil {
				t.Fatal(err)
			}
		}
		b, d, _ := w.Finish()
		packs = append(packs, d)
		if err := store.Put(t.Context(), namespace.Key{Class: namespace.Pack, Digest: d}, b); err != nil {
			t.Fatal(err)
		}
	}
	dirs := newPackDirs(store)
	dirs.limit = 18 // three packs
	for range 3 {
		for _, d := range packs {
			if _, err := dirs.get(t.Context(), d); err != nil || dirs.chunks > dirs.limit || len(dirs.held) > 3 {
				t.Fatalf("%d chunks of %d packs are held, %v", dirs.chunks, len(dirs.held), err)
			}
		}
	}
	store.Reset()
	dir, err := dirs.get(t.Context(), packs[9])
	if err != nil || store.Calls("") != 0 {
		t.Fatalf("%d calls for what is held, %v", store.Calls(""), err)
	}
	n := 0
	for _, f := range dir.frames {
		for _, c := range f.Chunks {
			p := placeOf(packs[9], f, c)
			if i, got, ok := dir.find(p); !ok || i != n || got != c {
				t.Errorf("%+v is %d, %+v, %v", p, i, got, ok)
			}
			n++
			for what, wrong := range map[string]object.Place{
				"between frames": {Pack: p.Pack, FrameOff: p.FrameOff + 1, FrameLen: p.FrameLen, FramePlain: p.FramePlain, Codec: p.Codec, Off: p.Off},
				"far away":       {Pack: p.Pack, FrameOff: 1 << 40, FrameLen: p.FrameLen, FramePlain: p.FramePlain, Codec: p.Codec, Off: p.Off},
				"between chunks": {Pack: p.Pack, FrameOff: p.FrameOff, FrameLen: p.FrameLen, FramePlain: p.FramePlain, Codec: p.Codec, Off: p.Off + 1},
				"another length": {Pack: p.Pack, FrameOff: p.FrameOff, FrameLen: p.FrameLen - 1, FramePlain: p.FramePlain, Codec: p.Codec, Off: p.Off},
			} {
				if _, _, ok := dir.find(wrong); ok {
					t.Errorf("%s: a chunk was found", what)
				}
			}
		}
	}
	if _, err := dirs.get(t.Context(), digestOf(1)); !namespace.IsKind(err, namespace.NotExist) {
		t.Error(err)
	}
}
