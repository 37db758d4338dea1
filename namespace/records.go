package namespace

import (
	"bytes"
	"encoding/json"
	"fmt"
	"time"
)

// TreeVersion is one version of a tree. Entries counts names (hard links each), Bytes the
// plaintext of files (holes not counted, hard links once). Packages, if any, is the Blob with the
// table of the packages that the tree holds.
type TreeVersion struct {
	N       uint64    `json:"n"`
	Root    Digest    `json:"root"`
	Entries uint64    `json:"entries"`
	Bytes   uint64    `json:"bytes"`
	Created time.Time `json:"created"`
	Comment string    `json:"comment,omitempty"`

	Packages Digest            `json:"packages,omitzero"`
	Labels   map[string]string `json:"labels,omitempty"`
}

// Tree is the record of a tree ref: its versions, oldest first, numbered from 1 without gaps.
type Tree struct {
	Format   int           `json:"format"`
	Name     string        `json:"name"`
	Versions []TreeVersion `json:"versions"`
}

// NamespaceVersion is one version of a namespace. Manifest names the [Manifest] object.
type NamespaceVersion struct {
	N        uint64    `json:"n"`
	Manifest Digest    `json:"manifest"`
	Created  time.Time `json:"created"`
	Comment  string    `json:"comment,omitempty"`
}

// Namespace is the record of a namespace ref: its versions, oldest first, numbered from 1.
type Namespace struct {
	Format   int                `json:"format"`
	Name     string             `json:"name"`
	Versions []NamespaceVersion `json:"versions"`
}

// ManifestMount is one line of a composition: the tree Tree (its root catalog's digest), which
// a person calls Version, at the absolute, clean path Path.
type ManifestMount struct {
	Path    string  `json:"path"`
	Tree    Digest  `json:"tree"`
	Version Version `json:"version,omitzero"`
	Replace bool    `json:"replace,omitempty"`
}

// Manifest is a namespace version: what was composed, and the composed root catalog.
// An object of class Blob.
type Manifest struct {
	Format  int             `json:"format"`
	Name    string          `json:"name"`
	Mounts  []ManifestMount `json:"mounts"`
	Root    Digest          `json:"root"`
	Entries uint64          `json:"entries"`
	Bytes   uint64          `json:"bytes"`
}

// Pointer is the record of a channel ref: which namespace version is active. Seq only rises.
// Prev is the digest of the signed record it replaced, stored as a Blob, so that the history is
// a hash chain and a follower still fetches no more than the newest link.
//
// A pointer may offer a version to a part of the fleet: Next names it, and Version is then the base, which
// everybody else runs, and who has no endpoint's id. To whom, and when, says the record of package
// rollout/offer that is stored as the Blob Offer; Policy is the Blob of the gates that go with it. Both are
// here, and not only in that record, so that whoever keeps what a pointer needs does not have to understand it.
type Pointer struct {
	Format   int          `json:"format"`
	Channel  string       `json:"channel"`
	Seq      uint64       `json:"seq"`
	Version  Version      `json:"version"`
	Manifest Digest       `json:"manifest"`
	Next     NamedVersion `json:"next,omitzero"`
	Offer    Digest       `json:"offer,omitzero"`
	Policy   Digest       `json:"policy,omitzero"`
	Issued   time.Time    `json:"issued"`
	Reason   string       `json:"reason,omitempty"`
	Prev     Digest       `json:"prev,omitzero"`
}

// NamedVersion is a namespace version and its manifest.
type NamedVersion struct {
	Version  Version `json:"version"`
	Manifest Digest  `json:"manifest"`
}

// Names returns the versions that a pointer names: one, or the base and the next.
func (p *Pointer) Names() []NamedVersion {
	all := []NamedVersion{{p.Version, p.Manifest}}
	if p.Next != (NamedVersion{}) {
		all = append(all, p.Next)
	}
	return all
}

// Blobs returns the digests of the records that go with a pointer.
func (p *Pointer) Blobs() (all []Digest) {
	for _, d := range []Digest{p.Offer, p.Policy} {
		if !d.IsZero() {
			all = append(all, d)
		}
	}
	return all
}

// SameAs reports whether two pointers name the same, for the same seq.
func (p *Pointer) SameAs(q *Pointer) bool {
	return p.Seq == q.Seq && p.Manifest == q.Manifest && p.Next == q.Next && p.Offer == q.Offer && p.Policy == q.Policy
}

// RecordFormat is the version of the record encodings of this file.
const RecordFormat = 1

// EncodeRecord returns the canonical bytes of a record of this file: JSON in field order, no
// white space, one newline at the end.
func EncodeRecord(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, E(Internal, "encode record", "", err)
	}
	return b.Bytes(), nil
}

// DecodeRecord reads canonical bytes of at most limit bytes into v, a pointer to a record.
// Unknown fields and any other spelling of the same value are Corrupt; subject names the source.
func DecodeRecord(b []byte, limit int, subject string, v any) error {
	const op = "decode record"
	if len(b) > limit {
		return E(Limit, op, subject, fmt.Errorf("%d bytes, at most %d", len(b), limit))
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return E(Corrupt, op, subject, err)
	}
	again, err := EncodeRecord(v)
	if err != nil || !bytes.Equal(again, b) {
		return E(Corrupt, op, subject, fmt.Errorf("not in canonical form"))
	}
	return nil
}
