package policy

import (
	"fmt"
	"slices"
	"time"

	"coppice.dev/coppice/rollout/window"
)

// Blocking is one thing that stands in the way of a change.
type Blocking struct {
	Gate  string    `json:"gate"` // a Gate, or the name of what is stronger than gates
	Why   string    `json:"why"`
	Until time.Time `json:"until,omitzero"` // when it will be open; zero: nobody knows
	By    Setting   `json:"by,omitzero"`    // the setting behind it, and who set that
}

// Explanation says what stands in the way of a change, and when it could happen.
type Explanation struct {
	Open     bool       `json:"open"`
	Blocking []Blocking `json:"blocking,omitempty"`
	Skipped  []Gate     `json:"skipped,omitempty"` // closed, but skipped by severity or by a person's "now"
	// Earliest is the first instant at which the gates could be open; zero: none within
	// window.HorizonMax. Assumes are closed gates that it takes to open by then: nobody can
	// foresee them.
	Earliest time.Time `json:"earliest,omitzero"`
	Assumes  []Gate    `json:"assumes,omitempty"`
	// Deadline, if there is one, and the clock that set it; Infeasible: nothing but the deadline
	// itself would open the gates before it.
	Deadline   time.Time `json:"deadline,omitzero"`
	Clock      string    `json:"clock,omitempty"`
	Infeasible bool      `json:"infeasible,omitempty"`
}

// Explain answers with reasons. expires ends the search for an opening (the zero Time does not);
// notBefore begins it.
func (e *Effective) Explain(q *Question, now, notBefore, expires time.Time) Explanation {
	a := e.Answer(q, now)
	if e.when != nil { // Answer asks it only where it decides
		a.set(whenHolds, e.when.Ask(e.inputs(q, now)) == nil)
	}
	x := Explanation{Open: a.Open}
	x.Deadline, x.Clock = e.Deadline(q)
	for i, g := range gates {
		bit := mask(1) << i
		if a.open&bit == 0 && e.matters(bit, a.open) {
			x.Blocking = append(x.Blocking, e.blocking(g, q, now))
		}
		if a.skipped&bit != 0 && e.used&bit != 0 {
			x.Skipped = append(x.Skipped, g)
		}
	}
	from := now
	if notBefore.After(from) {
		from = notBefore
	}
	var found bool
	if x.Earliest, found = e.earliest(q, &a, from, expires, unforeseen); found {
		foreseen := e.foreseen(q, &a, x.Earliest)
		for i, g := range gates {
			if bit := mask(1) << i; bit&unforeseen&^a.open != 0 && e.matters(bit, foreseen) {
				x.Assumes = append(x.Assumes, g)
			}
		}
	}
	if !x.Deadline.IsZero() && now.Before(x.Deadline) {
		without := *e
		without.after = 0
		at, opens := without.earliest(q, &a, from, x.Deadline, unforeseen)
		x.Infeasible = !opens || !at.Before(x.Deadline)
	}
	return x
}

// matters reports whether opening a gate can be part of what is needed: with some more gates open
// than are, it makes the difference.
func (e *Effective) matters(bit, open mask) bool {
	for m := range 256 {
		if more := mask(m) | open; more&bit == 0 && !e.rule.holds(more) && e.rule.holds(more|bit) {
			return true
		}
	}
	return false
}

// earliest searches for the first instant from which the gates that can be foreseen, with those of
// assumed taken as open, let a change through.
func (e *Effective) earliest(q *Question, a *Answer, from, until time.Time, assumed mask) (time.Time, bool) {
	for span := 8 * window.Dayspan; ; span *= 4 {
		span = min(span, window.HorizonMax)
		if e.used&inWindow == 0 {
			span = window.HorizonMax
		}
		p := e.Prepare(from, from.Add(span), q.Facts.Zone)
		for at, more := from, true; more; at, more = p.next(q, at) {
			if !until.IsZero() && !at.Before(until) || at.After(from.Add(span)) {
				break
			}
			if e.rule.holds(p.foreseen(q, a, at) | assumed) {
				return at, true
			}
		}
		if span == window.HorizonMax || !until.IsZero() && until.Before(from.Add(span)) {
			return time.Time{}, false
		}
	}
}

// foreseen returns the gates open at an instant as far as one can know now.
func (e *Effective) foreseen(q *Question, a *Answer, at time.Time) mask {
	f := Answer{open: a.skipped | a.open&unforeseen}
	st := e.windowState(q, at)
	f.set(inWindow, st.Open)
	deadline, _ := e.Deadline(q)
	f.set(pastDeadline, !deadline.IsZero() && !at.Before(deadline))
	f.set(notDeferred, st.Mandatory || !at.Before(q.Deferred))
	f.set(notBusy, e.most > 0 && !q.Staged.IsZero() && !at.Before(q.Staged.Add(e.most)))
	return f.open
}

// next returns the first instant after at when something that can be foreseen changes.
func (e *Effective) next(q *Question, at time.Time) (time.Time, bool) {
	var first time.Time
	take := func(t time.Time) {
		if t.After(at) && (first.IsZero() || t.Before(first)) {
			first = t
		}
	}
	if e.used&inWindow != 0 && e.windows.Len() > 0 {
		if e.zone == q.Facts.Zone && e.calendar.Covers(at) {
			if t, more := e.calendar.Change(at); more {
				take(t)
			}
		} else if t, more := e.windows.Calendar(at, at.Add(8*window.Dayspan), q.Facts.Zone).Change(at); more {
			take(t)
		} else {
			take(at.Add(8 * window.Dayspan)) // nothing within a week: look again then
		}
	}
	deadline, _ := e.Deadline(q)
	take(deadline)
	take(q.Deferred)
	if e.most > 0 && !q.Staged.IsZero() {
		take(q.Staged.Add(e.most))
	}
	if q.Facts.Slot.Held {
		take(q.Facts.Slot.Until)
	}
	return first, !first.IsZero()
}

// Wake returns the next instant after now at which an answer may differ though no fact does; false
// if there is none.
func (e *Effective) Wake(q *Question, now time.Time) (time.Time, bool) { return e.next(q, now) }

// blocking says why a gate is closed, until when, and who set it.
func (e *Effective) blocking(g Gate, q *Question, now time.Time) Blocking {
	b := Blocking{Gate: string(g)}
	key := string(g)
	switch g {
	case WindowGate:
		key = "windows"
		b.Why = "denied by " + e.windows.Describe(e.windowState(q, now).By)
		if by := e.windowState(q, now).By; by < 0 {
			b.Why = e.windows.Describe(by)
		}
		if e.windows.NeedsZone() && q.Facts.Zone == nil {
			b.Why = "the endpoint's time zone is not known"
		}
		b.Until, _ = e.windows.Next(now, q.Facts.Zone, window.HorizonMax)
	case DeadlineGate:
		key = "deadline.after"
		at, clock := e.Deadline(q)
		b.Why, b.Until = "there is no deadline", at
		if !at.IsZero() {
			b.Why = "the deadline, counted from when the change was " + clock + ", has not passed"
			if clock == "became reachable" {
				b.Why, key = "the deadline, counted from when the endpoint became reachable, has not passed", "deadline.grace"
			}
		}
	case DeferGate:
		key = "defer.each"
		b.Why, b.Until = "put off by a person", q.Deferred
	case LinkGate:
		key = "activate." + q.Facts.Link.String()
		b.Why = fmt.Sprintf("the link is %s", q.Facts.Link)
	case SlotGate:
		b.Why = fmt.Sprintf("no slot of the pool %q", e.slot)
	case BusyGate:
		b.Why = e.busy(q, now)
		key = e.busyKey(q)
		if e.most > 0 && !q.Staged.IsZero() {
			b.Until = q.Staged.Add(e.most)
		}
	case PowerGate:
		b.Why = e.power(q)
		if key = "power.battery"; e.ac {
			key = "power.ac"
		}
	case WhenGate:
		if err := e.when.Ask(e.inputs(q, now)); err != nil {
			b.Why = err.Error()
		}
	}
	b.By = e.from[key]
	return b
}

func (e *Effective) busyKey(q *Question) string {
	switch f := &q.Facts.Busy; {
	case e.sessions && (!f.Known || f.Sessions > 0):
		return "busy.sessions"
	case e.inhibit && (!f.Known || f.Inhibitor != ""):
		return "busy.inhibitors"
	}
	return "busy.lockFile"
}

// Sentence says an explanation in one line.
func (x *Explanation) Sentence() string {
	switch {
	case x.Open:
		return "nothing stands in the way"
	case x.Earliest.IsZero() && x.Deadline.IsZero():
		return "no opening in sight"
	case x.Infeasible && x.Earliest.IsZero():
		return "no opening, not even at the deadline"
	case x.Infeasible:
		return "no opening before the deadline " + x.Deadline.Format(time.RFC3339)
	case len(x.Assumes) > 0:
		return fmt.Sprintf("from %s on, as soon as these allow it: %v", x.Earliest.Format(time.RFC3339), slices.Clone(x.Assumes))
	}
	return "at " + x.Earliest.Format(time.RFC3339)
}
