package origin_test

import (
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/origin"
	"coppice.dev/coppice/namespace/storetest"
)

// files lists the regular files below dir, relative.
func files(t *testing.T, dir string) []string {
	t.Helper()
	var all []string
	err := filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			rel, _ := filepath.Rel(dir, p)
			all = append(all, rel)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestDirLayout(t *testing.T) {
	ctx := t.Context()
	d := newDir(t)
	b := []byte("hello")
	k := namespace.Key{Class: namespace.Pack, Digest: namespace.Sum(b)}
	if err := d.Put(ctx, k, b); err != nil {
		t.Fatal(err)
	}
	if err := d.SwapRef(ctx, namespace.RefName{Kind: namespace.ChannelRef, Name: "desktop/stable"}, nil, b); err != nil {
		t.Fatal(err)
	}
	hex := k.Digest.Hex()
	want := []string{"coppice.json", "lock", "pack/" + hex[:2] + "/" + hex, "ref/channel/_index.json",
		"ref/channel/desktop/stable", "ref/namespace/_index.json", "ref/profile/_index.json", "ref/tree/_index.json", "ref/trust/_index.json"}
	if got := files(t, d.Path()); !slices.Equal(got, want) {
		t.Errorf("files are %q, want %q", got, want)
	}
	var index struct{ Names []string }
	raw, err := os.ReadFile(filepath.Join(d.Path(), "ref/channel/_index.json"))
	if err != nil || json.Unmarshal(raw, &index) != nil || !slices.Equal(index.Names, []string{"desktop/stable"}) {
		t.Errorf("index %s, %v", raw, err)
	}
	// The index is derived: a lost one comes back with the next swap.
	if err := os.Remove(filepath.Join(d.Path(), "ref/channel/_index.json")); err != nil {
		t.Fatal(err)
	}
	if err := d.SwapRef(ctx, namespace.RefName{Kind: namespace.ChannelRef, Name: "desktop/stable"}, b, []byte("2")); err != nil {
		t.Fatal(err)
	}
	if again, err := os.ReadFile(filepath.Join(d.Path(), "ref/channel/_index.json")); err != nil || string(again) != string(raw) {
		t.Errorf("index after its loss: %s, %v", again, err)
	}
}

func TestDirSweeps(t *testing.T) {
	d := newDir(t)
	tmp := filepath.Join(d.Path(), "tmp")
	if err := os.MkdirAll(tmp, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, age := range map[string]time.Duration{"stale": 25 * time.Hour, "fresh": time.Hour} {
		p := filepath.Join(tmp, name)
		if err := os.WriteFile(p, nil, 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(p, time.Time{}, time.Now().Add(-age)); err != nil {
			t.Fatal(err)
		}
	}
	d2 := again(t, d)
	if err := d2.Put(t.Context(), packKey, []byte("x")); err != nil {
		t.Fatal(err)
	}
	if got := files(t, tmp); !slices.Equal(got, []string{"fresh"}) {
		t.Errorf("tmp holds %q", got)
	}
}

// A full disk is Limit, leaves nothing behind, and what was there stays.
func TestDirFull(t *testing.T) {
	ctx := t.Context()
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=2m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	d, err := origin.CreateDir(filepath.Join(dir, "o"))
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	n := namespace.RefName{Kind: namespace.TreeRef, Name: "a"}
	if err := d.SwapRef(ctx, n, nil, []byte("old")); err != nil {
		t.Fatal(err)
	}
	before := files(t, dir)
	if err := d.Put(ctx, packKey, storetest.Bytes(1, 3<<20)); !namespace.IsKind(err, namespace.Limit) || namespace.HintOf(err) == "" {
		t.Errorf("put: %v", err)
	}
	if err := d.SwapRef(ctx, n, []byte("old"), storetest.Bytes(1, 3<<20)); !namespace.IsKind(err, namespace.Limit) {
		t.Errorf("swap: %v", err)
	}
	if got, err := d.Ref(ctx, n); err != nil || string(got) != "old" {
		t.Errorf("ref: %q, %v", got, err)
	}
	if after := files(t, dir); !slices.Equal(before, after) {
		t.Errorf("left behind: %q", after)
	}
	if err := d.Put(ctx, packKey, storetest.Bytes(1, 100_000)); err != nil {
		t.Errorf("a put that fits: %v", err)
	}
}

// Links that lead out of an origin are not followed.
func TestDirStaysInside(t *testing.T) {
	d := newDir(t)
	if err := os.WriteFile(filepath.Join(filepath.Dir(d.Path()), "secret"), []byte("s"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("../../../secret", filepath.Join(d.Path(), "ref/tree/x")); err != nil {
		t.Fatal(err)
	}
	if b, err := d.Ref(t.Context(), namespace.RefName{Kind: namespace.TreeRef, Name: "x"}); err == nil {
		t.Errorf("read %q from outside", b)
	}
}

// A closed Dir answers with errors, and its waiters end.
func TestDirClosed(t *testing.T) {
	d, err := origin.OpenDir(newDir(t).Path())
	if err != nil {
		t.Fatal(err)
	}
	n := namespace.RefName{Kind: namespace.TreeRef, Name: "x"}
	ended := make(chan error, 1)
	go func() {
		_, err := d.WaitRef(t.Context(), n, nil)
		ended <- err
	}()
	time.Sleep(20 * time.Millisecond)
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	if err := <-ended; !namespace.IsKind(err, namespace.Unavailable) {
		t.Errorf("a waiter ended with %v", err)
	}
	if _, err := d.Ref(t.Context(), n); !namespace.IsKind(err, namespace.Unavailable) {
		t.Errorf("ref of a closed origin: %v", err)
	}
}

// BenchmarkWait is how long after a swap by another process a waiter knows.
func BenchmarkWait(b *testing.B) {
	w := newDir(b)
	r := again(b, w)
	n := namespace.RefName{Kind: namespace.ChannelRef, Name: "stable"}
	var have []byte
	var total time.Duration
	for i := 0; b.Loop(); i++ {
		next := storetest.Bytes(uint64(i), 100)
		known := make(chan time.Time, 1)
		go func(have []byte) {
			if _, err := r.WaitRef(b.Context(), n, have); err != nil {
				b.Error(err)
			}
			known <- time.Now()
		}(have)
		time.Sleep(2 * time.Millisecond)
		if err := w.SwapRef(b.Context(), n, have, next); err != nil {
			b.Fatal(err)
		}
		done := time.Now()
		total += (<-known).Sub(done)
		have = next
	}
	b.ReportMetric(float64(total.Microseconds())/float64(b.N), "µs/after-swap")
}

func BenchmarkPut(b *testing.B) {
	d := newDir(b)
	body := storetest.Bytes(1, 100_000)
	for i := 0; b.Loop(); i++ {
		k := namespace.Key{Class: namespace.Pack, Digest: namespace.Sum([]byte{byte(i), byte(i >> 8), byte(i >> 16)})}
		if err := d.Put(b.Context(), k, body); err != nil {
			b.Fatal(err)
		}
	}
}
