package offer

import (
	"fmt"

	"coppice.dev/coppice/namespace"
)

// Standing is what the vouching keys say of a version for a channel: its content number, the floor of its
// namespace, and whether an exception that is signed lets it lie below.
type Standing struct {
	Content, Floor uint64
	Excepted       bool
}

// Of returns what a verified pointer offers. record is the blob that p.Offer names, nil if it names none:
// then the pointer's version is for everybody at once. stand looks a version up.
//
// The record's word counts for who and when; which versions, in what order and under which seq, the pointer
// and the vouching keys say. A record may carry a lower seq than the pointer: when keys change a pointer is
// signed anew, and its record stays. Kinds: Corrupt (the two do not belong together), those of Decode,
// Offer.Check and stand.
func Of(p namespace.Pointer, record []byte, stand func(namespace.NamedVersion) (Standing, error)) (*Offer, error) {
	const op = "read offer"
	o := &Offer{Format: Format, Channel: p.Channel, Seq: p.Seq, Severity: Routine, Reason: p.Reason}
	base, target := namespace.NamedVersion{}, p.Names()[0]
	if p.Next != (namespace.NamedVersion{}) {
		base, target = target, p.Next
	}
	if !p.Offer.IsZero() {
		var err error
		if o, err = Decode(record, "offer "+p.Offer.String()); err != nil {
			return nil, err
		}
		if o.Channel != p.Channel || o.Seq > p.Seq || o.Policy != p.Policy || !o.Target.is(target) || !o.Base.is(base) {
			return nil, namespace.E(namespace.Corrupt, op, fmt.Sprintf("%s seq %d", p.Channel, p.Seq),
				fmt.Errorf("its record is for %s seq %d, %v on %v, not for %v on %v", o.Channel, o.Seq, o.Target.Version, o.Base.Version, target.Version, base.Version))
		}
	}
	o.Seq, o.PrevSeq = p.Seq, p.Seq-1
	s, err := stand(target)
	if err != nil {
		return nil, err
	}
	o.Target, o.Floor = Target{target.Version, target.Manifest, s.Content}, s.Floor
	o.except(s)
	if base != (namespace.NamedVersion{}) {
		if s, err = stand(base); err != nil {
			return nil, err
		}
		o.Base = Target{base.Version, base.Manifest, s.Content}
		o.except(s)
	}
	return o, o.Check()
}

// except takes an exception over: the vouching keys signed it.
func (o *Offer) except(s Standing) {
	if s.Excepted {
		o.Signers, o.Exception = []string{"vouching"}, []string{"vouching"}
	}
}

func (t Target) is(n namespace.NamedVersion) bool {
	return t.Version == n.Version && t.Manifest == n.Manifest
}
