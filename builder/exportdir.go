package builder

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"coppice.dev/coppice/internal/disk"
	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/catalog"
)

// Loss is something that [ExportDir] was not allowed to make, or that the file system cannot hold.
type Loss struct {
	What  string `json:"what"`  // as "owner" or "xattr security.capability"
	Count uint64 `json:"count"` // entries
	First string `json:"first"` // path of the first of them, relative to the tree's root
}

// ExportDir writes the tree whose root catalog is root to the directory dir, which must be empty or
// not exist; its parent must. The tree appears there entirely when it is complete and on disk, or
// not at all (unless something is mounted on dir: then it is written in place, and removed on an
// error). Nothing is written outside, whatever links the tree holds. Root keeps everything; what
// another user may not set, as owners and devices, is left out and returned, and setuid and setgid
// bits are left out with the owner. Kinds: Exist (dir is not empty), those of [Stored.ReadFile],
// Limit (disk full), Denied, NotExist.
func ExportDir(ctx context.Context, s *Stored, root namespace.Digest, dir string, o ExportOptions) ([]Loss, error) {
	pending, err := disk.NewDir("export", dir)
	if err != nil {
		return nil, err
	}
	defer pending.Discard()
	d := &dirSink{losses: map[string]*Loss{}, missing: map[string]bool{}, file: -1}
	if err := d.export(ctx, s, root, pending.Path, o); err != nil {
		return nil, err
	}
	if err := pending.Commit(); err != nil {
		return nil, err
	}
	return d.lost(), nil
}

// dirSink writes a directory, relative to descriptors of directories it made: a name is never
// resolved through what the tree holds.
type dirSink struct {
	stack []madeDir // from the root to where entries are made
	file  int       // descriptor of the file being written, or -1
	off   int64
	at    madeEntry // that file

	losses  map[string]*Loss
	missing map[string]bool // paths that could not be made
}

// madeEntry is something that was made and still lacks its attributes.
type madeEntry struct {
	path string
	c    *catalog.Catalog
	e    catalog.Entry
}

type madeDir struct {
	madeEntry
	fd int
}

func (d *dirSink) export(ctx context.Context, s *Stored, root namespace.Digest, dir string, o ExportOptions) error {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return disk.Error("export", dir, err)
	}
	d.stack = []madeDir{{fd: fd}}
	defer func() {
		for _, made := range d.stack {
			unix.Close(made.fd)
		}
		if d.file >= 0 {
			unix.Close(d.file)
		}
	}()
	if err := export(ctx, s, root, d, o); err != nil {
		return err
	}
	if err := d.leave(1); err != nil {
		return err
	}
	top := d.stack[0]
	return d.attributes(top.fd, "", top.madeEntry)
}

// leave completes the current file, and the directories deeper than depth.
func (d *dirSink) leave(depth int) error {
	if d.file >= 0 {
		err := unix.Ftruncate(d.file, int64(d.at.e.Size)) // what ends with a hole is shorter so far
		if err == nil {
			err = d.attributes(d.file, "", d.at)
		}
		if closed := unix.Close(d.file); err == nil {
			err = closed
		}
		if d.file = -1; err != nil {
			return disk.Error("write", d.at.path, err)
		}
	}
	for len(d.stack) > depth {
		top := d.stack[len(d.stack)-1]
		err := d.attributes(top.fd, "", top.madeEntry)
		unix.Close(top.fd)
		d.stack = d.stack[:len(d.stack)-1]
		if err != nil {
			return disk.Error("write", top.path, err)
		}
	}
	return nil
}

// entry implements sink.
func (d *dirSink) entry(path, link string, c *catalog.Catalog, e catalog.Entry) error {
	if path == "" {
		d.stack[0].madeEntry = madeEntry{"", c, e}
		return nil
	}
	if err := d.leave(strings.Count(path, "/") + 1); err != nil {
		return err
	}
	at, name := d.stack[len(d.stack)-1].fd, path[strings.LastIndexByte(path, '/')+1:]
	err := d.make(at, name, link, madeEntry{path, c, e})
	if err != nil {
		return disk.Error("make", path, err)
	}
	return nil
}

// make makes name in the directory at. Attributes of directories and of files with content follow
// when these are complete.
func (d *dirSink) make(at int, name, link string, m madeEntry) error {
	if link != "" {
		return d.link(at, name, link, m.path)
	}
	var err error
	switch m.e.Type {
	case catalog.Dir:
		if err := unix.Mkdirat(at, name, 0o700); err != nil {
			return err
		}
		fd, err := unix.Openat(at, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		d.stack = append(d.stack, madeDir{m, fd})
		return nil
	case catalog.File:
		d.at, d.off = m, 0
		d.file, err = unix.Openat(at, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
		return err
	case catalog.Symlink:
		err = unix.Symlinkat(string(m.c.Target(m.e.Index)), at, name)
	case catalog.Fifo:
		err = unix.Mknodat(at, name, unix.S_IFIFO|0o600, 0)
	default:
		major, minor := m.e.Rdev()
		mode := uint32(unix.S_IFCHR)
		if m.e.Type == catalog.BlockDevice {
			mode = unix.S_IFBLK
		}
		err = unix.Mknodat(at, name, mode|0o600, int(unix.Mkdev(major, minor)))
		if errors.Is(err, unix.EPERM) {
			d.missing[m.path] = true
			d.lose("device", m.path)
			return nil
		}
	}
	if err != nil {
		return err
	}
	return d.attributes(at, name, m)
}

// link makes name another name of the path link, which was made before.
func (d *dirSink) link(at int, name, link, path string) error {
	if d.missing[link] {
		d.missing[path] = true
		d.lose("device", path)
		return nil
	}
	dir, base := filepath.Split(link)
	parent, err := unix.Openat2(d.stack[0].fd, filepath.Join(".", dir), &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
	})
	if err != nil {
		return err
	}
	defer unix.Close(parent)
	return unix.Linkat(parent, base, at, name, 0)
}

// extent implements sink.
func (d *dirSink) extent(data []byte, hole uint64) error {
	d.off += int64(hole)
	for len(data) > 0 {
		n, err := unix.Pwrite(d.file, data, d.off)
		if err != nil && err != unix.EINTR {
			return disk.Error("write", d.at.path, err)
		}
		n = max(n, 0)
		data, d.off = data[n:], d.off+int64(n)
	}
	return nil
}

// attributes gives name in the directory at, or at itself if name is "", what m says. The owner
// comes first, since changing it takes capabilities and setuid away; the time last.
func (d *dirSink) attributes(at int, name string, m madeEntry) error {
	e, path := m.e, "/proc/self/fd/"+strconv.Itoa(at)
	if name != "" {
		path += "/" + name
	}
	mode := uint32(e.Mode)
	err := unix.Fchownat(at, name, int(e.UID), int(e.GID), unix.AT_SYMLINK_NOFOLLOW|unix.AT_EMPTY_PATH)
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EINVAL) { // EINVAL: an id that a user namespace has not
		d.lose("owner", m.path)
		if mode&0o6000 != 0 && e.Type != catalog.Symlink {
			d.lose("setuid and setgid bits", m.path)
			mode &^= 0o6000 // they would give the rights of another than the tree's owner
		}
	} else if err != nil {
		return fmt.Errorf("chown: %w", err)
	}
	for _, x := range m.c.Xattrs(e.Index) {
		set := unix.Lsetxattr
		if name == "" { // the path is a link to the descriptor
			set = unix.Setxattr
		}
		err := set(path, x.Name, x.Value, 0)
		switch {
		case errors.Is(err, unix.EPERM), errors.Is(err, unix.ENOTSUP), errors.Is(err, unix.EINVAL):
			d.lose("xattr "+x.Name, m.path)
		case err != nil:
			return fmt.Errorf("set xattr %s: %w", x.Name, err)
		}
	}
	if e.Type != catalog.Symlink {
		if err := unix.Chmod(path, mode); err != nil {
			return fmt.Errorf("chmod: %w", err)
		}
	}
	stamp := unix.Timespec{Sec: e.MtimeSec, Nsec: int64(e.MtimeNsec)}
	times := []unix.Timespec{stamp, stamp}
	if name == "" {
		err = unix.UtimesNanoAt(unix.AT_FDCWD, path, times, 0)
	} else {
		err = unix.UtimesNanoAt(at, name, times, unix.AT_SYMLINK_NOFOLLOW)
	}
	if err != nil {
		return fmt.Errorf("set time: %w", err)
	}
	return nil
}

func (d *dirSink) lose(what, path string) {
	l := d.losses[what]
	if l == nil {
		l = &Loss{What: what, First: "/" + path}
		d.losses[what] = l
	}
	l.Count++
}

// lost returns what was left out, sorted.
func (d *dirSink) lost() []Loss {
	var all []Loss
	for _, l := range d.losses {
		all = append(all, *l)
	}
	slices.SortFunc(all, func(a, b Loss) int { return cmp.Compare(a.What, b.What) })
	return all
}
