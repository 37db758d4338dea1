package oci

import (
	"archive/tar"
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"coppice.dev/coppice/builder"
	"coppice.dev/coppice/internal/disk"
	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/object"
)

// WriteOptions of [Write]. The zero value is the default.
type WriteOptions struct {
	// Image is what the configuration says of how to run it. Its Platform is that of this machine
	// if it is "", its Created the beginning of 1970 if it is zero; Digest is not read.
	Image Image
	// Tag is what the layout calls the image; "" is no name.
	Tag string
	// Compression is "gzip", which every container engine reads, "zstd", or "none"; "" is gzip.
	Compression string
	// Archive writes the layout as one tar archive, as `podman load` and `docker load` read.
	Archive bool
	// Progress is that of an export.
	Progress func(builder.Progress)
}

// Written says what [Write] made.
type Written struct {
	Manifest namespace.Digest `json:"manifest"`
	Layer    namespace.Digest `json:"layer"`
	DiffID   namespace.Digest `json:"diff_id"`
	Bytes    uint64           `json:"bytes"` // of the layer as it is stored
}

// compressions of a layer.
var compressions = map[string]struct {
	media types.MediaType
	open  func(io.Writer) io.WriteCloser
}{
	"gzip": {types.OCILayer, object.NewGzipWriter},
	"zstd": {types.OCILayerZStd, object.NewZstdWriter},
	"none": {types.OCIUncompressedLayer, func(w io.Writer) io.WriteCloser { return nopCloser{w} }},
}

type nopCloser struct{ io.Writer }

// Close implements io.Closer.
func (nopCloser) Close() error { return nil }

// rootAnnotation names the tree that an image was made of.
const rootAnnotation = "dev.coppice.tree.root"

// Write makes an OCI layout of the tree whose root catalog is root, in the directory dest (or the
// file, for an archive), which must be empty or not exist. It appears there entirely or not at all.
// The same tree and options give the same bytes. Kinds: those of [builder.ExportTar], Exist, Invalid.
func Write(ctx context.Context, s *builder.Stored, root namespace.Digest, dest string, o WriteOptions) (Written, error) {
	if o.Compression == "" {
		o.Compression = "gzip"
	}
	if _, ok := compressions[o.Compression]; !ok {
		return Written{}, namespace.WithHint(namespace.E(namespace.Invalid, "write image", o.Compression, errors.New("not a compression")), "gzip, zstd or none")
	}
	if o.Archive {
		return writeArchive(ctx, s, root, dest, o)
	}
	pending, err := disk.NewDir("export", dest)
	if err != nil {
		return Written{}, err
	}
	defer pending.Discard()
	w, err := writeLayout(ctx, s, root, pending.Path, o)
	if err == nil {
		err = pending.Commit()
	}
	return w, err
}

// writeArchive writes the layout beside dest, where there is room, and packs it.
func writeArchive(ctx context.Context, s *builder.Stored, root namespace.Digest, dest string, o WriteOptions) (Written, error) {
	file, err := disk.NewFile("export", dest, 0o666)
	if err != nil {
		return Written{}, err
	}
	defer file.Discard()
	dir, err := os.MkdirTemp(filepath.Dir(dest), "."+filepath.Base(dest)+".*.partial")
	if err != nil {
		return Written{}, disk.Error("export", dest, err)
	}
	defer os.RemoveAll(dir)
	w, err := writeLayout(ctx, s, root, dir, o)
	if err != nil {
		return w, err
	}
	if err := pack(ctx, dir, file); err != nil {
		return w, disk.Error("export", dest, err)
	}
	return w, file.Commit()
}

// pack writes the files in dir to a tar archive, records first, so that a reader knows at once what
// it has.
func pack(ctx context.Context, dir string, w io.Writer) error {
	names := []string{}
	err := fs.WalkDir(os.DirFS(dir), ".", func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			names = append(names, path)
		}
		return err
	})
	if err != nil {
		return err
	}
	slices.SortFunc(names, func(a, b string) int {
		if deep := strings.Count(a, "/") - strings.Count(b, "/"); deep != 0 {
			return deep
		}
		return -strings.Compare(a, b) // oci-layout before index.json
	})
	buffered := bufio.NewWriterSize(w, 1<<20)
	t := tar.NewWriter(buffered)
	for _, name := range names {
		if err := packFile(ctx, t, dir, name); err != nil {
			return err
		}
	}
	if err := t.Close(); err != nil {
		return err
	}
	return buffered.Flush()
}

func packFile(ctx context.Context, t *tar.Writer, dir, name string) error {
	f, err := os.Open(filepath.Join(dir, name))
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	h := &tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: info.Size(), ModTime: time.Unix(0, 0)}
	if err := t.WriteHeader(h); err != nil {
		return err
	}
	_, err = io.Copy(t, cancelReader{ctx, f})
	return err
}

// writeLayout fills the directory dir.
func writeLayout(ctx context.Context, s *builder.Stored, root namespace.Digest, dir string, o WriteOptions) (Written, error) {
	l := layout{dir}
	for _, step := range []error{os.Chmod(dir, 0o755), os.MkdirAll(l.blob(""), 0o755)} {
		if step != nil {
			return Written{}, disk.Error("export", dir, step)
		}
	}
	layer, diff, err := l.layer(ctx, s, root, o)
	if err != nil {
		return Written{}, err
	}
	c, err := o.config(diff)
	if err != nil {
		return Written{}, err
	}
	config, err := l.record(c, types.OCIConfigJSON)
	if err != nil {
		return Written{}, err
	}
	manifest, err := l.record(v1.Manifest{
		SchemaVersion: 2, MediaType: types.OCIManifestSchema1, Config: config, Layers: []v1.Descriptor{layer},
		Annotations: map[string]string{rootAnnotation: root.String()},
	}, types.OCIManifestSchema1)
	if err != nil {
		return Written{}, err
	}
	manifest.Platform = c.Platform()
	if o.Tag != "" {
		manifest.Annotations = map[string]string{refName: o.Tag}
	}
	index, err := json.Marshal(v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: []v1.Descriptor{manifest}})
	if err == nil {
		err = l.file(indexFile, index)
	}
	if err == nil {
		err = l.file(layoutFile, []byte(`{"imageLayoutVersion":"1.0.0"}`))
	}
	if err != nil {
		return Written{}, err
	}
	w := Written{Bytes: uint64(layer.Size)}
	for _, name := range []struct {
		hash v1.Hash
		into *namespace.Digest
	}{{manifest.Digest, &w.Manifest}, {layer.Digest, &w.Layer}, {diff, &w.DiffID}} {
		if *name.into, err = namespace.ParseDigest(name.hash.String()); err != nil {
			return w, err
		}
	}
	return w, nil
}

// config is the image's configuration.
func (o WriteOptions) config(diff v1.Hash) (*v1.ConfigFile, error) {
	_, p, err := Options{Platform: o.Image.Platform}.platform()
	if err != nil {
		return nil, err
	}
	created := v1.Time{Time: o.Image.Created.UTC().Truncate(time.Second)}
	if o.Image.Created.IsZero() {
		created.Time = time.Unix(0, 0).UTC()
	}
	return &v1.ConfigFile{
		Architecture: p.Architecture, OS: p.OS, Variant: p.Variant, Created: created,
		RootFS:  v1.RootFS{Type: "layers", DiffIDs: []v1.Hash{diff}},
		History: []v1.History{{Created: created, CreatedBy: "coppice tree export"}},
		Config: v1.Config{
			Entrypoint: o.Image.Entrypoint, Cmd: o.Image.Cmd, Env: o.Image.Env, Labels: o.Image.Labels,
			User: o.Image.User, WorkingDir: o.Image.WorkingDir,
		},
	}, nil
}

// layout is a directory that becomes an OCI layout.
type layout struct{ dir string }

func (l layout) blob(hex string) string { return filepath.Join(l.dir, blobsDir, "sha256", hex) }

func (l layout) file(name string, b []byte) error {
	if err := os.WriteFile(filepath.Join(l.dir, name), b, 0o644); err != nil {
		return disk.Error("write", name, err)
	}
	return nil
}

// record stores v as a blob.
func (l layout) record(v any, media types.MediaType) (v1.Descriptor, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return v1.Descriptor{}, namespace.E(namespace.Internal, "write", string(media), err)
	}
	d := v1.Descriptor{MediaType: media, Size: int64(len(b)), Digest: hashOf(sha256.Sum256(b))}
	return d, l.file(filepath.Join(blobsDir, "sha256", d.Digest.Hex), b)
}

func hashOf(sum [sha256.Size]byte) v1.Hash {
	return v1.Hash{Algorithm: "sha256", Hex: fmt.Sprintf("%x", sum)}
}

// layer stores the tree as a blob, and returns what names it compressed and not.
func (l layout) layer(ctx context.Context, s *builder.Stored, root namespace.Digest, o WriteOptions) (d v1.Descriptor, diff v1.Hash, err error) {
	c := compressions[o.Compression]
	d.MediaType = c.media
	tmp := l.blob("layer.partial")
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return d, diff, disk.Error("write", tmp, err)
	}
	defer f.Close()
	stored, plain := &hashed{w: f, h: sha256.New()}, sha256.New()
	packed := bufio.NewWriterSize(stored, 1<<20)
	z := c.open(packed)
	if err := builder.ExportTar(ctx, s, root, io.MultiWriter(plain, z), builder.ExportOptions{Progress: o.Progress}); err != nil {
		return d, diff, err
	}
	for _, step := range []func() error{z.Close, packed.Flush, f.Close} {
		if err := step(); err != nil {
			return d, diff, disk.Error("write", tmp, err)
		}
	}
	d.Size, d.Digest = stored.n, hashOf([sha256.Size]byte(stored.h.Sum(nil)))
	if err := os.Rename(tmp, l.blob(d.Digest.Hex)); err != nil {
		return d, diff, disk.Error("write", tmp, err)
	}
	return d, hashOf([sha256.Size]byte(plain.Sum(nil))), nil
}

// hashed counts and hashes what goes to w.
type hashed struct {
	w io.Writer
	h hash.Hash
	n int64
}

// Write implements io.Writer.
func (h *hashed) Write(b []byte) (int, error) {
	n, err := h.w.Write(b)
	h.h.Write(b[:n])
	h.n += int64(n)
	return n, err
}
