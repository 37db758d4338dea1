package sandbox

import (
	"errors"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"coppice.dev/coppice/namespace"
)

// devices are those of this machine that a program may expect in /dev.
var devices = []string{"null", "zero", "full", "random", "urandom", "tty"}

// mountSystem mounts what a system has besides its files on the directories of the view that are for
// it: a tree that lacks one does without. Nothing of that is part of the tree.
func (s *Spec) mountSystem() error {
	const quiet = unix.MS_NOSUID | unix.MS_NODEV
	for _, m := range []struct {
		dir, kind, options string
		flags              uintptr
	}{
		{"proc", "proc", "", quiet | unix.MS_NOEXEC},
		{"sys", "sysfs", "", quiet | unix.MS_NOEXEC | unix.MS_RDONLY},
		{"run", "tmpfs", "mode=0755", quiet},
		{"tmp", "tmpfs", "mode=1777", quiet},
		{"dev", "tmpfs", "mode=0755", unix.MS_NOSUID},
	} {
		dir := filepath.Join(s.Root, m.dir)
		if !isDirectory(dir) {
			continue
		}
		err := unix.Mount(m.kind, dir, m.kind, m.flags, m.options)
		if m.kind == "sysfs" && err != nil {
			continue // only who owns the network namespace may; few programs look
		}
		if err != nil {
			return namespace.E(namespace.Denied, "mount "+m.kind+" on", "/"+m.dir, err)
		}
	}
	if dev := filepath.Join(s.Root, "dev"); isDirectory(dev) {
		return s.fillDev(dev)
	}
	return nil
}

// isDirectory does not follow a symlink, which might lead out of the view.
func isDirectory(path string) bool {
	info, err := os.Lstat(path)
	return err == nil && info.IsDir()
}

// fillDev makes the usual devices: by binding this machine's, since in a user namespace none can be
// made.
func (s *Spec) fillDev(dev string) error {
	fail := func(name string, err error) error { return namespace.E(namespace.Denied, "make", "/dev/"+name, err) }
	for _, name := range devices {
		path := filepath.Join(dev, name)
		if err := os.WriteFile(path, nil, 0o666); err != nil {
			return fail(name, err)
		}
		if err := unix.Mount("/dev/"+name, path, "", unix.MS_BIND, ""); err != nil {
			return fail(name, err)
		}
	}
	for name, target := range map[string]string{
		"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2", "ptmx": "pts/ptmx",
	} {
		if err := os.Symlink(target, filepath.Join(dev, name)); err != nil {
			return fail(name, err)
		}
	}
	for _, m := range []struct{ name, kind, options string }{
		{"pts", "devpts", "newinstance,ptmxmode=0666,mode=0620"}, {"shm", "tmpfs", "mode=1777"},
	} {
		path := filepath.Join(dev, m.name)
		if err := os.Mkdir(path, 0o755); err != nil {
			return fail(m.name, err)
		}
		if err := unix.Mount(m.kind, path, m.kind, unix.MS_NOSUID|unix.MS_NOEXEC, m.options); err != nil {
			return fail(m.name, err)
		}
	}
	return nil
}

// clones returns detached copies of what is to be bound, taken while this machine's root is in sight.
func (s *Spec) clones() ([]int, error) {
	fds := make([]int, len(s.Binds))
	for i, b := range s.Binds {
		fd, err := unix.OpenTree(unix.AT_FDCWD, b.Source, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
		if err != nil {
			return nil, namespace.E(namespace.Invalid, "bind", b.Source, err)
		}
		if b.ReadOnly {
			attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
			if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &attr); err != nil {
				return nil, namespace.E(namespace.Denied, "bind read-only", b.Source, err)
			}
		}
		fds[i] = fd
	}
	return fds, nil
}

// attach puts a clone at its target, in the new root.
func (b Bind) attach(fd int) error {
	defer unix.Close(fd)
	err := unix.MoveMount(fd, "", unix.AT_FDCWD, b.Target, unix.MOVE_MOUNT_F_EMPTY_PATH)
	if errors.Is(err, unix.ENOENT) {
		return namespace.WithHint(namespace.E(namespace.NotExist, "bind to", b.Target, err), "bind to a path that the tree has, as /mnt")
	}
	if err != nil {
		return namespace.E(namespace.Invalid, "bind to", b.Target, err)
	}
	return nil
}

// resolver shows this machine's resolver in the view, without a change of the tree: over the file that
// is there, or where a link leads that is there. A tree that has neither does without names; it is no
// reason to fail.
func (s *Spec) resolver() {
	const path, copied = "/etc/resolv.conf", "/run/.resolv.conf"
	if target, err := os.Readlink(path); err == nil {
		if !filepath.IsAbs(target) {
			target = filepath.Join("/etc", target)
		}
		if strings.HasPrefix(target, "/run/") { // ours, and empty
			_ = os.MkdirAll(filepath.Dir(target), 0o755)
			_ = os.WriteFile(target, s.Resolver, 0o644)
			return
		}
	}
	if _, err := os.Stat(path); err != nil || !isDirectory("/run") {
		return
	}
	if os.WriteFile(copied, s.Resolver, 0o644) == nil {
		_ = unix.Mount(copied, path, "", unix.MS_BIND, "")
	}
}

// raiseLoopback gives a network of nobody else its own address. Without it little works less.
func raiseLoopback() {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		return
	}
	ifr.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	_ = unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr)
}
