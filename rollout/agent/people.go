package agent

import (
	"slices"
	"time"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/rollout/endpoint"
	"coppice.dev/coppice/rollout/offer"
	"coppice.dev/coppice/rollout/policy"
)

// Status returns where the loop is.
func (l *Loop) Status() Status {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.status()
}

func (l *Loop) status() Status {
	return Status{Channel: l.o.Channel, State: l.state, Offer: l.seen.Offer, Serving: l.facts.Serving, Online: l.online,
		LastError: l.lastError, LastFresh: l.fresh, Condition: slices.Clone(l.conditions)}
}

// Explain says why the endpoint is where it is.
func (l *Loop) Explain() endpoint.Explanation {
	l.mu.Lock()
	defer l.mu.Unlock()
	return endpoint.Explain(&l.state, l.seen.Offer, &l.facts, l.policy, time.Now())
}

// Now asks for what is owed at once. Kinds: NotExist if nothing is owed; those of keeping.
func (l *Loop) Now() error {
	return l.change(func(s endpoint.State) (endpoint.State, error) { return s.HurryUp(time.Now()) })
}

// Defer puts off what is owed by d. Kinds: NotExist; Denied, with what the policy allows.
func (l *Loop) Defer(d time.Duration) error {
	return l.change(func(s endpoint.State) (endpoint.State, error) {
		q := policy.Question{Facts: &l.facts.Facts, Pending: s.Pending, Staged: s.Ready, Deferred: s.Deferred, Hurry: s.Hurry}
		return s.Defer(d, l.effective(), &q, time.Now())
	})
}

// Allow takes a version off the denylist. Kinds: NotExist.
func (l *Loop) Allow(v namespace.Version) error {
	return l.change(func(s endpoint.State) (endpoint.State, error) {
		var m namespace.Digest
		for _, d := range s.Denied {
			if d.Version == v {
				m = d.Manifest
			}
		}
		return s.Allow(m)
	})
}

// change keeps what a person asked for, and has it looked at.
func (l *Loop) change(fn func(endpoint.State) (endpoint.State, error)) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	s, err := fn(l.state)
	if err == nil {
		err = l.keep(s)
	}
	poke(l.kick)
	return err
}

// effective is the policy of the offer's severity. l.mu is held.
func (l *Loop) effective() *policy.Effective {
	sev := offer.Routine
	if l.seen.Offer != nil {
		sev = l.seen.Offer.Severity
	}
	return l.policy.For(sev)
}
