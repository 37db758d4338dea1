package main

import (
	"context"
	"io"
	"strings"
	"time"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/catalog"
	"coppice.dev/coppice/namespace/object"
	"coppice.dev/coppice/namespace/origin"
	"coppice.dev/coppice/namespace/trust"
)

// workshop is what building and publishing need: an origin that can be written, its root of
// trust and, through publisher, a signing key.
type workshop struct {
	origin namespace.Origin
	refs   trust.Refs
	app    *app
	dir    string
	keys   string
}

// openWorkshop opens the origin named by --origin for writing.
func (a *app) openWorkshop(ctx context.Context) (*workshop, error) {
	dir, err := a.location()
	if err != nil {
		return nil, err
	}
	o, err := origin.OpenWritable(ctx, dir)
	if err != nil {
		return nil, err
	}
	root, _, err := trust.FetchRoot(ctx, o)
	if err != nil {
		return nil, err
	}
	return &workshop{o, trust.Refs{Reader: o, Root: root, Blobs: originBlobs{o}}, a, dir, a.keysDir(dir)}, nil
}

// publisher returns a writer of signed refs.
func (w *workshop) publisher() (*trust.Publisher, error) {
	keys, err := w.app.signers(w.keys)
	if err != nil {
		return nil, err
	}
	return &trust.Publisher{Refs: w.refs, Writer: w.origin, Signers: keys, By: signerName(), Now: time.Now}, nil
}

// originBlobs implements trust.Blobs for an origin that can be written.
type originBlobs struct{ origin namespace.Origin }

// PutBlob implements trust.Blobs.
func (b originBlobs) PutBlob(ctx context.Context, p []byte) (namespace.Digest, error) {
	d := namespace.Sum(p)
	return d, b.origin.Put(ctx, namespace.Key{Class: namespace.Blob, Digest: d}, object.EncodeBlob(p))
}

// GetBlob implements trust.Blobs.
func (b originBlobs) GetBlob(ctx context.Context, d namespace.Digest, limit int64) ([]byte, error) {
	return fetchBlob(ctx, b.origin, d, limit)
}

// sourceBlobs implements trust.Blobs for who only reads.
type sourceBlobs struct{ from namespace.Fetcher }

// PutBlob implements trust.Blobs; there is nothing to put.
func (b sourceBlobs) PutBlob(context.Context, []byte) (namespace.Digest, error) {
	return namespace.Digest{}, namespace.E(namespace.Denied, "write", "origin", nil)
}

// GetBlob implements trust.Blobs.
func (b sourceBlobs) GetBlob(ctx context.Context, d namespace.Digest, limit int64) ([]byte, error) {
	return fetchBlob(ctx, b.from, d, limit)
}

// PutBlob stores a blob.
func (w *workshop) PutBlob(ctx context.Context, b []byte) (namespace.Digest, error) {
	return originBlobs{w.origin}.PutBlob(ctx, b)
}

// GetBlob loads a blob.
func (w *workshop) GetBlob(ctx context.Context, d namespace.Digest, limit int64) ([]byte, error) {
	return fetchBlob(ctx, w.origin, d, limit)
}

// Catalog implements catalog.Loader.
func (w *workshop) Catalog(ctx context.Context, d namespace.Digest) (*catalog.Catalog, error) {
	return originLoader{w.origin}.Catalog(ctx, d)
}

// originLoader loads catalogs straight from an origin, without a cache.
type originLoader struct{ from namespace.Fetcher }

// Catalog implements catalog.Loader.
func (l originLoader) Catalog(ctx context.Context, d namespace.Digest) (*catalog.Catalog, error) {
	b, err := fetchBlob(ctx, l.from, d, namespace.CatalogBytesMax)
	if err != nil {
		return nil, err
	}
	return catalog.Open(b)
}

// fetchBlob reads and verifies a blob.
func fetchBlob(ctx context.Context, from namespace.Fetcher, d namespace.Digest, limit int64) ([]byte, error) {
	key := namespace.Key{Class: namespace.Blob, Digest: d}
	r, err := from.Get(ctx, key, 0, -1)
	if namespace.IsKind(err, namespace.NotExist) {
		err = namespace.WithHint(err, "`coppice origin gc` drops versions that are not kept: choose a newer one")
	}
	if err != nil {
		return nil, err
	}
	defer r.Close()
	// Compression only ever adds a header to what it cannot shrink.
	b, err := io.ReadAll(io.LimitReader(r, limit+limit/64+1024))
	if err != nil {
		return nil, namespace.E(namespace.KindOf(err), "read", key.String(), err)
	}
	return object.DecodeBlob(b, d, limit)
}

// readManifest decodes a manifest's bytes.
func readManifest(b []byte, d namespace.Digest) (namespace.Manifest, error) {
	var m namespace.Manifest
	err := namespace.DecodeRecord(b, namespace.ManifestBytesMax, "manifest "+d.String(), &m)
	if err == nil && m.Format != namespace.RecordFormat {
		err = namespace.WithHint(namespace.E(namespace.Invalid, "read", "manifest "+d.String(), nil), "a newer coppice wrote it: update this one")
	}
	return m, err
}

// reader is what listing and showing need: any origin, read-only.
type reader struct {
	source namespace.Source
	refs   trust.Refs
}

// openReader opens the origin named by --origin for reading. Its root is believed as presented:
// whoever lists an origin looks at it, and runs nothing from it.
func (a *app) openReader(ctx context.Context) (*reader, error) {
	src, err := a.openOrigin(ctx)
	if err != nil {
		return nil, err
	}
	root, _, err := trust.FetchRoot(ctx, src)
	if err != nil {
		return nil, err
	}
	return &reader{src, trust.Refs{Reader: src, Root: root, Blobs: sourceBlobs{src}}}, nil
}

// GetBlob loads a blob.
func (r *reader) GetBlob(ctx context.Context, d namespace.Digest, limit int64) ([]byte, error) {
	return fetchBlob(ctx, r.source, d, limit)
}

// Catalog implements catalog.Loader.
func (r *reader) Catalog(ctx context.Context, d namespace.Digest) (*catalog.Catalog, error) {
	return originLoader{r.source}.Catalog(ctx, d)
}

// treeRoot resolves a tree's NAME@N or the digest of its root catalog.
func treeRoot(ctx context.Context, refs trust.Refs, s string) (namespace.Digest, namespace.Version, error) {
	if strings.HasPrefix(s, "sha256:") {
		d, err := namespace.ParseDigest(s)
		return d, namespace.Version{}, err
	}
	v, err := namespace.ParseVersion(s)
	if err != nil {
		return namespace.Digest{}, v, err
	}
	tv, v, err := refs.ResolveTree(ctx, v)
	return tv.Root, v, err
}
