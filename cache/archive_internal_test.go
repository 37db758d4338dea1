package cache

import (
	"archive/tar"
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"testing"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/storetest"
)

// exported writes a tree's export into an archive and returns its path.
func exported(t *testing.T, f *fixture) string {
	t.Helper()
	c := openTest(t, Options{Dir: t.TempDir()})
	path := filepath.Join(t.TempDir(), "export.tar")
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	w, err := NewArchiveWriter(file)
	if err != nil {
		t.Fatal(err)
	}
	var last, total int64
	rep, err := c.Reader(f.origin).Export(t.Context(), f.root, w.Put, func(done, all int64) { last, total = done, all })
	if err != nil || rep.Packs == 0 || last != total || total == 0 {
		t.Fatalf("%+v, %d of %d, %v", rep, last, total, err)
	}
	if err := w.PutRef(namespace.RefName{Kind: namespace.ChannelRef, Name: "a/b"}, []byte("record")); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

// What was exported fills another cache, entirely, and is an origin as any.
func TestArchive(t *testing.T) {
	f := newFixture(t, 3, 300, 3000, layoutOf{4, 50, 0})
	a, err := OpenArchive(exported(t, f))
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	c := openTest(t, Options{Dir: t.TempDir()})
	if err := c.Reader(a).Hydrate(t.Context(), f.root, nil); err != nil {
		t.Fatal(err)
	}
	if good := f.offline(t, c, "imported"); good != len(f.refs) {
		t.Errorf("%d of %d chunks", good, len(f.refs))
	}
	names, err := a.Refs(t.Context(), namespace.ChannelRef)
	if b, rerr := a.Ref(t.Context(), namespace.RefName{Kind: namespace.ChannelRef, Name: "a/b"}); err != nil || rerr != nil || string(b) != "record" || len(names) != 1 {
		t.Errorf("%q, %v, %v, %v", b, names, err, rerr)
	}
	if _, err := a.Ref(t.Context(), namespace.RefName{Kind: namespace.TreeRef, Name: "none"}); !namespace.IsKind(err, namespace.NotExist) {
		t.Error(err)
	}
	if _, err := storetest.ReadAll(t.Context(), a, namespace.Key{Class: namespace.Blob, Digest: f.root}, 1<<30, 5); !namespace.IsKind(err, namespace.Invalid) {
		t.Errorf("behind the end: %v", err)
	}
}

// Exporting twice gives the same objects, so that an interrupted export goes on.
func TestExportIsDeterministic(t *testing.T) {
	f := newFixture(t, 2, 100, 3000, layoutOf{4, 50, 0})
	first, err := os.ReadFile(exported(t, f))
	if err != nil {
		t.Fatal(err)
	}
	if second, err := os.ReadFile(exported(t, f)); err != nil || !bytes.Equal(first, second) {
		t.Errorf("two exports of %d and %d bytes differ, %v", len(first), len(second), err)
	}
}

// Wherever an archive is damaged or cut, what comes into the cache is right.
func TestArchiveDamaged(t *testing.T) {
	f := newFixture(t, 2, 100, 3000, layoutOf{4, 50, 0})
	whole, err := os.ReadFile(exported(t, f))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for i := range 40 {
		b := bytes.Clone(whole)
		at := i * len(b) / 40
		if b[at+13] ^= 0x20; i%4 == 3 {
			b = b[:at]
		}
		path := filepath.Join(t.TempDir(), "bad.tar")
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		a, err := OpenArchive(path)
		if err != nil {
			if !namespace.IsKind(err, namespace.Corrupt) {
				t.Errorf("damaged at %d: %v", at, err)
			}
			continue
		}
		c, err := Open(Options{Dir: dir, QuotaBytes: quotaMin})
		if err != nil {
			t.Fatal(err)
		}
		err = c.Reader(a).Hydrate(t.Context(), f.root, nil) // one cache for all: what was right is used
		if good := f.offline(t, c, "import"); err == nil && good != len(f.refs) {
			t.Errorf("damaged at %d, an import that succeeded has %d of %d chunks", at, good, len(f.refs))
		}
		a.Close()
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
}

func FuzzArchiveFiles(f *testing.F) {
	var buf bytes.Buffer
	w, err := NewArchiveWriter(&buf)
	if err != nil {
		f.Fatal(err)
	}
	if err := w.Put(context.Background(), namespace.Key{Digest: namespace.Sum([]byte("x"))}, []byte("x")); err != nil {
		f.Fatal(err)
	}
	if err := w.Close(); err != nil {
		f.Fatal(err)
	}
	f.Add(buf.Bytes())
	f.Add(buf.Bytes()[:1024])
	var evil bytes.Buffer
	tw := tar.NewWriter(&evil)
	for _, name := range []string{"coppice.json", "coppice.json", "../x"} {
		if err := tw.WriteHeader(&tar.Header{Name: name, Size: 0}); err != nil {
			f.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		f.Fatal(err)
	}
	f.Add(evil.Bytes())
	f.Fuzz(func(t *testing.T, b []byte) {
		files, err := archiveFiles(bytes.NewReader(b))
		if err != nil {
			return
		}
		for name, s := range files {
			if s.off < 0 || s.size < 0 || s.off+s.size > int64(len(b)) {
				t.Errorf("%q is at %d, %d bytes of %d", name, s.off, s.size, len(b))
			}
		}
	})
}

// A name that is there twice could be one thing for us and another for who looks at it.
func TestArchiveRefusesTwice(t *testing.T) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for range 2 {
		if err := w.WriteHeader(&tar.Header{Name: "coppice.json", Size: 1, Typeflag: tar.TypeReg}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, "x"); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := archiveFiles(bytes.NewReader(b.Bytes())); !namespace.IsKind(err, namespace.Corrupt) {
		t.Errorf("%v", err)
	}
}
