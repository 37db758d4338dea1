package disk

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"coppice.dev/coppice/namespace"
)

// PendingDir is a directory that is being written and appears at its destination when it is
// complete. Not safe for concurrent use.
type PendingDir struct {
	// Path is where to write: beside the destination, mode 0700; or the destination itself if
	// something is mounted there, which nothing can take the place of.
	Path string
	dest string
	op   string
}

// NewDir prepares to write the directory dest, which must be empty or absent; its parent must be
// there. op names the work in errors. The caller ends with Commit or Discard. Kinds: Exist (dest is
// something else), NotExist, Denied, Limit.
func NewDir(op, dest string) (*PendingDir, error) {
	abs, err := filepath.Abs(dest)
	if err != nil {
		return nil, Error(op, dest, err)
	}
	if real, err := filepath.EvalSymlinks(abs); err == nil {
		abs = real
	}
	p := &PendingDir{Path: abs, dest: abs, op: op}
	names, err := os.ReadDir(abs)
	switch {
	case errors.Is(err, unix.ENOTDIR):
		return nil, namespace.E(namespace.Exist, op, dest, errors.New("it is no directory"))
	case err != nil && !errors.Is(err, os.ErrNotExist):
		return nil, Error(op, dest, err)
	case len(names) > 0:
		return nil, namespace.WithHint(namespace.E(namespace.Exist, op, dest, errors.New("the directory is not empty")),
			"name a new directory, or empty this one")
	case err == nil:
		var st unix.Statx_t
		if err := unix.Statx(unix.AT_FDCWD, abs, 0, unix.STATX_BASIC_STATS, &st); err != nil {
			return nil, Error(op, dest, err)
		}
		if st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0 {
			return p, nil
		}
	}
	p.Path, err = os.MkdirTemp(filepath.Dir(abs), "."+filepath.Base(abs)+".*.partial")
	if err != nil {
		return nil, Error(op, dest, err)
	}
	return p, nil
}

// Commit waits until all is on disk and puts the directory at its destination. Kinds: Exist
// (something else came there meanwhile), Limit, Denied, Internal.
func (p *PendingDir) Commit() error {
	dir, err := os.Open(p.Path)
	if err != nil {
		return Error(p.op, p.dest, err)
	}
	defer dir.Close()
	if err := unix.Syncfs(int(dir.Fd())); err != nil {
		return Error(p.op, p.dest, err)
	}
	if p.Path != p.dest {
		if err := unix.Rename(p.Path, p.dest); err != nil { // os.Rename does not replace an empty directory
			return Error(p.op, p.dest, err)
		}
		if err := syncDir(filepath.Dir(p.dest)); err != nil {
			return err
		}
	}
	p.op = ""
	return nil
}

// Discard removes what was written, unless Commit succeeded.
func (p *PendingDir) Discard() {
	if p.op == "" {
		return
	}
	if p.Path != p.dest {
		removeAll(p.Path)
		return
	}
	names, _ := os.ReadDir(p.Path)
	for _, n := range names {
		removeAll(filepath.Join(p.Path, n.Name()))
	}
}

// removeAll removes dir although what was written there may deny it to its owner.
func removeAll(dir string) {
	if os.RemoveAll(dir) == nil {
		return
	}
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, _ error) error {
		if d != nil && d.IsDir() {
			_ = os.Chmod(path, 0o700)
		}
		return nil
	})
	_ = os.RemoveAll(dir)
}

// PendingFile is a file that is being written and appears at its destination when it is complete.
// A destination that is no regular file, as a pipe, is written as it is. Not safe for concurrent use.
type PendingFile struct {
	io.Writer
	file *os.File
	dest string // "" once it is there, or when it is written in place
	op   string
}

// NewFile prepares to write the file dest, which must be empty or absent, with the permissions
// perm, less the umask. op names the work in errors. The caller ends with Commit, and Discard in any case. Kinds:
// Exist (dest is not empty), NotExist, Denied, Limit.
func NewFile(op, dest string, perm os.FileMode) (*PendingFile, error) {
	info, err := os.Stat(dest)
	switch {
	case err == nil && info.IsDir():
		return nil, namespace.E(namespace.Exist, op, dest, errors.New("it is a directory"))
	case err == nil && info.Mode().IsRegular() && info.Size() > 0:
		return nil, namespace.WithHint(namespace.E(namespace.Exist, op, dest, errors.New("the file is there already")),
			"name a new file, or remove this one")
	case err == nil && !info.Mode().IsRegular():
		f, err := os.OpenFile(dest, os.O_WRONLY, 0)
		if err != nil {
			return nil, Error(op, dest, err)
		}
		return &PendingFile{Writer: f, file: f, op: op}, nil
	case err != nil && !errors.Is(err, os.ErrNotExist):
		return nil, Error(op, dest, err)
	}
	name := fmt.Sprintf(".%s.%016x.partial", filepath.Base(dest), rand.Uint64())
	f, err := os.OpenFile(filepath.Join(filepath.Dir(dest), name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, perm)
	if err != nil {
		return nil, Error(op, dest, err)
	}
	return &PendingFile{Writer: f, file: f, dest: dest, op: op}, nil
}

// Commit waits until all is on disk and puts the file at its destination. Kinds: Limit, Denied.
func (p *PendingFile) Commit() error {
	if p.dest == "" {
		return nil
	}
	err := p.file.Sync()
	if err == nil {
		err = os.Rename(p.file.Name(), p.dest)
	}
	if err != nil {
		return Error(p.op, p.dest, err)
	}
	dir := filepath.Dir(p.dest)
	p.dest = ""
	return syncDir(dir)
}

// Discard closes the file and removes what was written, unless Commit succeeded.
func (p *PendingFile) Discard() {
	p.file.Close()
	if p.dest != "" {
		os.Remove(p.file.Name())
	}
}

// syncDir makes the names in dir durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return Error("open", dir, err)
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return Error("sync", dir, err)
	}
	return nil
}
