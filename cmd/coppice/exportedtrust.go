package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/object"
	"coppice.dev/coppice/namespace/origin"
	"coppice.dev/coppice/namespace/trust"
)

// documents are those of an origin that let an endpoint which never saw it believe what an export is of.
// They implement namespace.RefReader and trust.Blobs, as the origin itself would.
type documents struct {
	refs  map[namespace.RefName][]byte
	order []namespace.RefName // in which they are written: what names the rest comes last
	blobs map[namespace.Digest][]byte
}

func (d *documents) ref(n namespace.RefName, b []byte) {
	d.refs[n], d.order = b, append(d.order, n)
}

func (d *documents) blob(b []byte) { d.blobs[namespace.Sum(b)] = b }

// Ref implements namespace.RefReader.
func (d *documents) Ref(_ context.Context, n namespace.RefName) ([]byte, error) {
	if b, ok := d.refs[n]; ok {
		return b, nil
	}
	return nil, namespace.E(namespace.NotExist, "read ref", n.String(), nil)
}

// Refs implements namespace.RefReader.
func (d *documents) Refs(_ context.Context, kind string) (names []string, err error) {
	for _, n := range d.order {
		if n.Kind == kind {
			names = append(names, n.Name)
		}
	}
	return names, nil
}

// PutBlob implements trust.Blobs; there is nothing to put.
func (d *documents) PutBlob(context.Context, []byte) (namespace.Digest, error) {
	return namespace.Digest{}, namespace.E(namespace.Denied, "write", "export", nil)
}

// GetBlob implements trust.Blobs.
func (d *documents) GetBlob(_ context.Context, digest namespace.Digest, _ int64) ([]byte, error) {
	if b, ok := d.blobs[digest]; ok {
		return b, nil
	}
	return nil, namespace.E(namespace.NotExist, "read", "document "+digest.String(), errUnlike)
}

// put writes the blobs.
func (d *documents) put(ctx context.Context, put putFunc) error {
	for digest, b := range d.blobs {
		if err := put(ctx, namespace.Key{Class: namespace.Blob, Digest: digest}, object.EncodeBlob(b)); err != nil {
			return err
		}
	}
	return nil
}

// documents returns what an export of a ref has of what is kept, verified to belong together, and the version
// that target means by it. Kinds: NotExist (nothing is kept, or no longer in one piece), those of trust.Refs.
func (k *trustKeeper) documents(ctx context.Context, target string, ref namespace.RefName) (d *documents, p namespace.Pointer, err error) {
	k.looks.Lock()
	defer k.looks.Unlock()
	d = &documents{refs: map[namespace.RefName][]byte{}, blobs: map[namespace.Digest][]byte{}}
	missing := namespace.WithHint(namespace.E(namespace.NotExist, "export", target, errors.New("this cache has no verified record of it")),
		"mount it once, or name the directory of a mount")
	load := func(name string) []byte {
		b, lerr := k.files().Load(name)
		if err == nil {
			err = lerr
		}
		if err == nil && b == nil {
			err = missing
		}
		return b
	}
	raw := load(trust.DocRoot)
	timestamp := load(trust.DocTimestamp)
	d.blob(load(trust.DocSnapshot))
	d.blob(load(trust.DocVouching))
	var record []byte
	if ref.Kind == namespace.ChannelRef {
		record = load(ref.String())
		d.blob(record)
	}
	if err != nil {
		return nil, p, err
	}
	root, err := trust.OpenRoot(raw)
	if err != nil {
		return nil, p, err
	}
	for n := int64(1); n <= int64(root.Version); n++ { // those since first contact, for endpoints that have not seen them
		if b, err := k.files().Load(trust.RootVersion(n).Name); err == nil && b != nil {
			d.ref(trust.RootVersion(n), b)
		}
	}
	d.ref(trust.RootName, raw)
	d.ref(trust.TimestampName, timestamp)
	if record != nil {
		d.ref(ref, record)
	}
	refs := trust.Refs{Reader: d, Root: root, Blobs: d}
	if record != nil {
		p, err = refs.Pointer(ctx, ref.Name)
		return d, p, err
	}
	p, err = vouchedIn(ctx, refs, target)
	return d, p, err
}

// vouchedIn returns the fixed version that target names.
func vouchedIn(ctx context.Context, refs trust.Refs, target string) (namespace.Pointer, error) {
	v, err := namespace.ParseVersion(target)
	if err != nil {
		return namespace.Pointer{}, err
	}
	said, err := refs.Vouching(ctx)
	if err != nil {
		return namespace.Pointer{}, err
	}
	one, err := said.Resolve(v)
	return namespace.Pointer{Version: one.Version, Manifest: one.Manifest}, err
}

// selectExport finds what is to be exported, by what this endpoint verified before.
func (d *daemon) selectExport(ctx context.Context, req exportRequest) (*selected, error) {
	s := &selected{info: exportInfo{Format: 1, Origin: req.Origin, Target: req.Target}, close: func() error { return nil }}
	if req.Dir != "" {
		e, err := d.find(req.Dir)
		if err != nil {
			return nil, err
		}
		s.info.Target, s.info.Origin, s.view = e.req.Target, e.req.Origin, e.view
		return s, s.open(ctx, e.trust)
	}
	n, err := targetRef(s.info.Target)
	if err != nil {
		return nil, err
	}
	var found []*trustKeeper
	for _, dir := range d.trustDirs() {
		if keep, err := d.trustIn(dir); err == nil && keep.has(n, s.info.Target) {
			found = append(found, keep)
		}
	}
	if len(found) == 0 {
		return nil, namespace.WithHint(namespace.E(namespace.NotExist, "export", s.info.Target, errors.New("this cache has no verified record of it")),
			"mount it once, or name the directory of a mount")
	}
	if len(found) > 1 {
		return nil, namespace.WithHint(namespace.E(namespace.Invalid, "export", s.info.Target, fmt.Errorf("%d origins have one of this name", len(found))),
			"name the directory of a mount")
	}
	with := endpointTrust{found[0], trust.OriginDocuments(&documents{}, &documents{})}
	s.view = d.cache.Reader(nowhere{})
	if req.Origin != "" && trustDir(d.dir, req.Origin) == found[0].dir {
		if src, err := origin.Open(ctx, req.Origin, origin.Options{}); err == nil {
			s.view, s.close = d.cache.Reader(src), src.Close
			with.from = trust.OriginDocuments(src, sourceBlobs{src})
		}
	}
	if err := s.open(ctx, with); err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

// has reports whether a target was used here.
func (k *trustKeeper) has(n namespace.RefName, target string) bool {
	name := n.String()
	if n.Kind != namespace.ChannelRef {
		if name = usedPrefix + target; strings.HasSuffix(target, "@") {
			return false
		}
	}
	b, err := k.files().Load(name)
	return err == nil && b != nil
}

// open takes the documents of what is exported. Those that are kept of a channel may be older than the others,
// if other channels of the origin are mounted too: then, and only then, the origin must be asked.
func (s *selected) open(ctx context.Context, with endpointTrust) error {
	n, err := targetRef(s.info.Target)
	if err != nil {
		return err
	}
	if s.documents, s.version, err = with.keep.documents(ctx, s.info.Target, n); !namespace.IsKind(err, namespace.NotExist) {
		return err
	}
	if n.Kind == namespace.ChannelRef {
		_, aerr := with.Accept(ctx, n.Name, nil)
		if aerr != nil {
			return namespace.WithHint(errors.Join(err, aerr), "mount it while the origin can be reached, then export it")
		}
	}
	s.documents, s.version, err = with.keep.documents(ctx, s.info.Target, n)
	return err
}

// imports hydrates the cache from an export: content first, and when that is complete and durable, the
// documents, none of which may be older than what is kept.
func (d *daemon) imports(ctx context.Context, req importRequest, progress progressOf) (archiveReply, error) {
	src, closer, info, err := openExport(req.Source)
	if err != nil {
		return archiveReply{}, err
	}
	defer closer.Close()
	loc := req.Origin
	if loc == "" {
		loc = info.Origin
	}
	if loc == "" {
		return archiveReply{}, namespace.WithHint(usage("the export does not say which origin it is of"), "name it with --origin")
	}
	keep, err := d.trustOf([]string{loc})
	if err != nil {
		return archiveReply{}, err
	}
	_, pinned, err := keep.pin(ctx, src, req.Trust)
	if err != nil {
		return archiveReply{}, err
	}
	view := d.cache.Reader(src)
	hydrate := func(ctx context.Context, p namespace.Pointer) error {
		b, err := view.Blob(ctx, p.Manifest, namespace.ManifestBytesMax)
		if err != nil {
			return err
		}
		m, err := readManifest(b, p.Manifest)
		if err != nil {
			return err
		}
		return view.Hydrate(ctx, m.Root, progress)
	}
	im := importing{endpointTrust{keep, trust.OriginDocuments(src, sourceBlobs{src})}, hydrate}
	p, err := im.take(ctx, src, info.Target)
	return archiveReply{Path: req.Source, Target: info.Target, Version: p.Version.String(), Origin: loc, Pinned: pinned}, err
}

// importing takes what an export is of.
type importing struct {
	endpointTrust
	hydrate func(context.Context, namespace.Pointer) error
}

// take verifies what target means as a follower would, has its content fetched, and then verifies again and
// keeps: others may have taken something newer meanwhile.
func (i importing) take(ctx context.Context, src namespace.RefReader, target string) (p namespace.Pointer, err error) {
	n, err := targetRef(target)
	if err != nil {
		return p, err
	}
	if n.Kind != namespace.ChannelRef {
		return i.takeVersion(ctx, target)
	}
	raw, err := src.Ref(ctx, n)
	if err != nil {
		return p, err
	}
	err = i.keep.preview(ctx, i.from, func(u *trust.Updater, t *trust.Trusted) error {
		p, err = u.Accept(ctx, t, n.Name, raw)
		return err
	})
	if err == nil {
		err = i.hydrate(ctx, p)
	}
	if err != nil {
		return p, err
	}
	err = i.keep.look(ctx, i.from, func(u *trust.Updater, t *trust.Trusted) error {
		p, err = u.Accept(ctx, t, n.Name, raw)
		return err
	})
	return p, err
}

// takeVersion takes a fixed version.
func (i importing) takeVersion(ctx context.Context, target string) (p namespace.Pointer, err error) {
	v, err := namespace.ParseVersion(target)
	if err != nil {
		return p, err
	}
	var one trust.Vouched
	resolve := func(_ *trust.Updater, t *trust.Trusted) error {
		said, err := t.Vouching()
		if err == nil {
			one, err = said.Resolve(v)
		}
		if err == nil {
			err = said.Allows("", one.Version, one.Manifest, i.keep.now())
		}
		return err
	}
	if err := i.keep.preview(ctx, i.from, resolve); err != nil {
		return p, err
	}
	p = namespace.Pointer{Version: one.Version, Manifest: one.Manifest}
	if err := i.hydrate(ctx, p); err != nil {
		return p, err
	}
	if err := i.keep.look(ctx, i.from, resolve); err != nil {
		return p, err
	}
	return p, i.keep.use(one)
}
