package trust

import (
	"fmt"
	"time"

	"coppice.dev/coppice/namespace"
)

// Clock is what an endpoint remembers of time, kept durably, so that neither a clock that is wound back
// nor one that ran ahead can make it take an old record for a fresh one, or refuse a fresh one for ever.
// It is a value; the functions below return the next one.
type Clock struct {
	Format  int       `json:"format"`
	Highest time.Time `json:"highest,omitzero"` // the latest time this machine's clock has shown
	Signed  time.Time `json:"signed,omitzero"`  // the latest time of issue that a timestamp has proven
	Expires time.Time `json:"expires,omitzero"` // of the newest timestamp accepted
	Fresh   time.Time `json:"fresh,omitzero"`   // when the origin last proved to be fresh, by Now
}

const (
	// clockSlack is how far two honest clocks may be apart: machines without a network drift by
	// seconds a day, and are set by hand to the minute.
	clockSlack = 10 * time.Minute
	// clockFar is what no honest clock is ahead of everything that was signed: a machine that was off for
	// a year sees that year as an expired timestamp, not as a clock that is wrong.
	clockFar = 366 * 24 * time.Hour
	// clockFormat is the version of the record.
	clockFormat = 1
)

// Now returns the time that expiry is held against, for a machine whose clock shows local: never before
// what was proven, nor, unless that was absurd, before what the clock has shown. doubt is what is wrong
// with the clock, for a person; "" if nothing is.
func (c Clock) Now(local time.Time) (now time.Time, doubt string) {
	now = local
	if c.Signed.After(now) {
		now = c.Signed
	}
	switch {
	case c.Highest.Sub(now) > clockFar:
		doubt = fmt.Sprintf("the clock once showed %s, a year ahead of all that was signed: not believed", day(c.Highest))
	case c.Highest.Sub(now) > clockSlack:
		now = c.Highest
		doubt = fmt.Sprintf("the clock was wound back: it shows %s and has shown %s", day(local), day(c.Highest))
	case c.Signed.Sub(local) > clockSlack:
		doubt = fmt.Sprintf("the clock is behind: it shows %s, and the origin signed on %s", day(local), day(c.Signed))
	case !c.Expires.IsZero() && local.Sub(c.Expires) > clockFar:
		doubt = fmt.Sprintf("the clock shows %s, more than a year ahead of all that was signed: is it right?", day(local))
	}
	return now, doubt
}

// Proven returns the time that is certain for a machine whose clock shows local: what a timestamp newer than
// any before it is held against when the clock was wound back, since it may just as well have been set
// right. Such a timestamp is progress, whoever turned the clock; one that was seen before stays as old as
// Now says.
func (c Clock) Proven(local time.Time) time.Time {
	if c.Signed.After(local) {
		return c.Signed
	}
	return local
}

func day(t time.Time) string { return t.UTC().Format("2006-01-02 15:04") }

// See records that the clock shows local. It is to be kept when it changed by more than a minute.
func (c Clock) See(local time.Time) Clock {
	c.Format = clockFormat
	if local.After(c.Highest) {
		c.Highest = local.UTC().Truncate(time.Second)
	}
	return c
}

// Prove records that a timestamp issued at a time (zero: it does not say) was accepted, with the clock at
// local. If that shows the present clock to be right, what a clock that ran ahead left behind is forgotten.
func (c Clock) Prove(issued, expires, local time.Time) Clock {
	newer := issued.After(c.Signed)
	if newer {
		c.Signed = issued.UTC()
	}
	c.Expires = expires.UTC()
	if newer && issued.Sub(local) <= clockSlack && local.Before(expires) && local.Before(c.Highest) {
		c.Highest = local.UTC().Truncate(time.Second)
	}
	c = c.See(local)
	c.Fresh, _ = c.Now(local)
	c.Fresh = c.Fresh.UTC().Truncate(time.Second)
	return c
}

// Standing says how an endpoint stands with the two clocks: whether new pointers may be accepted, and
// whether what runs may go on.
type Standing struct {
	Fresh      bool      `json:"fresh"`                 // the newest timestamp has not expired
	Expires    time.Time `json:"expires,omitzero"`      // of the newest timestamp
	LeaseUntil time.Time `json:"lease_until,omitzero"`  // how long to run without another
	LeaseOver  bool      `json:"lease_over"`            //
	Then       Then      `json:"then"`                  // what the policy asks for when it is
	Doubt      string    `json:"clock_doubt,omitempty"` // what is wrong with this machine's clock
}

// Stand holds a clock against a policy. An endpoint that never saw a timestamp has no lease yet.
func (c Clock) Stand(local time.Time, p Policy) Standing {
	p = p.WithDefaults()
	now, doubt := c.Now(local)
	s := Standing{Fresh: now.Before(c.Expires), Expires: c.Expires, Then: p.Then, Doubt: doubt}
	if !c.Fresh.IsZero() {
		s.LeaseUntil = c.Fresh.Add(p.Lease)
		s.LeaseOver = !now.Before(s.LeaseUntil)
	}
	return s
}

// clockName is where a [Keeper] has the clock.
const clockName = "clock"

// LoadClock reads the clock that is kept; a damaged one is begun anew, since it only ever makes stricter.
func LoadClock(k Keeper) (Clock, error) {
	var c Clock
	b, err := k.Load(clockName)
	if err != nil || b == nil {
		return c, err
	}
	if namespace.DecodeRecord(b, recordBytesMax, clockName, &c) != nil || c.Format != clockFormat {
		return Clock{}, nil
	}
	return c, nil
}

// SaveClock keeps a clock. Kinds: those of the keeper.
func SaveClock(k Keeper, c Clock) error { return saveRecord(k, clockName, c) }

// recordBytesMax bounds the small records that an endpoint keeps.
const recordBytesMax = 4 << 10

func saveRecord(k Keeper, name string, v any) error {
	b, err := namespace.EncodeRecord(v)
	if err != nil {
		return err
	}
	return k.Save(name, b)
}
