package agent

import (
	"context"
	"sync"
	"time"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/rollout/endpoint"
)

// job is work that takes its time, one at once.
type job struct {
	mu     sync.Mutex
	of     endpoint.Action
	cancel context.CancelFunc // nil: none runs
}

func (j *job) running() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.cancel != nil
}

// only ends the job if it is not the one that a decision asks for.
func (j *job) only(a endpoint.Action, v endpoint.Verb) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.cancel != nil && (a.Verb != v || a.Attempt != j.of.Attempt || a.Target.Manifest != j.of.Target.Manifest) {
		j.cancel()
	}
}

// start runs the job unless one runs; one that was cancelled has to end first, and pokes when it has.
func (j *job) start(ctx context.Context, work *sync.WaitGroup, a endpoint.Action, run func(context.Context), done func()) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.cancel != nil {
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	j.of, j.cancel = a, cancel
	work.Go(func() {
		run(ctx)
		cancel()
		j.mu.Lock()
		j.cancel = nil
		j.mu.Unlock()
		done()
	})
}

// do does what a decision asks for, and reports whether to decide again at once.
func (l *Loop) do(ctx context.Context, work *sync.WaitGroup, a endpoint.Action) bool {
	done := func() { poke(l.kick) }
	switch a.Verb {
	case endpoint.Fetch:
		l.fetch.start(ctx, work, a, func(ctx context.Context) { l.runFetch(ctx, a) }, done)
	case endpoint.Probe:
		l.probe.start(ctx, work, a, func(ctx context.Context) { l.runProbe(ctx, a) }, done)
	case endpoint.Show:
		err := l.o.Machine.Show(ctx, a.Target.Target)
		if ctx.Err() != nil {
			return false
		}
		l.set(func(f *endpoint.Facts) {
			f.ShowFailed = failure(a, err, endpoint.Unshown)
		})
		return true
	case endpoint.Lease:
		if l.o.Slots != nil {
			l.o.Slots.Lease(l.slot())
		}
	case endpoint.Release:
		if l.o.Slots != nil {
			l.o.Slots.Release()
			return true
		}
	}
	return false
}

// slot returns the pool that the policy of the offer names.
func (l *Loop) slot() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.effective().Slot()
}

func (l *Loop) runFetch(ctx context.Context, a endpoint.Action) {
	err := l.o.Machine.Fetch(ctx, a.Target.Target)
	if err != nil && ctx.Err() != nil {
		return // cancelled: that says nothing of the version
	}
	l.set(func(f *endpoint.Facts) {
		f.FetchFailed = failure(a, err, endpoint.Unfetched)
		if err == nil {
			f.Here = a.Target.Manifest
		}
	})
}

func (l *Loop) runProbe(ctx context.Context, a endpoint.Action) {
	err := l.o.Prober.Probe(ctx, a.Target.Target)
	if err != nil && (ctx.Err() != nil || namespace.IsKind(err, namespace.Canceled)) {
		return
	}
	v := endpoint.Verdict{Of: a.Target.Manifest, Attempt: a.Attempt, Passed: err == nil, Failed: err != nil}
	if err != nil {
		v.Reason = err.Error()
	}
	l.set(func(f *endpoint.Facts) { f.Probe = v })
}

// failure says what went wrong, in the words of the state machine; none if nothing did.
func failure(a endpoint.Action, err error, otherwise endpoint.Code) endpoint.Failure {
	if err == nil {
		return endpoint.Failure{}
	}
	code := otherwise
	switch namespace.KindOf(err) {
	case namespace.Limit:
		code = endpoint.NoFit
	case namespace.NotExist:
		code = endpoint.NotFound
	case namespace.Corrupt:
		code = endpoint.BadContent
	case namespace.Unavailable:
		code = endpoint.Unreachable
	}
	return endpoint.Failure{Of: a.Target.Manifest, Attempt: a.Attempt, At: time.Now(), Code: code, Detail: err.Error()}
}
