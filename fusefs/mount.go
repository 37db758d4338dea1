package fusefs

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"coppice.dev/coppice/namespace"
)

// fsType is the type of our mounts in mountinfo.
const fsType = "fuse.coppice"

// mounter makes the superblock and shows generations at Dir. Its two implementations are the modes.
// Not safe for concurrent use: Server.mu.
type mounter interface {
	// serve starts answering the kernel with fs.
	serve(fs fuse.RawFileSystem, o *fuse.MountOptions) (*fuse.Server, error)
	// show makes Dir show the generation called name, atomically, and returns its mount's id.
	show(name string) (mountID uint64, err error)
	// hide takes Dir away; lazily if it is in use and force is set.
	hide(force bool) error
	// close lets go of the superblock: it ends when nobody uses it any more.
	close() error
	mode() string
}

// kernelOptions are what both modes tell go-fuse.
func kernelOptions(o Options) *fuse.MountOptions {
	return &fuse.MountOptions{
		Name:                     "coppice",
		FsName:                   o.Name,
		Options:                  []string{"ro", "default_permissions"},
		MaxBackground:            128, // a network's latency is hidden by requests in flight
		MaxWrite:                 1 << 20,
		EnableSymlinkCaching:     true,
		ExplicitDataCacheControl: true,
		EnableAcl:                true, // ACLs of the tree are enforced by the kernel
		DisableSplice:            true, // answers are in memory already
		ExtraCapabilities:        fuse.CAP_NO_OPENDIR_SUPPORT,
	}
}

// beneath mounts by the new mount API. The superblock stays detached, held by a descriptor: nobody
// sees it, and it goes when this process does.
type beneath struct {
	o     Options
	super int // descriptor of the detached mount of the superblock
	fuse  int // of /dev/fuse; go-fuse owns it once it serves
	shown bool
}

// newBeneath makes the superblock. Denied: this process may not mount.
func newBeneath(o Options) (*beneath, error) {
	fail := func(what string, err error) error {
		return namespace.E(mountKind(err), what, o.Dir, err)
	}
	dev, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, namespace.WithHint(fail("open /dev/fuse for", err), "is the fuse module loaded?")
	}
	fs, err := unix.Fsopen("fuse", unix.FSOPEN_CLOEXEC)
	if err != nil {
		unix.Close(dev)
		return nil, fail("mount", err)
	}
	defer unix.Close(fs)
	if err := configure(fs, dev, o); err != nil {
		unix.Close(dev)
		return nil, fail("mount", err)
	}
	attr := unix.MOUNT_ATTR_RDONLY
	if !o.AllowSuid {
		attr |= unix.MOUNT_ATTR_NOSUID
	}
	if !o.AllowDev {
		attr |= unix.MOUNT_ATTR_NODEV
	}
	super, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, attr)
	if err != nil {
		unix.Close(dev)
		return nil, fail("mount", err)
	}
	return &beneath{o: o, super: super, fuse: dev}, nil
}

// configure sets the superblock's options and creates it.
func configure(fs, dev int, o Options) error {
	set := func(key, value string) error { return unix.FsconfigSetString(fs, key, value) }
	return errors.Join(
		set("source", o.Name), set("subtype", "coppice"), set("fd", strconv.Itoa(dev)),
		set("rootmode", "40000"), set("user_id", strconv.Itoa(os.Geteuid())), set("group_id", strconv.Itoa(os.Getegid())),
		unix.FsconfigSetFlag(fs, "allow_other"), unix.FsconfigSetFlag(fs, "default_permissions"),
		unix.FsconfigSetFlag(fs, "ro"), unix.FsconfigCreate(fs))
}

func mountKind(err error) namespace.Kind {
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
		return namespace.Denied
	}
	return namespace.Unavailable
}

func (b *beneath) mode() string { return ModeBeneath }

func (b *beneath) serve(fs fuse.RawFileSystem, o *fuse.MountOptions) (*fuse.Server, error) {
	srv, err := fuse.NewServer(fs, "/dev/fd/"+strconv.Itoa(b.fuse), o)
	if err != nil {
		return nil, namespace.E(namespace.Unavailable, "serve", b.o.Dir, err)
	}
	return srv, nil
}

func (b *beneath) show(name string) (uint64, error) {
	fail := func(err error) (uint64, error) {
		return 0, namespace.E(mountKind(err), "mount", b.o.Dir, err)
	}
	tree, err := unix.OpenTree(b.super, name, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return fail(fmt.Errorf("clone the subtree: %w", err))
	}
	defer unix.Close(tree)
	id, err := mountIDOf(tree)
	if err != nil {
		return fail(err)
	}
	if !b.shown {
		if err := unix.MoveMount(tree, "", unix.AT_FDCWD, b.o.Dir, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
			return fail(err)
		}
		b.shown = true
		return id, nil
	}
	const moveMountBeneath = 0x200 // Linux 6.5; not in x/sys yet
	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, b.o.Dir, unix.MOVE_MOUNT_F_EMPTY_PATH|moveMountBeneath); err != nil {
		return fail(fmt.Errorf("put the new tree beneath the old: %w", err))
	}
	// From here on the new tree is in place: taking the old one off shows it.
	if err := unix.Unmount(b.o.Dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
		return fail(fmt.Errorf("take the old tree off: %w", err))
	}
	return id, nil
}

func (b *beneath) hide(force bool) error {
	if !b.shown {
		return nil
	}
	flags := unix.UMOUNT_NOFOLLOW
	if force {
		flags |= unix.MNT_DETACH
	}
	err := unix.Unmount(b.o.Dir, flags)
	switch {
	case errors.Is(err, unix.EBUSY):
		return namespace.WithHint(namespace.E(namespace.Unavailable, "unmount", b.o.Dir, errors.New("it is in use")),
			"end what uses it, or use --force")
	case err != nil && !errors.Is(err, unix.EINVAL): // EINVAL: somebody unmounted it before
		return namespace.E(mountKind(err), "unmount", b.o.Dir, err)
	}
	b.shown = false
	return nil
}

func (b *beneath) close() error {
	if b.super < 0 {
		return nil
	}
	err := unix.Close(b.super)
	b.super = -1
	return err
}

// mountIDOf returns the id of the mount that a descriptor is on. It reads /proc and so asks the
// file system nothing, which may be our own.
func mountIDOf(fd int) (uint64, error) {
	b, err := os.ReadFile("/proc/self/fdinfo/" + strconv.Itoa(fd))
	if err != nil {
		return 0, err
	}
	id, ok := mountIDIn(string(b))
	if !ok {
		return 0, fmt.Errorf("no mount id in fdinfo")
	}
	return id, nil
}

func mountIDIn(fdinfo string) (uint64, bool) {
	for line := range strings.Lines(fdinfo) {
		if v, ok := strings.CutPrefix(line, "mnt_id:"); ok {
			id, err := strconv.ParseUint(strings.TrimSpace(v), 10, 64)
			return id, err == nil
		}
	}
	return 0, false
}

// symlink mounts the superblock with fusermount3 below RunDir; Dir is a link into it.
type symlink struct {
	o     Options
	super string // where the superblock is mounted
	link  bool   // Dir is our link
	made  bool   // Dir was there as a directory, and is put back
}

func newSymlink(o Options) (*symlink, error) {
	if o.RunDir == "" {
		return nil, namespace.E(namespace.Invalid, "mount", o.Dir, errors.New("no directory for the superblock"))
	}
	if err := os.MkdirAll(o.RunDir, 0o700); err != nil {
		return nil, namespace.E(namespace.KindOf(err), "create", o.RunDir, err)
	}
	super, err := os.MkdirTemp(o.RunDir, "sb-")
	if err != nil {
		return nil, namespace.E(namespace.KindOf(err), "create in", o.RunDir, err)
	}
	return &symlink{o: o, super: super}, nil
}

func (s *symlink) mode() string { return ModeSymlink }

func (s *symlink) serve(fs fuse.RawFileSystem, o *fuse.MountOptions) (*fuse.Server, error) {
	srv, err := fuse.NewServer(fs, s.super, o)
	if err != nil {
		_ = os.Remove(s.super)
		return nil, namespace.WithHint(namespace.E(namespace.Unavailable, "mount", s.o.Dir, err),
			"without privileges this needs fusermount3 (package fuse3) and access to /dev/fuse")
	}
	return srv, nil
}

func (s *symlink) show(name string) (uint64, error) {
	fail := func(err error) (uint64, error) {
		return 0, namespace.WithHint(namespace.E(namespace.KindOf(err), "link", s.o.Dir, err),
			"without privileges the mount point must be absent, or an empty directory that may be replaced")
	}
	if !s.link {
		err := os.Remove(s.o.Dir) // an empty directory, or a dead link
		s.made = err == nil
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return fail(err)
		}
	}
	next := s.o.Dir + ".coppice-next"
	_ = os.Remove(next)
	if err := os.Symlink(filepath.Join(s.super, name), next); err != nil {
		return fail(err)
	}
	if err := os.Rename(next, s.o.Dir); err != nil {
		return fail(err)
	}
	s.link = true
	return 0, nil
}

func (s *symlink) hide(bool) error {
	if !s.link {
		return nil
	}
	s.link = false
	if err := os.Remove(s.o.Dir); err != nil && !errors.Is(err, os.ErrNotExist) {
		return namespace.E(namespace.KindOf(err), "unlink", s.o.Dir, err)
	}
	if s.made {
		_ = os.Mkdir(s.o.Dir, 0o755) // as it was found; that it cannot be is no reason to fail
	}
	return nil
}

func (s *symlink) close() error {
	if s.super == "" {
		return nil
	}
	err := fusermountDetach(s.super)
	_ = os.Remove(s.super)
	s.super = ""
	return err
}

func fusermountDetach(dir string) error {
	out, err := exec.Command("fusermount3", "-u", "-z", dir).CombinedOutput()
	if err != nil {
		return namespace.E(namespace.Unavailable, "unmount", dir, fmt.Errorf("%w: %s", err, strings.TrimSpace(string(out))))
	}
	return nil
}
