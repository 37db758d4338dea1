package origin

import (
	"bytes"
	"context"
	"io"
	"time"

	"github.com/cenkalti/backoff/v5"

	"coppice.dev/coppice/namespace"
)

// RetryOptions tune [Retry]. The zero value is the default.
type RetryOptions struct {
	// First and Max are the mean pauses before the first and any later new attempt; 100 ms, 1 s.
	First, Max time.Duration
	// Elapsed is when the last attempt starts at the latest, counted from the call, or for a body
	// from the last byte that arrived; 30 s. The call's context may end it sooner.
	Elapsed time.Duration
	// RefElapsed is the same for refs, 5 s: whoever reads one wants to know where the origin stands,
	// and asks again by himself.
	RefElapsed time.Duration
}

// Retry returns src with every call that fails with a [Retryable] Kind tried again, after pauses
// that grow and are jittered. A body that breaks is resumed at the byte it had reached; a locator's
// is read again from the start, since it may have been replaced. WaitRef is passed on as it is: its
// callers loop, and learn of an outage at once. The result implements namespace.RefWaiter if src
// does.
func Retry(src namespace.Source, opts RetryOptions) namespace.Source {
	setDefault(&opts.First, 100*time.Millisecond)
	setDefault(&opts.Max, time.Second)
	setDefault(&opts.Elapsed, 30*time.Second)
	setDefault(&opts.RefElapsed, 5*time.Second)
	r := &retrier{src: src, opts: opts}
	if w, ok := src.(namespace.RefWaiter); ok {
		return &retryWaiter{retrier: r, waiter: w}
	}
	return r
}

type retrier struct {
	src  namespace.Source
	opts RetryOptions
}

type retryWaiter struct {
	*retrier
	waiter namespace.RefWaiter
}

// attempts is the state of one retried call.
type attempts struct {
	pauses  *backoff.ExponentialBackOff
	elapsed time.Duration
	start   time.Time
}

func (r *retrier) attempts(elapsed time.Duration) *attempts {
	b := backoff.NewExponentialBackOff()
	b.InitialInterval, b.MaxInterval = r.opts.First, r.opts.Max
	return &attempts{pauses: b, elapsed: elapsed, start: time.Now()}
}

// progress forgets the failures so far.
func (a *attempts) progress() {
	a.pauses.Reset()
	a.start = time.Now()
}

// again sleeps before the next attempt, or returns the error that the call ends with.
func (a *attempts) again(ctx context.Context, err error) error {
	if !Retryable(namespace.KindOf(err)) || isImpostor(err) {
		return err
	}
	pause := a.pauses.NextBackOff()
	if time.Since(a.start)+pause > a.elapsed {
		return err
	}
	if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) < pause {
		return err // rather why than "deadline exceeded", and now
	}
	if ended := sleep(ctx, pause); ended != nil {
		return namespace.E(namespace.KindOf(ended), "retry", "", err)
	}
	return nil
}

// retry runs fn until it succeeds, or its error is final.
func retry[T any](ctx context.Context, a *attempts, fn func() (T, error)) (T, error) {
	for {
		v, err := fn()
		if err == nil {
			return v, nil
		}
		if err := a.again(ctx, err); err != nil {
			return v, err
		}
	}
}

// Get implements namespace.Fetcher.
func (r *retrier) Get(ctx context.Context, k namespace.Key, off, n int64) (io.ReadCloser, error) {
	a := r.attempts(r.opts.Elapsed)
	get := func() (io.ReadCloser, error) { return r.src.Get(ctx, k, off, n) }
	if k.Class.Immutable() {
		body, err := retry(ctx, a, get)
		if err != nil {
			return nil, err
		}
		return &retryBody{body: body, src: r.src, ctx: ctx, tries: a, key: k, off: off, left: n}, nil
	}
	var from io.ReadCloser
	b, err := retry(ctx, a, func() ([]byte, error) {
		body, err := get()
		if err != nil {
			return nil, err
		}
		from = body
		b, err := io.ReadAll(io.LimitReader(body, classLimit(k.Class)+1))
		if err == nil && int64(len(b)) > classLimit(k.Class) {
			err = limitError("get object", k.String(), classLimit(k.Class))
		}
		return b, closing(err, body)
	})
	if err != nil {
		return nil, err
	}
	return &wholeBody{Reader: *bytes.NewReader(b), from: from}, nil
}

// wholeBody is a body that was read to its end, and where it came from.
type wholeBody struct {
	bytes.Reader
	from any
}

// Close implements io.Closer; nothing is open.
func (b *wholeBody) Close() error { return nil }

// Reject implements namespace.Rejecter.
func (b *wholeBody) Reject(err error) { namespace.Reject(b.from, err) }

// Ref implements namespace.RefReader.
func (r *retrier) Ref(ctx context.Context, n namespace.RefName) ([]byte, error) {
	return retry(ctx, r.attempts(r.opts.RefElapsed), func() ([]byte, error) { return r.src.Ref(ctx, n) })
}

// Refs implements namespace.RefReader.
func (r *retrier) Refs(ctx context.Context, kind string) ([]string, error) {
	return retry(ctx, r.attempts(r.opts.RefElapsed), func() ([]string, error) { return r.src.Refs(ctx, kind) })
}

// WaitRef implements namespace.RefWaiter.
func (r *retryWaiter) WaitRef(ctx context.Context, n namespace.RefName, have []byte) ([]byte, error) {
	return r.waiter.WaitRef(ctx, n, have)
}

// retryBody is a body that goes on after a break. Not safe for concurrent use.
type retryBody struct {
	body  io.ReadCloser // nil between a break and the next attempt
	src   namespace.Fetcher
	ctx   context.Context // of the Get that this is the result of
	tries *attempts
	key   namespace.Key
	off   int64 // of the next byte
	left  int64 // bytes still wanted; < 0 is all there are
}

func (b *retryBody) Read(p []byte) (int, error) {
	if b.left == 0 {
		return 0, io.EOF
	}
	for {
		n, err := b.try(p)
		if n > 0 {
			b.off += int64(n)
			if b.left > 0 {
				b.left -= int64(n)
			}
			b.tries.progress()
			if err != nil && err != io.EOF {
				err = nil // met again by the next Read
			}
			return n, err
		}
		if err == nil || err == io.EOF {
			return n, err
		}
		if err := b.tries.again(b.ctx, err); err != nil {
			return 0, err
		}
		if b.body != nil {
			_ = b.body.Close() // it has failed already
			b.body = nil
		}
	}
}

func (b *retryBody) try(p []byte) (int, error) {
	if b.left > 0 && int64(len(p)) > b.left {
		p = p[:b.left]
	}
	if b.body == nil {
		body, err := b.src.Get(b.ctx, b.key, b.off, b.left)
		if namespace.IsKind(err, namespace.Invalid) {
			return 0, io.EOF // it broke after its last byte: there is nothing at off
		}
		if err != nil {
			return 0, err
		}
		b.body = body
	}
	return b.body.Read(p)
}

func (b *retryBody) Close() error {
	if b.body == nil {
		return nil
	}
	return b.body.Close()
}

// Reject implements namespace.Rejecter. Of a body that was resumed the last source hears it; that it
// might have been another is why nobody is avoided for ever.
func (b *retryBody) Reject(err error) {
	if b.body != nil {
		namespace.Reject(b.body, err)
	}
}
