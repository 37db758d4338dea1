package window

import (
	"fmt"
	"slices"
	"time"
)

// Set is the windows of one policy, checked. It is immutable; any number of goroutines may use it.
// The nil Set has no windows: it is always open.
type Set struct {
	windows []compiled
	allows  bool // at least one window allows: outside of those it is closed
	local   bool // at least one window is in the endpoint's zone
}

type compiled struct {
	Window
	loc *time.Location // nil: the endpoint's
}

// State says whether a set is open at an instant.
type State struct {
	Open      bool
	Mandatory bool // open, and a deferral does not count
	By        int  // index of the window that decides; -1: none does
}

// Compile checks windows and resolves their zones. path is that of the list, for errors.
// Errors: Invalid, with the path of the field; Limit.
func Compile(ws []Window, path string) (*Set, error) {
	if len(ws) > SetMax {
		return nil, fault(path, "%d windows, at most %d", len(ws), SetMax)
	}
	s := &Set{windows: make([]compiled, len(ws))}
	for i, w := range ws {
		at := fmt.Sprintf("%s[%d]", path, i)
		if err := w.Check(at); err != nil {
			return nil, err
		}
		loc, err := zone(w.Zone, at+".zone")
		if err != nil {
			return nil, err
		}
		if w.Mode == "" {
			w.Mode = Allow
		}
		s.windows[i] = compiled{w, loc}
		s.allows = s.allows || w.Mode != Deny
		s.local = s.local || loc == nil
	}
	return s, nil
}

// Len returns how many windows there are.
func (s *Set) Len() int {
	if s == nil {
		return 0
	}
	return len(s.windows)
}

// NeedsZone reports whether an answer depends on the endpoint's own zone.
func (s *Set) NeedsZone() bool { return s != nil && s.local }

// Describe says which window i is; i as in State.By.
func (s *Set) Describe(i int) string {
	if s == nil || i < 0 || i >= len(s.windows) {
		return "outside all windows that allow"
	}
	return s.windows[i].describe()
}

// At returns the state at t. endpoint is the machine's zone; if it is nil and a window needs it,
// the set is closed: nobody knows whether it may open.
func (s *Set) At(t time.Time, endpoint *time.Location) State {
	return s.Calendar(t, t, endpoint).At(t)
}

// Next returns the first instant not before t at which the set is open, and whether there is one
// within horizon (at most HorizonMax).
func (s *Set) Next(t time.Time, endpoint *time.Location, horizon time.Duration) (time.Time, bool) {
	horizon = min(horizon, HorizonMax)
	// Most sets open within a week: look near before looking far.
	for span := 8 * Dayspan; ; span *= 4 {
		span = min(span, horizon)
		if at, found := s.Calendar(t, t.Add(span), endpoint).Next(t); found {
			return at, true
		}
		if span == horizon {
			return time.Time{}, false
		}
	}
}

// Calendar is a set's states over a stretch of time, worked out once. It is immutable.
type Calendar struct {
	from, to int64 // Unix nanoseconds, both within
	spans    []span
}

// span: the state from an instant on, until the next span's.
type span struct {
	from  int64
	state State
}

// occurrence is one opening of a window: from ≤ t < to.
type occurrence struct {
	from, to int64
	window   int
}

// Calendar works out the states from an instant to another, both included.
func (s *Set) Calendar(from, to time.Time, endpoint *time.Location) *Calendar {
	c := &Calendar{from: from.UnixNano(), to: max(to.UnixNano(), from.UnixNano())}
	switch {
	case s.Len() == 0:
		c.spans = []span{{c.from, State{Open: true, By: -1}}}
		return c
	case s.local && endpoint == nil:
		c.spans = []span{{c.from, State{By: -1}}}
		return c
	}
	occ := s.occurrences(c.from, c.to, endpoint)
	cuts := make([]int64, 1, 2*len(occ)+1)
	cuts[0] = c.from
	for _, o := range occ {
		cuts = append(cuts, max(o.from, c.from), o.to)
	}
	slices.Sort(cuts)
	for _, cut := range slices.Compact(cuts) {
		if cut > c.to {
			break
		}
		st := s.stateAt(occ, cut)
		if n := len(c.spans); n == 0 || c.spans[n-1].state != st {
			c.spans = append(c.spans, span{cut, st})
		}
	}
	return c
}

// occurrences lists the openings that touch from..to.
func (s *Set) occurrences(from, to int64, endpoint *time.Location) []occurrence {
	var all []occurrence
	for i := range s.windows {
		w := &s.windows[i]
		loc := w.loc
		if loc == nil {
			loc = endpoint
		}
		// A day before and after: the date there may differ from what a gap moved it to.
		first := dateOf(time.Unix(0, from-int64(w.Duration)).In(loc)) - 1
		last := dateOf(time.Unix(0, to).In(loc)) + 1
		for d := first; d <= last; d++ {
			if !w.on(d) {
				continue
			}
			at := d.start(w.Start, loc).UnixNano()
			if end := at + int64(w.Duration); end > from && at <= to {
				all = append(all, occurrence{at, end, i})
			}
		}
	}
	return all
}

// stateAt decides: deny before all, then mandatory, then allow, then, without any window that
// allows, open.
func (s *Set) stateAt(occ []occurrence, t int64) State {
	st := State{Open: !s.allows, By: -1}
	for _, o := range occ {
		if t < o.from || t >= o.to {
			continue
		}
		switch s.windows[o.window].Mode {
		case Deny:
			return State{By: o.window}
		case Mandatory:
			if !st.Mandatory {
				st = State{Open: true, Mandatory: true, By: o.window}
			}
		default:
			if st.By < 0 {
				st = State{Open: true, By: o.window}
			}
		}
	}
	return st
}

// Covers reports whether t lies in the stretch that was worked out.
func (c *Calendar) Covers(t time.Time) bool {
	n := t.UnixNano()
	return c != nil && c.from <= n && n <= c.to
}

// At returns the state at t, which the calendar must cover; else it is closed.
func (c *Calendar) At(t time.Time) State {
	if !c.Covers(t) {
		return State{By: -1}
	}
	return c.spans[c.find(t.UnixNano())].state
}

// find returns the index of the span that holds n.
func (c *Calendar) find(n int64) int {
	lo, hi := 0, len(c.spans)
	for hi-lo > 1 {
		if mid := (lo + hi) / 2; c.spans[mid].from <= n {
			lo = mid
		} else {
			hi = mid
		}
	}
	return lo
}

// Next returns the first instant not before t, and covered, at which the set is open.
func (c *Calendar) Next(t time.Time) (time.Time, bool) {
	if !c.Covers(t) {
		return time.Time{}, false
	}
	n := t.UnixNano()
	for i := c.find(n); i < len(c.spans); i++ {
		if c.spans[i].state.Open {
			if c.spans[i].from <= n {
				return t, true
			}
			return time.Unix(0, c.spans[i].from).In(t.Location()), true
		}
	}
	return time.Time{}, false
}

// Change returns the first instant after t at which the state is another, and whether it is
// covered.
func (c *Calendar) Change(t time.Time) (time.Time, bool) {
	if !c.Covers(t) {
		return time.Time{}, false
	}
	if i := c.find(t.UnixNano()) + 1; i < len(c.spans) {
		return time.Unix(0, c.spans[i].from).In(t.Location()), true
	}
	return time.Time{}, false
}
