package oci

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"coppice.dev/coppice/internal/disk"
	"coppice.dev/coppice/namespace"
)

// Files of a layout, and of an archive of `docker save`.
const (
	layoutFile   = "oci-layout"
	indexFile    = "index.json"
	blobsDir     = "blobs"
	dockerRecord = "manifest.json"
)

// files is a set of files: those of a directory or of an archive.
type files interface {
	open(name string) (io.ReadCloser, error)
	has(name string) bool
	Close() error
}

// Is reports whether src is something that [Open] opens: a reference to a registry, the directory of
// an OCI layout, or an archive that begins like one of an image.
func Is(src string) bool {
	if _, ok := reference(src); ok {
		return true
	}
	info, err := os.Stat(src)
	switch {
	case err != nil:
		return false
	case info.IsDir():
		f := dirFiles{src}
		return f.has(layoutFile) && f.has(indexFile)
	case !info.Mode().IsRegular():
		return false
	}
	f, err := os.Open(src)
	if err != nil {
		return false
	}
	defer f.Close()
	return beginsAsImage(f)
}

// beginsAsImage looks at the first entries of an archive: those of an image are nothing but records
// and blobs with the names that the forms prescribe.
func beginsAsImage(f io.Reader) bool {
	plain, err := decompress(bufio.NewReaderSize(f, 64<<10))
	if err != nil {
		return false
	}
	defer plain.Close()
	tr := tar.NewReader(io.LimitReader(plain, 64<<20)) // a first layer may stand before the records
	for range 16 {
		h, err := tr.Next()
		if err != nil {
			return false
		}
		name := path.Clean(h.Name)
		dir, base := path.Split(name)
		switch {
		case name == layoutFile, name == dockerRecord, name == indexFile:
			return isTop(tr, name)
		case name == ".", name == "repositories", name == blobsDir, name == blobsDir+"/sha256":
		case dir == blobsDir+"/sha256/" && isHex(base):
			return true
		case dockerDigest(strings.Split(name, "/")[0]) != "": // docker before version 25
			return true
		default:
			return false
		}
	}
	return false
}

// isTop reports whether r is what an image has under that name: other archives hold such names too.
func isTop(r io.Reader, name string) bool {
	b, err := readBounded(r, name)
	if err != nil {
		return false
	}
	var layout struct{ ImageLayoutVersion string }
	var index v1.IndexManifest
	var docker []dockerImage
	switch name {
	case layoutFile:
		return decode(b, name, &layout) == nil && layout.ImageLayoutVersion != ""
	case indexFile:
		return decode(b, name, &index) == nil && index.SchemaVersion == 2 && index.Manifests != nil
	}
	return decode(b, name, &docker) == nil && len(docker) > 0 && docker[0].Config != ""
}

// dockerDigest returns the digest in the name of a configuration or layer, "" if there is none.
func dockerDigest(name string) string {
	name, _, _ = strings.Cut(strings.TrimPrefix(name, "sha256:"), ".")
	if !isHex(name) {
		return ""
	}
	return "sha256:" + name
}

// isHex reports whether s is a sha256 in hexadecimal.
func isHex(s string) bool {
	return len(s) == 64 && strings.Trim(s, "0123456789abcdef") == ""
}

// openLocal opens the image in the directory or archive at src.
func (i *Image) openLocal(ctx context.Context, src string, want v1.Platform, o Options) error {
	f, err := openFiles(ctx, src, o.Dir)
	if err != nil {
		return err
	}
	i.close = append(i.close, f.Close)
	switch {
	case f.has(indexFile):
		return i.openLayout(ctx, fileSource{f}, want, o)
	case f.has(dockerRecord):
		return i.openDocker(ctx, f, want, o)
	}
	return namespace.E(namespace.Invalid, "", "", errors.New("neither an OCI layout nor an archive of docker save: it has no index.json and no manifest.json"))
}

func openFiles(ctx context.Context, src, tmp string) (files, error) {
	info, err := os.Stat(src)
	if err != nil {
		return nil, disk.Error("open", src, err)
	}
	if info.IsDir() {
		return dirFiles{src}, nil
	}
	f, err := os.Open(src)
	if err != nil {
		return nil, disk.Error("open", src, err)
	}
	if f, err = seekable(ctx, f, tmp); err != nil {
		return nil, err
	}
	t := &tarFiles{f: f, at: map[string]section{}}
	if err := t.index(ctx); err != nil {
		f.Close()
		return nil, err
	}
	return t, nil
}

// dirFiles is a directory. Names come from digests and never lead out of it.
type dirFiles struct{ dir string }

func (d dirFiles) open(name string) (io.ReadCloser, error) {
	f, err := os.OpenInRoot(d.dir, name)
	if err != nil {
		return nil, disk.Error("open", name, err)
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = errors.New("not a file")
	}
	if err != nil {
		f.Close()
		return nil, namespace.E(namespace.Invalid, "open", name, err)
	}
	return f, nil
}

func (d dirFiles) has(name string) bool {
	f, err := d.open(name)
	if err == nil {
		f.Close()
	}
	return err == nil
}

func (dirFiles) Close() error { return nil }

// seekable returns f, or, if it is compressed or no regular file, a temporary copy of its content
// that nobody else sees; f is closed then.
func seekable(ctx context.Context, f *os.File, dir string) (*os.File, error) {
	head := make([]byte, 4)
	n, err := f.ReadAt(head, 0)
	if err != nil && err != io.EOF {
		n = 0 // a pipe
	}
	packed := bytes.HasPrefix(head[:n], []byte("\x1f\x8b")) || bytes.HasPrefix(head[:n], []byte("\x28\xb5\x2f\xfd"))
	if n == len(head) && !packed {
		return f, nil
	}
	defer f.Close()
	plain, err := decompress(bufio.NewReaderSize(f, 1<<20))
	if err != nil {
		return nil, namespace.E(kindOf(err), "read", f.Name(), err)
	}
	defer plain.Close()
	tmp, err := os.CreateTemp(dir, "coppice-image-*")
	if err != nil {
		return nil, disk.Error("create", dir, err)
	}
	os.Remove(tmp.Name())
	if _, err := io.Copy(tmp, cancelReader{ctx, plain}); err != nil {
		tmp.Close()
		return nil, namespace.E(kindOf(err), "read", f.Name(), err)
	}
	return tmp, nil
}

// cancelReader ends when ctx does.
type cancelReader struct {
	ctx context.Context
	r   io.Reader
}

// Read implements io.Reader.
func (c cancelReader) Read(b []byte) (int, error) {
	if c.ctx.Err() != nil {
		return 0, context.Cause(c.ctx)
	}
	return c.r.Read(b)
}

// tarFiles is an archive whose files are read in place.
type tarFiles struct {
	f  *os.File
	at map[string]section
}

// section is where a file of an archive is, or the name of another that it is a link to.
type section struct {
	off, size int64
	link      string
}

// archiveFilesMax bounds the files of an image's archive: a blob for each layer of many images.
const archiveFilesMax = 64 << 10

func (t *tarFiles) index(ctx context.Context) error {
	if _, err := t.f.Seek(0, io.SeekStart); err != nil {
		return disk.Error("seek", t.f.Name(), err)
	}
	for tr := tar.NewReader(t.f); ; { // it skips content by seeking
		h, err := tr.Next()
		if err == io.EOF {
			return nil
		}
		if err == nil && ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		if err != nil {
			return namespace.E(kindOf(err), "read archive", t.f.Name(), err)
		}
		if len(t.at) >= archiveFilesMax {
			return namespace.E(namespace.Limit, "read archive", t.f.Name(), fmt.Errorf("more than %d files", archiveFilesMax))
		}
		name := path.Clean(strings.TrimLeft(h.Name, "/"))
		switch h.Typeflag {
		case tar.TypeReg:
			off, err := t.f.Seek(0, io.SeekCurrent)
			if err != nil {
				return disk.Error("seek", t.f.Name(), err)
			}
			t.at[name] = section{off: off, size: h.Size}
		case tar.TypeSymlink: // docker wrote them for layers that images share
			t.at[name] = section{link: path.Join(path.Dir(name), h.Linkname)}
		case tar.TypeLink:
			t.at[name] = section{link: path.Clean(h.Linkname)}
		}
	}
}

func (t *tarFiles) find(name string) (section, bool) {
	s, ok := t.at[name]
	for range 8 { // links to links, but not for ever
		if !ok || s.link == "" {
			break
		}
		s, ok = t.at[s.link]
	}
	return s, ok && s.link == ""
}

func (t *tarFiles) has(name string) bool {
	_, ok := t.find(name)
	return ok
}

func (t *tarFiles) open(name string) (io.ReadCloser, error) {
	s, ok := t.find(name)
	if !ok {
		return nil, namespace.E(namespace.NotExist, "open", name, nil)
	}
	return io.NopCloser(io.NewSectionReader(t.f, s.off, s.size)), nil
}

// Close implements files.
func (t *tarFiles) Close() error { return t.f.Close() }

// fileSource finds blobs where a layout has them.
type fileSource struct{ files }

// blob implements source.
func (s fileSource) blob(_ context.Context, d v1.Descriptor) (io.ReadCloser, error) {
	if d.Digest.Algorithm != "sha256" || !isHex(d.Digest.Hex) {
		return nil, namespace.E(namespace.Invalid, "find blob", d.Digest.String(), errors.New("not a sha256 digest"))
	}
	return s.open(path.Join(blobsDir, d.Digest.Algorithm, d.Digest.Hex))
}

func (i *Image) openLayout(ctx context.Context, s fileSource, want v1.Platform, o Options) error {
	var index v1.IndexManifest
	if err := readTop(s, indexFile, &index); err != nil {
		return err
	}
	d, err := choose(ctx, s, &index, want, o)
	if err != nil {
		return err
	}
	layers, diffs, err := i.openManifest(ctx, s, d, want, o)
	if err != nil {
		return err
	}
	for n, l := range layers {
		i.layers = append(i.layers, layer(s, n+1, l, diffs[n]))
	}
	return nil
}

// readFile returns the bytes of a record.
func readFile(f files, name string) ([]byte, error) {
	r, err := f.open(name)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return readBounded(r, name)
}

func readBounded(r io.Reader, name string) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, namespace.ImageRecordBytesMax+1))
	if err != nil {
		return nil, namespace.E(kindOf(err), "read", name, err)
	}
	if len(b) > namespace.ImageRecordBytesMax {
		return nil, namespace.E(namespace.Limit, "read", name, fmt.Errorf("more than %d bytes", namespace.ImageRecordBytesMax))
	}
	return b, nil
}

// readTop reads the record that a layout or archive begins with, and that nothing vouches for.
func readTop(f files, name string, v any) error {
	b, err := readFile(f, name)
	if err != nil {
		return err
	}
	return decode(b, name, v)
}

// dockerImage is one image of an archive of `docker save`.
type dockerImage struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// openDocker opens the image of an archive of `docker save`, whose configuration is named by its
// digest, and says those of the layers.
func (i *Image) openDocker(ctx context.Context, f files, want v1.Platform, o Options) error {
	var all []dockerImage
	if err := readTop(f, dockerRecord, &all); err != nil {
		return err
	}
	m, err := chooseDocker(all, o.Name)
	if err != nil {
		return err
	}
	var c v1.ConfigFile
	name := path.Clean(m.Config)
	b, err := readFile(f, name)
	if err != nil {
		return err
	}
	if d := dockerDigest(path.Base(name)); d != "" && namespace.Sum(b).String() != d {
		return namespace.E(namespace.Corrupt, "verify", name, errors.New("the bytes have another digest"))
	}
	if err := decode(b, name, &c); err != nil {
		return err
	}
	if len(m.Layers) > namespace.LayersMax || len(m.Layers) != len(c.RootFS.DiffIDs) {
		return namespace.E(namespace.Corrupt, "", "", fmt.Errorf("%d layers, but its configuration describes %d", len(m.Layers), len(c.RootFS.DiffIDs)))
	}
	for n, file := range m.Layers {
		i.layers = append(i.layers, layer(namedSource{f, path.Clean(file)}, n+1, v1.Descriptor{MediaType: types.DockerUncompressedLayer}, c.RootFS.DiffIDs[n]))
	}
	return i.describe(c, want, o)
}

func chooseDocker(all []dockerImage, name string) (dockerImage, error) {
	var names []string
	for _, m := range all {
		for _, tag := range m.RepoTags {
			if tag == name {
				return m, nil
			}
		}
		names = append(names, m.RepoTags...)
	}
	switch {
	case name != "":
		return dockerImage{}, namespace.WithHint(namespace.E(namespace.NotExist, "", "", fmt.Errorf("no image is called %q", name)),
			"there are: "+strings.Join(names, ", "))
	case len(all) != 1:
		return dockerImage{}, namespace.WithHint(namespace.E(namespace.Invalid, "", "", fmt.Errorf("it holds %d images", len(all))),
			"choose one with --image: "+strings.Join(names, ", "))
	}
	return all[0], nil
}

// namedSource is one file, whatever is asked for.
type namedSource struct {
	files
	name string
}

// blob implements source.
func (s namedSource) blob(context.Context, v1.Descriptor) (io.ReadCloser, error) {
	return s.open(s.name)
}
