package builder_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"coppice.dev/coppice/builder"
	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/catalog"
	"coppice.dev/coppice/namespace/storetest"
)

// grove is a store with some trees to compose. The base has big files in a directory: with more
// than 8192 they are a catalog of their own.
func grove(t testing.TB, big int) (*storetest.Mem, map[string]builder.Result) {
	t.Helper()
	store := storetest.NewMem()
	base := []tar.Header{
		file("etc/passwd", "root"), link("etc/passwd-", "etc/passwd", tar.TypeLink), link("config", "etc", tar.TypeSymlink),
		file("opt/full/file", "in the way"), dirHeader("opt/empty"), dirHeader("big/sub"),
	}
	for i := range big {
		base = append(base, file(fmt.Sprintf("big/%d", i), string([]byte{byte(i), byte(i >> 8)})))
	}
	root := dirHeader("./")
	root.Mode = 0o711
	trees := map[string]builder.Result{}
	for name, headers := range map[string][]tar.Header{
		"base":   base,
		"tool":   {root, file("bin/tool", "#!tool"), link("bin/alias", "bin/tool", tar.TypeLink), dirHeader("plugins")},
		"plugin": {file("p", "plug")},
	} {
		r, err := builder.Import(t.Context(), store, builder.TarSource{R: bytes.NewReader(archive(t, headers...))}, builder.Options{})
		must(t, err)
		trees[name] = r
	}
	return store, trees
}

func mount(path string, r builder.Result) namespace.ManifestMount {
	return namespace.ManifestMount{Path: path, Tree: r.Root}
}

func TestCompose(t *testing.T) {
	store, trees := grove(t, 8300)
	mounts := []namespace.ManifestMount{
		mount("/opt/tool", trees["tool"]), mount("/opt/tool/plugins", trees["plugin"]), mount("/big/sub", trees["plugin"]),
		mount("/", trees["base"]), mount("/new/parents/here", trees["tool"]), mount("/opt/tool/plugins/more", trees["plugin"]),
		{Path: "/opt/full", Tree: trees["plugin"].Root, Replace: true}, mount("/opt/empty", trees["plugin"]),
	}
	root, entries, size, err := builder.Compose(t.Context(), store, loader(store), mounts)
	must(t, err)
	all := tree(t, store, root)
	if entries != uint64(len(all)) {
		t.Errorf("%d entries, a walk finds %d", entries, len(all))
	}
	for path, want := range map[string]string{
		"etc/passwd": "root", "opt/tool/bin/tool": "#!tool", "opt/tool/plugins/p": "plug", "big/sub/p": "plug", "big/17": "\x11\x00",
		"new/parents/here/bin/alias": "#!tool", "opt/tool/plugins/more/p": "plug", "opt/full/p": "plug", "opt/empty/p": "plug",
	} {
		if f := all[path]; string(f.content) != want {
			t.Errorf("%s is %+v, want %q", path, f, want)
		}
	}
	if _, ok := all["opt/full/file"]; ok {
		t.Error("what was replaced is still there")
	}
	if d := all["opt/tool"]; d.Mode != 0o711 {
		t.Errorf("a mounted tree's root is %+v", d)
	}
	if d := all["new/parents"]; d.Mode != 0o755 || d.UID != 0 || d.MtimeSec != 0 {
		t.Errorf("a created parent is %+v", d)
	}
	if f := all["opt/tool/bin/tool"]; f.link != "bin/alias" {
		t.Errorf("a hard link in a mounted tree is %q, want it relative to that tree", f.link)
	}
	if size == 0 {
		t.Error("no bytes")
	}
	report, err := builder.VerifyStore(t.Context(), store, []namespace.Digest{root}, builder.VerifyOptions{
		Problem: func(s string, err error) { t.Errorf("%s: %v", s, err) },
	})
	must(t, err)
	if report.Catalogs < 5 {
		t.Errorf("%+v", report)
	}
	slices.Reverse(mounts)
	again, _, _, err := builder.Compose(t.Context(), store, loader(store), mounts)
	if err != nil || again != root {
		t.Errorf("in another order: root %v (%v), want %v", again, err, root)
	}
}

func TestComposeReplacesAFile(t *testing.T) {
	store, trees := grove(t, 10)
	root, _, _, err := builder.Compose(t.Context(), store, loader(store), []namespace.ManifestMount{mount("/", trees["base"]),
		{Path: "/etc/passwd", Tree: trees["plugin"].Root, Replace: true}})
	must(t, err)
	if f := tree(t, store, root)["etc/passwd/p"]; string(f.content) != "plug" {
		t.Errorf("a tree in place of a file: %+v", f)
	}
}

func TestComposeOneTreeIsThatTree(t *testing.T) {
	store, trees := grove(t, 8300)
	faulty := &storetest.Faulty{Origin: store}
	root, entries, size, err := builder.Compose(t.Context(), faulty, loader(store), []namespace.ManifestMount{mount("/", trees["base"])})
	must(t, err)
	if base := trees["base"]; root != base.Root || entries != base.Entries || size != base.Bytes || faulty.Calls("Put") != 0 {
		t.Errorf("root %v, %d entries, %d bytes, %d writes; the tree is %+v", root, entries, size, faulty.Calls("Put"), base)
	}
}

// A composition costs what it changes: nothing of a tree that is only referred to.
func TestComposeRewritesTheWayOnly(t *testing.T) {
	store, trees := grove(t, 8300)
	faulty := &storetest.Faulty{Origin: store}
	_, _, _, err := builder.Compose(t.Context(), faulty, loader(store), []namespace.ManifestMount{
		mount("/", trees["base"]), mount("/opt/tool", trees["tool"]),
	})
	must(t, err)
	if n := faulty.Calls("Put"); n != 2 {
		t.Errorf("%d writes, want the root catalog and its locator", n)
	}
	for _, c := range faulty.Log() {
		if c.Key.Class == namespace.Pack && c.Op != "Renew" || c.Op == "List" {
			t.Errorf("%s %v", c.Op, c.Key)
		}
	}
}

// A locator that is missing is made again from the index.
func TestComposeWithoutLocator(t *testing.T) {
	store, trees := grove(t, 8300)
	must(t, store.Delete(t.Context(), namespace.Key{Class: namespace.Locator, Digest: trees["base"].Root}))
	root, _, _, err := builder.Compose(t.Context(), store, loader(store), []namespace.ManifestMount{
		mount("/", trees["base"]), mount("/opt/tool", trees["tool"]),
	})
	must(t, err)
	if f := tree(t, store, root)["etc/passwd"]; string(f.content) != "root" {
		t.Errorf("%+v", f)
	}
}

func TestComposeConflicts(t *testing.T) {
	store, trees := grove(t, 8300)
	base, tool := mount("/", trees["base"]), trees["tool"]
	for name, c := range map[string]struct {
		mounts []namespace.ManifestMount
		index  int
		kind   namespace.Kind
		says   string
	}{
		"not empty":        {[]namespace.ManifestMount{base, mount("/opt/full", tool)}, 1, namespace.Exist, "/opt/full"},
		"nested catalog":   {[]namespace.ManifestMount{mount("/big", tool), base}, 0, namespace.Exist, "not empty"},
		"on a file":        {[]namespace.ManifestMount{base, mount("/etc/passwd", tool)}, 1, namespace.Exist, "a file is there"},
		"below a symlink":  {[]namespace.ManifestMount{base, mount("/config/x", tool)}, 1, namespace.Exist, "/config, above it, is a symlink"},
		"below a file":     {[]namespace.ManifestMount{base, mount("/etc/passwd/x/y", tool)}, 1, namespace.Exist, "/etc/passwd"},
		"twice":            {[]namespace.ManifestMount{mount("/a", tool), base, mount("/a", tool)}, 2, namespace.Exist, "mount 1"},
		"two roots":        {[]namespace.ManifestMount{base, mount("/", tool)}, 1, namespace.Exist, "mount 1"},
		"inside another":   {[]namespace.ManifestMount{mount("/a", tool), mount("/a/bin", tool)}, 1, namespace.Exist, "/a/bin"},
		"relative":         {[]namespace.ManifestMount{mount("a", tool)}, 0, namespace.Invalid, "absolute"},
		"not clean":        {[]namespace.ManifestMount{mount("/a/../b", tool)}, 0, namespace.Invalid, "clean"},
		"trailing slash":   {[]namespace.ManifestMount{base, mount("/a/", tool)}, 1, namespace.Invalid, "clean"},
		"no such tree":     {[]namespace.ManifestMount{base, {Path: "/a", Tree: namespace.Digest{1}}}, 1, namespace.NotExist, "/a"},
		"a very long path": {[]namespace.ManifestMount{mount("/"+strings.Repeat("a/", 2100)+"a", tool)}, 0, namespace.Invalid, "absolute, clean"},
	} {
		_, _, _, err := builder.Compose(t.Context(), store, loader(store), c.mounts)
		wantKind(t, name, err, c.kind, c.says)
		var at *builder.MountError
		if !errors.As(err, &at) || at.Index != c.index || at.Path != c.mounts[c.index].Path {
			t.Errorf("%s: blames %+v, want mount %d", name, at, c.index)
		}
	}
	if _, _, _, err := builder.Compose(t.Context(), store, loader(store), nil); !namespace.IsKind(err, namespace.Invalid) {
		t.Errorf("no mounts: %v", err)
	}
	_, _, _, err := builder.Compose(t.Context(), store, loader(store), []namespace.ManifestMount{mount("/"+strings.Repeat("n", 300), tool)})
	wantKind(t, "long name", err, namespace.Limit)
}

func TestVerifyDir(t *testing.T) {
	dir := t.TempDir()
	makeEverything(t, dir, false)
	store := storetest.NewMem()
	root := importDir(t, store, dir).Root
	differences := func() map[string]catalog.Difference {
		all := map[string]catalog.Difference{}
		must(t, builder.VerifyDir(t.Context(), loader(store), root, builder.DirSource{Path: dir}, builder.Options{}, func(c catalog.Change) error {
			all[c.Path] = c.What
			return nil
		}))
		return all
	}
	if got := differences(); len(got) != 0 {
		t.Fatalf("an unchanged directory differs: %v", got)
	}
	f, err := os.OpenFile(dir+"/large", os.O_WRONLY, 0)
	must(t, err)
	_, err = f.WriteAt([]byte("!"), 2<<20)
	must(t, err, f.Close(), os.Remove(dir+"/plain"), os.Chmod(dir+"/empty", 0o600), os.Remove(dir+"/link"),
		os.Symlink("else", dir+"/link"), os.Lchown(dir+"/old", 3, 3))
	write(t, dir, "extra", []byte("e"))
	got := differences()
	for path, want := range map[string]catalog.Difference{
		"large": catalog.DiffContent | catalog.DiffMtime, "plain": catalog.DiffRemoved, "empty": catalog.DiffMode,
		"link":  catalog.DiffContent | catalog.DiffMtime | catalog.DiffOwner | catalog.DiffXattrs,
		"extra": catalog.DiffAdded, "old": catalog.DiffOwner, "": catalog.DiffMtime,
	} {
		if got[path] != want {
			t.Errorf("%q: %v, want %v", path, got[path], want)
		}
		delete(got, path)
	}
	if len(got) != 0 {
		t.Errorf("also differ: %v", got)
	}
	stop := errors.New("enough")
	if err := builder.VerifyDir(t.Context(), loader(store), root, builder.DirSource{Path: dir}, builder.Options{},
		func(catalog.Change) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("the callback's error became %v", err)
	}
}

// Every object, damaged or taken away, is a problem that is found.
func TestVerifyStoreFindsDamage(t *testing.T) {
	store, trees := grove(t, 50)
	roots := []namespace.Digest{trees["base"].Root, trees["tool"].Root, trees["plugin"].Root}
	verify := func() (builder.VerifyReport, []string) {
		var problems []string
		r, err := builder.VerifyStore(t.Context(), store, roots, builder.VerifyOptions{
			Problem: func(s string, err error) { problems = append(problems, s+": "+err.Error()) },
		})
		must(t, err)
		return r, problems
	}
	clean, problems := verify()
	if len(problems) != 0 || clean.Objects == 0 || clean.Catalogs != 3 || clean.Chunks < 50 {
		t.Fatalf("%+v, %q", clean, problems)
	}
	var keys []namespace.Key
	for _, class := range namespace.Classes() {
		must(t, store.List(t.Context(), class, func(k namespace.Key, _ int64) error { keys = append(keys, k); return nil }))
	}
	for _, k := range keys {
		good, err := storetest.ReadAll(t.Context(), store, k, 0, -1)
		must(t, err)
		replace := func(b []byte) {
			must(t, store.Delete(t.Context(), k), store.Put(t.Context(), k, b))
		}
		for _, at := range []int{0, len(good) / 3, len(good) - 1} {
			bad := slices.Clone(good)
			bad[at] ^= 1
			replace(bad)
			if _, problems := verify(); len(problems) == 0 {
				t.Errorf("byte %d of %d of %v: damage was not found", at, len(good), k)
			}
		}
		must(t, store.Delete(t.Context(), k))
		if _, problems := verify(); len(problems) == 0 && k.Class != namespace.Index {
			t.Errorf("%v is missing and was not missed", k)
		}
		replace(good)
	}
	roots = append(roots, namespace.Digest{5})
	if _, problems := verify(); len(problems) != 1 || !strings.Contains(problems[0], "0500") {
		t.Errorf("a root that is missing: %q", problems)
	}
}
