package trust

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"coppice.dev/coppice/namespace"
)

// swapAttempts bounds how often a publisher retries after losing a compare-and-swap: enough for
// a crowd of them, few enough to end.
const swapAttempts = 64

// commentBytesMax bounds comments and reasons, which are for people.
const commentBytesMax = 4 << 10

// Blobs stores and loads the small objects that records refer to, by digest of their plaintext.
type Blobs interface {
	PutBlob(ctx context.Context, b []byte) (namespace.Digest, error)
	GetBlob(ctx context.Context, d namespace.Digest, limit int64) ([]byte, error)
}

// Publisher writes signed refs. What a ref points at must be stored before (N2). Several may
// write at once: every update is a compare-and-swap on the record it was made from.
type Publisher struct {
	Refs
	Writer  namespace.RefWriter
	Signers []Signer // all keys at hand; each record takes those of its role
	By      string   // who signs, for the notes
	Now     func() time.Time

	next *Root // during a rotation: the root that is about to be written
}

// update replaces a ref by what change makes of its record, which it is given decoded into
// record (the zero record if there is none, and raw == nil). On a lost race it starts again.
func (p *Publisher) update(ctx context.Context, n namespace.RefName, fresh func() any, change func(record any, raw []byte) error) error {
	for range swapAttempts {
		record := fresh()
		raw, err := p.read(ctx, n, record)
		if err != nil {
			return err
		}
		if err := change(record, raw); err != nil {
			return err
		}
		signers, err := p.signersOf(n.String(), p.Root.Keys(RolePublish))
		if err != nil {
			return err
		}
		next, err := Seal(n, record, signers...)
		if err != nil {
			return err
		}
		if _, err := p.Root.Open(n, next); err != nil { // or nobody would accept what was written
			return err
		}
		err = p.Writer.SwapRef(ctx, n, raw, next)
		if !namespace.IsKind(err, namespace.Exist) {
			return err
		}
	}
	return namespace.E(namespace.Unavailable, "update", n.String(), fmt.Errorf("lost %d races against other publishers", swapAttempts))
}

// now is the time of a record: in UTC, whole seconds, so that it has one spelling.
func (p *Publisher) now() time.Time { return p.Now().UTC().Truncate(time.Second) }

// AddTree appends a version to tree name and returns it. v.N and v.Created are set by AddTree.
// Kinds: Invalid, Denied, Limit, those of the store.
func (p *Publisher) AddTree(ctx context.Context, name string, v namespace.TreeVersion) (namespace.Version, error) {
	return p.addTree(ctx, name, v, func(uint64) error { return nil })
}

// AddTreeAfter is AddTree on the condition that version last is the newest there is: of two that were
// made from it the second is refused, with Exist.
func (p *Publisher) AddTreeAfter(ctx context.Context, name string, last uint64, v namespace.TreeVersion) (namespace.Version, error) {
	return p.addTree(ctx, name, v, func(n uint64) error {
		if n == last {
			return nil
		}
		return namespace.E(namespace.Exist, "add version to", "tree "+name, fmt.Errorf("%s@%d was published meanwhile", name, n))
	})
}

func (p *Publisher) addTree(ctx context.Context, name string, v namespace.TreeVersion, check func(newest uint64) error) (namespace.Version, error) {
	if err := checkComment(v.Comment); err != nil {
		return namespace.Version{}, err
	}
	got := namespace.Version{Name: name}
	n := namespace.RefName{Kind: namespace.TreeRef, Name: name}
	err := p.update(ctx, n, func() any { return new(namespace.Tree) }, func(record any, _ []byte) error {
		t := record.(*namespace.Tree)
		if err := check(uint64(len(t.Versions))); err != nil {
			return err
		}
		t.Format, t.Name = namespace.RecordFormat, name
		v.N, v.Created = uint64(len(t.Versions)+1), p.now()
		t.Versions, got.N = append(t.Versions, v), v.N
		return nil
	})
	return got, err
}

// AddNamespace appends a version to namespace name and returns it. If the vouching keys are at hand they
// vouch for it. Kinds: those of AddTree and ChangeVouching.
func (p *Publisher) AddNamespace(ctx context.Context, name string, manifest namespace.Digest, comment string) (namespace.Version, error) {
	if err := checkComment(comment); err != nil {
		return namespace.Version{}, err
	}
	got := namespace.Version{Name: name}
	n := namespace.RefName{Kind: namespace.NamespaceRef, Name: name}
	err := p.update(ctx, n, func() any { return new(namespace.Namespace) }, func(record any, _ []byte) error {
		ns := record.(*namespace.Namespace)
		ns.Format, ns.Name = namespace.RecordFormat, name
		got.N = uint64(len(ns.Versions) + 1)
		ns.Versions = append(ns.Versions, namespace.NamespaceVersion{N: got.N, Manifest: manifest, Created: p.now(), Comment: comment})
		return nil
	})
	if err == nil && p.CanVouch() {
		_, err = p.ChangeVouching(ctx, VouchingChange{Vouch: []namespace.Version{got}}, cmp.Or(comment, "published"))
	}
	return got, err
}

func checkComment(s string) error {
	if len(s) > commentBytesMax {
		return namespace.E(namespace.Limit, "check comment", "", fmt.Errorf("%d bytes, at most %d", len(s), commentBytesMax))
	}
	return nil
}
