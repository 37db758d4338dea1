package cache

import (
	"sync"
	"testing"

	"coppice.dev/coppice/namespace"
)

// What is kept stays readable without a network, what is not goes, and a dry run says the same and does
// nothing; all of it while the cache is read.
func TestGC(t *testing.T) {
	keep, drop := newFixture(t, 2, 30, 2000, layoutOf{4, 5, 0}), newFixture(t, 3, 30, 2001, layoutOf{4, 5, 0})
	c := openTest(t, Options{Dir: t.TempDir()})
	c.segments.grain = 16 << 10
	for _, f := range []*fixture{keep, drop} { // some segments hold of both
		if err := c.Reader(f.origin).Hydrate(t.Context(), f.root, nil); err != nil {
			t.Fatal(err)
		}
	}
	var wg sync.WaitGroup
	stop := make(chan struct{})
	wg.Go(func() {
		for {
			keep.readAll(t, c.Reader(away{}))
			select {
			case <-stop:
				return
			default:
			}
		}
	})
	before := c.used()
	k := Keep{Trees: []namespace.Digest{keep.root}}
	would, err := c.GC(t.Context(), k, true)
	if err != nil || would.Bytes == 0 || would.Chunks != len(keep.refs) || c.used() != before {
		t.Fatalf("a dry run: %+v, %v", would, err)
	}
	did, err := c.GC(t.Context(), k, false)
	if err != nil || did.Segments != would.Segments || did.Moved != would.Moved || did.Bytes != would.Bytes || did.Objects != would.Objects {
		t.Errorf("it would drop %+v, and did %+v, %v", would, did, err)
	}
	close(stop)
	wg.Wait()
	if good := drop.offline(t, c, "dropped"); good*gcWorth > len(drop.refs) {
		t.Errorf("%d of %d chunks that were dropped are here", good, len(drop.refs))
	}
	again, err := c.GC(t.Context(), k, false)
	if err != nil || again.Segments+again.Moved+again.Objects != 0 {
		t.Errorf("there was nothing to do: %+v, %v", again, err)
	}
	// A catalog that went is fetched again, and not taken from the memory of an earlier use.
	if err := c.Reader(away{}).HydrateMetadata(t.Context(), drop.root); !namespace.IsKind(err, namespace.Unavailable) {
		t.Errorf("the metadata of a dropped tree: %v", err)
	}
	if err := c.Reader(drop.origin).Hydrate(t.Context(), drop.root, nil); err != nil {
		t.Error(err)
	}
	dir := copyDir(t, c.o.Dir)
	next := openTest(t, Options{Dir: dir})
	for _, f := range []*fixture{keep, drop} {
		if err := next.Reader(away{}).Hydrate(t.Context(), f.root, nil); err != nil {
			t.Errorf("after a copy is opened: %v", err)
		}
	}
}
