package window

import (
	"archive/zip"
	"encoding/json"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"coppice.dev/coppice/namespace"
)

func at(t *testing.T, s, zone string) time.Time {
	t.Helper()
	loc, err := time.LoadLocation(zone)
	if err != nil {
		t.Fatal(err)
	}
	v, err := time.ParseInLocation("2006-01-02 15:04", s, loc)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func compile(t *testing.T, text string) *Set {
	t.Helper()
	var ws []Window
	if err := json.Unmarshal([]byte(text), &ws); err != nil {
		t.Fatal(err)
	}
	s, err := Compile(ws, "$.windows")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// zones lists every zone of the toolchain's own copy of the data base, links once.
func zones(t *testing.T) map[string]*time.Location {
	t.Helper()
	z, err := zip.OpenReader(filepath.Join(runtime.GOROOT(), "lib", "time", "zoneinfo.zip"))
	if err != nil {
		t.Fatalf("the Go toolchain's zone data is needed: %v", err)
	}
	defer z.Close()
	seen, all := map[uint32]bool{}, map[string]*time.Location{}
	for _, f := range z.File {
		if seen[f.CRC32] || strings.HasSuffix(f.Name, "/") {
			continue
		}
		seen[f.CRC32] = true
		loc, err := time.LoadLocation(f.Name)
		if err != nil {
			t.Fatal(err)
		}
		all[f.Name] = loc
	}
	if len(all) < 300 {
		t.Fatalf("%d zones found, that is not the data base", len(all))
	}
	return all
}

func transitions(loc *time.Location, from, to time.Time) []time.Time {
	var all []time.Time
	for t := from.In(loc); ; {
		_, end := t.ZoneBounds()
		if end.IsZero() || end.After(to) {
			return all
		}
		all, t = append(all, end), end
	}
}

// TestEveryTransitionOfEveryZone holds starts around each change of clocks against a search, minute
// by minute, for the first instant at which clocks there show the wanted time or more.
func TestEveryTransitionOfEveryZone(t *testing.T) {
	// Two years have both changes of every zone that has them now; 2011 has a day that Samoa skipped.
	spans := [][2]int{{2011, 2012}, {2026, 2027}}
	if os.Getenv("COPPICE_TEST_LONG") != "" {
		spans = [][2]int{{1973, 2036}} // before, some offsets had seconds
	}
	var checked int
	for name, loc := range zones(t) {
		var changes []time.Time
		for _, years := range spans {
			changes = append(changes, transitions(loc, time.Date(years[0], 1, 1, 0, 0, 0, 0, time.UTC), time.Date(years[1], 1, 1, 0, 0, 0, 0, time.UTC))...)
		}
		for _, change := range changes {
			_, offset := change.Add(-time.Second).Zone()
			for _, delta := range []time.Duration{-61, -30, -1, 0, 1, 30, 59, 60, 61, 150} {
				wanted := change.UTC().Add(time.Duration(offset)*time.Second + delta*time.Minute)
				d, c := dateOf(wanted), Clock(wanted.Hour()*60+wanted.Minute())
				got := d.start(c, loc)
				if want := search(change, wanted); !got.Equal(want) {
					t.Fatalf("%s: %s %s starts at %s, want %s", name, d.utc().Format("2006-01-02"), c, got, want)
				}
				checked++
			}
			checkOpensOnce(t, name, loc, change)
		}
	}
	t.Logf("%d starts", checked)
}

func search(change, wanted time.Time) time.Time {
	for at := change.Add(-3 * time.Hour); ; at = at.Add(time.Minute) {
		y, m, d := at.Date()
		if !time.Date(y, m, d, at.Hour(), at.Minute(), 0, 0, time.UTC).Before(wanted) {
			return at
		}
	}
}

// checkOpensOnce: a daily window of 4 hours around a change lasts 4 hours, each time, and opens
// once a day; whatever the clocks do.
func checkOpensOnce(t *testing.T, name string, loc *time.Location, change time.Time) {
	t.Helper()
	start := Clock(change.Hour()*60 + change.Minute())
	set := &Set{windows: []compiled{{Window{Start: start, Duration: Duration(4 * time.Hour), Mode: Allow}, nil}}, allows: true, local: true}
	from := change.Add(-60 * time.Hour)
	c := set.Calendar(from, change.Add(60*time.Hour), loc)
	var opened time.Time
	days := map[date]bool{}
	for at := from; ; {
		next, more := c.Change(at)
		if !more {
			break
		}
		if c.At(next).Open {
			opened = next
			if days[dateOf(next)] {
				t.Fatalf("%s: opens twice on the day of %s", name, next)
			}
			days[dateOf(next)] = true
		} else if d := next.Sub(opened); !opened.IsZero() && d != 4*time.Hour {
			// A date that the calendar there has not (Samoa, 30 December 2011) opens with the
			// next one: one opening, for as long as the window of the next says.
			t.Fatalf("%s: open for %s around %s", name, d, change)
		}
		at = next
	}
	if len(days) < 4 {
		t.Fatalf("%s: opened on %d days around %s", name, len(days), change)
	}
}

func TestDates(t *testing.T) {
	for _, c := range []struct {
		name, windows, zone, now, want string
	}{
		{"weekend", `[{"days":["Sat","Sun"],"start":"01:00","duration":"4h","zone":"Europe/Zurich"}]`, "Europe/Zurich", "2026-11-23 12:00", "2026-11-28 01:00"},
		{"daily", `[{"start":"22:00","duration":"4h","zone":"UTC"}]`, "UTC", "2026-11-24 01:59", "2026-11-24 01:59"},
		{"daily closed", `[{"start":"22:00","duration":"4h","zone":"UTC"}]`, "UTC", "2026-11-24 02:00", "2026-11-24 22:00"},
		{"second Tuesday", `[{"nth":{"n":2,"day":"Tue"},"start":"10:00","duration":"1h","zone":"UTC"}]`, "UTC", "2026-12-01 00:00", "2026-12-08 10:00"},
		{"Thursday after it", `[{"nth":{"n":2,"day":"Tue","offset":2},"start":"10:00","duration":"1h","zone":"UTC"}]`, "UTC", "2026-12-01 00:00", "2026-12-10 10:00"},
		{"offset over the month's end", `[{"nth":{"n":-1,"day":"Mon","offset":3},"start":"10:00","duration":"1h","zone":"UTC"}]`, "UTC", "2026-12-01 00:00", "2026-12-03 10:00"},
		{"offset back over the month's begin", `[{"nth":{"n":1,"day":"Tue","offset":-2},"start":"10:00","duration":"1h","zone":"UTC"}]`, "UTC", "2026-11-22 00:00", "2026-11-29 10:00"},
		{"fifth Monday", `[{"nth":{"n":5,"day":"Mon"},"start":"10:00","duration":"1h","zone":"UTC"}]`, "UTC", "2026-12-01 00:00", "2027-03-29 10:00"},
		{"last Friday", `[{"nth":{"n":-1,"day":"Fri"},"start":"10:00","duration":"1h","zone":"UTC"}]`, "UTC", "2027-02-01 00:00", "2027-02-26 10:00"},
		{"deny cuts", `[{"start":"00:00","duration":"24h","zone":"UTC"},{"days":["Mon"],"start":"08:00","duration":"10h","zone":"UTC","mode":"deny"}]`, "UTC", "2026-11-23 09:00", "2026-11-23 18:00"},
		{"only denies", `[{"days":["Mon"],"start":"08:00","duration":"10h","zone":"UTC","mode":"deny"}]`, "UTC", "2026-11-23 07:00", "2026-11-23 07:00"},
		{"the hour that is skipped", `[{"start":"02:30","duration":"30m","zone":"Europe/Zurich"}]`, "Europe/Zurich", "2027-03-28 00:00", "2027-03-28 03:00"},
		{"the endpoint's zone", `[{"start":"01:00","duration":"1h","zone":"endpoint"}]`, "Asia/Kathmandu", "2026-11-23 12:00", "2026-11-24 01:00"},
		{"no windows", `[]`, "UTC", "2026-11-23 12:00", "2026-11-23 12:00"},
	} {
		s, now := compile(t, c.windows), at(t, c.now, c.zone)
		got, found := s.Next(now, now.Location(), HorizonMax)
		if want := at(t, c.want, c.zone); !found || !got.Equal(want) {
			t.Errorf("%s: opens %v (%t), want %s", c.name, got, found, want)
		}
		if found && !s.At(got, now.Location()).Open {
			t.Errorf("%s: not open at its opening", c.name)
		}
	}
}

func TestNeverOpens(t *testing.T) {
	s := compile(t, `[{"days":["Mon"],"start":"01:00","duration":"1h","zone":"UTC"},{"start":"00:00","duration":"2h","zone":"UTC","mode":"deny"}]`)
	if got, found := s.Next(at(t, "2026-11-23 00:00", "UTC"), time.UTC, HorizonMax); found {
		t.Errorf("opens at %s", got)
	}
	unknown := compile(t, `[{"start":"00:00","duration":"1d","zone":"endpoint"}]`)
	if unknown.At(at(t, "2026-11-23 12:00", "UTC"), nil).Open || !unknown.NeedsZone() {
		t.Error("open though nobody knows the endpoint's zone")
	}
}

func TestMandatory(t *testing.T) {
	s := compile(t, `[{"start":"00:00","duration":"1d","zone":"UTC"},{"name":"patch night","days":["Tue"],"start":"01:00","duration":"2h","zone":"UTC","mode":"mandatory"},
		{"start":"02:00","duration":"10m","zone":"UTC","mode":"deny"}]`)
	for now, want := range map[string]State{
		"2026-11-24 00:30": {Open: true, By: 0},
		"2026-11-24 01:30": {Open: true, Mandatory: true, By: 1},
		"2026-11-24 02:05": {By: 2},
	} {
		if got := s.At(at(t, now, "UTC"), time.UTC); got != want {
			t.Errorf("%s: %+v, want %+v", now, got, want)
		}
	}
	if d := s.Describe(1); d != "patch night: Tue 01:00 for 2h (UTC)" {
		t.Error(d)
	}
}

// TestNextIsTheFirst: random sets; whatever Next skips is closed, and a calendar says what At says.
func TestNextIsTheFirst(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	modes := []Mode{Allow, Deny, Mandatory, Allow}
	names := []string{"UTC", Endpoint, "Europe/Zurich", "Pacific/Apia", "America/New_York", "Australia/Lord_Howe"}
	local, err := time.LoadLocation("America/Santiago")
	if err != nil {
		t.Fatal(err)
	}
	for range 300 {
		var ws []Window
		for range 1 + rng.IntN(5) {
			w := Window{Start: Clock(rng.IntN(1440)), Duration: Duration(time.Duration(1+rng.IntN(60)) * time.Hour / 2), Zone: names[rng.IntN(len(names))], Mode: modes[rng.IntN(4)]}
			switch rng.IntN(3) {
			case 0:
				w.Days = []Day{Day(rng.IntN(7)), Day(rng.IntN(7))}
			case 1:
				w.Nth = &Nth{N: 1 + rng.IntN(4), Day: Day(rng.IntN(7)), Offset: rng.IntN(20) - 10}
			}
			ws = append(ws, w)
		}
		s, err := Compile(ws, "$")
		if err != nil {
			t.Fatal(err)
		}
		now := time.Unix(1_300_000_000+rng.Int64N(700_000_000), 0)
		c := s.Calendar(now, now.Add(40*Dayspan), local)
		next, found := s.Next(now, local, 40*Dayspan)
		for range 60 {
			p := now.Add(time.Duration(rng.Int64N(int64(40 * Dayspan))))
			st := s.At(p, local)
			if got := c.At(p); got != st {
				t.Fatalf("calendar says %+v at %s, the set %+v: %+v", got, p, st, ws)
			}
			if st.Open && (!found || p.Before(next)) {
				t.Fatalf("open at %s, before %s: %+v", p, next, ws)
			}
		}
		if found && !s.At(next, local).Open {
			t.Fatalf("closed at %s: %+v", next, ws)
		}
	}
}

func TestFaultsNameTheField(t *testing.T) {
	for text, path := range map[string]string{
		`[{"start":"01:00","zone":"UTC"}]`:                                                               "$.w[0].duration",
		`[{"start":"01:00","duration":"8d","zone":"UTC"}]`:                                               "$.w[0].duration",
		`[{"start":"01:00","duration":"1h"}]`:                                                            "$.w[0].zone",
		`[{"start":"01:00","duration":"1h","zone":"Local"}]`:                                             "$.w[0].zone",
		`[{"start":"01:00","duration":"1h","zone":"Europe/Atlantis"}]`:                                   "$.w[0].zone",
		`[{"start":"01:00","duration":"1h","zone":"../../etc/passwd"}]`:                                  "$.w[0].zone",
		`[{"start":"01:00","duration":"1h","zone":"UTC","mode":"maybe"}]`:                                "$.w[0].mode",
		`[{"start":"01:00","duration":"1h","zone":"UTC"},{"nth":{"n":6}}]`:                               "$.w[1].duration",
		`[{"start":"01:00","duration":"1h","zone":"UTC","nth":{"n":0,"day":"Mon"}}]`:                     "$.w[0].nth.n",
		`[{"start":"01:00","duration":"1h","zone":"UTC","nth":{"n":1,"day":"Mon","offset":32}}]`:         "$.w[0].nth.offset",
		`[{"start":"01:00","duration":"1h","zone":"UTC","days":["Mon"],"nth":{"n":1,"day":"Mon"}}]`:      "$.w[0].nth",
		`[{"start":"01:00","duration":"1h","zone":"UTC","name":"` + strings.Repeat("x", 300) + `"}]`:     "$.w[0].name",
		"[" + strings.Repeat(`{"start":"01:00","duration":"1h","zone":"UTC"},`, SetMax) + `{"zone":""}]`: "$.w",
	} {
		var ws []Window
		if err := json.Unmarshal([]byte(text), &ws); err != nil {
			t.Fatal(err)
		}
		_, err := Compile(ws, "$.w")
		var e *namespace.Error
		if !namespace.IsKind(err, namespace.Invalid) || !asError(err, &e) || e.Subject != path {
			t.Errorf("%.80s: %v, want Invalid at %s", text, err, path)
		}
	}
}

func asError(err error, to **namespace.Error) bool {
	e, ok := err.(*namespace.Error)
	*to = e
	return ok
}

func TestText(t *testing.T) {
	for in, want := range map[string]time.Duration{"7d": 168 * time.Hour, "1d12h": 36 * time.Hour, "90m": 90 * time.Minute, "0s": 0} {
		d, err := ParseDuration(in)
		if err != nil || time.Duration(d) != want {
			t.Errorf("%s: %v %v", in, d, err)
		}
	}
	for _, in := range []string{"", "d", "-1h", "1d-1h", "1d+1h", "1w", "99999d", "1.5d", "1h1d", "7", "9999999h"} {
		if d, err := ParseDuration(in); !namespace.IsKind(err, namespace.Invalid) {
			t.Errorf("%q is %v, %v", in, d, err)
		}
	}
	for _, in := range []string{"24:00", "1:00", "01:60", "01:00:00", "", "0100", "-1:00"} {
		var c Clock
		if c.UnmarshalText([]byte(in)) == nil {
			t.Errorf("%q is %s", in, c)
		}
	}
}

func FuzzDuration(f *testing.F) {
	for _, s := range []string{"7d", "1d12h", "90m", "1h0m1s", "50000d", "1ns", "d7"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		d, err := ParseDuration(s)
		if err != nil {
			return
		}
		if again, err := ParseDuration(d.String()); err != nil || again != d {
			t.Fatalf("%q is %s, which is %s, %v", s, d, again, err)
		}
	})
}
