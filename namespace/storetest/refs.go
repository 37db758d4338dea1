package storetest

import (
	"bytes"
	"context"
	"encoding/binary"
	"sync"
	"testing"
	"time"

	"coppice.dev/coppice/namespace"
)

// RefStore is what TestRefs checks.
type RefStore interface {
	namespace.RefReader
	namespace.RefWriter
}

// TestRefs checks compare-and-swap. open returns handles to one fresh, empty origin: the same
// value twice, or two that reach it as two processes would.
func TestRefs(t *testing.T, open func(t *testing.T) [2]RefStore) {
	t.Run("Swap", func(t *testing.T) { testSwap(t, open(t)) })
	t.Run("Beneath", func(t *testing.T) { testBeneath(t, open(t)) })
	t.Run("Race", func(t *testing.T) { testRace(t, open(t)) })
}

func testSwap(t *testing.T, s [2]RefStore) {
	ctx := t.Context()
	n := namespace.RefName{Kind: namespace.ChannelRef, Name: "desktop/stable"}
	wantKind(t, "swap of what is not there", s[0].SwapRef(ctx, n, []byte("x"), []byte("a")), namespace.Exist)
	if err := s[0].SwapRef(ctx, n, nil, []byte("a")); err != nil {
		t.Fatal(err)
	}
	wantKind(t, "create again", s[1].SwapRef(ctx, n, nil, []byte("b")), namespace.Exist)
	wantKind(t, "swap of something else", s[1].SwapRef(ctx, n, []byte("c"), []byte("b")), namespace.Exist)
	if err := s[1].SwapRef(ctx, n, []byte("a"), []byte("b")); err != nil {
		t.Fatal(err)
	}
	got, err := s[0].Ref(ctx, n)
	wantBytes(t, "ref", got, err, []byte("b"))
	got[0] = 'x' // owned by the caller
	got, err = s[0].Ref(ctx, n)
	wantBytes(t, "ref again", got, err, []byte("b"))

	big := make([]byte, namespace.RefBytesMax+1)
	wantKind(t, "swap to too much", s[0].SwapRef(ctx, n, []byte("b"), big), namespace.Limit)
	wantKind(t, "swap to nothing", s[0].SwapRef(ctx, n, []byte("b"), nil), namespace.Invalid)
	bad := namespace.RefName{Kind: namespace.ChannelRef, Name: "../x"}
	wantKind(t, "swap of a bad name", s[0].SwapRef(ctx, bad, nil, []byte("b")), namespace.Invalid)
	if err := s[0].SwapRef(ctx, n, []byte("b"), big[:namespace.RefBytesMax]); err != nil {
		t.Errorf("swap to the largest record: %v", err)
	}
	canceledCtx, cancel := context.WithCancel(ctx)
	cancel()
	wantKind(t, "canceled", s[0].SwapRef(canceledCtx, n, nil, []byte("b")), namespace.Canceled)
}

// testBeneath: a store may refuse a name beneath another ref's, but must not lose that ref.
func testBeneath(t *testing.T, s [2]RefStore) {
	ctx := t.Context()
	for _, names := range [][2]string{{"a", "a/b"}, {"c/d/e", "c/d"}} {
		first := namespace.RefName{Kind: namespace.TreeRef, Name: names[0]}
		second := namespace.RefName{Kind: namespace.TreeRef, Name: names[1]}
		if err := s[0].SwapRef(ctx, first, nil, []byte("1")); err != nil {
			t.Fatal(err)
		}
		if err := s[0].SwapRef(ctx, second, nil, []byte("2")); err != nil {
			wantKind(t, "beneath", err, namespace.Invalid)
		}
		got, err := s[1].Ref(ctx, first)
		wantBytes(t, first.String(), got, err, []byte("1"))
	}
}

// testRace has many writers count in one ref; no increment may be lost.
func testRace(t *testing.T, s [2]RefStore) {
	ctx := t.Context()
	n := namespace.RefName{Kind: namespace.NamespaceRef, Name: "count"}
	const writers, each = 4, 10
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for done := 0; done < each; {
				prev, err := s[w%2].Ref(ctx, n)
				if err != nil && !namespace.IsKind(err, namespace.NotExist) {
					t.Error(err)
					return
				}
				var v uint64
				if prev != nil {
					v = binary.BigEndian.Uint64(prev)
				}
				err = s[w%2].SwapRef(ctx, n, prev, binary.BigEndian.AppendUint64(nil, v+1))
				if err == nil {
					done++
				} else if !namespace.IsKind(err, namespace.Exist) {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	got, err := s[0].Ref(ctx, n)
	if err != nil || binary.BigEndian.Uint64(got) != writers*each {
		t.Errorf("counted %x, %v, want %d", got, err, writers*each)
	}
}

// TestWait checks RefWaiter: open returns where refs are written, and the waiter.
func TestWait(t *testing.T, open func(t *testing.T) (namespace.RefWriter, namespace.RefWaiter)) {
	w, r := open(t)
	n := namespace.RefName{Kind: namespace.ChannelRef, Name: "deep/er/stable"}
	var have []byte
	for i := range 5 {
		next := Bytes(uint64(i), 20)
		done := make(chan error, 1)
		go func(have []byte) {
			<-time.After(20 * time.Millisecond)
			done <- w.SwapRef(t.Context(), n, have, next)
		}(have)
		got, err := waitFor(t.Context(), r, n, have)
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		wantBytes(t, "wait", got, err, next)
		have = next
	}
	// What differs already comes at once.
	got, err := r.WaitRef(t.Context(), n, []byte("old"))
	wantBytes(t, "wait with an old record", got, err, have)
	// And giving up is possible.
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	start := time.Now()
	if got, err := r.WaitRef(ctx, n, have); err == nil && !bytes.Equal(got, have) {
		t.Errorf("a wait that ended early made up a record")
	}
	if d := time.Since(start); d > 5*time.Second {
		t.Errorf("a canceled wait took %v", d)
	}
}

// waitFor loops as the contract says that callers do.
func waitFor(ctx context.Context, r namespace.RefWaiter, n namespace.RefName, have []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for blips := 0; ; {
		got, err := r.WaitRef(ctx, n, have)
		// A server may close a kept connection just when it is used again: callers loop anyway.
		if namespace.IsKind(err, namespace.Unavailable) && blips < 3 {
			blips++
			continue
		}
		if err != nil || !bytes.Equal(got, have) {
			return got, err
		}
	}
}
