package endpoint

import "strings"

// cond is a set of conditions: what is true of state, offer, facts and policy at an instant.
type cond uint32

const (
	newer     cond = 1 << iota // an offer with a higher seq is at hand
	moved                      // what is desired is not what the phase is about
	wanted                     // what is desired is not active
	proven                     // what is active was proven
	back                       // what is desired was proven last
	denied                     // what the phase is about failed here before
	sunk                       // it is below the floor
	frozen                     // a halt, an expiry, a missing record, or a memory nobody confirmed
	early                      // before the offer's time
	here                       // all of its content is here
	mayFetch                   // the policy lets content come over this link
	broke                      // the work for this attempt failed
	due                        // time for another attempt
	open                       // gates are open, or it is the way back from what is not proven
	needsSlot                  // everything but a lease
	idleSlot                   // a lease is held that cannot be used now
	shown                      // what should be mounted is
	restarted                  // the machine was restarted since the proof began
	passed                     // the probes hold
	refuted                    // the probes do not, or time or restarts ran out
	fallback                   // there is a version to go back to
	skewed                     // the clock is before what it said when the phase began
	stuck                      // showing it failed a moment ago
	restored                   // the machine was put back to an earlier state
	confirmed                  // the origin itself has answered since
	condCount = iota
)

var condNames = [condCount]string{"newer offer", "moved", "wanted", "proven", "way back", "denied", "below floor",
	"frozen", "early", "here", "may fetch", "broke", "due", "open", "needs slot", "idle slot", "shown", "restarted", "passed",
	"refuted", "fallback", "skewed", "stuck", "restored", "confirmed"}

// String lists the conditions.
func (c cond) String() string {
	var names []string
	for i, n := range condNames {
		if c&(1<<i) != 0 {
			names = append(names, n)
		}
	}
	return strings.Join(names, ", ")
}

// Verb is work that a decision asks for. All of it is idempotent. Show has returned before Plan is
// asked again; the others may take their time, and be asked for again meanwhile.
type Verb uint8

// The verbs.
const (
	Nothing Verb = iota
	Fetch        // get all content of the target
	Lease        // ask for a slot of the policy's pool
	Release      // give it back
	Show         // mount the target, entirely, or leave what is
	Probe        // look whether the target, which is mounted, is well
)

var verbNames = []string{"", "fetch", "ask for a slot", "give the slot back", "show", "probe"}

// String returns what is done, in words; "" for Nothing.
func (v Verb) String() string { return verbNames[v] }

// effect is what a row does to the state besides the phase.
type effect uint8

const (
	keep effect = iota
	accept
	rebase
	try
	stage
	begin
	countBoot
	prove
	revert
	fail
	floored
	doubt
	forget
	distrust
	trust
)

var effectNames = []string{"", "remember seq, floor and what is desired", "count times from now", "turn to what is desired",
	"note it as staged", "make it active and begin its proof", "count the restart", "note it as proven", "deny it and make the last good one active",
	"note why, and wait before the next attempt", "note that it is below the floor", "note why; there is nothing to go back to", "nothing is owed",
	"change nothing until the origin has answered", "its memory is confirmed"}

// row is one line of the table: in any of the phases in, if all of when holds and none of unless,
// go to the phase to, with an effect on the state and work to do.
type row struct {
	in           phases
	when, unless cond
	to           Phase // stay: the phase one is in
	then         effect
	do           Verb
}

type phases uint16

// stay is a row's "to" that changes nothing.
const stay = phaseCount

func in(list ...Phase) (p phases) {
	for _, one := range list {
		p |= 1 << one
	}
	return p
}

func (p phases) has(one Phase) bool { return p&(1<<one) != 0 }

// anywhere is every phase that an endpoint can be in.
const anywhere = phases(1<<Lost - 1)

// holds are what no gate and no hurry overrides.
const holds = frozen | early

// table is the endpoint's state machine. The first row that fits is taken; docs/ROLLOUT-states.md is
// made from it, and the tests go through every phase with every set of conditions.
var table = []row{
	{in: anywhere, when: restored, to: stay, then: distrust},
	{in: anywhere, when: skewed, to: stay, then: rebase},
	{in: anywhere, when: newer, to: stay, then: accept},
	{in: anywhere, when: confirmed, to: stay, then: trust},

	// Before what did not prove itself is shown again.
	{in: in(Verifying), when: restarted, to: stay, then: countBoot},
	{in: in(Verifying), when: refuted | fallback, to: Reverted, then: revert, do: Show},
	{in: in(Verifying), when: refuted, to: Failed, then: doubt},

	// What is said to be active is shown, whatever else is going on: after a boot, after a crash
	// in the middle of a swap.
	{in: anywhere &^ in(Idle, Activating), unless: shown | stuck, to: stay, do: Show},

	{in: in(Idle), when: moved, to: Offered, then: try},
	{in: in(Idle), to: stay},

	{in: in(Offered), when: moved, to: Superseded},
	{in: in(Offered), when: proven, unless: wanted, to: Healthy, then: forget},
	{in: in(Offered), unless: wanted | proven, to: Verifying, then: begin},
	{in: in(Offered), when: denied, to: Reverted},
	{in: in(Offered), when: sunk, to: Failed, then: floored},
	{in: in(Offered), to: Prefetching},

	{in: in(Prefetching, Staged, Gated), when: moved, to: Superseded},
	{in: in(Prefetching, Staged, Gated), when: denied, to: Offered},
	{in: in(Prefetching, Staged, Gated), when: sunk, to: Offered},

	{in: in(Prefetching), when: here, to: Staged, then: stage},
	{in: in(Prefetching), when: broke, to: Failed, then: fail},
	{in: in(Prefetching), when: mayFetch, unless: frozen, to: stay, do: Fetch},
	{in: in(Prefetching), to: stay},

	{in: in(Staged, Gated), unless: here, to: Prefetching},
	{in: in(Staged, Gated), when: open, unless: holds, to: Activating},
	{in: in(Staged), to: Gated},
	{in: in(Gated), when: needsSlot, unless: holds, to: stay, do: Lease},
	{in: in(Gated), when: idleSlot, to: stay, do: Release},
	{in: in(Gated), to: stay},

	{in: in(Activating), when: shown, to: Verifying, then: begin, do: Probe},
	{in: in(Activating), when: moved, to: Superseded},
	{in: in(Activating), when: denied, to: Offered},
	{in: in(Activating), when: sunk, to: Offered},
	{in: in(Activating), when: broke, to: Failed, then: fail},
	{in: in(Activating), unless: here, to: Prefetching},
	{in: in(Activating), when: open, unless: holds, to: stay, do: Show},
	{in: in(Activating), to: Gated},

	{in: in(Verifying), when: passed, to: Healthy, then: prove},
	{in: in(Verifying), when: moved | back, to: Superseded},
	{in: in(Verifying), to: stay, do: Probe},

	{in: in(Failed), when: moved, to: Superseded},
	{in: in(Failed), when: due, to: Offered},
	{in: in(Failed), when: idleSlot, to: stay, do: Release},
	{in: in(Failed), to: stay},

	{in: in(Superseded), to: Offered, then: try},

	{in: in(Healthy, Reverted), when: moved, to: Offered, then: try},
	{in: in(Reverted), when: wanted, unless: denied, to: Offered},
	{in: in(Healthy, Reverted), when: idleSlot, to: stay, do: Release},
	{in: in(Healthy, Reverted), to: stay},
}

// rows is the table by phase, so that a decision looks at few rows.
var rows = byPhase(table)

func byPhase(t []row) (by [Lost][]row) {
	for _, r := range t {
		for p := range by {
			if r.in.has(Phase(p)) {
				by[p] = append(by[p], r)
			}
		}
	}
	return by
}

// match returns the first row that fits; every phase ends with one that always does.
func match(by *[Lost][]row, p Phase, c cond) *row {
	if p < Lost {
		for i := range by[p] {
			if r := &by[p][i]; c&r.when == r.when && c&r.unless == 0 {
				return r
			}
		}
	}
	return &row{to: stay}
}
