package namespace

import (
	"fmt"
	"strconv"
	"strings"
)

// CheckName returns an Invalid error unless s can name a tree, a namespace or a channel:
// components of [a-z0-9] followed by [a-z0-9._+-], joined by "/", at most RefNameBytesMax bytes.
// Such a name is safe as a path and in a URL, and two never differ in case only.
func CheckName(s string) error {
	if s == "" || len(s) > RefNameBytesMax {
		return E(Invalid, "check name", strconv.Quote(s), fmt.Errorf("want 1 to %d bytes", RefNameBytesMax))
	}
	for part := range strings.SplitSeq(s, "/") {
		if !checkComponent(part) {
			return E(Invalid, "check name", strconv.Quote(s),
				fmt.Errorf("want lower-case letters, digits and . _ + - (a letter or digit first), joined by /"))
		}
	}
	return nil
}

func checkComponent(s string) bool {
	for i := range len(s) {
		c := s[i]
		alnum := c >= 'a' && c <= 'z' || c >= '0' && c <= '9'
		if !alnum && (i == 0 || !strings.ContainsRune("._+-", rune(c))) {
			return false
		}
	}
	return s != ""
}

// Version is a human version NAME@N of a tree or a namespace. N counts from 1; 0 means the newest.
type Version struct {
	Name string
	N    uint64
}

// ParseVersion reads "NAME@N", or "NAME" for the newest. Errors: Invalid.
func ParseVersion(s string) (Version, error) {
	name, num, found := strings.Cut(s, "@")
	if err := CheckName(name); err != nil {
		return Version{}, err
	}
	if !found {
		return Version{Name: name}, nil
	}
	n, err := strconv.ParseUint(num, 10, 63)
	if err != nil || n == 0 || strconv.FormatUint(n, 10) != num {
		return Version{}, E(Invalid, "parse version", strconv.Quote(s), fmt.Errorf("want NAME@N with N ≥ 1"))
	}
	return Version{Name: name, N: n}, nil
}

// String returns "NAME@N", or "NAME" if N is 0.
func (v Version) String() string {
	if v.N == 0 {
		return v.Name
	}
	return v.Name + "@" + strconv.FormatUint(v.N, 10)
}

// MarshalText implements encoding.TextMarshaler.
func (v Version) MarshalText() ([]byte, error) { return []byte(v.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler. Errors: Invalid.
func (v *Version) UnmarshalText(b []byte) error {
	got, err := ParseVersion(string(b))
	if err == nil {
		*v = got
	}
	return err
}
