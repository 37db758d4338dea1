package cache

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/storetest"
)

// pin holds everything, or what is given, of a fixture.
func (f *fixture) pin(t testing.TB, c *Cache, paths ...string) Hold {
	t.Helper()
	h, err := c.ChangeHold("pin-test", func(h *Hold) {
		*h = Hold{ID: "pin-test", Kind: Pinned, Target: "desk@1", Origin: "test", Select: Selection{All: len(paths) == 0, Paths: paths}, Created: time.Unix(1, 0)}
		h.Activate(Held{Version: "desk@1", Manifest: f.manifest(t), Root: f.root})
	})
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// manifest puts something that stands for a manifest at the origin.
func (f *fixture) manifest(t testing.TB) namespace.Digest { return f.putBlob(t, []byte("manifest")) }

// shrink gives a cache a quota that is less than Open takes, so that a test fills it quickly.
func shrink(c *Cache) {
	c.quota.Store(smallQuota)
	c.segments.setGrain(grainOf(smallQuota))
}

const smallQuota = 8 << 20

func (f *fixture) cut() {
	f.origin.SetPlan(func(storetest.Call) storetest.Fault {
		return storetest.Fault{Err: namespace.E(namespace.Unavailable, "plan", "", errors.New("cut"))}
	})
}

// A pinned tree survives a flood of others that the quota has no room for, and the loss of the index.
func TestPinnedIsNotEvicted(t *testing.T) {
	f := newFixture(t, 3, 40, 25_000, layoutOf{1, 20, 0}) // 3 MB, half of it compresses
	flood := newFixtureFrom(t, 1000, 5, 60, 70_000, layoutOf{1, 20, 0})
	dir := t.TempDir()
	c := openTest(t, Options{Dir: dir})
	shrink(c)
	f.pin(t, c)
	r, other := c.Reader(f.origin), c.Reader(flood.origin)
	if _, err := r.Blob(t.Context(), f.manifest(t), 100); err != nil {
		t.Fatal(err)
	}
	if err := r.HydrateMetadata(t.Context(), f.root); err != nil {
		t.Fatal(err)
	}
	// Pinned and other chunks come mixed, so that no segment has only one kind.
	for i, ref := range flood.refs {
		if i%3 == 0 && i/3 < len(f.refs) {
			if err := f.read(t.Context(), r, f.refs[i/3]); err != nil {
				t.Fatal(err)
			}
		}
		if err := flood.read(t.Context(), other, ref); err != nil {
			t.Fatal(err)
		}
		if s := c.Stats(); s.UsedBytes > smallQuota {
			t.Fatalf("%d bytes on disk, the quota is %d", s.UsedBytes, smallQuota)
		}
	}
	if s := c.Stats(); s.Evictions == 0 || s.Moved == 0 || s.Corrupt != 0 || s.Unkept != 0 {
		t.Errorf("%+v", s)
	}
	f.readAll(t, r)
	flood.readAll(t, other)
	f.cut()
	f.readAll(t, r)
	c.crash()
	if err := os.Remove(filepath.Join(dir, "index.db")); err != nil {
		t.Fatal(err)
	}
	c = openTest(t, Options{Dir: dir})
	f.readAll(t, c.Reader(f.origin))
	for _, h := range c.Holds() {
		all, err := c.Ready(t.Context(), h, true)
		if err != nil || len(all) != 1 || !all[0].Complete || all[0].Proof.Chunks != 120 {
			t.Errorf("%+v, %v", all, err)
		}
	}
}

// What does not fit is said before anything is evicted.
func TestPinTooMuch(t *testing.T) {
	f := newFixture(t, 4, 60, 75_000, layoutOf{1, 20, 0}) // 18 MB, 9 stored
	c := openTest(t, Options{Dir: t.TempDir()})
	shrink(c)
	here := newFixtureFrom(t, 1000, 1, 40, 75_000, layoutOf{1, 20, 0})
	here.readAll(t, c.Reader(here.origin))
	h := f.pin(t, c)
	r := c.Reader(f.origin)
	_, err := r.Fill(t.Context(), f.root, FillOptions{Select: h.Select})
	if !namespace.IsKind(err, namespace.Limit) || !strings.Contains(err.Error(), "needs 8.") || !strings.Contains(err.Error(), "the quota of 8.0 MiB leaves ") ||
		!strings.Contains(namespace.HintOf(err), "--quota") {
		t.Errorf("%v, hint %q", err, namespace.HintOf(err))
	}
	if s := c.Stats(); s.Evictions != 0 {
		t.Errorf("evicted all the same: %+v", s)
	}
	here.cut()
	here.readAll(t, c.Reader(here.origin))
	all, err := c.Ready(t.Context(), h, false)
	if err != nil || all[0].Complete || all[0].MissingBytes != 18_000_000 || all[0].FetchBytes > 11_000_000 {
		t.Errorf("%+v, %v", all, err)
	}
	c.quota.Store(32 << 20)
	p, err := r.Fill(t.Context(), f.root, FillOptions{Select: h.Select})
	if err != nil || p.Chunks != 240 || p.Bytes != 18_000_000 {
		t.Fatalf("with a larger quota: %+v, %v", p, err)
	}
	// A quota smaller than the pinned set: nothing breaks, nothing pinned goes, other reads pass through.
	shrink(c)
	flood := newFixtureFrom(t, 2000, 1, 60, 75_000, layoutOf{1, 20, 0})
	flood.readAll(t, c.Reader(flood.origin))
	f.cut()
	f.readAll(t, r)
	if s := c.Stats(); !s.ReadThrough || s.Unkept == 0 || s.QuotaBytes != smallQuota {
		t.Errorf("%+v", s)
	}
}

// Only what a selection means is fetched and kept.
func TestFillSelection(t *testing.T) {
	f := newFixture(t, 3, 50, 5000, layoutOf{5, 4, 0})
	c := openTest(t, Options{Dir: t.TempDir()})
	h := f.pin(t, c, "d00001/f0000[0-4]", "/d00002/f00049")
	r := c.Reader(f.origin)
	var done, total int64
	p, err := r.Fill(t.Context(), f.root, FillOptions{Select: h.Select, Progress: func(d, of int64) { done, total = d, of }})
	if err != nil || p.Chunks != 6 || p.Bytes != 30000 || done != total || total != 30000 {
		t.Errorf("%+v, %v, progress %d of %d", p, err, done, total)
	}
	packs := 0
	for _, call := range f.origin.Log() {
		if call.Key.Class == namespace.Pack {
			packs++
		}
	}
	if packs != 2 {
		t.Errorf("%d requests for two frames", packs)
	}
	all, err := c.Ready(t.Context(), h, false)
	if err != nil || all[0].Complete || all[0].MissingCatalogs != 1 {
		t.Errorf("without its manifest: %+v, %v", all, err)
	}
	if _, err := r.Blob(t.Context(), f.manifest(t), 100); err != nil {
		t.Fatal(err)
	}
	if all, err = c.Ready(t.Context(), h, true); err != nil || !all[0].Complete || all[0].Proof.Set != p.Set {
		t.Errorf("%+v, %v", all, err)
	}
}

// A hydration that was cut anywhere goes on where it was: nothing is fetched twice.
func TestFillResumes(t *testing.T) {
	f := newFixture(t, 2, 60, 30000, layoutOf{2, 10, 0})
	c := openTest(t, Options{Dir: t.TempDir()})
	r := c.Reader(f.origin)
	for cut := int64(100); ; cut *= 3 {
		f.origin.SetPlan(func(call storetest.Call) storetest.Fault {
			if call.Key.Class == namespace.Pack && call.Len > cut {
				return storetest.Fault{Cut: cut}
			}
			return storetest.Fault{}
		})
		before := c.Stats()
		_, err := r.Fill(t.Context(), f.root, FillOptions{Select: Selection{All: true}})
		if err == nil {
			break
		}
		if !namespace.IsKind(err, namespace.Unavailable) {
			t.Fatal(err)
		}
		if cut > 60000 && c.Stats().UsedBytes == before.UsedBytes {
			t.Errorf("cut at %d: nothing was kept", cut)
		}
		eventually(t, "the link's pause", func() bool { return r.link.check("") == nil })
	}
	if s := c.Stats(); s.Fetched > 2*60*30000 {
		t.Errorf("%d bytes fetched for %d", s.Fetched, 2*60*30000)
	}
}

// A rate is kept, and one that was measured is told.
func TestFillRate(t *testing.T) {
	f := newFixture(t, 1, 40, 100_000, layoutOf{1, 40, 0}) // 2 MB stored
	c := openTest(t, Options{Dir: t.TempDir()})
	r := c.Reader(f.origin)
	start := time.Now()
	if _, err := r.Fill(t.Context(), f.root, FillOptions{Select: Selection{All: true}, Rate: 4 << 20}); err != nil {
		t.Fatal(err)
	}
	// The bucket is full at first: 3 MiB pass at once, so 2 MB do. Once more, without it:
	g := newFixtureFrom(t, 1000, 1, 120, 100_000, layoutOf{1, 40, 0}) // 6 MB
	start = time.Now()
	if _, err := c.Reader(g.origin).Fill(t.Context(), g.root, FillOptions{Select: Selection{All: true}, Rate: 4 << 20}); err != nil {
		t.Fatal(err)
	}
	if d := time.Since(start); d < 500*time.Millisecond {
		t.Errorf("6 MB at 4 MiB/s in %v", d)
	}
	if r.Rate() <= 0 {
		t.Error("no rate was measured")
	}
}

// Generations move through their roles, and take along what was fetched of them.
func TestHoldRoles(t *testing.T) {
	var h Hold
	gen := func(n string) Held {
		return Held{Version: n, Manifest: namespace.Sum([]byte(n)), Root: namespace.Sum([]byte("root " + n))}
	}
	roles := func() (s string) {
		for _, g := range h.Generations {
			s += string(g.Role) + "=" + g.Version + " "
		}
		return s
	}
	h.Activate(gen("a@1"))
	h.Generations[0].Hydrated = Selection{All: true}
	for _, step := range []struct {
		do   func()
		want string
	}{
		{func() { h.Stage(gen("a@2")) }, "next=a@2 active=a@1 "},
		{func() { h.Stage(gen("a@3")) }, "next=a@3 active=a@1 "},
		{func() { h.Activate(gen("a@3")) }, "active=a@3 previous=a@1 "},
		{func() { h.Activate(gen("a@3")) }, "active=a@3 previous=a@1 "},
		{func() { h.Activate(gen("a@1")) }, "active=a@1 previous=a@3 "},
	} {
		if step.do(); roles() != step.want {
			t.Errorf("%s, want %s", roles(), step.want)
		}
	}
	if !h.Wanted(h.Generations[0]).All || h.Wanted(h.Generations[1]).All {
		t.Errorf("what was hydrated: %+v", h)
	}
}

// The quota that was set last counts from then on.
func TestSetQuota(t *testing.T) {
	dir := t.TempDir()
	c := openTest(t, Options{Dir: dir})
	if err := c.SetQuota(1); !namespace.IsKind(err, namespace.Invalid) {
		t.Errorf("a quota of a byte: %v", err)
	}
	if err := c.SetQuota(123 << 20); err != nil || c.Stats().QuotaBytes != 123<<20 {
		t.Errorf("%v, %+v", err, c.Stats())
	}
	c.crash()
	for file, want := range map[string]int64{"128974848\n": 123 << 20, "12": quotaDefault, "x": quotaDefault, "": quotaDefault} {
		if err := os.WriteFile(filepath.Join(dir, quotaName), []byte(file), 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := Open(Options{Dir: dir})
		if err != nil {
			t.Fatalf("%q: %v", file, err)
		}
		if got := c.Stats().QuotaBytes; got != want && got < quotaDefault {
			t.Errorf("%q: %d, want %d", file, got, want)
		}
		c.crash()
	}
}

// A quota that is lowered while one large segment holds everything is kept all the same.
func TestLowerQuota(t *testing.T) {
	f := newFixture(t, 3, 100, 70_000, layoutOf{1, 20, 0}) // 10 MB stored
	c := openTest(t, Options{Dir: t.TempDir()})
	r := c.Reader(f.origin)
	f.readAll(t, r)
	if n := c.Stats().Segments; n != 1 {
		t.Fatalf("%d segments", n)
	}
	shrink(c)
	g := newFixtureFrom(t, 1000, 1, 20, 70_000, layoutOf{1, 20, 0})
	g.readAll(t, c.Reader(g.origin))
	if s := c.Stats(); s.UsedBytes > smallQuota || s.Unkept != 0 || s.Evictions != 1 {
		t.Errorf("%+v", s)
	}
}

// A damaged pin does not keep the cache from opening, and is told of.
func TestHoldFiles(t *testing.T) {
	dir := t.TempDir()
	f := newFixture(t, 1, 1, 1000, layoutOf{1, 1, 0})
	c := openTest(t, Options{Dir: dir})
	h := f.pin(t, c)
	if _, err := c.ChangeHold("../x", func(h *Hold) { *h = Hold{ID: "../x", Kind: Pinned} }); !namespace.IsKind(err, namespace.Invalid) {
		t.Errorf("an id that is a path: %v", err)
	}
	c.crash()
	path := filepath.Join(dir, "holds", "pin-test.json")
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for what, b := range map[string]string{"cut": string(good[:len(good)/2]), "empty": "", "other id": strings.Replace(string(good), "pin-test", "pin-other", 1),
		"role": strings.Replace(string(good), `"active"`, `"king"`, 1)} {
		if err := os.WriteFile(path, []byte(b), 0o600); err != nil {
			t.Fatal(err)
		}
		c := openTest(t, Options{Dir: dir})
		if len(c.Holds()) != 0 || len(c.DamagedHolds()) != 1 {
			t.Errorf("%s: %v, %v", what, c.Holds(), c.DamagedHolds())
		}
		c.crash()
	}
	if err := os.WriteFile(path, good, 0o600); err != nil {
		t.Fatal(err)
	}
	c = openTest(t, Options{Dir: dir})
	if all := c.Holds(); len(all) != 1 || all[0].Generations[0].Root != h.Generations[0].Root {
		t.Errorf("put right: %+v", all)
	}
	if _, err := c.ChangeHold("pin-test", func(h *Hold) { h.ID = "" }); err != nil || len(c.Holds()) != 0 {
		t.Errorf("removed: %v", err)
	}
}

func FuzzHold(f *testing.F) {
	f.Add([]byte(`{"id":"pin-a","kind":"pin","target":"a@1","select":{"paths":["/usr/**"]},"generations":[{"role":"active","version":"a@1"}]}`))
	f.Add([]byte(`{"id":"../a","kind":"pin"}`))
	f.Add([]byte(`{"id":"a","kind":"mount","generations":[{"role":"active"},{"role":"active"}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var h Hold
		if decodeHold(b, &h) == nil && (h.ID == "" || strings.ContainsAny(h.ID, "/.")) {
			t.Errorf("accepted: %+v", h)
		}
	})
}
