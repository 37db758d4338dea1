package cache

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/storetest"
)

// C4: however many miss at once, every frame is asked for once.
func TestConcurrentMissesAreOneRequest(t *testing.T) {
	f := newFixture(t, 1, 64, 20000, layoutOf{4, 4, 0})
	gate := make(chan struct{})
	f.origin.SetPlan(func(c storetest.Call) storetest.Fault {
		if c.Key.Class == namespace.Pack {
			return storetest.Fault{Gate: gate}
		}
		return storetest.Fault{}
	})
	c := openTest(t, Options{Dir: t.TempDir()})
	r := []*Reader{c.Reader(f.origin), c.Reader(f.origin)}
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			for k := range f.refs {
				if err := f.read(t.Context(), r[i%2], f.refs[(k+i)%len(f.refs)]); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	eventually(t, "all packs asked for", func() bool { return c.Stats().Requests >= uint64(len(f.packs)) })
	close(gate)
	wg.Wait()
	seen := map[namespace.Key][]storetest.Call{}
	for _, call := range f.origin.Log() {
		for _, other := range seen[call.Key] {
			if call.Len < 0 || call.Off < other.Off+other.Len && other.Off < call.Off+call.Len {
				t.Errorf("asked twice: %+v and %+v", call, other)
			}
		}
		seen[call.Key] = append(seen[call.Key], call)
	}
}

// A waiter does not wait for the end of the range, nor past its bound; the flight goes on.
func TestWaiting(t *testing.T) {
	f := newFixture(t, 1, 32, 20000, layoutOf{1, 100, 0})
	r := openTest(t, Options{Dir: t.TempDir(), Timeout: 150 * time.Millisecond}).Reader(f.origin)
	if err := f.read(t.Context(), r, f.refs[31]); err != nil { // catalog and locator are here
		t.Fatal(err)
	}
	gate := make(chan struct{})
	f.origin.SetPlan(func(storetest.Call) storetest.Fault { return storetest.Fault{Gate: gate} })
	start := time.Now()
	err := f.read(t.Context(), r, f.refs[0])
	if d := time.Since(start); !namespace.IsKind(err, namespace.Unavailable) || d < 100*time.Millisecond || d > 5*time.Second {
		t.Errorf("%v after %v", err, d)
	}
	start = time.Now()
	if err := f.read(t.Context(), r, f.refs[1]); !namespace.IsKind(err, namespace.Unavailable) {
		t.Errorf("the second: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := f.read(ctx, r, f.refs[0]); !namespace.IsKind(err, namespace.Canceled) {
		t.Errorf("canceled: %v", err)
	}
	close(gate)
	eventually(t, "the flight's end", func() bool { return f.read(t.Context(), r, f.refs[0]) == nil })
	if n := f.origin.Calls("Get"); n > 4 {
		t.Errorf("%d requests: catalog, locator, and two ranges are enough", n)
	}
}

// Offline, the first read finds out and those behind it fail at once.
func TestOfflineFailsAtOnce(t *testing.T) {
	f := newFixture(t, 1, 200, 2000, layoutOf{1, 1000, 0})
	r := openTest(t, Options{Dir: t.TempDir()}).Reader(f.origin)
	if err := f.read(t.Context(), r, f.refs[199]); err != nil {
		t.Fatal(err)
	}
	f.origin.SetPlan(func(storetest.Call) storetest.Fault {
		return storetest.Fault{Delay: 100 * time.Millisecond, Err: namespace.E(namespace.Unavailable, "plan", "", errors.New("no route"))}
	})
	start := time.Now()
	for _, ref := range f.refs[:150] {
		if err := f.read(t.Context(), r, ref); !namespace.IsKind(err, namespace.Unavailable) || !strings.Contains(err.Error(), "no route") {
			t.Fatalf("offline: %v", err)
		}
	}
	if d := time.Since(start); d > 5*time.Second { // each by itself: 15 s
		t.Errorf("150 reads took %v", d)
	}
	f.origin.SetPlan(nil)
	eventually(t, "online again", func() bool { return f.read(t.Context(), r, f.refs[0]) == nil })
}

func TestHydrate(t *testing.T) {
	f := newFixture(t, 4, 60, 30000, layoutOf{4, 4, 0})
	dir := t.TempDir()
	c := openTest(t, Options{Dir: dir})
	r := c.Reader(f.origin)
	var last, total int64
	if err := r.Hydrate(t.Context(), f.root, func(done, of int64) {
		if done < last {
			t.Errorf("progress went back from %d to %d", last, done)
		}
		last, total = done, of
	}); err != nil {
		t.Fatal(err)
	}
	if last != total || total != 4*60*30000 {
		t.Errorf("progress ended at %d of %d", last, total)
	}
	if n := f.origin.Calls("Get"); n > len(f.packs)+1+2*4+5 { // catalogs, locators; and a delta is looked for with each
		t.Errorf("%d requests for %d packs", n, len(f.packs))
	}
	c.crash() // what Hydrate promised does not depend on Close
	f.origin.SetPlan(func(storetest.Call) storetest.Fault {
		return storetest.Fault{Err: namespace.E(namespace.Unavailable, "plan", "", nil)}
	})
	c2 := openTest(t, Options{Dir: dir})
	f.readAll(t, c2.Reader(f.origin))
	if err := c2.Reader(f.origin).Hydrate(t.Context(), f.root, nil); err != nil {
		t.Errorf("hydrating what is here, offline: %v", err)
	}
	if s := c2.Stats(); s.Corrupt != 0 {
		t.Errorf("%+v", s)
	}
}

func TestHydrateTooMuch(t *testing.T) {
	f := newFixture(t, 2, 50, 1500000, layoutOf{1, 10, 0})
	r := openTest(t, Options{Dir: t.TempDir(), QuotaBytes: quotaMin}).Reader(f.origin)
	if err := r.Hydrate(t.Context(), f.root, nil); !namespace.IsKind(err, namespace.Limit) || namespace.HintOf(err) == "" {
		t.Errorf("more than the quota: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := r.Hydrate(ctx, f.root, nil); !namespace.IsKind(err, namespace.Canceled) {
		t.Errorf("canceled: %v", err)
	}
}

// One process has a cache; the other is told who.
func TestTwoProcesses(t *testing.T) {
	if dir := os.Getenv("COPPICE_TEST_CACHE"); dir != "" {
		_, err := Open(Options{Dir: dir})
		if !namespace.IsKind(err, namespace.Exist) {
			t.Fatalf("opened twice: %v", err)
		}
		t.Log("HINT: " + namespace.HintOf(err))
		return
	}
	dir := t.TempDir()
	openTest(t, Options{Dir: dir})
	cmd := exec.Command(os.Args[0], "-test.run=^TestTwoProcesses$", "-test.v")
	cmd.Env = append(os.Environ(), "COPPICE_TEST_CACHE="+dir)
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "process "+strconv.Itoa(os.Getpid())) {
		t.Errorf("%v: %s", err, out)
	}
	if _, err := Open(Options{Dir: dir}); !namespace.IsKind(err, namespace.Exist) {
		t.Errorf("opened twice by one process: %v", err)
	}
}

// Close does not wait for an origin, and a closed cache fails softly.
func TestCloseBreaksOff(t *testing.T) {
	f := newFixture(t, 1, 2, 1000, layoutOf{1, 2, 0})
	gate := make(chan struct{})
	defer close(gate)
	f.origin.SetPlan(func(storetest.Call) storetest.Fault { return storetest.Fault{Gate: gate} })
	c := openTest(t, Options{Dir: t.TempDir()})
	ended := make(chan error, 1)
	go func() { ended <- f.read(context.Background(), c.Reader(f.origin), f.refs[0]) }()
	eventually(t, "a request", func() bool { return f.origin.Calls("Get") > 0 })
	start := time.Now()
	if err := c.Close(); err != nil || time.Since(start) > 5*time.Second {
		t.Errorf("%v after %v", err, time.Since(start))
	}
	if err := <-ended; err == nil {
		t.Error("a read that was broken off succeeded")
	}
}
