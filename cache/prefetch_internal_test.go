package cache

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/object"
	"coppice.dev/coppice/namespace/storetest"
)

// layout returns the layout of chunks as the locators have them.
func (f *fixture) layout(t testing.TB, refs []namespace.ChunkRef) *object.Layout {
	t.Helper()
	l := &object.Layout{Root: f.root, Catalogs: []namespace.Digest{f.root}}
	locators := map[namespace.Digest]*object.Locator{}
	for _, ref := range refs {
		if locators[ref.Catalog] == nil {
			b, err := storetest.ReadAll(t.Context(), f.origin.Origin, namespace.Key{Class: namespace.Locator, Digest: ref.Catalog}, 0, -1)
			if err != nil {
				t.Fatal(err)
			}
			if locators[ref.Catalog], err = object.OpenLocator(b); err != nil {
				t.Fatal(err)
			}
			l.Catalogs = append(l.Catalogs, ref.Catalog)
		}
		l.Chunks = append(l.Chunks, object.LayoutChunk{Digest: ref.Digest, Len: ref.Size, Place: locators[ref.Catalog].Place(int(ref.Index))})
	}
	return l
}

// packBytes returns how many requests for packs there were, and what they asked for.
func (f *fixture) packBytes() (n int, sum int64) {
	for _, c := range f.origin.Log() {
		if c.Op == "Get" && c.Key.Class == namespace.Pack {
			n++
			sum += c.Len
		}
	}
	return n, sum
}

func TestPrefetch(t *testing.T) {
	f := newFixture(t, 3, 100, 40_000, layoutOf{4, 10, 0})
	c := openTest(t, Options{Dir: t.TempDir()})
	want := f.refs[100:200]
	l := f.layout(t, want)
	_, stored := l.Frames()
	if err := c.Reader(f.origin).Prefetch(t.Context(), l); err != nil {
		t.Fatal(err)
	}
	// 2 MB lie in three packs: whole pieces of each, and nothing else.
	if n, sum := f.packBytes(); sum != int64(stored) || n > 3+int(stored)/pieceBytes+3 {
		t.Errorf("%d requests for %d bytes, want %d", n, sum, stored)
	}
	if f.origin.Calls("Get") > 2+3+int(stored)/pieceBytes+3 {
		t.Errorf("%d requests: locators are not needed", f.origin.Calls("Get"))
	}
	offline := c.Reader(away{})
	for _, ref := range want {
		if err := f.read(t.Context(), offline, ref); err != nil {
			t.Fatal(err)
		}
	}
	if len(c.Waits()) != 0 {
		t.Errorf("reads of what was prefetched count as misses: %v", c.Waits())
	}
	f.origin.Reset()
	if err := c.Reader(f.origin).Prefetch(t.Context(), l); err != nil || f.origin.Calls("") != 0 {
		t.Errorf("what is here was asked for again: %v", err)
	}
	// One frame is missing again: it alone is fetched.
	e, _ := c.index.get(want[50].Digest)
	c.index.drop(want[50].Digest, e)
	if err := c.Reader(f.origin).Prefetch(t.Context(), l); err != nil {
		t.Fatal(err)
	}
	if n, sum := f.packBytes(); n != 1 || sum != int64(l.Chunks[50].Place.FrameLen) {
		t.Errorf("%d requests for %d bytes of one frame", n, sum)
	}
}

// TestPrefetchPromotes: who waits for a chunk at the end of a prefetch that stands still gets it, and
// nothing is fetched twice.
func TestPrefetchPromotes(t *testing.T) {
	f := newFixture(t, 1, 400, 40_000, layoutOf{4, 1000, 0})
	c := openTest(t, Options{Dir: t.TempDir()})
	r := c.Reader(f.origin)
	l := f.layout(t, f.refs)
	last := f.refs[len(f.refs)-1]
	at := l.Chunks[len(l.Chunks)-1].Place
	standstill := make(chan struct{})
	f.origin.SetPlan(func(c storetest.Call) storetest.Fault {
		if c.Key.Class == namespace.Pack && c.Off != at.FrameOff {
			return storetest.Fault{Gate: standstill}
		}
		return storetest.Fault{}
	})
	done := make(chan error, 1)
	go func() { done <- r.Prefetch(t.Context(), l) }()
	eventually(t, "the prefetch begins", func() bool { n, _ := f.packBytes(); return n == piecesAtOnce })
	if err := f.read(t.Context(), r, last); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-done:
		t.Fatalf("the prefetch ended before: %v", err)
	default:
	}
	close(standstill)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	_, stored := l.Frames()
	if _, sum := f.packBytes(); sum != int64(stored) {
		t.Errorf("%d bytes were asked for, %d there are", sum, stored)
	}
	if len(r.expected.in) != 0 {
		t.Errorf("%d chunks are still expected", len(r.expected.in))
	}
}

// TestPrefetchDoubts: a layout is a hint. One that is out of date or wrong costs time and no more.
func TestPrefetchDoubts(t *testing.T) {
	f := newFixture(t, 1, 60, 40_000, layoutOf{4, 100, 0})
	for name, test := range map[string]struct {
		change func(l *object.Layout)
		plan   func(storetest.Call) storetest.Fault
		want   namespace.Kind
	}{
		"a pack that is gone": {change: func(l *object.Layout) { l.Chunks[9].Place.Pack = namespace.Sum(nil) }, want: namespace.NotExist},
		"another digest":      {change: func(l *object.Layout) { l.Chunks[9].Digest = namespace.Sum(nil) }, want: namespace.Corrupt},
		"another place":       {change: func(l *object.Layout) { l.Chunks[9].Place.Off++ }, want: namespace.Corrupt},
		"outside its pack":    {change: func(l *object.Layout) { l.Chunks[9].Place.FrameOff = 60 << 20 }, want: namespace.Invalid},
		"a catalog is gone":   {change: func(l *object.Layout) { l.Catalogs[1] = namespace.Sum(nil) }, want: namespace.NotExist},
		"flipped on the way": {plan: func(c storetest.Call) storetest.Fault {
			if c.Key.Class == namespace.Pack {
				return storetest.Fault{Flip: 5000}
			}
			return storetest.Fault{}
		}, want: namespace.Corrupt},
		"cut off": {plan: func(c storetest.Call) storetest.Fault {
			if c.Key.Class == namespace.Pack {
				return storetest.Fault{Cut: 5000}
			}
			return storetest.Fault{}
		}, want: namespace.Unavailable},
	} {
		c := openTest(t, Options{Dir: t.TempDir()})
		r := c.Reader(f.origin)
		l := f.layout(t, f.refs)
		if test.change != nil {
			test.change(l)
		}
		f.origin.SetPlan(test.plan)
		if err := r.Prefetch(t.Context(), l); !namespace.IsKind(err, test.want) {
			t.Errorf("%s: %v, want %v", name, err, test.want)
		}
		f.origin.SetPlan(nil)
		eventually(t, "what was under way ends", func() bool {
			c.flights.mu.Lock()
			defer c.flights.mu.Unlock()
			return len(c.flights.byKey) == 0
		})
		fresh := c.Reader(f.origin) // the link was left alone for a moment
		f.readAll(t, fresh)
	}
}

func TestPrefetchProfile(t *testing.T) {
	f := newFixture(t, 4, 50, 20_000, layoutOf{4, 10, 0})
	c := openTest(t, Options{Dir: t.TempDir()})
	p := &namespace.Profile{Format: 1, Name: "p", Entries: []namespace.ProfileEntry{{Path: "gone"}}}
	for i := range 20 {
		p.Entries = append(p.Entries, namespace.ProfileEntry{Path: namespace.PathText(fmt.Sprintf("d00002/f%05d", 2*i))})
	}
	if err := c.Reader(f.origin).PrefetchProfile(t.Context(), f.root, p); err != nil {
		t.Fatal(err)
	}
	offline := c.Reader(away{})
	for i := range 20 {
		if err := f.read(t.Context(), offline, f.refs[100+2*i]); err != nil {
			t.Fatal(err)
		}
	}
	if c.Reader(f.origin).Whole(f.root) {
		t.Error("what is there in part is whole")
	}
	if err := c.Reader(f.origin).Hydrate(t.Context(), f.root, nil); err != nil || !c.Reader(away{}).Whole(f.root) {
		t.Errorf("what was hydrated is not whole: %v", err)
	}
}

// TestPrefetchProfileAlone: only the catalogs on the way are fetched.
func TestPrefetchProfileAlone(t *testing.T) {
	f := newFixture(t, 4, 50, 20_000, layoutOf{4, 10, 0})
	c := openTest(t, Options{Dir: t.TempDir()})
	p := &namespace.Profile{Format: 1, Name: "p", Entries: []namespace.ProfileEntry{{Path: "d00002/f00001"}}}
	if err := c.Reader(f.origin).PrefetchProfile(t.Context(), f.root, p); err != nil {
		t.Fatal(err)
	}
	if _, err := c.objects.open(f.refs[0].Catalog); !namespace.IsKind(err, namespace.NotExist) {
		t.Errorf("a catalog that the profile does not name: %v", err)
	}
}

// TestPrefetchBound: a guess does not fill the cache.
func TestPrefetchBound(t *testing.T) {
	frames := make([]planned, 10)
	for i := range frames {
		frames[i].Place = object.Place{Pack: namespace.Sum(nil), FrameOff: int64(i * 200_000), FrameLen: 200_000}
	}
	pieces := cutPieces(frames, 900_000)
	var got []int
	for _, p := range pieces {
		got = append(got, len(p.frames))
	}
	if !slices.Equal(got, []int{2, 2}) {
		t.Errorf("pieces of %v frames", got)
	}
	frames[1].Pack = namespace.Sum([]byte("other"))
	frames[3].FrameOff += gapMax + 1
	if pieces = cutPieces(frames[:4], 1<<40); len(pieces) != 4 {
		t.Errorf("%d pieces of 4 frames that do not follow each other", len(pieces))
	}
}

func TestUrgency(t *testing.T) {
	var u urgency
	if u.yield(t.Context()) != 0 {
		t.Error("a pause for nobody")
	}
	first, second := u.begin(), u.begin()
	over := make(chan time.Duration)
	go func() { over <- u.yield(t.Context()) }()
	first()
	first()
	select {
	case <-over:
		t.Fatal("went on while somebody waited")
	case <-time.After(20 * time.Millisecond):
	}
	second()
	if d := <-over; d == 0 || d >= yieldMax {
		t.Errorf("a pause of %v", d)
	}
	defer u.begin()()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if d := u.yield(ctx); d >= yieldMax {
		t.Errorf("gave up after %v", d)
	}
	if d := u.yield(t.Context()); d < yieldMax {
		t.Errorf("starves no longer than %v, waited %v", yieldMax, d)
	}
}

func TestQuiet(t *testing.T) {
	var r Reader
	start := time.Now()
	r.Quiet(t.Context())
	if took := time.Since(start); took > quietFor/2 {
		t.Errorf("nobody ever waited: %v", took)
	}
	done := r.urgent.begin()
	go func() {
		<-time.After(20 * time.Millisecond)
		done()
	}()
	start = time.Now()
	r.Quiet(t.Context())
	if took := time.Since(start); took < quietFor || took > quietMax {
		t.Errorf("somebody waited: %v", took)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	defer r.urgent.begin()()
	r.Quiet(ctx) // returns
}

func TestPaceWindow(t *testing.T) {
	for _, test := range []struct {
		rtt  time.Duration
		rate float64
		want int64
	}{
		{0, 0, windowMin}, {time.Millisecond, 0, windowMin},
		{100 * time.Microsecond, 1e9, 150_000}, {20 * time.Millisecond, 12.5e6, 375_000},
		{80 * time.Millisecond, 2.5e6, 300_000}, {time.Second, 1e5, 150_000}, {50 * time.Millisecond, 1e4, windowLeast},
		{time.Second, 1e9, windowMin},
	} {
		var p pace
		for range 3 {
			p.note(test.rtt, test.rate)
		}
		if got := p.window(); got != test.want {
			t.Errorf("%v, %.0f B/s: %d, want %d", test.rtt, test.rate, got, test.want)
		}
	}
}
