package origin

import (
	"context"
	"io"
	"time"

	"golang.org/x/time/rate"

	"coppice.dev/coppice/namespace"
)

// pace keeps bodies in the background to a rate: a link that somebody pays for, or works on. What
// somebody waits for is never slowed. Safe for concurrent use.
type pace struct {
	namespace.Source
	namespace.RefWaiter
	limit *rate.Limiter
}

// paceBurst is what may come at once: a read of a body is at most as large.
const paceBurst = 64 << 10

func newPace(src namespace.Source) *pace {
	return &pace{Source: src, RefWaiter: src.(namespace.RefWaiter), limit: rate.NewLimiter(rate.Inf, paceBurst)}
}

// set changes the rate, in bytes a second; 0 is none.
func (p *pace) set(bytesPerSecond int64) {
	if bytesPerSecond <= 0 {
		p.limit.SetLimit(rate.Inf)
		return
	}
	p.limit.SetLimit(rate.Limit(bytesPerSecond))
}

// Get implements namespace.Fetcher.
func (p *pace) Get(ctx context.Context, k namespace.Key, off, n int64) (io.ReadCloser, error) {
	body, err := p.Source.Get(ctx, k, off, n)
	if _, background := namespace.Background(ctx); err != nil || !background {
		return body, err
	}
	return &pacedBody{ReadCloser: body, ctx: ctx, limit: p.limit}, nil
}

type pacedBody struct {
	io.ReadCloser
	ctx   context.Context
	limit *rate.Limiter
	owed  *time.Timer // runs until the rate allows the next read
}

// Read waits for what the rate asks of the bytes before, unless somebody waits for them by now.
func (b *pacedBody) Read(p []byte) (int, error) {
	urgent, background := namespace.Background(b.ctx)
	if !background {
		return b.ReadCloser.Read(p)
	}
	if b.owed != nil {
		select {
		case <-b.owed.C:
		case <-urgent:
		case <-b.ctx.Done():
			b.owed.Stop()
			return 0, contextError(b.ctx, "read", "body")
		}
	}
	n, err := b.ReadCloser.Read(p[:min(len(p), paceBurst)])
	b.owed = time.NewTimer(b.limit.ReserveN(time.Now(), n).Delay())
	return n, err
}

// Reject implements namespace.Rejecter.
func (b *pacedBody) Reject(err error) { namespace.Reject(b.ReadCloser, err) }
