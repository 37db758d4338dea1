package trust

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"coppice.dev/coppice/namespace"
)

// How long documents are good for. Every change of one signs it anew, so these are for origins that rest:
// a root outlives the people who hold its keys changing once, vouching and pointers a long holiday.
const (
	rootLife     = 5 * 365 * 24 * time.Hour
	vouchingLife = 2 * 365 * 24 * time.Hour
	pointerLife  = 2 * 365 * 24 * time.Hour
	// snapshotLives is a snapshot's life in lives of a timestamp: it is signed anew by refreshes as well,
	// but not by each.
	snapshotLives = 8
)

// Set points a channel at a namespace version, the newest if v.N is 0, creating the channel if
// need be (for which the vouching keys must be at hand). The pointer it replaces is kept as a blob: the
// history. Kinds: NotExist (no such version), Denied (nobody vouches for it, it is below the floor, or the
// keys at hand may not), those of AddTree.
func (p *Publisher) Set(ctx context.Context, channel string, v namespace.Version, reason string) (namespace.Pointer, error) {
	nv, v, err := p.ResolveNamespace(ctx, v)
	if err != nil {
		return namespace.Pointer{}, err
	}
	return p.point(ctx, channel, reason, func(namespace.Pointer) (naming, error) {
		return naming{NamedVersion: namespace.NamedVersion{Version: v, Manifest: nv.Manifest}}, nil
	})
}

// Offering is what a pointer says to a part of the fleet.
type Offering struct {
	Base namespace.Version // what everybody else runs
	Next namespace.Version // what is offered; zero: nothing but Base
	// Record makes the record of package rollout/offer for the pointer that is about to be written. It is
	// asked again after a race was lost.
	Record func(next namespace.Pointer) ([]byte, error)
	Policy namespace.Digest // a Blob that is stored; zero: none
}

// Offer writes a channel's next pointer with an offer. Kinds: those of Set and of Record.
func (p *Publisher) Offer(ctx context.Context, channel string, o Offering, reason string) (namespace.Pointer, error) {
	n := naming{record: o.Record, policy: o.Policy}
	for _, one := range []struct {
		v  namespace.Version
		to *namespace.NamedVersion
	}{{o.Base, &n.NamedVersion}, {o.Next, &n.next}} {
		if one.v.Name == "" {
			continue
		}
		nv, v, err := p.ResolveNamespace(ctx, one.v)
		if err != nil {
			return namespace.Pointer{}, err
		}
		*one.to = namespace.NamedVersion{Version: v, Manifest: nv.Manifest}
	}
	return p.point(ctx, channel, reason, func(namespace.Pointer) (naming, error) { return n, nil })
}

// Rollback points a channel at to, or, if to is zero, at the version that was active before the
// current one. It is a new, higher seq (N3). Kinds: NotExist (nothing to go back to), those of Set.
func (p *Publisher) Rollback(ctx context.Context, channel string, to namespace.Version, reason string) (namespace.Pointer, error) {
	if to.Name != "" {
		return p.Set(ctx, channel, to, reason)
	}
	return p.point(ctx, channel, reason, p.before(ctx, channel))
}

// naming is what a pointer names. The records that go with it are made by record or, if that is nil, are
// those there are.
type naming struct {
	namespace.NamedVersion
	next          namespace.NamedVersion
	record        func(next namespace.Pointer) ([]byte, error)
	offer, policy namespace.Digest
}

// stay names what a pointer names.
func stay(cur namespace.Pointer) (naming, error) {
	return naming{NamedVersion: namespace.NamedVersion{Version: cur.Version, Manifest: cur.Manifest}, next: cur.Next, offer: cur.Offer, policy: cur.Policy}, nil
}

// chooser says what the next pointer of a channel names, given the current one.
type chooser func(cur namespace.Pointer) (naming, error)

// before chooses the newest version in a channel's history that is another than the current one; while one
// is offered to a part of the fleet, its base.
func (p *Publisher) before(ctx context.Context, channel string) chooser {
	return func(cur namespace.Pointer) (naming, error) {
		if cur.Next != (namespace.NamedVersion{}) {
			return naming{NamedVersion: namespace.NamedVersion{Version: cur.Version, Manifest: cur.Manifest}}, nil
		}
		if cur.Seq == 0 {
			return naming{}, namespace.WithHint(
				namespace.E(namespace.NotExist, "roll back", "channel "+channel, nil), "`coppice channel list` shows the channels")
		}
		var found namespace.Pointer
		err := p.History(ctx, channel, func(old namespace.Pointer) bool {
			found = old
			return old.Manifest == cur.Manifest
		})
		if err == nil && found.Manifest == cur.Manifest {
			err = namespace.WithHint(
				namespace.E(namespace.NotExist, "roll back", "channel "+channel, fmt.Errorf("no other version was active before")),
				"name one with --to NAME@N")
		}
		return naming{NamedVersion: namespace.NamedVersion{Version: found.Version, Manifest: found.Manifest}}, err
	}
}

// point writes the next pointer of a channel.
func (p *Publisher) point(ctx context.Context, channel, reason string, choose chooser) (next namespace.Pointer, err error) {
	err = p.commit(ctx, func(st *state) (*edit, error) {
		e := &edit{}
		v := st.vouching
		if _, ok := v.role(channel); !ok {
			if e.vouching, err = p.delegate(st, channel, "a new channel"); err != nil {
				return nil, err
			}
			if v, err = readVouching(e.vouching); err != nil {
				return nil, err
			}
		}
		var doc *metadata.Metadata[metadata.TargetsType]
		if next, doc, err = p.nextPointer(ctx, st, v, channel, reason, choose); err != nil {
			return nil, err
		}
		role, _ := v.role(channel)
		signers, err := p.signersOf("channel "+channel, RoleKeys{RolePoint, role.Threshold, role.KeyIDs})
		if err != nil {
			return nil, err
		}
		e.channels = map[string]*metadata.Metadata[metadata.TargetsType]{channel: doc}
		return e, signDocument(doc, p.note(reason), signers...)
	})
	return next, err
}

// nextPointer makes the next document of a channel, unsigned.
func (p *Publisher) nextPointer(ctx context.Context, st *state, v *Vouching, channel, reason string, choose chooser) (next namespace.Pointer, doc *metadata.Metadata[metadata.TargetsType], err error) {
	if err := checkComment(reason); err != nil {
		return next, nil, err
	}
	var cur namespace.Pointer
	var prev namespace.Digest
	if st.trusted.set.Snapshot.Signed.Meta[ChannelDoc(channel)+".json"] != nil {
		doc, raw, err := p.pointer(ctx, st.trusted, channel)
		if err != nil {
			return next, nil, err
		}
		prev = namespace.Sum(raw)
		if cur, err = readPointer(channel, doc); err != nil {
			return next, nil, err
		}
	}
	n, err := choose(cur)
	if err != nil {
		return next, nil, err
	}
	next = namespace.Pointer{Format: namespace.RecordFormat, Channel: channel, Seq: cur.Seq + 1, Version: n.Version, Manifest: n.Manifest,
		Next: n.next, Offer: n.offer, Policy: n.policy, Issued: p.now(), Reason: reason, Prev: prev}
	if err := v.allowsAll(next, p.Now()); err != nil {
		return next, nil, err
	}
	if n.record != nil {
		b, err := n.record(next)
		if err != nil {
			return next, nil, err
		}
		if next.Offer, err = p.Blobs.PutBlob(ctx, b); err != nil {
			return next, nil, err
		}
	}
	if !offersWhole(next) {
		return next, nil, namespace.E(namespace.Invalid, "write", ChannelDoc(channel), fmt.Errorf("%v is offered without a record that says to whom", next.Next.Version))
	}
	doc, err = pointerDocument(next, v.Versions[n.Version].Bytes, p.now().Add(pointerLife))
	return next, doc, err
}

// pointerDocument makes the document that says ptr.
func pointerDocument(ptr namespace.Pointer, size int64, expires time.Time) (*metadata.Metadata[metadata.TargetsType], error) {
	custom, err := json.Marshal(ptr)
	if err != nil {
		return nil, namespace.E(namespace.Internal, "write", ChannelDoc(ptr.Channel), err)
	}
	doc := metadata.Targets(expires)
	doc.Signed.Version = int64(ptr.Seq)
	doc.Signed.Targets[ptr.Channel] = target(ptr.Manifest, size, custom)
	return doc, nil
}

func target(manifest namespace.Digest, size int64, custom json.RawMessage) *metadata.TargetFiles {
	return &metadata.TargetFiles{Length: size, Hashes: metadata.Hashes{"sha256": manifest[:]}, Custom: &custom}
}

// note is what this publisher says with a signature.
func (p *Publisher) note(why string) Note { return Note{By: p.By, At: p.Now(), Why: why} }

// signersOf returns the keys at hand that may sign for a role. Kinds: Denied (too few).
func (p *Publisher) signersOf(what string, want RoleKeys) ([]Signer, error) {
	var have []Signer
	for _, id := range want.KeyIDs {
		for _, s := range p.Signers {
			if s.KeyID() == id {
				have = append(have, s)
				break
			}
		}
	}
	if len(have) >= max(1, want.Threshold) {
		return have, nil
	}
	return nil, namespace.WithHint(namespace.E(namespace.Denied, "sign", what,
		fmt.Errorf("%d keys of role %s are at hand, %d needed", len(have), want.Role.word(), want.Threshold)),
		"choose others with --keys, or `coppice request create` and have it signed where the keys are")
}
