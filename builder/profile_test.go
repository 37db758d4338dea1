package builder_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"coppice.dev/coppice/builder"
	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/catalog"
	"coppice.dev/coppice/namespace/object"
	"coppice.dev/coppice/namespace/storetest"
)

// thicket is an origin with a tree of n files of 3,000 bytes, of which a profile names every fourth, the
// last one first, and one of several chunks, from its middle.
func thicket(t *testing.T) (o *orchard, mem *storetest.Mem, dir string, root namespace.Digest, p *namespace.Profile) {
	t.Helper()
	mem, dir = storetest.NewMem(), t.TempDir()
	o = open(t, mem)
	p = &namespace.Profile{Format: 1, Name: "login", Entries: []namespace.ProfileEntry{{Path: "d0"}, {Path: "big", Off: 2 << 20, Len: 100}}}
	for i := range 200 {
		name := fmt.Sprintf("d%d/f%03d", i%3, i)
		write(t, dir, name, storetest.Bytes(uint64(i), 3000))
		if i%4 == 0 {
			p.Entries = append(p.Entries, namespace.ProfileEntry{Path: namespace.PathText(name)})
		}
	}
	slices.Reverse(p.Entries[2:])
	write(t, dir, "big", storetest.Bytes(1000, 4<<20))
	r, err := o.grow(t.Context(), "os", dir)
	must(t, err)
	return o, mem, dir, r.Root, p
}

func profileID(t *testing.T, o *orchard, p *namespace.Profile) namespace.Digest {
	t.Helper()
	b, err := namespace.EncodeProfile(p)
	must(t, err)
	d, err := o.Blobs.PutBlob(t.Context(), b)
	must(t, err)
	return d
}

// publish adds the profile to the record of namespace "desk", laid out for root.
func (o *orchard) publishProfile(t *testing.T, p *namespace.Profile, root namespace.Digest) []builder.LaidOut {
	t.Helper()
	id := profileID(t, o, p)
	rec, _, err := o.Profiles(t.Context(), "desk")
	must(t, err)
	rec.Profiles = slices.DeleteFunc(rec.Profiles, func(r namespace.ProfileRecord) bool { return r.Name == p.Name })
	rec.Profiles = append(rec.Profiles, namespace.ProfileRecord{Name: p.Name, Profile: id})
	return o.layOut(t, rec, root)
}

func (o *orchard) layOut(t *testing.T, rec namespace.Profiles, root namespace.Digest) []builder.LaidOut {
	t.Helper()
	rec, all, err := builder.LayOutAll(t.Context(), o.store, rec, []builder.LayoutTarget{{Root: root}}, func(namespace.Digest) bool { return false }, nil)
	must(t, err, o.ChangeProfiles(t.Context(), "desk", func(r *namespace.Profiles) error { r.Profiles = rec.Profiles; return nil }))
	return all
}

// places returns where the locators say that the profile's chunks are, and the packs.
func places(t *testing.T, store namespace.Store, root namespace.Digest, p *namespace.Profile) (all []object.Place, packs map[namespace.Digest]bool) {
	t.Helper()
	s := builder.NewStored(store)
	r, err := catalog.ResolveProfile(t.Context(), s, root, p)
	must(t, err)
	packs = map[namespace.Digest]bool{}
	for _, c := range r.Chunks {
		b, err := storetest.ReadAll(t.Context(), store, namespace.Key{Class: namespace.Locator, Digest: c.Catalog}, 0, -1)
		must(t, err)
		l, err := object.OpenLocator(b)
		must(t, err)
		at := l.Place(int(c.Index))
		all, packs[at.Pack] = append(all, at), true
	}
	return all, packs
}

func TestLayOut(t *testing.T) {
	o, mem, dir, root, p := thicket(t)
	want := tree(t, mem, root)
	_, before := places(t, mem, root, p)
	if len(before) < 4 {
		t.Fatalf("the tree's order is too good for a test: %d packs", len(before))
	}
	must(t, o.compose(t.Context(), "desk", root))
	made := o.publishProfile(t, p, root)
	// 50 small files and a chunk of the large one, which is random bytes and stays as large as it is.
	if len(made) != 1 || made[0].Chunks != 51 || made[0].Ranges != 1 || made[0].Packs.Objects != 1 || made[0].Absent != 0 ||
		made[0].Packs.Bytes > made[0].Bytes+10_000 || made[0].Stored > made[0].Bytes {
		t.Errorf("%+v", made)
	}
	all, packs := places(t, mem, root, p)
	if len(packs) != 1 || !slices.IsSortedFunc(all, func(a, b object.Place) int { return int(a.FrameOff - b.FrameOff) }) {
		t.Errorf("%d packs, or not in order", len(packs))
	}
	if got := tree(t, mem, root); !maps.EqualFunc(got, want, func(a, b found) bool { return fmt.Sprint(a) == fmt.Sprint(b) }) {
		t.Error("the tree is another")
	}
	o.whole(t, "laid out", 1)

	// What is laid out already costs nothing.
	now := stored(t, mem)
	rec, _, err := o.Profiles(t.Context(), "desk")
	must(t, err)
	if again := o.layOut(t, rec, root); again[0].Packs.Objects != 0 || again[0].Locators != 0 || again[0].Layout != made[0].Layout {
		t.Errorf("again: %+v", again)
	}
	if !maps.Equal(now, stored(t, mem)) {
		t.Error("a profile that is laid out was written again")
	}

	// The next version changes two of its files: the cost is theirs, and the rest stays where it is.
	write(t, dir, "d0/f000", storetest.Bytes(7000, 3000))
	write(t, dir, "d1/f004", storetest.Bytes(7001, 3000))
	r, err := o.grow(t.Context(), "os", dir)
	must(t, err)
	rec, _, err = o.Profiles(t.Context(), "desk")
	must(t, err)
	next := o.layOut(t, rec, r.Root)
	if next[0].Packs.Objects != 1 || next[0].Packs.Bytes > 8000 || next[0].Chunks != 51 {
		t.Errorf("two files changed: %+v", next)
	}
	_, after := places(t, mem, r.Root, p)
	for d := range packs {
		if !after[d] || len(after) != 2 {
			t.Errorf("the layout of the version before was left: %d packs", len(after))
		}
	}

	// When most of it changes, all of it is laid out anew, and nothing leads to the old packs.
	for i := range 50 {
		if i%5 != 0 {
			write(t, dir, fmt.Sprintf("d%d/f%03d", 4*i%3, 4*i), storetest.Bytes(uint64(8000+i), 3000))
		}
	}
	write(t, dir, "big", storetest.Bytes(1001, 4<<20))
	if r, err = o.grow(t.Context(), "os", dir); err != nil {
		t.Fatal(err)
	}
	rec, _, err = o.Profiles(t.Context(), "desk")
	must(t, err)
	last := o.layOut(t, rec, r.Root)
	_, packs = places(t, mem, r.Root, p)
	for d := range after {
		if packs[d] {
			t.Errorf("pack %v is still in use: %+v", d, last)
		}
	}
}

// TestLayOutsAgree: of two profiles with files in common none undoes what the other did.
func TestLayOutsAgree(t *testing.T) {
	o, mem, _, root, p := thicket(t)
	must(t, o.compose(t.Context(), "desk", root))
	other := &namespace.Profile{Format: 1, Name: "office", Entries: []namespace.ProfileEntry{{Path: "d1/f001"}, {Path: "d2/f005"}}}
	for i, e := range p.Entries {
		if i%3 == 0 {
			other.Entries = append(other.Entries, e)
		}
	}
	o.publishProfile(t, p, root)
	o.publishProfile(t, other, root)
	now := stored(t, mem)
	for range 2 {
		rec, _, err := o.Profiles(t.Context(), "desk")
		must(t, err)
		o.layOut(t, rec, root)
	}
	if !maps.Equal(now, stored(t, mem)) {
		t.Error("two profiles take turns")
	}
	o.whole(t, "two profiles", 1)
}

// TestCollectKeepsLayouts: collecting and repacking leave a layout as it is while a record names it, and
// take its packs when none does.
func TestCollectKeepsLayouts(t *testing.T) {
	o, mem, dir, root, p := thicket(t)
	must(t, o.compose(t.Context(), "desk", root))
	o.publishProfile(t, p, root)
	_, packs := places(t, mem, root, p)
	lost := func() (n int) {
		for d := range packs {
			if _, err := mem.Stat(t.Context(), namespace.Key{Class: namespace.Pack, Digest: d}); err != nil {
				n++
			}
		}
		return n
	}
	for range 2 {
		mem.Age(2 * time.Hour)
		_, err := builder.Collect(t.Context(), mem, builder.CollectOptions{Retain: o.policy(1), Grace: time.Hour, Repack: 0.99})
		must(t, err)
	}
	if all, now := places(t, mem, root, p); len(now) != 1 || lost() != 0 || len(all) != 51 {
		t.Errorf("after repacking it lies in %d packs, %d lost", len(now), lost())
	}
	o.whole(t, "collected", 1)
	verifyLayouts(t, o, 0)

	// The profile goes, and with it what only it needed: old copies were taken, so these are in use.
	must(t, o.ChangeProfiles(t.Context(), "desk", func(r *namespace.Profiles) error { r.Profiles = nil; return nil }))
	for i := range 200 {
		write(t, dir, fmt.Sprintf("d%d/f%03d", i%3, i), storetest.Bytes(uint64(5000+i), 3000))
	}
	write(t, dir, "big", nil)
	r, err := o.grow(t.Context(), "os", dir)
	must(t, err, o.compose(t.Context(), "desk", r.Root))
	mem.Age(2 * time.Hour)
	_, err = o.collect(t.Context(), 1)
	must(t, err)
	if lost() != len(packs) {
		t.Error("packs of a profile that is gone stay")
	}
	o.whole(t, "without the profile", 1)
}

// verifyLayouts checks the origin and expects so many problems with layouts.
func verifyLayouts(t *testing.T, o *orchard, want int) {
	t.Helper()
	kept, err := builder.Policy{All: true}.Retain(t.Context(), o.Refs, o.store)
	must(t, err)
	var bad []string
	_, err = builder.VerifyStore(t.Context(), o.store, nil, builder.VerifyOptions{Layouts: kept.Layouts, Quick: true,
		Problem: func(s string, err error) { bad = append(bad, s+": "+err.Error()) }})
	must(t, err)
	if len(bad) != want || len(kept.Layouts) == 0 {
		t.Errorf("%d layouts, problems %q", len(kept.Layouts), bad)
	}
}

func TestVerifyLayouts(t *testing.T) {
	o, mem, _, root, p := thicket(t)
	must(t, o.compose(t.Context(), "desk", root))
	made := o.publishProfile(t, p, root)
	verifyLayouts(t, o, 0)
	_, packs := places(t, mem, root, p)
	for d := range packs {
		must(t, mem.Delete(t.Context(), namespace.Key{Class: namespace.Pack, Digest: d}))
	}
	verifyLayouts(t, o, 1)
	must(t, mem.Delete(t.Context(), namespace.Key{Class: namespace.Blob, Digest: made[0].Layout}))
	verifyLayouts(t, o, 1)
	// Its version was dropped as well: that is no fault.
	kept, err := o.policy(1)(t.Context())
	must(t, err)
	for _, l := range kept.Layouts {
		must(t, mem.Delete(t.Context(), namespace.Key{Class: namespace.Blob, Digest: l.Root}))
	}
	verifyLayouts(t, o, 0)
}

// TestSyncCarriesProfiles: also to a mirror that has the content already, elsewhere, and when only a
// channel was asked for.
func TestSyncCarriesProfiles(t *testing.T) {
	o, src, _, root, p := thicket(t)
	must(t, o.compose(t.Context(), "desk", root))
	dst, other := storetest.NewMem(), storetest.NewMem()
	_, err := builder.Sync(t.Context(), src, dst, allOf)
	must(t, err)
	must(t, o.ChangeProfiles(t.Context(), "unused", func(*namespace.Profiles) error { return nil }))
	made := o.publishProfile(t, p, root)
	only := allOf
	only.Policy.Only = func(n namespace.RefName) bool { return n.String() == "channel/desk/stable" }
	for what, to := range map[string]*storetest.Mem{"behind": dst, "empty": other} {
		o := only
		if what == "behind" {
			o = allOf
		}
		r, err := builder.Sync(t.Context(), src, to, o)
		must(t, err)
		if !slices.Contains(r.Refs, "profile/desk") || slices.Contains(r.Refs, "profile/unused") == (what == "empty") {
			t.Errorf("%s: %v", what, r.Refs)
		}
		l, err := builder.LoadLayout(t.Context(), to, made[0].Layout)
		must(t, err)
		for _, d := range l.Packs() {
			if _, err := to.Stat(t.Context(), namespace.Key{Class: namespace.Pack, Digest: d}); err != nil {
				t.Errorf("%s: a pack of the layout: %v", what, err)
			}
		}
		_, err = builder.LoadProfile(t.Context(), to, l.Profile)
		must(t, err)
		verifyLayouts(t, open(t, to), 0)
	}
}

// TestLayOutCrashAtEveryChange: wherever it is cut short, the tree is whole, and the next run ends it.
func TestLayOutCrashAtEveryChange(t *testing.T) {
	o, mem, _, root, p := thicket(t)
	must(t, o.compose(t.Context(), "desk", root))
	id := profileID(t, o, p)
	for n, done := 1, false; !done; n++ {
		half := mem.Clone()
		var mu sync.Mutex
		seen := 0
		crash := &storetest.Faulty{Origin: half, Plan: func(c storetest.Call) storetest.Fault {
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
		_, _, err := builder.LayOut(t.Context(), crash, root, id, p, builder.LayOutOptions{})
		done = err == nil
		if done && n < 4 {
			t.Errorf("only %d changes", n)
		}
		what := fmt.Sprintf("after a crash at change %d", n)
		open(t, half).whole(t, what, 1)
		_, rep, err := builder.LayOut(t.Context(), half, root, id, p, builder.LayOutOptions{})
		if _, packs := places(t, half, root, p); err != nil || len(packs) != 1 || rep.Ranges != 1 {
			t.Fatalf("%s, and another run: %d packs, %+v, %v", what, len(packs), rep, err)
		}
		open(t, half).whole(t, what+" and another run", 1)
	}
}

func TestKeepLayouts(t *testing.T) {
	ref := func(root, lay byte) namespace.LayoutRef {
		return namespace.LayoutRef{Root: namespace.Sum([]byte{root}), Layout: namespace.Sum([]byte{lay})}
	}
	before := []namespace.LayoutRef{ref(1, 1), ref(2, 2), ref(3, 3)}
	got := builder.KeepLayouts([]namespace.LayoutRef{ref(4, 4), ref(1, 9)}, before, func(d namespace.Digest) bool { return d != namespace.Sum([]byte{2}) })
	if want := []namespace.LayoutRef{ref(4, 4), ref(1, 9), ref(3, 3)}; !slices.Equal(got, want) {
		t.Errorf("%v", got)
	}
	var many []namespace.LayoutRef
	for i := range 20 {
		many = append(many, ref(byte(i), byte(i)))
	}
	if got := builder.KeepLayouts(nil, many, func(namespace.Digest) bool { return true }); len(got) != namespace.LayoutsMax || got[0] != many[0] {
		t.Errorf("%d layouts", len(got))
	}
}

func TestLayOutRefuses(t *testing.T) {
	o, mem, _, root, p := thicket(t)
	id := profileID(t, o, p)
	_, err := builder.LoadProfile(t.Context(), mem, root)
	if !namespace.IsKind(err, namespace.Corrupt) || !strings.Contains(err.Error(), root.String()) {
		t.Errorf("a catalog as a profile: %v", err)
	}
	if _, err := builder.LoadLayout(t.Context(), mem, id); !namespace.IsKind(err, namespace.Corrupt) {
		t.Errorf("a profile as a layout: %v", err)
	}
	if _, _, err := builder.LayOut(t.Context(), mem, namespace.Sum(nil), id, p, builder.LayOutOptions{}); !namespace.IsKind(err, namespace.NotExist) {
		t.Errorf("no such root: %v", err)
	}
	// A pack of the tree is gone: nothing is laid out, and nothing is written but packs.
	_, packs := places(t, mem, root, p)
	for d := range packs {
		must(t, mem.Delete(t.Context(), namespace.Key{Class: namespace.Pack, Digest: d}))
	}
	before := stored(t, mem)
	if _, _, err := builder.LayOut(t.Context(), mem, root, id, p, builder.LayOutOptions{}); !namespace.IsKind(err, namespace.NotExist) {
		t.Errorf("without its content: %v", err)
	}
	if !maps.Equal(before, stored(t, mem)) {
		t.Error("something was written")
	}
}
