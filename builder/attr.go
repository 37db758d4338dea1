package builder

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/containerd/continuity/sysx"
	"golang.org/x/sys/unix"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/catalog"
)

func statx(dir int, name string, st *unix.Statx_t) error {
	for {
		err := unix.Statx(dir, name, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT|unix.AT_EMPTY_PATH,
			unix.STATX_BASIC_STATS, st)
		if err != unix.EINTR {
			return err
		}
	}
}

func stateOf(st *unix.Statx_t) fileState {
	return fileState{
		inode: inode{uint64(st.Dev_major)<<32 | uint64(st.Dev_minor), st.Ino},
		size:  st.Size, mtime: st.Mtime, ctime: st.Ctime,
	}
}

var types = map[uint16]catalog.Type{
	unix.S_IFDIR: catalog.Dir, unix.S_IFREG: catalog.File, unix.S_IFLNK: catalog.Symlink,
	unix.S_IFCHR: catalog.CharDevice, unix.S_IFBLK: catalog.BlockDevice, unix.S_IFIFO: catalog.Fifo,
}

// attrOf translates what stat says. Nlink is left to link and to the encoder.
func attrOf(st *unix.Statx_t) (catalog.Attr, error) {
	a := catalog.Attr{
		Type: types[st.Mode&unix.S_IFMT], Mode: st.Mode & 0o7777, UID: st.Uid, GID: st.Gid,
		MtimeSec: st.Mtime.Sec, MtimeNsec: st.Mtime.Nsec, Nlink: 1,
	}
	switch a.Type {
	case catalog.File, catalog.Symlink:
		a.Size = st.Size
	case catalog.CharDevice, catalog.BlockDevice:
		a.Size = uint64(st.Rdev_major)<<32 | uint64(st.Rdev_minor)
	case 0:
		return a, namespace.E(namespace.Invalid, "stat", "", fmt.Errorf("file type %#o", st.Mode&unix.S_IFMT))
	}
	return a, nil
}

// node returns the node of one name, without content, and without xattrs: these are cheaper to
// get from a descriptor, which directories and files with content will have anyway.
func (s *dirScan) node(dir int, name string, st *unix.Statx_t) (*catalog.Node, error) {
	attr, err := attrOf(st)
	if err != nil {
		return nil, err
	}
	n := &catalog.Node{Name: name, Attr: attr}
	if attr.Type == catalog.Symlink {
		if n.Target, err = readlink(dir, name); err != nil {
			return nil, err
		}
		n.Size = uint64(len(n.Target)) // some file systems report another size
	}
	return n, nil
}

func readlink(dir int, name string) (string, error) {
	buf := make([]byte, namespace.PathBytesMax)
	n, err := unix.Readlinkat(dir, name, buf)
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}

// nameXattrs returns the extended attributes of name in a directory, not following a symlink.
// There is no system call for them that takes a directory and a name (but in the newest
// kernels); the descriptor's path in proc is as safe, and no longer than PATH_MAX.
func nameXattrs(dir int, name string) ([]catalog.Xattr, error) {
	path := "/proc/self/fd/" + strconv.Itoa(dir) + "/" + name
	names, err := sysx.LListxattr(path)
	return readXattrs(names, err, func(x string) ([]byte, error) { return sysx.LGetxattr(path, x) })
}

// fdXattrs returns the extended attributes of an open file.
func fdXattrs(fd int) ([]catalog.Xattr, error) {
	var room [512]byte // most files have none, or one capability
	n, err := unix.Flistxattr(fd, room[:])
	list := room[:max(n, 0)]
	if err == unix.ERANGE {
		list = make([]byte, xattrListMax)
		n, err = unix.Flistxattr(fd, list)
		list = list[:max(n, 0)]
	}
	if err == nil && len(list) == 0 {
		return nil, nil
	}
	var names []string
	for name := range strings.SplitSeq(strings.TrimSuffix(string(list), "\x00"), "\x00") {
		names = append(names, name)
	}
	return readXattrs(names, err, func(x string) ([]byte, error) {
		v := make([]byte, namespace.XattrValueBytesMax)
		n, err := unix.Fgetxattr(fd, x, v)
		return bytes.Clone(v[:max(n, 0)]), err
	})
}

// xattrListMax is XATTR_LIST_MAX of Linux: the names of all attributes of a file.
const xattrListMax = 64 << 10

// readXattrs completes a list of names, which err says was read or not; file systems without
// such attributes have none.
func readXattrs(names []string, err error, get func(string) ([]byte, error)) ([]catalog.Xattr, error) {
	if errors.Is(err, unix.ENOTSUP) || err == nil && len(names) == 0 {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list xattrs: %w", err)
	}
	set := make([]catalog.Xattr, 0, len(names))
	for _, name := range names {
		v, err := get(name)
		if errors.Is(err, unix.ENODATA) {
			continue // removed meanwhile
		}
		if err != nil {
			return nil, fmt.Errorf("read xattr %s: %w", name, err)
		}
		set = append(set, catalog.Xattr{Name: name, Value: v})
	}
	return set, nil
}
