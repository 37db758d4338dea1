package storetest

import (
	"bytes"
	"context"
	"io"
	"slices"
	"sync"
	"testing"

	"coppice.dev/coppice/namespace"
)

// TestSource checks the reading half. open returns a fresh, empty origin to write to, and the
// source under test, which reads what is written there.
func TestSource(t *testing.T, open func(t *testing.T) (namespace.Origin, namespace.Source)) {
	t.Run("Ranges", func(t *testing.T) { testRanges(t, open) })
	t.Run("Missing", func(t *testing.T) { testMissing(t, open) })
	t.Run("Canceled", func(t *testing.T) { testCanceled(t, open) })
	t.Run("Parallel", func(t *testing.T) { testParallel(t, open) })
	t.Run("StopEarly", func(t *testing.T) { testStopEarly(t, open) })
	t.Run("LocatorChanges", func(t *testing.T) { testLocatorChanges(t, open) })
	t.Run("Refs", func(t *testing.T) { testReadRefs(t, open) })
}

type openSource = func(t *testing.T) (namespace.Origin, namespace.Source)

func testRanges(t *testing.T, open openSource) {
	ctx := t.Context()
	w, r := open(t)
	body := Bytes(1, 300_000)
	for _, c := range namespace.Classes() {
		k := key(c, body)
		if err := w.Put(ctx, k, body); err != nil {
			t.Fatal(err)
		}
		size := int64(len(body))
		for _, g := range []struct{ off, n int64 }{
			{0, -1}, {0, 1}, {0, size}, {0, size + 1}, {1, 2}, {size - 1, 1}, {size - 1, 100},
			{size / 2, -1}, {100_000, 100_000}, {7, 0}, {0, 0}, {size - 10, 1 << 40},
		} {
			end := size
			if g.n >= 0 {
				end = min(size, g.off+g.n)
			}
			got, err := ReadAll(ctx, r, k, g.off, g.n)
			wantBytes(t, k.String(), got, err, body[g.off:end])
		}
		for _, off := range []int64{size, size + 1, 1 << 50, -1} {
			_, err := ReadAll(ctx, r, k, off, 10)
			wantKind(t, "a range past the end or before the beginning", err, namespace.Invalid)
			_, err = ReadAll(ctx, r, k, off, -1)
			wantKind(t, "an open range past the end or before the beginning", err, namespace.Invalid)
		}
	}
}

func testMissing(t *testing.T, open openSource) {
	w, r := open(t)
	b := []byte("here")
	if err := w.Put(t.Context(), key(namespace.Blob, b), b); err != nil {
		t.Fatal(err)
	}
	// A name in one class says nothing about another class.
	for _, k := range []namespace.Key{key(namespace.Pack, b), key(namespace.Locator, b), key(namespace.Blob, []byte("no"))} {
		for _, g := range [][2]int64{{0, -1}, {3, 5}, {0, 0}} {
			_, err := ReadAll(t.Context(), r, k, g[0], g[1])
			wantKind(t, "missing "+k.String(), err, namespace.NotExist)
		}
	}
	for _, n := range []namespace.RefName{{Kind: namespace.ChannelRef, Name: "no"}, {Kind: namespace.TreeRef, Name: "a/b/c"}} {
		_, err := r.Ref(t.Context(), n)
		wantKind(t, "missing "+n.String(), err, namespace.NotExist)
	}
	for _, n := range []namespace.RefName{{Kind: "nonsense", Name: "x"}, {Kind: namespace.TreeRef, Name: "../../etc/passwd"},
		{Kind: namespace.TreeRef, Name: ""}, {Kind: namespace.TreeRef, Name: "/x"}, {Kind: namespace.TreeRef, Name: "a//b"}} {
		_, err := r.Ref(t.Context(), n)
		wantKind(t, "a name that is none: "+n.String(), err, namespace.Invalid)
	}
}

func testCanceled(t *testing.T, open openSource) {
	w, r := open(t)
	b := Bytes(2, 1000)
	k := key(namespace.Pack, b)
	if err := w.Put(t.Context(), k, b); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := ReadAll(ctx, r, k, 0, -1)
	wantKind(t, "get", err, namespace.Canceled)
	_, err = r.Ref(ctx, namespace.RefName{Kind: namespace.TreeRef, Name: "x"})
	wantKind(t, "ref", err, namespace.Canceled)
	_, err = r.Refs(ctx, namespace.TreeRef)
	wantKind(t, "refs", err, namespace.Canceled)
}

func testParallel(t *testing.T, open openSource) {
	w, r := open(t)
	body := Bytes(3, 1<<20)
	k := key(namespace.Pack, body)
	if err := w.Put(t.Context(), k, body); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			for j := range 8 {
				off := int64((i*8 + j) * 8192)
				got, err := ReadAll(t.Context(), r, k, off, 8192)
				wantBytes(t, "parallel get", got, err, body[off:off+8192])
			}
		})
	}
	wg.Wait()
}

func testStopEarly(t *testing.T, open openSource) {
	w, r := open(t)
	body := Bytes(4, 4<<20)
	k := key(namespace.Pack, body)
	if err := w.Put(t.Context(), k, body); err != nil {
		t.Fatal(err)
	}
	for range 20 { // more than any connection pool's patience, if closing leaked
		rc, err := r.Get(t.Context(), k, 0, -1)
		if err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 100)
		if _, err := io.ReadFull(rc, buf); err != nil || !bytes.Equal(buf, body[:100]) {
			t.Fatalf("first bytes: %v", err)
		}
		if err := rc.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func testLocatorChanges(t *testing.T, open openSource) {
	w, r := open(t)
	k := namespace.Key{Class: namespace.Locator, Digest: namespace.Sum([]byte("catalog"))}
	for i := range 5 {
		b := Bytes(uint64(i), 100+i%2) // sizes repeat: a validator of the size alone is caught
		if err := w.Put(t.Context(), k, b); err != nil {
			t.Fatal(err)
		}
		got, err := ReadAll(t.Context(), r, k, 0, -1)
		wantBytes(t, "locator", got, err, b)
	}
}

func testReadRefs(t *testing.T, open openSource) {
	ctx := t.Context()
	w, r := open(t)
	for _, kind := range []string{namespace.TreeRef, namespace.NamespaceRef, namespace.ChannelRef, namespace.ProfileRef, namespace.TrustRef} {
		names, err := r.Refs(ctx, kind)
		if err != nil || len(names) != 0 {
			t.Errorf("refs of an empty origin: %v, %v", names, err)
		}
	}
	want := []string{"a", "b/c", "b/d/e", "b+x", "z.json"}
	slices.Sort(want)
	for i, name := range want {
		n := namespace.RefName{Kind: namespace.ChannelRef, Name: name}
		if err := w.SwapRef(ctx, n, nil, Bytes(uint64(i), 10+i)); err != nil {
			t.Fatal(err)
		}
	}
	for i, name := range want {
		n := namespace.RefName{Kind: namespace.ChannelRef, Name: name}
		got, err := r.Ref(ctx, n)
		wantBytes(t, n.String(), got, err, Bytes(uint64(i), 10+i))
		next := Bytes(uint64(i+100), 10+i)
		if err := w.SwapRef(ctx, n, got, next); err != nil {
			t.Fatal(err)
		}
		again, err := r.Ref(ctx, n)
		wantBytes(t, n.String()+" after a swap", again, err, next)
	}
	got, err := r.Refs(ctx, namespace.ChannelRef)
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("refs: %q, %v, want %q", got, err, want)
	}
	// A directory of refs is not a ref.
	_, err = r.Ref(ctx, namespace.RefName{Kind: namespace.ChannelRef, Name: "b"})
	wantKind(t, "ref b", err, namespace.NotExist)
	if got, err := r.Refs(ctx, namespace.TreeRef); err != nil || len(got) != 0 {
		t.Errorf("refs of another kind: %q, %v", got, err)
	}
}
