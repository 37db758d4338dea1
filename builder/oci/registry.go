package oci

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"golang.org/x/sync/errgroup"

	"coppice.dev/coppice/builder"
	"coppice.dev/coppice/internal/disk"
	"coppice.dev/coppice/namespace"
)

const (
	// fetchesMax is how many layers are fetched at a time: what container engines do.
	fetchesMax = 3
	// fetchTries is how often a layer is asked for, when its transfer breaks off.
	fetchTries = 3
)

// reference returns the registry reference in src, if it is one.
func reference(src string) (string, bool) {
	for _, scheme := range []string{"docker://", "oci://"} {
		if ref, ok := strings.CutPrefix(src, scheme); ok {
			return ref, true
		}
	}
	return "", false
}

// registry is a repository of a registry.
type registry struct {
	repo    name.Repository
	options []remote.Option
	top     v1.Descriptor
	bytes   []byte // of top
}

// blob implements source.
func (r *registry) blob(ctx context.Context, d v1.Descriptor) (io.ReadCloser, error) {
	if d.Digest == r.top.Digest {
		return io.NopCloser(strings.NewReader(string(r.bytes))), nil
	}
	options := append([]remote.Option{remote.WithContext(ctx)}, r.options...)
	at := r.repo.Digest(d.Digest.String())
	if d.MediaType.IsIndex() || d.MediaType.IsImage() {
		m, err := remote.Get(at, options...)
		if err != nil {
			return nil, remoteError(ctx, "fetch", at.String(), err)
		}
		return io.NopCloser(strings.NewReader(string(m.Manifest))), nil
	}
	l, err := remote.Layer(at, options...)
	if err != nil {
		return nil, remoteError(ctx, "fetch", at.String(), err)
	}
	body, err := l.Compressed()
	if err != nil {
		return nil, remoteError(ctx, "fetch", at.String(), err)
	}
	return body, nil
}

// remoteError gives an error of a registry its Kind.
func remoteError(ctx context.Context, op, subject string, err error) error {
	if ctx.Err() != nil {
		return namespace.E(namespace.KindOf(context.Cause(ctx)), op, subject, context.Cause(ctx))
	}
	kind := namespace.KindOf(err)
	if kind == namespace.Internal {
		kind = namespace.Unavailable
	}
	var answer *transport.Error
	if errors.As(err, &answer) {
		switch answer.StatusCode {
		case http.StatusNotFound:
			kind = namespace.NotExist
		case http.StatusUnauthorized, http.StatusForbidden:
			return namespace.WithHint(namespace.E(namespace.Denied, op, subject, err),
				"the image may not exist, or needs credentials: `docker login` or `podman login` keeps them where they are found")
		}
	}
	return namespace.E(kind, op, subject, err)
}

// openRegistry fetches the image that ref names.
func (i *Image) openRegistry(ctx context.Context, ref string, want v1.Platform, o Options) error {
	at, err := name.ParseReference(ref)
	if err != nil {
		return namespace.WithHint(namespace.E(namespace.Invalid, "read reference", ref, err), "as docker://host/name:tag")
	}
	r := &registry{repo: at.Context(), options: []remote.Option{remote.WithAuthFromKeychain(authn.DefaultKeychain), remote.WithUserAgent("coppice")}}
	top, err := remote.Get(at, append([]remote.Option{remote.WithContext(ctx)}, r.options...)...)
	if err != nil {
		return remoteError(ctx, "fetch", at.String(), err)
	}
	if len(top.Manifest) > namespace.ImageRecordBytesMax {
		return namespace.E(namespace.Limit, "fetch", at.String(), fmt.Errorf("a manifest of %d bytes", len(top.Manifest)))
	}
	r.top, r.bytes = top.Descriptor, top.Manifest
	r.top.Size = int64(len(top.Manifest))
	d := r.top
	if d.MediaType.IsIndex() {
		var index v1.IndexManifest
		if err := readRecord(ctx, r, d, &index); err != nil {
			return err
		}
		if d, err = choose(ctx, r, &index, want, o); err != nil {
			return err
		}
	}
	layers, diffs, err := i.openManifest(ctx, r, d, want, o)
	if err != nil {
		return err
	}
	return i.fetch(ctx, r, layers, diffs, o)
}

// fetch brings all layers to a temporary directory: they are read twice.
func (i *Image) fetch(ctx context.Context, r *registry, layers []v1.Descriptor, diffs []v1.Hash, o Options) error {
	dir, err := os.MkdirTemp(o.Dir, "coppice-image-*")
	if err != nil {
		return disk.Error("create", o.Dir, err)
	}
	i.close = append(i.close, func() error { return os.RemoveAll(dir) })
	f := &fetching{r: r, dir: dir, tell: o.Progress}
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(fetchesMax)
	asked := map[v1.Hash]bool{}
	for n, l := range layers {
		i.layers = append(i.layers, layer(spooled{dir}, n+1, l, diffs[n]))
		if asked[l.Digest] {
			continue
		}
		asked[l.Digest] = true
		f.done.FilesTotal++
		f.done.BytesTotal += uint64(max(l.Size, 0))
	}
	for _, l := range layers {
		if !asked[l.Digest] {
			continue
		}
		delete(asked, l.Digest)
		group.Go(func() error { return f.layer(gctx, l) })
	}
	return group.Wait()
}

// fetching is the state of fetching layers.
type fetching struct {
	r    *registry
	dir  string
	tell func(builder.Progress)

	mu   sync.Mutex // guards done, and calls of tell
	done builder.Progress
}

func (f *fetching) add(layers, bytes int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.done.Files += uint64(layers)
	f.done.Bytes += uint64(bytes) // modulo 2⁶⁴: what was counted may be taken back
	if f.tell != nil {
		f.tell(f.done)
	}
}

// layer fetches one layer, verified.
func (f *fetching) layer(ctx context.Context, d v1.Descriptor) error {
	if !isHex(d.Digest.Hex) {
		return namespace.E(namespace.Invalid, "fetch", d.Digest.String(), errors.New("not a sha256 digest"))
	}
	var err error
	for range fetchTries {
		if err = f.once(ctx, d); err == nil || !namespace.IsKind(err, namespace.Unavailable) {
			return err
		}
	}
	return err
}

func (f *fetching) once(ctx context.Context, d v1.Descriptor) error {
	body, err := f.r.blob(ctx, d)
	if err != nil {
		return err
	}
	defer body.Close()
	checked, err := newVerified(body, d.Digest, d.Size)
	if err != nil {
		return err
	}
	file, err := os.Create(filepath.Join(f.dir, d.Digest.Hex))
	if err != nil {
		return disk.Error("create", f.dir, err)
	}
	counted := &counted{f: f}
	_, err = io.Copy(io.MultiWriter(file, counted), cancelReader{ctx, checked})
	if closed := file.Close(); err == nil {
		err = closed
	}
	if err == nil {
		f.add(1, 0)
		return nil
	}
	f.add(0, -counted.n)
	if full := disk.Error("write", file.Name(), err); namespace.IsKind(full, namespace.Limit) {
		return namespace.WithHint(full, "layers wait in the directory that TMPDIR names")
	}
	return remoteError(ctx, "fetch", d.Digest.String(), err)
}

// counted counts what is fetched.
type counted struct {
	f *fetching
	n int64
}

// Write implements io.Writer.
func (c *counted) Write(b []byte) (int, error) {
	c.n += int64(len(b))
	c.f.add(0, int64(len(b)))
	return len(b), nil
}

// spooled finds layers where fetch put them.
type spooled struct{ dir string }

// blob implements source.
func (s spooled) blob(_ context.Context, d v1.Descriptor) (io.ReadCloser, error) {
	f, err := os.Open(filepath.Join(s.dir, d.Digest.Hex))
	if err != nil {
		return nil, disk.Error("open", d.Digest.String(), err)
	}
	return f, nil
}
