package trust

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"coppice.dev/coppice/namespace"
)

// Vouched is a namespace version that the vouching keys stand for. Content orders what versions hold,
// for the floor: a version that brings back what an older one held has the older one's Content.
type Vouched struct {
	Version    namespace.Version
	Manifest   namespace.Digest
	Bytes      int64 // of the manifest
	Content    uint64
	Exceptions []Exception
}

// Exception lets one channel name a version below the floor, until a time (zero: without end).
type Exception struct {
	Channel string    `json:"channel"`
	Until   time.Time `json:"until,omitzero"`
}

// Then says what an endpoint does when its lease is over.
type Then string

// What may follow a lease.
const (
	Warn       Then = "warn"       // say so in status and log
	Report     Then = "report"     // the same, and tell the control server
	Quarantine Then = "quarantine" // show nothing until the origin is reached again
)

// Policy is what the vouching keys ask of endpoints and of the online keys. Zero fields have the
// defaults of [DefaultPolicy].
type Policy struct {
	Fresh time.Duration `json:"fresh,omitempty"` // how long a timestamp is good for
	Lease time.Duration `json:"lease,omitempty"` // how long to run without a fresh one
	Then  Then          `json:"then,omitempty"`  // what happens after that
}

// DefaultPolicy: a week to accept, so that an origin without a refresh every hour works and a frozen one
// is noticed; a month to run, as long as a person on leave; then a warning, which breaks nothing.
var DefaultPolicy = Policy{Fresh: 7 * 24 * time.Hour, Lease: 30 * 24 * time.Hour, Then: Warn}

// WithDefaults fills in what p leaves open.
func (p Policy) WithDefaults() Policy {
	if p.Fresh <= 0 {
		p.Fresh = DefaultPolicy.Fresh
	}
	if p.Lease <= 0 {
		p.Lease = DefaultPolicy.Lease
	}
	if p.Then == "" {
		p.Then = DefaultPolicy.Then
	}
	return p
}

// Check returns an Invalid error unless p can be meant. The bounds: a timestamp of minutes could not be
// renewed in time, and after ten years nobody remembers.
func (p Policy) Check() error {
	const longest = 10 * 365 * 24 * time.Hour
	p = p.WithDefaults()
	switch {
	case p.Then != Warn && p.Then != Report && p.Then != Quarantine:
		return namespace.E(namespace.Invalid, "check policy", string(p.Then), fmt.Errorf("want %s, %s or %s", Warn, Report, Quarantine))
	case p.Fresh < 5*time.Minute || p.Fresh > longest:
		return namespace.E(namespace.Invalid, "check policy", p.Fresh.String(), fmt.Errorf("freshness is from five minutes to ten years"))
	case p.Lease < p.Fresh || p.Lease > longest:
		return namespace.E(namespace.Invalid, "check policy", p.Lease.String(), fmt.Errorf("a lease is at least as long as freshness, and at most ten years"))
	}
	return nil
}

// Vouching is what the vouching keys say: which versions there are, how old they may be, and who points
// channels at them. It is a value: nothing in it changes.
type Vouching struct {
	N        uint64 // its own version
	Expires  time.Time
	Versions map[namespace.Version]Vouched
	Floors   map[string]uint64 // lowest Content a channel may name, by namespace
	Policy   Policy            // with defaults
	Channels []string          // that are delegated, sorted
	doc      *metadata.Metadata[metadata.TargetsType]
	extra    extra
}

// vouchCustom is the custom member of a target of the vouching role.
type vouchCustom struct {
	Content    uint64      `json:"content"`
	Exceptions []Exception `json:"exceptions,omitempty"`
}

// readVouching reads the targets role. Its signatures are the caller's to verify. Kinds: Corrupt.
func readVouching(doc *metadata.Metadata[metadata.TargetsType]) (*Vouching, error) {
	e, err := readExtra(doc.Signed.UnrecognizedFields, DocVouching)
	if err != nil {
		return nil, err
	}
	v := &Vouching{N: uint64(doc.Signed.Version), Expires: doc.Signed.Expires, Versions: map[namespace.Version]Vouched{},
		Floors: e.Floors, doc: doc, extra: e, Policy: DefaultPolicy}
	if e.Policy != nil {
		v.Policy = e.Policy.WithDefaults()
		if err := v.Policy.Check(); err != nil {
			return nil, namespace.E(namespace.Corrupt, "read", DocVouching, err)
		}
	}
	for path, t := range doc.Signed.Targets {
		one, err := readVouched(path, t)
		if err != nil {
			return nil, namespace.E(namespace.Corrupt, "read", DocVouching+" "+path, err)
		}
		v.Versions[one.Version] = one
	}
	if doc.Signed.Delegations != nil {
		for _, r := range doc.Signed.Delegations.Roles {
			channel, ok := strings.CutPrefix(r.Name, channelPrefix)
			if !ok || namespace.CheckName(channel) != nil || slices.Contains(v.Channels, channel) || len(r.KeyIDs) > keysMax {
				return nil, namespace.E(namespace.Corrupt, "read", DocVouching, fmt.Errorf("role %.200q", r.Name))
			}
			v.Channels = append(v.Channels, channel)
		}
		slices.Sort(v.Channels)
	}
	return v, nil
}

func readVouched(path string, t *metadata.TargetFiles) (Vouched, error) {
	v, err := namespace.ParseVersion(path)
	if err != nil {
		return Vouched{}, err
	}
	digest, err := targetDigest(t)
	if err != nil {
		return Vouched{}, err
	}
	var c vouchCustom
	if t.Custom == nil || json.Unmarshal(*t.Custom, &c) != nil || c.Content == 0 || v.N == 0 {
		return Vouched{}, fmt.Errorf("it does not say what it holds")
	}
	return Vouched{v, digest, t.Length, c.Content, c.Exceptions}, nil
}

func targetDigest(t *metadata.TargetFiles) (d namespace.Digest, err error) {
	h := t.Hashes["sha256"]
	if len(h) != len(d) || len(t.Hashes) != 1 {
		return d, fmt.Errorf("want one SHA-256")
	}
	copy(d[:], h)
	return d, nil
}

// Newest returns the newest vouched version of a namespace; false: there is none.
func (v *Vouching) Newest(name string) (Vouched, bool) {
	var found Vouched
	for ver, one := range v.Versions {
		if ver.Name == name && ver.N > found.Version.N {
			found = one
		}
	}
	return found, found.Version.N > 0
}

// Resolve returns the vouched version that ver names, the newest if ver.N is 0. Kinds: NotExist.
func (v *Vouching) Resolve(ver namespace.Version) (Vouched, error) {
	if ver.N == 0 {
		if one, ok := v.Newest(ver.Name); ok {
			return one, nil
		}
	}
	if one, ok := v.Versions[ver]; ok {
		return one, nil
	}
	return Vouched{}, unvouched(namespace.NotExist, ver)
}

func unvouched(kind namespace.Kind, ver namespace.Version) error {
	return namespace.WithHint(namespace.E(kind, "verify", ver.String(), fmt.Errorf("nobody vouches for it")),
		"`coppice namespace vouch` does, or `coppice request create vouch` where the vouching keys are elsewhere")
}

// Allows says whether a channel may name a version with a manifest at a time: it must be vouched for, and
// not be below the floor, unless an exception was signed. A zero channel asks for a mount of a fixed
// version, for which there are no exceptions. Kinds: Denied.
func (v *Vouching) Allows(channel string, ver namespace.Version, manifest namespace.Digest, now time.Time) error {
	one, ok := v.Versions[ver]
	if !ok {
		return unvouched(namespace.Denied, ver)
	}
	if one.Manifest != manifest {
		return namespace.E(namespace.Denied, "verify", ver.String(), fmt.Errorf("it is vouched for as %v, not as %v", one.Manifest, manifest))
	}
	floor := v.Floors[ver.Name]
	if one.Content >= floor {
		return nil
	}
	for _, e := range one.Exceptions {
		if channel != "" && e.Channel == channel && (e.Until.IsZero() || now.Before(e.Until)) {
			return nil
		}
	}
	return namespace.WithHint(namespace.E(namespace.Denied, "verify", ver.String(),
		fmt.Errorf("it is below the floor of %s: content %d, at least %d", ver.Name, one.Content, floor)),
		"`coppice namespace vouch "+ver.String()+" --except CHANNEL` lets one channel go there")
}

// allowsAll asks Allows about all that a pointer names.
func (v *Vouching) allowsAll(p namespace.Pointer, now time.Time) error {
	for _, one := range p.Names() {
		if err := v.Allows(p.Channel, one.Version, one.Manifest, now); err != nil {
			return err
		}
	}
	return nil
}

// role returns who signs for a channel.
func (v *Vouching) role(channel string) (metadata.DelegatedRole, bool) {
	if v.doc.Signed.Delegations != nil {
		for _, r := range v.doc.Signed.Delegations.Roles {
			if r.Name == ChannelDoc(channel) {
				return r, true
			}
		}
	}
	return metadata.DelegatedRole{}, false
}

// Names returns the vouched versions, sorted.
func (v *Vouching) Names() []namespace.Version {
	return slices.SortedFunc(maps.Keys(v.Versions), func(a, b namespace.Version) int {
		if a.Name != b.Name {
			return strings.Compare(a.Name, b.Name)
		}
		return int(int64(a.N) - int64(b.N))
	})
}

// OpenPointer reads the record of a channel and verifies that the keys which v gives it signed it. Whether it
// is the newest, and may be followed, is for [Updater.Accept] to say. Kinds: Denied, those of ReadPointer.
func (v *Vouching) OpenPointer(channel string, b []byte) (namespace.Pointer, error) {
	role := ChannelDoc(channel)
	doc, err := decodeDocument[metadata.TargetsType](role, b)
	if err != nil {
		return namespace.Pointer{}, err
	}
	if _, ok := v.role(channel); !ok {
		return namespace.Pointer{}, namespace.E(namespace.Denied, "verify", role, fmt.Errorf("there is no such channel"))
	}
	if err := v.doc.VerifyDelegate(role, doc); err != nil {
		return namespace.Pointer{}, tufError("verify", role, err)
	}
	return readPointer(channel, doc)
}

// ReadPointer reads the record of a channel. It is not verified: for saying what it says. Kinds: Limit,
// Corrupt.
func ReadPointer(channel string, b []byte) (namespace.Pointer, error) {
	doc, err := decodeDocument[metadata.TargetsType](ChannelDoc(channel), b)
	if err != nil {
		return namespace.Pointer{}, err
	}
	return readPointer(channel, doc)
}

// readPointer reads the role of a channel: one target, the manifest, with the pointer as its custom
// member. Its signatures are the caller's to verify. Kinds: Corrupt.
func readPointer(channel string, doc *metadata.Metadata[metadata.TargetsType]) (p namespace.Pointer, err error) {
	bad := func(format string, args ...any) (namespace.Pointer, error) {
		return namespace.Pointer{}, namespace.E(namespace.Corrupt, "read", ChannelDoc(channel), fmt.Errorf(format, args...))
	}
	t := doc.Signed.Targets[channel]
	if t == nil || len(doc.Signed.Targets) != 1 || t.Custom == nil || doc.Signed.Delegations != nil {
		return bad("it is no pointer of this channel")
	}
	digest, err := targetDigest(t)
	if err != nil {
		return bad("%w", err)
	}
	if err := json.Unmarshal(*t.Custom, &p); err != nil {
		return bad("%w", err)
	}
	if p.Format != namespace.RecordFormat || p.Channel != channel || p.Seq != uint64(doc.Signed.Version) || p.Manifest != digest ||
		p.Version.N == 0 || namespace.CheckName(p.Version.Name) != nil {
		return bad("format %d, channel %q, seq %d in version %d, version %v", p.Format, p.Channel, p.Seq, doc.Signed.Version, p.Version)
	}
	if !offersWhole(p) {
		return bad("it offers %v %v by record %v", p.Next.Version, p.Next.Manifest, p.Offer)
	}
	return p, nil
}

// offersWhole reports whether a pointer that offers a version names it, and the record that says to whom.
func offersWhole(p namespace.Pointer) bool {
	return p.Next == (namespace.NamedVersion{}) ||
		!p.Offer.IsZero() && !p.Next.Manifest.IsZero() && p.Next.Version.N > 0 && namespace.CheckName(p.Next.Version.Name) == nil
}
