package cache

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"coppice.dev/coppice/internal/disk"
	"coppice.dev/coppice/namespace"
)

// An archive is a static origin in a tar file, uncompressed since what is in it is: unpacked, any web
// server serves it, and `coppice` opens its directory. It holds what one export wrote.

const (
	// archiveEntries bounds the files of an archive: a terabyte of packs.
	archiveEntries = 1 << 16 * 16
	archiveFormat  = "{\"format\":1}\n"
	archiveRefs    = "_index.json"
)

// ArchiveWriter writes an archive. Its methods may not be called concurrently.
type ArchiveWriter struct {
	t    *tar.Writer
	seen map[string]bool // refs, and small objects of which there is one a catalog
	refs map[string][]string
}

// NewArchiveWriter begins an archive on w. The caller ends it with Close.
func NewArchiveWriter(w io.Writer) (*ArchiveWriter, error) {
	a := &ArchiveWriter{tar.NewWriter(w), map[string]bool{}, map[string][]string{}}
	return a, a.write("coppice.json", []byte(archiveFormat))
}

func (a *ArchiveWriter) write(name string, b []byte) error {
	if a.seen[name] {
		return nil
	}
	a.seen[name] = true
	err := a.t.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(b)), ModTime: time.Unix(0, 0), Format: tar.FormatUSTAR})
	if err == nil {
		_, err = a.t.Write(b)
	}
	if err != nil {
		return disk.Error("write", name, err)
	}
	return nil
}

// Put adds an object, once.
func (a *ArchiveWriter) Put(_ context.Context, k namespace.Key, b []byte) error {
	h := k.Digest.Hex()
	return a.write(k.Class.String()+"/"+h[:2]+"/"+h, b)
}

// PutRef adds a record.
func (a *ArchiveWriter) PutRef(n namespace.RefName, b []byte) error {
	if err := n.Check(); err != nil {
		return err
	}
	a.refs[n.Kind] = append(a.refs[n.Kind], n.Name)
	return a.write("ref/"+n.String(), b)
}

// PutFile adds a file that is neither object nor record.
func (a *ArchiveWriter) PutFile(name string, b []byte) error { return a.write(name, b) }

// Close ends the archive; it does not close what is below.
func (a *ArchiveWriter) Close() error {
	for _, kind := range []string{namespace.TreeRef, namespace.NamespaceRef, namespace.ChannelRef, namespace.TrustRef} {
		names := a.refs[kind]
		slices.Sort(names)
		b, err := json.Marshal(map[string]any{"format": 1, "names": append([]string{}, names...)})
		if err != nil {
			return namespace.E(namespace.Internal, "encode", "index of refs", err)
		}
		if err := a.write("ref/"+kind+"/"+archiveRefs, append(b, '\n')); err != nil {
			return err
		}
	}
	if err := a.t.Close(); err != nil {
		return disk.Error("write", "archive", err)
	}
	return nil
}

// Archive is an archive for reading: a [namespace.Source]. Nothing in it is trusted. Safe for concurrent
// use.
type Archive struct {
	path  string
	file  *os.File
	files map[string]span // by name
}

// span is where a file of an archive has its bytes.
type span struct{ off, size int64 }

// OpenArchive reads where what is in an archive; of the content it reads nothing. The caller closes it.
// Kinds: NotExist, Denied, Corrupt (it is no archive, or is cut), Limit.
func OpenArchive(path string) (*Archive, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, disk.Error("open", path, err)
	}
	a := &Archive{path, f, nil}
	if a.files, err = archiveFiles(f); err == nil {
		if b, rerr := a.File("coppice.json", 4096); rerr != nil || string(b) != archiveFormat {
			err = namespace.E(namespace.Corrupt, "open archive", path, errors.New("it is no export of a cache, or of a newer format"))
		}
	}
	if err != nil {
		f.Close()
		return nil, namespace.E(namespace.KindOf(err), "open archive", path, err)
	}
	return a, nil
}

// archiveFiles lists the regular files of a tar file. One name twice is refused: two readers might
// believe different ones.
func archiveFiles(f io.ReadSeeker) (map[string]span, error) {
	files := map[string]span{}
	end, err := f.Seek(0, io.SeekEnd)
	if err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		return nil, err
	}
	for t := tar.NewReader(f); ; {
		h, err := t.Next()
		if err == io.EOF {
			return files, nil
		}
		if err != nil {
			return nil, namespace.E(namespace.Corrupt, "read", "archive", err)
		}
		off, err := f.Seek(0, io.SeekCurrent)
		if err != nil {
			return nil, err
		}
		_, twice := files[h.Name]
		switch {
		case h.Typeflag != tar.TypeReg || h.Size < 0 || h.Size > namespace.CatalogBytesMax || off+h.Size > end || twice:
			return nil, namespace.E(namespace.Corrupt, "read", "archive", fmt.Errorf("%q is not what an export writes, or is cut", h.Name))
		case len(files) == archiveEntries:
			return nil, namespace.E(namespace.Limit, "read", "archive", fmt.Errorf("more than %d files", archiveEntries))
		}
		files[h.Name] = span{off, h.Size}
	}
}

// Close closes the file.
func (a *Archive) Close() error { return a.file.Close() }

// File returns a file of at most limit bytes. Kinds: NotExist, Limit, Unavailable.
func (a *Archive) File(name string, limit int64) ([]byte, error) {
	s, ok := a.files[name]
	if !ok {
		return nil, namespace.E(namespace.NotExist, "read", name+" of "+a.path, nil)
	}
	if s.size > limit {
		return nil, namespace.E(namespace.Limit, "read", name+" of "+a.path, fmt.Errorf("%d bytes, at most %d", s.size, limit))
	}
	b, err := io.ReadAll(io.NewSectionReader(a.file, s.off, s.size))
	if err == nil && int64(len(b)) < s.size {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return nil, namespace.E(namespace.Unavailable, "read", name+" of "+a.path, err)
	}
	return b, nil
}

// Get implements namespace.Fetcher.
func (a *Archive) Get(ctx context.Context, k namespace.Key, off, n int64) (io.ReadCloser, error) {
	if ctx.Err() != nil {
		return nil, namespace.E(namespace.Canceled, "get", k.String(), ctx.Err())
	}
	h := k.Digest.Hex()
	s, ok := a.files[k.Class.String()+"/"+h[:2]+"/"+h]
	if !ok {
		return nil, namespace.E(namespace.NotExist, "get", k.String(), fmt.Errorf("not in %s", a.path))
	}
	if off < 0 || off > 0 && off >= s.size {
		return nil, namespace.E(namespace.Invalid, "get", k.String(), fmt.Errorf("offset %d of %d bytes", off, s.size))
	}
	if n < 0 || n > s.size-off {
		n = s.size - off
	}
	return io.NopCloser(&archiveBody{r: io.NewSectionReader(a.file, s.off+off, n), left: n}), nil
}

// archiveBody reads a range of an archive; one that ends early says so.
type archiveBody struct {
	r    io.Reader
	left int64
}

func (b *archiveBody) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	b.left -= int64(n)
	if err == io.EOF && b.left > 0 {
		err = io.ErrUnexpectedEOF
	}
	if err != nil && err != io.EOF {
		err = namespace.E(namespace.Unavailable, "read", "archive", err)
	}
	return n, err
}

// Ref implements namespace.RefReader.
func (a *Archive) Ref(_ context.Context, n namespace.RefName) ([]byte, error) {
	if err := n.Check(); err != nil {
		return nil, err
	}
	return a.File("ref/"+n.String(), namespace.RefBytesMax)
}

// Refs implements namespace.RefReader.
func (a *Archive) Refs(_ context.Context, kind string) ([]string, error) {
	var names []string
	for name := range a.files {
		if ref, ok := strings.CutPrefix(name, "ref/"+kind+"/"); ok && ref != archiveRefs && namespace.CheckName(ref) == nil {
			names = append(names, ref)
		}
	}
	slices.Sort(names)
	return names, nil
}

var _ namespace.Source = (*Archive)(nil)
