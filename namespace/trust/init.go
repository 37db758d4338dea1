package trust

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"slices"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"coppice.dev/coppice/namespace"
)

// Member is a key with a role, as it is listed.
type Member struct {
	Role    Role   `json:"role"`
	Channel string `json:"channel,omitempty"` // of RolePoint: one channel; "" is those to come
	KeyID   string `json:"keyid"`
	Name    string `json:"name,omitempty"`
	Need    int    `json:"threshold"`
	Of      int    `json:"of"`
}

// Start says how a new origin begins: its id and who has which role.
type Start struct {
	ID    string // hex digits
	Keys  map[Role][]ed25519.PublicKey
	Names map[string]string // by key id
	Need  map[Role]int      // thresholds; 1 if missing
}

// Init writes the first documents of an origin that has none, with the keys at hand: the root last, so that
// a crash leaves what no reader takes for an origin. It returns the root and sets p.Root.
// Kinds: Exist (there is a root), Denied (too few keys), Invalid, those of the store.
func (p *Publisher) Init(ctx context.Context, s Start) (*Root, error) {
	root, err := p.firstRoot(s)
	if err != nil {
		return nil, err
	}
	p.Root = root
	v := metadata.Targets(p.now().Add(vouchingLife))
	v.Signed.Delegations = &metadata.Delegations{Keys: map[string]*metadata.Key{}, Roles: []metadata.DelegatedRole{}}
	e := extra{Pointer: &RoleKeys{Role: RolePoint, Threshold: max(1, s.Need[RolePoint])}}
	for _, k := range s.Keys[RolePoint] {
		if v.Signed.Delegations.Keys[KeyID(k)], err = metadata.KeyFromPublicKey(k); err != nil {
			return nil, namespace.E(namespace.Invalid, "init", "key", err)
		}
		e.Pointer.KeyIDs = append(e.Pointer.KeyIDs, KeyID(k))
		e.setName(KeyID(k), s.Names[KeyID(k)])
	}
	if v.Signed.UnrecognizedFields, err = writeExtra(nil, e); err != nil {
		return nil, err
	}
	signers, err := p.signersOf(DocVouching, root.Keys(RoleVouching))
	if err == nil {
		err = signDocument(v, p.note("a new origin"), signers...)
	}
	if err != nil {
		return nil, err
	}
	snap := metadata.Snapshot(p.now().Add(snapshotLives * DefaultPolicy.Fresh))
	snap.Signed.Meta = map[string]*metadata.MetaFiles{}
	v.Signed.Version, snap.Signed.Version = 1, 1
	if err := p.put(ctx, snap, DocVouching, root.doc.VerifyDelegate, v); err != nil {
		return nil, err
	}
	meta, err := p.putSnapshot(ctx, snap)
	if err != nil {
		return nil, err
	}
	stamp, err := p.stamp(1, meta, DefaultPolicy.Fresh)
	if err != nil {
		return nil, err
	}
	if err := p.Writer.SwapRef(ctx, TimestampName, nil, stamp); err != nil {
		return nil, err
	}
	if err := p.Writer.SwapRef(ctx, RootVersion(1), nil, root.raw); err != nil {
		return nil, err
	}
	return root, p.Writer.SwapRef(ctx, RootName, nil, root.raw)
}

func (p *Publisher) firstRoot(s Start) (*Root, error) {
	doc := metadata.Root(p.now().Add(rootLife))
	doc.Signed.Keys, doc.Signed.Roles = map[string]*metadata.Key{}, map[string]*metadata.Role{}
	doc.Signed.ConsistentSnapshot = true
	e := extra{ID: s.ID, Publisher: &RoleKeys{Role: RolePublish}}
	for role, keys := range s.Keys {
		if role == RolePoint {
			continue
		}
		want := RoleKeys{Role: role, Threshold: max(1, s.Need[role])}
		for _, k := range keys {
			key, err := metadata.KeyFromPublicKey(k)
			if err != nil {
				return nil, namespace.E(namespace.Invalid, "init", "key", err)
			}
			doc.Signed.Keys[KeyID(k)] = key
			want.KeyIDs = append(want.KeyIDs, KeyID(k))
			e.setName(KeyID(k), s.Names[KeyID(k)])
		}
		if role == RolePublish {
			e.Publisher = &want
			continue
		}
		doc.Signed.Roles[string(role)] = &metadata.Role{KeyIDs: want.KeyIDs, Threshold: want.Threshold}
	}
	return p.sealRoot(doc, e, p.note("a new origin"), nil)
}

// sealRoot signs a root with the keys at hand that count for it, or for the one before.
func (p *Publisher) sealRoot(doc *metadata.Metadata[metadata.RootType], e extra, note Note, before *Root) (*Root, error) {
	var err error
	if doc.Signed.UnrecognizedFields, err = writeExtra(doc.Signed.UnrecognizedFields, e); err != nil {
		return nil, err
	}
	ids := []string{}
	if r := doc.Signed.Roles[DocRoot]; r != nil {
		ids = append(ids, r.KeyIDs...)
	}
	if before != nil {
		ids = append(ids, before.Keys(RoleRoot).KeyIDs...)
	}
	var signers []Signer
	for _, s := range p.Signers {
		if slices.Contains(ids, s.KeyID()) {
			signers = append(signers, s)
		}
	}
	if err := signDocument(doc, note, signers...); err != nil {
		return nil, err
	}
	b, err := encodeDocument(DocRoot, doc)
	if err != nil {
		return nil, err
	}
	return OpenRoot(b)
}

// Members lists who has which role, from the root and from what the vouching keys say.
func Members(r *Root, v *Vouching) []Member {
	var all []Member
	add := func(role Role, channel string, ids []string, need int, names map[string]string) {
		for _, id := range ids {
			all = append(all, Member{role, channel, id, names[id], need, len(ids)})
		}
	}
	for _, role := range []Role{RoleRoot, RoleVouching, RolePublish, RoleSnapshot, RoleTimestamp} {
		k := r.Keys(role)
		add(role, "", k.KeyIDs, k.Threshold, r.extra.Names)
	}
	if v == nil {
		return all
	}
	if v.extra.Pointer != nil {
		add(RolePoint, "", v.extra.Pointer.KeyIDs, v.extra.Pointer.Threshold, v.extra.Names)
	}
	for _, channel := range v.Channels {
		d, _ := v.role(channel)
		add(RolePoint, channel, d.KeyIDs, d.Threshold, v.extra.Names)
	}
	return all
}

// Expiry says when a document is over.
type Expiry struct {
	Document string    `json:"document"`
	Expires  time.Time `json:"expires"`
}

// Expiries returns when the documents of an origin are over, the soonest first. Kinds: those of Vouching.
func (r Refs) Expiries(ctx context.Context) ([]Expiry, error) {
	t, _, err := r.state(ctx)
	if err != nil {
		return nil, err
	}
	all := []Expiry{{"root", t.set.Root.Signed.Expires}, {"timestamp", t.set.Timestamp.Signed.Expires},
		{"snapshot", t.set.Snapshot.Signed.Expires}, {"vouching", t.set.Targets[DocVouching].Signed.Expires}}
	slices.SortFunc(all, func(a, b Expiry) int { return a.Expires.Compare(b.Expires) })
	return all, nil
}

// errNoSuchRole is for roles that the root does not give.
func errNoSuchRole(role Role) error {
	return namespace.E(namespace.Invalid, "change keys", string(role), fmt.Errorf("the vouching keys say who has this role"))
}
