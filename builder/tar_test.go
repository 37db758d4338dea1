package builder_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/ulikunitz/xz"

	"coppice.dev/coppice/builder"
	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/catalog"
	"coppice.dev/coppice/namespace/object"
	"coppice.dev/coppice/namespace/storetest"
)

// archive returns a tar archive of headers; content of files is their Size times 'x', or text.
func archive(t testing.TB, headers ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		body := strings.Repeat("x", int(h.Size))
		if text, ok := h.PAXRecords["TEST.text"]; ok {
			body, h.Size, h.PAXRecords = text, int64(len(text)), nil
		}
		must(t, w.WriteHeader(&h))
		_, err := io.WriteString(w, body)
		must(t, err)
	}
	must(t, w.Close())
	return b.Bytes()
}

func file(name, text string) tar.Header {
	return tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, PAXRecords: map[string]string{"TEST.text": text}}
}

func dirHeader(name string) tar.Header {
	return tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: 0o755}
}

func link(name, target string, typ byte) tar.Header {
	return tar.Header{Name: name, Linkname: target, Typeflag: typ, Mode: 0o777}
}

func importTar(t testing.TB, b []byte) (map[string]found, error) {
	t.Helper()
	store := storetest.NewMem()
	r, err := builder.Import(t.Context(), store, builder.TarSource{R: bytes.NewReader(b), Name: "some.tar"}, builder.Options{})
	if err != nil {
		return nil, err
	}
	return tree(t, store, r.Root), nil
}

func TestTarRefusesHostileNames(t *testing.T) {
	long := strings.Repeat("n", 256)
	for name, c := range map[string]struct {
		headers []tar.Header
		culprit string
		kind    namespace.Kind
	}{
		"absolute":               {[]tar.Header{file("/etc/passwd", "x")}, "/etc/passwd", namespace.Invalid},
		"upwards":                {[]tar.Header{file("../x", "x")}, "../x", namespace.Invalid},
		"upwards inside":         {[]tar.Header{dirHeader("a"), file("a/../../x", "x")}, "a/../../x", namespace.Invalid},
		"upwards and back":       {[]tar.Header{dirHeader("a"), file("a/../x", "x")}, "a/../x", namespace.Invalid},
		"through a symlink":      {[]tar.Header{link("a", "/etc", tar.TypeSymlink), file("a/passwd", "x")}, "a/passwd", namespace.Invalid},
		"through a chain":        {[]tar.Header{link("a", "b", tar.TypeSymlink), link("b", "/", tar.TypeSymlink), dirHeader("a/c/")}, "a/c/", namespace.Invalid},
		"through a file":         {[]tar.Header{file("a", "x"), file("a/b", "x")}, "a/b", namespace.Invalid},
		"replaced by a symlink":  {[]tar.Header{file("a/b", "x"), link("a", "/etc", tar.TypeSymlink), file("a/b", "y")}, "a/b", namespace.Invalid},
		"hard link out":          {[]tar.Header{link("a", "../../etc/shadow", tar.TypeLink)}, "etc/shadow", namespace.Invalid},
		"hard link absolute":     {[]tar.Header{link("a", "/etc/shadow", tar.TypeLink)}, "/etc/shadow", namespace.Invalid},
		"hard link by a symlink": {[]tar.Header{link("s", "/etc", tar.TypeSymlink), link("a", "s/shadow", tar.TypeLink)}, "s/shadow", namespace.Invalid},
		"hard link to nothing":   {[]tar.Header{link("a", "b", tar.TypeLink)}, `"b"`, namespace.Invalid},
		"hard link to later":     {[]tar.Header{link("a", "b", tar.TypeLink), file("b", "x")}, `"b"`, namespace.Invalid},
		"hard link to directory": {[]tar.Header{dirHeader("b"), link("a", "b", tar.TypeLink)}, `"b"`, namespace.Invalid},
		"hard link as parent":    {[]tar.Header{file("b", "x"), link("b/c", "b", tar.TypeLink)}, "b/c", namespace.Invalid},
		"root as a file":         {[]tar.Header{file(".", "")}, `"."`, namespace.Invalid},
		"root as a symlink":      {[]tar.Header{link(".", "/", tar.TypeSymlink)}, `"."`, namespace.Invalid},
		"long component":         {[]tar.Header{file("d/"+long, "x")}, long[:200], namespace.Limit},
		"long name":              {[]tar.Header{file(strings.Repeat("dir/", 1024)+"x", "")}, "dir/dir", namespace.Invalid},
		"long target":            {[]tar.Header{link("a", strings.Repeat("t", 5000), tar.TypeSymlink)}, `"a"`, namespace.Invalid},
		"no target":              {[]tar.Header{link("a", "", tar.TypeSymlink)}, `"a"`, namespace.Invalid},
		"unknown type":           {[]tar.Header{{Name: "a", Typeflag: 'Z'}}, `"a"`, namespace.Invalid},
		"huge owner":             {[]tar.Header{{Name: "a", Typeflag: tar.TypeReg, Uid: 1 << 32}}, `"a"`, namespace.Invalid},
		"nameless xattr": {[]tar.Header{{Name: "a", Typeflag: tar.TypeReg,
			PAXRecords: map[string]string{"SCHILY.xattr.": "x"}}}, `"a"`, namespace.Invalid},
		"large xattr": {[]tar.Header{{Name: "a", Typeflag: tar.TypeReg,
			PAXRecords: map[string]string{"SCHILY.xattr.user.x": strings.Repeat("x", 65<<10)}}}, `"a"`, namespace.Invalid},
	} {
		_, err := importTar(t, archive(t, c.headers...))
		wantKind(t, name, err, c.kind, "some.tar", c.culprit)
	}
}

func TestTarLastEntryCounts(t *testing.T) {
	all, err := importTar(t, archive(t,
		file("./a/f", "first"), dirHeader("./"), file("a//./f", "second"),
		dirHeader("d"), file("d/kept", "k"), tar.Header{Name: "d/", Typeflag: tar.TypeDir, Mode: 0o700, Uid: 5},
		dirHeader("e"), file("e/gone", "g"), file("e", "a file now"),
		file("l", "linked"), link("m", "./l", tar.TypeLink), file("l", "on its own"),
		link("s", "anywhere/../../..", tar.TypeSymlink), link("s2", "s", tar.TypeLink), file("empty", "")))
	must(t, err)
	for path, want := range map[string]string{
		"a/f": "second", "d/kept": "k", "e": "a file now", "m": "linked", "l": "on its own", "empty": "",
	} {
		if f, ok := all[path]; !ok || string(f.content) != want || f.link != "" || f.Nlink != 1 {
			t.Errorf("%s is %+v, want %q", path, f, want)
		}
	}
	if d := all["d"]; d.Mode != 0o700 || d.UID != 5 {
		t.Errorf("d is %+v", d)
	}
	if a := all["a"]; a.Mode != 0o755 || a.MtimeSec != 0 || a.UID != 0 {
		t.Errorf("a directory without an entry is %+v", a)
	}
	if s := all["s2"]; s.Type != catalog.Symlink || s.target != "anywhere/../../.." || s.link != "s" || s.Nlink != 2 {
		t.Errorf("the hard link of a symlink is %+v", s)
	}
	if _, ok := all["e/gone"]; ok || len(all) != 11 {
		t.Errorf("%d entries: %v", len(all), all)
	}
}

// What the tar program writes of a directory gives the root that the directory itself gives,
// in every compression.
func TestTarOfDirectoryGivesItsRoot(t *testing.T) {
	dir := t.TempDir()
	makeEverything(t, dir, false)
	must(t, os.Truncate(dir+"/sparse", 1<<20+5), os.Truncate(dir+"/zeros", 1<<10))
	// The tar program writes two names of a fifo as two fifos.
	must(t, os.Remove(dir+"/fifo2"))
	stamp := time.Unix(1_700_000_000, 5)
	must(t, os.Chtimes(dir+"/sparse", stamp, stamp), os.Chtimes(dir+"/zeros", stamp, stamp), os.Truncate(dir+"/large", 100<<10))
	want := importDir(t, storetest.NewMem(), dir).Root
	for i, args := range [][]string{
		{"--format=posix", "--xattrs", "--xattrs-include=*", "--acls"},
		{"--format=posix", "--xattrs", "--xattrs-include=*", "--sparse"},
		{"--format=posix", "--xattrs", "--xattrs-include=*", "--sparse", "--sparse-version=0.1"},
	} {
		out, err := exec.Command("tar", append(args, "--pax-option=delete=atime,delete=ctime", "-C", dir, "-cf", "-", ".")...).Output()
		must(t, err)
		all := map[string][]byte{"plain": out}
		if i == 0 {
			all = compressed(t, out)
		}
		for name, b := range all {
			store := storetest.NewMem()
			r, err := builder.Import(t.Context(), store, builder.TarSource{R: bytes.NewReader(b)}, builder.Options{
				Warn: func(p, s string) { t.Errorf("warned of %s: %s", p, s) },
			})
			if err != nil || r.Root != want {
				t.Errorf("%v, %s: root %v (%v), want %v", args, name, r.Root, err, want)
				must(t, err)
				diff(t, store, r.Root, dir)
			}
		}
	}
}

// diff tells how an imported tree differs from a directory.
func diff(t *testing.T, store namespace.Store, root namespace.Digest, dir string) {
	must(t, builder.VerifyDir(t.Context(), loader(store), root, builder.DirSource{Path: dir}, builder.Options{}, func(c catalog.Change) error {
		t.Errorf("%q: %v", c.Path, c.What)
		return nil
	}))
}

func compressed(t *testing.T, b []byte) map[string][]byte {
	var gz, xzb bytes.Buffer
	g := gzip.NewWriter(&gz)
	_, err := g.Write(b)
	must(t, err, g.Close())
	x, err := xz.NewWriter(&xzb)
	must(t, err)
	_, err = x.Write(b)
	must(t, err, x.Close())
	blob := object.EncodeBlob(b) // a header of 12 bytes, then a zstd frame
	return map[string][]byte{"plain": b, "gzip": gz.Bytes(), "xz": xzb.Bytes(), "zstd": blob[12:]}
}

func TestTarDamaged(t *testing.T) {
	good := archive(t, dirHeader("d"), file("d/f", strings.Repeat("text ", 100_000)), file("g", "x"))
	_, err := importTar(t, []byte(strings.Repeat("this is no archive ", 100)))
	wantKind(t, "no archive", err, namespace.Invalid, "some.tar", "not a tar archive")
	_, err = importTar(t, nil)
	wantKind(t, "nothing", err, namespace.Invalid, "some.tar", "no data")
	_, err = importTar(t, good[:300_000])
	wantKind(t, "cut in a file", err, namespace.Corrupt, "d/f")
	_, err = importTar(t, good[:1024+500_224+100])
	wantKind(t, "cut in a header", err, namespace.Corrupt, "some.tar")
	bad := bytes.Clone(good)
	bad[512] ^= 1 // the second header
	_, err = importTar(t, bad)
	if err == nil {
		t.Error("accepted a damaged header")
	}
	for name, b := range compressed(t, good) {
		if name == "plain" {
			continue
		}
		_, err := importTar(t, b[:len(b)-5])
		wantKind(t, name+" cut", err, namespace.Corrupt, "some.tar")
		flipped := bytes.Clone(b)
		flipped[len(b)/2] ^= 0x10
		if _, err := importTar(t, flipped); err == nil && name != "zstd" { // ours has no checksum
			t.Errorf("%s: accepted a flipped bit", name)
		}
	}
	var warned string
	store := storetest.NewMem()
	_, err = builder.Import(t.Context(), store, builder.TarSource{R: bytes.NewReader(good[:len(good)-1024]), Name: "some.tar"},
		builder.Options{Warn: func(p, s string) { warned = p + s }})
	must(t, err)
	if !strings.Contains(warned, "some.tar") || !strings.Contains(warned, "end marker") {
		t.Errorf("warned %q of an archive that ends early", warned)
	}
}

func TestTarReaderFails(t *testing.T) {
	fail := namespace.E(namespace.Unavailable, "read", "", fmt.Errorf("network down"))
	r := io.MultiReader(bytes.NewReader(archive(t, file("a", strings.Repeat("x", 5000)))[:2000]), failing{fail})
	_, err := builder.Import(t.Context(), storetest.NewMem(), builder.TarSource{R: r, Name: "n"}, builder.Options{})
	wantKind(t, "failing reader", err, namespace.Unavailable, "network down")
}

// An entry that claims exabytes of zeros can be given up.
func TestTarHugeSparseFile(t *testing.T) {
	dir := t.TempDir()
	f, err := os.Create(dir + "/huge")
	must(t, err, f.Truncate(8<<40), f.Close())
	out, err := exec.Command("tar", "--format=posix", "--sparse", "-C", dir, "-cf", "-", "huge").Output()
	must(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	start := time.Now()
	_, err = builder.Import(ctx, storetest.NewMem(), builder.TarSource{R: bytes.NewReader(out)}, builder.Options{})
	if err == nil || time.Since(start) > 10*time.Second {
		t.Errorf("error %v after %v", err, time.Since(start))
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

func FuzzTarSource(f *testing.F) {
	f.Add(archive(f, dirHeader("d"), file("d/f", "text"), link("l", "d/f", tar.TypeLink), link("s", "..", tar.TypeSymlink)))
	f.Add(archive(f, file("../x", ""), file("/abs", "")))
	f.Add(archive(f, tar.Header{Name: "x", Typeflag: tar.TypeReg, PAXRecords: map[string]string{"SCHILY.xattr.user.a": "b"}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		all, err := importTar(t, b)
		if err != nil {
			if k := namespace.KindOf(err); k == namespace.Internal {
				t.Fatalf("kind %v: %v", k, err)
			}
			return
		}
		for path := range all {
			for part := range strings.SplitSeq(path, "/") {
				if part == ".." || part == "." || path != "" && part == "" {
					t.Fatalf("imported the name %q", path)
				}
			}
		}
	})
}
