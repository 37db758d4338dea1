package builder

import (
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/catalog"
)

var (
	// errChanged says that a file is not what the scan saw.
	errChanged   = errors.New("changed while it was read")
	errOtherType = errors.New("became something else during the import")
)

// readBatch reads small files into one parcel.
func (s *dirScan) readBatch(r *reader, files []*foundFile, emit func(parcel) error) error {
	pc := parcel{buf: newBuffer(batchBytes), extents: make([]extent, 0, len(files))}
	room := pc.buf.b
	var again []*foundFile
	for _, f := range files {
		n := int(f.state.size)
		err := s.readSmall(f, room[:n])
		switch {
		case errors.Is(err, errChanged):
			again = append(again, f)
		case err != nil:
			if err := s.fail(f.path(), err); err != nil {
				return err
			}
		default:
			pc.extents = append(pc.extents, extent{node: f.node, data: room[:n]})
			pc.files++
			room = room[n:]
		}
	}
	if err := emit(pc); err != nil {
		return err
	}
	for _, f := range again {
		if err := s.readAgain(r, f, emit); err != nil {
			return err
		}
	}
	return nil
}

// readSmall fills b with the content of f, which has len(b) bytes.
func (s *dirScan) readSmall(f *foundFile, b []byte) error {
	fd, err := s.open(f.path(), 0)
	if err != nil {
		return vanished(err)
	}
	defer unix.Close(fd)
	if err := f.same(fd); err != nil { // before reading: it might be a device now
		return err
	}
	if f.node.Xattrs, err = fdXattrs(fd); err != nil {
		return err
	}
	for n := 0; n < len(b); {
		k, err := unix.Read(fd, b[n:])
		switch {
		case err == unix.EINTR:
		case err != nil:
			return err
		case k == 0:
			return errChanged
		default:
			n += k
		}
	}
	return f.same(fd)
}

// vanished tells a file that is gone from one that cannot be read: both fail, the first one
// after another look.
func vanished(err error) error {
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENOTDIR) {
		return errChanged
	}
	return err
}

// same returns errChanged unless fd is what the scan saw, unchanged.
func (f *foundFile) same(fd int) error {
	var st unix.Statx_t
	if err := statx(fd, "", &st); err != nil {
		return err
	}
	if stateOf(&st) != f.state || st.Mode&unix.S_IFMT != unix.S_IFREG {
		return errChanged
	}
	return nil
}

// readLarge streams one file of any size.
func (s *dirScan) readLarge(r *reader, f *foundFile, emit func(parcel) error) error {
	fd, err := s.open(f.path(), 0)
	if err == nil {
		defer unix.Close(fd)
		err = s.stream(r, f, fd, emit)
	} else {
		err = vanished(err)
	}
	return s.settle(r, f, err, emit)
}

// settle deals with the outcome of a first attempt.
func (s *dirScan) settle(r *reader, f *foundFile, err error, emit func(parcel) error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, errChanged):
		return s.readAgain(r, f, emit)
	case s.p.ctx.Err() != nil:
		return err
	}
	return s.fail(f.path(), err)
}

// readAgain makes the second and last attempt at a file that changed, with attributes as they
// are now.
func (s *dirScan) readAgain(r *reader, f *foundFile, emit func(parcel) error) error {
	s.p.warn(f.path(), "changed while it was read; reading it again")
	err := s.secondLook(r, f, emit)
	switch {
	case err == nil:
		return nil
	case s.p.ctx.Err() != nil:
		return err
	case errors.Is(err, unix.ENOENT):
		err = fmt.Errorf("vanished during the import")
	case errors.Is(err, errChanged):
		err = fmt.Errorf("changed twice while it was read")
	}
	return s.p.errs.add(namespace.WithHint(namespace.E(namespace.Unavailable, "import", f.path(), err),
		"import a snapshot, or stop what writes there"))
}

func (s *dirScan) secondLook(r *reader, f *foundFile, emit func(parcel) error) error {
	fd, err := s.open(f.path(), 0)
	if errors.Is(err, unix.ELOOP) {
		return errOtherType
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var st unix.Statx_t
	if err := statx(fd, "", &st); err != nil {
		return err
	}
	attr, err := attrOf(&st)
	if err != nil || attr.Type != catalog.File {
		return errOtherType
	}
	f.node.Attr, f.state, f.sparse = attr, stateOf(&st), st.Blocks*512 < st.Size
	if err := emit(parcel{extents: []extent{{node: f.node, reset: true}}}); err != nil {
		return err
	}
	return s.stream(r, f, fd, emit)
}

// stream emits the content of f, one extent a parcel.
func (s *dirScan) stream(r *reader, f *foundFile, fd int, emit func(parcel) error) error {
	if err := f.same(fd); err != nil {
		return err
	}
	var err error
	if f.node.Xattrs, err = fdXattrs(fd); err != nil {
		return err
	}
	if was := s.p.previous.chunks(s.p.ctx, f.path(), f.state.size); was != nil {
		same, err := s.streamLike(f, fd, was, emit)
		if err != nil {
			return err
		}
		if same {
			if err := f.same(fd); err != nil {
				return err
			}
			return emit(parcel{files: 1})
		}
		if err := emit(parcel{extents: []extent{{node: f.node, reset: true}}}); err != nil {
			return err
		}
	}
	in := &fileReader{fd: fd, size: int64(f.state.size), sparse: f.sparse}
	if err := r.stream(in, int64(f.state.size), f.node, emit); err != nil {
		if errors.Is(err, io.ErrUnexpectedEOF) {
			return errChanged
		}
		return err
	}
	if err := f.same(fd); err != nil {
		return err
	}
	return emit(parcel{files: 1})
}

// stream cuts size bytes of in and emits them as content of node, one extent a parcel.
func (r *reader) stream(in io.Reader, size int64, node *catalog.Node, emit func(parcel) error) error {
	return r.cut.Chunks(in, size, func(data []byte, hole uint64) error {
		pc := parcel{extents: []extent{{node: node, hole: hole}}}
		if len(data) > 0 {
			pc.buf = newBuffer(len(data))
			pc.extents[0].data = pc.buf.b[:copy(pc.buf.b, data)]
		}
		return emit(pc)
	})
}

// fileReader reads a descriptor and knows its holes.
type fileReader struct {
	fd     int
	off    int64
	size   int64
	sparse bool
}

// Read implements io.Reader.
func (f *fileReader) Read(b []byte) (int, error) {
	for {
		n, err := unix.Pread(f.fd, b, f.off)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return 0, err
		case n == 0 && len(b) > 0:
			return 0, io.EOF
		}
		f.off += int64(n)
		return n, nil
	}
}

// SkipHole implements object.HoleSkipper.
func (f *fileReader) SkipHole(granule int64) (int64, error) {
	if !f.sparse {
		return 0, nil
	}
	next, err := unix.Seek(f.fd, f.off, unix.SEEK_DATA)
	if err == unix.ENXIO {
		next, err = f.size, nil // a hole up to the end
	}
	if err != nil {
		f.sparse = false // the file system does not tell: zeros are read instead
		return 0, nil
	}
	n := max(min(next, f.size)-f.off, 0) / granule * granule
	f.off += n
	return n, nil
}
