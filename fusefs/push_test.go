package fusefs_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"coppice.dev/coppice/fusefs"
	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/catalog"
)

// watched is a Source that notes which chunks are read, and says that those of far have to be fetched.
type watched struct {
	*memory
	far map[namespace.Digest]bool

	mu   sync.Mutex
	seen map[namespace.Digest]bool
}

func (w *watched) ReadChunk(ctx context.Context, ref namespace.ChunkRef, p []byte, off int64) (int, error) {
	w.mu.Lock()
	w.seen[ref.Digest] = true
	w.mu.Unlock()
	return w.memory.ReadChunk(ctx, ref, p, off)
}

// Local implements fusefs.LocalSource.
func (w *watched) Local(d namespace.Digest) bool { return !w.far[d] }

func (w *watched) count() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.seen)
}

// TestPush: who reads neighbours in order finds the next ones in the page cache; but nothing is fetched
// from afar for that, and nothing is read that nobody asked for when that was asked for.
func TestPush(t *testing.T) {
	const files, far = 40, 12
	for name, test := range map[string]struct {
		exact, all bool
		want       int
	}{"all is here": {all: true, want: files}, "some is far": {want: far}, "exact": {exact: true, all: true, want: 3}} {
		w := &watched{memory: newMemory(), far: map[namespace.Digest]bool{}, seen: map[namespace.Digest]bool{}}
		var nodes []*catalog.Node
		for i := range files {
			n := w.file(fmt.Sprintf("f%02d", i), fmt.Sprint("content of ", i, strings.Repeat(".", 1000)))
			nodes = append(nodes, n)
			w.far[n.Chunks[0].Digest] = i >= far && !test.all
		}
		s, mnt := mount(t, w, func(o *fusefs.Options) { o.Exact = test.exact })
		activate(t, s, w.add(t, dir("", nodes...)), "t@1")
		for i := range files { // the kernel knows them all
			if _, err := os.Stat(filepath.Join(mnt, fmt.Sprintf("f%02d", i))); err != nil {
				t.Fatal(err)
			}
		}
		for i := range 3 {
			_ = read(t, filepath.Join(mnt, fmt.Sprintf("f%02d", i)))
		}
		for start := time.Now(); w.count() < test.want && time.Since(start) < 10*time.Second; {
			<-time.After(time.Millisecond)
		}
		<-time.After(50 * time.Millisecond) // for more than there should be
		if got := w.count(); got != test.want {
			t.Errorf("%s: %d of %d files were read, want %d", name, got, files, test.want)
		}
	}
}

func TestReadAhead(t *testing.T) {
	m := newMemory()
	s, mnt := mount(t, m, func(o *fusefs.Options) { o.ReadAheadKB = 256 })
	s.SetReadAhead(512) // before there is anything: no effect
	activate(t, s, m.add(t, dir("", m.file("f", "x"))), "t@1")
	var st unix.Stat_t
	if err := unix.Stat(mnt, &st); err != nil {
		t.Fatal(err)
	}
	path := fmt.Sprintf("/sys/class/bdi/%d:%d/read_ahead_kb", unix.Major(st.Dev), unix.Minor(st.Dev))
	for _, want := range []string{"256\n", "1024\n"} {
		if got, err := os.ReadFile(path); err != nil || string(got) != want {
			t.Errorf("%s is %q, want %q: %v", path, got, want, err)
		}
		s.SetReadAhead(1024)
	}
}
