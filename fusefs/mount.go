package fusefs

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"time"

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
	// show makes Dir show the generation called name, atomically.
	show(name string) (spot, error)
	// hide takes Dir away; lazily if it is in use and force is set.
	hide(force bool) error
	// close lets go of the superblock: it ends when nobody uses it any more.
	close() error
	mode() string
}

// spot is where a generation is: whoever uses it has something on the mount, at or below path.
type spot struct {
	mount uint64
	path  string // "" is anywhere
}

func (s spot) holds(h Holder) bool {
	return h.MountID == s.mount && (s.path == "" || h.Path == s.path || strings.HasPrefix(h.Path, s.path+"/"))
}

// newMounter picks the best mode that this kernel and our privileges allow.
func newMounter(o Options) (mounter, error) {
	if movesBeneath() {
		b, err := newBeneath(o)
		if !namespace.IsKind(err, namespace.Denied) {
			return b, err
		}
	}
	return newSymlink(o)
}

func mountKind(err error) namespace.Kind {
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
		return namespace.Denied
	}
	return namespace.Unavailable
}

// superPrefix begins the names of the directories below RunDir that superblocks are mounted at.
const superPrefix = "sb-"

// newSuperDir makes a directory for a superblock, after it took away those of dead daemons.
func newSuperDir(o Options) (string, error) {
	if o.RunDir == "" {
		return "", namespace.E(namespace.Invalid, "mount", o.Dir, errors.New("no directory for the superblock"))
	}
	if err := os.MkdirAll(o.RunDir, 0o700); err != nil {
		return "", namespace.E(namespace.KindOf(err), "create", o.RunDir, err)
	}
	old, _ := filepath.Glob(filepath.Join(o.RunDir, superPrefix+"*"))
	for _, dir := range old {
		// An empty one may be about to be mounted at. Best effort: a dead mount harms nobody.
		if top, err := topMount(dir); err == nil && top != nil && top.fsType == fsType && !alive(dir) {
			if detach(dir) == nil {
				_ = os.Remove(dir)
			}
		}
	}
	dir, err := os.MkdirTemp(o.RunDir, superPrefix)
	if err != nil {
		return "", namespace.E(namespace.KindOf(err), "create in", o.RunDir, err)
	}
	return dir, nil
}

// aliveWait bounds how long a file system may take to show that it lives.
const aliveWait = 3 * time.Second

// alive asks the file system at dir something that the kernel cannot answer from its caches. One
// that does not answer in time counts as living: it may only be slow, or stopped.
func alive(dir string) bool {
	answer := make(chan error, 1)
	go func() { // outlives this call if the file system is stuck; nothing can end it then
		var st unix.Statfs_t
		answer <- unix.Statfs(dir, &st)
	}()
	select {
	case err := <-answer:
		return !errors.Is(err, unix.ENOTCONN)
	case <-time.After(aliveWait):
		return true
	}
}

// detach takes the top mount off dir, even if it is in use.
func detach(dir string) error {
	err := unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	switch {
	case errors.Is(err, unix.EPERM):
		return fusermountDetach(dir)
	case err != nil:
		return namespace.E(mountKind(err), "clean up", dir, err)
	}
	return nil
}

// kernelOptions are what both modes tell go-fuse. READDIRPLUS stays on: the first find through a tree
// of 13k entries takes 0.48 s with it and 1.4 s without, the first tar 1.0 s and 2.7 s.
func kernelOptions(o Options) *fuse.MountOptions {
	options := []string{"ro", "default_permissions"}
	if o.DenyExec {
		options = append(options, "noexec")
	}
	return &fuse.MountOptions{
		Name:                     "coppice",
		FsName:                   o.Name,
		Options:                  options,
		MaxBackground:            128, // a network's latency is hidden by requests in flight
		MaxWrite:                 1 << 20,
		EnableSymlinkCaching:     true,
		ExplicitDataCacheControl: true,
		// ACLs of the tree are enforced by the kernel. The price is a GETXATTR for each inode that
		// somebody else than its owner, or root, uses for the first time: 60 µs.
		EnableAcl:         true,
		DisableSplice:     true, // answers are in memory already
		ExtraCapabilities: fuse.CAP_NO_OPENDIR_SUPPORT,
	}
}
