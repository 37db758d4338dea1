package origin_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/origin"
	"coppice.dev/coppice/namespace/storetest"
)

var errDown = namespace.E(namespace.Unavailable, "plan", "", fmt.Errorf("down"))

// everyOther makes every odd call of a method fail, and breaks the bodies of the others early.
func everyOther() func(storetest.Call) storetest.Fault {
	var mu sync.Mutex
	seen := map[string]int{}
	return func(c storetest.Call) storetest.Fault {
		mu.Lock()
		defer mu.Unlock()
		at := fmt.Sprint(c.Op, c.Key, c.Ref, c.Off)
		if seen[at]++; seen[at]%2 == 1 {
			return storetest.Fault{Err: errDown}
		}
		if !c.Key.Class.Immutable() {
			return storetest.Fault{}
		}
		return storetest.Fault{Cut: 60_001}
	}
}

func TestRetryResumes(t *testing.T) {
	m := storetest.NewMem()
	body := storetest.Bytes(1, 100_000)
	k := namespace.Key{Class: namespace.Pack, Digest: namespace.Sum(body)}
	if err := m.Put(t.Context(), k, body); err != nil {
		t.Fatal(err)
	}
	f := &storetest.Faulty{Origin: m, Plan: func(storetest.Call) storetest.Fault { return storetest.Fault{Cut: 30_001} }}
	src := origin.Retry(f, origin.RetryOptions{First: time.Millisecond})
	got, err := storetest.ReadAll(t.Context(), src, k, 10, 99_000)
	if err != nil || string(got) != string(body[10:99_010]) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	if f.Calls("Get") != 4 || f.BytesRead() != 99_000 {
		t.Errorf("%d requests moved %d bytes, want 4 and no byte twice", f.Calls("Get"), f.BytesRead())
	}
}

func TestRetryGivesUp(t *testing.T) {
	f := &storetest.Faulty{Origin: storetest.NewMem(), Plan: func(storetest.Call) storetest.Fault { return storetest.Fault{Err: errDown} }}
	n := namespace.RefName{Kind: namespace.TreeRef, Name: "x"}
	src := origin.Retry(f, origin.RetryOptions{First: time.Millisecond, Elapsed: 50 * time.Millisecond})
	if _, err := src.Ref(t.Context(), n); !namespace.IsKind(err, namespace.Unavailable) {
		t.Errorf("after all attempts: %v", err)
	}
	if c := f.Calls("Ref"); c < 3 || c > 60 {
		t.Errorf("%d attempts in 50 ms", c)
	}

	patient := origin.Retry(f, origin.RetryOptions{First: 20 * time.Millisecond, Elapsed: time.Hour})
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	start := time.Now()
	if _, err := patient.Ref(ctx, n); !namespace.IsKind(err, namespace.Unavailable) || time.Since(start) > 5*time.Second {
		t.Errorf("with a deadline: %v after %v", err, time.Since(start))
	}
	ctx2, cancel2 := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel2)
	if _, err := patient.Ref(ctx2, n); !namespace.IsKind(err, namespace.Canceled) {
		t.Errorf("canceled: %v", err)
	}
}

// Only what may change by itself is tried again.
func TestRetryTable(t *testing.T) {
	for _, k := range namespace.Kinds() {
		f := &storetest.Faulty{Origin: storetest.NewMem()}
		f.Plan = func(storetest.Call) storetest.Fault { return storetest.Fault{Err: namespace.E(k, "plan", "", nil)} }
		src := origin.Retry(f, origin.RetryOptions{First: time.Millisecond, Max: time.Millisecond, Elapsed: 20 * time.Millisecond})
		_, err := src.Refs(t.Context(), namespace.TreeRef)
		if !namespace.IsKind(err, k) {
			t.Errorf("%v became %v", k, err)
		}
		if again := f.Calls("Refs") > 1; again != origin.Retryable(k) || again != (k == namespace.Unavailable) {
			t.Errorf("%v: tried again: %v", k, again)
		}
	}
}
