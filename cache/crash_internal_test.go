package cache

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"coppice.dev/coppice/internal/disk"
	"coppice.dev/coppice/namespace"
)

// long says that tests should take their time.
var long = os.Getenv("COPPICE_TEST_LONG") != ""

// progress is what a workload has made durable.
type progress struct {
	mu   sync.Mutex
	done map[namespace.Digest]bool
}

func (p *progress) complete(refs []namespace.ChunkRef) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, ref := range refs {
		p.done[ref.Digest] = true
	}
}

func (p *progress) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.done)
}

// workload fills a cache through the double, in small segments: half of it, durably, then the rest; moves
// a segment's records; closes. Operations that fail are met as the cache meets them; it returns the first
// error of what promises durability.
func (f *fixture) workload(t *testing.T, dir string, ops disk.Ops, p *progress) error {
	t.Helper()
	c, err := Open(Options{Dir: dir, QuotaBytes: 1 << 30, ops: ops})
	if err != nil {
		return err
	}
	defer c.Close()
	c.segments.grain = 4 << 10
	r := c.Reader(f.origin)
	half := f.refs[:len(f.refs)/2]
	for _, ref := range half {
		if err := f.read(t.Context(), r, ref); err != nil {
			t.Fatalf("a read through a failing disk: %v", err)
		}
	}
	var first error
	kept := c.count.unkept.Load() == 0
	if err := c.sync(); err != nil {
		first = err
	} else if kept {
		p.complete(half)
	}
	if err := r.Hydrate(t.Context(), f.root, nil); err == nil {
		p.complete(f.refs)
	} else if first == nil {
		first = err
	}
	all := c.segments.all()
	for _, s := range all[:min(2, len(all))] {
		if err := c.rewrite(s, nil); err != nil && first == nil {
			first = err
		}
	}
	if err := c.Close(); err != nil && first == nil {
		first = err
	}
	return first
}

// crashed opens what a crash left and reads it: nothing is wrong, what the cache says it holds it has,
// and what was complete is complete.
func (f *fixture) crashed(t *testing.T, dir string, complete int, what string) {
	t.Helper()
	c, err := Open(Options{Dir: dir, QuotaBytes: 1 << 30})
	if err != nil {
		t.Fatalf("%s: it does not open: %v", what, err)
	}
	defer c.Close()
	if good := f.offline(t, c, what); good < complete {
		t.Errorf("%s: %d of %d complete chunks can be read", what, good, complete)
	}
	f.readAll(t, c.Reader(f.origin))
	if err := c.Close(); err != nil {
		t.Errorf("%s: %v", what, err)
	}
}

// The machine crashes after every single operation on the disk. What was not synced is dropped, torn and
// reordered.
func TestMachineCrash(t *testing.T) {
	rounds := 1
	if long {
		rounds = 20
	}
	for round := range rounds {
		f := newFixture(t, 2, 16, 1500, layoutOf{3, 3, 0})
		dir, states := t.TempDir(), t.TempDir()
		double, err := disk.NewDouble(dir)
		if err != nil {
			t.Fatal(err)
		}
		p := &progress{done: map[namespace.Digest]bool{}}
		type state struct {
			dir, what string
			complete  int
		}
		var mu sync.Mutex
		var all []state
		rng := rand.New(rand.NewPCG(uint64(round), 4))
		double.After(func(n int, op, path string) {
			mu.Lock()
			defer mu.Unlock()
			s := state{filepath.Join(states, fmt.Sprint(n)), fmt.Sprintf("round %d, crash after %s of %s, the %d-th", round, op, filepath.Base(path), n), p.count()}
			if err := double.Crash(s.dir, rng); err != nil {
				t.Error(err)
			}
			all = append(all, s)
		})
		if err := f.workload(t, dir, double, p); err != nil {
			t.Fatal(err)
		}
		if len(all) < 50 || p.count() != len(f.refs) {
			t.Fatalf("%d operations, %d chunks complete", len(all), p.count())
		}
		for _, s := range all {
			f.crashed(t, s.dir, s.complete, s.what)
			os.RemoveAll(s.dir)
		}
	}
}

// Every operation on the disk fails in turn, once or from then on, for want of room or of a working disk.
// Reads are right all the same, and after it what was said to be durable is.
func TestDiskFails(t *testing.T) {
	f := newFixture(t, 2, 8, 1500, layoutOf{2, 2, 0})
	count := func() int {
		dir := t.TempDir()
		double, err := disk.NewDouble(dir)
		if err != nil {
			t.Fatal(err)
		}
		if err := f.workload(t, dir, double, &progress{done: map[namespace.Digest]bool{}}); err != nil {
			t.Fatal(err)
		}
		return double.Count()
	}()
	step := 11
	if long {
		step = 1
	}
	for _, why := range []error{syscall.ENOSPC, syscall.EIO} {
		for _, forever := range []bool{false, true} {
			for at := range count {
				if (at+int(why.(syscall.Errno)))%step != 0 {
					continue
				}
				dir, after := t.TempDir(), filepath.Join(t.TempDir(), "crash")
				double, err := disk.NewDouble(dir)
				if err != nil {
					t.Fatal(err)
				}
				var failed string
				double.Plan(func(n int, op, path string) error {
					if n == at || forever && n > at {
						if failed == "" {
							failed = op + " of " + filepath.Base(path)
						}
						return &os.PathError{Op: op, Path: path, Err: why}
					}
					return nil
				})
				p := &progress{done: map[namespace.Digest]bool{}}
				err = f.workload(t, dir, double, p)
				what := fmt.Sprintf("%v at operation %d (%s), forever: %v", why, at, failed, forever)
				if err != nil && namespace.IsKind(err, namespace.Internal) && !errors.Is(err, why) {
					t.Errorf("%s: %v", what, err)
				}
				if err := double.Crash(after, rand.New(rand.NewPCG(1, uint64(at)))); err != nil {
					t.Fatal(err)
				}
				f.crashed(t, dir, p.count(), what)
				f.crashed(t, after, p.count(), what+", then a crash")
			}
		}
	}
}
