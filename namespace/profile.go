package namespace

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// Profile is the order in which a workload first reads what it reads of a namespace: a hint, by which
// content is laid out and fetched ahead. Entries name paths and bytes, not digests, so that a profile
// recorded on one version serves the next ones as well; what a version lacks is passed over. An object
// of class Blob. A profile is whole and within limits if [Profile.Check] says so.
type Profile struct {
	Format   int            `json:"format"`
	Name     string         `json:"name"`
	Recorded Version        `json:"recorded,omitzero"` // the namespace version, for people
	Command  string         `json:"command,omitempty"` // for people
	Entries  []ProfileEntry `json:"entries"`
}

// ProfileEntry is bytes [Off, Off+Len) of the file at Path, all of it if Len is 0, or, if Path is that
// of a directory, the catalog which lists it. Path is relative to the namespace's root and clean.
type ProfileEntry struct {
	Path PathText `json:"path"`
	Off  uint64   `json:"off,omitempty"`
	Len  uint64   `json:"len,omitempty"`
}

// covers reports whether all of f, an entry of the same path, is in e.
func (e ProfileEntry) covers(f ProfileEntry) bool {
	return e.Len == 0 || f.Len > 0 && e.Off <= f.Off && f.Off+f.Len <= e.Off+e.Len
}

// PathText is a path that may hold any bytes but NUL. In text, "%" and what is no printable UTF-8 is
// written as %XX, so that each path has one spelling.
type PathText string

const upperHex = "0123456789ABCDEF"

// MarshalText implements encoding.TextMarshaler.
func (p PathText) MarshalText() ([]byte, error) {
	b := make([]byte, 0, len(p))
	for i := 0; i < len(p); {
		r, n := utf8.DecodeRuneInString(string(p[i:]))
		if r == utf8.RuneError && n == 1 || r < ' ' || r == '%' || r == 0x7f {
			b = append(b, '%', upperHex[p[i]>>4], upperHex[p[i]&15])
			i++
			continue
		}
		b = append(b, p[i:i+n]...)
		i += n
	}
	return b, nil
}

// UnmarshalText implements encoding.TextUnmarshaler. That there is one spelling only is checked by who
// encodes again. Errors: Invalid.
func (p *PathText) UnmarshalText(b []byte) error {
	out := make([]byte, 0, len(b))
	for i := 0; i < len(b); i++ {
		if b[i] != '%' {
			out = append(out, b[i])
			continue
		}
		if i+2 >= len(b) {
			return E(Invalid, "decode path", string(b), errors.New("a % without two digits behind it"))
		}
		hi, lo := strings.IndexByte(upperHex, b[i+1]), strings.IndexByte(upperHex, b[i+2])
		if hi < 0 || lo < 0 {
			return E(Invalid, "decode path", string(b), errors.New("a % without two digits behind it"))
		}
		out = append(out, byte(hi<<4|lo))
		i += 2
	}
	*p = PathText(out)
	return nil
}

// checkPath returns why p cannot be the path of a profile's entry.
func (p PathText) check() error {
	if len(p) == 0 || len(p) >= PathBytesMax {
		return fmt.Errorf("a path of %d bytes", len(p))
	}
	for part := range strings.SplitSeq(string(p), "/") {
		if part == "" || part == "." || part == ".." || len(part) > NameBytesMax || strings.IndexByte(part, 0) >= 0 {
			return fmt.Errorf("path %q: want names joined by /", string(p))
		}
	}
	return nil
}

// Check returns an error unless the profile is one: its name can be a ref's, it has no more entries than
// [ProfileEntriesMax], each of a clean path and of bytes that a file can have, and none that says
// nothing new. Kinds: Invalid, Limit.
func (p *Profile) Check() error {
	fail := func(kind Kind, format string, args ...any) error {
		return E(kind, "check", "profile "+p.Name, fmt.Errorf(format, args...))
	}
	if err := CheckName(p.Name); err != nil {
		return err
	}
	switch {
	case p.Format != RecordFormat:
		return WithHint(fail(Invalid, "format %d", p.Format), "a newer coppice wrote it: update this one")
	case len(p.Entries) > ProfileEntriesMax:
		return fail(Limit, "%d entries, at most %d", len(p.Entries), ProfileEntriesMax)
	case len(p.Command) > PathBytesMax || !utf8.ValidString(p.Command):
		return fail(Invalid, "its command is too long, or no text")
	}
	seen := map[PathText][]ProfileEntry{}
	for i, e := range p.Entries {
		if err := e.Path.check(); err != nil {
			return fail(Invalid, "entry %d: %w", i, err)
		}
		if e.Len == 0 && e.Off != 0 || e.Off > FileBytesMax || e.Len > FileBytesMax-e.Off {
			return fail(Invalid, "entry %d: %d bytes at %d", i, e.Len, e.Off)
		}
		if slices.ContainsFunc(seen[e.Path], func(f ProfileEntry) bool { return f.covers(e) }) {
			return fail(Invalid, "entry %d: %s was there before", i, e.Path)
		}
		seen[e.Path] = append(seen[e.Path], e)
		if len(seen[e.Path]) > ProfileRangesMax {
			return fail(Limit, "%s: more than %d ranges", e.Path, ProfileRangesMax)
		}
	}
	return nil
}

// DecodeProfile reads the canonical bytes of a profile. Kinds: Corrupt, Limit; Invalid (a format that
// this build does not know, or what [Profile.Check] refuses).
func DecodeProfile(b []byte, subject string) (*Profile, error) {
	p := new(Profile)
	if err := DecodeRecord(b, ProfileBytesMax, subject, p); err != nil {
		return nil, err
	}
	if err := p.Check(); err != nil {
		return nil, E(KindOf(err), "decode", subject, err)
	}
	return p, nil
}

// EncodeProfile returns the canonical bytes of a profile. Kinds: those of [Profile.Check], Limit.
func EncodeProfile(p *Profile) ([]byte, error) {
	if err := p.Check(); err != nil {
		return nil, err
	}
	if p.Entries == nil {
		p.Entries = []ProfileEntry{}
	}
	b, err := EncodeRecord(p)
	if err == nil && len(b) > ProfileBytesMax {
		err = E(Limit, "encode", "profile "+p.Name, fmt.Errorf("%d bytes, at most %d", len(b), ProfileBytesMax))
	}
	return b, err
}

// Tidy returns entries without those that say nothing new, at most [ProfileEntriesMax] of them and
// [ProfileRangesMax] of a path, beyond which the whole file is named. Pure.
func Tidy(entries []ProfileEntry) []ProfileEntry {
	seen := map[PathText][]ProfileEntry{}
	kept := make([]ProfileEntry, 0, min(len(entries), ProfileEntriesMax))
	for _, e := range entries {
		before := seen[e.Path]
		if len(kept) == ProfileEntriesMax {
			break
		}
		if slices.ContainsFunc(before, func(f ProfileEntry) bool { return f.covers(e) }) {
			continue
		}
		if len(before) == ProfileRangesMax-1 {
			e.Off, e.Len = 0, 0
		}
		kept, seen[e.Path] = append(kept, e), append(before, e)
	}
	return kept
}

// MergeProfiles joins recordings into one profile: an entry comes as early as in any of them, and what
// an earlier one has goes first where they say the same. The rest of the result is that of the first.
// Pure.
func MergeProfiles(first *Profile, more ...*Profile) *Profile {
	type ranked struct {
		ProfileEntry
		rank, from int
	}
	var all []ranked
	for from, p := range append([]*Profile{first}, more...) {
		for rank, e := range p.Entries {
			all = append(all, ranked{e, rank, from})
		}
	}
	slices.SortStableFunc(all, func(a, b ranked) int { return cmp.Or(cmp.Compare(a.rank, b.rank), cmp.Compare(a.from, b.from)) })
	entries := make([]ProfileEntry, len(all))
	for i, r := range all {
		entries[i] = r.ProfileEntry
	}
	merged := *first
	merged.Entries = Tidy(entries)
	return &merged
}

// Profiles is the record of a profile ref, which has the name of the namespace that it is for: its
// profiles, in the order in which they are fetched ahead. A profile may be replaced at any time, without
// a new version of the namespace: it changes how fast something is there, never what.
type Profiles struct {
	Format   int             `json:"format"`
	Name     string          `json:"name"`
	Profiles []ProfileRecord `json:"profiles"`
}

// ProfileRecord is one published profile. Profile names the [Profile] object; Layouts are where its
// content lies, for some versions.
type ProfileRecord struct {
	Name    string      `json:"name"`
	Profile Digest      `json:"profile"`
	Created time.Time   `json:"created"`
	Comment string      `json:"comment,omitempty"`
	Layouts []LayoutRef `json:"layouts"`
}

// LayoutRef names the layout (package namespace/object, an object of class Blob) of a profile for the
// namespace version whose root catalog is Root.
type LayoutRef struct {
	Version Version `json:"version,omitzero"`
	Root    Digest  `json:"root"`
	Layout  Digest  `json:"layout"`
}

// Check returns an error unless the record is within limits and each name is there once.
// Kinds: Invalid, Limit.
func (p *Profiles) Check() error {
	subject := RefName{ProfileRef, p.Name}.String()
	if p.Format != RecordFormat {
		return WithHint(E(Invalid, "read", subject, fmt.Errorf("format %d", p.Format)), "a newer coppice wrote it: update this one")
	}
	if len(p.Profiles) > ProfilesMax {
		return E(Limit, "read", subject, fmt.Errorf("%d profiles, at most %d", len(p.Profiles), ProfilesMax))
	}
	seen := map[string]bool{}
	for _, r := range p.Profiles {
		if err := CheckName(r.Name); err != nil {
			return err
		}
		if seen[r.Name] || r.Profile.IsZero() {
			return E(Invalid, "read", subject, fmt.Errorf("profile %s is named twice, or is none", r.Name))
		}
		if seen[r.Name] = true; len(r.Layouts) > LayoutsMax {
			return E(Limit, "read", subject, fmt.Errorf("profile %s: %d layouts, at most %d", r.Name, len(r.Layouts), LayoutsMax))
		}
	}
	return nil
}

// Find returns the profile of a name, and whether there is one.
func (p *Profiles) Find(name string) (ProfileRecord, bool) {
	i := slices.IndexFunc(p.Profiles, func(r ProfileRecord) bool { return r.Name == name })
	if i < 0 {
		return ProfileRecord{}, false
	}
	return p.Profiles[i], true
}

// Layout returns the layout for a root catalog, or the zero Digest.
func (r ProfileRecord) Layout(root Digest) Digest {
	for _, l := range r.Layouts {
		if l.Root == root {
			return l.Layout
		}
	}
	return Digest{}
}
