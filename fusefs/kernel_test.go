package fusefs_test

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"coppice.dev/coppice/fusefs"
	"coppice.dev/coppice/namespace"
)

// mountsBelow returns what is mounted at or below dir, as mountinfo says.
func mountsBelow(t *testing.T, dir string) (all []string) {
	t.Helper()
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if strings.HasPrefix(strings.Fields(line)[4], dir) {
			all = append(all, line)
		}
	}
	return all
}

func waitOver(t *testing.T, s *fusefs.Server) {
	t.Helper()
	over := make(chan struct{})
	go func() { s.Wait(); close(over) }()
	select {
	case <-over:
	case <-time.After(10 * time.Second):
		t.Error("the server does not end")
	}
}

// TestOldKernelAttachesTheSuperblock: before Linux 6.15 a detached superblock cannot be cloned.
func TestOldKernelAttachesTheSuperblock(t *testing.T) {
	defer fusefs.OldKernel(false, true)()
	m, run := newMemory(), t.TempDir()
	s, mnt := mount(t, m, func(o *fusefs.Options) { o.RunDir = run })
	for _, v := range []string{"one", "two"} {
		activate(t, s, m.generation(t, v), v)
		if got := read(t, filepath.Join(mnt, "version")); got != v {
			t.Errorf("version %q, want %q", got, v)
		}
	}
	if s.Status().Mode != fusefs.ModeBeneath || len(mountsBelow(t, run)) != 1 || len(mountsBelow(t, mnt)) != 1 {
		t.Errorf("%+v: %v, %v", s.Status(), mountsBelow(t, run), mountsBelow(t, mnt))
	}
	if err := s.Unmount(false); err != nil {
		t.Error(err)
	}
	waitOver(t, s)
	if left, err := os.ReadDir(run); err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// TestOldKernelDeadSuperblockIsTakenAway: the next mount finds what a killed daemon left in RunDir.
func TestOldKernelDeadSuperblockIsTakenAway(t *testing.T) {
	defer fusefs.OldKernel(false, true)()
	m, run, dead := newMemory(), t.TempDir(), t.TempDir()
	h, line := start(t, nil, "FUSEFS_TEST_HELPER=serve", "OLD=1", "DIR="+dead, "RUN="+run)
	if line != "ready "+fusefs.ModeBeneath || len(mountsBelow(t, run)) != 1 {
		t.Fatal(line, mountsBelow(t, run))
	}
	live, _ := mount(t, m, func(o *fusefs.Options) { o.RunDir = run }) // a living one stays
	if n := len(mountsBelow(t, run)); n != 2 {
		t.Fatalf("%d superblocks of two servers", n)
	}
	if err := h.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = h.cmd.Wait()
	other, mnt := mount(t, m, func(o *fusefs.Options) { o.RunDir = run })
	activate(t, other, m.add(t, dir("", m.file("f", "x"))), "t@1")
	if got := read(t, filepath.Join(mnt, "f")); got != "x" {
		t.Error(got)
	}
	if n := len(mountsBelow(t, run)); n != 2 {
		t.Errorf("%d superblocks in %v", n, mountsBelow(t, run))
	}
	if err := fusefs.Recover(dead); err != nil || len(mountsBelow(t, dead)) != 0 {
		t.Errorf("%v, %v", mountsBelow(t, dead), err)
	}
	if err := live.Unmount(false); err != nil {
		t.Error(err)
	}
}

// TestOldKernelLinks: before Linux 6.5 a mount cannot be put beneath another.
func TestOldKernelLinks(t *testing.T) {
	defer fusefs.OldKernel(true, true)()
	m, run := newMemory(), t.TempDir()
	s, mnt := mount(t, m, func(o *fusefs.Options) { o.RunDir = run })
	activate(t, s, m.generation(t, "one"), "t@1")
	f, err := os.Open(filepath.Join(mnt, "v/f00"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	activate(t, s, m.generation(t, "two"), "t@2")
	if got := read(t, filepath.Join(mnt, "version")); got != "two" || s.Status().Mode != fusefs.ModeSymlink {
		t.Errorf("version %q, %+v", got, s.Status())
	}
	if b, err := io.ReadAll(f); err != nil || string(b) != "one of file 0" {
		t.Errorf("old file: %q, %v", b, err)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(filepath.Join(mnt, "."), &st); err != nil || st.Flags&unix.ST_NOSUID == 0 || st.Flags&unix.ST_NODEV == 0 || st.Flags&unix.ST_RDONLY == 0 {
		t.Errorf("flags %#x, %v", st.Flags, err)
	}
	if err := s.Sweep(); err != nil || len(s.Status().Draining) != 1 {
		t.Errorf("swept while in use: %+v, %v", s.Status(), err)
	}
	f.Close()
	if err := s.Sweep(); err != nil || len(s.Status().Draining) != 0 {
		t.Errorf("not swept: %+v, %v", s.Status(), err)
	}
	if err := s.Unmount(false); err != nil {
		t.Error(err)
	}
	waitOver(t, s)
	if st, err := os.Lstat(mnt); err != nil || !st.IsDir() || len(mountsBelow(t, run)) != 0 {
		t.Errorf("after the unmount: %v, %v, %v", st, mountsBelow(t, run), err)
	}
}

// TestLinkLeavesOthersAlone: what somebody put in the place of the link is not ours to remove.
func TestLinkLeavesOthersAlone(t *testing.T) {
	defer fusefs.OldKernel(true, true)()
	m := newMemory()
	s, mnt := mount(t, m)
	activate(t, s, m.generation(t, "one"), "t@1")
	if err := os.Remove(mnt); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(mnt, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Activate(t.Context(), m.generation(t, "two"), "t@2"); !namespace.IsKind(err, namespace.Exist) {
		t.Errorf("swap: %v", err)
	}
	if err := s.Unmount(false); err != nil {
		t.Error(err)
	}
	if got := read(t, mnt); got != "mine" {
		t.Errorf("it is %q now", got)
	}
}

func TestUnmountedByOthers(t *testing.T) {
	m := newMemory()
	s, mnt := mount(t, m)
	activate(t, s, m.generation(t, "one"), "t@1")
	activate(t, s, m.generation(t, "two"), "t@2")
	if err := unix.Unmount(mnt, 0); err != nil {
		t.Fatal(err)
	}
	waitOver(t, s)
	if _, err := s.Activate(t.Context(), m.generation(t, "one"), "t@1"); !namespace.IsKind(err, namespace.Unavailable) {
		t.Errorf("activate after the end: %v", err)
	}
}

func TestMountedOver(t *testing.T) {
	m := newMemory()
	s, mnt := mount(t, m)
	activate(t, s, m.generation(t, "one"), "t@1")
	if err := unix.Mount("tmpfs", mnt, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Activate(t.Context(), m.generation(t, "two"), "t@2"); !namespace.IsKind(err, namespace.Exist) {
		t.Errorf("swap beneath a foreign mount: %v", err)
	}
	if err := s.Unmount(false); !namespace.IsKind(err, namespace.Exist) {
		t.Errorf("unmount beneath a foreign mount: %v", err)
	}
	if n := len(mountsBelow(t, mnt)); n != 2 {
		t.Errorf("%d mounts", n)
	}
	if err := unix.Unmount(mnt, 0); err != nil {
		t.Fatal(err)
	}
	if got := read(t, filepath.Join(mnt, "version")); got != "one" {
		t.Errorf("version %q", got)
	}
	activate(t, s, m.generation(t, "two"), "t@2") // the failed try left nothing behind
	if got := read(t, filepath.Join(mnt, "version")); got != "two" {
		t.Errorf("version %q", got)
	}
}

// TestHalfDoneSwap leaves what a swap that was cut off leaves: a new tree beneath the old.
func TestHalfDoneSwap(t *testing.T) {
	m := newMemory()
	s, mnt := mount(t, m)
	activate(t, s, m.generation(t, "one"), "t@1")
	stack(t, mnt)
	activate(t, s, m.generation(t, "two"), "t@2")
	if got := read(t, filepath.Join(mnt, "version")); got != "two" {
		t.Errorf("version %q", got)
	}
	if err := s.Unmount(false); err != nil || len(mountsBelow(t, mnt)) != 0 {
		t.Errorf("after the unmount: %v, %v", mountsBelow(t, mnt), err)
	}
	waitOver(t, s)
}

// stack puts a clone of the mount at dir beneath it.
func stack(t *testing.T, dir string) {
	t.Helper()
	tree, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(tree)
	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, dir, unix.MOVE_MOUNT_F_EMPTY_PATH|0x200); err != nil {
		t.Fatal(err)
	}
	if n := len(mountsBelow(t, dir)); n != 2 {
		t.Fatalf("%d mounts", n)
	}
}

// TestDeadStackIsCleanedUp: the daemon died in the middle of a swap.
func TestDeadStackIsCleanedUp(t *testing.T) {
	mnt := filepath.Join(t.TempDir(), "with space")
	if err := os.Mkdir(mnt, 0o755); err != nil {
		t.Fatal(err)
	}
	h, line := start(t, nil, "FUSEFS_TEST_HELPER=serve", "DIR="+mnt, "RUN="+t.TempDir())
	if !strings.HasPrefix(line, "ready") {
		t.Fatal(line)
	}
	link := mnt + ".link" // Recover is given a path with a link on the way
	if err := os.Symlink(filepath.Dir(mnt), link); err != nil {
		t.Fatal(err)
	}
	tree, err := unix.OpenTree(unix.AT_FDCWD, mnt, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(tree)
	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, mnt, unix.MOVE_MOUNT_F_EMPTY_PATH|0x200); err != nil {
		t.Fatal(err)
	}
	if err := h.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = h.cmd.Wait()
	if err := fusefs.Recover(filepath.Join(link, "with space")); err != nil {
		t.Fatal(err)
	}
	if entries, err := os.ReadDir(mnt); err != nil || len(entries) != 0 {
		t.Errorf("%v, %v", entries, err)
	}
	if err := syscall.Rmdir(mnt); errors.Is(err, syscall.EBUSY) {
		t.Error("a mount is left")
	}
}
