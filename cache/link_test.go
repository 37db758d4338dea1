package cache_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"coppice.dev/coppice/cache"
	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/storetest"
)

// watch is a cache.Watch that a test turns.
type watch struct {
	mu       sync.Mutex
	link     cache.Link
	changed  chan struct{}
	reach    func(context.Context) error
	suspects int
	gaveUp   int
	alive    bool // a suspicion finds that the origin answers
}

func newWatch(s cache.LinkState) *watch {
	w := &watch{changed: make(chan struct{})}
	w.set(s)
	return w
}

func (w *watch) set(s cache.LinkState) {
	w.mu.Lock()
	defer w.mu.Unlock()
	close(w.changed)
	w.changed = make(chan struct{})
	w.link.State, w.link.Changed = s, w.changed
}

func (w *watch) Link() cache.Link {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.link
}

func (w *watch) Reach(ctx context.Context) error {
	if w.reach != nil {
		return w.reach(ctx)
	}
	return namespace.E(namespace.Unavailable, "probe", "", errors.New("refused"))
}

func (w *watch) Suspect(gaveUp bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if gaveUp {
		w.gaveUp++
	}
	w.suspects++
	if w.alive {
		w.link.Heard = time.Now()
	}
}

// Without a network, what is here is read, and what is not fails at once.
func TestWatchOffline(t *testing.T) {
	tr := newTree(t, smallFiles(1, 40, false), smallFiles(2, 40, false))
	c := open(t, cache.Options{Dir: t.TempDir()})
	w := newWatch(cache.LinkOnline)
	r := c.Reader(tr.from)
	r.SetWatch(w)
	readAll(t, r, tr.chunks[:40])
	w.set(cache.LinkOffline)
	tr.from.Reset()
	readAll(t, r, tr.chunks[:40])
	start := time.Now()
	for _, ch := range tr.chunks[40:] {
		if err := read(t.Context(), r, ch); !namespace.IsKind(err, namespace.Unavailable) || !strings.Contains(err.Error(), "no network") {
			t.Fatalf("offline: %v", err)
		}
	}
	if d := time.Since(start); d > 40*50*time.Millisecond {
		t.Errorf("40 reads took %v", d)
	}
	if n := tr.from.Calls(""); n != 0 {
		t.Errorf("%d requests without a network", n)
	}
	w.set(cache.LinkOnline)
	readAll(t, r, tr.chunks)
}

// A read that waits when the cable is pulled is told at once.
func TestWatchCablePulled(t *testing.T) {
	eachHang(t, func(t *testing.T, tr *tree, h *hanging) {
		c := open(t, cache.Options{Dir: t.TempDir(), Timeout: time.Minute, Silence: time.Minute})
		w := newWatch(cache.LinkOnline)
		r := c.Reader(h)
		r.SetWatch(w)
		done := make(chan error, 1)
		go func() { done <- read(context.Background(), r, tr.chunks[0]) }()
		for h.asked.Load() == 0 {
			time.Sleep(time.Millisecond)
		}
		w.set(cache.LinkOffline)
		select {
		case err := <-done:
			if !namespace.IsKind(err, namespace.Unavailable) {
				t.Error(err)
			}
		case <-time.After(5 * time.Second):
			t.Error("it still waits")
		}
		close(h.gate)
	})
}

// An origin that is silent is given up after Silence; one that is only slow after Timeout.
func TestWatchSilence(t *testing.T) {
	for _, inBody := range []bool{false, true} {
		tr := newTree(t, smallFiles(1, 40, false))
		h := &hanging{honest: tr.mem, class: namespace.Pack, inBody: inBody, gate: make(chan struct{})}
		c := open(t, cache.Options{Dir: t.TempDir(), Timeout: 2 * time.Second, Silence: 400 * time.Millisecond})
		took := func(w *watch) time.Duration {
			r := c.Reader(h)
			r.SetWatch(w)
			start := time.Now()
			if err := read(t.Context(), r, tr.chunks[0]); !namespace.IsKind(err, namespace.Unavailable) || !names(err) {
				t.Errorf("a silent origin: %v", err)
			}
			return time.Since(start)
		}
		w := newWatch(cache.LinkOnline)
		if d := took(w); d < 390*time.Millisecond || d > 1900*time.Millisecond {
			t.Errorf("given up after %v, Silence is 400ms", d)
		}
		if w.suspects == 0 || w.gaveUp != 1 {
			t.Errorf("it was suspected %d times, given up %d times", w.suspects, w.gaveUp)
		}
		w = newWatch(cache.LinkOnline)
		w.alive = true
		if d := took(w); d < 1990*time.Millisecond || d > 10*time.Second {
			t.Errorf("given up after %v, though it answers probes; Timeout is 2s", d)
		}
		close(h.gate)
	}
}

// While the origin is not reachable, a read asks for it to be tried, and goes on if it is there.
func TestWatchReach(t *testing.T) {
	tr := newTree(t, smallFiles(1, 40, false))
	c := open(t, cache.Options{Dir: t.TempDir(), Silence: 100 * time.Millisecond})
	w := newWatch(cache.LinkUnreachable)
	r := c.Reader(tr.from)
	r.SetWatch(w)
	if err := read(t.Context(), r, tr.chunks[0]); !namespace.IsKind(err, namespace.Unavailable) || !strings.Contains(err.Error(), "refused") {
		t.Errorf("refused: %v", err)
	}
	w.reach = func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
	start := time.Now()
	if err := read(t.Context(), r, tr.chunks[0]); !namespace.IsKind(err, namespace.Unavailable) || time.Since(start) > 5*time.Second {
		t.Errorf("nobody answers: %v after %v", err, time.Since(start))
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := read(ctx, r, tr.chunks[0]); !namespace.IsKind(err, namespace.Canceled) {
		t.Errorf("given up: %v", err)
	}
	if n := tr.from.Calls(""); n != 0 {
		t.Errorf("%d requests", n)
	}
	w.reach = func(context.Context) error { return nil }
	readAll(t, r, tr.chunks)
}

// rejecting counts the bodies that were said to be wrong.
type rejecting struct {
	namespace.Fetcher
	count int
}

type rejectingBody struct {
	io.ReadCloser
	from *rejecting
}

func (b rejectingBody) Reject(error) { b.from.count++ }

// What is wrong is said to be by whoever verified it; and what another source has is asked for.
func TestWatchReject(t *testing.T) {
	for _, class := range []namespace.Class{namespace.Blob, namespace.Locator, namespace.Pack} {
		tr := newTree(t, smallFiles(1, 40, false))
		bad := true
		from := &rejecting{}
		tr.from.SetPlan(func(call storetest.Call) storetest.Fault {
			if call.Key.Class == class && bad {
				bad = false
				return storetest.Fault{Flip: 30}
			}
			return storetest.Fault{}
		})
		from.Fetcher = fetcher(func(ctx context.Context, k namespace.Key, off, n int64) (io.ReadCloser, error) {
			b, err := tr.from.Get(ctx, k, off, n)
			return rejectingBody{b, from}, err
		})
		r := open(t, cache.Options{Dir: t.TempDir()}).Reader(from)
		r.SetWatch(newWatch(cache.LinkOnline))
		if err := read(t.Context(), r, tr.chunks[0]); err != nil {
			t.Errorf("%v: the second time it was right: %v", class, err)
		}
		if from.count != 1 && class != namespace.Locator { // one that only leads elsewhere is no crime
			t.Errorf("%v: %d bodies rejected", class, from.count)
		}
	}
}

// What could not be read is remembered, once for each object, over a restart, and fetched when there is
// a network again.
func TestMisses(t *testing.T) {
	tr := newTree(t, smallFiles(1, 5, false), smallFiles(2, 5, false))
	dir := t.TempDir()
	var log bytes.Buffer
	c := open(t, cache.Options{Dir: dir, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	w := newWatch(cache.LinkOnline)
	reader := func(c *cache.Cache) *cache.Reader {
		r := c.Reader(tr.from)
		r.SetWatch(w)
		return r
	}
	r := reader(c)
	if err := r.HydrateMetadata(t.Context(), tr.root); err != nil {
		t.Fatal(err)
	}
	w.set(cache.LinkOffline)
	gone := namespace.Sum([]byte("a catalog that is not here"))
	for range 3 {
		for _, ch := range tr.chunks[5:7] {
			if err := read(t.Context(), r, ch); err == nil {
				t.Fatal("read what is not here")
			}
		}
		if _, err := r.Catalog(t.Context(), gone); err == nil {
			t.Fatal("a catalog that is not here")
		}
	}
	quiet := namespace.InBackground(t.Context(), nil)
	if err := read(quiet, r, tr.chunks[0]); err == nil {
		t.Fatal("read what is not here")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	w.set(cache.LinkUnreachable)
	if err := read(ctx, r, tr.chunks[1]); !namespace.IsKind(err, namespace.Canceled) {
		t.Errorf("given up: %v", err)
	}
	check := func(c *cache.Cache, what string) {
		t.Helper()
		all := c.Misses()
		if len(all) != 3 {
			t.Fatalf("%s: %d misses: %+v", what, len(all), all)
		}
		for _, m := range all {
			named := m.File == "f000000" || m.File == "f000001" || m.Catalog.IsZero()
			if m.Count != 3 || m.Reason == "" || m.First.IsZero() || m.Last.Before(m.First) || !named || !m.Fetched.IsZero() {
				t.Errorf("%s: %+v", what, m)
			}
		}
	}
	check(c, "at first")
	if n := strings.Count(log.String(), "not to be had"); n != 3 {
		t.Errorf("%d lines of log for 3 objects:\n%s", n, log.String())
	}
	if s := c.Stats(); s.Failed != 9 {
		t.Errorf("%d reads failed, 9 did", s.Failed)
	}
	c.NameMiss(tr.chunks[5].ref.Digest, "/usr/bin/thing")
	shut(t, c)
	c = open(t, cache.Options{Dir: dir})
	check(c, "after a restart")
	r = reader(c)
	w.set(cache.LinkOffline)
	if n, err := r.FetchMisses(t.Context()); n != 0 || !namespace.IsKind(err, namespace.Unavailable) {
		t.Errorf("offline, %d came, %v", n, err)
	}
	w.set(cache.LinkOnline)
	if n, err := r.FetchMisses(t.Context()); n != 2 || err != nil {
		t.Errorf("online, %d came, %v", n, err)
	}
	readAll(t, c.Reader(offline), tr.chunks[5:7])
	fetched := 0
	for _, m := range c.Misses() {
		if !m.Fetched.IsZero() {
			fetched++
		}
		if m.Object == tr.chunks[5].ref.Digest && m.Path != "/usr/bin/thing" {
			t.Errorf("its path is %q", m.Path)
		}
	}
	if fetched != 2 {
		t.Errorf("%d are known to have come", fetched)
	}
	if n, err := c.ClearMisses(); n != 3 || err != nil || len(c.Misses()) != 0 {
		t.Errorf("cleared %d, %v", n, err)
	}
	shut(t, c)
	if c = open(t, cache.Options{Dir: dir}); len(c.Misses()) != 0 {
		t.Error("they came back")
	}
}

// The list is bounded, and one that is damaged is begun anew.
func TestMissesBound(t *testing.T) {
	dir := t.TempDir()
	c := open(t, cache.Options{Dir: dir})
	r := c.Reader(offline)
	r.SetWatch(newWatch(cache.LinkOffline))
	for i := range 4200 {
		if _, err := r.Catalog(t.Context(), namespace.Sum(fmt.Append(nil, i))); err == nil {
			t.Fatal("no catalog is here")
		}
	}
	all := c.Misses()
	newest := all[0].Object == namespace.Sum(fmt.Append(nil, 4199))
	if len(all) != 4096 || !newest {
		t.Errorf("%d are remembered, the newest: %v", len(all), newest)
	}
	shut(t, c)
	path := filepath.Join(dir, "misses.json")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b[:len(b)/2], 0o600); err != nil {
		t.Fatal(err)
	}
	if c = open(t, cache.Options{Dir: dir}); len(c.Misses()) != 0 {
		t.Error("half a list was read")
	}
}
