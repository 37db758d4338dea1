package window

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

var dayNames = [7]string{"Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"}

// String returns "Mon" to "Sun".
func (d Day) String() string {
	if d < 0 || d > 6 {
		return "Day(" + strconv.Itoa(int(d)) + ")"
	}
	return dayNames[d]
}

// MarshalText implements encoding.TextMarshaler.
func (d Day) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler. Errors: Invalid.
func (d *Day) UnmarshalText(b []byte) error {
	for i, n := range dayNames {
		if n == string(b) {
			*d = Day(i)
			return nil
		}
	}
	return fault(strconv.Quote(string(b)), "want Mon, Tue, Wed, Thu, Fri, Sat or Sun")
}

// String returns "HH:MM".
func (c Clock) String() string { return fmt.Sprintf("%02d:%02d", int(c)/60, int(c)%60) }

// MarshalText implements encoding.TextMarshaler.
func (c Clock) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler; it takes "HH:MM" only. Errors: Invalid.
func (c *Clock) UnmarshalText(b []byte) error {
	t, err := time.Parse("15:04", string(b))
	if err != nil || len(b) != len("15:04") {
		return fault(strconv.Quote(string(b)), "want HH:MM, 00:00 to 23:59")
	}
	*c = Clock(t.Hour()*60 + t.Minute())
	return nil
}

// String returns the shortest text that UnmarshalText reads back.
func (d Duration) String() string {
	days, rest := time.Duration(d)/Dayspan, time.Duration(d)%Dayspan
	if days <= 0 {
		return trim(time.Duration(d).String())
	}
	if rest == 0 {
		return fmt.Sprintf("%dd", days)
	}
	return fmt.Sprintf("%dd%s", days, trim(rest.String()))
}

// trim drops the zero units that Go prints: 4h0m0s is 4h.
func trim(s string) string {
	if strings.HasSuffix(s, "m0s") {
		s = s[:len(s)-2]
	}
	if strings.HasSuffix(s, "h0m") {
		s = s[:len(s)-2]
	}
	return s
}

// MarshalText implements encoding.TextMarshaler.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler; days come first and are whole. Errors: Invalid.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := ParseDuration(string(b))
	if err == nil {
		*d = v
	}
	return err
}

// daysMax keeps a duration within what 63 bits of nanoseconds hold, twice.
const daysMax = 50_000

// ParseDuration reads "7d", "1d12h", "90m". Negative durations are Invalid.
func ParseDuration(s string) (Duration, error) {
	bad := func() (Duration, error) {
		return 0, fault(strconv.Quote(s), "want a duration such as 7d, 1d12h, 90m or 30s")
	}
	var total time.Duration
	rest := s
	if days, after, found := strings.Cut(s, "d"); found {
		n, err := strconv.ParseUint(days, 10, 32)
		if err != nil || n > daysMax {
			return bad()
		}
		total, rest = time.Duration(n)*Dayspan, after
	}
	if rest != "" {
		v, err := time.ParseDuration(rest)
		if err != nil || v < 0 || v > daysMax*Dayspan || rest[0] == '+' || rest[0] == '-' {
			return bad()
		}
		total += v
	} else if s == "" {
		return bad()
	}
	if total > daysMax*Dayspan {
		return bad()
	}
	return Duration(total), nil
}
