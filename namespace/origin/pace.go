package origin

import (
	"context"
	"io"

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
	if err != nil || !namespace.IsBackground(ctx) {
		return body, err
	}
	return &pacedBody{ReadCloser: body, ctx: ctx, limit: p.limit}, nil
}

type pacedBody struct {
	io.ReadCloser
	ctx   context.Context
	limit *rate.Limiter
	over  error // of a wait that had no time; what was read before it was given
}

func (b *pacedBody) Read(p []byte) (int, error) {
	if b.over != nil {
		return 0, b.over
	}
	n, err := b.ReadCloser.Read(p[:min(len(p), paceBurst)])
	if n > 0 {
		if werr := b.limit.WaitN(b.ctx, n); werr != nil {
			kind := namespace.Unavailable // its deadline is before what the rate allows
			if ended := b.ctx.Err(); ended != nil {
				kind = namespace.KindOf(ended)
			}
			b.over = namespace.E(kind, "read", "body", werr)
			return n, b.over
		}
	}
	return n, err
}

// Reject implements namespace.Rejecter.
func (b *pacedBody) Reject(err error) { namespace.Reject(b.ReadCloser, err) }
