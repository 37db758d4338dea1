package origin

import (
	"context"
	"io"

	"coppice.dev/coppice/namespace"
)

// gate fails what begins while open returns an error, with that error: without a network nothing is
// tried, and so nothing is waited for. Safe for concurrent use, if open is.
type gate struct {
	namespace.Source
	waiter namespace.RefWaiter
	open   func() error
}

// Get implements namespace.Fetcher.
func (g *gate) Get(ctx context.Context, k namespace.Key, off, n int64) (io.ReadCloser, error) {
	if err := g.open(); err != nil {
		return nil, err
	}
	return g.Source.Get(ctx, k, off, n)
}

// Ref implements namespace.RefReader.
func (g *gate) Ref(ctx context.Context, n namespace.RefName) ([]byte, error) {
	if err := g.open(); err != nil {
		return nil, err
	}
	return g.Source.Ref(ctx, n)
}

// Refs implements namespace.RefReader.
func (g *gate) Refs(ctx context.Context, kind string) ([]string, error) {
	if err := g.open(); err != nil {
		return nil, err
	}
	return g.Source.Refs(ctx, kind)
}

// WaitRef implements namespace.RefWaiter.
func (g *gate) WaitRef(ctx context.Context, n namespace.RefName, have []byte) ([]byte, error) {
	if err := g.open(); err != nil {
		return nil, err
	}
	return g.waiter.WaitRef(ctx, n, have)
}
