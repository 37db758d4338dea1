package namespace

import "context"

// A Rejecter is a body that wants to know when what it gave was wrong: whoever verified it calls
// Reject with the reason, once, before or after Close. Capability: find it by type assertion on a
// body. Decorators of bodies pass it on. With it a source that serves garbage is told from one that
// does not answer.
type Rejecter interface {
	Reject(err error)
}

// Reject tells body that what it gave was wrong, if it wants to know.
func Reject(body any, err error) {
	if r, ok := body.(Rejecter); ok {
		r.Reject(err)
	}
}

type backgroundKey struct{}

// InBackground returns ctx marked as that of work nobody waits for: a source may slow it to a rate,
// until urgent is closed because somebody does wait by now. A nil channel is never closed.
func InBackground(ctx context.Context, urgent <-chan struct{}) context.Context {
	return context.WithValue(ctx, backgroundKey{}, urgent)
}

// Background reports whether ctx is marked by [InBackground] and not urgent yet, and returns the
// channel that is closed when it becomes that.
func Background(ctx context.Context) (urgent <-chan struct{}, yes bool) {
	urgent, yes = ctx.Value(backgroundKey{}).(<-chan struct{})
	select {
	case <-urgent:
		return urgent, false
	default:
		return urgent, yes
	}
}
