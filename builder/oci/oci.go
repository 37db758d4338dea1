// Package oci moves trees between an origin and the world of container images.
//
// [Open] reads an image: an OCI layout (a directory, or that directory in a tar archive), an archive
// that `docker save` wrote, or an image in a registry. Every byte is checked against the digest that
// names it, from the manifest down to the layers, before and after decompression. [Write] makes an
// OCI layout of a stored tree: one layer, the same digest for the same tree.
package oci

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"coppice.dev/coppice/builder"
	"coppice.dev/coppice/namespace"
)

// Options of [Open]. The zero value is the default.
type Options struct {
	// Platform is which image of several is meant, as "linux/arm64" or "linux/arm/v7"; "" is that of
	// this machine.
	Platform string
	// Name is which image of several is meant, by its tag or reference as the layout or archive
	// records it; "" is the only one.
	Name string
	// Dir is where layers of a registry wait for the import; "" is the system's temporary directory.
	Dir string
	// Progress, if set, is told what was fetched from a registry: layers, as Files, and their bytes.
	// From several goroutines, one at a time.
	Progress func(builder.Progress)
}

// Image is an image that was opened. Its exported fields are for display.
type Image struct {
	Digest     string            `json:"digest"` // of its manifest; "" in an archive of `docker save`
	Platform   string            `json:"platform"`
	Created    time.Time         `json:"created,omitzero"`
	Entrypoint []string          `json:"entrypoint,omitempty"`
	Cmd        []string          `json:"cmd,omitempty"`
	Env        []string          `json:"env,omitempty"`
	Labels     map[string]string `json:"labels,omitempty"`
	User       string            `json:"user,omitempty"`
	WorkingDir string            `json:"working_dir,omitempty"`

	layers []builder.Layer
	close  []func() error
}

// Source returns the image's content.
func (i *Image) Source() builder.LayersSource { return builder.LayersSource{Layers: i.layers} }

// Close ends the use of the image and its Source, and removes what was fetched for it.
func (i *Image) Close() error {
	var errs []error
	for _, f := range slices.Backward(i.close) {
		errs = append(errs, f())
	}
	i.close = nil
	return errors.Join(errs...)
}

// source is where an image's parts are.
type source interface {
	// blob returns the bytes that d names, which are not yet verified.
	blob(ctx context.Context, d v1.Descriptor) (io.ReadCloser, error)
}

// Open opens the image src: a registry reference ("docker://host/name:tag", or "oci://…"), the
// directory of an OCI layout, or an archive of either kind, plain or compressed. What a registry has
// is fetched before Open returns, with the credentials that container tools keep, if any. The caller
// closes the image. Kinds: NotExist (no such image or platform), Invalid (no image, or one of a
// form that is not known), Corrupt (bytes are not those that their digest names), Limit, Denied,
// Unavailable, Canceled.
func Open(ctx context.Context, src string, o Options) (*Image, error) {
	o, want, err := o.platform()
	if err != nil {
		return nil, err
	}
	img := &Image{}
	if ref, ok := reference(src); ok {
		err = img.openRegistry(ctx, ref, want, o)
	} else {
		err = img.openLocal(ctx, src, want, o)
	}
	if err != nil {
		_ = img.Close() // the first error is the one to tell
		return nil, namespace.E(namespace.KindOf(err), "open image", src, err)
	}
	return img, nil
}

// platform parses the platform that is wanted.
func (o Options) platform() (Options, v1.Platform, error) {
	if o.Platform == "" {
		return o, v1.Platform{OS: "linux", Architecture: runtime.GOARCH}, nil
	}
	p, err := v1.ParsePlatform(o.Platform)
	if err != nil || p.OS == "" || p.Architecture == "" {
		return o, v1.Platform{}, namespace.WithHint(namespace.E(namespace.Invalid, "read platform", o.Platform, err), "as linux/arm64")
	}
	return o, *p, nil
}

// indexDepthMax bounds indexes in indexes; tools write at most one in the layout's own.
const indexDepthMax = 4

// choose returns the image of the index that is wanted.
func choose(ctx context.Context, s source, index *v1.IndexManifest, want v1.Platform, o Options) (v1.Descriptor, error) {
	c := chooser{s: s, want: want}
	top := slices.Clone(index.Manifests)
	if o.Name != "" {
		top = slices.DeleteFunc(top, func(d v1.Descriptor) bool { return !hasName(d, o.Name) })
		if len(top) == 0 {
			return v1.Descriptor{}, namesError(namespace.NotExist, fmt.Sprintf("no image is called %q", o.Name), index)
		}
	}
	if err := c.collect(ctx, top, 0); err != nil {
		return v1.Descriptor{}, err
	}
	fits := slices.DeleteFunc(slices.Clone(c.images), func(d v1.Descriptor) bool { return d.Platform == nil || !d.Platform.Satisfies(want) })
	switch {
	case len(fits) == 0 && len(c.images) == 1 && (o.Platform == "" || c.images[0].Platform == nil):
		return c.images[0], nil // of another platform, which is told, or of one that only its configuration says
	case len(fits) == 0 && len(c.images) > 1 && allUnknown(c.images):
		return v1.Descriptor{}, namesError(namespace.Invalid, "it holds several images", index)
	case len(fits) == 0:
		return v1.Descriptor{}, namespace.WithHint(namespace.E(namespace.NotExist, "", "", fmt.Errorf("no image for %v", want)),
			"there are: "+strings.Join(c.platforms(), ", ")+"; choose with --platform")
	case len(top) > 1 && o.Name == "" && !sameDigest(fits):
		return v1.Descriptor{}, namesError(namespace.Invalid, "it holds several images", index)
	}
	return fits[0], nil
}

// chooser collects the images of an index and of those in it.
type chooser struct {
	s      source
	want   v1.Platform
	images []v1.Descriptor
}

func (c *chooser) collect(ctx context.Context, all []v1.Descriptor, depth int) error {
	if depth > indexDepthMax {
		return namespace.E(namespace.Limit, "", "", fmt.Errorf("indexes nested more than %d deep", indexDepthMax))
	}
	for _, d := range all {
		switch {
		case d.MediaType.IsIndex():
			var sub v1.IndexManifest
			if err := readRecord(ctx, c.s, d, &sub); err != nil {
				return err
			}
			if err := c.collect(ctx, sub.Manifests, depth+1); err != nil {
				return err
			}
		case d.MediaType.IsImage() && !unknown(d.Platform): // attestations say unknown/unknown
			c.images = append(c.images, d)
		}
		if len(c.images) > namespace.LayersMax {
			return namespace.E(namespace.Limit, "", "", fmt.Errorf("more than %d images", namespace.LayersMax))
		}
	}
	return nil
}

func (c *chooser) platforms() []string {
	all := []string{}
	for _, d := range c.images {
		if d.Platform != nil {
			all = append(all, d.Platform.String())
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

func unknown(p *v1.Platform) bool {
	return p != nil && p.OS == "unknown" && p.Architecture == "unknown"
}

func allUnknown(images []v1.Descriptor) bool {
	return !slices.ContainsFunc(images, func(d v1.Descriptor) bool { return d.Platform != nil })
}

func sameDigest(all []v1.Descriptor) bool {
	return !slices.ContainsFunc(all, func(d v1.Descriptor) bool { return d.Digest != all[0].Digest })
}

// Annotations with which a layout names its images.
const (
	refName        = "org.opencontainers.image.ref.name"
	containerdName = "io.containerd.image.name"
)

func hasName(d v1.Descriptor, name string) bool {
	return d.Annotations[refName] == name || d.Annotations[containerdName] == name || d.Digest.String() == name
}

// namesError is an error whose hint lists the images that there are.
func namesError(kind namespace.Kind, why string, index *v1.IndexManifest) error {
	var names []string
	for _, d := range index.Manifests {
		name := d.Annotations[refName]
		if name == "" {
			name = d.Digest.String()
		}
		names = append(names, name)
	}
	if len(names) > 20 {
		names = append(names[:20], "…")
	}
	return namespace.WithHint(namespace.E(kind, "", "", errors.New(why)), "choose one with --image: "+strings.Join(names, ", "))
}

// openManifest completes the image from its manifest, which s has.
func (i *Image) openManifest(ctx context.Context, s source, d v1.Descriptor, want v1.Platform, o Options) ([]v1.Descriptor, []v1.Hash, error) {
	var m v1.Manifest
	if err := readRecord(ctx, s, d, &m); err != nil {
		return nil, nil, err
	}
	i.Digest = d.Digest.String()
	if len(m.Layers) > namespace.LayersMax {
		return nil, nil, namespace.E(namespace.Limit, "", "", fmt.Errorf("%d layers, at most %d", len(m.Layers), namespace.LayersMax))
	}
	var c v1.ConfigFile
	if !m.Config.MediaType.IsConfig() {
		return nil, nil, namespace.E(namespace.Invalid, "", "", fmt.Errorf("it is no container image but %q", m.Config.MediaType))
	}
	if err := readRecord(ctx, s, m.Config, &c); err != nil {
		return nil, nil, err
	}
	if len(c.RootFS.DiffIDs) != len(m.Layers) {
		return nil, nil, namespace.E(namespace.Corrupt, "", "", fmt.Errorf("%d layers, but its configuration describes %d", len(m.Layers), len(c.RootFS.DiffIDs)))
	}
	return m.Layers, c.RootFS.DiffIDs, i.describe(c, want, o)
}

// describe keeps what the configuration says.
func (i *Image) describe(c v1.ConfigFile, want v1.Platform, o Options) error {
	p := v1.Platform{OS: c.OS, Architecture: c.Architecture, Variant: c.Variant}
	i.Platform, i.Created = p.String(), c.Created.Time
	i.Entrypoint, i.Cmd, i.Env = c.Config.Entrypoint, c.Config.Cmd, c.Config.Env
	i.Labels, i.User, i.WorkingDir = c.Config.Labels, c.Config.User, c.Config.WorkingDir
	if c.OS != "" && c.OS != "linux" {
		return namespace.E(namespace.Invalid, "", "", fmt.Errorf("it is for %v; only Linux images can be imported", p))
	}
	if o.Platform != "" && (c.OS != want.OS || c.Architecture != want.Architecture) {
		return namespace.E(namespace.NotExist, "", "", fmt.Errorf("it is for %v, not for %v", p, want))
	}
	return nil
}

// readRecord reads an index, manifest or configuration, verified.
func readRecord(ctx context.Context, s source, d v1.Descriptor, v any) error {
	if d.Size < 0 || d.Size > namespace.ImageRecordBytesMax {
		return namespace.E(namespace.Limit, "read", d.Digest.String(), fmt.Errorf("%d bytes, at most %d", d.Size, namespace.ImageRecordBytesMax))
	}
	raw, err := s.blob(ctx, d)
	if err != nil {
		return err
	}
	defer raw.Close()
	checked, err := newVerified(raw, d.Digest, d.Size)
	if err != nil {
		return err
	}
	b, err := io.ReadAll(checked)
	if err != nil {
		return namespace.E(kindOf(err), "read", d.Digest.String(), err)
	}
	return decode(b, d.Digest.String(), v)
}

// decode reads a record, which is one JSON value.
func decode(b []byte, subject string, v any) error {
	dec := json.NewDecoder(bytes.NewReader(b))
	if err := dec.Decode(v); err != nil {
		return namespace.E(namespace.Invalid, "read", subject, err)
	}
	if _, err := dec.Token(); err != io.EOF {
		return namespace.E(namespace.Invalid, "read", subject, errors.New("something follows its end"))
	}
	return nil
}

// kindOf is the Kind of an error from reading: Corrupt, unless the reader below says another.
func kindOf(err error) namespace.Kind {
	if k := namespace.KindOf(err); k != namespace.Internal {
		return k
	}
	return namespace.Corrupt
}
