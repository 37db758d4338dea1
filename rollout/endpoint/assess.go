package endpoint

import (
	"fmt"
	"time"

	"coppice.dev/coppice/rollout/offer"
	"coppice.dev/coppice/rollout/policy"
)

// Type names a condition: something that is so or not, whatever the phase.
type Type string

// The conditions. True is good for Reachable, Compliant and LeaseValid, and bad for the others.
const (
	Reachable       Type = "Reachable"       // the channel's source answers
	Compliant       Type = "Compliant"       // what is desired is active and proven
	Drifted         Type = "Drifted"         // files outside the tree are not as they should be
	RebootPending   Type = "RebootPending"   // parts of the active generation need a restart of the machine
	MixedGeneration Type = "MixedGeneration" // processes run on an older generation
	LeaseValid      Type = "LeaseValid"      // the policy lets the machine run what it has
	Quarantined     Type = "Quarantined"     // the policy has it cut off
)

// Types lists them.
func Types() []Type {
	return []Type{Reachable, Compliant, Drifted, RebootPending, MixedGeneration, LeaseValid, Quarantined}
}

// Status of a condition.
type Status string

// The statuses. Unknown is what was not measured; it is neither.
const (
	True    Status = "True"
	False   Status = "False"
	Unknown Status = "Unknown"
)

// Condition is one of them. ObservedSeq is the seq that it speaks of: a condition that has not seen
// the newest offer says nothing about that.
type Condition struct {
	Type        Type      `json:"type"`
	Status      Status    `json:"status"`
	Reason      string    `json:"reason,omitempty"`  // one word, for programs
	Message     string    `json:"message,omitempty"` // for people
	Changed     time.Time `json:"changed"`           // when the status last changed
	ObservedSeq uint64    `json:"observedSeq"`
}

// Measured is what conditions need beside Facts. A nil pointer was not measured.
type Measured struct {
	Drift     *int      // files that differ from what they should be
	OldUsers  *int      // processes that run files of an older generation which have changed
	Reboot    *bool     // a restart of the machine is needed
	LastFresh time.Time // when the channel's record was last known to be the newest
}

// Assess returns the conditions; before is what it returned last (nil at first), from which an
// unchanged status keeps its time.
func Assess(before []Condition, s *State, o *offer.Offer, f *Facts, m *Measured, p *policy.Policy, now time.Time) []Condition {
	v := newView(s, o, f, p, now)
	all := make([]Condition, 0, len(Types()))
	add := func(t Type, st Status, reason, message string) {
		c := Condition{Type: t, Status: st, Reason: reason, Message: message, Changed: now.UTC(), ObservedSeq: s.Seq}
		for _, b := range before {
			if b.Type == t && b.Status == st {
				c.Changed = b.Changed
			}
		}
		all = append(all, c)
	}
	reachable := f.Link != policy.OfflineLink && !f.ReachableSince.IsZero()
	add(Reachable, truth(reachable), "Link", f.Link.String())
	if s.Phase == Healthy && s.Desired.Manifest == s.Active.Manifest {
		add(Compliant, True, "Proven", s.Active.Version.String())
	} else {
		x := Explain(s, o, f, p, now)
		add(Compliant, False, s.Phase.String(), x.Sentence)
	}
	count := func(t Type, n *int, reason, message string) {
		switch {
		case n == nil:
			add(t, Unknown, "NotMeasured", "")
		case *n > 0:
			add(t, True, reason, fmt.Sprintf("%d %s", *n, message))
		default:
			add(t, False, "", "")
		}
	}
	count(Drifted, m.Drift, "Files", "files differ")
	if m.Reboot == nil {
		add(RebootPending, Unknown, "NotMeasured", "")
	} else {
		add(RebootPending, truth(*m.Reboot), "Activation", "")
	}
	count(MixedGeneration, m.OldUsers, "Processes", "processes run an older generation")
	lease := leaseOf(v.e, m.LastFresh, now)
	add(LeaseValid, truth(lease), "Offline", "fresh word last on "+stamp(m.LastFresh))
	add(Quarantined, truth(!lease && *v.e.Settings.Offline.Then == "quarantine"), "Offline", v.e.From("offline.then").String())
	return all
}

// leaseOf reports whether a machine may go on with what it has: the second clock, beside the one
// that stops new offers from being accepted.
func leaseOf(e *policy.Effective, fresh, now time.Time) bool {
	after := time.Duration(*e.Settings.Offline.After)
	return after == 0 || !fresh.IsZero() && now.Before(fresh.Add(after))
}

func truth(b bool) Status {
	if b {
		return True
	}
	return False
}

// Sighting is the last that a watcher heard of an endpoint: its phase, and by when it promised to
// be heard of again.
type Sighting struct {
	Phase Phase     `json:"phase"`
	Seq   uint64    `json:"seq"` // observed: an offer above it was not seen yet, which is not the same as gated
	At    time.Time `json:"at"`
	Until time.Time `json:"until"`
}

// See returns the phase as a watcher has to take it: Lost, since when the promise ran out, for one
// that fell silent; else the phase that was reported.
func (g Sighting) See(now time.Time) (Phase, time.Time) {
	if now.After(g.Until) {
		return Lost, g.Until
	}
	return g.Phase, g.At
}
