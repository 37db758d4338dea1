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

// InBackground returns ctx marked as that of work nobody waits for: a source may let it wait, for
// a rate or for somebody who does.
func InBackground(ctx context.Context) context.Context {
	return context.WithValue(ctx, backgroundKey{}, true)
}

// IsBackground reports whether ctx is marked by [InBackground].
func IsBackground(ctx context.Context) bool { return ctx.Value(backgroundKey{}) != nil }
