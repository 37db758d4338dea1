package builder

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"io"
	"syscall"
	"time"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/catalog"
)

// ExportTar writes the tree whose root catalog is root to w, as a tar archive in the POSIX (PAX)
// form: names sorted, times in nanoseconds, extended attributes as SCHILY.xattr.*, every file of
// several names once and hard links to it, holes as zeros. Equal trees give equal bytes, and
// importing them gives root again. Memory is bounded. Kinds: those of [Stored.ReadFile], Invalid
// (an attribute has a name that the form cannot hold), Limit (disk full), those of w.
func ExportTar(ctx context.Context, s *Stored, root namespace.Digest, w io.Writer, o ExportOptions) error {
	buffered := bufio.NewWriterSize(w, 1<<20)
	t := &tarSink{ctx: ctx, w: tar.NewWriter(buffered)}
	if err := export(ctx, s, root, t, o); err != nil {
		return err
	}
	err := t.w.Close()
	if err == nil {
		err = buffered.Flush()
	}
	return writeError(err)
}

// writeError gives an error of writing its Kind.
func writeError(err error) error {
	if err == nil {
		return nil
	}
	kind := namespace.KindOf(err)
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		kind = namespace.Limit
	case errors.Is(err, syscall.EPIPE):
		kind = namespace.Canceled
	}
	return namespace.E(kind, "write", "", err)
}

// tarSink writes a tar archive.
type tarSink struct {
	ctx context.Context
	w   *tar.Writer
}

var tarFlags = map[catalog.Type]byte{
	catalog.Dir: tar.TypeDir, catalog.File: tar.TypeReg, catalog.Symlink: tar.TypeSymlink,
	catalog.CharDevice: tar.TypeChar, catalog.BlockDevice: tar.TypeBlock, catalog.Fifo: tar.TypeFifo,
}

// entry implements sink.
func (t *tarSink) entry(path, link string, c *catalog.Catalog, e catalog.Entry) error {
	h := &tar.Header{
		Format: tar.FormatPAX, Name: path, Typeflag: tarFlags[e.Type], Mode: int64(e.Mode),
		Uid: int(e.UID), Gid: int(e.GID), ModTime: time.Unix(e.MtimeSec, int64(e.MtimeNsec)),
	}
	switch {
	case link != "":
		h.Typeflag, h.Linkname = tar.TypeLink, link
		return writeError(t.w.WriteHeader(h))
	case path == "":
		h.Name = "./"
	case e.Type == catalog.Dir:
		h.Name += "/"
	case e.Type == catalog.File:
		h.Size = int64(e.Size)
	case e.Type == catalog.Symlink:
		h.Linkname = string(c.Target(e.Index))
	case e.Type == catalog.CharDevice || e.Type == catalog.BlockDevice:
		major, minor := e.Rdev()
		h.Devmajor, h.Devminor = int64(major), int64(minor)
	}
	for _, x := range c.Xattrs(e.Index) {
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords[tarXattr+x.Name] = string(x.Value)
	}
	if err := t.w.WriteHeader(h); err != nil {
		var failed syscall.Errno
		if namespace.KindOf(err) == namespace.Internal && !errors.As(err, &failed) { // not of w
			return namespace.E(namespace.Invalid, "", "", err)
		}
		return writeError(err)
	}
	return nil
}

var holeZeros [64 << 10]byte

// extent implements sink.
func (t *tarSink) extent(data []byte, hole uint64) error {
	if _, err := t.w.Write(data); err != nil {
		return writeError(err)
	}
	for hole > 0 {
		if t.ctx.Err() != nil {
			return context.Cause(t.ctx)
		}
		n := min(hole, uint64(len(holeZeros)))
		if _, err := t.w.Write(holeZeros[:n]); err != nil {
			return writeError(err)
		}
		hole -= n
	}
	return nil
}
