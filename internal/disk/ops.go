package disk

import "os"

// Ops are the operations by which a package that keeps many files changes them and makes them
// durable. Reading goes past it, so that the seam costs no read anything. [System] is the real one;
// [Double] loses what was not synced and fails when it is told to.
//
// Nothing survives a crash of the machine before Sync of the file, and no name before SyncDir of the
// directory it is in. Safe for concurrent use.
type Ops interface {
	// Open opens a file for reading and writing, with mode 0600 if it has to be made.
	Open(path string) (*os.File, error)
	// Create is Open of a file that is empty then.
	Create(path string) (*os.File, error)
	WriteAt(f *os.File, b []byte, off int64) (int, error)
	Truncate(f *os.File, size int64) error
	Sync(f *os.File) error
	SyncDir(dir string) error
	// Seal gives a file a mode. It may survive a crash or not, whatever is synced.
	Seal(f *os.File, mode os.FileMode) error
	Rename(from, to string) error
	Remove(path string) error
}

// System is the operating system's Ops.
type System struct{}

var _ Ops = System{}

// Open implements Ops.
func (System) Open(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
}

// Create implements Ops.
func (System) Create(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
}

// WriteAt implements Ops.
func (System) WriteAt(f *os.File, b []byte, off int64) (int, error) { return f.WriteAt(b, off) }

// Truncate implements Ops.
func (System) Truncate(f *os.File, size int64) error { return f.Truncate(size) }

// Sync implements Ops.
func (System) Sync(f *os.File) error { return f.Sync() }

// SyncDir implements Ops.
func (System) SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// Seal implements Ops.
func (System) Seal(f *os.File, mode os.FileMode) error { return f.Chmod(mode) }

// Rename implements Ops.
func (System) Rename(from, to string) error { return os.Rename(from, to) }

// Remove implements Ops.
func (System) Remove(path string) error { return os.Remove(path) }
