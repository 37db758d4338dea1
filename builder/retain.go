package builder

import (
	"context"
	"fmt"
	"time"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/object"
	"coppice.dev/coppice/namespace/trust"
)

// Policy says which versions of an origin's names count. Of each tree and namespace these are the
// Keep newest, and those that were the newest at any time within Within before Now; of a channel
// the versions that its pointers name, by the same two rules. The newest always counts.
type Policy struct {
	Keep   int
	Within time.Duration
	Now    time.Time
	// All counts every version, whatever the rules above say.
	All bool
	// Only, if set, chooses the names that count at all.
	Only func(namespace.RefName) bool
	// Bad, if set, is told of a record or manifest that is damaged or may not be believed, which is
	// then passed over; else it is Retain's error.
	Bad func(n namespace.RefName, err error)
}

// NamedRoot is the root catalog of a version, and what people call it: NAME@N, or a channel.
// Newest: the version is the newest of its name, so that no collection ever dropped it. Packages is
// the table of the packages in it, zero if there is none.
type NamedRoot struct {
	Root     namespace.Digest
	Name     string
	Newest   bool
	Packages namespace.Digest
}

// Retained is what a Policy retains of an origin, by its refs.
type Retained struct {
	// Trees are root catalogs, retained with everything below. Some may be missing: see Missing.
	Trees []NamedRoot
	// Blobs are manifests, replaced pointers, tables of packages, profiles and the documents of trust.
	Blobs []namespace.Digest
	// Layouts are those of profiles for roots among Trees, retained with the packs they name, which may
	// hold more than locators lead to. They are derived: one that is missing costs a cold start time.
	Layouts []namespace.LayoutRef
	// Profiles names the profile refs of which something is retained.
	Profiles []string
	// Dropped are root catalogs and manifests of versions that do not count.
	Dropped []namespace.Digest
	// Missing names versions whose manifest is not there: they were collected before.
	Missing []string
}

// Retain reads the refs of an origin and applies the policy. Kinds: those of trust.Refs; Corrupt (a
// manifest, or the history of a channel).
func (p Policy) Retain(ctx context.Context, refs trust.Refs, from namespace.Fetcher) (Retained, error) {
	refs.Blobs = blobReader{from}
	r := &retaining{Policy: p, refs: refs, from: from, manifests: map[namespace.Digest]bool{}, namespaces: map[string]bool{}, name: trust.TimestampName}
	documents, err := refs.Documents(ctx)
	if err := r.note(err); err != nil {
		return r.Retained, err
	}
	r.Blobs = documents
	for _, kind := range []struct {
		name string
		add  func(context.Context, string) error
	}{
		{namespace.TreeRef, r.tree}, {namespace.NamespaceRef, r.namespace}, {namespace.ChannelRef, r.channel},
		{namespace.ProfileRef, r.profiles}, // last: it follows from what else is retained
	} {
		names, err := refs.Reader.Refs(ctx, kind.name)
		if err != nil {
			return r.Retained, err
		}
		for _, name := range names {
			if p.Only != nil && !p.Only(namespace.RefName{Kind: kind.name, Name: name}) && !(kind.name == namespace.ProfileRef && r.namespaces[name]) {
				continue
			}
			r.name = namespace.RefName{Kind: kind.name, Name: name}
			if err := r.note(kind.add(ctx, name)); err != nil {
				return r.Retained, err
			}
		}
	}
	return r.Retained, nil
}

type retaining struct {
	Policy
	Retained
	refs      trust.Refs
	from      namespace.Fetcher
	name      namespace.RefName         // being read
	manifests map[namespace.Digest]bool // those looked at; false: not there

	namespaces map[string]bool // of which a version is retained
}

// note tells Bad of err, if it is one of the data.
func (r *retaining) note(err error) error {
	if err == nil || r.Bad == nil {
		return err
	}
	switch namespace.KindOf(err) {
	case namespace.Canceled, namespace.Unavailable, namespace.Internal:
		return err
	}
	r.Bad(r.name, err)
	return nil
}

// counts reports whether number age of a name's versions, 0 being the newest, counts; replaced is
// when a newer one came.
func (r *retaining) counts(age int, replaced time.Time) bool {
	return r.All || age < max(1, r.Keep) || r.Within > 0 && replaced.After(r.Now.Add(-r.Within))
}

func (r *retaining) tree(ctx context.Context, name string) error {
	t, err := r.refs.Tree(ctx, name)
	if err != nil {
		return err
	}
	for i, v := range t.Versions {
		var replaced time.Time
		if i+1 < len(t.Versions) {
			replaced = t.Versions[i+1].Created
		}
		if !r.counts(len(t.Versions)-1-i, replaced) {
			r.Dropped = append(r.Dropped, v.Root)
			continue
		}
		r.Trees = append(r.Trees, NamedRoot{v.Root, namespace.Version{Name: name, N: v.N}.String(), i+1 == len(t.Versions), v.Packages})
		if !v.Packages.IsZero() {
			r.Blobs = append(r.Blobs, v.Packages)
		}
	}
	return nil
}

func (r *retaining) namespace(ctx context.Context, name string) error {
	ns, err := r.refs.Namespace(ctx, name)
	if err != nil {
		return err
	}
	for i, v := range ns.Versions {
		var replaced time.Time
		if i+1 < len(ns.Versions) {
			replaced = ns.Versions[i+1].Created
		}
		if !r.counts(len(ns.Versions)-1-i, replaced) {
			r.Dropped = append(r.Dropped, v.Manifest)
			continue
		}
		err := r.manifest(ctx, v.Manifest, namespace.Version{Name: name, N: v.N}.String(), i+1 == len(ns.Versions))
		if err := r.note(err); err != nil {
			return err
		}
	}
	return nil
}

// channel retains the whole history, a few hundred bytes a pointer, and what those pointers name
// that count.
func (r *retaining) channel(ctx context.Context, name string) error {
	age := 0
	var replaced time.Time
	var failed error
	err := r.refs.History(ctx, name, func(ptr namespace.Pointer) bool {
		if !ptr.Prev.IsZero() {
			r.Blobs = append(r.Blobs, ptr.Prev)
		}
		r.Blobs = append(r.Blobs, ptr.Blobs()...)
		if r.counts(age, replaced) {
			for _, one := range ptr.Names() {
				if failed == nil {
					failed = r.note(r.manifest(ctx, one.Manifest, "channel "+name, age == 0))
				}
			}
		}
		age, replaced = age+1, ptr.Issued
		return failed == nil
	})
	if failed != nil {
		return failed
	}
	return err
}

// manifest retains a namespace version: the composed tree and the trees that were mounted.
func (r *retaining) manifest(ctx context.Context, d namespace.Digest, name string, newest bool) error {
	if there, ok := r.manifests[d]; ok && !there && !newest {
		return nil
	}
	m, err := readManifest(ctx, r.from, d)
	if namespace.IsKind(err, namespace.NotExist) && !newest {
		r.manifests[d], r.Missing = false, append(r.Missing, name)
		return nil
	}
	if err != nil {
		return err
	}
	r.Trees = append(r.Trees, NamedRoot{Root: m.Root, Name: name, Newest: newest})
	r.manifests[d], r.Blobs = true, append(r.Blobs, d)
	r.namespaces[m.Name] = true
	for _, mount := range m.Mounts {
		r.Trees = append(r.Trees, NamedRoot{Root: mount.Tree, Name: name, Newest: newest})
	}
	return nil
}

// readManifest loads a manifest.
func readManifest(ctx context.Context, from namespace.Fetcher, d namespace.Digest) (namespace.Manifest, error) {
	var m namespace.Manifest
	b, err := blobReader{from}.GetBlob(ctx, d, namespace.ManifestBytesMax)
	if err != nil {
		return m, err
	}
	err = namespace.DecodeRecord(b, namespace.ManifestBytesMax, "manifest "+d.String(), &m)
	if err == nil && m.Format != namespace.RecordFormat {
		err = namespace.WithHint(namespace.E(namespace.Invalid, "read", "manifest "+d.String(), fmt.Errorf("format %d", m.Format)),
			"a newer coppice wrote it: update this one")
	}
	return m, err
}

// blobReader implements trust.Blobs for who only reads.
type blobReader struct{ from namespace.Fetcher }

// PutBlob implements trust.Blobs.
func (blobReader) PutBlob(context.Context, []byte) (namespace.Digest, error) {
	return namespace.Digest{}, namespace.E(namespace.Denied, "write", "origin", fmt.Errorf("opened for reading"))
}

// GetBlob implements trust.Blobs.
func (r blobReader) GetBlob(ctx context.Context, d namespace.Digest, limit int64) ([]byte, error) {
	k := namespace.Key{Class: namespace.Blob, Digest: d}
	stored, err := getAll(ctx, r.from, k, limit+limit/64+1024) // compression adds no more than a header
	if err != nil {
		return nil, err
	}
	return object.DecodeBlob(stored, d, limit)
}
