package builder_test

import (
	"errors"
	"os"
	"slices"
	"testing"
	"time"

	"coppice.dev/coppice/builder"
	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/storetest"
)

// branch imports the directory that fill makes; times of directories are fixed.
func branch(t *testing.T, store namespace.Store, fill ...func(dir string)) namespace.Digest {
	t.Helper()
	dir := t.TempDir()
	for _, f := range fill {
		f(dir)
	}
	for _, d := range []string{dir + "/etc", dir + "/usr", dir} {
		if err := os.Chtimes(d, past, past); err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
	}
	return importDir(t, store, dir).Root
}

var past = time.Unix(1e9, 7)

// at writes a file whose time is fixed.
func at(t *testing.T, dir, name, content string) {
	t.Helper()
	write(t, dir, name, []byte(content))
	must(t, os.Chtimes(dir+"/"+name, past, past))
}

func TestRebase(t *testing.T) {
	common := func(dir string) {
		at(t, dir, "etc/a", "a")
		at(t, dir, "etc/b", "b")
		at(t, dir, "usr/l1", "linked")
		must(t, os.Link(dir+"/usr/l1", dir+"/usr/l2"), os.Link(dir+"/usr/l1", dir+"/usr/l3"))
	}
	set := func(name, content string) func(string) { return func(dir string) { at(t, dir, name, content) } }
	remove := func(name string) func(string) { return func(dir string) { must(t, os.RemoveAll(dir+"/"+name)) } }
	for name, c := range map[string]struct {
		mine, theirs func(string)
		conflicts    []string
	}{
		"disjoint":               {set("etc/a", "mine"), set("etc/b", "theirs"), nil},
		"both added":             {set("etc/new", "mine"), set("usr/new", "theirs"), nil},
		"equal":                  {set("etc/a", "same"), set("etc/a", "same"), nil},
		"both removed":           {remove("etc/a"), remove("etc/a"), nil},
		"one link removed":       {remove("usr/l1"), set("etc/a", "theirs"), nil},
		"a link added":           {set("etc/a", "mine"), func(d string) { must(t, os.Link(d+"/usr/l1", d+"/etc/l0")) }, nil},
		"both changed":           {set("etc/a", "mine"), set("etc/a", "theirs"), []string{"etc/a"}},
		"changed and removed":    {set("etc/a", "mine"), remove("etc/a"), []string{"etc/a"}},
		"added below removed":    {set("etc/new", "mine"), remove("etc"), []string{"etc/new"}},
		"removed above added":    {remove("etc"), set("etc/new", "theirs"), []string{"etc/new"}},
		"different links broken": {remove("usr/l1"), remove("usr/l3"), []string{"usr/l2", "usr/l1", "usr/l3"}},
	} {
		t.Run(name, func(t *testing.T) {
			store := storetest.NewMem()
			base := branch(t, store, common)
			src := builder.RebaseSource{Base: base, Mine: branch(t, store, common, c.mine),
				Onto: branch(t, store, common, c.theirs), Loader: builder.NewStored(store)}
			got, err := builder.Import(t.Context(), store, src, builder.Options{})
			if len(c.conflicts) > 0 {
				wantKind(t, name, err, namespace.Exist, c.conflicts[0])
				var conflict *builder.ConflictError
				if !errors.As(err, &conflict) || !slices.ContainsFunc(conflict.Conflicts, func(x builder.Conflict) bool { return x.Path == c.conflicts[0] }) {
					t.Errorf("conflicts: %v", err)
				}
				return
			}
			must(t, err)
			if want := branch(t, store, common, c.mine, c.theirs); got.Root != want {
				tellDifference(t, store, want, got.Root)
			}
		})
	}
}
