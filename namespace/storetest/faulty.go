package storetest

import (
	"context"
	"fmt"
	"io"
	"sync"
	"time"

	"coppice.dev/coppice/namespace"
)

// Call is one call that a [Faulty] saw. Op is the method's name; N counts the calls of that
// method from 1. Off and Len are those of Get.
type Call struct {
	Op       string
	Key      namespace.Key
	Ref      namespace.RefName
	Off, Len int64
	N        int
}

// Fault says what goes wrong with one call. The zero Fault is none.
type Fault struct {
	Err   error         // returned instead of calling the origin
	Delay time.Duration // before anything else; cut short by ctx
	Gate  chan struct{} // if not nil, wait for it to be closed; cut short by ctx
	// Cut, if not 0, ends the body after Cut-1 bytes with Unavailable.
	Cut int64
	// Flip, if not 0, inverts the byte at offset Flip-1 of the body.
	Flip int64
}

// Faulty wraps an Origin, records every call and lets Plan make some of them fail.
// Safe for concurrent use.
type Faulty struct {
	Origin namespace.Origin
	// Plan decides about one call; nil is no fault. Set it before the first call, or with SetPlan.
	Plan func(Call) Fault

	mu    sync.Mutex
	calls []Call
	count map[string]int
	bytes int64
}

var (
	_ namespace.Origin = (*Faulty)(nil)
	_ namespace.Ager   = (*Faulty)(nil)
)

// SetPlan replaces Plan.
func (f *Faulty) SetPlan(plan func(Call) Fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.Plan = plan
}

// Calls returns how often the method op was called; "" counts all methods.
func (f *Faulty) Calls(op string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	if op == "" {
		return len(f.calls)
	}
	return f.count[op]
}

// Log returns all calls so far.
func (f *Faulty) Log() []Call {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]Call(nil), f.calls...)
}

// BytesRead returns the bytes that left through Get's readers.
func (f *Faulty) BytesRead() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.bytes
}

// Reset forgets the calls and bytes seen so far.
func (f *Faulty) Reset() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls, f.count, f.bytes = nil, nil, 0
}

func (f *Faulty) see(ctx context.Context, c Call) (Fault, error) {
	f.mu.Lock()
	if f.count == nil {
		f.count = map[string]int{}
	}
	f.count[c.Op]++
	c.N = f.count[c.Op]
	f.calls = append(f.calls, c)
	plan := f.Plan
	f.mu.Unlock()
	if plan == nil {
		return Fault{}, nil
	}
	fault := plan(c)
	if fault.Delay > 0 {
		select {
		case <-time.After(fault.Delay):
		case <-ctx.Done():
			return fault, canceled(ctx, c.Op, "")
		}
	}
	if fault.Gate != nil {
		select {
		case <-fault.Gate:
		case <-ctx.Done():
			return fault, canceled(ctx, c.Op, "")
		}
	}
	return fault, fault.Err
}

// Get implements namespace.Fetcher.
func (f *Faulty) Get(ctx context.Context, k namespace.Key, off, n int64) (io.ReadCloser, error) {
	fault, err := f.see(ctx, Call{Op: "Get", Key: k, Off: off, Len: n})
	if err != nil {
		return nil, err
	}
	r, err := f.Origin.Get(ctx, k, off, n)
	if err != nil {
		return nil, err
	}
	return &faultyBody{ReadCloser: r, owner: f, fault: fault}, nil
}

// faultyBody is a body with the fault applied. Not safe for concurrent use, as bodies are.
type faultyBody struct {
	io.ReadCloser
	owner *Faulty
	fault Fault
	pos   int64
}

func (b *faultyBody) Read(p []byte) (int, error) {
	if cut := b.fault.Cut; cut > 0 {
		if b.pos >= cut-1 {
			return 0, namespace.E(namespace.Unavailable, "read body", "", fmt.Errorf("cut after %d bytes", b.pos))
		}
		p = p[:min(int64(len(p)), cut-1-b.pos)]
	}
	n, err := b.ReadCloser.Read(p)
	if at := b.fault.Flip - 1; at >= b.pos && at < b.pos+int64(n) {
		p[at-b.pos] ^= 0xff
	}
	b.pos += int64(n)
	b.owner.mu.Lock()
	b.owner.bytes += int64(n)
	b.owner.mu.Unlock()
	return n, err
}

// Put implements namespace.Store.
func (f *Faulty) Put(ctx context.Context, k namespace.Key, b []byte) error {
	if _, err := f.see(ctx, Call{Op: "Put", Key: k}); err != nil {
		return err
	}
	return f.Origin.Put(ctx, k, b)
}

// Stat implements namespace.Store.
func (f *Faulty) Stat(ctx context.Context, k namespace.Key) (int64, error) {
	if _, err := f.see(ctx, Call{Op: "Stat", Key: k}); err != nil {
		return 0, err
	}
	return f.Origin.Stat(ctx, k)
}

// List implements namespace.Store.
func (f *Faulty) List(ctx context.Context, c namespace.Class, fn func(namespace.Key, int64) error) error {
	if _, err := f.see(ctx, Call{Op: "List", Key: namespace.Key{Class: c}}); err != nil {
		return err
	}
	return f.Origin.List(ctx, c, fn)
}

// Delete implements namespace.Store.
func (f *Faulty) Delete(ctx context.Context, k namespace.Key) error {
	if _, err := f.see(ctx, Call{Op: "Delete", Key: k}); err != nil {
		return err
	}
	return f.Origin.Delete(ctx, k)
}

// Renew implements namespace.Ager; the origin must.
func (f *Faulty) Renew(ctx context.Context, k namespace.Key) error {
	if _, err := f.see(ctx, Call{Op: "Renew", Key: k}); err != nil {
		return err
	}
	return f.Origin.(namespace.Ager).Renew(ctx, k)
}

// Time implements namespace.Ager; the origin must.
func (f *Faulty) Time(ctx context.Context, k namespace.Key) (time.Time, error) {
	if _, err := f.see(ctx, Call{Op: "Time", Key: k}); err != nil {
		return time.Time{}, err
	}
	return f.Origin.(namespace.Ager).Time(ctx, k)
}

// DeleteOlder implements namespace.Ager; the origin must.
func (f *Faulty) DeleteOlder(ctx context.Context, k namespace.Key, t time.Time) (bool, error) {
	if _, err := f.see(ctx, Call{Op: "DeleteOlder", Key: k}); err != nil {
		return false, err
	}
	return f.Origin.(namespace.Ager).DeleteOlder(ctx, k, t)
}

// Ref implements namespace.RefReader.
func (f *Faulty) Ref(ctx context.Context, n namespace.RefName) ([]byte, error) {
	if _, err := f.see(ctx, Call{Op: "Ref", Ref: n}); err != nil {
		return nil, err
	}
	return f.Origin.Ref(ctx, n)
}

// Refs implements namespace.RefReader.
func (f *Faulty) Refs(ctx context.Context, kind string) ([]string, error) {
	if _, err := f.see(ctx, Call{Op: "Refs", Ref: namespace.RefName{Kind: kind}}); err != nil {
		return nil, err
	}
	return f.Origin.Refs(ctx, kind)
}

// SwapRef implements namespace.RefWriter.
func (f *Faulty) SwapRef(ctx context.Context, n namespace.RefName, prev, next []byte) error {
	if _, err := f.see(ctx, Call{Op: "SwapRef", Ref: n}); err != nil {
		return err
	}
	return f.Origin.SwapRef(ctx, n, prev, next)
}
