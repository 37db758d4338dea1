package trust

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"coppice.dev/coppice/namespace"
)

// state is what a publisher starts from: the documents as they are.
type state struct {
	trusted  *Trusted
	raw      []byte // the timestamp's record
	vouching *Vouching
}

// edit is a change: the next document of vouching, if it is not nil, and of channels.
type edit struct {
	vouching *metadata.Metadata[metadata.TargetsType]
	channels map[string]*metadata.Metadata[metadata.TargetsType]
}

// readState returns the current state.
func (p *Publisher) readState(ctx context.Context) (*state, error) {
	t, raw, err := p.state(ctx)
	if err != nil {
		return nil, err
	}
	v, err := t.Vouching()
	return &state{t, raw, v}, err
}

// commit makes a change of the documents, and all of it at once: what build returns is stored as blobs, a
// snapshot names it, a timestamp the snapshot, and swapping the timestamp's ref is the commit. Whoever
// loses that race begins again with build. Only then the channels' refs are moved, which tell followers;
// a crash before that is made good by the next commit, and by followers, who look at the timestamp too.
func (p *Publisher) commit(ctx context.Context, build func(*state) (*edit, error)) error {
	for range swapAttempts {
		st, err := p.readState(ctx)
		if err != nil {
			return err
		}
		e, err := build(st)
		if err != nil {
			return err
		}
		err = p.write(ctx, st, e)
		if err == nil {
			return p.tell(ctx, st, e)
		}
		if !namespace.IsKind(err, namespace.Exist) {
			return err
		}
	}
	return namespace.E(namespace.Unavailable, "update", TimestampName.String(), fmt.Errorf("lost %d races against other publishers", swapAttempts))
}

// write stores an edit and swaps the timestamp. Kinds: Exist (another was quicker).
func (p *Publisher) write(ctx context.Context, st *state, e *edit) error {
	snap := metadata.Snapshot(p.now())
	snap.Signed.Version = st.trusted.set.Snapshot.Signed.Version
	snap.Signed.Meta = maps.Clone(st.trusted.set.Snapshot.Signed.Meta)
	by := st.vouching.doc
	if e.vouching != nil {
		by = e.vouching
		if err := p.put(ctx, snap, DocVouching, st.trusted.set.Root.VerifyDelegate, e.vouching); err != nil {
			return err
		}
	}
	for _, channel := range slices.Sorted(maps.Keys(e.channels)) {
		if err := p.put(ctx, snap, ChannelDoc(channel), by.VerifyDelegate, e.channels[channel]); err != nil {
			return err
		}
	}
	v, err := readVouching(by)
	if err != nil {
		return err
	}
	old := st.trusted.set.Snapshot
	meta := st.trusted.set.Timestamp.Signed.Meta[DocSnapshot+".json"]
	life := snapshotLives * v.Policy.Fresh
	if e.vouching != nil || len(e.channels) > 0 || old.Signed.Expires.Before(p.now().Add(life/2)) || !p.signedBy(old, RoleSnapshot) {
		snap.Signed.Version, snap.Signed.Expires = old.Signed.Version+1, p.now().Add(life)
		if meta, err = p.putSnapshot(ctx, snap); err != nil {
			return err
		}
	}
	next, err := p.stamp(st.trusted.set.Timestamp.Signed.Version+1, meta, v.Policy.Fresh)
	if err != nil {
		return err
	}
	return p.Writer.SwapRef(ctx, TimestampName, st.raw, next)
}

// signedBy reports whether a snapshot has the signatures of all keys at hand: after a rotation it has not.
func (p *Publisher) signedBy(m *metadata.Metadata[metadata.SnapshotType], role Role) bool {
	signers, err := p.onlineSigners(role)
	if err != nil {
		return true
	}
	for _, s := range signers {
		if !slices.ContainsFunc(m.Signatures, func(sig metadata.Signature) bool { return sig.KeyID == s.KeyID() }) {
			return false
		}
	}
	return true
}

// put stores a document that must follow the one the snapshot has of its role, and be signed as verify
// asks, or nobody would accept what was written.
func (p *Publisher) put(ctx context.Context, snap *metadata.Metadata[metadata.SnapshotType], role string,
	verify func(string, any) error, doc *metadata.Metadata[metadata.TargetsType]) error {
	if err := verify(role, doc); err != nil {
		return tufError("sign", role, err)
	}
	have := int64(0)
	if m := snap.Signed.Meta[role+".json"]; m != nil {
		have = m.Version
	}
	if doc.Signed.Version != have+1 {
		return namespace.E(namespace.Exist, "update", role, fmt.Errorf("version %d, but the newest is %d", doc.Signed.Version, have))
	}
	m, err := store(ctx, p.Blobs, role, doc, doc.Signed.Version)
	if err == nil {
		snap.Signed.Meta[role+".json"] = m
	}
	return err
}

// store puts a document as a blob and returns how another one names it.
func store[T metadata.Roles](ctx context.Context, blobs Blobs, role string, doc *metadata.Metadata[T], version int64) (*metadata.MetaFiles, error) {
	b, err := encodeDocument(role, doc)
	if err != nil {
		return nil, err
	}
	d, err := blobs.PutBlob(ctx, b)
	return &metadata.MetaFiles{Version: version, Length: int64(len(b)), Hashes: metadata.Hashes{"sha256": d[:]}}, err
}

// encodeDocument returns the bytes of a document, which its readers will accept as such.
func encodeDocument[T metadata.Roles](role string, doc *metadata.Metadata[T]) ([]byte, error) {
	b, err := doc.ToBytes(false)
	if err != nil {
		return nil, namespace.E(namespace.Internal, "write", role, err)
	}
	if _, err := decodeDocument[T](role, b); err != nil {
		return nil, err
	}
	return b, nil
}

func (p *Publisher) putSnapshot(ctx context.Context, snap *metadata.Metadata[metadata.SnapshotType]) (*metadata.MetaFiles, error) {
	signers, err := p.onlineSigners(RoleSnapshot)
	if err == nil {
		err = signDocument(snap, p.note(""), signers...)
	}
	if err == nil {
		err = tufError("sign", DocSnapshot, p.Root.doc.VerifyDelegate(DocSnapshot, snap))
	}
	if err != nil {
		return nil, err
	}
	return store(ctx, p.Blobs, DocSnapshot, snap, snap.Signed.Version)
}

// onlineSigners returns the keys for snapshot and timestamp: those of the root in use and, in a rotation,
// those of the next one as well.
func (p *Publisher) onlineSigners(role Role) ([]Signer, error) {
	signers, err := p.signersOf(string(role), p.Root.Keys(role))
	if err != nil || p.next == nil {
		return signers, err
	}
	more, err := p.signersOf(string(role), p.next.Keys(role))
	for _, s := range more {
		if !slices.ContainsFunc(signers, func(have Signer) bool { return have.KeyID() == s.KeyID() }) {
			signers = append(signers, s)
		}
	}
	return signers, err
}

// stamp makes a timestamp for a snapshot.
func (p *Publisher) stamp(version int64, meta *metadata.MetaFiles, fresh time.Duration) ([]byte, error) {
	doc := metadata.Timestamp(p.now().Add(fresh))
	doc.Signed.Version = version
	doc.Signed.Meta = map[string]*metadata.MetaFiles{DocSnapshot + ".json": meta}
	var err error
	if doc.Signed.UnrecognizedFields, err = writeExtra(nil, extra{Issued: p.now()}); err != nil {
		return nil, err
	}
	signers, err := p.onlineSigners(RoleTimestamp)
	if err == nil {
		err = signDocument(doc, p.note(""), signers...)
	}
	if err == nil {
		err = tufError("sign", DocTimestamp, p.Root.doc.VerifyDelegate(DocTimestamp, doc))
	}
	if err != nil {
		return nil, err
	}
	return encodeDocument(DocTimestamp, doc)
}

// Refresh signs a new timestamp, and a new snapshot when it is time: what keeps an origin fresh while
// nothing is published. It needs the online keys only. Kinds: Denied, Unavailable, those of the store.
func (p *Publisher) Refresh(ctx context.Context) error {
	return p.commit(ctx, func(*state) (*edit, error) { return &edit{}, nil })
}

// tell moves the refs of the channels that an edit changed, on which followers wait; without any it looks
// at all, and moves those that lie behind. Losing a race to a publisher that is further is no failure.
func (p *Publisher) tell(ctx context.Context, st *state, e *edit) error {
	by := st.vouching.doc
	if e.vouching != nil {
		by = e.vouching
	}
	for _, channel := range slices.Sorted(maps.Keys(e.channels)) {
		doc := e.channels[channel]
		b, err := doc.ToBytes(false)
		if err != nil {
			return namespace.E(namespace.Internal, "write", ChannelDoc(channel), err)
		}
		if err := p.tellOne(ctx, by, channel, doc.Signed.Version, b); err != nil {
			return err
		}
	}
	if e.vouching != nil || len(e.channels) > 0 {
		return nil
	}
	for _, channel := range st.vouching.Channels {
		info := st.trusted.set.Snapshot.Signed.Meta[ChannelDoc(channel)+".json"]
		if info == nil {
			continue
		}
		m := st.trusted.meta(info)
		have, err := p.Reader.Ref(ctx, namespace.RefName{Kind: namespace.ChannelRef, Name: channel})
		if err == nil && namespace.Sum(have) == m.Digest {
			continue
		}
		b, err := p.Blobs.GetBlob(ctx, m.Digest, PointerBytesMax)
		if err == nil {
			err = p.tellOne(ctx, by, channel, m.Version, b)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// tellOne makes next, the document of a channel in that version, the channel's ref, unless it is further.
func (p *Publisher) tellOne(ctx context.Context, by *metadata.Metadata[metadata.TargetsType], channel string, version int64, next []byte) error {
	n := namespace.RefName{Kind: namespace.ChannelRef, Name: channel}
	for range swapAttempts {
		have, err := p.Reader.Ref(ctx, n)
		if namespace.IsKind(err, namespace.NotExist) {
			have, err = nil, nil
		}
		if err != nil {
			return err
		}
		if have != nil {
			doc, err := decodeDocument[metadata.TargetsType](ChannelDoc(channel), have)
			if err == nil && doc.Signed.Version > version && by.VerifyDelegate(ChannelDoc(channel), doc) == nil {
				return nil
			}
		}
		if err = p.Writer.SwapRef(ctx, n, have, next); !namespace.IsKind(err, namespace.Exist) {
			return err
		}
	}
	return nil
}
