package origin_test

import (
	"context"
	"testing"
	"time"

	"coppice.dev/coppice/namespace"
)

// Records come from the preferred source, but never older ones than were seen, nor ones that are not
// believed, as long as another has better ones.
func TestSourcesRefs(t *testing.T) {
	a, b, s, _, _ := two(t)
	n := namespace.RefName{Kind: namespace.ChannelRef, Name: "desk"}
	want := func(what, record string) {
		t.Helper()
		if got, err := s.Ref(t.Context(), n); err != nil || string(got) != record {
			t.Errorf("%s: %q, %v, want %q", what, got, err, record)
		}
	}
	a.set(t, n, "5 a")
	b.set(t, n, "7 b")
	want("the preferred one", "5 a")
	a.down()
	want("the other one", "7 b")
	b.down()
	a.up()
	if got, err := s.Ref(t.Context(), n); !namespace.IsKind(err, namespace.Unavailable) {
		t.Errorf("one lags, one is away: %q, %v", got, err)
	}
	b.up()
	a.up()
	found(t, s)
	want("the preferred one is behind", "7 b")
	if s.Status()[0].Lagging == 0 {
		t.Error("nobody was told that it lags")
	}
	a.set(t, n, "8 a")
	want("it caught up", "8 a")
	a.set(t, n, "forged")
	want("it lies, and the other lags", "7 b") // for the caller to refuse as stale
	wantState(t, s, "aside", "up")
	b.set(t, n, "9 b")
	want("the honest one", "9 b")

	fresh := openSources(t, quick(), a.srv.URL, b.srv.URL)
	fresh.Trust(believe)
	a.set(t, n, "6 a")
	fresh.Seen(n, []byte("9 b"))
	if got, err := fresh.Ref(t.Context(), n); err != nil || string(got) != "9 b" {
		t.Errorf("after a restart: %q, %v", got, err)
	}
}

// A waiter hears of a change wherever it is seen first, and goes back to the preferred source.
func TestSourcesWait(t *testing.T) {
	a, b, s, _, _ := two(t)
	n := namespace.RefName{Kind: namespace.ChannelRef, Name: "desk"}
	a.set(t, n, "1")
	b.set(t, n, "1")
	wait := func(have string, change func()) string {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		done := make(chan string, 1)
		go func() {
			got := []byte(have)
			var err error
			for string(got) == have && ctx.Err() == nil {
				if got, err = s.WaitRef(ctx, n, []byte(have)); err != nil {
					got = []byte(have) // callers loop
				}
			}
			done <- string(got)
		}()
		<-time.After(50 * time.Millisecond)
		change()
		return <-done
	}
	if got := wait("1", func() { a.set(t, n, "2") }); got != "2" {
		t.Errorf("a change at the preferred one: %q", got)
	}
	if err := s.Probe(t.Context()); err != nil {
		t.Fatal(err)
	}
	a.down()
	a.srv.CloseClientConnections()
	if got := wait("2", func() { b.set(t, n, "3") }); got != "3" {
		t.Errorf("a change at the other one: %q", got)
	}
	got := wait("3", func() {
		a.up()
		a.set(t, n, "4")
		found(t, s)
	})
	if got != "4" {
		t.Errorf("back at the preferred one: %q", got)
	}
	// One that lags is not waited at: it would answer at once, for ever.
	a.set(t, n, "2")
	b.set(t, n, "4")
	a.Reset()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	for ctx.Err() == nil {
		if got, err := s.WaitRef(ctx, n, []byte("4")); err == nil && string(got) != "4" {
			t.Fatalf("an old record: %q", got)
		}
	}
	if c := a.Calls(""); c > 20 {
		t.Errorf("the source that lags was asked %d times in a second", c)
	}
}
