package builder_test

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"coppice.dev/coppice/builder"
	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/catalog"
	"coppice.dev/coppice/namespace/storetest"
)

// overlay mounts lower with a fresh upper directory over it.
func overlay(t *testing.T, lower string) (merged, upper string) {
	t.Helper()
	dir := t.TempDir()
	merged, upper = filepath.Join(dir, "merged"), filepath.Join(dir, "upper")
	for _, d := range []string{merged, upper, filepath.Join(dir, "work")} {
		must(t, os.Mkdir(d, 0o755))
	}
	st, err := os.Stat(lower)
	must(t, err)
	must(t, os.Chmod(upper, st.Mode()), os.Chtimes(upper, st.ModTime(), st.ModTime()))
	options := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s/work,redirect_dir=off,metacopy=off,index=off", lower, upper, dir)
	must(t, unix.Mount("overlay", merged, "overlay", 0, options))
	t.Cleanup(func() { must(t, unix.Unmount(merged, 0)) })
	return merged, upper
}

// viaOverlay returns the root of base with the upper directory laid over it.
func viaOverlay(t *testing.T, store namespace.Store, base namespace.Digest, upper string) namespace.Digest {
	t.Helper()
	r, err := builder.Import(t.Context(), store,
		builder.OverlaySource{Base: base, Loader: builder.NewStored(store), Upper: upper}, builder.Options{})
	must(t, err)
	return r.Root
}

// What an overlay shows is what is imported of it, whatever was done to it: the same digest as an
// import of the merged directory.
func TestOverlayIsWhatItShows(t *testing.T) {
	for name, change := range map[string]func(dir string) error{
		"nothing": func(string) error { return nil },
		"added":   func(d string) error { return os.WriteFile(d+"/new", []byte("new"), 0o600) },
		"changed": func(d string) error { return os.WriteFile(d+"/sub/a", []byte("other"), 0o600) },
		"mode":    func(d string) error { return os.Chmod(d+"/sub", 0o700) },
		"owner":   func(d string) error { return os.Lchown(d+"/sub/a", 7, 8) },
		"xattr":   func(d string) error { return unix.Setxattr(d+"/sub/deep", "user.x", []byte("y"), 0) },
		"root":    func(d string) error { return os.Chmod(d, 0o711) },
		"removed": func(d string) error { return os.RemoveAll(d + "/sub") },
		"opaque": func(d string) error {
			return firstError(os.RemoveAll(d+"/sub"), os.Mkdir(d+"/sub", 0o755), os.WriteFile(d+"/sub/only", []byte("1"), 0o644))
		},
		"file for a directory": func(d string) error {
			return firstError(os.RemoveAll(d+"/sub"), os.WriteFile(d+"/sub", []byte("1"), 0o644))
		},
		"directory for a file": func(d string) error {
			return firstError(os.Remove(d+"/sub/a"), os.Mkdir(d+"/sub/a", 0o755), os.Symlink("x", d+"/sub/a/l"))
		},
		"renamed":            func(d string) error { return os.Rename(d+"/sub/a", d+"/b") },
		"renamed and back":   func(d string) error { return firstError(os.Rename(d+"/sub/a", d+"/b"), os.Rename(d+"/b", d+"/sub/a")) },
		"made and removed":   func(d string) error { return firstError(os.Mkdir(d+"/x", 0o755), os.Remove(d+"/x")) },
		"device":             func(d string) error { return unix.Mknod(d+"/dev", unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))) },
		"linked":             func(d string) error { return os.Link(d+"/sub/a", d+"/sub/deep/b") },
		"links unlinked":     func(d string) error { return os.Remove(d + "/sub/h1") },
		"all links unlinked": func(d string) error { return firstError(os.Remove(d+"/sub/h1"), os.Remove(d+"/h2")) },
		"a link replaced": func(d string) error {
			return firstError(os.WriteFile(d+"/t", []byte("t"), 0o644), os.Rename(d+"/t", d+"/sub/h1"))
		},
		"a linked directory removed": func(d string) error { return os.RemoveAll(d + "/sub/deep") },
	} {
		t.Run(name, func(t *testing.T) {
			store, lower := storetest.NewMem(), t.TempDir()
			write(t, lower, "sub/a", []byte("a"))
			write(t, lower, "sub/deep/er/f", []byte("f"))
			write(t, lower, "sub/h1", []byte("linked"))
			must(t, os.Link(lower+"/sub/h1", lower+"/h2"), os.Link(lower+"/sub/h1", lower+"/sub/deep/h3"))
			base := importDir(t, store, lower).Root
			merged, upper := overlay(t, lower)
			must(t, change(merged))
			want := importDir(t, store, merged).Root
			if got := viaOverlay(t, store, base, upper); got != want {
				tellDifference(t, store, want, got)
			}
			if name == "nothing" && want != base {
				t.Error("an untouched overlay is another tree")
			}
		})
	}
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func tellDifference(t *testing.T, store namespace.Store, want, got namespace.Digest) {
	t.Helper()
	t.Errorf("another tree than the merged directory:")
	must(t, catalog.Diff(t.Context(), builder.NewStored(store), want, got, func(c catalog.Change) error {
		t.Errorf("  %s: %v", c.Path, c.What)
		return nil
	}))
}

// Random changes, one transaction upon the other, give what the merged directory holds.
func TestOverlayRandom(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 5))
	store, lower := storetest.NewMem(), t.TempDir()
	for i := range 60 {
		write(t, lower, fmt.Sprintf("d%d/e%d/f%d", i%4, i%3, i), []byte(fmt.Sprint(i)))
	}
	base := importDir(t, store, lower).Root
	for round := range 6 {
		merged, upper := overlay(t, lower)
		for range 40 {
			scramble(rng, merged)
		}
		want := importDir(t, store, merged).Root
		if got := viaOverlay(t, store, base, upper); got != want {
			t.Errorf("round %d", round)
			tellDifference(t, store, want, got)
		}
	}
}

// scramble does something to the tree in dir; what cannot be done is left.
func scramble(rng *rand.Rand, dir string) {
	at := func() string { return fmt.Sprintf("%s/d%d/e%d/f%d", dir, rng.IntN(4), rng.IntN(3), rng.IntN(60)) }
	some := at()
	if rng.IntN(3) == 0 {
		some = filepath.Dir(some)
	}
	switch rng.IntN(8) {
	case 0:
		_ = os.RemoveAll(some)
	case 1:
		_ = os.Rename(some, at())
	case 2:
		_ = os.Link(at(), at())
	case 3:
		_ = os.WriteFile(some, []byte(fmt.Sprint(rng.IntN(9))), 0o644)
	case 4:
		_ = os.MkdirAll(some, 0o755)
	case 5:
		_ = os.Chmod(some, os.FileMode(0o700+rng.IntN(8)))
	case 6:
		_ = os.Chtimes(some, time.Unix(rng.Int64N(1e9), 5), time.Unix(rng.Int64N(1e9), 5))
	case 7:
		_ = os.Symlink("there", some)
	}
}

// dirsTar is an archive of directories d00… with files in each, but for those that drop says.
func dirsTar(t *testing.T, dirs, files int, drop func(d, f int) bool) io.Reader {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for d := range dirs {
		must(t, w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: fmt.Sprintf("d%02d", d), Mode: 0o755, ModTime: time.Unix(1, 0)}))
		for f := range files {
			if !drop(d, f) {
				must(t, w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprintf("d%02d/f%04d", d, f), Mode: 0o644, ModTime: time.Unix(1, 0)}))
			}
		}
	}
	must(t, w.Close())
	return &b
}

// A change that moves a directory over one of the limits by which trees are split gives the split that
// a full import gives.
func TestOverlaySplitsAsAnImport(t *testing.T) {
	for _, c := range []struct {
		dirs, files int
		drop        func(d, f int) bool // by the change
	}{
		{40, 1000, func(d, f int) bool { return d == 3 && f < 990 }},    // still sheds
		{33, 1000, func(d, f int) bool { return d < 2 && f < 900 }},     // sheds no more
		{3, 9000, func(d, f int) bool { return d == 0 && f >= 100 }},    // a catalog no more
		{5, 9000, func(d, f int) bool { return d == 4 && f%100 == 99 }}, // others untouched
	} {
		store, upper := storetest.NewMem(), t.TempDir()
		imported := func(r io.Reader) namespace.Digest {
			res, err := builder.Import(t.Context(), store, builder.TarSource{R: r, Name: "t"}, builder.Options{})
			must(t, err)
			return res.Root
		}
		base := imported(dirsTar(t, c.dirs, c.files, func(int, int) bool { return false }))
		want := imported(dirsTar(t, c.dirs, c.files, c.drop))
		for d := range c.dirs {
			for f := range c.files {
				if c.drop(d, f) {
					dir := fmt.Sprintf("%s/d%02d", upper, d)
					must(t, os.MkdirAll(dir, 0o755), unix.Mknod(fmt.Sprintf("%s/f%04d", dir, f), unix.S_IFCHR, 0))
				}
			}
		}
		dirs, err := filepath.Glob(upper + "/d*")
		must(t, err)
		for _, d := range dirs {
			must(t, os.Chtimes(d, time.Unix(1, 0), time.Unix(1, 0)))
		}
		must(t, os.Chmod(upper, 0o755), os.Chtimes(upper, time.Unix(0, 0), time.Unix(0, 0)))
		if got := viaOverlay(t, store, base, upper); got != want {
			t.Errorf("%d × %d", c.dirs, c.files)
			tellDifference(t, store, want, got)
		}
	}
}

func TestOverlayRefusesWhatItCannotRead(t *testing.T) {
	store, lower, upper := storetest.NewMem(), t.TempDir(), t.TempDir()
	base := importDir(t, store, lower).Root
	must(t, os.Mkdir(upper+"/moved", 0o755), unix.Setxattr(upper+"/moved", "trusted.overlay.redirect", []byte("/old"), 0))
	_, err := builder.Import(t.Context(), store, builder.OverlaySource{Base: base, Loader: builder.NewStored(store), Upper: upper}, builder.Options{})
	wantKind(t, "a redirected directory", err, namespace.Invalid, "moved", "redirect")
}
