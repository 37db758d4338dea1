package origin

import (
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"sync"
	"time"

	"coppice.dev/coppice/namespace"
)

// failover asks the first of several sources that is up, and the next ones when it fails. The order
// is the one they were named in, with those that are down or were put aside last: none is ever left
// out but by [Sources.Allow], so that a single source is asked whatever is thought of it. A source that
// is up again is asked first again. Safe for concurrent use.
type failover struct {
	members []*member
	notify  func() // of a change of any member's state; does not block

	mu       sync.Mutex
	watched  bool // somebody probes
	check    CheckRef
	seen     map[namespace.RefName]uint64
	reorders chan struct{} // closed and replaced when the order may have changed
}

// CheckRef verifies the record of a ref and says how new it is: a higher age is newer. It must be
// pure. An error says that the record is not one this endpoint believes.
type CheckRef func(n namespace.RefName, b []byte) (age uint64, err error)

// order returns the members in the order in which they are to be asked; not empty.
func (f *failover) order() []*member {
	now := time.Now()
	f.mu.Lock()
	watched := f.watched
	f.mu.Unlock()
	ranks := make(map[*member]int, len(f.members))
	all := make([]*member, 0, len(f.members))
	for _, m := range f.members {
		ranks[m] = m.rank(now, watched)
		if ranks[m] < rankOff {
			all = append(all, m)
		}
	}
	slices.SortStableFunc(all, func(a, b *member) int { return ranks[a] - ranks[b] })
	return all
}

// reordered tells waiters to choose again.
func (f *failover) reordered() {
	f.mu.Lock()
	close(f.reorders)
	f.reorders = make(chan struct{})
	f.mu.Unlock()
	f.notify()
}

// judge notes how a call of m ended and reports whether the next source is to be asked.
func (f *failover) judge(ctx context.Context, m *member, err error) (next bool) {
	switch {
	case ctx.Err() != nil, namespace.IsKind(err, namespace.Canceled):
		return false
	case !namespace.IsKind(err, namespace.Unavailable): // an answer, though not the one wanted
	case m.failed(err, time.Now()):
		f.reordered()
	}
	return true
}

// reject notes that what m gave was wrong.
func (f *failover) reject(m *member, err error) {
	m.rejected(err, time.Now())
	f.reordered()
}

// errNone is the error when the link's class leaves no source.
var errNone = errors.New("no source may be used over this link")

// first asks the members in order until one answers. Of several errors the one of the most preferred
// source that did answer is returned: that the others could not be asked says less.
func first[T any](ctx context.Context, f *failover, order []*member, ask func(*member) (T, error)) (v T, from *member, err error) {
	var worst error
	for _, m := range order {
		if v, err = ask(m); err == nil {
			return v, m, nil
		}
		if worst == nil || namespace.IsKind(worst, namespace.Unavailable) {
			worst = err
		}
		if !f.judge(ctx, m, err) {
			return v, nil, err
		}
	}
	if worst == nil {
		worst = namespace.E(namespace.Unavailable, "choose", "source", errNone)
	}
	return v, nil, worst
}

// Get implements namespace.Fetcher.
func (f *failover) Get(ctx context.Context, k namespace.Key, off, n int64) (io.ReadCloser, error) {
	body, _, err := f.getFrom(ctx, f.order(), k, off, n)
	return body, err
}

// getFrom is Get from given members, and says which of them answered.
func (f *failover) getFrom(ctx context.Context, order []*member, k namespace.Key, off, n int64) (io.ReadCloser, *member, error) {
	body, m, err := first(ctx, f, order, func(m *member) (io.ReadCloser, error) { return m.src.Get(ctx, k, off, n) })
	if err != nil {
		return nil, nil, err
	}
	return &failoverBody{ReadCloser: body, ctx: ctx, f: f, m: m}, m, nil
}

// failoverBody tells failover how its body ended.
type failoverBody struct {
	io.ReadCloser
	ctx context.Context
	f   *failover
	m   *member
}

func (b *failoverBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil && err != io.EOF {
		b.f.judge(b.ctx, b.m, err)
	}
	return n, err
}

// Reject implements namespace.Rejecter.
func (b *failoverBody) Reject(err error) {
	b.f.reject(b.m, err)
	namespace.Reject(b.ReadCloser, err)
}

// Refs implements namespace.RefReader.
func (f *failover) Refs(ctx context.Context, kind string) ([]string, error) {
	names, _, err := first(ctx, f, f.order(), func(m *member) ([]string, error) { return m.src.Refs(ctx, kind) })
	return names, err
}

// errOld says that a source's record is older than one seen elsewhere. It does not leave this file.
var errOld = errors.New("older than seen")

// Ref implements namespace.RefReader: the record of the most preferred source whose record is believed
// and not older than what was seen. If all sources answered and there is none, the best of what there
// is comes back, for the caller to refuse with the reason; if one could not be asked, that is the
// error: it might have the right one.
func (f *failover) Ref(ctx context.Context, n namespace.RefName) ([]byte, error) {
	if err := n.Check(); err != nil {
		return nil, err
	}
	var p poor
	b, _, err := first(ctx, f, f.order(), func(m *member) ([]byte, error) {
		b, err := m.src.Ref(ctx, n)
		if err == nil {
			err = f.judgeRef(m, n, b)
		}
		p.note(b, err)
		return b, err
	})
	if err != nil && ctx.Err() == nil {
		return p.best(err)
	}
	return b, err
}

// poor collects the records that were not good enough.
type poor struct {
	old, wrong []byte
	unreached  error
}

// note is told how asking one source ended.
func (p *poor) note(b []byte, err error) {
	switch {
	case err == nil:
	case errors.Is(err, errOld) && p.old == nil:
		p.old = b
	case b != nil && p.wrong == nil:
		p.wrong = b
	case namespace.IsKind(err, namespace.Unavailable) && p.unreached == nil:
		p.unreached = err
	}
}

// best returns what the caller is to refuse, or err.
func (p *poor) best(err error) ([]byte, error) {
	switch {
	case p.unreached != nil && (p.old != nil || p.wrong != nil):
		return nil, p.unreached
	case p.old != nil:
		return p.old, nil
	case p.wrong != nil:
		return p.wrong, nil
	}
	return nil, err
}

// judgeRef holds a record against what is believed and was seen.
func (f *failover) judgeRef(m *member, n namespace.RefName, b []byte) error {
	f.mu.Lock()
	check := f.check
	f.mu.Unlock()
	if check == nil {
		return nil
	}
	age, err := check(n, b)
	if err != nil {
		f.reject(m, err)
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if age < f.seen[n] {
		m.lagged(n, time.Now())
		return namespace.E(namespace.Stale, "read ref", n.String(), errOld)
	}
	f.seen[n] = age
	return nil
}

// WaitRef implements namespace.RefWaiter. It waits at the most preferred source whose record is not
// old, and goes to another one when it fails, and back when it can.
func (f *failover) WaitRef(ctx context.Context, n namespace.RefName, have []byte) ([]byte, error) {
	if err := n.Check(); err != nil {
		return nil, err
	}
	for {
		f.mu.Lock()
		reorders := f.reorders
		f.mu.Unlock()
		order := f.waitOrder(n)
		got, moved, err := f.waitOnce(ctx, order, reorders, n, have)
		if moved && ctx.Err() == nil {
			continue
		}
		return got, err
	}
}

// waitOrder is order, with those whose record of n is old last.
func (f *failover) waitOrder(n namespace.RefName) []*member {
	now := time.Now()
	all := f.order()
	lag := make(map[*member]int, len(all))
	for _, m := range all {
		if m.isLagging(n, now) {
			lag[m] = 1
		}
	}
	slices.SortStableFunc(all, func(a, b *member) int { return lag[a] - lag[b] })
	return all
}

// waitOnce waits at the first member of order that can, until its answer, or until the order changed
// so that another one is first: then moved is true.
func (f *failover) waitOnce(ctx context.Context, order []*member, reorders <-chan struct{}, n namespace.RefName, have []byte) (got []byte, moved bool, err error) {
	outer := ctx
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	at := make(chan *member, len(order)+1)
	watching := make(chan struct{})
	var left bool
	go func() { // ends with ctx
		defer close(watching)
		left = f.better(ctx, n, at, reorders)
		if left {
			cancel()
		}
	}()
	var p poor
	got, _, err = first(ctx, f, order, func(m *member) ([]byte, error) {
		at <- m
		b, err := m.waiter.WaitRef(ctx, n, have)
		if err == nil && !bytes.Equal(b, have) {
			err = f.judgeRef(m, n, b)
		}
		p.note(b, err)
		return b, err
	})
	cancel()
	<-watching
	if err != nil && !left && outer.Err() == nil {
		got, err = p.best(err)
	}
	return got, left, err
}

// better waits until the order changed so that another member than the one waited at is first, or
// ctx ends. at tells which one that is.
func (f *failover) better(ctx context.Context, n namespace.RefName, at <-chan *member, reorders <-chan struct{}) bool {
	var current *member
	for {
		select {
		case <-ctx.Done():
			return false
		case current = <-at:
		case <-reorders:
			f.mu.Lock()
			reorders = f.reorders
			f.mu.Unlock()
			order := f.waitOrder(n)
			// A failure of the current one ends the wait by itself, and then the next one is asked.
			if current != nil && len(order) > 0 && order[0] != current && order[0].usable() && slices.Index(f.members, order[0]) < slices.Index(f.members, current) {
				return true
			}
		}
	}
}
