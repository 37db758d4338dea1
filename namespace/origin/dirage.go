package origin

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"coppice.dev/coppice/namespace"
)

// Renew implements namespace.Ager.
func (d *Dir) Renew(ctx context.Context, k namespace.Key) error {
	const op = "renew object"
	if err := contextError(ctx, op, k.String()); err != nil {
		return err
	}
	return diskError(op, k.String(), d.renew(objectPath(k)))
}

// Time implements namespace.Ager.
func (d *Dir) Time(ctx context.Context, k namespace.Key) (time.Time, error) {
	const op = "stat object"
	if err := contextError(ctx, op, k.String()); err != nil {
		return time.Time{}, err
	}
	info, err := d.root.Lstat(objectPath(k))
	if err == nil && !info.Mode().IsRegular() {
		err = fs.ErrNotExist
	}
	if err != nil {
		return time.Time{}, diskError(op, k.String(), err)
	}
	return info.ModTime(), nil
}

// DeleteOlder implements namespace.Ager.
func (d *Dir) DeleteOlder(ctx context.Context, k namespace.Key, t time.Time) (bool, error) {
	const op = "delete object"
	if err := contextError(ctx, op, k.String()); err != nil {
		return false, err
	}
	path := objectPath(k)
	if info, err := d.root.Lstat(path); err == nil && !info.ModTime().Before(t) {
		return false, nil // spares the lock
	}
	f, info, err := d.lockFile(path, unix.LOCK_EX)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, diskError(op, k.String(), err)
	}
	defer f.Close() // gives the lock up
	if !info.ModTime().Before(t) {
		return false, nil
	}
	err = d.root.Remove(path)
	return err == nil, diskError(op, k.String(), err)
}

// renew gives the object at path the time of now. The file of another user cannot be given one; a
// copy takes its place.
func (d *Dir) renew(path string) error {
	f, info, err := d.lockFile(path, unix.LOCK_SH)
	if err != nil {
		return err
	}
	defer f.Close()
	now := time.Now()
	err = d.root.Chtimes(path, now, now)
	if !errors.Is(err, fs.ErrPermission) {
		return err
	}
	b := make([]byte, info.Size())
	if _, err := f.ReadAt(b, 0); err != nil && len(b) > 0 {
		return err
	}
	return d.writeFile(path, b)
}

// writeObject is writeFile for what may be collected meanwhile: either the collector sees the new
// file or it is done before.
func (d *Dir) writeObject(path string, b []byte) error {
	tmp, err := d.writeTemp(b)
	if err != nil {
		return err
	}
	f, _, err := d.lockFile(path, unix.LOCK_SH)
	switch {
	case err == nil:
		defer f.Close()
	case !errors.Is(err, fs.ErrNotExist):
		return errors.Join(err, d.root.Remove(tmp))
	}
	if err := d.root.Rename(tmp, path); err != nil {
		return errors.Join(err, d.root.Remove(tmp))
	}
	return d.syncDir(parent(path))
}

// lockFile opens and locks the file at path, and makes sure that it is still the one there.
// Closing it gives the lock up.
func (d *Dir) lockFile(path string, how int) (*os.File, fs.FileInfo, error) {
	for {
		f, err := d.root.Open(path)
		if err != nil {
			return nil, nil, err
		}
		// It may block, but never for long: holders are between two system calls.
		for err = unix.Flock(int(f.Fd()), how); err == unix.EINTR; {
			err = unix.Flock(int(f.Fd()), how)
		}
		if err != nil {
			return nil, nil, errors.Join(err, f.Close())
		}
		held, err := f.Stat()
		if err == nil && !held.Mode().IsRegular() {
			err = fs.ErrNotExist
		}
		if err != nil {
			return nil, nil, errors.Join(err, f.Close())
		}
		there, err := d.root.Lstat(path)
		if err == nil && os.SameFile(held, there) {
			return f, held, nil
		}
		if err := errors.Join(err, f.Close()); err != nil {
			return nil, nil, err
		}
	}
}
