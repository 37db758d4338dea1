package storetest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"coppice.dev/coppice/namespace"
)

// Mem is an Origin in memory. It also implements namespace.RefWaiter and Ager. Safe for concurrent
// use.
type Mem struct {
	mu      sync.Mutex
	objects map[namespace.Key][]byte
	times   map[namespace.Key]time.Time
	refs    map[namespace.RefName][]byte
	changed chan struct{} // closed and replaced when a ref changes
}

var (
	_ namespace.Origin    = (*Mem)(nil)
	_ namespace.RefWaiter = (*Mem)(nil)
	_ namespace.Ager      = (*Mem)(nil)
)

// NewMem returns an empty Mem.
func NewMem() *Mem {
	return &Mem{
		objects: map[namespace.Key][]byte{},
		times:   map[namespace.Key]time.Time{},
		refs:    map[namespace.RefName][]byte{},
		changed: make(chan struct{}),
	}
}

// Get implements namespace.Fetcher.
func (m *Mem) Get(ctx context.Context, k namespace.Key, off, n int64) (io.ReadCloser, error) {
	const op = "get object"
	if err := canceled(ctx, op, k.String()); err != nil {
		return nil, err
	}
	m.mu.Lock()
	b, ok := m.objects[k]
	m.mu.Unlock()
	if !ok {
		return nil, namespace.E(namespace.NotExist, op, k.String(), nil)
	}
	size := int64(len(b))
	if off < 0 || off > 0 && off >= size {
		return nil, namespace.E(namespace.Invalid, op, k.String(), fmt.Errorf("offset %d of %d bytes", off, size))
	}
	if n < 0 || n > size-off {
		n = size - off
	}
	return io.NopCloser(bytes.NewReader(b[off : off+n])), nil
}

// Put implements namespace.Store.
func (m *Mem) Put(ctx context.Context, k namespace.Key, b []byte) error {
	if err := canceled(ctx, "put object", k.String()); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.times[k] = time.Now()
	if _, ok := m.objects[k]; ok && k.Class.Immutable() {
		return nil
	}
	m.objects[k] = bytes.Clone(b)
	return nil
}

// Stat implements namespace.Store.
func (m *Mem) Stat(ctx context.Context, k namespace.Key) (int64, error) {
	if err := canceled(ctx, "stat object", k.String()); err != nil {
		return 0, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	b, ok := m.objects[k]
	if !ok {
		return 0, namespace.E(namespace.NotExist, "stat object", k.String(), nil)
	}
	return int64(len(b)), nil
}

// List implements namespace.Store. The order is random.
func (m *Mem) List(ctx context.Context, c namespace.Class, fn func(namespace.Key, int64) error) error {
	m.mu.Lock()
	objects := maps.Clone(m.objects)
	m.mu.Unlock()
	for k, b := range objects {
		if err := canceled(ctx, "list objects", c.String()); err != nil {
			return err
		}
		if k.Class != c {
			continue
		}
		if err := fn(k, int64(len(b))); err != nil {
			return err
		}
	}
	return nil
}

// Delete implements namespace.Store.
func (m *Mem) Delete(ctx context.Context, k namespace.Key) error {
	if err := canceled(ctx, "delete object", k.String()); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.objects, k)
	return nil
}

// Renew implements namespace.Ager.
func (m *Mem) Renew(ctx context.Context, k namespace.Key) error {
	if err := canceled(ctx, "renew object", k.String()); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.objects[k]; !ok {
		return namespace.E(namespace.NotExist, "renew object", k.String(), nil)
	}
	m.times[k] = time.Now()
	return nil
}

// Time implements namespace.Ager.
func (m *Mem) Time(ctx context.Context, k namespace.Key) (time.Time, error) {
	if err := canceled(ctx, "stat object", k.String()); err != nil {
		return time.Time{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.objects[k]; !ok {
		return time.Time{}, namespace.E(namespace.NotExist, "stat object", k.String(), nil)
	}
	return m.times[k], nil
}

// DeleteOlder implements namespace.Ager.
func (m *Mem) DeleteOlder(ctx context.Context, k namespace.Key, t time.Time) (bool, error) {
	if err := canceled(ctx, "delete object", k.String()); err != nil {
		return false, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.objects[k]; !ok || !m.times[k].Before(t) {
		return false, nil
	}
	delete(m.objects, k)
	return true, nil
}

// Age makes everything that is there older by d.
func (m *Mem) Age(d time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for k, t := range m.times {
		m.times[k] = t.Add(-d)
	}
}

// Clone returns an origin that holds what m holds now, with the same times.
func (m *Mem) Clone() *Mem {
	m.mu.Lock()
	defer m.mu.Unlock()
	return &Mem{objects: maps.Clone(m.objects), times: maps.Clone(m.times), refs: maps.Clone(m.refs), changed: make(chan struct{})}
}

// Ref implements namespace.RefReader.
func (m *Mem) Ref(ctx context.Context, n namespace.RefName) ([]byte, error) {
	b, _, err := m.ref(ctx, n)
	if err == nil && b == nil {
		err = namespace.E(namespace.NotExist, "read ref", n.String(), nil)
	}
	return b, err
}

// ref returns a copy of the record, nil if there is none, and the channel that tells of a change.
func (m *Mem) ref(ctx context.Context, n namespace.RefName) ([]byte, <-chan struct{}, error) {
	if err := canceled(ctx, "read ref", n.String()); err != nil {
		return nil, nil, err
	}
	if err := n.Check(); err != nil {
		return nil, nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return bytes.Clone(m.refs[n]), m.changed, nil
}

// WaitRef implements namespace.RefWaiter. It waits until ctx ends.
func (m *Mem) WaitRef(ctx context.Context, n namespace.RefName, have []byte) ([]byte, error) {
	for {
		b, changed, err := m.ref(ctx, n)
		switch {
		case err != nil:
			return nil, err
		case b == nil && have != nil:
			return nil, namespace.E(namespace.NotExist, "wait for ref", n.String(), nil)
		case !bytes.Equal(b, have):
			return b, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return have, canceled(ctx, "wait for ref", n.String())
		}
	}
}

// Refs implements namespace.RefReader.
func (m *Mem) Refs(ctx context.Context, kind string) ([]string, error) {
	if err := canceled(ctx, "list refs", kind); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	var names []string
	for n := range m.refs {
		if n.Kind == kind {
			names = append(names, n.Name)
		}
	}
	slices.Sort(names)
	return names, nil
}

// SwapRef implements namespace.RefWriter. Like a directory it refuses a name beneath another's.
func (m *Mem) SwapRef(ctx context.Context, n namespace.RefName, prev, next []byte) error {
	const op = "swap ref"
	if err := canceled(ctx, op, n.String()); err != nil {
		return err
	}
	if err := n.Check(); err != nil {
		return err
	}
	if len(next) == 0 {
		return namespace.E(namespace.Invalid, op, n.String(), fmt.Errorf("an empty record"))
	}
	if len(next) > namespace.RefBytesMax {
		return namespace.E(namespace.Limit, op, n.String(), fmt.Errorf("%d bytes, at most %d", len(next), namespace.RefBytesMax))
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for other := range m.refs {
		if other.Kind == n.Kind && (strings.HasPrefix(other.Name, n.Name+"/") || strings.HasPrefix(n.Name, other.Name+"/")) {
			return namespace.E(namespace.Invalid, op, n.String(), fmt.Errorf("%s is taken", other))
		}
	}
	cur, ok := m.refs[n]
	if ok != (prev != nil) || !bytes.Equal(cur, prev) {
		return namespace.E(namespace.Exist, op, n.String(), fmt.Errorf("changed meanwhile"))
	}
	m.refs[n] = bytes.Clone(next)
	close(m.changed)
	m.changed = make(chan struct{})
	return nil
}

// canceled returns ctx's error as one of ours.
func canceled(ctx context.Context, op, subject string) error {
	if err := ctx.Err(); err != nil {
		return namespace.E(namespace.KindOf(err), op, subject, err)
	}
	return nil
}
