package builder_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"coppice.dev/coppice/builder"
	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/object/delta"
	"coppice.dev/coppice/namespace/storetest"
	"coppice.dev/coppice/namespace/trust"
)

var allOf = builder.SyncOptions{Policy: builder.Policy{All: true}}

func TestSync(t *testing.T) {
	src, dst, dir := storetest.NewMem(), storetest.NewMem(), t.TempDir()
	o := open(t, src)
	all := o.versions(t, dir, 4)
	must(t, src.Put(t.Context(), namespace.Key{Class: namespace.Delta, Digest: all[3].Root}, emptyDelta(t, all[3].Root)))
	log := &storetest.Faulty{Origin: dst}
	r, err := builder.Sync(t.Context(), src, log, allOf)
	must(t, err)
	if len(r.Refs) != 6 || r.Copied["pack"].Objects == 0 || r.Copied["delta"].Objects != 1 || len(r.Missing) != 0 {
		t.Errorf("%+v", r)
	}
	var order []string // refs come last, and channels last of them
	for _, c := range log.Log() {
		switch {
		case c.Op == "SwapRef":
			order = append(order, c.Ref.Kind)
		case c.Op == "Put" && len(order) > 1:
			t.Errorf("%v was put after a ref", c.Key)
		}
	}
	if got := strings.Join(order, " "); got != "trust trust trust tree namespace channel" {
		t.Errorf("refs were written in the order %s", got)
	}
	mirror := open(t, dst)
	mirror.whole(t, "the mirror", 100)
	if got := tree(t, dst, all[0].Root); len(got) != len(tree(t, src, all[0].Root)) {
		t.Error("the first version differs")
	}
	r, err = builder.Sync(t.Context(), src, dst, allOf)
	must(t, err)
	if len(r.Refs) != 0 || len(r.Copied) != 0 || r.Catalogs == 0 {
		t.Errorf("once more: %+v", r)
	}
	write(t, dir, "more", []byte("more"))
	next, err := o.grow(t.Context(), "os", dir)
	must(t, err)
	r, err = builder.Sync(t.Context(), src, dst, allOf)
	must(t, err)
	if !slices.Equal(r.Refs, []string{"tree/os"}) || r.Copied["pack"].Objects != 1 || r.Copied["blob"].Objects != 1 {
		t.Errorf("one more version: %+v", r)
	}
	if got := tree(t, dst, next.Root); string(got["more"].content) != "more" {
		t.Errorf("%+v", got["more"])
	}
	// The index that was made on the way is as good as the source's.
	log.Reset()
	if r, err := builder.Import(t.Context(), log, builder.DirSource{Path: dir}, builder.Options{}); err != nil || r.NewChunks != 0 || r.Root != next.Root {
		t.Errorf("%+v, %v", r, err)
	}
	for _, c := range log.Log() {
		if c.Op == "Get" && c.Key.Class == namespace.Pack {
			t.Errorf("%v is in no segment", c.Key)
		}
	}
}

// A mirror of some names and their newest versions.
func TestSyncChosen(t *testing.T) {
	src, dst := storetest.NewMem(), storetest.NewMem()
	o := open(t, src)
	all := o.versions(t, t.TempDir(), 4)
	r, err := builder.Sync(t.Context(), src, dst, builder.SyncOptions{Policy: builder.Policy{Keep: 1, Only: func(n namespace.RefName) bool {
		return n.Kind == namespace.ChannelRef
	}}})
	must(t, err)
	if !slices.Equal(r.Refs, []string{"trust/1.root", "trust/root", "trust/timestamp", "channel/desk/stable"}) {
		t.Errorf("%+v", r)
	}
	if err := builder.Hold(t.Context(), dst, all[3].Root); err != nil {
		t.Error(err)
	}
	if err := builder.Hold(t.Context(), dst, all[0].Root); !namespace.IsKind(err, namespace.NotExist) {
		t.Errorf("it copied too much: %v", err)
	}
}

// What a collection dropped at the source is not missed, but what is damaged there is.
func TestSyncOfCollected(t *testing.T) {
	src, dst := storetest.NewMem(), storetest.NewMem()
	o := open(t, src)
	all := o.versions(t, t.TempDir(), 4)
	for range 2 {
		src.Age(2 * time.Hour)
		_, err := o.collect(t.Context(), 1)
		must(t, err)
	}
	r, err := builder.Sync(t.Context(), src, dst, allOf)
	must(t, err)
	if len(r.Missing) == 0 {
		t.Errorf("%+v", r)
	}
	open(t, dst).whole(t, "the mirror", 1)
	must(t, src.Delete(t.Context(), namespace.Key{Class: namespace.Blob, Digest: all[3].Root}))
	_, err = builder.Sync(t.Context(), src, storetest.NewMem(), allOf)
	wantKind(t, "without its newest root", err, namespace.NotExist, all[3].Root.String())
}

func TestSyncRefuses(t *testing.T) {
	ripe, dir := storetest.NewMem(), t.TempDir()
	open(t, ripe).versions(t, dir, 4)
	older := ripe.Clone()
	o := open(t, ripe)
	_, err := o.Set(t.Context(), "desk/stable", namespace.Version{Name: "desk", N: 1}, "")
	must(t, err)
	write(t, dir, "more", []byte("more"))
	_, err = o.grow(t.Context(), "os", dir)
	must(t, err)
	other := older.Clone()
	_, err = open(t, other).AddTree(t.Context(), "os", namespace.TreeVersion{Root: namespace.Digest{1}})
	must(t, err)
	stranger := storetest.NewMem()
	key, err := trust.NewKey([]byte(strings.Repeat("x", 32)))
	must(t, err)
	begin(t, stranger, "02", key)
	forged := ripe.Clone()
	n := namespace.RefName{Kind: namespace.TreeRef, Name: "os"}
	was, err := forged.Ref(t.Context(), n)
	must(t, err)
	b, err := trust.Seal(n, namespace.Tree{Format: 1, Name: "os"}, key)
	must(t, err, forged.SwapRef(t.Context(), n, was, b))
	for name, c := range map[string]struct {
		src, dst *storetest.Mem
		kind     namespace.Kind
	}{
		"an older source":     {older, ripe, namespace.Stale},
		"diverged versions":   {ripe, other, namespace.Stale},
		"another root":        {ripe, stranger, namespace.Denied},
		"a forged record":     {forged, storetest.NewMem(), namespace.Denied},
		"a source of nothing": {storetest.NewMem(), storetest.NewMem(), namespace.NotExist},
	} {
		refs := map[string][]byte{}
		for _, kind := range []string{namespace.TreeRef, namespace.ChannelRef} {
			for _, name := range []string{"os", "desk/stable"} {
				refs[kind+name], _ = c.dst.Ref(t.Context(), namespace.RefName{Kind: kind, Name: name})
			}
		}
		before := len(stored(t, c.dst))
		_, err := builder.Sync(t.Context(), c.src, c.dst, allOf)
		wantKind(t, name, err, c.kind)
		if len(stored(t, c.dst)) != before {
			t.Errorf("%s: something was copied", name)
		}
		for at, b := range refs {
			kind, ref := namespace.TreeRef, strings.TrimPrefix(at, namespace.TreeRef)
			if strings.HasPrefix(at, namespace.ChannelRef) {
				kind, ref = namespace.ChannelRef, strings.TrimPrefix(at, namespace.ChannelRef)
			}
			if now, _ := c.dst.Ref(t.Context(), namespace.RefName{Kind: kind, Name: ref}); string(now) != string(b) {
				t.Errorf("%s: %s/%s changed", name, kind, ref)
			}
		}
	}
}

// No byte of a pack or blob gets to a mirror unless it is right.
func TestSyncVerifies(t *testing.T) {
	src, whole := storetest.NewMem(), storetest.NewMem()
	open(t, src).versions(t, t.TempDir(), 2)
	_, err := builder.Sync(t.Context(), src, whole, allOf)
	must(t, err)
	for k, size := range stored(t, src) {
		if _, err := whole.Stat(t.Context(), k); k.Class == namespace.Index || isDocument(t, src, k) && err != nil {
			continue // made anew there; superseded
		}
		dst := storetest.NewMem()
		bad := &storetest.Faulty{Origin: src, Plan: func(c storetest.Call) storetest.Fault {
			if c.Op == "Get" && c.Key == k {
				return storetest.Fault{Flip: size / 2}
			}
			return storetest.Fault{}
		}}
		_, err := builder.Sync(t.Context(), bad, dst, allOf)
		if !namespace.IsKind(err, namespace.Corrupt) && (k.Class != namespace.Locator || err == nil) {
			t.Errorf("%v damaged: %v", k, err)
		}
		if k.Class == namespace.Locator { // derived, and may name another pack now: the next sync replaces it
			_, err := builder.Sync(t.Context(), src, dst, allOf)
			must(t, err)
			open(t, dst).whole(t, k.String()+" damaged on the way", 100)
			continue
		}
		if _, err := dst.Stat(t.Context(), k); !namespace.IsKind(err, namespace.NotExist) {
			t.Errorf("%v was copied though damaged", k)
		}
		if names, _ := dst.Refs(t.Context(), namespace.TreeRef); len(names) > 0 {
			t.Errorf("refs were written though %v is damaged", k)
		}
	}
}

// A sync may end before any change it makes. What the mirror's refs name is always there.
func TestSyncCrashAtEveryChange(t *testing.T) {
	src, dir := storetest.NewMem(), t.TempDir()
	o := open(t, src)
	o.versions(t, dir, 2)
	half := storetest.NewMem()
	_, err := builder.Sync(t.Context(), src, half, allOf)
	must(t, err)
	for i := range 2 {
		write(t, dir, fmt.Sprint("d0/new", i), storetest.Bytes(uint64(i), 3000))
		r, err := o.grow(t.Context(), "os", dir)
		must(t, err, o.compose(t.Context(), "desk", r.Root))
	}
	for name, start := range map[string]*storetest.Mem{"new": storetest.NewMem(), "half": half} {
		for n, done := 1, false; !done; n++ {
			dst := start.Clone()
			var mu sync.Mutex
			seen := 0
			crash := &storetest.Faulty{Origin: dst, Plan: func(c storetest.Call) storetest.Fault {
				mu.Lock()
				defer mu.Unlock()
				if mutates(c) {
					seen++
				}
				if seen >= n {
					return storetest.Fault{Err: namespace.E(namespace.Unavailable, "change", "", nil)}
				}
				return storetest.Fault{}
			}}
			_, err := builder.Sync(t.Context(), src, crash, allOf)
			done = err == nil
			what := fmt.Sprintf("%s mirror after a crash at change %d", name, n)
			if names, _ := dst.Refs(context.Background(), namespace.TreeRef); len(names) > 0 {
				open(t, dst).whole(t, what, 100)
			}
			_, err = builder.Sync(t.Context(), src, dst, allOf)
			must(t, err)
			open(t, dst).whole(t, what+" and another sync", 100)
		}
	}
}

// isDocument reports whether an object is a document of trust.
func isDocument(t *testing.T, store namespace.Store, k namespace.Key) bool {
	t.Helper()
	if k.Class != namespace.Blob {
		return false
	}
	b, err := blobs{store}.GetBlob(t.Context(), k.Digest, namespace.CatalogBytesMax)
	return err == nil && strings.Contains(string(b), `"_type":`)
}

// emptyDelta is a delta object that makes nothing.
func emptyDelta(t *testing.T, d namespace.Digest) []byte {
	t.Helper()
	b, err := delta.Encode(&delta.Object{Catalog: d}, nil, nil)
	must(t, err)
	return b
}
