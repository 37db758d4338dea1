package trust

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"
	"github.com/theupdateframework/go-tuf/v2/metadata/trustedmetadata"

	"coppice.dev/coppice/namespace"
)

// Meta describes a document that another one names: its version and, if they are known (else zero), its
// digest and length.
type Meta struct {
	Version    int64
	Digest     namespace.Digest
	Length     int64
	Consistent bool // the repository keeps every version under a name of its own
}

// Documents is where documents come from; nothing that it returns is trusted. The caller has seen to
// time-outs, and to it that no more than limit bytes are read (Limit). Safe for concurrent use.
type Documents interface {
	// Root returns version n of the root. Kinds: NotExist (there is none), Unavailable, Limit, Canceled.
	Root(ctx context.Context, n int64, limit int) ([]byte, error)
	// Timestamp returns the newest timestamp. Kinds: those of Root.
	Timestamp(ctx context.Context, limit int) ([]byte, error)
	// Document returns the document of role that m describes. Kinds: those of Root.
	Document(ctx context.Context, role string, m Meta, limit int) ([]byte, error)
}

// Keeper keeps what was accepted: one value a name, replaced durably (a crash keeps the old or the new).
// Not shared by updaters.
type Keeper interface {
	// Load returns the value, nil if there is none. Kinds: Denied, Internal.
	Load(name string) ([]byte, error)
	// Save replaces it. Kinds: Limit (disk full), Denied, Internal.
	Save(name string, b []byte) error
}

// Updater moves the trusted state of one origin forward: its steps are those of the specification of The
// Update Framework, section 5, and it never goes back. Not safe for concurrent use.
type Updater struct {
	From Documents
	Keep Keeper
}

// Trusted is a verified set of documents, valid at the time it was made for.
type Trusted struct {
	set  *trustedmetadata.TrustedMetadata
	at   time.Time
	keep Keeper
}

// ageless is a time at which no document is expired: for looking at what was accepted before, and at
// origins of which nothing is run.
var ageless = time.Unix(0, 0).UTC()

// Refresh fetches what is new and verifies it as of now. What it accepted is kept, step by step, so that
// an interrupted refresh is gone on with. On an error the state of before stays in use; the Trusted that
// is returned with it, if any, tells how far it got.
// Kinds: Stale (an old record, or expired: see [IsExpired]), Denied (signatures, roles), Corrupt, Limit,
// those of From and Keep.
func (u *Updater) Refresh(ctx context.Context, now time.Time) (*Trusted, error) {
	t, err := u.start(now)
	if err != nil {
		return nil, err
	}
	steps := []func(context.Context, *Trusted) error{u.roots, u.timestamp, u.snapshot, func(ctx context.Context, t *Trusted) error {
		return u.delegated(ctx, t, DocVouching, DocRoot, nil)
	}}
	for _, step := range steps {
		if err := step(ctx, t); err != nil {
			return t, err
		}
	}
	return t, nil
}

// start takes up the newest root that was kept.
func (u *Updater) start(now time.Time) (*Trusted, error) {
	b, err := u.Keep.Load(DocRoot)
	if err == nil && b == nil {
		err = namespace.E(namespace.NotExist, "read", DocRoot, errors.New("no root of trust was pinned"))
	}
	if err != nil {
		return nil, err
	}
	if _, err := decodeDocument[metadata.RootType](DocRoot, b); err != nil {
		return nil, err
	}
	set, err := trustedmetadata.New(b)
	if err != nil {
		return nil, tufError("verify", DocRoot, err)
	}
	set.RefTime = now.UTC()
	return &Trusted{set, now, u.Keep}, nil
}

// roots walks to the newest root, each signed by the one before.
func (u *Updater) roots(ctx context.Context, t *Trusted) error {
	for range RootsMax {
		next := t.set.Root.Signed.Version + 1
		name := fmt.Sprintf("%d.%s", next, DocRoot)
		b, err := u.From.Root(ctx, next, RootBytesMax)
		if namespace.IsKind(err, namespace.NotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if _, err := decodeDocument[metadata.RootType](DocRoot, b); err != nil {
			return err
		}
		if _, err := t.set.UpdateRoot(b); err != nil {
			return tufError("verify", name, err)
		}
		if err := u.Keep.Save(DocRoot, b); err != nil {
			return err
		}
	}
	return namespace.WithHint(namespace.E(namespace.Limit, "read", DocRoot, fmt.Errorf("more than %d new roots", RootsMax)),
		"what was read is kept; the next attempt goes on from there")
}

// timestamp takes the newest timestamp. The kept one, expired or not, says what it may not fall behind;
// one that a key signed which the root no longer has says nothing.
func (u *Updater) timestamp(ctx context.Context, t *Trusted) error {
	if b, err := u.kept(DocTimestamp); err != nil {
		return err
	} else if b != nil {
		_, _ = t.set.UpdateTimestamp(b)
	}
	b, err := u.From.Timestamp(ctx, TimestampBytesMax)
	if err != nil {
		return err
	}
	if _, err := decodeDocument[metadata.TimestampType](DocTimestamp, b); err != nil {
		return err
	}
	var equal *metadata.ErrEqualVersionNumber
	_, err = t.set.UpdateTimestamp(b)
	if errors.As(err, &equal) {
		if t.set.Timestamp.Signed.IsExpired(t.set.RefTime) {
			return tufError("verify", DocTimestamp, &metadata.ErrExpiredMetadata{Msg: "timestamp.json is expired"})
		}
		return nil
	}
	if err != nil {
		return tufError("verify", DocTimestamp, err)
	}
	return u.Keep.Save(DocTimestamp, b)
}

// kept returns a kept document, nil if there is none or it is damaged: then it is fetched.
func (u *Updater) kept(name string) ([]byte, error) {
	b, err := u.Keep.Load(name)
	if err == nil && b != nil && checkJSON(b, documentLimit(name), name) != nil {
		b = nil
	}
	return b, err
}

func (u *Updater) snapshot(ctx context.Context, t *Trusted) error {
	m := t.meta(t.set.Timestamp.Signed.Meta[DocSnapshot+".json"])
	b, err := u.kept(DocSnapshot)
	if err != nil {
		return err
	}
	if b != nil {
		_, derr := decodeDocument[metadata.SnapshotType](DocSnapshot, b)
		if derr == nil {
			if _, err := t.set.UpdateSnapshot(b, true); err == nil && (m.Digest.IsZero() || namespace.Sum(b) == m.Digest) {
				return nil
			}
		}
	}
	if b, err = u.fetch(ctx, DocSnapshot, m); err != nil {
		return err
	}
	if _, err := decodeDocument[metadata.SnapshotType](DocSnapshot, b); err != nil {
		return err
	}
	if _, err := t.set.UpdateSnapshot(b, false); err != nil {
		return tufError("verify", DocSnapshot, err)
	}
	return u.Keep.Save(DocSnapshot, b)
}

func (u *Updater) fetch(ctx context.Context, role string, m Meta) ([]byte, error) {
	limit := documentLimit(role)
	if m.Length > int64(limit) {
		return nil, namespace.E(namespace.Limit, "read", role, fmt.Errorf("%d bytes, at most %d", m.Length, limit))
	}
	if m.Length > 0 {
		limit = int(m.Length)
	}
	return u.From.Document(ctx, role, m, limit)
}

// delegated takes a role of targets. check, if set, is asked before it is kept; what it refuses is as if
// it had not come.
func (u *Updater) delegated(ctx context.Context, t *Trusted, role, by string, check func(*metadata.Metadata[metadata.TargetsType]) error) error {
	info := t.set.Snapshot.Signed.Meta[role+".json"]
	if info == nil {
		return namespace.E(namespace.NotExist, "read", role, errors.New("the snapshot names no such role"))
	}
	b, err := u.kept(role)
	if err != nil {
		return err
	}
	if b != nil {
		if _, err := t.load(role, by, b); err == nil {
			return nil
		}
	}
	fresh, err := u.fetch(ctx, role, t.meta(info))
	if err != nil {
		return err
	}
	doc, err := t.load(role, by, fresh)
	if err == nil && check != nil {
		err = check(doc)
	}
	if err != nil {
		delete(t.set.Targets, role)
		return err
	}
	return u.Keep.Save(role, fresh)
}

// load verifies a role of targets.
func (t *Trusted) load(role, by string, b []byte) (*metadata.Metadata[metadata.TargetsType], error) {
	if _, err := decodeDocument[metadata.TargetsType](role, b); err != nil {
		return nil, err
	}
	doc, err := t.set.UpdateDelegatedTargets(b, role, by)
	return doc, tufError("verify", role, err)
}

func (t *Trusted) meta(m *metadata.MetaFiles) Meta {
	out := Meta{Version: m.Version, Length: m.Length, Consistent: t.set.Root.Signed.ConsistentSnapshot}
	if h := m.Hashes["sha256"]; len(h) == len(out.Digest) {
		copy(out.Digest[:], h)
	}
	return out
}

// Issued returns when the timestamp was signed, zero if it does not say, and when it expires.
func (t *Trusted) Issued() (issued, expires time.Time) {
	if t.set.Timestamp == nil {
		return
	}
	e, err := readExtra(t.set.Timestamp.Signed.UnrecognizedFields, DocTimestamp)
	if err == nil {
		issued = e.Issued
	}
	return issued, t.set.Timestamp.Signed.Expires
}

// Vouching returns what the vouching keys say. Kinds: Corrupt.
func (t *Trusted) Vouching() (*Vouching, error) {
	doc := t.set.Targets[DocVouching]
	if doc == nil {
		return nil, namespace.E(namespace.NotExist, "read", DocVouching, nil)
	}
	return readVouching(doc)
}

// Accept takes the current pointer of a channel into the trusted state, which a Refresh returned: it must
// be the newest that the snapshot knows, name what is vouched for, not below the floor, and not lie
// behind what was accepted before. presented, if it is the document in question, saves fetching it.
// Kinds: those of Refresh; NotExist (there is no such channel), Unavailable (presented is newer than the
// snapshot: it is just being written).
func (u *Updater) Accept(ctx context.Context, t *Trusted, channel string, presented []byte) (namespace.Pointer, error) {
	var p namespace.Pointer
	role := ChannelDoc(channel)
	if err := (namespace.RefName{Kind: namespace.ChannelRef, Name: channel}).Check(); err != nil {
		return p, err
	}
	v, err := t.Vouching()
	if err != nil {
		return p, err
	}
	if _, ok := v.role(channel); !ok {
		return p, missing("channel", channel, "`coppice channel list` shows those there are, `coppice channel set` makes one")
	}
	last, known := u.recall(t, channel)
	check := func(doc *metadata.Metadata[metadata.TargetsType]) error {
		if p, err = readPointer(channel, doc); err != nil {
			return err
		}
		if known && (p.Seq < last.Seq || p.Seq == last.Seq && !p.SameAs(&last)) {
			return namespace.E(namespace.Stale, "verify", role, fmt.Errorf("seq %d of %v, but %d of %v was seen: an old record is being replayed", p.Seq, p.Version, last.Seq, last.Version))
		}
		return v.allowsAll(p, t.at)
	}
	if err := u.judge(t, channel, presented); err != nil {
		lags := namespace.IsKind(err, namespace.Stale) && !IsExpired(err)
		if shown, rerr := ReadPointer(channel, presented); !lags || rerr != nil || known && shown.Seq < last.Seq {
			return p, err
		} // else a publisher died before it moved the ref, or a mirror is a step behind
	}
	with := Updater{From: presentedFirst{u.From, role, presented}, Keep: u.Keep}
	if err := with.delegated(ctx, t, role, DocVouching, check); err != nil {
		return p, err
	}
	return readPointer(channel, t.set.Targets[role])
}

// judge says what is wrong with a channel's record as it was presented, if anything: it is no proof of
// anything, but an old or a foreign one in its place is a sign of tampering that a person should see.
func (u *Updater) judge(t *Trusted, channel string, presented []byte) error {
	role := ChannelDoc(channel)
	if presented == nil {
		return nil
	}
	doc, err := decodeDocument[metadata.TargetsType](role, presented)
	if err != nil {
		return err
	}
	info := t.set.Snapshot.Signed.Meta[role+".json"]
	if info == nil {
		return namespace.E(namespace.Unavailable, "read", role, errors.New("the snapshot does not know it yet"))
	}
	if err := t.set.Targets[DocVouching].VerifyDelegate(role, doc); err != nil {
		return tufError("verify", role, err)
	}
	switch at := doc.Signed.Version; {
	case at < info.Version:
		return namespace.E(namespace.Stale, "verify", role, fmt.Errorf("seq %d, but %d is the newest: an old record is being replayed", at, info.Version))
	case at > info.Version:
		return namespace.E(namespace.Unavailable, "read", role, fmt.Errorf("seq %d, but the snapshot knows %d: it is just being written", at, info.Version))
	case namespace.Sum(presented) != t.meta(info).Digest:
		return namespace.E(namespace.Denied, "verify", role, fmt.Errorf("seq %d came with two different contents", at))
	}
	return nil
}

// recall returns the pointer of a channel that was accepted before, if there is one and its keys still
// hold: what cannot be read is fetched anew, and what a key signed that was revoked is no measure.
func (u *Updater) recall(t *Trusted, channel string) (p namespace.Pointer, known bool) {
	role := ChannelDoc(channel)
	b, err := u.kept(role)
	if err != nil || b == nil {
		return p, false
	}
	doc, err := decodeDocument[metadata.TargetsType](role, b)
	if err != nil || t.set.Targets[DocVouching].VerifyDelegate(role, doc) != nil {
		return p, false
	}
	p, err = readPointer(channel, doc)
	return p, err == nil
}

// Recall returns the trusted state as it was kept, whatever the time: what an endpoint goes on with when
// it cannot refresh. Kinds: NotExist (nothing was accepted yet), Denied, Corrupt, those of Keep.
func (u *Updater) Recall(ctx context.Context) (*Trusted, error) {
	offline := Updater{From: nothing{}, Keep: u.Keep}
	t, err := offline.start(ageless)
	if err != nil {
		return nil, err
	}
	b, err := u.kept(DocTimestamp)
	if err == nil && b == nil {
		err = namespace.E(namespace.NotExist, "read", DocTimestamp, errors.New("nothing was accepted before"))
	}
	if err != nil {
		return t, err
	}
	if _, err := t.set.UpdateTimestamp(b); err != nil {
		return t, tufError("verify", DocTimestamp, err)
	}
	if err := offline.snapshot(ctx, t); err != nil {
		return t, err
	}
	return t, offline.delegated(ctx, t, DocVouching, DocRoot, nil)
}

// Remembered returns the pointer of a channel that was accepted last, of a state that [Updater.Recall]
// returned, and false if there is none.
func (u *Updater) Remembered(t *Trusted, channel string) (namespace.Pointer, bool) {
	if t == nil || t.set.Targets[DocVouching] == nil {
		return namespace.Pointer{}, false
	}
	return u.recall(t, channel)
}

// presentedFirst hands out a document that is there already, if it is the one that is asked for.
type presentedFirst struct {
	Documents
	role string
	b    []byte
}

// Document implements Documents.
func (p presentedFirst) Document(ctx context.Context, role string, m Meta, limit int) ([]byte, error) {
	if role == p.role && p.b != nil && !m.Digest.IsZero() && namespace.Sum(p.b) == m.Digest {
		return bytes.Clone(p.b), nil
	}
	return p.Documents.Document(ctx, role, m, limit)
}

// nothing is a source of documents that has none.
type nothing struct{}

func (nothing) Root(context.Context, int64, int) ([]byte, error)            { return nil, errNothing }
func (nothing) Timestamp(context.Context, int) ([]byte, error)              { return nil, errNothing }
func (nothing) Document(context.Context, string, Meta, int) ([]byte, error) { return nil, errNothing }

var errNothing = namespace.E(namespace.NotExist, "read", "what was accepted before", errors.New("a part of it is missing"))
