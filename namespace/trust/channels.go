package trust

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"coppice.dev/coppice/namespace"
)

// OriginDocuments returns the documents of an origin: roots and the timestamp are refs, the others blobs
// that are found by digest. It reads what r and blobs return, whatever it is.
func OriginDocuments(r namespace.RefReader, blobs Blobs) Documents { return originDocuments{r, blobs} }

type originDocuments struct {
	refs  namespace.RefReader
	blobs Blobs
}

// Root implements Documents.
func (o originDocuments) Root(ctx context.Context, n int64, _ int) ([]byte, error) {
	return o.refs.Ref(ctx, RootVersion(n))
}

// Timestamp implements Documents.
func (o originDocuments) Timestamp(ctx context.Context, _ int) ([]byte, error) {
	return o.refs.Ref(ctx, TimestampName)
}

// Document implements Documents.
func (o originDocuments) Document(ctx context.Context, role string, m Meta, limit int) ([]byte, error) {
	if m.Digest.IsZero() {
		return nil, namespace.E(namespace.Corrupt, "read", role, errors.New("it is named without a digest"))
	}
	return o.blobs.GetBlob(ctx, m.Digest, int64(limit))
}

// memory is a Keeper for one look at an origin.
type memory map[string][]byte

func (m memory) Load(name string) ([]byte, error) { return m[name], nil }
func (m memory) Save(name string, b []byte) error { m[name] = b; return nil }

// state reads the documents of the origin, whatever their age: who only looks at an origin, or publishes
// to it, runs nothing from it. raw is the timestamp's record.
func (r Refs) state(ctx context.Context) (t *Trusted, raw []byte, err error) {
	if r.Blobs == nil {
		return nil, nil, namespace.E(namespace.Internal, "read", DocVouching, errors.New("opened without its blobs"))
	}
	kept := memory{DocRoot: r.Root.raw}
	u := Updater{From: OriginDocuments(r.Reader, r.Blobs), Keep: kept}
	t, err = u.Refresh(ctx, ageless)
	return t, kept[DocTimestamp], err
}

// Vouching returns what the origin's vouching keys say. Kinds: those of [Updater.Refresh] but Stale.
func (r Refs) Vouching(ctx context.Context) (*Vouching, error) {
	t, _, err := r.state(ctx)
	if err != nil {
		return nil, err
	}
	return t.Vouching()
}

// Documents returns the digests of the documents that are in use, for whoever keeps or copies blobs.
// Kinds: those of Vouching.
func (r Refs) Documents(ctx context.Context) ([]namespace.Digest, error) {
	t, _, err := r.state(ctx)
	if err != nil {
		return nil, err
	}
	all := []namespace.Digest{t.meta(t.set.Timestamp.Signed.Meta[DocSnapshot+".json"]).Digest}
	for _, m := range t.set.Snapshot.Signed.Meta {
		all = append(all, t.meta(m).Digest)
	}
	slices.SortFunc(all, func(a, b namespace.Digest) int { return slices.Compare(a[:], b[:]) })
	return all, nil
}

// Entry is a line of a channel's history: a pointer, and who signed it.
type Entry struct {
	namespace.Pointer
	Signed []Signed `json:"signed"`
}

// Pointer returns the current pointer of a channel, whatever its age; endpoints use an [Updater].
// Kinds: NotExist, those of Vouching.
func (r Refs) Pointer(ctx context.Context, channel string) (namespace.Pointer, error) {
	t, _, err := r.state(ctx)
	if err != nil {
		return namespace.Pointer{}, err
	}
	doc, _, err := r.pointer(ctx, t, channel)
	if err != nil {
		return namespace.Pointer{}, err
	}
	return readPointer(channel, doc)
}

// pointer returns the document of a channel that the snapshot names. The channel's ref, which followers
// wait on, is looked at as well: one that lies behind is what a publisher's crash leaves, one that is ahead was
// written since t was read; anything else is a sign of tampering.
func (r Refs) pointer(ctx context.Context, t *Trusted, channel string) (doc *metadata.Metadata[metadata.TargetsType], raw []byte, err error) {
	n := namespace.RefName{Kind: namespace.ChannelRef, Name: channel}
	if err := n.Check(); err != nil {
		return nil, nil, err
	}
	role := ChannelDoc(channel)
	info := t.set.Snapshot.Signed.Meta[role+".json"]
	if info == nil {
		return nil, nil, missing("channel", channel, "`coppice channel list` shows those there are, `coppice channel set` makes one")
	}
	raw, err = r.Reader.Ref(ctx, n)
	if err != nil && !namespace.IsKind(err, namespace.NotExist) {
		return nil, nil, err
	}
	u := Updater{From: OriginDocuments(r.Reader, r.Blobs)}
	if err := u.judge(t, channel, raw); err != nil && !namespace.IsKind(err, namespace.Stale) && !namespace.IsKind(err, namespace.Unavailable) {
		return nil, nil, err
	}
	m := t.meta(info)
	if raw == nil || namespace.Sum(raw) != m.Digest {
		if raw, err = u.fetch(ctx, role, m); err != nil {
			return nil, nil, err
		}
	}
	doc, err = t.load(role, DocVouching, raw)
	return doc, raw, err
}

// Log calls fn for the pointers of a channel, newest first, until it returns false. The newest is verified
// by its signatures, those before it by the digest that the next one has of each. Kinds: those of Pointer;
// Corrupt if the chain is broken.
func (r Refs) Log(ctx context.Context, channel string, fn func(Entry) bool) error {
	t, _, err := r.state(ctx)
	if err != nil {
		return err
	}
	doc, _, err := r.pointer(ctx, t, channel)
	if err != nil {
		return err
	}
	keys := publicKeys(t.set.Targets[DocVouching].Signed.Delegations.Keys)
	cur, err := readPointer(channel, doc)
	for err == nil && fn(Entry{cur, signatures(doc, keys)}) && !cur.Prev.IsZero() {
		var raw []byte
		if raw, err = r.Blobs.GetBlob(ctx, cur.Prev, PointerBytesMax); err != nil {
			return err
		}
		if doc, err = decodeDocument[metadata.TargetsType](ChannelDoc(channel), raw); err != nil {
			return err
		}
		var prev namespace.Pointer
		if prev, err = readPointer(channel, doc); err == nil && prev.Seq >= cur.Seq {
			err = namespace.E(namespace.Corrupt, "read history", "channel "+channel, fmt.Errorf("seq %d comes before %d", prev.Seq, cur.Seq))
		}
		cur = prev
	}
	return err
}

// History is Log without the signatures.
func (r Refs) History(ctx context.Context, channel string, fn func(namespace.Pointer) bool) error {
	return r.Log(ctx, channel, func(e Entry) bool { return fn(e.Pointer) })
}
