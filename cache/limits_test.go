package cache_test

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"coppice.dev/coppice/cache"
	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/storetest"
)

// A tree larger than the quota is read by several readers at once, while segments are dropped under
// them: all they read is right, and the bound holds but for the segment that is written.
func TestQuota(t *testing.T) {
	const (
		least   = 64 << 20
		segment = least / 16
	)
	files := make([][]byte, 80)
	for i := range files {
		files[i] = storetest.Bytes(uint64(i), 1<<20-i*1000)
	}
	tr := newTree(t, files)
	c := open(t, cache.Options{Dir: t.TempDir(), QuotaBytes: least})
	r := c.Reader(tr.from)
	var all sync.WaitGroup
	for g := range 2 {
		all.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(g), 2))
			for i := range tr.chunks {
				if g > 0 {
					i = rng.IntN(len(tr.chunks))
				}
				if err := read(t.Context(), r, tr.chunks[i]); err != nil {
					t.Error(err)
					return
				}
				if s := c.Stats(); s.UsedBytes > s.QuotaBytes+segment {
					t.Errorf("%d bytes used, quota %d", s.UsedBytes, s.QuotaBytes)
					return
				}
			}
		})
	}
	all.Wait()
	s := c.Stats()
	if s.Evictions == 0 || s.Corrupt != 0 || s.Unkept != 0 || s.UsedBytes < least/2 {
		t.Errorf("%+v", s)
	}
	if good := readSome(t, c.Reader(offline), tr.chunks); good == 0 || good == len(tr.chunks) {
		t.Errorf("%d of %d chunks are here", good, len(tr.chunks))
	}
}

// What was used last stays, also after a restart with a smaller quota.
func TestQuotaShrinks(t *testing.T) {
	files := make([][]byte, 68)
	for i := range files {
		files[i] = storetest.Bytes(uint64(i), 1<<20)
	}
	tr := newTree(t, files)
	dir := fill(t, tr)
	c := open(t, cache.Options{Dir: dir, QuotaBytes: 64 << 20})
	readAll(t, c.Reader(tr.from), tr.chunks)
	more := newTree(t, [][]byte{storetest.Bytes(1000, 1<<20)})
	readAll(t, c.Reader(more.from), more.chunks)
	if s := c.Stats(); s.UsedBytes > s.QuotaBytes+s.QuotaBytes/16 {
		t.Errorf("%+v", s)
	}
}

// tmpfs mounts a small file system for the time of the test.
func tmpfs(t *testing.T, size string) string {
	t.Helper()
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	return dir
}

// ballast fills a file system but for some bytes, and returns the file.
func ballast(t *testing.T, dir string, leave int64) string {
	t.Helper()
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "ballast")
	if err := os.WriteFile(path, make([]byte, int64(st.Bavail)*st.Bsize-leave), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// On a full disk reads go through to the origin; when there is room again, things are kept again.
func TestDiskFull(t *testing.T) {
	tr := newTree(t, smallFiles(1, 700, false), smallFiles(2, 700, true))
	disk := tmpfs(t, "32m")
	heavy := ballast(t, disk, 2<<20)
	c := open(t, cache.Options{Dir: filepath.Join(disk, "cache")})
	r := c.Reader(tr.from)
	readAll(t, r, tr.chunks)
	if s := c.Stats(); !s.ReadThrough || s.Unkept == 0 || s.Corrupt != 0 {
		t.Errorf("on a full disk: %+v", s)
	}
	good := readSome(t, c.Reader(offline), tr.chunks)
	if good == len(tr.chunks) {
		t.Error("everything was kept: the test tests nothing")
	}
	if err := os.Remove(heavy); err != nil {
		t.Fatal(err)
	}
	readAll(t, r, tr.chunks)
	if s := c.Stats(); s.ReadThrough || s.Corrupt != 0 {
		t.Errorf("with room again: %+v", s)
	}
	readAll(t, c.Reader(offline), tr.chunks)
	shut(t, c)
}

// A disk that is full from the start, to the last byte: nothing can be written at all.
func TestDiskFullAtOpen(t *testing.T) {
	tr := newTree(t, smallFiles(1, 100, true))
	disk := tmpfs(t, "8m")
	dir := filepath.Join(disk, "cache")
	c := open(t, cache.Options{Dir: dir})
	readAll(t, c.Reader(tr.from), tr.chunks[:len(tr.chunks)/2])
	shut(t, c)
	heavy := ballast(t, disk, 0)
	c, err := cache.Open(cache.Options{Dir: dir, QuotaBytes: quota, Timeout: 10 * time.Second})
	switch {
	case err == nil:
		readAll(t, c.Reader(tr.from), tr.chunks)
		_ = c.Close() // may say that the disk is full
	case !namespace.IsKind(err, namespace.Limit) || namespace.HintOf(err) == "":
		t.Errorf("on a full disk: %v, hint %q", err, namespace.HintOf(err))
	}
	if err := os.Remove(heavy); err != nil {
		t.Fatal(err)
	}
	opensRight(t, tr, dir)
}

// hanging blocks requests for a class, in Get or in the body, until the gate opens.
type hanging struct {
	honest namespace.Fetcher
	class  namespace.Class
	inBody bool
	gate   chan struct{}
	asked  atomic.Int64
}

func (h *hanging) Get(ctx context.Context, k namespace.Key, off, n int64) (io.ReadCloser, error) {
	if k.Class != h.class {
		return h.honest.Get(ctx, k, off, n)
	}
	h.asked.Add(1)
	if !h.inBody {
		if err := h.wait(ctx); err != nil {
			return nil, err
		}
		return h.honest.Get(ctx, k, off, n)
	}
	b, err := h.honest.Get(ctx, k, off, n)
	return &hangingBody{b, h, ctx}, err
}

func (h *hanging) wait(ctx context.Context) error {
	select {
	case <-h.gate:
		return nil
	case <-ctx.Done():
		return namespace.E(namespace.KindOf(ctx.Err()), "get object", "", ctx.Err())
	}
}

type hangingBody struct {
	io.ReadCloser
	h   *hanging
	ctx context.Context
}

func (b *hangingBody) Read(p []byte) (int, error) {
	if err := b.h.wait(b.ctx); err != nil {
		return 0, err
	}
	return b.ReadCloser.Read(p)
}

// eachHang runs a test for everything that can hang.
func eachHang(t *testing.T, fn func(t *testing.T, tr *tree, h *hanging)) {
	for _, class := range []namespace.Class{namespace.Blob, namespace.Locator, namespace.Pack} {
		for _, inBody := range []bool{false, true} {
			name := class.String() + " get"
			if inBody {
				name = class.String() + " body"
			}
			t.Run(name, func(t *testing.T) {
				tr := newTree(t, smallFiles(1, 40, false))
				fn(t, tr, &hanging{honest: tr.mem, class: class, inBody: inBody, gate: make(chan struct{})})
			})
		}
	}
}

// A read waits no longer than it may; what it asked for arrives all the same, and one request was
// enough.
func TestHang(t *testing.T) {
	eachHang(t, func(t *testing.T, tr *tree, h *hanging) {
		c := open(t, cache.Options{Dir: t.TempDir(), Timeout: 100 * time.Millisecond})
		start := time.Now()
		err := read(t.Context(), c.Reader(h), tr.chunks[0])
		if !namespace.IsKind(err, namespace.Unavailable) || !names(err) {
			t.Errorf("a hanging origin: %v", err)
		}
		if d := time.Since(start); d < 90*time.Millisecond || d > 5*time.Second {
			t.Errorf("it took %v, bound 100ms", d)
		}
		close(h.gate)
		if h.class == namespace.Pack { // nothing but that is needed: it arrives on its own
			arrives(t, c.Reader(offline), tr.chunks[0])
		} else {
			arrives(t, c.Reader(h), tr.chunks[0])
		}
		if n := h.asked.Load(); n != 1 {
			t.Errorf("%d requests", n)
		}
	})
}

// arrives waits until a chunk can be read.
func arrives(t *testing.T, r *cache.Reader, c chunk) {
	t.Helper()
	var err error
	for range 500 {
		if err = read(t.Context(), r, c); err == nil || errors.Is(err, errWrong) {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err != nil {
		t.Errorf("it never arrived: %v", err)
	}
}

// A caller that gives up is told at once; the fetch goes on for the others.
func TestGiveUp(t *testing.T) {
	eachHang(t, func(t *testing.T, tr *tree, h *hanging) {
		c := open(t, cache.Options{Dir: t.TempDir()})
		r := c.Reader(h)
		ctx, cancel := context.WithCancel(t.Context())
		gaveUp, patient := make(chan error, 1), make(chan error, 1)
		go func() { gaveUp <- read(ctx, r, tr.chunks[0]) }()
		for h.asked.Load() == 0 {
			time.Sleep(time.Millisecond)
		}
		go func() { patient <- read(t.Context(), r, tr.chunks[1]) }()
		cancel()
		if err := <-gaveUp; !namespace.IsKind(err, namespace.Canceled) {
			t.Errorf("gave up: %v", err)
		}
		close(h.gate)
		if err := <-patient; err != nil {
			t.Errorf("the other: %v", err)
		}
		if n := h.asked.Load(); n != 1 {
			t.Errorf("%d requests", n)
		}
	})
}

// Close breaks off what hangs, and whoever waited for it is told.
func TestCloseWhileHanging(t *testing.T) {
	eachHang(t, func(t *testing.T, tr *tree, h *hanging) {
		c := open(t, cache.Options{Dir: t.TempDir(), Timeout: time.Minute})
		r := c.Reader(h)
		waiting := make(chan error, 1)
		go func() { waiting <- read(t.Context(), r, tr.chunks[0]) }()
		for h.asked.Load() == 0 {
			time.Sleep(time.Millisecond)
		}
		start := time.Now()
		shut(t, c)
		if err := <-waiting; err == nil || errors.Is(err, errWrong) {
			t.Errorf("read from a closed cache: %v", err)
		}
		if d := time.Since(start); d > 5*time.Second {
			t.Errorf("it took %v", d)
		}
		if err := read(t.Context(), r, tr.chunks[1]); err == nil {
			t.Error("a closed cache fetches")
		}
	})
}

// Without a network the first read says so at once, as do the next thousand.
func TestOffline(t *testing.T) {
	tr := newTree(t, smallFiles(1, 40, false))
	c := open(t, cache.Options{Dir: t.TempDir()})
	start := time.Now()
	for range 1000 {
		if err := read(t.Context(), c.Reader(offline), tr.chunks[0]); !namespace.IsKind(err, namespace.Unavailable) {
			t.Fatal(err)
		}
	}
	if d := time.Since(start); d > 5*time.Second {
		t.Errorf("1000 failed reads took %v", d)
	}
}
