package trust

import (
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
	Blobs   Blobs
	Signers []Signer
	Now     func() time.Time
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
		next, err := Seal(n, record, p.Signers...)
		if err != nil {
			return err
		}
		if _, err := p.Root.Open(n, next); err != nil { // or nobody would accept what was written
			return namespace.WithHint(err, "the key in use may not sign this: choose another with --keys")
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

// AddNamespace appends a version to namespace name and returns it. Kinds: those of AddTree.
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
	return got, err
}

// Set points a channel at a namespace version, the newest if v.N is 0, creating the channel if
// need be. The pointer it replaces is kept as a blob: the history. Kinds: NotExist (no such
// version), those of AddTree.
func (p *Publisher) Set(ctx context.Context, channel string, v namespace.Version, reason string) (namespace.Pointer, error) {
	nv, v, err := p.ResolveNamespace(ctx, v)
	if err != nil {
		return namespace.Pointer{}, err
	}
	return p.point(ctx, channel, reason, func(namespace.Pointer) (namespace.Version, namespace.Digest, error) {
		return v, nv.Manifest, nil
	})
}

// Rollback points a channel at to, or, if to is zero, at the version that was active before the
// current one. It is a new, higher seq (N3). Kinds: NotExist (nothing to go back to), those of Set.
func (p *Publisher) Rollback(ctx context.Context, channel string, to namespace.Version, reason string) (namespace.Pointer, error) {
	if to.Name != "" {
		return p.Set(ctx, channel, to, reason)
	}
	return p.point(ctx, channel, reason, func(cur namespace.Pointer) (namespace.Version, namespace.Digest, error) {
		if cur.Seq == 0 {
			return namespace.Version{}, namespace.Digest{}, namespace.WithHint(
				namespace.E(namespace.NotExist, "roll back", "channel "+channel, nil), "`coppice channel list` shows the channels")
		}
		older, err := p.before(ctx, cur)
		return older.Version, older.Manifest, err
	})
}

// point writes the next pointer of a channel; choose says what it names, given the current one.
func (p *Publisher) point(ctx context.Context, channel, reason string,
	choose func(namespace.Pointer) (namespace.Version, namespace.Digest, error)) (namespace.Pointer, error) {
	if err := checkComment(reason); err != nil {
		return namespace.Pointer{}, err
	}
	var next namespace.Pointer
	n := namespace.RefName{Kind: namespace.ChannelRef, Name: channel}
	err := p.update(ctx, n, func() any { return new(namespace.Pointer) }, func(record any, raw []byte) error {
		cur := record.(*namespace.Pointer)
		v, manifest, err := choose(*cur)
		if err != nil {
			return err
		}
		next = namespace.Pointer{Format: namespace.RecordFormat, Channel: channel, Seq: cur.Seq + 1,
			Version: v, Manifest: manifest, Issued: p.now(), Reason: reason}
		if raw != nil {
			if next.Prev, err = p.Blobs.PutBlob(ctx, raw); err != nil {
				return err
			}
		}
		*cur = next
		return nil
	})
	return next, err
}

// before returns the newest pointer in cur's history that names another version than cur does.
func (p *Publisher) before(ctx context.Context, cur namespace.Pointer) (namespace.Pointer, error) {
	var found namespace.Pointer
	err := p.history(ctx, cur, func(old namespace.Pointer) bool {
		found = old
		return old.Manifest == cur.Manifest
	})
	if err == nil && (found.Seq == 0 || found.Manifest == cur.Manifest) {
		err = namespace.WithHint(
			namespace.E(namespace.NotExist, "roll back", "channel "+cur.Channel, fmt.Errorf("no other version was active before")),
			"name one with --to NAME@N")
	}
	return found, err
}

// History calls fn for the pointers of a channel, newest first, until it returns false.
// Kinds: those of Refs.Pointer; Corrupt if the chain is broken.
func (p *Publisher) History(ctx context.Context, channel string, fn func(namespace.Pointer) bool) error {
	cur, _, err := p.Pointer(ctx, channel)
	if err != nil || !fn(cur) {
		return err
	}
	return p.history(ctx, cur, fn)
}

// history goes on from cur, which fn has seen.
func (p *Publisher) history(ctx context.Context, cur namespace.Pointer, fn func(namespace.Pointer) bool) error {
	for !cur.Prev.IsZero() {
		raw, err := p.Blobs.GetBlob(ctx, cur.Prev, namespace.RefBytesMax)
		if err != nil {
			return err
		}
		prev, err := p.Root.OpenPointer(cur.Channel, raw, 0, namespace.Digest{})
		if err != nil {
			return err
		}
		if prev.Seq >= cur.Seq {
			return namespace.E(namespace.Corrupt, "read history", "channel "+cur.Channel, fmt.Errorf("seq %d comes before %d", prev.Seq, cur.Seq))
		}
		if !fn(prev) {
			return nil
		}
		cur = prev
	}
	return nil
}

func checkComment(s string) error {
	if len(s) > commentBytesMax {
		return namespace.E(namespace.Limit, "check comment", "", fmt.Errorf("%d bytes, at most %d", len(s), commentBytesMax))
	}
	return nil
}
