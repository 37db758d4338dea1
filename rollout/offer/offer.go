// Package offer says what a channel offers, and to whom: the record that a channel's signature is
// over, and the arithmetic that decides, the same on every machine and with nobody to ask, which
// endpoints a stage is for.
//
// Everything is a value. That a record's signatures hold is for namespace/trust to say; that its
// fields make sense together is said here.
package offer

import (
	"fmt"
	"slices"
	"time"
	"unicode"
	"unicode/utf8"

	"coppice.dev/coppice/namespace"
)

// Bounds of a record.
const (
	// StagesMax bounds the stages of a rollout: more steps than anybody watches.
	StagesMax = 16
	// MembersMax bounds the endpoints that stages list by name, all stages together: 32 KB of a
	// record that every endpoint fetches.
	MembersMax = 4096
	// ReasonBytesMax bounds a reason: a paragraph, which fits a screen.
	ReasonBytesMax = 1024
	// SignersMax bounds the signers that are named: far more than any threshold.
	SignersMax = 64
	// SaltBytesMax bounds a salt: the longest name of a channel or a rollout.
	SaltBytesMax = namespace.RefNameBytesMax
)

// Severity says how much a version matters. It chooses the schedule of a policy; Emergency also
// opens the gates that the policy names for it, and no others.
type Severity string

// The severities, rising.
const (
	Routine   Severity = "routine"
	Important Severity = "important"
	Critical  Severity = "critical"
	Emergency Severity = "emergency"
)

// Severities lists them, rising.
func Severities() []Severity { return []Severity{Routine, Important, Critical, Emergency} }

// Rank orders severities from 0; -1 is none of them.
func (s Severity) Rank() int {
	switch s {
	case Routine:
		return 0
	case Important:
		return 1
	case Critical:
		return 2
	case Emergency:
		return 3
	}
	return -1
}

// Target is a version that may be run: what people call it, its manifest, and its Content, a
// number that rises with what is in it and that floors are compared with. The zero Target is none.
type Target struct {
	Version  namespace.Version `json:"version"`
	Manifest namespace.Digest  `json:"manifest"`
	Content  uint64            `json:"content"`
}

// IsZero reports whether t names nothing.
func (t Target) IsZero() bool { return t == Target{} }

// Stage is a part of the fleet: those whose bucket is below a share, and those listed.
type Stage struct {
	Name string `json:"name"`
	// PerMillion of all buckets belong, 0 to 1,000,000. Never less than the stage before.
	PerMillion uint32 `json:"perMillion"`
	// Members are buckets of endpoints chosen one by one, ascending. A bucket and not an id: the
	// record is public, and who is a canary need not be.
	Members []uint64 `json:"members,omitempty"`
}

// Offer is what a channel's pointer says. Seq only rises; what it names may be older: then
// RollbackOf says which seq is taken back.
//
// Endpoints of the first Open stages are to run Target, all others Base; an offer without stages
// is for all. With Halt nobody changes version, except a machine that runs none yet: that takes
// Base, or Target if it is for all.
type Offer struct {
	Format     int    `json:"format"`
	Channel    string `json:"channel"`
	Seq        uint64 `json:"seq"`
	PrevSeq    uint64 `json:"prevSeq"` // that it follows; 0 for the first
	RollbackOf uint64 `json:"rollbackOf,omitempty"`

	Target   Target   `json:"target"`
	Base     Target   `json:"base,omitzero"`
	Floor    uint64   `json:"floor"` // lowest Content that may be named
	Severity Severity `json:"severity"`

	Salt   string  `json:"salt,omitempty"` // the rollout's name, or the channel's for cohorts that stay
	Stages []Stage `json:"stages,omitempty"`
	Open   int     `json:"open,omitempty"`
	Halt   bool    `json:"halt,omitempty"`

	NotBefore time.Time        `json:"notBefore,omitzero"` // no activation before
	Expires   time.Time        `json:"expires,omitzero"`   // no activation from then on; what runs stays
	Policy    namespace.Digest `json:"policy,omitzero"`
	Reason    string           `json:"reason,omitempty"`

	// Signers are the keys whose signatures were found good; Exception those among them that
	// allow a Target below Floor. Whoever opened the record fills both in; they are not signed.
	Signers   []string `json:"-"`
	Exception []string `json:"-"`
}

// Format is the version of the encoding.
const Format = 1

// Check returns an error whose subject is the path of the first faulty field. Kinds: Invalid;
// Limit for what is too large; Denied for a target below the floor that nobody allows.
func (o *Offer) Check() error {
	for _, check := range []func(*Offer) error{(*Offer).checkIdentity, (*Offer).checkTargets, (*Offer).checkStages, (*Offer).checkTimes, (*Offer).checkPeople} {
		if err := check(o); err != nil {
			return err
		}
	}
	return nil
}

func (o *Offer) checkIdentity() error {
	switch {
	case o.Format != Format:
		return fault("$.format", "%d, this program knows %d", o.Format, Format)
	case namespace.CheckName(o.Channel) != nil:
		return fault("$.channel", "%q is no channel's name", o.Channel)
	case o.Seq == 0:
		return fault("$.seq", "sequence numbers begin with 1")
	case o.PrevSeq >= o.Seq:
		return fault("$.prevSeq", "%d is not before %d", o.PrevSeq, o.Seq)
	case o.RollbackOf >= o.Seq:
		return fault("$.rollbackOf", "%d is not before %d", o.RollbackOf, o.Seq)
	case o.Severity.Rank() < 0:
		return fault("$.severity", "%q, want one of %v", o.Severity, Severities())
	}
	return nil
}

func (o *Offer) checkTargets() error {
	if err := o.Target.check("$.target"); err != nil {
		return err
	}
	if !o.Base.IsZero() {
		if err := o.Base.check("$.base"); err != nil {
			return err
		}
	}
	for path, t := range map[string]Target{"$.target": o.Target, "$.base": o.Base} {
		if !t.IsZero() && !o.Permits(t) {
			return namespace.WithHint(namespace.E(namespace.Denied, "check offer", path+".content",
				fmt.Errorf("%s has content %d, below the floor %d", t.Version, t.Content, o.Floor)),
				"an older version needs the exception signature that the channel's policy asks for")
		}
	}
	return nil
}

func (t Target) check(path string) error {
	switch {
	case namespace.CheckName(t.Version.Name) != nil || t.Version.N == 0:
		return fault(path+".version", "%q, want NAME@N", t.Version)
	case t.Manifest.IsZero():
		return fault(path+".manifest", "no digest")
	case t.Content == 0:
		return fault(path+".content", "content is counted from 1")
	}
	return nil
}

func (o *Offer) checkStages() error {
	switch {
	case len(o.Stages) > StagesMax:
		return limit("$.stages", len(o.Stages), StagesMax)
	case o.Open < 0 || o.Open > len(o.Stages):
		return fault("$.open", "%d of %d stages", o.Open, len(o.Stages))
	case len(o.Salt) > SaltBytesMax:
		return limit("$.salt", len(o.Salt), SaltBytesMax)
	case len(o.Stages) > 0 && o.Salt == "":
		return fault("$.salt", "stages need a salt: the rollout's name, or the channel's")
	}
	members := 0
	for i := range o.Stages {
		s, path := &o.Stages[i], fmt.Sprintf("$.stages[%d]", i)
		members += len(s.Members)
		switch {
		case namespace.CheckName(s.Name) != nil:
			return fault(path+".name", "%q, want a name in lower case", s.Name)
		case slices.ContainsFunc(o.Stages[:i], func(b Stage) bool { return b.Name == s.Name }):
			return fault(path+".name", "%q is there twice", s.Name)
		case s.PerMillion > million:
			return fault(path+".perMillion", "%d, at most %d", s.PerMillion, million)
		case i > 0 && s.PerMillion < o.Stages[i-1].PerMillion:
			return fault(path+".perMillion", "%d, less than the stage before: stages only grow", s.PerMillion)
		case members > MembersMax:
			return limit(path+".members", members, MembersMax)
		}
		for j := 1; j < len(s.Members); j++ {
			if s.Members[j] <= s.Members[j-1] {
				return fault(fmt.Sprintf("%s.members[%d]", path, j), "not in ascending order")
			}
		}
	}
	if !o.ForAll() && o.Base.IsZero() {
		return fault("$.base", "needed while a stage is closed: what the others run")
	}
	return nil
}

func (o *Offer) checkTimes() error {
	for path, t := range map[string]time.Time{"$.notBefore": o.NotBefore, "$.expires": o.Expires} {
		if t.Location() != time.UTC || t.Year() > 9999 || t.Year() < 1 {
			return fault(path, "%s, want an instant in UTC", t)
		}
	}
	if !o.Expires.IsZero() && !o.Expires.After(o.NotBefore) {
		return fault("$.expires", "%s is not after notBefore", o.Expires.Format(time.RFC3339))
	}
	return nil
}

func (o *Offer) checkPeople() error {
	switch {
	case len(o.Reason) > ReasonBytesMax:
		return limit("$.reason", len(o.Reason), ReasonBytesMax)
	case !utf8.ValidString(o.Reason) || slices.ContainsFunc([]rune(o.Reason), unicode.IsControl):
		return fault("$.reason", "want one line of text")
	case o.Reason == "" && (o.Halt || o.RollbackOf != 0):
		return fault("$.reason", "a halt or a rollback says why")
	case len(o.Signers) > SignersMax:
		return limit("$.signers", len(o.Signers), SignersMax)
	}
	for i, s := range o.Signers {
		if s == "" || i > 0 && s <= o.Signers[i-1] {
			return fault(fmt.Sprintf("$.signers[%d]", i), "empty, or not in ascending order")
		}
	}
	for i, s := range o.Exception {
		if !slices.Contains(o.Signers, s) {
			return fault(fmt.Sprintf("$.exception[%d]", i), "%q has not signed", s)
		}
	}
	return nil
}

// Permits reports whether t may be run as far as floors are concerned.
func (o *Offer) Permits(t Target) bool { return t.Content >= o.Floor || len(o.Exception) > 0 }

// ForAll reports whether every endpoint is to run Target.
func (o *Offer) ForAll() bool {
	return len(o.Stages) == 0 || o.Open > 0 && o.Stages[o.Open-1].PerMillion == million
}

// For returns what the endpoint id is to run. Errors: Invalid for an id that is missing: it would
// put all machines without one into the same bucket.
func (o *Offer) For(id string) (Target, error) {
	b, err := Bucket(o.Salt, id)
	if err != nil {
		return Target{}, err
	}
	if o.ForAll() {
		return o.Target, nil
	}
	for i := range o.Stages[:o.Open] {
		if o.Stages[i].Has(b) {
			return o.Target, nil
		}
	}
	return o.Base, nil
}

// Encode returns the canonical bytes of a record that Check accepts.
func (o *Offer) Encode() ([]byte, error) {
	if err := o.Check(); err != nil {
		return nil, err
	}
	return namespace.EncodeRecord(o)
}

// Decode reads canonical bytes and checks them. A target below the floor is not refused yet:
// whether somebody allows it, only the signatures say. Kinds: Corrupt, Invalid, Limit.
func Decode(b []byte, subject string) (*Offer, error) {
	o := new(Offer)
	if err := namespace.DecodeRecord(b, recordBytesMax, subject, o); err != nil {
		return nil, err
	}
	if err := o.Check(); err != nil && !namespace.IsKind(err, namespace.Denied) {
		return nil, err
	}
	return o, nil
}

// recordBytesMax bounds a record: the members, in digits, and as much for the rest.
const recordBytesMax = 2 * MembersMax * 21

func fault(path, format string, args ...any) error {
	return namespace.E(namespace.Invalid, "check offer", path, fmt.Errorf(format, args...))
}

func limit(path string, n, most int) error {
	return namespace.E(namespace.Limit, "check offer", path, fmt.Errorf("%d, at most %d", n, most))
}
