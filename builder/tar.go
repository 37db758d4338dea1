package builder

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/catalog"
)

// TarSource imports the tar archive that R streams: plain, or compressed with gzip, zstd, xz or
// bzip2, which is told by the first bytes. GNU, PAX and old forms are read, sparse files and
// xattrs (SCHILY.xattr.*) included. Of several entries of one name the last counts, hard links
// share attributes and content, and parents that the archive leaves out are root's, mode 0755,
// time 0.
//
// Nothing is extracted: the tree is a model in memory, content streams through. An absolute
// name, a name with "..", or one that leads through a symlink or another file is refused.
type TarSource struct {
	// R is read up to the end of the archive, by one goroutine, and not closed.
	R io.Reader
	// Name is the archive's name in errors.
	Name string
}

const tarXattr = "SCHILY.xattr."

// tarRead is the state of one import of an archive.
type tarRead struct {
	p     *pipeline
	name  string
	tr    *tar.Reader
	model *model
	cut   *reader // cuts large files in the reading goroutine

	batch parcel // small files, until it is worth a job
	used  int
}

// read implements Source.
func (t TarSource) read(ctx context.Context, p *pipeline) (*scan, error) {
	r := newTarRead(p)
	defer func() { r.batch.buf.release() }()
	if err := r.entries(ctx, t.R, t.Name, r.add); err != nil {
		return nil, err
	}
	if err := r.flush(); err != nil {
		return nil, err
	}
	return r.model.scan(), nil
}

func newTarRead(p *pipeline) *tarRead {
	return &tarRead{p: p, model: newModel(), cut: newReader(p)}
}

// entries calls fn for every entry of the archive raw, which errors call name, and reads on to the
// end of raw: what is compressed ends with a checksum.
func (r *tarRead) entries(ctx context.Context, raw io.Reader, name string, fn func(*tar.Header) error) error {
	in, err := decompress(raw)
	if err != nil {
		return namespace.E(archiveKind(err), "import", name, err)
	}
	defer in.Close()
	tail := &tailReader{r: in}
	r.name, r.tr = name, tar.NewReader(tail)
	for n := 0; ; n++ {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		h, err := r.tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return r.damaged(n, err)
		}
		if err := r.entry(h, fn); err != nil {
			return err
		}
	}
	if tail.zeros < endBytes {
		r.p.warn(name, "the archive has no end marker; it may be truncated")
	}
	for _, rest := range []io.Reader{in, raw} {
		if _, err := io.Copy(io.Discard, cancelReader{ctx, rest}); err != nil {
			return namespace.E(archiveKind(err), "import", name, fmt.Errorf("after the archive's end: %w", err))
		}
	}
	return nil
}

// damaged explains why the n-th header cannot be read.
func (r *tarRead) damaged(n int, err error) error {
	if n == 0 && errors.Is(err, tar.ErrHeader) {
		return namespace.E(namespace.Invalid, "import", r.name, fmt.Errorf("not a tar archive: %w", err))
	}
	return namespace.E(archiveKind(err), "import", r.name, fmt.Errorf("after %d entries: %w", n, err))
}

// archiveKind is the Kind of an error from reading an archive: of the reader below, if it says
// one, else Corrupt.
func archiveKind(err error) namespace.Kind {
	if k := namespace.KindOf(err); k != namespace.Internal {
		return k
	}
	return namespace.Corrupt
}

// entry names the entry and the archive in an error of fn.
func (r *tarRead) entry(h *tar.Header, fn func(*tar.Header) error) error {
	err := fn(h)
	if err == nil {
		return nil
	}
	if r.p.ctx.Err() != nil {
		return err
	}
	return namespace.E(archiveKind(err), "import", strings.TrimSpace(r.name+" "+quote(h.Name)), err)
}

// quote shortens a name for an error: it may be hostile, and megabytes long.
func quote(name string) string {
	if len(name) > 256 {
		return fmt.Sprintf("%q…", name[:256])
	}
	return fmt.Sprintf("%q", name)
}

func invalid(format string, args ...any) error {
	return namespace.E(namespace.Invalid, "", "", fmt.Errorf(format, args...))
}

var tarTypes = map[byte]catalog.Type{
	tar.TypeReg: catalog.File, '\x00': catalog.File, tar.TypeGNUSparse: catalog.File, tar.TypeCont: catalog.File,
	tar.TypeDir: catalog.Dir, tar.TypeSymlink: catalog.Symlink,
	tar.TypeChar: catalog.CharDevice, tar.TypeBlock: catalog.BlockDevice, tar.TypeFifo: catalog.Fifo,
}

func (r *tarRead) add(h *tar.Header) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	path, err := splitName(h.Name)
	if err != nil {
		return err
	}
	if h.Typeflag == tar.TypeLink {
		target, err := splitName(h.Linkname)
		if err != nil {
			return fmt.Errorf("hard link to %s: %w", quote(h.Linkname), err)
		}
		return r.model.hardLink(path, target)
	}
	node, err := tarNode(h)
	if err != nil {
		return err
	}
	if err := r.model.put(path, node); err != nil {
		return err
	}
	if node.Type == catalog.File && h.Size > 0 {
		return r.content(node, h.Size)
	}
	return nil
}

// tarNode translates a header, name and content aside.
func tarNode(h *tar.Header) (*catalog.Node, error) {
	typ, ok := tarTypes[h.Typeflag]
	if !ok {
		return nil, invalid("an entry of unknown type %q", h.Typeflag)
	}
	const idMax = 1<<32 - 2 // the last one means "none" to the kernel
	if h.Uid < 0 || h.Gid < 0 || h.Uid > idMax || h.Gid > idMax {
		return nil, invalid("owner %d:%d", h.Uid, h.Gid)
	}
	n := &catalog.Node{Attr: catalog.Attr{
		Type: typ, Mode: uint16(h.Mode & 0o7777), UID: uint32(h.Uid), GID: uint32(h.Gid), Nlink: 1,
	}}
	if !h.ModTime.IsZero() {
		n.MtimeSec, n.MtimeNsec = h.ModTime.Unix(), uint32(h.ModTime.Nanosecond())
	}
	switch typ {
	case catalog.File:
		if h.Size < 0 {
			return nil, invalid("size %d", h.Size)
		}
		n.Size = uint64(h.Size)
	case catalog.Symlink:
		if h.Linkname == "" || len(h.Linkname) > namespace.TargetBytesMax || strings.IndexByte(h.Linkname, 0) >= 0 {
			return nil, invalid("a symlink's target of %d bytes", len(h.Linkname))
		}
		n.Target, n.Size = h.Linkname, uint64(len(h.Linkname))
	case catalog.CharDevice, catalog.BlockDevice:
		if h.Devmajor < 0 || h.Devminor < 0 || h.Devmajor > 1<<32-1 || h.Devminor > 1<<32-1 {
			return nil, invalid("device %d:%d", h.Devmajor, h.Devminor)
		}
		n.Size = uint64(h.Devmajor)<<32 | uint64(h.Devminor)
	}
	for key, value := range h.PAXRecords {
		name, ok := strings.CutPrefix(key, tarXattr)
		if !ok {
			continue
		}
		if name == "" || len(name) > namespace.XattrNameBytesMax || len(value) > namespace.XattrValueBytesMax {
			return nil, invalid("xattr %s of %d bytes", quote(name), len(value))
		}
		n.Xattrs = append(n.Xattrs, catalog.Xattr{Name: name, Value: []byte(value)})
	}
	return n, nil
}

// content reads size bytes of the current entry. They are hashed elsewhere.
func (r *tarRead) content(n *catalog.Node, size int64) error {
	if size > batchBytes {
		if err := r.cut.stream(cancelReader{r.p.ctx, r.tr}, size, n, r.submit); err != nil {
			return err
		}
		return r.submit(parcel{files: 1})
	}
	if r.used+int(size) > batchBytes || len(r.batch.extents) == batchFiles {
		if err := r.flush(); err != nil {
			return err
		}
	}
	if r.batch.buf == nil {
		r.batch.buf = newBuffer(batchBytes)
	}
	data := r.batch.buf.b[r.used:][:size]
	if _, err := io.ReadFull(r.tr, data); err != nil {
		return err
	}
	r.used += int(size)
	r.batch.extents = append(r.batch.extents, extent{node: n, data: data})
	r.batch.files++
	return nil
}

// flush submits the small files collected.
func (r *tarRead) flush() error {
	pc := r.batch
	r.batch, r.used = parcel{}, 0
	if pc.buf == nil {
		return nil
	}
	return r.submit(pc)
}

func (r *tarRead) submit(pc parcel) error {
	return r.p.submit(func(_ *reader, emit func(parcel) error) error { return emit(pc) })
}

// cancelReader ends when ctx does: a sparse entry may claim more zeros than anyone waits for.
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
