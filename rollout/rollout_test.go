package rollout_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/rollout"
)

// bench is an origin, what to believe of it and an activator in one, all of which can be made to fail.
// Its records are "SEQ CONTENT SIGNER".
type bench struct {
	wake <-chan struct{}
	t    *testing.T

	mu       sync.Mutex
	ref      []byte
	down     bool
	doubt    error
	saved    []byte
	fail     error
	active   []uint64
	reads    int
	asked    int
	lastSeen rollout.Status
}

func newBench(t *testing.T) *bench { return &bench{t: t} }

func (b *bench) set(seq uint64, content string) { b.setBy("owner", seq, content) }

func (b *bench) setBy(signer string, seq uint64, content string) {
	b.mu.Lock()
	b.ref = fmt.Appendf(nil, "%d %s %s", seq, content, signer)
	b.mu.Unlock()
}

func parse(raw []byte) (p namespace.Pointer, signer string, err error) {
	var content string
	if _, err := fmt.Sscanf(string(raw), "%d %s %s", &p.Seq, &content, &signer); err != nil {
		return p, "", namespace.E(namespace.Corrupt, "read", "record", err)
	}
	p.Channel, p.Version, p.Manifest = "c", namespace.Version{Name: "n", N: p.Seq}, namespace.Sum([]byte(content))
	return p, signer, nil
}

// Accept implements rollout.Trust.
func (b *bench) Accept(_ context.Context, _ string, raw []byte) (namespace.Pointer, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.asked++
	p, signer, err := parse(raw)
	if err != nil {
		return p, err
	}
	last, _, err := parse(b.saved)
	switch {
	case b.down:
		return p, namespace.E(namespace.Unavailable, "get", "timestamp", nil)
	case signer != "owner":
		return p, namespace.E(namespace.Denied, "verify", "record", nil)
	case err == nil && p.Seq < last.Seq:
		return p, namespace.E(namespace.Stale, "verify", "record", nil)
	}
	b.saved = raw
	return p, nil
}

// Recall implements rollout.Trust.
func (b *bench) Recall(context.Context, string) (namespace.Pointer, bool, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	p, _, err := parse(b.saved)
	return p, err == nil, b.doubt
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
	return rollout.New(rollout.Options{Channel: "c", Reader: reader, Trust: b, Activator: b, Wake: b.wake,
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
	for name, c := range map[string]struct {
		then func(b *bench)
		kind namespace.Kind
	}{
		"replayed": {func(b *bench) { b.set(4, "a") }, namespace.Stale},
		"forged":   {func(b *bench) { b.setBy("thief", 6, "x") }, namespace.Denied},
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

// What is believed is looked at again now and then, though the record stays as it is.
func TestChecksNowAndThen(t *testing.T) {
	for name, reader := range map[string]func(*bench) namespace.RefReader{
		"polling": func(b *bench) namespace.RefReader { return b },
		"waiting": func(b *bench) namespace.RefReader { return waiting{b} },
	} {
		synctest.Test(t, func(t *testing.T) {
			b := newBench(t)
			b.set(1, "a")
			f := b.followerOf(reader(b))
			if err := f.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error)
			go func() { done <- f.Run(ctx) }()
			time.Sleep(time.Hour)
			b.do(func() {
				if b.asked < 10 || b.asked > 16 {
					t.Errorf("%s: asked %d times in an hour", name, b.asked)
				}
			})
			cancel()
			<-done
		})
	}
}

// A machine that may have been restored from a snapshot does not start what it remembers.
func TestDoubtAtStart(t *testing.T) {
	b := newBench(t)
	b.set(1, "a")
	if err := b.follower().Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.doubt = namespace.E(namespace.Unavailable, "start", "c", errors.New("restored"))
	b.down = true
	if err := b.follower().Start(t.Context()); !errors.Is(err, b.doubt) {
		t.Errorf("without the origin: %v", err)
	}
	b.down = false
	if err := b.follower().Start(t.Context()); err != nil {
		t.Errorf("with the origin: %v", err)
	}
	b.expect(1, 1)
}
