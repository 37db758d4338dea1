package trust

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"coppice.dev/coppice/namespace"
)

// nextRoot makes the next root, signed with the keys at hand, not necessarily enough of them.
func (p *Publisher) nextRoot(changes []KeyChange, note Note) (*metadata.Metadata[metadata.RootType], extra, error) {
	doc, err := decodeDocument[metadata.RootType](DocRoot, p.Root.raw) // a copy
	if err != nil {
		return nil, extra{}, err
	}
	doc.ClearSignatures()
	doc.Signed.Version++
	doc.Signed.Expires = p.now().Add(rootLife)
	e, err := readExtra(doc.Signed.UnrecognizedFields, DocRoot)
	if err != nil {
		return nil, e, err
	}
	for _, k := range changes {
		if err := k.applyRoot(doc, &e); err != nil {
			return nil, e, err
		}
	}
	used := map[string]bool{}
	for _, id := range e.Publisher.KeyIDs {
		used[id] = true
	}
	for _, r := range doc.Signed.Roles {
		for _, id := range r.KeyIDs {
			used[id] = true
		}
	}
	maps.DeleteFunc(doc.Signed.Keys, func(id string, _ *metadata.Key) bool { return !used[id] })
	maps.DeleteFunc(e.Names, func(id string, _ string) bool { return !used[id] })
	doc.Signed.UnrecognizedFields, err = writeExtra(doc.Signed.UnrecognizedFields, e)
	return doc, e, err
}

// applyRoot changes who has a role of the root.
func (k KeyChange) applyRoot(doc *metadata.Metadata[metadata.RootType], e *extra) error {
	if k.Add != nil {
		key, err := metadata.KeyFromPublicKey(k.Add)
		if err != nil {
			return namespace.E(namespace.Invalid, "add key", k.Name, err)
		}
		doc.Signed.Keys[KeyID(k.Add)] = key
		e.setName(KeyID(k.Add), k.Name)
	}
	var err error
	if k.Role == RolePublish {
		e.Publisher.KeyIDs, e.Publisher.Threshold, err = k.change(string(k.Role), e.Publisher.KeyIDs, e.Publisher.Threshold)
		return err
	}
	r := doc.Signed.Roles[string(k.Role)]
	if r == nil {
		return errNoSuchRole(k.Role)
	}
	r.KeyIDs, r.Threshold, err = k.change(string(k.Role), r.KeyIDs, r.Threshold)
	return err
}

// ChangeRoot makes a change of the root's keys with the keys at hand, and returns the new root. What hangs
// on the keys that change is signed with the old and the new ones first, so that every moment in between
// is valid under one root or the other. Kinds: Denied (keys), Invalid, Exist (another change came first).
func (p *Publisher) ChangeRoot(ctx context.Context, changes []KeyChange, why string) (*Root, error) {
	if err := checkComment(why); err != nil {
		return nil, err
	}
	doc, e, err := p.nextRoot(changes, p.note(why))
	if err != nil {
		return nil, err
	}
	next, err := p.sealRoot(doc, e, p.note(why), p.Root)
	if err != nil {
		return nil, err
	}
	return next, p.writeRoot(ctx, next, why)
}

// writeRoot makes next the root.
func (p *Publisher) writeRoot(ctx context.Context, next *Root, why string) error {
	if next.Version != p.Root.Version+1 || next.ID != p.Root.ID {
		return namespace.E(namespace.Exist, "update", RootName.String(), fmt.Errorf("version %d, but the newest is %d", next.Version, p.Root.Version))
	}
	if err := p.Root.doc.VerifyDelegate(DocRoot, next.doc); err != nil {
		return tufError("sign", RootName.String(), err)
	}
	p.next = next
	defer func() { p.next = nil }()
	if err := p.sealAnew(ctx, next); err != nil {
		return err
	}
	err := p.commit(ctx, func(st *state) (*edit, error) {
		if next.doc.VerifyDelegate(DocVouching, st.vouching.doc) == nil {
			return &edit{}, nil
		}
		return p.vouchAnew(ctx, st, next, why)
	})
	if err != nil {
		return err
	}
	if err := p.Writer.SwapRef(ctx, RootVersion(int64(next.Version)), nil, next.raw); err != nil {
		return err
	}
	have, err := p.Reader.Ref(ctx, RootName)
	if err == nil {
		err = p.Writer.SwapRef(ctx, RootName, have, next.raw)
	}
	if err != nil {
		return err
	}
	p.Root = next
	return nil
}

// vouchAnew signs the vouching document with the keys of both roots.
func (p *Publisher) vouchAnew(ctx context.Context, st *state, next *Root, why string) (*edit, error) {
	doc, err := p.nextVouching(ctx, st, VouchingChange{})
	if err != nil {
		return nil, err
	}
	for _, r := range []*Root{p.Root, next} {
		signers, err := p.signersOf("vouching", r.Keys(RoleVouching))
		if err != nil {
			return nil, namespace.WithHint(namespace.E(namespace.KindOf(err), "sign", "vouching", errors.New("those who have the role after the change must sign it first")),
				"have them sign `coppice request create renew`, with --also NEW.pub for keys that come, and apply that before")
		}
		if err := signDocument(doc, p.note(why), signers...); err != nil {
			return nil, err
		}
	}
	return &edit{vouching: doc}, tufError("sign", DocVouching, next.doc.VerifyDelegate(DocVouching, doc))
}

// publishedKinds are the kinds of ref that publishers sign.
var publishedKinds = []string{namespace.TreeRef, namespace.NamespaceRef, namespace.ProfileRef}

// sealAnew signs the catalogues with the publishers' keys of both roots, if those of the next one would
// not do.
func (p *Publisher) sealAnew(ctx context.Context, next *Root) error {
	for _, kind := range publishedKinds {
		names, err := p.Reader.Refs(ctx, kind)
		if err != nil {
			return err
		}
		for _, name := range names {
			if err := p.sealOne(ctx, namespace.RefName{Kind: kind, Name: name}, next); err != nil {
				return err
			}
		}
	}
	return nil
}

func (p *Publisher) sealOne(ctx context.Context, n namespace.RefName, next *Root) error {
	for range swapAttempts {
		raw, err := p.Reader.Ref(ctx, n)
		if err != nil {
			return err
		}
		if _, err := next.Open(n, raw); err == nil {
			return nil
		}
		payload, err := p.Root.Open(n, raw)
		if err != nil {
			return err
		}
		var signers []Signer
		for _, r := range []*Root{p.Root, next} {
			some, err := p.signersOf(n.String(), r.Keys(RolePublish))
			if err != nil {
				return err
			}
			for _, s := range some {
				if !slices.ContainsFunc(signers, func(have Signer) bool { return have.KeyID() == s.KeyID() }) {
					signers = append(signers, s)
				}
			}
		}
		sealed, err := sealPayload(n, payload, signers...)
		if err != nil {
			return err
		}
		if err := p.Writer.SwapRef(ctx, n, raw, sealed); !namespace.IsKind(err, namespace.Exist) {
			return err
		}
	}
	return namespace.E(namespace.Unavailable, "update", n.String(), fmt.Errorf("lost %d races against other publishers", swapAttempts))
}
