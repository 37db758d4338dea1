package origin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"coppice.dev/coppice/namespace"
)

// Ref implements namespace.RefReader.
func (d *Dir) Ref(ctx context.Context, n namespace.RefName) ([]byte, error) {
	const op = "read ref"
	if err := contextError(ctx, op, n.String()); err != nil {
		return nil, err
	}
	if err := n.Check(); err != nil {
		return nil, err
	}
	return d.readFile(op, refPath(n), n.String(), namespace.RefBytesMax)
}

// Refs implements namespace.RefReader. The files are the truth, not _index.json.
func (d *Dir) Refs(ctx context.Context, kind string) ([]string, error) {
	if err := contextError(ctx, "list refs", kind); err != nil {
		return nil, err
	}
	if err := checkKind(kind); err != nil {
		return nil, err
	}
	names, err := d.refNames(kind, "")
	if err != nil {
		return nil, diskError("list refs", kind, err)
	}
	slices.Sort(names)
	return names, nil
}

// refNames walks the refs of a kind below the name prefix dir.
func (d *Dir) refNames(kind, dir string) ([]string, error) {
	entries, err := d.readDir("ref/" + kind + "/" + dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var names []string
	for _, e := range entries {
		name := e.Name()
		if dir != "" {
			name = dir + "/" + name
		}
		switch {
		case namespace.CheckName(name) != nil: // the index, or not ours
		case e.Type().IsRegular():
			names = append(names, name)
		case e.IsDir():
			below, err := d.refNames(kind, name)
			if err != nil {
				return nil, err
			}
			names = append(names, below...)
		}
	}
	return names, err
}

// SwapRef implements namespace.RefWriter.
func (d *Dir) SwapRef(ctx context.Context, n namespace.RefName, prev, next []byte) error {
	const op = "swap ref"
	if err := n.Check(); err != nil {
		return err
	}
	if len(next) == 0 {
		return namespace.E(namespace.Invalid, op, n.String(), fmt.Errorf("an empty record"))
	}
	if len(next) > namespace.RefBytesMax {
		return limitError(op, n.String(), namespace.RefBytesMax)
	}
	d.prepare()
	unlock, err := d.lock(ctx, op, n.String())
	if err != nil {
		return err
	}
	defer unlock()
	if err := d.compare(op, n, prev); err != nil {
		return err
	}
	if err := d.replace(n, next); err != nil {
		if errors.Is(err, syscall.ENOTDIR) || errors.Is(err, syscall.EISDIR) || errors.Is(err, fs.ErrExist) {
			return namespace.E(namespace.Invalid, op, n.String(), fmt.Errorf("a name beneath it or above it is taken"))
		}
		return diskError(op, n.String(), err)
	}
	d.watch.notify()
	return nil
}

// compare checks that n's record is prev.
func (d *Dir) compare(op string, n namespace.RefName, prev []byte) error {
	cur, err := d.readFile(op, refPath(n), n.String(), namespace.RefBytesMax)
	if err != nil && !namespace.IsKind(err, namespace.NotExist) {
		return err
	}
	if (err == nil) != (prev != nil) || !bytes.Equal(cur, prev) {
		err := namespace.E(namespace.Exist, op, n.String(), fmt.Errorf("the record changed meanwhile"))
		return namespace.WithHint(err, "another writer won; look at what it wrote and try again")
	}
	return nil
}

// replace writes n's record, and the list of names if n is not in it.
func (d *Dir) replace(n namespace.RefName, next []byte) error {
	path := refPath(n)
	if err := d.makeParents(parent(path)); err != nil {
		return err
	}
	if err := d.writeFile(path, next); err != nil {
		return err
	}
	// The swap is done, so a failure here must not be reported as one: the list is derived, and
	// the next swap of this name makes it right.
	_ = d.list(n)
	return nil
}

// list puts n into the list of names.
func (d *Dir) list(n namespace.RefName) error {
	b, err := d.readFile("list refs", refIndexPath(n.Kind), n.Kind, indexLimit)
	var index refIndex
	if err == nil && json.Unmarshal(b, &index) == nil && slices.Contains(index.Names, n.Name) {
		return nil
	}
	names, err := d.refNames(n.Kind, "")
	if err != nil {
		return err
	}
	slices.Sort(names)
	return d.writeIndex(n.Kind, names)
}

// makeParents makes the directory of a ref, each level durably.
func (d *Dir) makeParents(dir string) error {
	if info, err := d.root.Lstat(dir); err == nil && info.IsDir() {
		return nil
	}
	if dir == "." {
		return nil
	}
	if err := d.makeParents(parent(dir)); err != nil {
		return err
	}
	if err := d.root.Mkdir(dir, 0o755); err != nil {
		return err
	}
	return d.syncDir(parent(dir))
}

func (d *Dir) writeIndex(kind string, names []string) error {
	if names == nil {
		names = []string{}
	}
	b, err := json.Marshal(refIndex{Format: format, Names: names})
	if err != nil {
		return err
	}
	return d.writeFile(refIndexPath(kind), append(b, '\n'))
}

// lock takes the lock that all processes which swap refs share.
func (d *Dir) lock(ctx context.Context, op, subject string) (unlock func(), err error) {
	select {
	case d.swap <- struct{}{}:
	case <-ctx.Done():
		return nil, contextError(ctx, op, subject)
	}
	f, err := d.root.OpenFile(lockName, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		<-d.swap
		return nil, diskError(op, subject, err)
	}
	unlock = func() {
		_ = f.Close() // gives the lock up too
		<-d.swap
	}
	// Not the blocking call: a context could not end it.
	for wait := time.Millisecond; ; wait = min(2*wait, 20*time.Millisecond) {
		if err := contextError(ctx, op, subject); err != nil {
			unlock()
			return nil, err
		}
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return unlock, nil
		}
		if err != unix.EWOULDBLOCK && err != unix.EINTR {
			unlock()
			return nil, diskError(op, subject, err)
		}
		_ = sleep(ctx, wait) // the loop's head looks at ctx
	}
}

// WaitRef implements namespace.RefWaiter. A swap by any process of this machine is seen within a
// millisecond; one that inotify does not tell of (a network file system) within half a second.
func (d *Dir) WaitRef(ctx context.Context, n namespace.RefName, have []byte) ([]byte, error) {
	const op = "wait for ref"
	if err := n.Check(); err != nil {
		return nil, err
	}
	for {
		changed := d.watch.add(parent(refPath(n))) // before reading, or a swap in between is missed
		b, err := d.Ref(ctx, n)
		if err != nil && (have != nil || !namespace.IsKind(err, namespace.NotExist)) {
			return nil, err
		}
		if err == nil && !bytes.Equal(b, have) {
			return b, nil
		}
		select {
		case <-changed:
		case <-d.watch.done():
			return nil, namespace.E(namespace.Unavailable, op, n.String(), fs.ErrClosed)
		case <-time.After(d.watch.poll()):
		case <-ctx.Done():
			return have, contextError(ctx, op, n.String())
		}
	}
}
