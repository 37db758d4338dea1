package fusefs_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"coppice.dev/coppice/fusefs"
	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/catalog"
)

func TestShowsEverything(t *testing.T) {
	m := newMemory()
	twin := func(name string) *catalog.Node {
		n := m.file(name, "twins")
		n.Nlink, n.Link = 2, "bin/a"
		return n
	}
	setuid := m.file("su", "root")
	setuid.Mode, setuid.UID, setuid.GID = 0o4755, 12, 34
	setuid.Xattrs = []catalog.Xattr{{Name: "user.note", Value: []byte("hi")}, {Name: "user.empty"}}
	null := &catalog.Node{Name: "null", Attr: catalog.Attr{Type: catalog.CharDevice, Mode: 0o666, Nlink: 1, Size: 1<<32 | 3}}
	disk := &catalog.Node{Name: "disk", Attr: catalog.Attr{Type: catalog.BlockDevice, Mode: 0o600, Nlink: 1, Size: 259<<32 | 1000}}
	fifo := &catalog.Node{Name: "fifo", Attr: catalog.Attr{Type: catalog.Fifo, Mode: 0o600, Nlink: 1}}
	big := strings.Repeat("0123456789abcdef", 1<<16)
	root := m.add(t, dir("", dir("bin", twin("a"), twin("b"), setuid, link("sh", "a")), dir("dev", null, disk, fifo),
		m.file("sparse", 1<<30, big, "tail", 1<<20), m.file("empty"), m.file("\xff\n", "x"), dir("none")))
	s, mnt := mount(t, m)
	activate(t, s, root, "t@1")
	at := func(p string) string { return filepath.Join(mnt, p) }

	var st unix.Stat_t
	if err := unix.Lstat(at("bin/su"), &st); err != nil || st.Mode != unix.S_IFREG|0o4755 || st.Uid != 12 || st.Gid != 34 ||
		st.Mtim.Sec != 1e9 || st.Mtim.Nsec != 7 || st.Size != 4 || st.Nlink != 1 {
		t.Errorf("su: %+v, %v", st, err)
	}
	for p, rdev := range map[string]uint64{"dev/null": unix.Mkdev(1, 3), "dev/disk": unix.Mkdev(259, 1000)} {
		if err := unix.Lstat(at(p), &st); err != nil || st.Rdev != rdev {
			t.Errorf("%s: %#x, want %#x, %v", p, st.Rdev, rdev, err)
		}
	}
	if err := unix.Lstat(at("dev/fifo"), &st); err != nil || st.Mode != unix.S_IFIFO|0o600 {
		t.Errorf("fifo: %+v, %v", st, err)
	}
	if err := unix.Lstat(mnt, &st); err != nil || st.Nlink != 5 || st.Mode != unix.S_IFDIR|0o755 {
		t.Errorf("root: %+v, %v", st, err)
	}
	if inode(t, at("bin/a")) != inode(t, at("bin/b")) || inode(t, at("bin/a")) == inode(t, at("bin/su")) {
		t.Error("hard links do not share their inode, or others do")
	}
	if got, err := os.Readlink(at("bin/sh")); err != nil || got != "a" {
		t.Errorf("link to %q, %v", got, err)
	}
	if got := read(t, at("\xff\n")); got != "x" {
		t.Errorf("name that is no UTF-8: %q", got)
	}
	if got := read(t, at("empty")); got != "" {
		t.Errorf("empty: %q", got)
	}
	buf := make([]byte, 64)
	n, err := unix.Getxattr(at("bin/su"), "user.note", buf)
	if err != nil || string(buf[:n]) != "hi" {
		t.Errorf("xattr: %q, %v", buf[:max(n, 0)], err)
	}
	if n, err = unix.Listxattr(at("bin/su"), buf); err != nil || string(buf[:n]) != "user.empty\x00user.note\x00" {
		t.Errorf("xattrs: %q, %v", buf[:max(n, 0)], err)
	}
	if _, err = unix.Getxattr(at("bin/su"), "user.none", buf); err != unix.ENODATA {
		t.Errorf("no such xattr: %v", err)
	}
	checkSparse(t, at("sparse"), big)
}

func checkSparse(t *testing.T, path, big string) {
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	got := make([]byte, len(big)+10)
	if _, err := f.ReadAt(got, 1<<30-3); err != nil || string(got) != "\x00\x00\x00"+big+"tail\x00\x00\x00" {
		t.Errorf("sparse file read wrong: %v", err)
	}
	size := int64(1<<30 + len(big) + 4 + 1<<20)
	for _, x := range []struct {
		off    int64
		whence int
		want   int64
	}{{0, unix.SEEK_DATA, 1 << 30}, {0, unix.SEEK_HOLE, 0}, {1 << 30, unix.SEEK_HOLE, 1<<30 + int64(len(big)) + 4}, {1<<30 + 5, unix.SEEK_DATA, 1<<30 + 5}} {
		if got, err := unix.Seek(int(f.Fd()), x.off, x.whence); err != nil || got != x.want {
			t.Errorf("seek(%d, %d) is %d, want %d, %v", x.off, x.whence, got, x.want, err)
		}
	}
	if _, err := unix.Seek(int(f.Fd()), size-5, unix.SEEK_DATA); err != unix.ENXIO {
		t.Errorf("data after the last: %v", err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil || st.Size != size || st.Blocks != int64(len(big)+4+511)/512 {
		t.Errorf("%d bytes in %d blocks, %v", st.Size, st.Blocks, err)
	}
}

func TestReadOnlyAndHarmless(t *testing.T) {
	m := newMemory()
	s, mnt := mount(t, m)
	activate(t, s, m.add(t, dir("", m.file("f", "x"))), "t@1")
	for name, err := range map[string]error{
		"create": os.WriteFile(filepath.Join(mnt, "new"), nil, 0o644),
		"write":  os.WriteFile(filepath.Join(mnt, "f"), nil, 0o644),
		"remove": os.Remove(filepath.Join(mnt, "f")),
		"mkdir":  os.Mkdir(filepath.Join(mnt, "d"), 0o755),
		"chmod":  os.Chmod(filepath.Join(mnt, "f"), 0o600),
		"rename": os.Rename(filepath.Join(mnt, "f"), filepath.Join(mnt, "g")),
	} {
		if !errors.Is(err, syscall.EROFS) {
			t.Errorf("%s: %v", name, err)
		}
	}
	var st unix.Statfs_t
	if err := unix.Statfs(mnt, &st); err != nil || st.Flags&unix.ST_NOSUID == 0 || st.Flags&unix.ST_NODEV == 0 || st.Files != 2 {
		t.Errorf("%+v, %v", st, err)
	}
}

func TestLargeDirectory(t *testing.T) {
	const n = 100_000
	m := newMemory()
	big := dir("big")
	for i := range n {
		if i%10 == 0 {
			big.Children = append(big.Children, dir(fmt.Sprintf("d%06d", i)))
		} else {
			big.Children = append(big.Children, m.file(fmt.Sprintf("f%06d", i)))
		}
	}
	s, mnt := mount(t, m)
	activate(t, s, m.add(t, dir("", big)), "t@1")
	for range 2 { // the second from the kernel's cache
		entries, err := os.ReadDir(filepath.Join(mnt, "big"))
		if err != nil || len(entries) != n {
			t.Fatalf("%d entries, %v", len(entries), err)
		}
	}
	d, err := os.Open(filepath.Join(mnt, "big"))
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil || len(names) != n || names[0] != "f000001" || names[n-1] != "d099990" || names[n*9/10-1] != "f099999" {
		t.Errorf("%d names from %s to %s, %v", len(names), names[0], names[len(names)-1], err)
	}
}

func TestErrorsPassAndHeal(t *testing.T) {
	m := newMemory()
	s, mnt := mount(t, m)
	activate(t, s, m.add(t, dir("", m.file("f", "content"))), "t@1")
	m.setFail(errors.New("pulled"))
	if _, err := os.ReadFile(filepath.Join(mnt, "f")); !errors.Is(err, syscall.EIO) {
		t.Errorf("unreachable content: %v", err)
	}
	if _, err := s.Activate(t.Context(), namespace.Digest{9}, "t@2"); !namespace.IsKind(err, namespace.Unavailable) {
		t.Errorf("unreachable root: %v", err)
	}
	m.setFail(nil)
	if got := read(t, filepath.Join(mnt, "f")); got != "content" {
		t.Errorf("after recovery: %q", got)
	}
}

func TestMountPointChecked(t *testing.T) {
	m := newMemory()
	base := t.TempDir()
	file := filepath.Join(base, "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for dir, kind := range map[string]namespace.Kind{filepath.Join(base, "none"): namespace.NotExist, file: namespace.Invalid} {
		if _, err := fusefs.Mount(t.Context(), fusefs.Options{Dir: dir, Source: m}); !namespace.IsKind(err, kind) {
			t.Errorf("%s: %v", dir, err)
		}
	}
}

func TestUnmountInUse(t *testing.T) {
	m := newMemory()
	s, mnt := mount(t, m)
	activate(t, s, m.add(t, dir("", m.file("f", "x"))), "t@1")
	f, err := os.Open(filepath.Join(mnt, "f"))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Unmount(false); !namespace.IsKind(err, namespace.Unavailable) {
		t.Errorf("in use: %v", err)
	}
	f.Close()
	if err := s.Unmount(false); err != nil {
		t.Error(err)
	}
}

func TestDeadDaemonIsCleanedUp(t *testing.T) {
	mnt := t.TempDir()
	cmd, line := start(t, nil, "FUSEFS_TEST_HELPER=serve", "DIR="+mnt, "RUN="+t.TempDir())
	if line != "ready "+fusefs.ModeBeneath {
		t.Fatal(line)
	}
	if got := read(t, filepath.Join(mnt, "hello")); got != "world" {
		t.Fatal(got)
	}
	if err := fusefs.Recover(mnt); !namespace.IsKind(err, namespace.Exist) {
		t.Errorf("recovering a live mount: %v", err)
	}
	if err := cmd.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.cmd.Wait()
	if _, err := os.Open(filepath.Join(mnt, "never seen")); !errors.Is(err, syscall.ENOTCONN) {
		t.Errorf("a dead mount answers %v", err)
	}
	if err := fusefs.Recover(mnt); err != nil {
		t.Fatal(err)
	}
	if entries, err := os.ReadDir(mnt); err != nil || len(entries) != 0 {
		t.Errorf("after recovery: %v, %v", entries, err)
	}
	m := newMemory()
	s, err := fusefs.Mount(t.Context(), fusefs.Options{Dir: mnt, Source: m})
	if err != nil {
		t.Fatal(err)
	}
	activate(t, s, m.add(t, dir("", m.file("again", "x"))), "t@1")
	if err := s.Unmount(false); err != nil {
		t.Error(err)
	}
	s.Wait()
}

func TestRecoverLeavesOthersAlone(t *testing.T) {
	d := t.TempDir()
	if err := unix.Mount("tmpfs", d, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(d, 0)
	if err := fusefs.Recover(d); err != nil {
		t.Error(err)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(d, &st); err != nil || st.Type != unix.TMPFS_MAGIC {
		t.Error("a foreign mount was taken away")
	}
}

// TestUnprivileged mounts as nobody: with fusermount3, DIR is a link.
func TestUnprivileged(t *testing.T) {
	base := publicDir(t)
	mnt := filepath.Join(base, "mnt")
	nobody := &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	cmd, line := start(t, nobody, "FUSEFS_TEST_HELPER=serve", "ONCE=1", "DIR="+mnt, "RUN="+filepath.Join(base, "run"))
	if line != "ready "+fusefs.ModeSymlink {
		t.Fatal(line)
	}
	if target, err := os.Readlink(mnt); err != nil || !strings.HasPrefix(target, filepath.Join(base, "run", "sb-")) {
		t.Errorf("%q, %v", target, err)
	}
	cat := exec.Command("cat", filepath.Join(mnt, "hello"))
	cat.SysProcAttr = nobody
	out, err := cat.Output()
	if err != nil || string(out) != "world" {
		t.Errorf("%q, %v", out, err)
	}
	stop(t, cmd)
	if _, err := os.Lstat(mnt); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the link is left: %v", err)
	}
}

// TestUserNamespace mounts as root of a user namespace: a real mount, without privileges outside.
func TestUserNamespace(t *testing.T) {
	base := publicDir(t)
	mnt := filepath.Join(base, "mnt")
	if err := os.Mkdir(mnt, 0o777); err != nil {
		t.Fatal(err)
	}
	attr := &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: 65534, Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: 65534, Size: 1}},
		Credential:  &syscall.Credential{Uid: 0, Gid: 0, NoSetGroups: true},
	}
	cmd, line := start(t, attr, "FUSEFS_TEST_HELPER=serve", "ONCE=1", "DIR="+mnt, "RUN="+filepath.Join(base, "run"))
	if line != "ready "+fusefs.ModeBeneath {
		t.Fatal(line)
	}
	if entries, err := os.ReadDir(mnt); err != nil || len(entries) != 0 {
		t.Errorf("seen outside the namespace: %v, %v", entries, err)
	}
	stop(t, cmd)
}

// stop asks a helper to end and waits for it.
func stop(t *testing.T, h *helper) {
	t.Helper()
	done := make(chan error, 1)
	h.input.Close()
	go func() { done <- h.cmd.Wait() }()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Error("the helper does not end")
	}
}

func TestContentAcrossChunkBorders(t *testing.T) {
	m := newMemory()
	var want bytes.Buffer
	var pieces []any
	for i := range 40 {
		p := strings.Repeat(fmt.Sprint(i, ";"), 5000+i*37)
		want.WriteString(p)
		pieces = append(pieces, p)
	}
	s, mnt := mount(t, m)
	activate(t, s, m.add(t, dir("", m.file("f", pieces...))), "t@1")
	if got := read(t, filepath.Join(mnt, "f")); got != want.String() {
		t.Errorf("%d bytes read, %d expected, or they differ", len(got), want.Len())
	}
}
