package fusefs_test

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"coppice.dev/coppice/fusefs"
	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/catalog"
)

// importer makes a tree of a directory of the native file system.
type importer struct {
	t     testing.TB
	m     *memory
	root  string
	links map[uint64]string // first path of an inode with several names
}

func (m *memory) importDir(t testing.TB, root string) *catalog.Node {
	im := &importer{t, m, root, map[uint64]string{}}
	n := im.node(root)
	n.Name = ""
	return n
}

func (im *importer) check(err error) {
	im.t.Helper()
	if err != nil {
		im.t.Fatal(err)
	}
}

func (im *importer) node(path string) *catalog.Node {
	var st unix.Stat_t
	im.check(unix.Lstat(path, &st))
	n := &catalog.Node{Name: filepath.Base(path)}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		n.Type = catalog.Dir
		entries, err := os.ReadDir(path)
		im.check(err)
		for _, e := range entries {
			n.Children = append(n.Children, im.node(filepath.Join(path, e.Name())))
		}
	case unix.S_IFREG:
		n = im.content(n.Name, path, st.Size)
	case unix.S_IFLNK:
		target, err := os.Readlink(path)
		im.check(err)
		n.Type, n.Target, n.Size = catalog.Symlink, target, uint64(len(target))
	case unix.S_IFCHR:
		n.Type, n.Size = catalog.CharDevice, uint64(unix.Major(st.Rdev))<<32|uint64(unix.Minor(st.Rdev))
	case unix.S_IFIFO:
		n.Type = catalog.Fifo
	}
	n.Mode, n.UID, n.GID = uint16(st.Mode&0o7777), st.Uid, st.Gid
	n.MtimeSec, n.MtimeNsec, n.Nlink = st.Mtim.Sec, uint32(st.Mtim.Nsec), uint32(st.Nlink)
	n.Xattrs = im.xattrs(path)
	if n.Type != catalog.Dir && st.Nlink > 1 {
		rel, err := filepath.Rel(im.root, path)
		im.check(err)
		if im.links[st.Ino] == "" {
			im.links[st.Ino] = rel
		}
		n.Link = im.links[st.Ino]
	}
	return n
}

// content cuts a file where it likes, and aligned blocks of zeros out.
func (im *importer) content(name, path string, size int64) *catalog.Node {
	const block = 64 << 10
	b, err := os.ReadFile(path)
	im.check(err)
	var pieces []any
	for len(b) > 0 {
		p := b[:min(len(b), block)]
		b = b[len(p):]
		if len(p) == block && !slices.ContainsFunc(p, func(c byte) bool { return c != 0 }) {
			pieces = append(pieces, block)
			continue
		}
		pieces = append(pieces, string(p))
	}
	for i := 1; i < len(pieces); { // neighbouring holes are one
		a, ok1 := pieces[i-1].(int)
		if c, ok2 := pieces[i].(int); ok1 && ok2 {
			pieces = slices.Delete(pieces, i, i+1)
			pieces[i-1] = a + c
			continue
		}
		i++
	}
	return im.m.file(name, pieces...)
}

func (im *importer) xattrs(path string) (all []catalog.Xattr) {
	names := make([]byte, 4096)
	n, err := unix.Llistxattr(path, names)
	im.check(err)
	for name := range strings.SplitSeq(strings.TrimSuffix(string(names[:n]), "\x00"), "\x00") {
		if name == "" {
			continue
		}
		value := make([]byte, 65536)
		n, err := unix.Lgetxattr(path, name, value)
		im.check(err)
		all = append(all, catalog.Xattr{Name: name, Value: value[:n]})
	}
	return all
}

// acl is the value of a system.posix_acl_access that gives uid the permissions perm, the owner all,
// and group and others what other says.
func acl(uid uint32, perm, other byte) string {
	entry := func(tag, perm byte, id uint32) string {
		return string([]byte{tag, 0, perm, 0, byte(id), byte(id >> 8), byte(id >> 16), byte(id >> 24)})
	}
	const none = 1<<32 - 1
	return "\x02\x00\x00\x00" + entry(1, 6, none) + entry(2, perm, uid) + entry(4, other, none) + entry(16, 7, none) + entry(32, other, none)
}

// makeNative fills a directory with one of everything.
func makeNative(t *testing.T, root string) {
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	at := func(p string) string { return filepath.Join(root, p) }
	write := func(p, content string, mode fs.FileMode) {
		t.Helper()
		check(os.WriteFile(at(p), []byte(content), 0o600))
		check(os.Chmod(at(p), mode))
	}
	for _, d := range []string{"bin", "dev", "deep/er/and/deeper", "empty", "with space", "\xfe\xff"} {
		check(os.MkdirAll(at(d), 0o755))
	}
	write("bin/tool", strings.Repeat("tool", 100_000), 0o755)
	check(unix.Chown(at("bin/tool"), 7, 8))
	check(unix.Chmod(at("bin/tool"), 0o6755))
	check(os.Link(at("bin/tool"), at("deep/er/tool")))
	check(os.Link(at("bin/tool"), at("tool again")))
	check(os.Symlink("../bin/tool", at("deep/link")))
	check(os.Symlink(strings.Repeat("long/", 700), at("deep/dangling")))
	check(os.Link(at("deep/link"), at("deep/er/link")))
	check(unix.Mknod(at("dev/null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	check(unix.Mkfifo(at("dev/fifo"), 0o640))
	write("\xfe\xff/\x01\n\\", "odd name", 0o444)
	write("with space/zero", "", 0o000)
	write("with space/sparse", "head", 0o644)
	check(os.Truncate(at("with space/sparse"), 3<<20+17))
	write("readable", "by nobody, by an ACL", 0o600)
	write("unreadable", "by nobody, by an ACL", 0o600)
	check(unix.Setxattr(at("readable"), "system.posix_acl_access", []byte(acl(65534, 4, 0)), 0))
	check(unix.Setxattr(at("unreadable"), "system.posix_acl_access", []byte(acl(65534, 0, 4)), 0))
	check(unix.Setxattr(at("bin/tool"), "user.long", []byte(strings.Repeat("v", 3000)), 0))
	check(unix.Setxattr(at("empty"), "trusted.x", nil, 0))
	check(unix.Setxattr(at("bin"), "security.note", []byte("\x00\xff"), 0))
	check(os.Chtimes(at("bin/tool"), time.Time{}, time.Unix(-5, 999)))
	check(os.Chtimes(at("deep"), time.Time{}, time.Unix(1<<33, 1)))
	check(os.Chmod(at("with space"), 0o1777|fs.ModeSticky))
	check(os.Chmod(root, 0o755))
}

// TestSameAsNative has rsync compare a mount with the directory it shows: content, modes, owners,
// times, hard links, ACLs, attributes, devices.
func TestSameAsNative(t *testing.T) {
	m, src := newMemory(), t.TempDir()
	makeNative(t, src)
	s, mnt := mount(t, m)
	activate(t, s, m.add(t, m.importDir(t, src)), "t@1")
	for range 2 { // the second from the kernel's caches
		out, err := exec.Command("rsync", "-naicHAXS", "--devices", "--specials", "--delete", src+"/", mnt+"/").CombinedOutput()
		if err != nil || len(out) > 0 {
			t.Errorf("rsync: %v\n%s", err, out)
		}
	}
	back := t.TempDir() // and a copy of the mount is the directory again
	if out, err := exec.Command("rsync", "-aHAXS", mnt+"/", back+"/").CombinedOutput(); err != nil {
		t.Fatalf("rsync: %v\n%s", err, out)
	}
	out, err := exec.Command("rsync", "-naicHAXS", "--delete", back+"/", src+"/").CombinedOutput()
	if err != nil || len(out) > 0 {
		t.Errorf("rsync back: %v\n%s", err, out)
	}
}

// TestPermissionsAreEnforced reads as nobody: the kernel checks modes and ACLs.
func TestPermissionsAreEnforced(t *testing.T) {
	m, src := newMemory(), t.TempDir()
	makeNative(t, src)
	s, mnt := mount(t, m, func(o *fusefs.Options) { o.Dir = filepath.Join(publicDir(t), "m"); _ = os.Mkdir(o.Dir, 0o755) })
	activate(t, s, m.add(t, m.importDir(t, src)), "t@1")
	for name, readable := range map[string]bool{"readable": true, "unreadable": false, "with space/zero": false, "bin/tool": true, "with space/sparse": true} {
		cat := exec.Command("cat", filepath.Join(mnt, name))
		cat.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		if out, err := cat.CombinedOutput(); (err == nil) != readable {
			t.Errorf("%s: %v %.80s", name, err, out)
		}
	}
}

// TestHotPathsAskNothing walks and reads twice: the second time the kernel knows everything, also
// what is not there.
func TestHotPathsAskNothing(t *testing.T) {
	m, src := newMemory(), t.TempDir()
	makeNative(t, src)
	s, mnt := mount(t, m)
	activate(t, s, m.add(t, m.importDir(t, src)), "t@1")
	all := func() {
		for _, cmd := range []string{"find . -printf '%s %m %u %T@ %n %l\n'", "tar -cf - . | cat", "ls -R .", "test ! -e nothing && test ! -e bin/no/thing"} {
			c := exec.Command("sh", "-c", cmd+" >/dev/null")
			c.Dir = mnt
			if out, err := c.CombinedOutput(); err != nil {
				t.Fatalf("%s: %v %s", cmd, err, out)
			}
		}
	}
	all()
	// What the kernel wrote ahead of may come late, but not for ever.
	all()
	before := requests(t, s, "")
	all()
	if n := requests(t, s, "") - before; n != 0 || before == 0 {
		t.Errorf("%d requests, after %d", n, before)
	}
}

// TestForgetShrinksTheTable has the kernel drop what it knows.
func TestForgetShrinksTheTable(t *testing.T) {
	m := newMemory()
	d := dir("d")
	for i := range 5000 {
		d.Children = append(d.Children, m.file(strings.Repeat("x", i%200)+string(rune('a'+i%26))+time.Duration(i).String()))
	}
	s, mnt := mount(t, m)
	activate(t, s, m.add(t, dir("", d)), "t@1")
	if err := exec.Command("find", mnt, "-size", "+1").Run(); err != nil {
		t.Fatal(err)
	}
	full := s.Status().Nodes
	if err := unix.Mount("", mnt, "", unix.MS_REMOUNT|unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV, ""); err != nil { // drops unused dentries
		t.Fatal(err)
	}
	for end := time.Now().Add(5 * time.Second); s.Status().Nodes > 10 && time.Now().Before(end); {
		time.Sleep(10 * time.Millisecond)
	}
	if left := s.Status().Nodes; full < 5000 || left > 10 {
		t.Errorf("%d nodes, %d after the kernel forgot them", full, left)
	}
	if entries, err := os.ReadDir(filepath.Join(mnt, "d")); err != nil || len(entries) != 5000 {
		t.Errorf("%d entries afterwards, %v", len(entries), err)
	}
}

// benchJobs are what the benchmarks do in a directory.
var benchJobs = []struct{ name, cmd string }{{"find", "find . -printf '%s %m %u %T@\n'"}, {"tar", "tar -cf - . | cat"}}

// benchTree returns a large tree as a directory and as a root catalog.
func benchTree(b *testing.B, m *memory) (src string, root namespace.Digest) {
	src = filepath.Join(b.TempDir(), "src")
	if out, err := exec.Command("cp", "-a", runtime.GOROOT()+"/src", src).CombinedOutput(); err != nil {
		b.Fatalf("%v %s", err, out)
	}
	return src, m.add(b, m.importDir(b, src))
}

func runIn(b *testing.B, dir, cmd string) {
	c := exec.Command("sh", "-c", cmd+" >/dev/null")
	c.Dir = dir
	if err := c.Run(); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkHot walks and reads a large tree, all caches warm, on a mount and natively.
func BenchmarkHot(b *testing.B) {
	m := newMemory()
	src, root := benchTree(b, m)
	s, mnt := mount(b, m)
	activate(b, s, root, "t@1")
	for _, job := range benchJobs {
		for _, at := range []struct{ name, dir string }{{"native", src}, {"mount", mnt}} {
			runIn(b, at.dir, job.cmd)
			b.Run(job.name+"/"+at.name, func(b *testing.B) {
				for b.Loop() {
					runIn(b, at.dir, job.cmd)
				}
			})
		}
	}
}

// BenchmarkFresh walks and reads a large tree of which the kernel knows nothing yet.
func BenchmarkFresh(b *testing.B) {
	m := newMemory()
	_, root := benchTree(b, m)
	for _, job := range benchJobs {
		b.Run(job.name, func(b *testing.B) {
			var asked uint64
			for b.Loop() {
				b.StopTimer()
				s, mnt := mount(b, m)
				activate(b, s, root, "t@1")
				b.StartTimer()
				runIn(b, mnt, job.cmd)
				b.StopTimer()
				asked += requests(b, s, "")
				if err := s.Unmount(true); err != nil {
					b.Fatal(err)
				}
				s.Wait()
				b.StartTimer()
			}
			b.ReportMetric(float64(asked)/float64(b.N), "requests/op")
		})
	}
}
