package origin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"

	"coppice.dev/coppice/namespace"
)

// Dir is an origin in a local directory. It implements namespace.Origin, RefWaiter and Ager. Safe for
// concurrent use, also by several processes on one machine.
type Dir struct {
	path string
	root *os.Root // whatever a name holds, nothing outside is reached

	swap  chan struct{} // held by the one SwapRef of this process; a mutex that a context can leave
	watch watcher

	prepareOnce sync.Once
}

var (
	_ namespace.Origin    = (*Dir)(nil)
	_ namespace.RefWaiter = (*Dir)(nil)
	_ namespace.Ager      = (*Dir)(nil)
)

const (
	tmpName  = "tmp"
	lockName = "lock"
	// tmpAgeMax is when a temporary file is surely nobody's: no upload takes a day.
	tmpAgeMax = 24 * time.Hour
)

// CreateDir makes an empty origin in the directory path, which must be empty or absent.
// Kinds: Exist, Denied, Limit, Unavailable.
func CreateDir(path string) (*Dir, error) {
	const op = "create origin"
	if err := os.MkdirAll(path, 0o755); err != nil {
		return nil, diskError(op, path, err)
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return nil, diskError(op, path, err)
	}
	if len(entries) > 0 {
		err := namespace.E(namespace.Exist, op, path, fmt.Errorf("the directory is not empty: it holds %s", entries[0].Name()))
		return nil, namespace.WithHint(err, "name an empty directory, or one that does not exist")
	}
	d, err := openRoot(op, path)
	if err != nil {
		return nil, err
	}
	if err := d.create(); err != nil {
		return nil, closing(diskError(op, path, err), d)
	}
	return d, nil
}

func (d *Dir) create() error {
	for _, c := range namespace.Classes() {
		if err := d.root.MkdirAll(c.String(), 0o755); err != nil {
			return err
		}
	}
	for _, kind := range []string{namespace.TreeRef, namespace.NamespaceRef, namespace.ChannelRef, namespace.ProfileRef, namespace.TrustRef} {
		if err := d.root.MkdirAll("ref/"+kind, 0o755); err != nil {
			return err
		}
		if err := d.writeIndex(kind, nil); err != nil {
			return err
		}
	}
	if err := d.syncDir("ref"); err != nil {
		return err
	}
	b, err := json.Marshal(marker{Format: format})
	if err != nil {
		return err
	}
	return d.writeFile(formatName, append(b, '\n'))
}

// OpenDir opens the origin in the directory path. It writes nothing, so that a read-only disk
// will do. Kinds: NotExist (no origin there), Invalid (of a newer format), Denied, Unavailable.
func OpenDir(path string) (*Dir, error) {
	const op = "open origin"
	d, err := openRoot(op, path)
	if err != nil {
		return nil, err
	}
	if err := d.checkFormat(op); err != nil {
		return nil, closing(err, d)
	}
	return d, nil
}

func openRoot(op, path string) (*Dir, error) {
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, namespace.WithHint(diskError(op, path, err), "make one with: coppice origin init "+path)
	}
	return &Dir{path: path, root: root, swap: make(chan struct{}, 1), watch: watcher{path: path}}, nil
}

func (d *Dir) checkFormat(op string) error {
	b, err := d.readFile(op, formatName, d.path, formatLimit)
	if namespace.IsKind(err, namespace.NotExist) {
		err := namespace.E(namespace.NotExist, op, d.path, fmt.Errorf("not an origin: it has no %s", formatName))
		return namespace.WithHint(err, "make one in an empty directory with: coppice origin init DIR")
	}
	if err != nil {
		return err
	}
	return checkMarker(op, d.path, b)
}

// checkMarker checks the content of coppice.json.
func checkMarker(op, subject string, b []byte) error {
	var m marker
	if err := json.Unmarshal(b, &m); err != nil || m.Format < 1 {
		return namespace.E(namespace.Corrupt, op, subject, fmt.Errorf("%s is not that of an origin", formatName))
	}
	if m.Format > format {
		err := namespace.E(namespace.Invalid, op, subject, fmt.Errorf("format %d, this build knows %d", m.Format, format))
		return namespace.WithHint(err, "use a newer coppice")
	}
	return nil
}

// Path returns the directory as it was named when opened.
func (d *Dir) Path() string { return d.path }

// Close ends all WaitRef calls and releases the directory. Calls after it fail with Unavailable.
func (d *Dir) Close() error {
	err := d.watch.close()
	if err := errors.Join(err, d.root.Close()); err != nil {
		return diskError("close origin", d.path, err)
	}
	return nil
}

// Get implements namespace.Fetcher.
func (d *Dir) Get(ctx context.Context, k namespace.Key, off, n int64) (io.ReadCloser, error) {
	const op = "get object"
	f, size, err := d.OpenObject(ctx, k)
	if err != nil {
		return nil, err
	}
	if off < 0 || off > 0 && off >= size {
		err := namespace.E(namespace.Invalid, op, k.String(), fmt.Errorf("offset %d of %d bytes", off, size))
		return nil, closing(err, f)
	}
	if n < 0 || n > size-off {
		n = size - off
	}
	return &section{SectionReader: *io.NewSectionReader(f, off, n), file: f, subject: k.String()}, nil
}

// section is a range of an open file.
type section struct {
	io.SectionReader
	file    *os.File
	subject string
}

func (s *section) Read(p []byte) (int, error) {
	n, err := s.SectionReader.Read(p)
	if err != nil && err != io.EOF {
		err = diskError("read object", s.subject, err)
	}
	return n, err
}

func (s *section) Close() error { return s.file.Close() }

// OpenObject opens the file that holds k, for a server that can hand files to the kernel, and
// returns it with its size in bytes. The caller closes it. Kinds: those of Stat.
func (d *Dir) OpenObject(ctx context.Context, k namespace.Key) (*os.File, int64, error) {
	const op = "open object"
	if err := contextError(ctx, op, k.String()); err != nil {
		return nil, 0, err
	}
	f, err := d.root.Open(objectPath(k))
	if err != nil {
		return nil, 0, diskError(op, k.String(), err)
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("not a regular file")
	}
	if err != nil {
		return nil, 0, closing(diskError(op, k.String(), err), f)
	}
	return f, info.Size(), nil
}

// Put implements namespace.Store.
func (d *Dir) Put(ctx context.Context, k namespace.Key, b []byte) error {
	const op = "put object"
	if err := contextError(ctx, op, k.String()); err != nil {
		return err
	}
	d.prepare()
	path := objectPath(k)
	if k.Class.Immutable() {
		if err := d.renew(path); err == nil {
			// Another process may have renamed it and not yet synced; then this call must.
			return diskError(op, k.String(), d.syncDir(parent(path)))
		}
	}
	if err := d.makeShard(parent(path)); err != nil {
		return diskError(op, k.String(), err)
	}
	return diskError(op, k.String(), d.writeObject(path, b))
}

// makeShard makes a directory for objects, durably.
func (d *Dir) makeShard(dir string) error {
	err := d.root.Mkdir(dir, 0o755)
	if errors.Is(err, fs.ErrNotExist) {
		// An origin older than the class.
		if err = d.root.MkdirAll(dir, 0o755); err == nil {
			err = d.syncDir(".")
		}
	}
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return d.syncDir(parent(dir))
}

// Stat implements namespace.Store.
func (d *Dir) Stat(ctx context.Context, k namespace.Key) (int64, error) {
	const op = "stat object"
	if err := contextError(ctx, op, k.String()); err != nil {
		return 0, err
	}
	info, err := d.root.Lstat(objectPath(k))
	if err == nil && !info.Mode().IsRegular() {
		err = fs.ErrNotExist
	}
	if err != nil {
		return 0, diskError(op, k.String(), err)
	}
	return info.Size(), nil
}

// List implements namespace.Store. It costs a stat an object.
func (d *Dir) List(ctx context.Context, c namespace.Class, fn func(namespace.Key, int64) error) error {
	const op = "list objects"
	for i := range 256 {
		if err := contextError(ctx, op, c.String()); err != nil {
			return err
		}
		dir := c.String() + "/" + fmt.Sprintf("%02x", i)
		entries, err := d.readDir(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return diskError(op, dir, err)
		}
		if err := d.listShard(ctx, c, entries, fn); err != nil {
			return err
		}
	}
	return nil
}

func (d *Dir) listShard(ctx context.Context, c namespace.Class, entries []fs.DirEntry, fn func(namespace.Key, int64) error) error {
	for _, e := range entries {
		digest, err := namespace.ParseHex(e.Name())
		if err != nil {
			continue // not ours
		}
		k := namespace.Key{Class: c, Digest: digest}
		size, err := d.Stat(ctx, k)
		if namespace.IsKind(err, namespace.NotExist) {
			continue // deleted meanwhile
		}
		if err != nil {
			return err
		}
		if err := fn(k, size); err != nil {
			return err
		}
	}
	return nil
}

// Delete implements namespace.Store.
func (d *Dir) Delete(ctx context.Context, k namespace.Key) error {
	const op = "delete object"
	if err := contextError(ctx, op, k.String()); err != nil {
		return err
	}
	err := d.root.Remove(objectPath(k))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return diskError(op, k.String(), err)
}

// prepare makes what writing needs and sweeps what a crash left, once, before the first write.
// It is best effort: the write that follows reports what is wrong with the disk.
func (d *Dir) prepare() {
	d.prepareOnce.Do(func() {
		_ = d.root.Mkdir(tmpName, 0o755)
		entries, err := d.readDir(tmpName)
		if err != nil {
			return
		}
		for _, e := range entries {
			if info, err := e.Info(); err == nil && time.Since(info.ModTime()) > tmpAgeMax {
				_ = d.root.Remove(tmpName + "/" + e.Name())
			}
		}
	})
}

// writeFile replaces path by a file that holds b: whole or not at all, and durably.
func (d *Dir) writeFile(path string, b []byte) error {
	tmp, err := d.writeTemp(b)
	if err != nil {
		return err
	}
	if err := d.root.Rename(tmp, path); err != nil {
		return errors.Join(err, d.root.Remove(tmp))
	}
	return d.syncDir(parent(path))
}

// writeTemp writes b to a new, synced file in tmp and returns its path.
func (d *Dir) writeTemp(b []byte) (string, error) {
	path := tmpName + "/" + strconv.Itoa(os.Getpid()) + "-" + strconv.FormatUint(rand.Uint64(), 36)
	f, err := d.root.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if errors.Is(err, fs.ErrNotExist) {
		if err := d.root.MkdirAll(tmpName, 0o755); err != nil {
			return "", err
		}
		f, err = d.root.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	}
	if err != nil {
		return "", err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return "", errors.Join(err, d.root.Remove(path))
	}
	return path, nil
}

func (d *Dir) syncDir(path string) error {
	f, err := d.root.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

func (d *Dir) readDir(path string) ([]fs.DirEntry, error) {
	f, err := d.root.Open(path)
	if err != nil {
		return nil, err
	}
	entries, err := f.ReadDir(-1)
	return entries, errors.Join(err, f.Close())
}

// readFile returns the regular file path, of at most limit bytes.
func (d *Dir) readFile(op, path, subject string, limit int64) ([]byte, error) {
	f, err := d.root.Open(path)
	if err != nil {
		return nil, diskError(op, subject, err)
	}
	defer f.Close() // of a file that was only read: nothing can be lost
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, namespace.E(namespace.NotExist, op, subject, err)
	}
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, diskError(op, subject, err)
	}
	if int64(len(b)) > limit {
		return nil, limitError(op, subject, limit)
	}
	return b, nil
}

// parent is the directory of a slash-separated path of the layout.
func parent(path string) string {
	for i := len(path) - 1; i > 0; i-- {
		if path[i] == '/' {
			return path[:i]
		}
	}
	return "."
}

// diskError gives an error of the local file system its Kind.
func diskError(op, subject string, err error) error {
	if err == nil {
		return nil
	}
	kind := namespace.Unavailable
	hint := ""
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT), errors.Is(err, syscall.EFBIG):
		kind, hint = namespace.Limit, "make room on the disk that holds the origin, then try again"
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR):
		kind = namespace.NotExist
	case errors.Is(err, fs.ErrExist):
		kind = namespace.Exist
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS):
		kind = namespace.Denied
	case errors.Is(err, syscall.ENAMETOOLONG):
		kind = namespace.Invalid
	}
	err = namespace.E(kind, op, subject, err)
	if hint != "" {
		err = namespace.WithHint(err, hint)
	}
	return err
}

// closing closes c after err, which keeps its shape (and its hint) unless closing fails too.
func closing(err error, c io.Closer) error {
	if failed := c.Close(); failed != nil {
		return errors.Join(err, failed)
	}
	return err
}

// contextError returns ctx's error, if it has ended, as one of ours.
func contextError(ctx context.Context, op, subject string) error {
	if err := ctx.Err(); err != nil {
		return namespace.E(namespace.KindOf(err), op, subject, err)
	}
	return nil
}
