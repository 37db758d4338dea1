package policy

import "time"

// Link is the class of the link over which the channel is reached.
type Link uint8

// The classes. OfflineLink is no link.
const (
	LAN Link = iota
	VPN
	Internet
	Metered
	OfflineLink
	linkCount
)

var linkNames = [linkCount]string{"lan", "vpn", "internet", "metered", "offline"}

// String returns "lan", "vpn", "internet", "metered" or "offline".
func (l Link) String() string {
	if l < linkCount {
		return linkNames[l]
	}
	return "unknown"
}

func (l Links) list() [linkCount]*Use {
	return [linkCount]*Use{l.LAN, l.VPN, l.Internet, l.Metered, l.Offline}
}

// Facts are what gates look at, as the endpoint sees itself now.
type Facts struct {
	Zone *time.Location // nil: not known
	Link Link
	// ReachableSince is when the channel last became reachable; it stays when the link goes.
	// Zero: never.
	ReachableSince time.Time
	Slot           Slot
	Busy           Activity
	Power          Supply
	Labels         map[string]string // at most LabelsMax; not changed afterwards
}

// LabelsMax bounds labels: expressions may look at all of them.
const LabelsMax = 256

// Slot is a lease of the policy's pool.
type Slot struct {
	Held  bool
	Until time.Time
}

// Activity is who uses the machine. Known is false when the check itself failed.
type Activity struct {
	Known     bool
	Sessions  int
	Idle      time.Duration // since the last input of a person
	Inhibitor string        // who holds one; "" nobody
	LockFile  string        // its path; "" none
}

// Supply is where power comes from. Known is false when the check itself failed.
type Supply struct {
	Known   bool
	AC      bool
	Percent int // of the battery, 0 to 100
}

// Question is what is asked of the gates: facts, and what the endpoint's state adds.
type Question struct {
	Facts    *Facts
	Pending  time.Time // since when a change is owed; zero: none is
	Staged   time.Time // since when it could be done; zero: it cannot yet
	Deferred time.Time // a person put it off until; zero: nobody did
	Hurry    bool      // a person asked for it now
}
