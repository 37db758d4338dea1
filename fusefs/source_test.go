package fusefs_test

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"coppice.dev/coppice/fusefs"
	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/catalog"
)

// memory is a Source in memory, which can be made to fail.
type memory struct {
	mu       sync.Mutex
	catalogs map[namespace.Digest]*catalog.Catalog
	chunks   map[namespace.Digest][]byte
	fail     error
	reads    atomic.Int64
}

func newMemory() *memory {
	return &memory{catalogs: map[namespace.Digest]*catalog.Catalog{}, chunks: map[namespace.Digest][]byte{}}
}

func (m *memory) Catalog(_ context.Context, d namespace.Digest) (*catalog.Catalog, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if c := m.catalogs[d]; c != nil && m.fail == nil {
		return c, nil
	}
	return nil, namespace.E(namespace.Unavailable, "load", d.String(), m.fail)
}

func (m *memory) ReadChunk(_ context.Context, ref namespace.ChunkRef, p []byte, off int64) (int, error) {
	m.reads.Add(1)
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fail != nil {
		return 0, namespace.E(namespace.Unavailable, "read", ref.Digest.String(), m.fail)
	}
	b := m.chunks[ref.Digest]
	if len(b) != int(ref.Size) {
		return 0, namespace.E(namespace.Internal, "read", ref.Digest.String(), fmt.Errorf("asked for %d bytes of %d", ref.Size, len(b)))
	}
	return copy(p, b[off:]), nil
}

func (m *memory) setFail(err error) {
	m.mu.Lock()
	m.fail = err
	m.mu.Unlock()
}

// add encodes a tree and returns its root.
func (m *memory) add(t testing.TB, root *catalog.Node) namespace.Digest {
	t.Helper()
	d, err := catalog.Split(root, func(b []byte, _ *catalog.Node) (namespace.Digest, error) {
		c, err := catalog.Open(b)
		m.mu.Lock()
		defer m.mu.Unlock()
		m.catalogs[namespace.Sum(b)] = c
		return namespace.Sum(b), err
	})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func dir(name string, children ...*catalog.Node) *catalog.Node {
	return &catalog.Node{Name: name, Attr: catalog.Attr{Type: catalog.Dir, Mode: 0o755, MtimeSec: 1e9}, Children: children}
}

// file makes a file of pieces: strings are chunks, ints are holes of so many bytes.
func (m *memory) file(name string, pieces ...any) *catalog.Node {
	n := &catalog.Node{Name: name, Attr: catalog.Attr{Type: catalog.File, Mode: 0o644, Nlink: 1, MtimeSec: 1e9, MtimeNsec: 7}}
	for _, p := range pieces {
		c := catalog.Chunk{}
		switch p := p.(type) {
		case string:
			c.Digest = namespace.Sum([]byte(p))
			m.mu.Lock()
			m.chunks[c.Digest] = []byte(p)
			m.mu.Unlock()
			n.Size += uint64(len(p))
		case int:
			n.Size += uint64(p)
		}
		c.End = n.Size
		n.Chunks = append(n.Chunks, c)
	}
	return n
}

func link(name, target string) *catalog.Node {
	return &catalog.Node{Name: name, Target: target, Attr: catalog.Attr{Type: catalog.Symlink, Mode: 0o777, Nlink: 1, Size: uint64(len(target))}}
}

// mount mounts src at a new directory.
func mount(t testing.TB, src fusefs.Source, change ...func(*fusefs.Options)) (*fusefs.Server, string) {
	t.Helper()
	o := fusefs.Options{Dir: t.TempDir(), Source: src, RunDir: t.TempDir(), Logger: slog.New(slog.NewTextHandler(t.Output(), nil))}
	for _, f := range change {
		f(&o)
	}
	s, err := fusefs.Mount(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Unmount(true); err != nil {
			t.Error(err)
		}
		over := make(chan struct{})
		go func() { s.Wait(); close(over) }()
		select {
		case <-over:
		case <-time.After(10 * time.Second):
			t.Error("the superblock is still in use 10 s after the unmount")
		}
	})
	return s, o.Dir
}

func activate(t testing.TB, s *fusefs.Server, root namespace.Digest, label string) {
	t.Helper()
	first := s.Status().Active.Root.IsZero()
	if _, err := s.Activate(t.Context(), root, label); err != nil {
		t.Fatal(err)
	}
	if first {
		settlePoll(t, s.Dir())
	}
}

// settlePoll has the kernel learn that POLL is not implemented. This process serves the mounts it
// reads, and Go's runtime adds every opened file to its poller by a system call for which it keeps
// the processor: as many of these at once as there are processors, and nobody is left to answer
// POLL. No daemon reads its own mount; only tests do.
func settlePoll(t testing.TB, mnt string) {
	t.Helper()
	err := filepath.WalkDir(mnt, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		fd, err := syscall.Open(path, syscall.O_RDONLY, 0)
		if err != nil {
			return err
		}
		defer syscall.Close(fd)
		if _, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0); err != nil {
			return err
		}
		return fs.SkipAll
	})
	if err != nil {
		t.Fatal(err)
	}
}

func read(t testing.TB, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// requests returns how many requests of a kind the kernel made of a mount; of all for "".
func requests(t testing.TB, s *fusefs.Server, op string) (n uint64) {
	t.Helper()
	r := prometheus.NewRegistry()
	r.MustRegister(s.Collector())
	all, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range all {
		for _, m := range f.GetMetric() {
			if f.GetName() == "coppice_fuse_request_seconds" && (op == "" || m.GetLabel()[0].GetValue() == op) {
				n += m.GetHistogram().GetSampleCount()
			}
		}
	}
	return n
}

func inode(t testing.TB, path string) uint64 {
	t.Helper()
	var st syscall.Stat_t
	if err := syscall.Lstat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

// TestMain re-executes this program as the processes that tests need, and fails if a mount is left.
func TestMain(m *testing.M) {
	if helper := os.Getenv("FUSEFS_TEST_HELPER"); helper != "" {
		os.Exit(helpers[helper]())
	}
	code := m.Run()
	if b, _ := os.ReadFile("/proc/self/mountinfo"); strings.Contains(string(b), "fuse.coppice "+"fusefs-test") {
		fmt.Fprintln(os.Stderr, "a mount was left behind")
		code = 1
	}
	os.Exit(code)
}

// helpers are the other processes, by name. What they need is in the environment.
var helpers = map[string]func() int{"serve": helperServe}

// helperServe mounts a small tree at $DIR, says so, and serves it until it is killed.
func helperServe() int {
	if os.Getenv("OLD") != "" {
		fusefs.OldKernel(false, true)
	}
	m := newMemory()
	root := dir("", m.file("hello", "world"))
	var d namespace.Digest
	b, err := catalog.Encode(root)
	if err == nil {
		d = namespace.Sum(b)
		m.catalogs[d], err = catalog.Open(b)
	}
	var s *fusefs.Server
	if err == nil {
		s, err = fusefs.Mount(context.Background(), fusefs.Options{Dir: os.Getenv("DIR"), Source: m, RunDir: os.Getenv("RUN")})
	}
	if err == nil {
		_, err = s.Activate(context.Background(), d, "test@1")
	}
	if err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println("ready", s.Status().Mode)
	if os.Getenv("ONCE") != "" { // until the input ends
		_, _ = os.Stdin.Read(make([]byte, 1))
		if err := s.Unmount(true); err != nil {
			fmt.Println(err)
			return 1
		}
		s.Wait()
		return 0
	}
	s.Wait()
	return 0
}

// helper is a running helper; it ends when its input does.
type helper struct {
	cmd   *exec.Cmd
	input io.Closer
}

// start runs a helper and waits for its first line.
func start(t *testing.T, attr *syscall.SysProcAttr, env ...string) (*helper, string) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	if attr != nil && attr.Credential != nil { // a temporary directory of root's is closed to others
		open := filepath.Join(publicDir(t), "helper")
		b, err := os.ReadFile(exe)
		if err == nil {
			err = os.WriteFile(open, b, 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
		cmd = exec.Command(open)
	}
	cmd.Env = append(os.Environ(), env...)
	cmd.SysProcAttr = attr
	cmd.Stderr = t.Output()
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); _ = cmd.Process.Kill(); _ = cmd.Wait() })
	line := make([]byte, 4096)
	n, _ := out.Read(line)
	return &helper{cmd, in}, strings.TrimSpace(string(line[:n]))
}

// publicDir returns a new directory that everybody can enter and write to.
func publicDir(t *testing.T) string {
	t.Helper()
	d, err := os.MkdirTemp("/var/tmp", "coppice-test-")
	if err == nil {
		err = os.Chmod(d, fs.ModePerm)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(d); err != nil {
			t.Error(err)
		}
	})
	return d
}
