package namespace

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
)

// DigestSize is the length of a [Digest] in bytes.
const DigestSize = sha256.Size

const digestPrefix = "sha256:"

// Digest is the SHA-256 of an object's plaintext bytes. Its text form is that of
// opencontainers/go-digest: "sha256:" and 64 lower-case hex digits. The zero Digest names
// nothing; catalogs use it for holes.
type Digest [DigestSize]byte

// Sum returns the digest of b.
func Sum(b []byte) Digest { return sha256.Sum256(b) }

// ParseDigest reads the text form. Errors: Invalid.
func ParseDigest(s string) (Digest, error) {
	if len(s) != len(digestPrefix)+2*DigestSize || s[:len(digestPrefix)] != digestPrefix {
		return Digest{}, E(Invalid, "parse digest", s, fmt.Errorf("want %q and 64 hex digits", digestPrefix))
	}
	return ParseHex(s[len(digestPrefix):])
}

// ParseHex reads the 64 lower-case hex digits of a digest without its prefix. Errors: Invalid.
func ParseHex(s string) (Digest, error) {
	var d Digest
	if len(s) != 2*DigestSize {
		return Digest{}, E(Invalid, "parse digest", s, fmt.Errorf("want 64 hex digits"))
	}
	if _, err := hex.Decode(d[:], []byte(s)); err != nil {
		return Digest{}, E(Invalid, "parse digest", s, err)
	}
	if d.Hex() != s { // upper case would give one digest two names
		return Digest{}, E(Invalid, "parse digest", s, fmt.Errorf("want lower-case hex digits"))
	}
	return d, nil
}

// String returns the text form, "sha256:…".
func (d Digest) String() string { return digestPrefix + d.Hex() }

// Hex returns the 64 hex digits without the prefix.
func (d Digest) Hex() string { return hex.EncodeToString(d[:]) }

// Short returns the first 12 hex digits, for people; never parse it.
func (d Digest) Short() string { return hex.EncodeToString(d[:6]) }

// IsZero reports whether d names nothing.
func (d Digest) IsZero() bool { return d == Digest{} }

// MarshalText implements encoding.TextMarshaler.
func (d Digest) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler. Errors: Invalid.
func (d *Digest) UnmarshalText(b []byte) error {
	v, err := ParseDigest(string(b))
	if err == nil {
		*d = v
	}
	return err
}
