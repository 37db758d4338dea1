package trust

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"coppice.dev/coppice/namespace"
)

// Request is a document that waits for signatures: made where the origin is, carried to where the keys
// are, signed there by as many people as must, and carried back. It holds the document before, so that who
// signs sees what changes without believing who asks. Nothing in it is trusted: a person reads Changes,
// and [Publisher.Apply] verifies.
type Request struct {
	Format   int             `json:"format"`
	Origin   string          `json:"origin"` // id
	Document string          `json:"document"`
	Asked    Note            `json:"asked"`
	Keys     []string        `json:"keys"`      // that count, by id
	Need     int             `json:"threshold"` // how many of them
	Before   json.RawMessage `json:"before,omitempty"`
	Next     json.RawMessage `json:"next"`
}

// RequestBytesMax bounds a request: two documents and some.
const RequestBytesMax = 2*VouchingBytesMax + 1<<20

const requestFormat = 1

// OpenRequest reads a request strictly. Kinds: Limit, Corrupt.
func OpenRequest(b []byte) (r Request, err error) {
	if err := checkJSON(b, RequestBytesMax, "request"); err != nil {
		return r, err
	}
	dec := json.NewDecoder(strings.NewReader(string(b)))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&r); err != nil {
		return r, namespace.E(namespace.Corrupt, "read", "request", err)
	}
	if r.Format != requestFormat || len(r.Keys) > 2*keysMax || r.Need < 1 {
		return r, namespace.E(namespace.Corrupt, "read", "request", fmt.Errorf("format %d, %d keys, %d needed", r.Format, len(r.Keys), r.Need))
	}
	_, err = r.view()
	return r, err
}

// AskVouching makes a request for a change of what the vouching keys say; the zero change renews it. The
// keys in also may sign it too, though they do not count yet: what has their signatures stays valid when
// the root gives them the role.
func (p *Publisher) AskVouching(ctx context.Context, c VouchingChange, why string, also ...ed25519.PublicKey) (Request, error) {
	st, err := p.readState(ctx)
	if err != nil {
		return Request{}, err
	}
	doc, err := p.nextVouching(ctx, st, c)
	if err != nil {
		return Request{}, err
	}
	want := p.Root.Keys(RoleVouching)
	for _, k := range also {
		want.KeyIDs = append(slices.Clone(want.KeyIDs), KeyID(k))
	}
	return request(p, DocVouching, st.vouching.doc, doc, want, why)
}

// AskPoint makes a request for the next pointer of a channel: at v or, if v is zero, back to the version
// before.
func (p *Publisher) AskPoint(ctx context.Context, channel string, v namespace.Version, why string) (Request, error) {
	st, err := p.readState(ctx)
	if err != nil {
		return Request{}, err
	}
	role, ok := st.vouching.role(channel)
	if !ok {
		return Request{}, missing("channel", channel, "`coppice request create channel "+channel+"` asks for it")
	}
	choose := p.before(ctx, channel)
	if v.Name != "" {
		nv, v, err := p.ResolveNamespace(ctx, v)
		if err != nil {
			return Request{}, err
		}
		choose = func(namespace.Pointer) (naming, error) {
			return naming{NamedVersion: namespace.NamedVersion{Version: v, Manifest: nv.Manifest}}, nil
		}
	}
	var before *metadata.Metadata[metadata.TargetsType]
	if st.trusted.set.Snapshot.Signed.Meta[ChannelDoc(channel)+".json"] != nil {
		if before, _, err = p.pointer(ctx, st.trusted, channel); err != nil {
			return Request{}, err
		}
	}
	_, doc, err := p.nextPointer(ctx, st, st.vouching, channel, why, choose)
	if err != nil {
		return Request{}, err
	}
	return request(p, ChannelDoc(channel), before, doc, RoleKeys{RolePoint, role.Threshold, role.KeyIDs}, why)
}

// AskRoot makes a request for a change of the root's keys.
func (p *Publisher) AskRoot(_ context.Context, changes []KeyChange, why string) (Request, error) {
	doc, _, err := p.nextRoot(changes, p.note(why))
	if err != nil {
		return Request{}, err
	}
	want := p.Root.Keys(RoleRoot)
	for _, id := range doc.Signed.Roles[DocRoot].KeyIDs {
		if !slices.Contains(want.KeyIDs, id) {
			want.KeyIDs = append(slices.Clone(want.KeyIDs), id)
		}
	}
	return request(p, DocRoot, p.Root.doc, doc, want, why)
}

func request[T metadata.Roles](p *Publisher, role string, before, next *metadata.Metadata[T], want RoleKeys, why string) (Request, error) {
	if err := checkComment(why); err != nil {
		return Request{}, err
	}
	r := Request{Format: requestFormat, Origin: p.Root.ID, Document: role, Asked: p.note(why), Keys: want.KeyIDs, Need: want.Threshold}
	r.Asked.At = p.now()
	var err error
	if next.Signatures == nil {
		next.Signatures = []metadata.Signature{}
	}
	if r.Next, err = next.ToBytes(false); err == nil && before != nil {
		r.Before, err = before.ToBytes(false)
	}
	if err != nil {
		return r, namespace.E(namespace.Internal, "write", role, err)
	}
	return r, nil
}

// requested is a request with its documents read.
type requested struct {
	root, rootBefore *metadata.Metadata[metadata.RootType]
	doc, docBefore   *metadata.Metadata[metadata.TargetsType]
}

func (r Request) view() (v requested, err error) {
	if r.Document == DocRoot {
		if v.root, err = decodeDocument[metadata.RootType](DocRoot, r.Next); err == nil && r.Before != nil {
			v.rootBefore, err = decodeDocument[metadata.RootType](DocRoot, r.Before)
		}
		return v, err
	}
	if r.Document != DocVouching && !strings.HasPrefix(r.Document, channelPrefix) {
		return v, namespace.E(namespace.Corrupt, "read", "request", fmt.Errorf("for a document %.100q", r.Document))
	}
	if v.doc, err = decodeDocument[metadata.TargetsType](r.Document, r.Next); err == nil && r.Before != nil {
		v.docBefore, err = decodeDocument[metadata.TargetsType](r.Document, r.Before)
	}
	return v, err
}

// SignRequest returns r with the signatures of those keys that count for it. Kinds: Denied (none of them
// does), Corrupt.
func SignRequest(r Request, note Note, keys ...Signer) (Request, int, error) {
	v, err := r.view()
	if err != nil {
		return r, 0, err
	}
	var count []Signer
	for _, k := range keys {
		if slices.Contains(r.Keys, k.KeyID()) {
			count = append(count, k)
		}
	}
	if len(count) == 0 {
		return r, 0, namespace.E(namespace.Denied, "sign", "request for "+r.Document, errors.New("none of the keys at hand counts for it"))
	}
	if v.root != nil {
		if err = signDocument(v.root, note, count...); err == nil {
			r.Next, err = v.root.ToBytes(false)
		}
	} else if err = signDocument(v.doc, note, count...); err == nil {
		r.Next, err = v.doc.ToBytes(false)
	}
	return r, len(count), err
}

// Signatures lists who signed a request so far. They are verified when it is applied.
func (r Request) Signatures() []Signed {
	v, err := r.view()
	if err != nil {
		return nil
	}
	if v.root != nil {
		return signatures(v.root, publicKeys(v.root.Signed.Keys))
	}
	return signatures(v.doc, nil)
}

// Changes says what a request changes, a line each, found by comparing the documents.
func (r Request) Changes() []string {
	v, err := r.view()
	if err != nil {
		return nil
	}
	was, is := map[string]string{}, map[string]string{}
	if v.root != nil {
		describeRoot(v.rootBefore, was)
		describeRoot(v.root, is)
	} else {
		describeTargets(r.Document, v.docBefore, was)
		describeTargets(r.Document, v.doc, is)
	}
	var lines []string
	for _, k := range slices.Sorted(maps.Keys(is)) {
		switch old, ok := was[k]; {
		case !ok:
			lines = append(lines, "+ "+k+"  "+is[k])
		case old != is[k]:
			lines = append(lines, "~ "+k+"  "+old+" -> "+is[k])
		}
	}
	for _, k := range slices.Sorted(maps.Keys(was)) {
		if _, ok := is[k]; !ok {
			lines = append(lines, "- "+k+"  "+was[k])
		}
	}
	return lines
}

func describeRoot(m *metadata.Metadata[metadata.RootType], out map[string]string) {
	if m == nil {
		return
	}
	e, _ := readExtra(m.Signed.UnrecognizedFields, DocRoot)
	out["version"] = fmt.Sprint(m.Signed.Version)
	out["expires"] = m.Signed.Expires.Format(time.DateOnly)
	describe := func(role string, ids []string, need int) {
		role = Role(role).word()
		out["role "+role] = fmt.Sprintf("%d of %d must sign", need, len(ids))
		for _, id := range ids {
			out["role "+role+" key "+id[:min(16, len(id))]] = e.Names[id]
		}
	}
	for role, keys := range m.Signed.Roles {
		describe(role, keys.KeyIDs, keys.Threshold)
	}
	if e.Publisher != nil {
		describe(string(RolePublish), e.Publisher.KeyIDs, e.Publisher.Threshold)
	}
}

func describeTargets(role string, m *metadata.Metadata[metadata.TargetsType], out map[string]string) {
	if m == nil {
		return
	}
	out["version"] = fmt.Sprint(m.Signed.Version)
	out["expires"] = m.Signed.Expires.Format(time.DateOnly)
	if channel, ok := strings.CutPrefix(role, channelPrefix); ok {
		if p, err := readPointer(channel, m); err == nil {
			out["channel "+channel] = p.Version.String() + " " + p.Manifest.String()
			if !p.Offer.IsZero() {
				out["offer of "+channel] = fmt.Sprint(p.Next.Version, " ", p.Next.Manifest, " by record ", p.Offer)
			}
		}
		return
	}
	v, err := readVouching(m)
	if err != nil {
		out["unreadable"] = err.Error()
		return
	}
	for _, one := range v.Versions {
		out["version "+one.Version.String()] = fmt.Sprintf("%s content %d%s", one.Manifest, one.Content, describeExceptions(one.Exceptions))
	}
	for name, floor := range v.Floors {
		out["floor of "+name] = fmt.Sprint("content ", floor)
	}
	out["policy"] = fmt.Sprintf("fresh %s, lease %s, then %s", v.Policy.Fresh, v.Policy.Lease, v.Policy.Then)
	describe := func(what string, ids []string, need int) {
		out[what] = fmt.Sprintf("%d of %d must sign", need, len(ids))
		for _, id := range ids {
			out[what+" key "+id[:min(16, len(id))]] = v.extra.Names[id]
		}
	}
	if v.extra.Pointer != nil {
		describe("new channels", v.extra.Pointer.KeyIDs, v.extra.Pointer.Threshold)
	}
	for _, channel := range v.Channels {
		d, _ := v.role(channel)
		describe("channel "+channel, d.KeyIDs, d.Threshold)
	}
}

func describeExceptions(all []Exception) string {
	var b strings.Builder
	for _, x := range all {
		fmt.Fprintf(&b, ", except in %s", x.Channel)
		if !x.Until.IsZero() {
			fmt.Fprintf(&b, " until %s", x.Until.Format(time.DateOnly))
		}
	}
	return b.String()
}

// Merge adds the signatures of other copies of the same request. Kinds: Invalid (another request).
func (r Request) Merge(others ...Request) (Request, error) {
	v, err := r.view()
	if err != nil {
		return r, err
	}
	for _, o := range others {
		ov, err := o.view()
		if err != nil {
			return r, err
		}
		if o.Document != r.Document || o.Origin != r.Origin {
			return r, namespace.E(namespace.Invalid, "merge requests", r.Document, fmt.Errorf("the other is for %s", o.Document))
		}
		if v.root != nil {
			v.root.Signatures, err = merged(v.root, ov.root)
		} else {
			v.doc.Signatures, err = merged(v.doc, ov.doc)
		}
		if err != nil {
			return r, err
		}
	}
	if v.root != nil {
		r.Next, err = v.root.ToBytes(false)
	} else {
		r.Next, err = v.doc.ToBytes(false)
	}
	return r, err
}

func merged[T metadata.Roles](a, b *metadata.Metadata[T]) ([]metadata.Signature, error) {
	x, err := json.Marshal(a.Signed)
	y, err2 := json.Marshal(b.Signed)
	if err != nil || err2 != nil || string(x) != string(y) {
		return nil, namespace.E(namespace.Invalid, "merge requests", "", errors.New("they ask for different things"))
	}
	all := slices.Clone(a.Signatures)
	for _, s := range b.Signatures {
		if !slices.ContainsFunc(all, func(have metadata.Signature) bool { return have.KeyID == s.KeyID }) {
			all = append(all, s)
		}
	}
	return all, nil
}

// Apply makes what a request asks for, if enough of the right keys signed it and nothing else came in
// between; the online keys must be at hand. Kinds: Denied (signatures; another origin), Exist (made
// meanwhile: ask again), those of AddTree.
func (p *Publisher) Apply(ctx context.Context, r Request) error {
	if r.Origin != p.Root.ID {
		return namespace.E(namespace.Denied, "apply", "request for "+r.Document, fmt.Errorf("it is for the origin %s, this is %s", r.Origin, p.Root.ID))
	}
	v, err := r.view()
	if err != nil {
		return err
	}
	if v.root != nil {
		next, err := OpenRoot(r.Next)
		if err != nil {
			return err
		}
		return p.writeRoot(ctx, next, r.Asked.Why)
	}
	tried := false
	return p.commit(ctx, func(st *state) (*edit, error) {
		if tried && st.trusted.set.Snapshot.Signed.Meta[r.Document+".json"] != nil &&
			st.trusted.set.Snapshot.Signed.Meta[r.Document+".json"].Version >= v.doc.Signed.Version {
			return nil, tooLate(r.Document)
		}
		tried = true
		if r.Document == DocVouching {
			next, err := readVouching(v.doc)
			if err != nil {
				return nil, err
			}
			if next.N != st.vouching.N+1 {
				return nil, tooLate(r.Document)
			}
			channels, err := p.signAnew(ctx, st, next, r.Asked.Why)
			return &edit{v.doc, channels}, err
		}
		return p.applyPoint(st, strings.TrimPrefix(r.Document, channelPrefix), v.doc)
	})
}

func (p *Publisher) applyPoint(st *state, channel string, doc *metadata.Metadata[metadata.TargetsType]) (*edit, error) {
	ptr, err := readPointer(channel, doc)
	if err != nil {
		return nil, err
	}
	have := int64(0)
	if m := st.trusted.set.Snapshot.Signed.Meta[ChannelDoc(channel)+".json"]; m != nil {
		have = m.Version
		if st.trusted.meta(m).Digest != ptr.Prev {
			return nil, tooLate(ChannelDoc(channel))
		}
	}
	if int64(ptr.Seq) != have+1 {
		return nil, tooLate(ChannelDoc(channel))
	}
	if err := st.vouching.allowsAll(ptr, p.Now()); err != nil {
		return nil, err
	}
	return &edit{channels: map[string]*metadata.Metadata[metadata.TargetsType]{channel: doc}}, nil
}

func tooLate(document string) error {
	return namespace.WithHint(namespace.E(namespace.Exist, "apply", "request for "+document, errors.New("it was changed meanwhile")),
		"make the request anew")
}
