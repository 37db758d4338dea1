package origin

import (
	"context"
	"io"
	"time"

	"coppice.dev/coppice/namespace"
)

// measured counts what a member is asked and how it answers. It judges nothing: see failover.
type measured struct {
	src    namespace.Source
	waiter namespace.RefWaiter
	m      *member
}

func (s *measured) asked() {
	s.m.mu.Lock()
	s.m.status.Requests++
	s.m.mu.Unlock()
}

// Get implements namespace.Fetcher.
func (s *measured) Get(ctx context.Context, k namespace.Key, off, n int64) (io.ReadCloser, error) {
	s.asked()
	start := time.Now()
	body, err := s.src.Get(ctx, k, off, n)
	if err != nil {
		return nil, err
	}
	return &measuredBody{ReadCloser: body, m: s.m, start: start}, nil
}

// Ref implements namespace.RefReader.
func (s *measured) Ref(ctx context.Context, n namespace.RefName) ([]byte, error) {
	s.asked()
	return s.src.Ref(ctx, n)
}

// Refs implements namespace.RefReader.
func (s *measured) Refs(ctx context.Context, kind string) ([]string, error) {
	s.asked()
	return s.src.Refs(ctx, kind)
}

// WaitRef implements namespace.RefWaiter.
func (s *measured) WaitRef(ctx context.Context, n namespace.RefName, have []byte) ([]byte, error) {
	s.asked()
	return s.waiter.WaitRef(ctx, n, have)
}

// measuredBody counts bytes, and how long the first one took. Not safe for concurrent use.
type measuredBody struct {
	io.ReadCloser
	m     *member
	start time.Time // zero once a byte came
}

func (b *measuredBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if n == 0 {
		return n, err
	}
	b.m.mu.Lock()
	defer b.m.mu.Unlock()
	b.m.status.Bytes += uint64(n)
	if b.start.IsZero() {
		return n, err
	}
	took := time.Since(b.start)
	b.start = time.Time{}
	if b.m.firstByte == 0 {
		b.m.firstByte = took
	}
	b.m.firstByte += (took - b.m.firstByte) / 8
	return n, err
}
