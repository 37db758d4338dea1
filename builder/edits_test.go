package builder_test

import (
	"os"
	"testing"
	"time"

	"coppice.dev/coppice/builder"
	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/storetest"
)

func edited(t *testing.T, store namespace.Store, base namespace.Digest, edits ...builder.Edit) (map[string]found, error) {
	t.Helper()
	r, err := builder.Import(t.Context(), store, builder.EditSource{Base: base, Loader: builder.NewStored(store), Edits: edits}, builder.Options{})
	if err != nil {
		return nil, err
	}
	return tree(t, store, r.Root), nil
}

func TestEdits(t *testing.T) {
	store, dir, files := storetest.NewMem(), t.TempDir(), t.TempDir()
	for _, name := range []string{"var/log/a.log", "var/log/apt/b.log", "var/cache/x", "usr/share/doc/p/README", "usr/lib/a.a", "usr/lib/deep/b.a", "usr/lib/c.so", "etc/machine-id", "etc/motd"} {
		write(t, dir, name, []byte(name))
	}
	must(t, os.Link(dir+"/usr/lib/c.so", dir+"/usr/lib/deep/link.so"))
	base := importDir(t, store, dir).Root
	write(t, files, "motd", []byte("new"))
	write(t, files, "sub/file", []byte("sub"))
	owner, mode := [2]uint32{5, 6}, uint16(0o640)
	for name, c := range map[string]struct {
		edits      []builder.Edit
		gone, kept []string
	}{
		"drop a directory":     {[]builder.Edit{{Drop: "/usr/share/doc"}}, []string{"usr/share/doc", "usr/share/doc/p/README"}, []string{"usr/share"}},
		"drop by pattern":      {[]builder.Edit{{Drop: "/usr/lib/*.a"}}, []string{"usr/lib/a.a"}, []string{"usr/lib/deep/b.a", "usr/lib/c.so"}},
		"drop anywhere":        {[]builder.Edit{{Drop: "/usr/**/*.a"}}, []string{"usr/lib/a.a", "usr/lib/deep/b.a"}, []string{"usr/lib/c.so", "etc/motd"}},
		"files, not their dir": {[]builder.Edit{{DropFiles: "/var/log/**"}}, []string{"var/log/a.log", "var/log/apt/b.log"}, []string{"var/log", "var/log/apt", "var/cache/x"}},
		"a link":               {[]builder.Edit{{Drop: "/usr/lib/deep"}}, []string{"usr/lib/deep/link.so"}, []string{"usr/lib/c.so"}},
		"nothing there":        {[]builder.Edit{{Drop: "/no/such/*"}, {Empty: "/nor/this"}}, nil, []string{"etc/motd"}},
	} {
		all, err := edited(t, store, base, c.edits...)
		must(t, err)
		for _, path := range c.gone {
			if _, ok := all[path]; ok {
				t.Errorf("%s: %s is still there", name, path)
			}
		}
		for _, path := range c.kept {
			if _, ok := all[path]; !ok {
				t.Errorf("%s: %s is gone", name, path)
			}
		}
	}
	all, err := edited(t, store, base, builder.Edit{Empty: "/etc/machine-id"}, builder.Edit{Copy: files, To: "/etc", Owner: &owner, Mode: &mode},
		builder.Edit{Copy: files, To: "/made/up/dir"}, builder.Edit{Drop: "/usr/lib/deep"})
	must(t, err)
	if f := all["etc/machine-id"]; f.Size != 0 || len(f.content) != 0 {
		t.Errorf("emptied: %+v", f)
	}
	if f := all["etc/motd"]; string(f.content) != "new" || f.UID != 5 || f.GID != 6 || f.Mode != 0o640 {
		t.Errorf("copied: %+v", f)
	}
	if f := all["made/up/dir/sub/file"]; string(f.content) != "sub" {
		t.Errorf("copied to a new directory: %+v", f)
	}
	if f := all["usr/lib/c.so"]; f.Nlink != 1 || f.link != "" {
		t.Errorf("the only name left of a file: %+v", f)
	}
	for _, bad := range []string{"relative", "/", "/a/../b", "/a[", "/a//b"} {
		_, err := edited(t, store, base, builder.Edit{Drop: bad})
		wantKind(t, bad, err, namespace.Invalid)
	}
	_, err = edited(t, store, base, builder.Edit{Copy: files, To: "/etc/motd"})
	wantKind(t, "a directory over a file", err, namespace.Exist, "/etc/motd")
}

// With a latest time, what is made does not depend on the clock; what was there keeps its time.
func TestLatestTime(t *testing.T) {
	store, dir, files := storetest.NewMem(), t.TempDir(), t.TempDir()
	write(t, dir, "old", []byte("old"))
	base := importDir(t, store, dir).Root
	write(t, files, "new", []byte("new"))
	latest := time.Unix(1e9, 0)
	r, err := builder.Import(t.Context(), store, builder.EditSource{Base: base, Loader: builder.NewStored(store), Latest: latest,
		Edits: []builder.Edit{{Copy: files, To: "/in"}}}, builder.Options{})
	must(t, err)
	all := tree(t, store, r.Root)
	if n, o := all["in/new"], all["old"]; n.MtimeSec != 1e9 || o.MtimeSec == 1e9 {
		t.Errorf("new: %d, old: %d", n.MtimeSec, o.MtimeSec)
	}
}
