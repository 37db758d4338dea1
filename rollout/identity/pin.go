package identity

import (
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"

	"coppice.dev/coppice/namespace"
)

// Pin is the SHA-256 digest of a public key (of its SubjectPublicKeyInfo, as in RFC 7469). Its text
// is "sha256:" and 64 hex digits. It outlives certificates: whoever renews one keeps the key. The zero
// Pin is none and matches nothing.
type Pin [sha256.Size]byte

const pinPrefix = "sha256:"

// PinOf returns the pin of a certificate's key.
func PinOf(c *x509.Certificate) Pin { return sha256.Sum256(c.RawSubjectPublicKeyInfo) }

// ParsePin is the inverse of String; only its spelling is accepted. Kinds: Invalid.
func ParsePin(s string) (Pin, error) {
	var p Pin
	digits, ok := strings.CutPrefix(s, pinPrefix)
	n, err := hex.Decode(p[:], []byte(digits[:min(len(digits), 2*len(p))]))
	if !ok || err != nil || n != len(p) || len(digits) != 2*len(p) || p.String() != s || p.IsZero() {
		return Pin{}, namespace.WithHint(namespace.E(namespace.Invalid, "parse pin", strconv.Quote(s), errors.New("want sha256: and 64 hex digits")),
			"`coppice origin serve` shows it when it starts")
	}
	return p, nil
}

// String returns the text form.
func (p Pin) String() string { return pinPrefix + hex.EncodeToString(p[:]) }

// IsZero reports whether p is none.
func (p Pin) IsZero() bool { return p == Pin{} }

// Matches reports whether c has the pinned key.
func (p Pin) Matches(c *x509.Certificate) bool {
	got := PinOf(c)
	return !p.IsZero() && subtle.ConstantTimeCompare(got[:], p[:]) == 1
}

// MarshalText implements encoding.TextMarshaler.
func (p Pin) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler. Kinds: Invalid.
func (p *Pin) UnmarshalText(b []byte) error {
	got, err := ParsePin(string(b))
	if err == nil {
		*p = got
	}
	return err
}

// Location is a server's URL and how it proves itself.
type Location struct {
	URL string // http or https, without the pin; what is no such URL is kept as it is
	// Pin is the key that the server must have; zero is not said here.
	Pin Pin
	// ByKey says that the server proves itself by its key: the pinned one, or, if Pin is zero, the one
	// seen at first contact.
	ByKey bool
}

const pinScheme = "https+pin://"

// ParseLocation reads a location, which may carry a pin:
//
//	https+pin://sha256:HEX@HOST/PATH   the server's key is the one with this pin
//	https+pin://HOST/PATH              it is the one seen at first contact
//
// Any other is returned as it is. Kinds: Invalid.
func ParseLocation(s string) (Location, error) {
	rest, ok := strings.CutPrefix(s, pinScheme)
	if !ok {
		return Location{URL: s}, nil
	}
	u, err := url.Parse("https://" + rest)
	if err != nil || u.Hostname() == "" {
		return Location{}, namespace.E(namespace.Invalid, "parse location", strconv.Quote(s), fmt.Errorf("want %ssha256:HEX@HOST/PATH", pinScheme))
	}
	l := Location{ByKey: true}
	if u.User != nil {
		digits, _ := u.User.Password()
		if l.Pin, err = ParsePin(u.User.Username() + ":" + digits); err != nil {
			return Location{}, err
		}
		u.User = nil
	}
	l.URL = u.String()
	return l, nil
}
