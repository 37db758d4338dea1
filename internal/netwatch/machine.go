package netwatch

import "time"

// State says whether a source can be asked.
type State uint8

// The states. A Machine starts as Unreachable: nothing has answered yet.
const (
	Unreachable  State = iota // there is a network, but no source answers
	Online                    // a source answered, and was who it should be
	Disconnected              // there is no network
)

// String returns the stable name, which is also its form in JSON.
func (s State) String() string {
	switch s {
	case Online:
		return "online"
	case Disconnected:
		return "offline"
	}
	return "unreachable"
}

// MarshalText implements encoding.TextMarshaler.
func (s State) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler; what it does not know is Unreachable.
func (s *State) UnmarshalText(b []byte) error {
	*s = Unreachable
	for _, v := range []State{Online, Disconnected} {
		if v.String() == string(b) {
			*s = v
		}
	}
	return nil
}

// Every pause of a Machine, with its reason.
const (
	// downHold is how long the network must be gone to be gone: roaming between access points and
	// renewing an address take less.
	downHold = 200 * time.Millisecond
	// probeMin and probeMax bound the pause between probes of a source that does not answer: a server
	// that restarts is back in a second, one that is gone for the night should cost nothing.
	probeMin = 250 * time.Millisecond
	probeMax = 30 * time.Second
	// probeIdle is between probes of one that does answer, in case nobody asks it anything.
	probeIdle = 5 * time.Minute
	// A link that comes back for the flapsFree-th time within flapWindow is not asked at once: it must
	// stay for a time that doubles, up to flapMax.
	flapWindow = time.Minute
	flapsFree  = 3
	flapMin    = 500 * time.Millisecond
	flapMax    = 15 * time.Second
	// demandMin and demandMax bound the pause after a probe that a reader waited for; between them it is
	// demandShare times what the probe took, so that readers never wait for more than a small part of
	// their time, and a server that refuses at once is asked again soon.
	demandMin   = 10 * time.Millisecond
	demandMax   = 5 * time.Second
	demandShare = 4
)

// Machine decides the state of the way to a source from what was seen. It is pure: the time is an
// argument, and what it wants done it says by Due. Not safe for concurrent use; the zero value is a
// machine without a network.
type Machine struct {
	state    State
	since    time.Time
	network  bool
	netSince time.Time
	known    bool // the network was looked at

	ups    []time.Time // when the network came back, within flapWindow
	pause  time.Duration
	next   time.Time // of the next probe
	demand time.Time // from when a reader may ask for one
}

// State returns the state and since when it is that.
func (m *Machine) State() (State, time.Time) { return m.state, m.since }

// Network tells whether there is a network. now never goes back.
func (m *Machine) Network(up bool, now time.Time) {
	if m.known && up == m.network {
		return
	}
	first := !m.known
	m.known, m.network, m.netSince = true, up, now
	switch {
	case first && !up:
		m.set(Disconnected, now)
	case up:
		m.pause = 0
		m.demand = now
		m.next = now.Add(m.hold(first, now))
		if m.state == Disconnected {
			m.set(Unreachable, now)
		}
	}
}

// hold returns how long a network that came back must stay before it is probed.
func (m *Machine) hold(first bool, now time.Time) time.Duration {
	if first {
		return 0
	}
	recent := m.ups[:0]
	for _, t := range m.ups {
		if now.Sub(t) < flapWindow {
			recent = append(recent, t)
		}
	}
	m.ups = append(recent, now)
	n := len(m.ups) - flapsFree
	if n < 0 {
		return 0
	}
	return min(flapMin<<min(n, 10), flapMax)
}

// Changed tells that the network is another one, or that the machine slept: what was known of the
// source is old. The state stays until a probe says otherwise.
func (m *Machine) Changed(now time.Time) {
	m.pause = 0
	if m.network && m.state != Disconnected && !m.netSince.Equal(now) { // else Network has said when
		m.next, m.demand = now, now
	}
}

// Suspect tells that a source failed to answer somebody: a probe is due, unless one just was.
func (m *Machine) Suspect(now time.Time) {
	if m.network && m.state == Online && m.next.After(now) && !now.Before(m.demand) {
		m.next = now
	}
}

// Lost tells that no source is left that answers.
func (m *Machine) Lost(now time.Time) {
	if m.state != Online {
		return
	}
	m.set(Unreachable, now)
	if m.next.After(now.Add(probeMin)) {
		m.pause, m.next = probeMin, now
	}
}

// Demand asks on behalf of a reader whether to probe now rather than when it is due.
func (m *Machine) Demand(now time.Time) bool {
	return m.network && m.state == Unreachable && !now.Before(m.demand)
}

// DemandAt returns from when on Demand may be true.
func (m *Machine) DemandAt() time.Time { return m.demand }

// Probed tells how a probe that took some time ended.
func (m *Machine) Probed(ok bool, took time.Duration, now time.Time) {
	if ok {
		m.pause = 0
		m.next = now.Add(probeIdle)
		m.demand = now
		if m.network {
			m.set(Online, now)
		}
		return
	}
	m.demand = now.Add(min(max(demandShare*took, demandMin), demandMax))
	m.pause = min(max(2*m.pause, probeMin), probeMax)
	m.next = now.Add(m.pause)
	if m.state == Online {
		m.set(Unreachable, now)
	}
}

// Due returns what is to be done now and how long nothing is after that: probe says that a probe is
// due. A network that has been gone for long enough is believed to be gone here.
func (m *Machine) Due(now time.Time) (probe bool, wait time.Duration) {
	if !m.known {
		return false, probeIdle
	}
	if !m.network {
		if m.state == Disconnected {
			return false, probeIdle
		}
		if left := downHold - now.Sub(m.netSince); left > 0 {
			return false, left
		}
		m.set(Disconnected, now)
		return false, probeIdle
	}
	if left := m.next.Sub(now); left > 0 {
		return false, left
	}
	return true, 0
}

func (m *Machine) set(s State, now time.Time) {
	if m.state != s || m.since.IsZero() {
		m.state, m.since = s, now
	}
}
