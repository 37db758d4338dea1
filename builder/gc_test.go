package builder_test

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"coppice.dev/coppice/builder"
	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/object"
	"coppice.dev/coppice/namespace/storetest"
	"coppice.dev/coppice/namespace/trust"
)

// orchard is an origin in memory with signed refs.
type orchard struct {
	*trust.Publisher
	store namespace.Origin
}

// blobs implements trust.Blobs.
type blobs struct{ namespace.Store }

func (b blobs) PutBlob(ctx context.Context, p []byte) (namespace.Digest, error) {
	d := namespace.Sum(p)
	return d, b.Put(ctx, namespace.Key{Class: namespace.Blob, Digest: d}, object.EncodeBlob(p))
}

func (b blobs) GetBlob(ctx context.Context, d namespace.Digest, limit int64) ([]byte, error) {
	stored, err := storetest.ReadAll(ctx, b, namespace.Key{Class: namespace.Blob, Digest: d}, 0, -1)
	if err != nil {
		return nil, err
	}
	return object.DecodeBlob(stored, d, limit)
}

// signer is the key of all test origins.
func signer(t testing.TB) trust.Key {
	t.Helper()
	key, err := trust.NewKey(make([]byte, 32))
	must(t, err)
	return key
}

// begin makes an origin in store with one key for all roles.
func begin(t testing.TB, store namespace.Origin, id string, key trust.Key) *orchard {
	t.Helper()
	p := &trust.Publisher{Refs: trust.Refs{Reader: store, Blobs: blobs{store}}, Writer: store,
		Signers: []trust.Signer{key}, By: "test", Now: time.Now}
	all := map[trust.Role][]ed25519.PublicKey{}
	for _, r := range []trust.Role{trust.RoleRoot, trust.RoleVouching, trust.RoleSnapshot, trust.RoleTimestamp, trust.RolePublish, trust.RolePoint} {
		all[r] = []ed25519.PublicKey{key.Public()}
	}
	_, err := p.Init(t.Context(), trust.Start{ID: id, Keys: all})
	must(t, err)
	return &orchard{p, store}
}

// open returns the origin in store, which is made if it is none.
func open(t testing.TB, store namespace.Origin) *orchard {
	t.Helper()
	root, _, err := trust.FetchRoot(t.Context(), store)
	if namespace.IsKind(err, namespace.NotExist) {
		return begin(t, store, "01", signer(t))
	}
	must(t, err)
	return &orchard{&trust.Publisher{Refs: trust.Refs{Reader: store, Root: root, Blobs: blobs{store}}, Writer: store,
		Signers: []trust.Signer{signer(t)}, By: "test", Now: time.Now}, store}
}

// grow imports dir as the next version of a tree.
func (o *orchard) grow(ctx context.Context, name, dir string) (builder.Result, error) {
	r, err := builder.Import(ctx, o.store, builder.DirSource{Path: dir}, builder.Options{PackBytes: 64 << 10, FrameBytes: 8 << 10})
	if err == nil {
		_, err = o.AddTree(ctx, name, namespace.TreeVersion{Root: r.Root, Entries: r.Entries, Bytes: r.Bytes})
	}
	return r, err
}

// compose publishes a namespace version that has the tree root at /t, and points the channel at it.
func (o *orchard) compose(ctx context.Context, name string, root namespace.Digest) error {
	m := namespace.Manifest{Format: 1, Name: name, Mounts: []namespace.ManifestMount{{Path: "/t", Tree: root}}}
	var err error
	if m.Root, m.Entries, m.Bytes, err = builder.Compose(ctx, o.store, loader(o.store), m.Mounts); err != nil {
		return err
	}
	b, err := namespace.EncodeRecord(m)
	if err != nil {
		return err
	}
	d, err := o.Blobs.PutBlob(ctx, b)
	if err != nil {
		return err
	}
	if _, err = o.AddNamespace(ctx, name, d, ""); err != nil {
		return err
	}
	_, err = o.Set(ctx, name+"/stable", namespace.Version{Name: name}, "")
	return err
}

// policy keeps n of each, whatever their age.
func (o *orchard) policy(n int) func(context.Context) (builder.Retained, error) {
	return func(ctx context.Context) (builder.Retained, error) {
		return builder.Policy{Keep: n, Now: time.Now()}.Retain(ctx, o.Refs, o.store)
	}
}

// collect keeps the newest n, with a grace period of an hour.
func (o *orchard) collect(ctx context.Context, n int) (builder.CollectReport, error) {
	return builder.Collect(ctx, o.store, builder.CollectOptions{Retain: o.policy(n), Grace: time.Hour, Repack: 0.5})
}

// whole fails the test unless everything that counts is there and right.
func (o *orchard) whole(t *testing.T, what string, n int) {
	t.Helper()
	kept, err := o.policy(n)(t.Context())
	must(t, err)
	var roots []namespace.Digest
	for _, r := range kept.Trees {
		roots = append(roots, r.Root)
	}
	rep, err := builder.VerifyStore(t.Context(), o.store, roots, builder.VerifyOptions{
		Problem: func(s string, err error) { t.Errorf("%s: %s: %v", what, s, err) },
	})
	must(t, err)
	if rep.Catalogs == 0 || len(kept.Missing) > 0 {
		t.Errorf("%s: %+v, missing %q", what, rep, kept.Missing)
	}
}

// versions makes n versions of the tree "os" in dir: each replaces some files of the one before, so
// that old packs are mostly dead in the end. Every third one is composed and published.
func (o *orchard) versions(t testing.TB, dir string, n int) []builder.Result {
	t.Helper()
	var all []builder.Result
	for v := range n {
		for i := range 24 {
			if v == 0 || i%8 != 0 {
				write(t, dir, fmt.Sprintf("d%d/f%d", i%3, i), storetest.Bytes(uint64(100*v+i), 3000))
			}
		}
		r, err := o.grow(t.Context(), "os", dir)
		must(t, err)
		if v%3 == 0 {
			must(t, o.compose(t.Context(), "desk", r.Root))
		}
		all = append(all, r)
	}
	return all
}

func stored(t testing.TB, s namespace.Store) map[namespace.Key]int64 {
	t.Helper()
	all := map[namespace.Key]int64{}
	for _, c := range namespace.Classes() {
		must(t, s.List(t.Context(), c, func(k namespace.Key, size int64) error { all[k] = size; return nil }))
	}
	return all
}

func TestCollect(t *testing.T) {
	mem := storetest.NewMem()
	o := open(t, mem)
	all := o.versions(t, t.TempDir(), 6)
	last := tree(t, mem, all[5].Root)
	before := stored(t, mem)

	r, err := builder.Collect(t.Context(), mem, builder.CollectOptions{Retain: o.policy(1), Grace: time.Hour})
	must(t, err)
	if now := stored(t, mem); !maps.Equal(now, before) {
		t.Errorf("within the grace period %d objects became %d: %+v", len(before), len(now), r)
	}
	mem.Age(2 * time.Hour)
	dry, err := builder.Collect(t.Context(), mem, builder.CollectOptions{Retain: o.policy(1), Grace: time.Hour, Repack: 0.5, DryRun: true})
	must(t, err)
	if now := stored(t, mem); !maps.Equal(now, before) {
		t.Error("a dry run changed something")
	}
	r, err = o.collect(t.Context(), 1)
	must(t, err)
	if r.Repacked.Objects == 0 || r.Repacked != dry.Repacked || r.Classes["blob"].Deleted != dry.Classes["blob"].Deleted ||
		r.Classes["blob"].Deleted.Objects == 0 || r.Classes["locator"].Deleted.Objects == 0 {
		t.Errorf("did %+v, a dry run said %+v", r, dry)
	}
	o.whole(t, "after the collection", 1)
	if err := builder.Hold(t.Context(), mem, all[1].Root); !namespace.IsKind(err, namespace.NotExist) || namespace.HintOf(err) == "" {
		t.Errorf("a dropped version is held: %v", err)
	}
	if err := builder.Hold(t.Context(), mem, all[3].Root); err != nil {
		t.Errorf("the version that a channel has: %v", err)
	}
	mem.Age(2 * time.Hour)
	r, err = o.collect(t.Context(), 3)
	must(t, err)
	if r.Classes["pack"].Deleted.Objects == 0 || len(r.Missing) == 0 {
		t.Errorf("the second collection did %+v", r)
	}
	o.whole(t, "after the second collection", 1)
	if got := tree(t, mem, all[5].Root); len(got) != len(last) || string(got["d0/f0"].content) != string(last["d0/f0"].content) {
		t.Error("the newest version is not what it was")
	}
	var was, is int64
	for _, n := range before {
		was += n
	}
	for _, n := range stored(t, mem) {
		is += n
	}
	if is > was*7/10 {
		t.Errorf("%d bytes became %d", was, is)
	}
	if r, err = o.collect(t.Context(), 1); err != nil || r.Classes["pack"].Deleted.Objects+r.Classes["blob"].Deleted.Objects+r.Repacked.Objects > 0 {
		t.Errorf("with nothing to do: %+v, %v", r, err)
	}
	dir := t.TempDir()
	write(t, dir, "d0/f0", storetest.Bytes(0, 3000))
	if r, err := o.grow(t.Context(), "again", dir); err != nil || r.NewChunks != 0 {
		t.Errorf("the index lost a chunk: %+v, %v", r, err)
	}
}

// Whatever the policy retains must be readable: what is not is no reason to delete what it needs.
func TestCollectRefusesDamage(t *testing.T) {
	for _, class := range []namespace.Class{namespace.Blob, namespace.Locator} {
		mem := storetest.NewMem()
		o := open(t, mem)
		all := o.versions(t, t.TempDir(), 4)
		mem.Age(2 * time.Hour)
		must(t, mem.Delete(t.Context(), namespace.Key{Class: class, Digest: all[3].Root}))
		before := stored(t, mem)
		_, err := o.collect(t.Context(), 1)
		wantKind(t, class.String(), err, namespace.Corrupt, all[3].Root.String())
		if now := stored(t, mem); !maps.Equal(now, before) {
			t.Error("it deleted something all the same")
		}
	}
}

// mutates reports whether a call changes an origin.
func mutates(c storetest.Call) bool {
	switch c.Op {
	case "Put", "Delete", "DeleteOlder", "Renew", "SwapRef":
		return true
	}
	return false
}

// A collection may die before any change that it makes.
func TestCollectCrashAtEveryChange(t *testing.T) {
	ripe := storetest.NewMem()
	open(t, ripe).versions(t, t.TempDir(), 6)
	ripe.Age(2 * time.Hour)
	down := namespace.E(namespace.Unavailable, "change", "", nil)
	for n, done := 1, false; !done; n++ {
		mem := ripe.Clone()
		var mu sync.Mutex
		seen := 0
		crash := &storetest.Faulty{Origin: mem, Plan: func(c storetest.Call) storetest.Fault {
			mu.Lock()
			defer mu.Unlock()
			if mutates(c) {
				seen++
			}
			if seen >= n { // nothing is done by a dead process
				return storetest.Fault{Err: down}
			}
			return storetest.Fault{}
		}}
		if _, err := open(t, mem).with(crash).collect(t.Context(), 1); err == nil {
			done = true
			if n < 20 {
				t.Errorf("only %d changes", n)
			}
		}
		what := fmt.Sprintf("after a crash at change %d", n)
		o := open(t, mem)
		o.whole(t, what, 1)
		mem.Age(2 * time.Hour)
		for range 2 { // the second one takes away what the first one emptied
			_, err := o.collect(t.Context(), 1)
			must(t, err)
			mem.Age(2 * time.Hour)
		}
		o.whole(t, what+" and another collection", 1)
	}
}

// with returns the same origin behind another store.
func (o *orchard) with(store namespace.Origin) *orchard {
	p := *o.Publisher
	p.Reader, p.Writer, p.Blobs = store, store, blobs{store}
	return &orchard{&p, store}
}

// beside calls what at the nth call of a store, once.
func beside(mem *storetest.Mem, n int, what func()) (*storetest.Faulty, *bool) {
	var mu sync.Mutex
	calls, did := 0, new(bool)
	return &storetest.Faulty{Origin: mem, Plan: func(storetest.Call) storetest.Fault {
		mu.Lock()
		calls++
		now := calls == n
		mu.Unlock()
		if now {
			*did = true
			what()
		}
		return storetest.Fault{}
	}}, did
}

// Publishing what is about to be collected: an old version's content is imported again, or the old
// version composed anew. A whole collection comes between any two of the publisher's calls, and a
// whole publication between any two of the collection's. What is published in the end is whole.
func TestCollectBesidePublishing(t *testing.T) {
	ripe, dir, old := storetest.NewMem(), t.TempDir(), t.TempDir()
	grown := open(t, ripe)
	for i := range 24 {
		write(t, old, fmt.Sprintf("d%d/f%d", i%3, i), storetest.Bytes(uint64(i), 3000))
	}
	all := grown.versions(t, dir, 6)
	again, err := grown.grow(t.Context(), "old", old)
	must(t, err)
	_, err = grown.grow(t.Context(), "old", dir)
	must(t, err)
	ripe.Age(2 * time.Hour)
	for name, publish := range map[string]func(ctx context.Context, o *orchard) error{
		"import": func(ctx context.Context, o *orchard) error { _, err := o.grow(ctx, "new", old); return err },
		"compose": func(ctx context.Context, o *orchard) error {
			if err := o.compose(ctx, "new", again.Root); !namespace.IsKind(err, namespace.NotExist) {
				return err
			}
			return o.compose(ctx, "new", all[5].Root)
		},
	} {
		t.Run(name+" outside", func(t *testing.T) {
			for n, done := 1, false; !done; n++ {
				mem := ripe.Clone()
				store, did := beside(mem, n, func() {
					if _, err := open(t, mem).collect(t.Context(), 1); err != nil {
						t.Error(err)
					}
				})
				must(t, publish(t.Context(), open(t, mem).with(store)))
				done = !*did
				open(t, mem).whole(t, fmt.Sprintf("with a collection at call %d", n), 1)
			}
		})
		t.Run(name+" inside", func(t *testing.T) {
			for n, done := 1, false; !done; n++ {
				mem := ripe.Clone()
				store, did := beside(mem, n, func() {
					if err := publish(t.Context(), open(t, mem)); err != nil {
						t.Error(err)
					}
				})
				_, err := open(t, mem).with(store).collect(t.Context(), 1)
				must(t, err)
				done = !*did
				open(t, mem).whole(t, fmt.Sprintf("published at call %d of the collection", n), 1)
			}
		})
	}
}

// An import that reads for longer than the grace period is told that what it relies on is gone.
func TestCollectDuringALongImport(t *testing.T) {
	ripe, dir, old := storetest.NewMem(), t.TempDir(), t.TempDir()
	for i := range 24 {
		write(t, old, fmt.Sprintf("d%d/f%d", i%3, i), storetest.Bytes(uint64(i), 3000))
	}
	open(t, ripe).versions(t, dir, 3)
	write(t, old, "new", []byte("new"))
	told := 0
	for n, done := 1, false; !done; n++ {
		mem := ripe.Clone()
		store, did := beside(mem, n, func() {
			mem.Age(2 * time.Hour)
			if _, err := open(t, mem).collect(t.Context(), 1); err != nil {
				t.Error(err)
			}
		})
		_, err := open(t, mem).with(store).grow(t.Context(), "new", old)
		sealing := slices.IndexFunc(store.Log(), func(c storetest.Call) bool { return c.Key.Class == namespace.Locator })
		done = !*did || sealing >= 0 && n > sealing
		switch {
		case done:
		case err == nil:
			open(t, mem).whole(t, fmt.Sprintf("with two hours and a collection at call %d", n), 1)
		default:
			wantKind(t, fmt.Sprintf("with two hours and a collection at call %d", n), err, namespace.Unavailable, "collected")
			told++
		}
	}
	if told == 0 {
		t.Error("no import was hurt: the test looks at nothing")
	}
}

// A reader with the locators from before a repacking reads on until the grace period has passed.
func TestCollectLeavesOldPacksToReaders(t *testing.T) {
	mem := storetest.NewMem()
	o := open(t, mem)
	root := o.versions(t, t.TempDir(), 6)[5].Root
	stored, err := storetest.ReadAll(t.Context(), mem, namespace.Key{Class: namespace.Locator, Digest: root}, 0, -1)
	must(t, err)
	old, err := object.OpenLocator(stored)
	must(t, err)
	there := func() (n int) {
		for _, d := range old.Packs() {
			if _, err := mem.Stat(t.Context(), namespace.Key{Class: namespace.Pack, Digest: d}); err == nil {
				n++
			}
		}
		return n
	}
	for run := range 3 {
		if run != 1 {
			mem.Age(2 * time.Hour)
		}
		r, err := o.collect(t.Context(), 1)
		must(t, err)
		if run == 0 && r.Repacked.Objects == 0 || run < 2 != (there() == len(old.Packs())) {
			t.Errorf("run %d: %d of %d old packs are there, %d were repacked", run, there(), len(old.Packs()), r.Repacked.Objects)
		}
	}
}

// A record that learns to name another object must be known to Policy.Retain, or the object is
// collected and is not mirrored.
func TestRetainKnowsEveryReference(t *testing.T) {
	known := map[reflect.Type][]string{
		reflect.TypeFor[namespace.TreeVersion]():      {"Root", "Packages"},
		reflect.TypeFor[namespace.NamespaceVersion](): {"Manifest"},
		reflect.TypeFor[namespace.Manifest]():         {"Root"},
		reflect.TypeFor[namespace.ManifestMount]():    {"Tree"},
		reflect.TypeFor[namespace.NamedVersion]():     {"Manifest"},
		reflect.TypeFor[namespace.Pointer]():          {"Manifest", "Offer", "Policy", "Prev"},
	}
	for typ, want := range known {
		var got []string
		for f := range typ.Fields() {
			if strings.Contains(f.Type.String(), "Digest") {
				got = append(got, f.Name)
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("%v names objects by %v: see that retain.go retains them, then list them here", typ, got)
		}
	}
}

func TestPolicy(t *testing.T) {
	mem := storetest.NewMem()
	o := open(t, mem)
	day := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	now := day
	o.Now = func() time.Time { return now }
	for i := range 10 {
		now = day.AddDate(0, 0, i)
		_, err := o.AddTree(t.Context(), "os", namespace.TreeVersion{Root: namespace.Digest{byte(i + 1)}})
		must(t, err)
	}
	for _, c := range []struct {
		p    builder.Policy
		want int
	}{
		{builder.Policy{}, 1}, {builder.Policy{Keep: 3}, 3}, {builder.Policy{Keep: 30}, 10}, {builder.Policy{All: true}, 10},
		{builder.Policy{Within: 37 * time.Hour}, 3}, // made on days 10 and 9; the one of day 8 was the newest until day 9
		{builder.Policy{Keep: 5, Within: 37 * time.Hour}, 5},
		{builder.Policy{All: true, Only: func(n namespace.RefName) bool { return n.Name == "other" }}, 0},
	} {
		c.p.Now = now.Add(12 * time.Hour)
		kept, err := c.p.Retain(t.Context(), o.Refs, mem)
		must(t, err)
		if len(kept.Trees) != c.want {
			t.Errorf("%+v keeps %d, want %d", c.p, len(kept.Trees), c.want)
		}
	}
}
