package storetest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	"coppice.dev/coppice/namespace"
)

// TestStore checks the writing half of objects. open returns a fresh, empty store.
func TestStore(t *testing.T, open func(t *testing.T) namespace.Store) {
	t.Run("PutStatDelete", func(t *testing.T) { testPutStatDelete(t, open(t)) })
	t.Run("PutTwice", func(t *testing.T) { testPutTwice(t, open(t)) })
	t.Run("PutKeepsNothing", func(t *testing.T) { testPutKeepsNothing(t, open(t)) })
	t.Run("List", func(t *testing.T) { testList(t, open(t)) })
	t.Run("Parallel", func(t *testing.T) { testParallelPut(t, open(t)) })
	t.Run("Canceled", func(t *testing.T) { testPutCanceled(t, open(t)) })
}

func testPutStatDelete(t *testing.T, s namespace.Store) {
	ctx := t.Context()
	for _, c := range namespace.Classes() {
		b := Bytes(uint64(c), 1000)
		k := key(c, b)
		_, err := s.Stat(ctx, k)
		wantKind(t, "stat of nothing", err, namespace.NotExist)
		if err := s.Delete(ctx, k); err != nil {
			t.Errorf("delete of nothing: %v", err)
		}
		if err := s.Put(ctx, k, b); err != nil {
			t.Fatal(err)
		}
		if n, err := s.Stat(ctx, k); err != nil || n != 1000 {
			t.Errorf("stat: %d, %v", n, err)
		}
		if err := s.Delete(ctx, k); err != nil {
			t.Error(err)
		}
		_, err = ReadAll(ctx, s, k, 0, -1)
		wantKind(t, "get after delete", err, namespace.NotExist)
	}
}

func testPutTwice(t *testing.T, s namespace.Store) {
	ctx := t.Context()
	for _, c := range namespace.Classes() {
		k := key(c, []byte("name"))
		first, second := Bytes(1, 500), Bytes(2, 700)
		for _, b := range [][]byte{first, second} {
			if err := s.Put(ctx, k, b); err != nil {
				t.Fatal(err)
			}
		}
		want := first
		if !c.Immutable() {
			want = second
		}
		got, err := ReadAll(ctx, s, k, 0, -1)
		wantBytes(t, c.String()+" put twice", got, err, want)
	}
}

func testPutKeepsNothing(t *testing.T, s namespace.Store) {
	b := Bytes(5, 100)
	k := key(namespace.Pack, b)
	if err := s.Put(t.Context(), k, b); err != nil {
		t.Fatal(err)
	}
	clear(b)
	got, err := ReadAll(t.Context(), s, k, 0, -1)
	wantBytes(t, "after the caller reused its buffer", got, err, Bytes(5, 100))
}

func testList(t *testing.T, s namespace.Store) {
	ctx := t.Context()
	want := map[namespace.Key]int64{}
	for i := range 40 {
		b := Bytes(uint64(i), 10+i)
		k := key(namespace.Classes()[i%2], b)
		if err := s.Put(ctx, k, b); err != nil {
			t.Fatal(err)
		}
		want[k] = int64(len(b))
	}
	seen := 0
	for _, c := range namespace.Classes() {
		err := s.List(ctx, c, func(k namespace.Key, size int64) error {
			seen++
			if want[k] != size || k.Class != c {
				return fmt.Errorf("%v of %d bytes, want %d", k, size, want[k])
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
	if seen != len(want) {
		t.Errorf("listed %d objects, want %d", seen, len(want))
	}
	stop := errors.New("stop")
	calls := 0
	err := s.List(ctx, namespace.Blob, func(namespace.Key, int64) error { calls++; return stop })
	if !errors.Is(err, stop) || calls != 1 {
		t.Errorf("list went on after an error: %d calls, %v", calls, err)
	}
}

func testParallelPut(t *testing.T, s namespace.Store) {
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 8 { // every object by two writers, who race
				b := Bytes(uint64(i/2*8+j), 5000)
				if err := s.Put(t.Context(), key(namespace.Pack, b), b); err != nil {
					t.Error(err)
				}
				got, err := ReadAll(t.Context(), s, key(namespace.Pack, b), 0, -1)
				wantBytes(t, "own write", got, err, b)
			}
		})
	}
	wg.Wait()
}

func testPutCanceled(t *testing.T, s namespace.Store) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	k := key(namespace.Blob, []byte("x"))
	wantKind(t, "put", s.Put(ctx, k, []byte("x")), namespace.Canceled)
	_, err := s.Stat(ctx, k)
	wantKind(t, "stat", err, namespace.Canceled)
	if _, err := s.Stat(t.Context(), k); !namespace.IsKind(err, namespace.NotExist) {
		t.Errorf("a canceled put stored something: %v", err)
	}
}
