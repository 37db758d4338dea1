package trust

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"coppice.dev/coppice/namespace"
)

// VouchingChange is what to change in what the vouching keys say. Its parts are applied in the order of
// the fields.
type VouchingChange struct {
	Vouch    []namespace.Version // of the catalogue; for one that is vouched for already, a renewal
	Content  uint64              // of Vouch: 0 is that of an equal manifest or, without one, its number
	Except   []Exception         // of Vouch: added to those there are
	Withdraw []namespace.Version // to be named by no channel any more
	Floor    []namespace.Version // vouched: no channel may name what holds less
	Policy   *Policy
	Channels []string // to be delegated to the keys that point new channels
	Keys     []KeyChange
}

// KeyChange gives a key to a role, or takes it away. For RolePoint, Channel says of which channel; "" is
// all there are, and those to come.
type KeyChange struct {
	Role      Role
	Channel   string
	Add       ed25519.PublicKey
	Name      string // of Add
	Remove    string // a key's id
	Threshold int    // 0 leaves it
}

// delegate returns the next vouching document with a channel more, signed.
func (p *Publisher) delegate(st *state, channel, why string) (*metadata.Metadata[metadata.TargetsType], error) {
	if err := namespace.CheckName(channel); err != nil {
		return nil, err
	}
	doc, err := p.nextVouching(context.Background(), st, VouchingChange{Channels: []string{channel}})
	if err != nil {
		return nil, err
	}
	signers, err := p.signersOf("channel "+channel+", which is new,", p.Root.Keys(RoleVouching))
	if err != nil {
		return nil, err
	}
	return doc, signDocument(doc, p.note(why+" "+channel), signers...)
}

// CanVouch reports whether enough vouching keys are at hand.
func (p *Publisher) CanVouch() bool {
	_, err := p.signersOf(DocVouching, p.Root.Keys(RoleVouching))
	return err == nil
}

// ChangeVouching makes a change with the vouching keys at hand, and returns what they say after it.
// Kinds: NotExist (a version, or its manifest), Denied (keys), Invalid, Limit, those of AddTree.
func (p *Publisher) ChangeVouching(ctx context.Context, c VouchingChange, why string) (v *Vouching, err error) {
	if err := checkComment(why); err != nil {
		return nil, err
	}
	err = p.commit(ctx, func(st *state) (*edit, error) {
		doc, err := p.nextVouching(ctx, st, c)
		if err != nil {
			return nil, err
		}
		signers, err := p.signersOf("vouching", p.Root.Keys(RoleVouching))
		if err != nil {
			return nil, err
		}
		if err := signDocument(doc, p.note(why), signers...); err != nil {
			return nil, err
		}
		if v, err = readVouching(doc); err != nil {
			return nil, err
		}
		channels, err := p.signAnew(ctx, st, v, why)
		return &edit{doc, channels}, err
	})
	return v, err
}

// signAnew makes the next documents of those channels whose present ones the changed keys do not cover.
func (p *Publisher) signAnew(ctx context.Context, st *state, v *Vouching, why string) (map[string]*metadata.Metadata[metadata.TargetsType], error) {
	again := map[string]*metadata.Metadata[metadata.TargetsType]{}
	for _, channel := range v.Channels {
		role, _ := v.role(channel)
		was, ok := st.vouching.role(channel)
		if !ok || was.Threshold == role.Threshold && slices.Equal(was.KeyIDs, role.KeyIDs) || st.trusted.set.Snapshot.Signed.Meta[ChannelDoc(channel)+".json"] == nil {
			continue
		}
		doc, _, err := p.pointer(ctx, st.trusted, channel)
		if err != nil {
			return nil, err
		}
		if v.doc.VerifyDelegate(ChannelDoc(channel), doc) == nil {
			continue
		}
		_, next, err := p.nextPointer(ctx, st, v, channel, why, stay)
		if err != nil {
			return nil, err
		}
		signers, err := p.signersOf("channel "+channel, RoleKeys{RolePoint, role.Threshold, role.KeyIDs})
		if err != nil {
			return nil, err
		}
		if err := signDocument(next, p.note(why), signers...); err != nil {
			return nil, err
		}
		again[channel] = next
	}
	return again, nil
}

// nextVouching makes the next document of the vouching role, unsigned.
func (p *Publisher) nextVouching(ctx context.Context, st *state, c VouchingChange) (*metadata.Metadata[metadata.TargetsType], error) {
	b, err := st.vouching.doc.ToBytes(false)
	if err != nil {
		return nil, namespace.E(namespace.Internal, "write", DocVouching, err)
	}
	doc, err := decodeDocument[metadata.TargetsType](DocVouching, b) // a copy
	if err != nil {
		return nil, err
	}
	doc.ClearSignatures()
	doc.Signed.Version++
	doc.Signed.Expires = p.now().Add(vouchingLife)
	e, err := readExtra(doc.Signed.UnrecognizedFields, DocVouching)
	if err != nil {
		return nil, err
	}
	for _, v := range c.Vouch {
		if err := p.vouch(ctx, st, doc, v, c); err != nil {
			return nil, err
		}
	}
	if err := c.apply(doc, &e, p.now()); err != nil {
		return nil, err
	}
	doc.Signed.UnrecognizedFields, err = writeExtra(doc.Signed.UnrecognizedFields, e)
	return doc, err
}

// vouch adds a version of the catalogue to doc.
func (p *Publisher) vouch(ctx context.Context, st *state, doc *metadata.Metadata[metadata.TargetsType], v namespace.Version, c VouchingChange) error {
	nv, v, err := p.ResolveNamespace(ctx, v)
	if err != nil {
		return err
	}
	manifest, err := p.Blobs.GetBlob(ctx, nv.Manifest, namespace.ManifestBytesMax)
	if err != nil {
		return err
	}
	custom := vouchCustom{Content: c.Content, Exceptions: c.Except}
	for _, other := range st.vouching.Versions {
		if other.Version.Name != v.Name || other.Manifest != nv.Manifest {
			continue
		}
		if c.Content == 0 && (custom.Content == 0 || other.Content < custom.Content) {
			custom.Content = other.Content
		}
		if other.Version == v {
			custom.Exceptions = append(slices.Clone(other.Exceptions), c.Except...)
		}
	}
	if custom.Content == 0 {
		custom.Content = v.N
	}
	b, err := json.Marshal(custom)
	if err != nil {
		return namespace.E(namespace.Internal, "write", DocVouching, err)
	}
	doc.Signed.Targets[v.String()] = target(nv.Manifest, int64(len(manifest)), b)
	return nil
}

// apply makes all changes but those of Vouch.
func (c VouchingChange) apply(doc *metadata.Metadata[metadata.TargetsType], e *extra, now time.Time) error {
	for _, x := range c.Except {
		if err := namespace.CheckName(x.Channel); err != nil {
			return err
		}
		if !x.Until.IsZero() && x.Until.Before(now) {
			return namespace.E(namespace.Invalid, "vouch", x.Channel, fmt.Errorf("the exception would be over already"))
		}
	}
	for _, v := range c.Withdraw {
		if doc.Signed.Targets[v.String()] == nil {
			return namespace.E(namespace.NotExist, "withdraw", v.String(), fmt.Errorf("nobody vouches for it"))
		}
		delete(doc.Signed.Targets, v.String())
	}
	for _, v := range c.Floor {
		t := doc.Signed.Targets[v.String()]
		if t == nil {
			return namespace.E(namespace.NotExist, "raise floor to", v.String(), fmt.Errorf("nobody vouches for it"))
		}
		one, err := readVouched(v.String(), t)
		if err != nil {
			return namespace.E(namespace.Corrupt, "read", DocVouching, err)
		}
		if e.Floors == nil {
			e.Floors = map[string]uint64{}
		}
		e.Floors[v.Name] = one.Content
	}
	if c.Policy != nil {
		if err := c.Policy.Check(); err != nil {
			return err
		}
		e.Policy = c.Policy
	}
	for _, k := range c.Keys {
		if err := k.applyVouching(doc, e); err != nil {
			return err
		}
	}
	for _, channel := range c.Channels {
		if err := delegateChannel(doc, e, channel); err != nil {
			return err
		}
	}
	return nil
}

// delegateChannel gives a channel to the keys that point new channels.
func delegateChannel(doc *metadata.Metadata[metadata.TargetsType], e *extra, channel string) error {
	if err := namespace.CheckName(channel); err != nil {
		return err
	}
	if e.Pointer == nil || doc.Signed.Delegations == nil {
		return namespace.E(namespace.Invalid, "delegate", "channel "+channel, fmt.Errorf("no keys point new channels"))
	}
	d := doc.Signed.Delegations
	if slices.ContainsFunc(d.Roles, func(r metadata.DelegatedRole) bool { return r.Name == ChannelDoc(channel) }) {
		return namespace.E(namespace.Exist, "delegate", "channel "+channel, nil)
	}
	d.Roles = append(d.Roles, metadata.DelegatedRole{Name: ChannelDoc(channel), KeyIDs: slices.Clone(e.Pointer.KeyIDs), Threshold: e.Pointer.Threshold,
		Terminating: true, Paths: []string{channel}})
	return nil
}

// applyVouching changes who points channels.
func (k KeyChange) applyVouching(doc *metadata.Metadata[metadata.TargetsType], e *extra) error {
	d := doc.Signed.Delegations
	if k.Role != RolePoint || e.Pointer == nil || d == nil {
		return namespace.E(namespace.Invalid, "change keys", string(k.Role), fmt.Errorf("the root says who has this role"))
	}
	if k.Add != nil {
		key, err := metadata.KeyFromPublicKey(k.Add)
		if err != nil {
			return namespace.E(namespace.Invalid, "add key", k.Name, err)
		}
		d.Keys[KeyID(k.Add)] = key
		e.setName(KeyID(k.Add), k.Name)
	}
	change := func(ids []string, threshold int) ([]string, int, error) { return k.change("channels", ids, threshold) }
	var err error
	found := k.Channel == ""
	for i, r := range d.Roles {
		if k.Channel == "" || r.Name == ChannelDoc(k.Channel) {
			found = true
			if d.Roles[i].KeyIDs, d.Roles[i].Threshold, err = change(r.KeyIDs, r.Threshold); err != nil {
				return err
			}
		}
	}
	if !found {
		return namespace.E(namespace.NotExist, "change keys", "channel "+k.Channel, nil)
	}
	if k.Channel == "" {
		if e.Pointer.KeyIDs, e.Pointer.Threshold, err = change(e.Pointer.KeyIDs, e.Pointer.Threshold); err != nil {
			return err
		}
	}
	used := map[string]bool{}
	for _, id := range e.Pointer.KeyIDs {
		used[id] = true
	}
	for _, r := range d.Roles {
		for _, id := range r.KeyIDs {
			used[id] = true
		}
	}
	maps.DeleteFunc(d.Keys, func(id string, _ *metadata.Key) bool { return !used[id] })
	maps.DeleteFunc(e.Names, func(id string, _ string) bool { return !used[id] })
	return nil
}

// change returns the keys of a role after the change.
func (k KeyChange) change(what string, ids []string, threshold int) ([]string, int, error) {
	ids = slices.Clone(ids)
	if k.Remove != "" {
		i := slices.Index(ids, k.Remove)
		if i < 0 {
			return nil, 0, namespace.E(namespace.NotExist, "revoke key", what, fmt.Errorf("it has no key %.16s", k.Remove))
		}
		ids = slices.Delete(ids, i, i+1)
	}
	if k.Add != nil && !slices.Contains(ids, KeyID(k.Add)) {
		ids = append(ids, KeyID(k.Add))
	}
	if k.Threshold > 0 {
		threshold = k.Threshold
	}
	if threshold > len(ids) || threshold < 1 {
		return nil, 0, namespace.WithHint(namespace.E(namespace.Invalid, "change keys", what, fmt.Errorf("%d of %d keys could never sign", threshold, len(ids))),
			"add a key first, or lower the threshold with --threshold")
	}
	return ids, threshold, nil
}

func (e *extra) setName(id, name string) {
	if name == "" {
		return
	}
	if e.Names == nil {
		e.Names = map[string]string{}
	}
	e.Names[id] = name
}
