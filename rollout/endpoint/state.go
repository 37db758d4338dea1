// Package endpoint is the mind of an endpoint: what it runs, what it should run, and what to do
// next. It is pure. [Plan] is a function of values that chooses a row of a table; whoever calls it
// keeps the state, does the work and measures the facts.
//
// The caller's loop, for each channel, from one goroutine:
//
//	d := Plan(&state, offer, &facts, policy, now)
//	if d.Changed { keep d.State durably; state = d.State }  // before anything is done
//	do d.Do                                                 // idempotent; see Verb
//	wait for a fact to change or for d.Wake                 // or not at all, if d.Again
//
// A crash may come between any two of these lines. Facts are observations, not messages: what is
// mounted, what is here, what a probe said about which version. So nothing is lost by it, and a
// state that was kept leads on from wherever the machine really is.
package endpoint

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/rollout/offer"
)

// Phase is where an endpoint is with a channel. The text, not the number, is stored and sent.
type Phase uint8

// The phases. Lost is never an endpoint's own: it is what a watcher calls one that fell silent.
const (
	Idle        Phase = iota // nothing was offered yet
	Offered                  // an offer was accepted, and is judged
	Prefetching              // its content is being fetched
	Staged                   // all of it is here
	Gated                    // gates are closed
	Activating               // the swap was decided on
	Verifying                // the new generation is active, and must prove itself
	Healthy                  // what is wanted is active, and was proven
	Failed                   // it could not be fetched, shown or proven, or may not be run
	Reverted                 // it was active, failed its proof, and was taken back here
	Superseded               // a newer offer came before this one was done
	Lost                     // silent for longer than promised
	phaseCount
)

var phaseNames = [phaseCount]string{"Idle", "Offered", "Prefetching", "Staged", "Gated", "Activating",
	"Verifying", "Healthy", "Failed", "Reverted", "Superseded", "Lost"}

// Phases lists them.
func Phases() []Phase {
	all := make([]Phase, phaseCount)
	for i := range all {
		all[i] = Phase(i)
	}
	return all
}

// String returns the name.
func (p Phase) String() string {
	if p < phaseCount {
		return phaseNames[p]
	}
	return fmt.Sprintf("Phase(%d)", uint8(p))
}

// MarshalText implements encoding.TextMarshaler.
func (p Phase) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler. Errors: Invalid.
func (p *Phase) UnmarshalText(b []byte) error {
	if i := slices.Index(phaseNames[:], string(b)); i >= 0 {
		*p = Phase(i)
		return nil
	}
	return namespace.E(namespace.Invalid, "parse phase", fmt.Sprintf("%.40q", b), fmt.Errorf("want one of %v", phaseNames))
}

// Code says why a phase is Failed, for tables and metrics: the set is closed.
type Code string

// The codes. The first four end with a newer offer, a person's word or, for all but Floored, a
// later attempt.
const (
	NoCode      Code = ""
	Floored     Code = "below-floor"  // content below the floor, and nobody allows it
	Unfetched   Code = "not-fetched"  // fetching failed
	Unshown     Code = "not-shown"    // the swap failed
	Unhealthy   Code = "unhealthy"    // not proven, and there is nothing to go back to
	NoFit       Code = "does-not-fit" // the disk is too small
	NotFound    Code = "not-found"    // the origin has no such version
	BadContent  Code = "corrupt"      // what came is not what was signed
	Unreachable Code = "unreachable"  // nobody answers
)

// Generation is a version and the seq under which it was wanted. The zero Generation is none.
type Generation struct {
	Seq uint64 `json:"seq"`
	offer.Target
}

// Denial is a version that failed here, and is not activated again until a person says so.
type Denial struct {
	Manifest namespace.Digest  `json:"manifest"`
	Version  namespace.Version `json:"version"`
	Seq      uint64            `json:"seq"`
	At       time.Time         `json:"at"`
	Reason   string            `json:"reason"`
}

// Bounds of a state.
const (
	// DeniedMax bounds the denylist; the oldest entry goes first. Who publishes so many versions
	// that fail on one machine has other sorrows.
	DeniedMax = 256
	// reasonBytesMax bounds a reason: probes may print anything.
	reasonBytesMax = 500
	// retryMin and RetryMax bound the wait before another attempt; it doubles in between.
	retryMin = 30 * time.Second
	RetryMax = time.Hour
)

// State is what an endpoint remembers of one channel. It is kept durably, as readable text.
type State struct {
	Format int       `json:"format"`
	Phase  Phase     `json:"phase"`
	Since  time.Time `json:"since"` // in this phase

	Seq   uint64 `json:"seq"`   // highest accepted; never less
	Floor uint64 `json:"floor"` // highest accepted; never less

	Desired  Generation `json:"desired,omitzero"`  // what the newest offer wants here
	Trying   Generation `json:"trying,omitzero"`   // what the phase is about
	Staged   Generation `json:"staged,omitzero"`   // wholly here, and next
	Active   Generation `json:"active,omitzero"`   // what is to be mounted
	LastGood Generation `json:"lastGood,omitzero"` // proven last

	Pending time.Time `json:"pending,omitzero"` // since when a change is owed; newer offers do not reset it
	Ready   time.Time `json:"ready,omitzero"`   // since when Staged is here

	Deferred  time.Time     `json:"deferred,omitzero"`  // put off until
	Deferrals int           `json:"deferrals,omitzero"` // how often, of what is owed
	PutOff    time.Duration `json:"putOff,omitzero"`    // for how long altogether
	Hurry     bool          `json:"hurry,omitzero"`     // a person asked for it now

	Code    Code      `json:"code,omitempty"`
	Detail  string    `json:"detail,omitempty"`
	Attempt uint64    `json:"attempt,omitzero"` // rises with each; the outcome of work names it
	Tries   int       `json:"tries,omitzero"`   // failures of Trying so far
	Retry   time.Time `json:"retry,omitzero"`   // not before

	Began time.Duration `json:"began,omitzero"` // Facts.Awake when Verifying began, in this boot
	Boot  uint64        `json:"boot,omitzero"`  // id of the boot that Verifying saw last
	Boots int           `json:"boots,omitzero"` // restarts while Verifying

	Denied []Denial `json:"denied,omitempty"` // never changed in place
	// Unconfirmed: the machine was put back to an earlier state, and this memory with it. Until
	// the origin itself has answered, nothing changes.
	Unconfirmed bool   `json:"unconfirmed,omitzero"`
	Machine     uint64 `json:"machine,omitzero"` // Facts.Machine when this was kept
}

// StateFormat is the version of the encoding.
const StateFormat = 1

// stateBytesMax bounds an encoded state: the denylist, and as much for the rest.
const stateBytesMax = 2 * DeniedMax * (reasonBytesMax*6 + 400)

// Encode returns the canonical bytes of a state.
func (s *State) Encode() ([]byte, error) {
	t := *s
	t.Format = StateFormat
	return namespace.EncodeRecord(&t)
}

// DecodeState reads what Encode wrote. Kinds: Corrupt, Limit, Invalid for a format that this
// program does not know.
func DecodeState(b []byte, subject string) (State, error) {
	var s State
	if err := namespace.DecodeRecord(b, stateBytesMax, subject, &s); err != nil {
		return State{}, err
	}
	switch {
	case s.Format != StateFormat:
		return State{}, namespace.E(namespace.Invalid, "decode state", subject, fmt.Errorf("format %d, this program knows %d", s.Format, StateFormat))
	case len(s.Denied) > DeniedMax:
		return State{}, namespace.E(namespace.Limit, "decode state", subject, fmt.Errorf("%d denied versions, at most %d", len(s.Denied), DeniedMax))
	case s.Phase == Lost || s.Tries < 0 || s.Boots < 0 || s.Deferrals < 0 || s.PutOff < 0:
		return State{}, namespace.E(namespace.Corrupt, "decode state", subject, fmt.Errorf("values that no endpoint has"))
	}
	return s, nil
}

// Denial returns why a version is denied here.
func (s *State) Denial(m namespace.Digest) (Denial, bool) {
	for i := range s.Denied {
		if s.Denied[i].Manifest == m {
			return s.Denied[i], true
		}
	}
	return Denial{}, false
}

// denied is Denial without the copy.
func (s *State) denied(m *namespace.Digest) bool {
	for i := range s.Denied {
		if s.Denied[i].Manifest == *m {
			return true
		}
	}
	return false
}

// deny adds a version to a copy of the denylist.
func (s *State) deny(g *Generation, reason string, now time.Time) {
	list := slices.DeleteFunc(slices.Clone(s.Denied), func(d Denial) bool { return d.Manifest == g.Manifest })
	if n := len(list) - DeniedMax + 1; n > 0 {
		list = list[n:]
	}
	s.Denied = append(list, Denial{g.Manifest, g.Version, g.Seq, now.UTC(), clip(reason)})
}

// Allow returns s with a version taken off the denylist, by a person who mended what made it fail.
// Errors: NotExist if it is not denied.
func (s State) Allow(m namespace.Digest) (State, error) {
	if !s.denied(&m) {
		return s, namespace.E(namespace.NotExist, "allow", m.String(), fmt.Errorf("not denied on this endpoint"))
	}
	s.Denied = slices.DeleteFunc(slices.Clone(s.Denied), func(d Denial) bool { return d.Manifest == m })
	return s, nil
}

// clip keeps a reason to one bounded line.
func clip(s string) string {
	s = strings.ToValidUTF8(strings.Join(strings.Fields(s), " "), "?")
	if len(s) > reasonBytesMax {
		s = strings.ToValidUTF8(s[:reasonBytesMax-3], "") + "..."
	}
	return s
}
