package storetest

import (
	"bytes"
	"sync"
	"testing"
	"time"

	"coppice.dev/coppice/namespace"
)

// TestAger checks that an empty store keeps the promises of namespace.Ager. open is called for each
// part of the suite.
func TestAger(t *testing.T, open func(t *testing.T) namespace.Store) {
	t.Run("Ages", func(t *testing.T) { testAges(t, open(t)) })
	t.Run("RenewOrMissing", func(t *testing.T) { testRenewOrMissing(t, open(t)) })
}

func testAges(t *testing.T, s namespace.Store) {
	ctx, a := t.Context(), s.(namespace.Ager)
	for _, c := range namespace.Classes() {
		b := Bytes(uint64(c), 1000)
		k := key(c, b)
		wantKind(t, "renew nothing", a.Renew(ctx, k), namespace.NotExist)
		_, err := a.Time(ctx, k)
		wantKind(t, "time of nothing", err, namespace.NotExist)
		if gone, err := a.DeleteOlder(ctx, k, time.Now()); gone || err != nil {
			t.Errorf("delete nothing: %v, %v", gone, err)
		}
		if err := s.Put(ctx, k, b); err != nil {
			t.Fatal(err)
		}
		first, err := a.Time(ctx, k)
		if err != nil || time.Since(first) > time.Minute || time.Until(first) > time.Minute {
			t.Errorf("put now, its time is %v, %v", first, err)
		}
		for what, renew := range map[string]func() error{
			"put":   func() error { return s.Put(ctx, k, b) },
			"renew": func() error { return a.Renew(ctx, k) },
		} {
			<-time.After(20 * time.Millisecond) // file systems count in ticks
			before := time.Now().Add(-10 * time.Millisecond)
			if err := renew(); err != nil {
				t.Fatal(err)
			}
			if gone, err := a.DeleteOlder(ctx, k, before); gone || err != nil {
				t.Errorf("%s again, and it was deleted: %v, %v", what, gone, err)
			}
		}
		if gone, err := a.DeleteOlder(ctx, k, time.Now().Add(time.Hour)); !gone || err != nil {
			t.Errorf("delete: %v, %v", gone, err)
		}
		if _, err := s.Stat(ctx, k); !namespace.IsKind(err, namespace.NotExist) {
			t.Errorf("deleted, but %v", err)
		}
	}
}

// A renewal and a collection race: if the renewal succeeded, the object stays. The collector goes by
// times from before the renewal began.
func testRenewOrMissing(t *testing.T, s namespace.Store) {
	ctx, a := t.Context(), s.(namespace.Ager)
	for i := range 60 {
		c := namespace.Classes()[i%len(namespace.Classes())]
		b := Bytes(uint64(i), 100)
		k := key(c, b)
		if err := s.Put(ctx, k, b); err != nil {
			t.Fatal(err)
		}
		put, err := a.Time(ctx, k)
		if err != nil {
			t.Fatal(err)
		}
		<-time.After(time.Until(put.Add(25 * time.Millisecond)))
		var wg sync.WaitGroup
		var renewed error
		var gone bool
		wg.Go(func() { gone, _ = a.DeleteOlder(ctx, k, put.Add(time.Nanosecond)) })
		wg.Go(func() {
			if i%2 == 0 {
				renewed = a.Renew(ctx, k)
			} else {
				renewed = s.Put(ctx, k, b)
			}
		})
		wg.Wait()
		got, err := ReadAll(ctx, s, k, 0, -1)
		there := err == nil && bytes.Equal(got, b)
		if renewed == nil && !there || renewed != nil && (there || !gone) {
			t.Fatalf("%v: renewal says %v, deleted %v, reading says %v", k, renewed, gone, err)
		}
	}
}
