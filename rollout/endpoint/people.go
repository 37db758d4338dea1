package endpoint

import (
	"fmt"
	"time"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/rollout/offer"
	"coppice.dev/coppice/rollout/policy"
	"coppice.dev/coppice/rollout/window"
)

// Explanation is everything that stands between an endpoint and what its channel wants.
type Explanation struct {
	Phase   Phase      `json:"phase"`
	Desired Generation `json:"desired,omitzero"`
	Active  Generation `json:"active,omitzero"`
	// Holds are stronger than all gates: no severity, deadline or person overrides them.
	Holds []policy.Blocking  `json:"holds,omitempty"`
	Gates policy.Explanation `json:"gates"`
	// Sentence sums it up in one line.
	Sentence string `json:"sentence"`
}

// Done reports whether nothing is owed: what is wanted is active and proven.
func (x *Explanation) Done() bool { return x.Phase == Healthy && len(x.Holds) == 0 }

// Explain says why an endpoint is where it is. Its arguments are those of Plan.
func Explain(s *State, o *offer.Offer, f *Facts, p *policy.Policy, now time.Time) Explanation {
	v := newView(s, o, f, p, now)
	x := Explanation{Phase: s.Phase, Desired: s.Desired, Active: s.Active}
	block := func(name, why string, until time.Time) {
		x.Holds = append(x.Holds, policy.Blocking{Gate: name, Why: why, Until: until, By: policy.Setting{Origin: policy.Origin{Layer: "offer", Seq: s.Seq}}})
	}
	if s.Active.Manifest == s.Desired.Manifest && !s.Active.IsZero() && (s.Phase == Healthy || s.Phase == Verifying) {
		if x.Sentence = "nothing is owed: " + s.Active.Version.String() + " is active and proven"; s.Phase == Verifying {
			x.Sentence = s.Active.Version.String() + " is active and must prove itself until " + stamp(v.wake(s))
		}
		return x
	}
	if s.Desired.IsZero() {
		block("offer", "nothing has been offered", time.Time{})
	}
	if v.hold() != free {
		block("frozen", v.frozen(), time.Time{})
	}
	if o != nil && now.Before(o.NotBefore) {
		block("notBefore", "not before "+stamp(o.NotBefore), o.NotBefore)
	}
	if d, is := s.Denial(s.Desired.Manifest); is {
		block("denied", fmt.Sprintf("%s failed here on %s: %s", d.Version, stamp(d.At), d.Reason), time.Time{})
	}
	desired := s.Desired
	if !desired.IsZero() && !v.permits(&desired) {
		block("floor", fmt.Sprintf("%s has content %d, below the floor %d", desired.Version, desired.Content, s.Floor), time.Time{})
	}
	switch {
	case s.Phase == Failed:
		block("failed", string(s.Code)+": "+s.Detail, s.Retry)
	case s.Phase == Prefetching && v.hold() != free:
	case s.Phase == Prefetching && !v.e.MayFetch(&v.q, now):
		block("fetch", "the policy does not let content come over the link: "+f.Link.String(), time.Time{})
	case s.Phase == Prefetching:
		block("fetch", "its content is being fetched", time.Time{})
	case s.Phase == Verifying:
		block("verify", s.Active.Version.String()+" must prove itself first", v.wake(s))
	}
	var notBefore, expires time.Time
	if o != nil {
		notBefore, expires = o.NotBefore, o.Expires
	}
	x.Gates = v.e.Explain(&v.q, now, notBefore, expires)
	x.Sentence = x.Gates.Sentence()
	if len(x.Holds) > 0 {
		x.Sentence = x.Holds[0].Why
	}
	return x
}

// frozen says why nothing may change at all, for people.
func (v *view) frozen() string {
	switch v.hold() {
	case nameless:
		return "the endpoint has no id"
	case unconfirmed:
		return "the machine was put back to an earlier state, and the origin has not been reached since"
	case recordless:
		return "the record of the channel is not at hand"
	case halted:
		return "the channel is halted: " + v.o.Reason
	case expired:
		return "the offer expired on " + stamp(v.o.Expires)
	}
	return ""
}

func stamp(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05Z") }

// Defer returns s with what is owed put off by d, as a person at the endpoint asked. e is the policy
// of the offer's severity. Kinds: NotExist if nothing is owed; Denied, with what the policy allows.
func (s State) Defer(d time.Duration, e *policy.Effective, q *policy.Question, now time.Time) (State, error) {
	refuse := func(kind namespace.Kind, format string, args ...any) (State, error) {
		return s, namespace.E(kind, "defer", s.Desired.Version.String(), fmt.Errorf(format, args...))
	}
	rules := e.Settings.Defer
	each, total, count := time.Duration(*rules.Each), time.Duration(*rules.Total), *rules.Count
	until := now.Add(d)
	deadline, _ := e.Deadline(q)
	switch {
	case s.Pending.IsZero() || s.Desired.Manifest == s.Active.Manifest:
		return refuse(namespace.NotExist, "nothing is owed")
	case d <= 0:
		return refuse(namespace.Invalid, "for %s: want more than 0", window.Duration(d))
	case d > each:
		return refuse(namespace.Denied, "for %s: at most %s at a time (%s)", window.Duration(d), window.Duration(each), e.From("defer.each"))
	case s.Deferrals >= count:
		return refuse(namespace.Denied, "put off %d times already (%s)", s.Deferrals, e.From("defer.count"))
	case s.PutOff+d > total:
		return refuse(namespace.Denied, "put off by %s already, at most %s (%s)", window.Duration(s.PutOff), window.Duration(total), e.From("defer.total"))
	case !deadline.IsZero() && until.After(deadline):
		return refuse(namespace.Denied, "the deadline is %s (%s)", stamp(deadline), e.From("deadline.after"))
	}
	s.Deferred, s.Hurry = until, false
	s.Deferrals++
	s.PutOff += d
	return s, nil
}

// HurryUp returns s with what is owed asked for now: the gates that the policy names for it are
// skipped, no others. Kinds: NotExist if nothing is owed.
func (s State) HurryUp(now time.Time) (State, error) {
	if s.Desired.IsZero() || s.Desired.Manifest == s.Active.Manifest {
		return s, namespace.E(namespace.NotExist, "update now", s.Desired.Version.String(), fmt.Errorf("nothing is owed"))
	}
	s.Hurry, s.Deferred = true, time.Time{}
	if s.Phase == Failed {
		s.Retry = now
	}
	return s, nil
}
