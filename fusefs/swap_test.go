package fusefs_test

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"coppice.dev/coppice/fusefs"
	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/catalog"
)

// generation makes a tree in which every file under v names the version, and those under same do not.
func (m *memory) generation(t testing.TB, version string) namespace.Digest {
	v, same := dir("v"), dir("same", m.file("keep", "unchanged"))
	for i := range 40 {
		v.Children = append(v.Children, m.file(fmt.Sprintf("f%02d", i), fmt.Sprintf("%s of file %d", version, i)))
		same.Children = append(same.Children, m.file(fmt.Sprintf("s%02d", i), fmt.Sprintf("same %d", i)))
	}
	return m.add(t, dir("", v, same, m.file("version", version)))
}

// TestSwapUnderLoad reads while versions alternate: no read fails, none sees a third content, and no
// directory opened once shows two versions.
func TestSwapUnderLoad(t *testing.T) {
	m := newMemory()
	roots := []namespace.Digest{m.generation(t, "one"), m.generation(t, "two")}
	s, mnt := mount(t, m)
	activate(t, s, roots[0], "t@1")
	stop := make(chan struct{})
	var reads atomic.Int64
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if err := readOneVersion(mnt); err != nil {
					t.Error(err)
					return
				}
				reads.Add(41)
			}
		})
	}
	for i := 0; i < 200 || reads.Load() < 1000 && !t.Failed(); i++ {
		activate(t, s, roots[(i+1)%2], "t@n")
		if got, want := read(t, filepath.Join(mnt, "version")), []string{"two", "one"}[i%2]; got != want {
			t.Fatalf("after swap %d: version %q, want %q", i, got, want)
		}
	}
	close(stop)
	wg.Wait()
}

// readOneVersion opens the root once and reads everything through it: it must be of one version.
func readOneVersion(mnt string) error {
	root, err := os.OpenRoot(mnt)
	if err != nil {
		return err
	}
	defer root.Close()
	at := func(name string) (string, error) {
		f, err := root.Open(name)
		if err != nil {
			return "", err
		}
		defer f.Close()
		b, err := io.ReadAll(f)
		return string(b), err
	}
	version, err := at("version")
	if err != nil {
		return err
	}
	for i := range 40 {
		got, err := at(fmt.Sprintf("v/f%02d", i))
		if err != nil {
			return err
		}
		if want := fmt.Sprintf("%s of file %d", version, i); got != want {
			return fmt.Errorf("mixed: %q in version %q", got, version)
		}
	}
	return nil
}

// TestOldStaysOld holds a file, a mapping and a working directory across a swap.
func TestOldStaysOld(t *testing.T) {
	m := newMemory()
	s, mnt := mount(t, m)
	activate(t, s, m.generation(t, "one"), "t@1")
	f, err := os.Open(filepath.Join(mnt, "v/f00"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	mapped, err := unix.Mmap(int(f.Fd()), 0, 10, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	// The directory is the same in both versions: the kernel must not move it into the new one.
	cwd, err := unix.Open(filepath.Join(mnt, "same"), unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(cwd)

	activate(t, s, m.generation(t, "two"), "t@2")
	if got := read(t, filepath.Join(mnt, "v/f00")); got != "two of file 0" {
		t.Errorf("new open: %q", got)
	}
	_ = read(t, filepath.Join(mnt, "same/keep")) // the new tree is walked through the same directory
	if b, err := io.ReadAll(f); err != nil || string(b) != "one of file 0" {
		t.Errorf("old file: %q, %v", b, err)
	}
	if string(mapped) != "one of fil" {
		t.Errorf("old mapping: %q", mapped)
	}
	for name, want := range map[string]string{"../version": "one", "../v/f07": "one of file 7", "keep": "unchanged", "s03": "same 3"} {
		fd, err := unix.Openat(cwd, name, unix.O_RDONLY, 0)
		if err != nil {
			t.Errorf("%s from the old directory: %v", name, err)
			continue
		}
		f := os.NewFile(uintptr(fd), name)
		b, err := io.ReadAll(f)
		f.Close()
		if err != nil || string(b) != want {
			t.Errorf("%s from the old directory: %q, %v", name, b, err)
		}
	}
	checkDraining(t, s, f, mnt)
	if err := unix.Munmap(mapped); err != nil {
		t.Error(err)
	}
}

// checkDraining expects this process to hold the old generation, and it to go when let go.
func checkDraining(t *testing.T, s *fusefs.Server, f *os.File, mnt string) {
	st := s.Status()
	if len(st.Draining) != 1 || st.Draining[0].Label != "t@1" || st.Active.Label != "t@2" {
		t.Fatalf("status: %+v", st)
	}
	holders, err := fusefs.Users(st.Draining[0].MountID)
	if err != nil {
		t.Fatal(err)
	}
	what := map[string]bool{}
	for _, h := range holders {
		if h.PID == os.Getpid() {
			what[h.What] = true
		}
	}
	if !what["fd"] || !what["map"] {
		t.Errorf("holders: %+v", holders)
	}
	var st2 syscall.Stat_t
	if err := syscall.Fstat(int(f.Fd()), &st2); err != nil {
		t.Fatal(err)
	}
	if s.Current(st2.Ino) {
		t.Error("a changed file counts as current")
	}
	if !s.Current(inode(t, filepath.Join(mnt, "same/keep"))) {
		t.Error("an unchanged file does not count as current")
	}
	if err := s.Sweep(); err != nil || len(s.Status().Draining) != 1 {
		t.Errorf("swept while in use: %+v, %v", s.Status().Draining, err)
	}
}

func TestSweepDropsWhatNobodyUses(t *testing.T) {
	m := newMemory()
	s, mnt := mount(t, m)
	for i := range 5 {
		activate(t, s, m.generation(t, fmt.Sprint(i)), fmt.Sprint("t@", i))
		for k := range 40 {
			_ = read(t, filepath.Join(mnt, fmt.Sprintf("v/f%02d", k)))
		}
	}
	before := s.Status()
	if err := s.Sweep(); err != nil {
		t.Fatal(err)
	}
	after := s.Status()
	for deadline := time.Now().Add(10 * time.Second); after.Nodes >= before.Nodes && time.Now().Before(deadline); after = s.Status() {
		runtime.Gosched() // the kernel says what it has forgotten when it likes
	}
	if len(before.Draining) != 4 || len(after.Draining) != 0 || after.Nodes >= before.Nodes {
		t.Errorf("%d draining and %d nodes before, %d and %d after", len(before.Draining), before.Nodes, len(after.Draining), after.Nodes)
	}
	if got := read(t, filepath.Join(mnt, "version")); got != "4" {
		t.Errorf("the active version is %q", got)
	}
	activate(t, s, m.generation(t, "0"), "t@0") // one that was dropped comes back
	if got := read(t, filepath.Join(mnt, "version")); got != "0" {
		t.Errorf("the active version is %q", got)
	}
}

// TestUnchangedKeepsItsPages counts reads: a file that is the same in both versions is the same
// inode, and its pages stay.
// A generation that somebody in another mount namespace uses, whom nobody sees, leaves when he does.
func TestLeavesAfterAnUnseenUser(t *testing.T) {
	m := newMemory()
	s, mnt := mount(t, m)
	activate(t, s, m.generation(t, "1"), "t@1")
	user := exec.Command("unshare", "-m", "--propagation", "private", "sh", "-c", "cd "+mnt+"/v && ls -lR .. >/dev/null && echo ready && exec cat")
	in, err := user.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := user.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := user.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 6)); err != nil {
		t.Fatal(err)
	}
	activate(t, s, m.generation(t, "2"), "t@2")
	for range 3 {
		if err := s.Sweep(); err != nil {
			t.Fatal(err)
		}
	}
	if s.Leaving() != 1 {
		t.Errorf("%d generations leave while one is in use", s.Leaving())
	}
	in.Close() // cat ends, and with it its namespace
	if err := user.Wait(); err != nil {
		t.Fatal(err)
	}
	for range 100 {
		if err := s.Sweep(); err != nil {
			t.Fatal(err)
		}
		if s.Leaving() == 0 {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Errorf("%d generations still leave; %d nodes", s.Leaving(), s.Status().Nodes)
}

func TestUnchangedKeepsItsPages(t *testing.T) {
	m := newMemory()
	s, mnt := mount(t, m)
	activate(t, s, m.generation(t, "one"), "t@1")
	keep, changed := filepath.Join(mnt, "same/keep"), filepath.Join(mnt, "v/f00")
	_, _ = read(t, keep), read(t, changed)
	ino, was := inode(t, keep), inode(t, changed)
	activate(t, s, m.generation(t, "two"), "t@2")
	reads := m.reads.Load()
	if read(t, keep) != "unchanged" || inode(t, keep) != ino || m.reads.Load() != reads {
		t.Errorf("inode %d, was %d; %d reads", inode(t, keep), ino, m.reads.Load()-reads)
	}
	if inode(t, changed) == was {
		t.Error("a changed file kept its inode")
	}
	if inode(t, filepath.Join(mnt, "v")) != inode(t, filepath.Join(mnt, "v/.")) {
		t.Error("a directory has two inode numbers")
	}
}

// TestRestartGivesTheSameInodes mounts twice: identity is computed, not counted.
func TestRestartGivesTheSameInodes(t *testing.T) {
	var seen [2][]uint64
	for i := range seen {
		m := newMemory()
		s, mnt := mount(t, m)
		if i == 1 { // another order of lookups
			_ = s.Status()
			activate(t, s, m.generation(t, "other"), "t@0")
		}
		activate(t, s, m.generation(t, "one"), "t@1")
		for _, p := range []string{"v/f03", "same", "same/keep", "version", ""} {
			seen[i] = append(seen[i], inode(t, filepath.Join(mnt, p)))
		}
	}
	for k := range seen[0] {
		if seen[0][k] != seen[1][k] {
			t.Errorf("inode %d became %d", seen[0][k], seen[1][k])
		}
	}
}

// TestNestedTrees mounts a composition: hard links are relative to their tree.
func TestNestedTrees(t *testing.T) {
	m := newMemory()
	linked := func(name, content string) *catalog.Node {
		n := m.file(name, content)
		n.Nlink, n.Link = 2, "a"
		return n
	}
	inner := m.add(t, dir("", linked("a", "x"), linked("b", "x")))
	place := func(name string) *catalog.Node {
		d := dir(name)
		d.Nlink = 2
		d.Nested = &catalog.Nested{Digest: inner, Entries: 3, Bytes: 1, TreeRoot: true}
		return d
	}
	s, mnt := mount(t, m)
	activate(t, s, m.add(t, dir("", place("p"), place("q"))), "t@1")
	at := func(p string) uint64 { return inode(t, filepath.Join(mnt, p)) }
	if at("p/a") != at("p/b") || at("q/a") != at("q/b") || at("p/a") == at("q/a") {
		t.Errorf("inodes: %d %d, %d %d", at("p/a"), at("p/b"), at("q/a"), at("q/b"))
	}
}

func BenchmarkSwap(b *testing.B) {
	m := newMemory()
	roots := []namespace.Digest{m.generation(b, "one"), m.generation(b, "two")}
	s, mnt := mount(b, m)
	activate(b, s, roots[0], "")
	i := 0
	for b.Loop() {
		i++
		activate(b, s, roots[i%2], "")
		_ = read(b, filepath.Join(mnt, "version"))
	}
}

// Who looks for a mount's users has, for a moment, a descriptor of what they have.
func TestUsersLeavesOutWhoOnlyLooks(t *testing.T) {
	m := newMemory()
	s, mnt := mount(t, m)
	activate(t, s, m.generation(t, "one"), "t@1")
	looks, err := unix.Open(filepath.Join(mnt, "v/f00"), unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	activate(t, s, m.generation(t, "two"), "t@2")
	old := s.Status().Draining
	if len(old) != 1 {
		t.Fatalf("draining: %+v", old)
	}
	if users, err := fusefs.Users(old[0].MountID); err != nil || len(users) != 0 {
		t.Errorf("users: %+v, %v", users, err)
	}
	if err := unix.Close(looks); err != nil {
		t.Error(err)
	}
}
