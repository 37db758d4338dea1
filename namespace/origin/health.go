package origin

import (
	"net/netip"
	"sync"
	"time"

	"coppice.dev/coppice/namespace"
)

// How long a source is avoided, with the reasons.
const (
	// asideMin and asideMax bound how long a source that served garbage comes after all others: one bad
	// disk should cost a minute, a hostile mirror next to nothing.
	asideMin = time.Minute
	asideMax = 15 * time.Minute
	// asideForget is when a source that behaved is trusted like any other again.
	asideForget = time.Hour
	// trialMin and trialMax bound the pause before a source that failed is tried by a request, where
	// nobody probes it.
	trialMin = time.Second
	trialMax = 30 * time.Second
	// lagFor is how long a source whose record was older than one seen elsewhere is not waited at.
	lagFor = 30 * time.Second
)

// SourceStatus is what is known of one source. Counts are since it was opened.
type SourceStatus struct {
	Source  string     `json:"source"`         // its location, without a password
	State   string     `json:"state"`          // "up", "down", "aside" (served garbage) or "off" (not for this link)
	Since   time.Time  `json:"since,omitzero"` // of the state
	Address netip.Addr `json:"address,omitzero"`

	Requests    uint64 `json:"requests"`
	Failures    uint64 `json:"failures"` // without an answer
	Bytes       uint64 `json:"bytes"`    // of bodies
	Rejected    uint64 `json:"rejected"` // bodies and records that proved wrong
	Lagging     uint64 `json:"lagging"`  // records older than one seen elsewhere
	Hedged      uint64 `json:"hedged"`   // second requests sent here
	HedgesWon   uint64 `json:"hedges_won"`
	FirstByteMS int64  `json:"first_byte_ms"` // mean of late, of bodies

	LastError   string    `json:"last_error,omitempty"`
	LastErrorAt time.Time `json:"last_error_at,omitzero"`
	LastAnswer  time.Time `json:"last_answer,omitzero"` // by a probe that was answered rightly, or by any body
}

// member is one of several sources, with what is known of it. Safe for concurrent use.
type member struct {
	name   string
	src    namespace.Source
	waiter namespace.RefWaiter
	client *Client // nil for a directory
	close  func() error

	mu        sync.Mutex
	status    SourceStatus
	firstByte time.Duration // a moving mean; 0 if not known
	off       bool
	down      bool
	trial     time.Duration // the pause before the next trial
	retryAt   time.Time
	aside     time.Time // until then
	asideFor  time.Duration
	asideLast time.Time
	lags      map[namespace.RefName]time.Time
}

// rank orders sources: the lower, the sooner it is asked. watched says that somebody probes.
func (m *member) rank(now time.Time, watched bool) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.off:
		return rankOff
	case now.Before(m.aside):
		return rankAside
	case m.down && (watched || now.Before(m.retryAt)):
		return rankDown
	}
	return rankUp
}

const (
	rankUp = iota
	rankDown
	rankAside
	rankOff
)

// usable reports whether a source is up, and may be used.
func (m *member) usable() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return !m.off && !m.down
}

// failed notes that a source did not answer, and reports whether that is news.
func (m *member) failed(err error, now time.Time) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.status.Failures++
	m.status.LastError, m.status.LastErrorAt = err.Error(), now
	news := !m.down
	if news || !now.Before(m.retryAt) {
		m.trial = min(max(2*m.trial, trialMin), trialMax)
		m.retryAt = now.Add(m.trial)
	}
	if news {
		m.down, m.status.Since = true, now
	}
	return news
}

// answered notes that a source is there and is who it should be, and reports whether that is news.
func (m *member) answered(now time.Time) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.status.LastAnswer = now
	m.trial = 0
	news := m.down || m.status.Since.IsZero()
	if news {
		m.down, m.status.Since = false, now
	}
	return news
}

// rejected notes that what a source gave was wrong: it comes last for a while, for longer each time, and
// it is down until it was probed: a captive portal gives wrong bytes, too.
func (m *member) rejected(err error, now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.status.Rejected++
	m.status.LastError, m.status.LastErrorAt = err.Error(), now
	m.down, m.retryAt = true, now.Add(trialMin)
	if now.Before(m.aside) {
		return // of requests that were under way
	}
	if now.Sub(m.asideLast) > asideForget {
		m.asideFor = 0
	}
	m.asideFor = min(max(2*m.asideFor, asideMin), asideMax)
	m.aside, m.asideLast = now.Add(m.asideFor), now
}

// lagged notes that a source's record of n is older than one seen elsewhere.
func (m *member) lagged(n namespace.RefName, now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.status.Lagging++
	if m.lags == nil || len(m.lags) > 1000 {
		m.lags = map[namespace.RefName]time.Time{}
	}
	m.lags[n] = now.Add(lagFor)
}

// isLagging reports whether a source's record of n was old a moment ago.
func (m *member) isLagging(n namespace.RefName, now time.Time) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return now.Before(m.lags[n])
}

// report returns what is known of a source.
func (m *member) report(now time.Time) SourceStatus {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.status
	s.Source, s.State = m.name, "up"
	s.FirstByteMS = m.firstByte.Milliseconds()
	if m.client != nil {
		s.Address = m.client.Remote()
	}
	switch {
	case m.off:
		s.State = "off"
	case now.Before(m.aside):
		s.State, s.Since = "aside", m.asideLast
	case m.down:
		s.State = "down"
	}
	return s
}
