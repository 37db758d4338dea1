// Package window says when something may happen: at one o'clock on Saturdays, from ten days
// before the end of a quarter not at all, on the Thursday after the second Tuesday in any case.
//
// It is pure: no clock, no goroutine; what it is asked is always "at this instant". It rests on
// four definitions, each of which some product gets wrong:
//
//   - A zone is an IANA name, or "endpoint": the zone of the machine that asks. A fixed offset from
//     UTC is no zone, since it is wrong for half of the year.
//   - A duration is elapsed time. A window of four hours lasts four hours in the night in which
//     clocks change, too.
//   - A start that the clocks skip moves to the first instant that exists; one that they show twice
//     is the first of the two, and the window opens once.
//   - An nth weekday with an offset counts days from that weekday, over the end of a month if need
//     be.
package window

import (
	"fmt"
	"strings"
	"time"
	_ "time/tzdata" // zones are known on a machine without the files of its own

	"coppice.dev/coppice/namespace"
)

// Endpoint is the Zone of a window that is read on each machine's own clock.
const Endpoint = "endpoint"

// Bounds of what a policy may ask for.
const (
	// DurationMax bounds a window: what recurs weekly has no use for more, and the search for the
	// occurrence that holds an instant looks back this far.
	DurationMax = 7 * Dayspan
	// SetMax bounds the windows of one policy; every decision looks at each.
	SetMax = 64
	// OffsetMax bounds the days between an nth weekday and the start: a month.
	OffsetMax = 31
	// HorizonMax bounds how far a search for an opening goes: the fifth Monday of a month, with
	// the longest gap between two, and a year of it for what is denied around it.
	HorizonMax = 400 * Dayspan
)

// Dayspan is 24 hours of elapsed time; a calendar's day may be shorter or longer.
const Dayspan = 24 * time.Hour

// Mode says what a window does while it is open.
type Mode string

// The modes. A deny window is stronger than all others; a mandatory one is an allow window in
// which a person's deferral does not count.
const (
	Allow     Mode = "allow"
	Deny      Mode = "deny"
	Mandatory Mode = "mandatory"
)

// Window recurs on Days, or on the Nth weekday of each month, or, with neither, every day.
type Window struct {
	Name     string   `json:"name,omitempty"` // for people; shown by explain
	Days     []Day    `json:"days,omitempty"`
	Nth      *Nth     `json:"nth,omitempty"`
	Start    Clock    `json:"start"`
	Duration Duration `json:"duration"` // elapsed; more than 0, at most DurationMax
	Zone     string   `json:"zone"`     // IANA name, or Endpoint
	Mode     Mode     `json:"mode,omitempty"`
}

// Nth is the Nth Day of a month (1 to 5; -1 is the last), and Offset days later (or earlier).
type Nth struct {
	N      int `json:"n"`
	Day    Day `json:"day"`
	Offset int `json:"offset,omitempty"`
}

// Day is a day of the week, "Mon" to "Sun" in text.
type Day time.Weekday

// Clock is a wall clock's time in minutes since midnight, "HH:MM" in text.
type Clock int

// Duration is elapsed time; text is as in Go with days added: "7d", "1d12h", "90m".
type Duration time.Duration

// Check returns an Invalid error whose subject is the path of the faulty field, below path.
func (w Window) Check(path string) error {
	switch {
	case len(w.Days) > 0 && w.Nth != nil:
		return fault(path+".nth", "a window has days or an nth weekday, not both")
	case len(w.Name) > namespace.RefNameBytesMax:
		return fault(path+".name", "%d bytes, at most %d", len(w.Name), namespace.RefNameBytesMax)
	case w.Start < 0 || w.Start >= 24*60:
		return fault(path+".start", "want 00:00 to 23:59")
	case w.Duration <= 0 || time.Duration(w.Duration) > DurationMax:
		return fault(path+".duration", "%s, want more than 0 and at most %s", w.Duration, Duration(DurationMax))
	case w.Mode != "" && w.Mode != Allow && w.Mode != Deny && w.Mode != Mandatory:
		return fault(path+".mode", "%q, want allow, deny or mandatory", w.Mode)
	}
	for i, d := range w.Days {
		if d < 0 || d > 6 {
			return fault(fmt.Sprintf("%s.days[%d]", path, i), "no day of the week")
		}
	}
	if n := w.Nth; n != nil {
		switch {
		case n.N != -1 && (n.N < 1 || n.N > 5):
			return fault(path+".nth.n", "%d, want 1 to 5, or -1 for the last", n.N)
		case n.Day < 0 || n.Day > 6:
			return fault(path+".nth.day", "no day of the week")
		case n.Offset < -OffsetMax || n.Offset > OffsetMax:
			return fault(path+".nth.offset", "%d days, at most %d", n.Offset, OffsetMax)
		}
	}
	_, err := zone(w.Zone, path+".zone")
	return err
}

// zone returns the location of a zone's name, nil for Endpoint.
func zone(name, path string) (*time.Location, error) {
	switch {
	case name == Endpoint:
		return nil, nil
	case name == "" || name == "Local":
		return nil, fault(path, "want an IANA zone such as Europe/Zurich, or %q", Endpoint)
	}
	loc, err := time.LoadLocation(name)
	if err != nil {
		return nil, fault(path, "%q is no IANA zone, nor %q", name, Endpoint)
	}
	return loc, nil
}

// on reports whether the window starts on a date.
func (w *Window) on(d date) bool {
	if w.Nth == nil {
		if len(w.Days) == 0 {
			return true
		}
		for _, day := range w.Days {
			if time.Weekday(day) == d.weekday() {
				return true
			}
		}
		return false
	}
	anchor := d - date(w.Nth.Offset)
	if anchor.weekday() != time.Weekday(w.Nth.Day) {
		return false
	}
	if w.Nth.N < 0 {
		return anchor.day()+7 > anchor.daysInMonth()
	}
	return (anchor.day()-1)/7+1 == w.Nth.N
}

// date counts the days of the calendar since 1970-01-01.
type date int

func dateOf(t time.Time) date {
	y, m, d := t.Date()
	return date(time.Date(y, m, d, 0, 0, 0, 0, time.UTC).Unix() / 86400)
}

func (d date) utc() time.Time        { return time.Unix(int64(d)*86400, 0).UTC() }
func (d date) weekday() time.Weekday { return d.utc().Weekday() }
func (d date) day() int              { return d.utc().Day() }
func (d date) daysInMonth() int {
	y, m, _ := d.utc().Date()
	return time.Date(y, m+1, 0, 0, 0, 0, 0, time.UTC).Day()
}

// start returns the first instant at which clocks in loc show c on d or, if they never do, the
// first after the gap.
//
// It walks the zone's periods, in each of which the offset is one. In the first whose end comes
// after the wanted reading, either the reading exists, or it lies before the period's beginning:
// then the clocks skipped it.
func (d date) start(c Clock, loc *time.Location) time.Time {
	wall := int64(d)*86400 + int64(c)*60
	// No zone ever was more than 16 hours from UTC: a day and some before is early enough.
	t := time.Unix(wall-26*3600, 0).In(loc)
	for {
		_, offset := t.Zone()
		begin, end := t.ZoneBounds()
		at := wall - int64(offset)
		if end.IsZero() || at < end.Unix() {
			if !begin.IsZero() {
				at = max(at, begin.Unix())
			}
			return time.Unix(at, 0).In(loc)
		}
		t = end
	}
}

// describe says what a window is, for people.
func (w *Window) describe() string {
	var b strings.Builder
	if w.Name != "" {
		fmt.Fprintf(&b, "%s: ", w.Name)
	}
	switch {
	case w.Nth != nil:
		n := fmt.Sprintf("%d.", w.Nth.N)
		if w.Nth.N < 0 {
			n = "last"
		}
		fmt.Fprintf(&b, "%s %s of the month", n, w.Nth.Day)
		if w.Nth.Offset != 0 {
			fmt.Fprintf(&b, " %+d days", w.Nth.Offset)
		}
	case len(w.Days) > 0:
		for i, d := range w.Days {
			if i > 0 {
				b.WriteByte(',')
			}
			b.WriteString(d.String())
		}
	default:
		b.WriteString("daily")
	}
	fmt.Fprintf(&b, " %s for %s (%s)", w.Start, w.Duration, w.Zone)
	return b.String()
}

func fault(path, format string, args ...any) error {
	return namespace.E(namespace.Invalid, "check window", path, fmt.Errorf(format, args...))
}
