package builder_test

import (
	"slices"
	"strings"
	"testing"

	"coppice.dev/coppice/builder"
	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/storetest"
)

// verifyNamed verifies an origin with the names of its versions.
func verifyNamed(t *testing.T, o *orchard, quick bool) builder.VerifyReport {
	t.Helper()
	p := builder.Policy{All: true, Bad: func(namespace.RefName, error) {}}
	kept, err := p.Retain(t.Context(), o.Refs, o.store)
	must(t, err)
	var roots []namespace.Digest
	for _, r := range kept.Trees {
		roots = append(roots, r.Root)
	}
	var objects, bytes, total uint64
	r, err := builder.VerifyStore(t.Context(), o.store, roots, builder.VerifyOptions{Quick: quick, Names: kept.Trees,
		Total:    func(o, _ uint64) { total = o },
		Progress: func(o, b uint64) { objects, bytes = o, b },
	})
	must(t, err)
	if objects == 0 || objects > total || !quick && (objects != r.Objects || bytes != r.Bytes) {
		t.Errorf("told of %d objects of %d, %d bytes; %+v", objects, total, bytes, r)
	}
	return r
}

// A fault says which versions need what is damaged, and only those.
func TestVerifySaysWhoNeedsIt(t *testing.T) {
	mem, dir := storetest.NewMem(), t.TempDir()
	o := open(t, mem)
	write(t, dir, "a", storetest.Bytes(1, 3000))
	_, err := o.grow(t.Context(), "os", dir)
	must(t, err)
	old := stored(t, mem)
	write(t, dir, "b", storetest.Bytes(2, 3000))
	two, err := o.grow(t.Context(), "os", dir)
	must(t, err, o.compose(t.Context(), "desk", two.Root))
	for k := range stored(t, mem) {
		if isDocument(t, mem, k) {
			continue // of trust: needed by all, or by nobody any more
		}
		want := []string{"channel desk/stable", "desk@1", "os@2"}
		switch _, first := old[k]; {
		case k.Class == namespace.Index:
			want = []string{}
		case first && k.Class == namespace.Pack:
			want = append(want, "os@1")
		case first:
			want = []string{"os@1"}
		}
		good, err := storetest.ReadAll(t.Context(), mem, k, 0, -1)
		must(t, err)
		bad := slices.Clone(good)
		if bad[0] ^= 1; k.Class == namespace.Pack { // elsewhere in a locator it may name another pack
			bad[len(bad)/3] ^= 1
		}
		must(t, mem.Delete(t.Context(), k), mem.Put(t.Context(), k, bad))
		r := verifyNamed(t, o, false)
		i := slices.IndexFunc(r.Faults, func(f builder.Fault) bool { return f.Digest == k.Digest && f.Class == k.Class.String() })
		if i < 0 {
			t.Errorf("%v: %+v", k, r.Faults)
		} else if got := r.Faults[i].Needs; readable(t, o) && !sameSet(got, want) && !sameSet(got, []string{"channel desk/stable", "desk@1"}) {
			t.Errorf("%v is needed by %q, want %q", k, got, want)
		}
		must(t, mem.Delete(t.Context(), k), mem.Put(t.Context(), k, good))
	}
	if r := verifyNamed(t, o, false); len(r.Faults) > 0 || r.Problems > 0 || len(r.Dropped) > 0 {
		t.Errorf("mended: %+v", r)
	}
}

func sameSet(a, b []string) bool {
	return slices.Equal(slices.Sorted(slices.Values(a)), slices.Sorted(slices.Values(b)))
}

// A quick look reads no content and still misses what is missing.
func TestVerifyQuick(t *testing.T) {
	mem := storetest.NewMem()
	o := open(t, mem)
	o.versions(t, t.TempDir(), 3)
	log := &storetest.Faulty{Origin: mem}
	if r := verifyNamed(t, o.with(log), true); r.Problems != 0 || r.Chunks == 0 {
		t.Errorf("%+v", r)
	}
	for _, c := range log.Log() {
		if c.Op == "Get" && c.Key.Class == namespace.Pack && c.Off == 0 {
			t.Errorf("%v was read", c.Key)
		}
	}
	for k := range stored(t, mem) {
		if isDocument(t, mem, k) {
			continue // those that count are read before anything else
		}
		good, err := storetest.ReadAll(t.Context(), mem, k, 0, -1)
		must(t, err)
		for what, change := range map[string]func(){
			"missing": func() {},
			"shorter": func() { must(t, mem.Put(t.Context(), k, good[:len(good)-1])) },
		} {
			must(t, mem.Delete(t.Context(), k))
			change()
			if k.Class == namespace.Blob && what == "missing" {
				kept, err := builder.Policy{All: true}.Retain(t.Context(), o.Refs, mem)
				if err != nil || len(kept.Missing) > 0 {
					continue // a manifest, or the history of a channel
				}
			}
			if k.Class == namespace.Index || k.Class == namespace.Blob && what == "shorter" && !readable(t, o) {
				continue
			}
			if r := verifyNamed(t, o, true); len(r.Faults) == 0 && len(r.Dropped) == 0 {
				t.Errorf("%v is %s: %+v", k, what, r)
			}
		}
		must(t, mem.Delete(t.Context(), k), mem.Put(t.Context(), k, good))
	}
}

func readable(t *testing.T, o *orchard) bool {
	t.Helper()
	_, err := builder.Policy{All: true}.Retain(t.Context(), o.Refs, o.store)
	return err == nil
}

// What a collection dropped is no fault; what it cannot have dropped is one.
func TestVerifyOfCollected(t *testing.T) {
	mem := storetest.NewMem()
	o := open(t, mem)
	all := o.versions(t, t.TempDir(), 3)
	root := func(i int) namespace.Key { return namespace.Key{Class: namespace.Blob, Digest: all[i].Root} }
	must(t, mem.Delete(t.Context(), root(1)))
	r := verifyNamed(t, o, false)
	if strings.Join(r.Dropped, " ") != "os@2" || r.Problems != 0 {
		t.Errorf("%+v", r)
	}
	must(t, mem.Delete(t.Context(), root(2)))
	r = verifyNamed(t, o, false)
	if strings.Join(r.Dropped, " ") != "os@2" || len(r.Faults) != 1 || !slices.Equal(r.Faults[0].Needs, []string{"os@3"}) {
		t.Errorf("%+v", r)
	}
}
