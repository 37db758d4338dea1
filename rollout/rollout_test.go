package rollout_test

import (
	"bytes"
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/trust"
	"coppice.dev/coppice/rollout"
)

// bench is an origin, a memory and an activator in one, all of which can be made to fail.
type bench struct {
	wake <-chan struct{}
	t    *testing.T
	key  trust.Key

	mu       sync.Mutex
	ref      []byte
	down     bool
	saved    []byte
	fail     error
	active   []uint64
	reads    int
	lastSeen rollout.Status
}

func newBench(t *testing.T) *bench {
	k, err := trust.NewKey(make([]byte, 32))
	if err != nil {
		t.Fatal(err)
	}
	return &bench{t: t, key: k}
}

func (b *bench) set(seq uint64, content string) { b.setBy(b.key, seq, content) }

func (b *bench) setBy(k trust.Key, seq uint64, content string) {
	raw, err := trust.Seal(namespace.RefName{Kind: namespace.ChannelRef, Name: "c"},
		namespace.Pointer{Format: 1, Channel: "c", Seq: seq, Version: namespace.Version{Name: "n", N: seq}, Manifest: namespace.Sum([]byte(content))}, k)
	if err != nil {
		b.t.Fatal(err)
	}
	b.mu.Lock()
	b.ref = raw
	b.mu.Unlock()
}

func (b *bench) do(f func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	f()
}

func (b *bench) Ref(context.Context, namespace.RefName) ([]byte, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.reads++
	if b.down {
		return nil, namespace.E(namespace.Unavailable, "get", "ref", nil)
	}
	return bytes.Clone(b.ref), nil
}

func (b *bench) Refs(context.Context, string) ([]string, error) { return nil, nil }
func (b *bench) Load(string) ([]byte, error)                    { return b.saved, nil }
func (b *bench) Save(_ string, raw []byte) error                { b.saved = raw; return nil }
func (b *bench) Stage(context.Context, namespace.Pointer) error { return nil }
func (b *bench) Activate(_ context.Context, p namespace.Pointer) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.fail != nil {
		return b.fail
	}
	b.active = append(b.active, p.Seq)
	return nil
}

func (b *bench) follower() *rollout.Follower { return b.followerOf(b) }

func (b *bench) followerOf(reader namespace.RefReader) *rollout.Follower {
	root, err := trust.Seal(trust.RootName, trust.NewRoot("o", b.key.Public()), b.key)
	if err != nil {
		b.t.Fatal(err)
	}
	r, err := trust.OpenRoot(root)
	if err != nil {
		b.t.Fatal(err)
	}
	return rollout.New(rollout.Options{Channel: "c", Reader: reader, Root: r, Memory: b, Activator: b, Wake: b.wake,
		Notify: func(s rollout.Status) { b.do(func() { b.lastSeen = s }) }})
}

// expect fails unless exactly these seqs were activated, in this order.
func (b *bench) expect(seqs ...uint64) {
	b.t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.active) != len(seqs) {
		b.t.Fatalf("activated %v, want %v", b.active, seqs)
	}
	for i := range seqs {
		if b.active[i] != seqs[i] {
			b.t.Fatalf("activated %v, want %v", b.active, seqs)
		}
	}
}

func TestFollows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.set(1, "a")
		f := b.follower()
		if err := f.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- f.Run(ctx) }()
		b.set(2, "b")
		time.Sleep(time.Minute)
		b.expect(1, 2)
		b.set(3, "b") // the same version under a new seq: nothing to swap
		time.Sleep(time.Minute)
		b.expect(1, 2)
		b.set(1, "a") // replayed
		time.Sleep(time.Minute)
		b.expect(1, 2)
		b.do(func() {
			if b.lastSeen.LastError == "" {
				t.Error("a replayed pointer is not reported")
			}
		})
		b.set(4, "a") // a rollback is a higher seq
		time.Sleep(time.Minute)
		b.expect(1, 2, 4)
		cancel()
		if err := <-done; !namespace.IsKind(err, namespace.Canceled) {
			t.Error(err)
		}
	})
}

func TestOfflineAndBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.set(1, "a")
		if err := b.follower().Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		b.do(func() { b.down = true })
		f := b.follower() // restarted without a network
		if err := f.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		b.expect(1, 1)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- f.Run(ctx) }()
		time.Sleep(time.Hour)
		b.set(2, "b")
		b.do(func() {
			b.down = false
			if b.lastSeen.Online || b.reads > 400 {
				t.Errorf("online %v after an hour without an origin, %d reads", b.lastSeen.Online, b.reads)
			}
		})
		time.Sleep(time.Minute)
		b.expect(1, 1, 2)
		cancel()
		<-done
	})
}

// A follower that pauses because the origin is away looks at once when somebody wakes it.
func TestWake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.set(1, "a")
		wake := make(chan struct{}, 1)
		b.wake = wake
		f := b.follower()
		if err := f.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- f.Run(ctx) }()
		b.do(func() { b.down = true })
		time.Sleep(time.Hour)
		b.set(2, "b")
		b.do(func() { b.down = false })
		time.Sleep(time.Millisecond)
		b.expect(1)
		wake <- struct{}{}
		time.Sleep(10 * time.Millisecond)
		b.expect(1, 2)
		cancel()
		<-done
	})
}

// waiting is a bench that can tell of a change.
type waiting struct{ *bench }

func (w waiting) WaitRef(ctx context.Context, n namespace.RefName, have []byte) ([]byte, error) {
	for range 5000 {
		if b, err := w.Ref(ctx, n); err != nil || !bytes.Equal(b, have) {
			return b, err
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return have, nil
}

// A record that is refused and then put right, even by the very bytes that were there before it,
// leaves no complaint behind.
func TestRefusedRecordPutRight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.set(5, "five")
		f := b.followerOf(waiting{b})
		if err := f.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- f.Run(ctx) }()
		good := b.ref
		for range 3 {
			b.do(func() { b.ref = []byte("garbage") })
			time.Sleep(40 * time.Second)
			b.do(func() {
				if b.lastSeen.LastError == "" {
					t.Error("a refused record is not told of")
				}
				b.ref = good
			})
			time.Sleep(time.Second)
			b.do(func() {
				if b.lastSeen.LastError != "" || !b.lastSeen.Online {
					t.Errorf("a second after it was put right: %+v", b.lastSeen)
				}
			})
		}
		b.expect(5)
		cancel()
		<-done
	})
}

func TestFailedActivationIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.set(1, "a")
		f := b.follower()
		if err := f.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- f.Run(ctx) }()
		b.do(func() { b.fail = errors.New("no room") })
		b.set(2, "b")
		time.Sleep(2 * time.Minute)
		b.expect(1)
		b.do(func() { b.fail = nil })
		time.Sleep(2 * time.Minute)
		b.expect(1, 2)
		cancel()
		<-done
	})
}

func TestRefusesAtStart(t *testing.T) {
	thief, _ := trust.NewKey(bytes.Repeat([]byte{9}, 32))
	for name, c := range map[string]struct {
		then func(b *bench)
		kind namespace.Kind
	}{
		"replayed": {func(b *bench) { b.set(4, "a") }, namespace.Stale},
		"forged":   {func(b *bench) { b.setBy(thief, 6, "x") }, namespace.Denied},
		"garbage":  {func(b *bench) { b.ref = []byte("<html>") }, namespace.Corrupt},
	} {
		b := newBench(t)
		b.set(5, "five")
		if err := b.follower().Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		c.then(b)
		if err := b.follower().Start(t.Context()); !namespace.IsKind(err, c.kind) {
			t.Errorf("%s: %v", name, err)
		}
		b.expect(5)
	}
}
