package builder_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"coppice.dev/coppice/builder"
	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/catalog"
	"coppice.dev/coppice/namespace/storetest"
)

func TestImportKeepsEverything(t *testing.T) {
	dir := t.TempDir()
	makeEverything(t, dir, false)
	store := storetest.NewMem()
	r := importDir(t, store, dir)
	got := tree(t, store, r.Root)
	if int(r.Entries) != len(got) {
		t.Errorf("%d entries, a walk finds %d", r.Entries, len(got))
	}
	stamp := func(f found) found { f.MtimeSec, f.MtimeNsec = 1_700_000_000, 987654321; return f }
	file := func(s string, mode uint16, nlink uint32) found {
		return stamp(found{Attr: catalog.Attr{Type: catalog.File, Mode: mode, Size: uint64(len(s)), Nlink: nlink}, content: []byte(s)})
	}
	want := map[string]found{
		"plain": file("hello\n", 0o644, 1), "empty": file("", 0o644, 1), "na\xff\xfeme\n": file("not UTF-8", 0o644, 1),
		strings.Repeat("n", 255): file("long", 0o644, 1),
		"null":                   stamp(found{Attr: catalog.Attr{Type: catalog.CharDevice, Mode: 0o644, Size: 1<<32 | 300, Nlink: 1}}),
		"disk":                   stamp(found{Attr: catalog.Attr{Type: catalog.BlockDevice, Mode: 0o640, Size: 259<<32 | 1, Nlink: 1}}),
		"deep/er/empty":          stamp(found{Attr: catalog.Attr{Type: catalog.Dir, Mode: 0o700, Nlink: 2}}),
		"sticky":                 stamp(found{Attr: catalog.Attr{Type: catalog.Dir, Mode: 0o1777, Nlink: 2}}),
		"deep":                   stamp(found{Attr: catalog.Attr{Type: catalog.Dir, Mode: 0o700, Nlink: 3}}),
	}
	f := file("#!setuid", 0o6755, 1)
	f.UID, f.GID = 12, 34
	want["bin/su"] = f
	f = file("x", 0o644, 1)
	f.MtimeSec, f.MtimeNsec = -5, 123456789
	want["old"] = f
	want["link"] = found{
		Attr:   catalog.Attr{Type: catalog.Symlink, Mode: 0o777, UID: 7, GID: 8, MtimeSec: 9, MtimeNsec: 5000, Size: 11, Nlink: 1},
		target: "../no/where", xattrs: `trusted.onlink="l"`,
	}
	for _, name := range []string{"z/first", "b-link", "z/another"} {
		f = file("linked", 0o644, 3)
		f.link = "b-link"
		want[name] = f
	}
	for _, name := range []string{"fifo", "fifo2"} {
		want[name] = stamp(found{Attr: catalog.Attr{Type: catalog.Fifo, Mode: 0o600, Nlink: 2}, link: "fifo"})
	}
	f = file("cap", 0o644, 1)
	f.xattrs = fmt.Sprintf("security.capability=%q trusted.secret=\"root's\" user.empty=\"\" user.note=\"a\\x00b\"", capability)
	want["caps"] = f
	f = stamp(found{Attr: catalog.Attr{Type: catalog.Dir, Mode: 0o750, Nlink: 2}})
	f.xattrs = fmt.Sprintf("system.posix_acl_access=%q system.posix_acl_default=%q", acl(), acl())
	want["acl"] = f
	for path, w := range want {
		if g := got[path]; fmt.Sprintf("%+v", g) != fmt.Sprintf("%+v", w) {
			t.Errorf("%q:\n got %+v\nwant %+v", path, g, w)
		}
	}
	if !bytes.Equal(got["large"].content, storetest.Bytes(1, 3<<20)) {
		t.Error("the large file differs")
	}
	middle := make([]byte, 40<<20)
	copy(middle[10<<20:], "middle")
	if g := got["sparse"]; !bytes.Equal(g.content, middle) || g.holes != 40<<20-namespace.HoleBytes {
		t.Errorf("the sparse file differs, or has %d bytes of holes", g.holes)
	}
	if g := got["zeros"]; g.Size != 40<<20 || g.holes != 40<<20 {
		t.Errorf("zeros have %d bytes of holes", g.holes)
	}
}

func TestImportDoesNotDependOnOrder(t *testing.T) {
	a, b := t.TempDir(), t.TempDir()
	makeEverything(t, a, false)
	time.Sleep(20 * time.Millisecond) // other ctimes
	makeEverything(t, b, true)
	ra, rb := importDir(t, storetest.NewMem(), a), importDir(t, storetest.NewMem(), b)
	if ra.Root != rb.Root {
		t.Errorf("two copies have the roots %v and %v", ra.Root, rb.Root)
	}
	small, err := builder.Import(t.Context(), storetest.NewMem(), builder.DirSource{Path: a}, builder.Options{FrameBytes: 4096})
	must(t, err)
	if small.Root != ra.Root {
		t.Error("the root depends on the frame size")
	}
}

func TestImportAgainWritesNothing(t *testing.T) {
	dir := t.TempDir()
	makeEverything(t, dir, false)
	store := &storetest.Faulty{Origin: storetest.NewMem()}
	first := importDir(t, store, dir)
	if first.NewChunks == 0 || first.Packs == 0 || first.Catalogs == 0 || first.Stored == 0 {
		t.Errorf("the first import made %+v", first)
	}
	store.Reset()
	again := importDir(t, store, dir)
	if n := store.Calls("Put"); n != 0 || again.Root != first.Root || again.NewChunks != 0 {
		t.Errorf("the second import wrote %d objects, made %+v", n, again)
	}
	write(t, dir, "plain", []byte("hello, changed\n"))
	changed := importDir(t, store, dir)
	if changed.NewChunks != 1 || changed.NewBytes != 15 || changed.Packs != 1 || changed.Root == first.Root {
		t.Errorf("an import of one changed file made %+v", changed)
	}
	tree(t, store, changed.Root)
}

func TestImportOfEqualFilesStoresOne(t *testing.T) {
	dir := t.TempDir()
	for i := range 20 {
		write(t, dir, fmt.Sprintf("small%d", i), []byte("the same"))
		write(t, dir, fmt.Sprintf("d/large%d", i), storetest.Bytes(5, 1<<20))
	}
	r := importDir(t, storetest.NewMem(), dir)
	if r.NewChunks != 2 || r.NewBytes != 8+1<<20 || r.Bytes != 20*(8+1<<20) {
		t.Errorf("%+v", r)
	}
}

func TestImportManyFiles(t *testing.T) {
	dir := t.TempDir()
	const n = 3_000
	must(t, os.Mkdir(dir+"/many", 0o755))
	for i := range n {
		must(t, os.WriteFile(fmt.Sprintf("%s/many/%d", dir, i), fmt.Appendf(nil, "file %d", i), 0o644))
	}
	store := storetest.NewMem()
	r := importDir(t, store, dir)
	if r.Entries != n+2 || r.NewChunks != n {
		t.Fatalf("%+v", r)
	}
	report, err := builder.VerifyStore(t.Context(), store, []namespace.Digest{r.Root}, builder.VerifyOptions{})
	must(t, err)
	if report.Problems != 0 || report.Chunks != n {
		t.Errorf("%+v", report)
	}
}

func TestImportDeepPaths(t *testing.T) {
	base := t.TempDir()
	dir := base
	fd, err := unix.Open(base, unix.O_DIRECTORY, 0)
	must(t, err)
	name := strings.Repeat("d", 200)
	deepen := func() {
		must(t, unix.Mkdirat(fd, name, 0o755))
		next, err := unix.Openat(fd, name, unix.O_DIRECTORY, 0)
		must(t, err)
		unix.Close(fd)
		fd = next
	}
	for range 20 { // 4019 bytes and a slash below base: an absolute path would be too long for a system call
		deepen()
	}
	file, err := unix.Openat(fd, "end", unix.O_CREAT|unix.O_WRONLY, 0o644)
	must(t, err)
	_, err = unix.Write(file, []byte("deep"))
	must(t, err, unix.Close(file), unix.Setxattr(fmt.Sprintf("/proc/self/fd/%d/end", fd), "user.x", []byte("y"), 0))
	store := storetest.NewMem()
	all := tree(t, store, importDir(t, store, dir).Root)
	if f := all[strings.Repeat(name+"/", 20)+"end"]; string(f.content) != "deep" || f.xattrs != `user.x="y"` {
		t.Errorf("the deep file is %+v", f)
	}
	deepen()
	unix.Close(fd)
	_, err = builder.Import(t.Context(), store, builder.DirSource{Path: dir}, builder.Options{})
	wantKind(t, "too deep", err, namespace.Limit, "ddd", "4220 bytes")
}

func TestImportLeavesOutSocketsAndMounts(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "file", []byte("x"))
	must(t, os.Mkdir(dir+"/mnt", 0o755))
	must(t, unix.Mount("none", dir+"/mnt", "tmpfs", 0, "mode=0711"))
	defer func() { must(t, unix.Unmount(dir+"/mnt", 0)) }()
	write(t, dir, "mnt/inside", []byte("y"))
	must(t, unix.Mknod(dir+"/socket", unix.S_IFSOCK|0o600, 0))
	for _, cross := range []bool{false, true} {
		var warned []string
		store := storetest.NewMem()
		r, err := builder.Import(t.Context(), store, builder.DirSource{Path: dir, CrossDevices: cross},
			builder.Options{Warn: func(path, _ string) { warned = append(warned, path) }})
		must(t, err)
		all := tree(t, store, r.Root)
		_, inside := all["mnt/inside"]
		_, socket := all["socket"]
		if inside != cross || socket || all["mnt"].Mode != 0o711 {
			t.Errorf("cross %v: tree %v", cross, all)
		}
		slices.Sort(warned)
		want := []string{"mnt", "socket"}
		if cross {
			want = want[1:]
		}
		if !slices.Equal(warned, want) {
			t.Errorf("cross %v: warned of %q, want %q", cross, warned, want)
		}
	}
}

// Root reads everything, so this test runs itself again as somebody else.
func TestImportNamesUnreadableFiles(t *testing.T) {
	if dir := os.Getenv("COPPICE_TEST_UNREADABLE"); dir != "" {
		_, err := builder.Import(t.Context(), storetest.NewMem(), builder.DirSource{Path: dir}, builder.Options{})
		fmt.Printf("kind %v\n%v\n", namespace.KindOf(err), err)
		return
	}
	dir, err := os.MkdirTemp("/tmp", "coppice-unreadable-") // t.TempDir is closed to others
	must(t, err)
	defer os.RemoveAll(dir)
	must(t, os.Chmod(dir, 0o755))
	self, err := os.ReadFile("/proc/self/exe")
	must(t, err, os.WriteFile(dir+".test", self, 0o755))
	defer os.Remove(dir + ".test")
	run := func() string {
		cmd := exec.Command(dir+".test", "-test.run=^TestImportNamesUnreadableFiles$")
		cmd.Env = append(os.Environ(), "COPPICE_TEST_UNREADABLE="+dir)
		cmd.Dir = "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		out, err := cmd.CombinedOutput()
		must(t, err)
		return string(out)
	}
	write(t, dir, "readable", []byte("x"))
	write(t, dir, "secret", []byte("x"))
	write(t, dir, "large", make([]byte, 2<<20))
	must(t, os.Chmod(dir+"/secret", 0), os.Chmod(dir+"/large", 0), os.Mkdir(dir+"/closed", 0))
	out := run()
	for _, want := range []string{"kind denied", "3 paths", "import secret: permission denied", "import large:", "import closed:"} {
		if !strings.Contains(out, want) {
			t.Errorf("says %q, want %q", out, want)
		}
	}
	for i := range 50 {
		write(t, dir, fmt.Sprintf("more%d", i), []byte("x"))
		must(t, os.Chmod(fmt.Sprintf("%s/more%d", dir, i), 0))
	}
	if out := run(); !strings.Contains(out, "10 paths") {
		t.Errorf("says %q, want ten paths", out)
	}
}

func TestImportRefusesWhatIsNoDirectory(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "file", nil)
	for path, kind := range map[string]namespace.Kind{"none": namespace.NotExist, "file": namespace.Unavailable} {
		_, err := builder.Import(t.Context(), storetest.NewMem(), builder.DirSource{Path: dir + "/" + path}, builder.Options{})
		wantKind(t, path, err, kind, path)
	}
}

func TestImportCanceled(t *testing.T) {
	dir := t.TempDir()
	for i := range 100 {
		write(t, dir, fmt.Sprint(i), storetest.Bytes(uint64(i), 200<<10))
	}
	ctx, cancel := context.WithCancel(t.Context())
	_, err := builder.Import(ctx, storetest.NewMem(), builder.DirSource{Path: dir}, builder.Options{
		Progress: func(builder.Progress) { cancel() },
	})
	wantKind(t, "canceled", err, namespace.Canceled)
}

func TestImportReportsProgress(t *testing.T) {
	dir := t.TempDir()
	for i := range 10 {
		write(t, dir, fmt.Sprint(i), storetest.Bytes(uint64(i), 300<<10))
	}
	must(t, os.Link(dir+"/1", dir+"/link"))
	var last builder.Progress
	r, err := builder.Import(t.Context(), storetest.NewMem(), builder.DirSource{Path: dir}, builder.Options{
		Progress: func(p builder.Progress) {
			if p.Bytes < last.Bytes || p.Files < last.Files {
				t.Errorf("went back from %+v to %+v", last, p)
			}
			last = p
		},
	})
	must(t, err)
	want := builder.Progress{Files: 10, FilesTotal: 10, Bytes: 3000 << 10, BytesTotal: 3000 << 10, Stored: r.Stored}
	if last != want {
		t.Errorf("ended at %+v, want %+v", last, want)
	}
}

// A crash may come before any write. What was written before it must do no harm, and must be
// used by the next import.
func TestImportCrashAtEveryWrite(t *testing.T) {
	dir := t.TempDir()
	for i := range 12 {
		write(t, dir, fmt.Sprintf("d%d/f", i%3)+fmt.Sprint(i), storetest.Bytes(uint64(i), 200<<10))
	}
	o := builder.Options{PackBytes: 500 << 10}
	whole := &storetest.Faulty{Origin: storetest.NewMem()}
	want, err := builder.Import(t.Context(), whole, builder.DirSource{Path: dir}, o)
	must(t, err)
	puts := whole.Calls("Put")
	if puts < 6 {
		t.Fatalf("only %d writes", puts)
	}
	for n := 1; n <= puts; n++ {
		mem := storetest.NewMem()
		var mu sync.Mutex
		dead := false
		crash := &storetest.Faulty{Origin: mem, Plan: func(c storetest.Call) storetest.Fault {
			mu.Lock()
			defer mu.Unlock()
			if c.Op == "Put" && c.N == n {
				dead = true
			}
			if dead { // nothing is written by a dead process
				return storetest.Fault{Err: namespace.E(namespace.Unavailable, "put", "", nil)}
			}
			return storetest.Fault{}
		}}
		_, err := builder.Import(t.Context(), crash, builder.DirSource{Path: dir}, o)
		wantKind(t, fmt.Sprintf("crash at write %d", n), err, namespace.Unavailable)
		left := 0
		must(t, mem.List(t.Context(), namespace.Pack, func(namespace.Key, int64) error { left++; return nil }))
		got, err := builder.Import(t.Context(), mem, builder.DirSource{Path: dir}, o)
		must(t, err)
		if got.Root != want.Root || int(got.Packs) > int(want.Packs)-left {
			t.Errorf("after a crash at write %d: %d packs were left, the import wrote %d of %d; root %v, want %v",
				n, left, got.Packs, want.Packs, got.Root, want.Root)
		}
		report, err := builder.VerifyStore(t.Context(), mem, []namespace.Digest{got.Root}, builder.VerifyOptions{
			Problem: func(s string, err error) { t.Errorf("after a crash at write %d: %s: %v", n, s, err) },
		})
		must(t, err)
		if report.Chunks == 0 {
			t.Error("nothing was verified")
		}
	}
}

func TestImportMergesSegments(t *testing.T) {
	store := storetest.NewMem()
	var roots []namespace.Digest
	dir := t.TempDir()
	for i := range 40 {
		write(t, dir, fmt.Sprintf("f%d", i), storetest.Bytes(uint64(i), 1000))
		roots = append(roots, importDir(t, store, dir).Root)
		n := 0
		must(t, store.List(t.Context(), namespace.Index, func(namespace.Key, int64) error { n++; return nil }))
		if n > 16 {
			t.Fatalf("%d segments after %d imports", n, i+1)
		}
	}
	report, err := builder.VerifyStore(t.Context(), store, roots, builder.VerifyOptions{
		Problem: func(s string, err error) { t.Errorf("%s: %v", s, err) },
	})
	must(t, err)
	if report.Catalogs != 40 {
		t.Errorf("%+v", report)
	}
	if r := importDir(t, store, dir); r.NewChunks != 0 {
		t.Errorf("merging lost %d chunks", r.NewChunks)
	}
}

// Without segments, or with damaged ones, packs' directories say what there is.
func TestImportWithoutIndex(t *testing.T) {
	dir := t.TempDir()
	makeEverything(t, dir, false)
	store := storetest.NewMem()
	first := importDir(t, store, dir)
	must(t, store.List(t.Context(), namespace.Index, func(k namespace.Key, _ int64) error {
		return store.Delete(t.Context(), k)
	}))
	must(t, store.Put(t.Context(), namespace.Key{Class: namespace.Index, Digest: namespace.Digest{1}}, []byte("garbage")))
	if r := importDir(t, store, dir); r.NewChunks != 0 || r.Root != first.Root {
		t.Errorf("%+v", r)
	}
}

// An import of much data must not keep it: the store forgets packs, and the heap stays small.
func TestImportMemoryIsBounded(t *testing.T) {
	dir := t.TempDir()
	f, err := os.Create(dir + "/huge")
	must(t, err)
	for i := range 75 {
		_, err := f.Write(storetest.Bytes(uint64(i), 4<<20))
		must(t, err)
	}
	must(t, f.Truncate(10<<30), f.Close()) // the rest is a hole
	store := &forgetful{Mem: storetest.NewMem()}
	var peak uint64
	runtime.GC() // what other tests left
	r, err := builder.Import(t.Context(), store, builder.DirSource{Path: dir}, builder.Options{
		PackBytes: 1 << 20,
		Progress: func(builder.Progress) {
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			peak = max(peak, m.HeapInuse)
		},
	})
	must(t, err)
	if r.Bytes != 300<<20 || store.bytes < 300<<20 {
		t.Errorf("%+v, %d bytes stored", r, store.bytes)
	}
	if peak > 180<<20 { // garbage included: what is kept would be more than all of it
		t.Errorf("the heap grew to %d MiB", peak>>20)
	}
	t.Logf("heap at most %d MiB", peak>>20)
}

// forgetful counts packs instead of keeping them.
type forgetful struct {
	*storetest.Mem
	mu    sync.Mutex
	bytes int
}

func (f *forgetful) Put(ctx context.Context, k namespace.Key, b []byte) error {
	if k.Class != namespace.Pack {
		return f.Mem.Put(ctx, k, b)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.bytes += len(b)
	return nil
}

// Renew implements namespace.Ager: packs are as good as there.
func (f *forgetful) Renew(ctx context.Context, k namespace.Key) error {
	if k.Class == namespace.Pack {
		return nil
	}
	return f.Mem.Renew(ctx, k)
}
