package builder_test

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"coppice.dev/coppice/builder"
	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/storetest"
)

// everything is a stored tree with one of each thing.
func everything(t testing.TB) (*storetest.Mem, namespace.Digest) {
	t.Helper()
	store, dir := storetest.NewMem(), t.TempDir()
	makeEverything(t, dir, false)
	return store, importDir(t, store, dir).Root
}

func TestExportTarGivesTheRootAgain(t *testing.T) {
	store, root := everything(t)
	var first bytes.Buffer
	first.Grow(100 << 20)
	var last builder.Progress
	must(t, builder.ExportTar(t.Context(), builder.NewStored(store), root, &first, builder.ExportOptions{
		Progress: func(p builder.Progress) { last = p },
	}))
	again := storetest.NewMem()
	r, err := builder.Import(t.Context(), again, builder.TarSource{R: bytes.NewReader(first.Bytes()), Name: "exported"}, builder.Options{
		Warn: func(path, reason string) { t.Errorf("warned of %s: %s", path, reason) },
	})
	must(t, err)
	if r.Root != root {
		t.Errorf("root %v, want %v", r.Root, root)
	}
	if last.Bytes == 0 || last.Bytes > r.Bytes || last.Files == 0 {
		t.Errorf("progress ends with %+v", last)
	}
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	second := sha256.New()
	must(t, builder.ExportTar(t.Context(), builder.NewStored(again), root, second, builder.ExportOptions{}))
	if sum := sha256.Sum256(first.Bytes()); !bytes.Equal(second.Sum(nil), sum[:]) {
		t.Error("the same tree gave another archive")
	}
}

func TestExportDirGivesTheRootAgain(t *testing.T) {
	store, root := everything(t)
	for name, made := range map[string]bool{"a new directory": false, "an empty one": true} {
		dest := t.TempDir() + "/dest"
		if made {
			must(t, os.Mkdir(dest, 0o700))
		}
		lost, err := builder.ExportDir(t.Context(), builder.NewStored(store), root, dest, builder.ExportOptions{})
		must(t, err)
		if len(lost) > 0 {
			t.Errorf("%s: lost %v", name, lost)
		}
		if got := importDir(t, storetest.NewMem(), dest).Root; got != root {
			t.Errorf("%s: root %v, want %v", name, got, root)
			diff(t, store, root, dest)
		}
		_, err = builder.ExportDir(t.Context(), builder.NewStored(store), root, dest, builder.ExportOptions{})
		wantKind(t, "a directory that is not empty", err, namespace.Exist, dest)
		expectOnly(t, filepath.Dir(dest), filepath.Base(dest))
	}
}

// expectOnly fails if there is anything else in dir than name.
func expectOnly(t *testing.T, dir, name string) {
	t.Helper()
	names, err := os.ReadDir(dir)
	must(t, err)
	for _, n := range names {
		if n.Name() != name {
			t.Errorf("%s is left in %s", n.Name(), dir)
		}
	}
}

// Hard-link paths of a composed tree are relative to the mounts that they lie below.
func TestExportComposedTree(t *testing.T) {
	store, dir := storetest.NewMem(), t.TempDir()
	write(t, dir, "b/c", []byte("linked"))
	must(t, os.Mkdir(dir+"/x", 0o755), os.Link(dir+"/b/c", dir+"/d"))
	one := importDir(t, store, dir).Root
	composed, _, _, err := builder.Compose(t.Context(), store, loader(store), []namespace.ManifestMount{
		{Path: "/", Tree: one}, {Path: "/x", Tree: one},
	})
	must(t, err)
	var b bytes.Buffer
	must(t, builder.ExportTar(t.Context(), builder.NewStored(store), composed, &b, builder.ExportOptions{}))
	links := map[string]string{}
	for tr := tar.NewReader(&b); ; {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		must(t, err)
		if h.Typeflag == tar.TypeLink {
			links[h.Name] = h.Linkname
		}
	}
	if len(links) != 2 || links["d"] != "b/c" || links["x/d"] != "x/b/c" {
		t.Errorf("links %v", links)
	}
}

func TestExportFailsWhole(t *testing.T) {
	store, root := everything(t)
	parent := t.TempDir()
	ctx, cancel := context.WithCancelCause(t.Context())
	why := namespace.E(namespace.Canceled, "wait", "", errors.New("given up"))
	_, err := builder.ExportDir(ctx, builder.NewStored(store), root, parent+"/new", builder.ExportOptions{
		Progress: func(builder.Progress) { cancel(why) },
	})
	wantKind(t, "a cancelled export", err, namespace.Canceled)
	expectOnly(t, parent, "")
	full := namespace.E(namespace.Limit, "write", "", errors.New("disk full"))
	err = builder.ExportTar(t.Context(), builder.NewStored(store), root, failingWriter{full}, builder.ExportOptions{})
	wantKind(t, "a writer that fails", err, namespace.Limit)

	// A pack that was damaged: neither form lets a wrong byte out, and both say where.
	must(t, store.List(t.Context(), namespace.Pack, func(k namespace.Key, _ int64) error {
		b, err := storetest.ReadAll(t.Context(), store, k, 0, -1)
		must(t, err, store.Delete(t.Context(), k))
		b[len(b)/3] ^= 1
		return store.Put(t.Context(), k, b)
	}))
	err = builder.ExportTar(t.Context(), builder.NewStored(store), root, io.Discard, builder.ExportOptions{})
	wantKind(t, "a damaged pack, as tar", err, namespace.Corrupt, "read ")
	_, err = builder.ExportDir(t.Context(), builder.NewStored(store), root, parent+"/new", builder.ExportOptions{})
	wantKind(t, "a damaged pack, as a directory", err, namespace.Corrupt, "read ")
	expectOnly(t, parent, "")
	_, err = builder.ExportDir(t.Context(), builder.NewStored(store), root, parent+"/no/where", builder.ExportOptions{})
	wantKind(t, "a parent that is not there", err, namespace.NotExist, "where")
}

type failingWriter struct{ err error }

func (f failingWriter) Write([]byte) (int, error) { return 0, f.err }

// An attribute's name may hold what the archive's form cannot.
func TestExportTarRefusesWhatItCannotHold(t *testing.T) {
	store, dir := storetest.NewMem(), t.TempDir()
	write(t, dir, "d/f", []byte("x"))
	must(t, unix.Lsetxattr(dir+"/d/f", "user.a=b", []byte("c"), 0))
	root := importDir(t, store, dir).Root
	err := builder.ExportTar(t.Context(), builder.NewStored(store), root, io.Discard, builder.ExportOptions{})
	wantKind(t, "an attribute's name with =", err, namespace.Invalid, "/d/f", "user.a=b")
}
