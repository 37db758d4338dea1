package fusefs

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"coppice.dev/coppice/namespace"
)

// beneath mounts by the new mount API. The superblock stays detached, held by a descriptor: nobody
// sees it, and it goes when this process does.
type beneath struct {
	o      Options
	super  int    // descriptor of the mount of the superblock; -1 when closed
	fuse   int    // of /dev/fuse; go-fuse owns it once it serves
	hidden string // where the superblock is attached, on kernels that cannot clone a detached one
	device string // MAJOR:MINOR of the superblock, once Dir shows it
}

// moveMountBeneath is MOVE_MOUNT_BENEATH, Linux 6.5; not in x/sys yet.
const moveMountBeneath = 0x200

// What the kernel can do; variables, so that tests can take it away.
var (
	// movesBeneath reports whether the kernel knows MOVE_MOUNT_BENEATH. One that does not says
	// EINVAL to the flag before it looks at the descriptors.
	movesBeneath = func() bool {
		err := unix.MoveMount(-1, "", -1, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH|moveMountBeneath)
		return !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOSYS)
	}
	// clonesDetached reports whether the kernel clones parts of a detached mount (Linux 6.15).
	clonesDetached = func(mount int) bool {
		tree, err := unix.OpenTree(mount, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
		if err != nil {
			return false
		}
		unix.Close(tree)
		return true
	}
)

// newBeneath makes the superblock. Denied: this process may not mount.
func newBeneath(o Options) (*beneath, error) {
	fail := func(what string, err error) error {
		return namespace.E(mountKind(err), what, o.Dir, err)
	}
	dev, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, namespace.WithHint(fail("open /dev/fuse for", err), "is the fuse module loaded?")
	}
	b := &beneath{o: o, fuse: dev}
	if b.super, err = newSuper(dev, o); err != nil {
		unix.Close(dev)
		return nil, fail("mount", err)
	}
	if clonesDetached(b.super) {
		return b, nil
	}
	if b.hidden, err = newSuperDir(o); err == nil {
		err = attach(b.super, b.hidden)
	}
	if err != nil {
		unix.Close(dev)
		return nil, errors.Join(fail("mount", err), b.close())
	}
	return b, nil
}

// newSuper makes a superblock and returns the descriptor of its detached mount.
func newSuper(dev int, o Options) (int, error) {
	fs, err := unix.Fsopen("fuse", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, err
	}
	defer unix.Close(fs)
	if err := configure(fs, dev, o); err != nil {
		return -1, err
	}
	attr := unix.MOUNT_ATTR_RDONLY
	if !o.AllowSuid {
		attr |= unix.MOUNT_ATTR_NOSUID
	}
	if !o.AllowDev {
		attr |= unix.MOUNT_ATTR_NODEV
	}
	if o.DenyExec {
		attr |= unix.MOUNT_ATTR_NOEXEC
	}
	return unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, attr)
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

// attach mounts a detached superblock at dir. Private: a clone of a shared mount would be its peer,
// and what is mounted on one would appear on the other.
func attach(super int, dir string) error {
	if err := unix.MoveMount(super, "", unix.AT_FDCWD, dir, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return err
	}
	return unix.Mount("", dir, "", unix.MS_PRIVATE, "")
}

func (b *beneath) mode() string { return ModeBeneath }

func (b *beneath) serve(fs fuse.RawFileSystem, o *fuse.MountOptions) (*fuse.Server, error) {
	srv, err := fuse.NewServer(fs, "/dev/fd/"+strconv.Itoa(b.fuse), o)
	if err != nil {
		return nil, namespace.E(namespace.Unavailable, "serve", b.o.Dir, err)
	}
	return srv, nil
}

func (b *beneath) show(name string) (spot, error) {
	fail := func(err error) (spot, error) {
		return spot{}, namespace.E(mountKind(err), "mount", b.o.Dir, err)
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
	if b.device == "" {
		if err := unix.MoveMount(tree, "", unix.AT_FDCWD, b.o.Dir, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
			return fail(err)
		}
		var ok bool
		if b.device, ok = deviceOf(id); !ok {
			return fail(errors.Join(errors.New("the mount is not in mountinfo"), unix.Unmount(b.o.Dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)))
		}
		return spot{mount: id}, nil
	}
	if err := b.checkTop(); err != nil {
		return spot{}, err
	}
	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, b.o.Dir, unix.MOVE_MOUNT_F_EMPTY_PATH|moveMountBeneath); err != nil {
		return fail(fmt.Errorf("put the new tree beneath the old: %w", err))
	}
	// From here on the new tree is in place: taking the old one off shows it. Should that fail, the
	// new one stays beneath, unseen; the next swap puts its own between, and hide takes all of them.
	if err := unix.Unmount(b.o.Dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
		return fail(fmt.Errorf("take the old tree off: %w", err))
	}
	return spot{mount: id}, nil
}

// checkTop makes sure that what a swap would take off Dir is ours.
func (b *beneath) checkTop() error {
	top, err := topMount(b.o.Dir)
	if err != nil {
		return err
	}
	if top == nil {
		return namespace.E(namespace.Unavailable, "mount", b.o.Dir, errors.New("somebody else unmounted it"))
	}
	if top.device != b.device {
		return namespace.WithHint(namespace.E(namespace.Exist, "mount", b.o.Dir,
			fmt.Errorf("a file system of type %s was mounted over it", top.fsType)), "`umount "+b.o.Dir+"` takes that one off")
	}
	return nil
}

func (b *beneath) hide(force bool) error {
	flags := unix.UMOUNT_NOFOLLOW
	if force {
		flags |= unix.MNT_DETACH
	}
	for b.device != "" {
		top, err := topMount(b.o.Dir)
		if err != nil {
			return err
		}
		if top == nil {
			break
		}
		if top.device != b.device {
			if force {
				break // ours goes when that one does
			}
			return b.checkTop()
		}
		if err := unix.Unmount(b.o.Dir, flags); errors.Is(err, unix.EBUSY) {
			return namespace.WithHint(namespace.E(namespace.Unavailable, "unmount", b.o.Dir, errors.New("it is in use")),
				"end what uses it, or use --force")
		} else if err != nil {
			return namespace.E(mountKind(err), "unmount", b.o.Dir, err)
		}
	}
	b.device = ""
	return nil
}

func (b *beneath) close() error {
	if b.super < 0 {
		return nil
	}
	var detach error
	if b.hidden != "" {
		detach = unix.Unmount(b.hidden, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if errors.Is(detach, unix.EINVAL) { // it was never attached, or somebody was faster
			detach = nil
		}
		_ = os.Remove(b.hidden)
	}
	err := errors.Join(detach, unix.Close(b.super))
	b.super = -1
	return err
}
