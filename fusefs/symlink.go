package fusefs

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"coppice.dev/coppice/namespace"
)

// symlink mounts the superblock with fusermount3 below RunDir; Dir is a link into it.
type symlink struct {
	o     Options
	super string // where the superblock is mounted
	link  bool   // Dir is our link
	made  bool   // Dir was there as a directory, and is put back
}

func newSymlink(o Options) (*symlink, error) {
	super, err := newSuperDir(o)
	if err != nil {
		return nil, err
	}
	return &symlink{o: o, super: super}, nil
}

func (s *symlink) mode() string { return ModeSymlink }

func (s *symlink) serve(fs fuse.RawFileSystem, o *fuse.MountOptions) (*fuse.Server, error) {
	if os.Geteuid() == 0 { // an old kernel; others may only let others in if fuse.conf says so
		o.DirectMount, o.AllowOther = true, true
	}
	srv, err := fuse.NewServer(fs, s.super, o)
	if err != nil {
		_ = os.Remove(s.super)
		return nil, namespace.WithHint(namespace.E(namespace.Unavailable, "mount", s.o.Dir, err),
			"without privileges this needs fusermount3 (package fuse3) and access to /dev/fuse")
	}
	return srv, nil
}

func (s *symlink) show(name string) (spot, error) {
	fail := func(err error) (spot, error) {
		return spot{}, namespace.WithHint(namespace.E(namespace.KindOf(err), "link", s.o.Dir, err),
			"without privileges the mount point must be absent, or an empty directory that may be replaced")
	}
	if !s.link {
		err := unix.Rmdir(s.o.Dir) // nothing else: what is in the way is not ours
		s.made = err == nil
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return fail(err)
		}
	} else if err := s.checkLink(); err != nil {
		return spot{}, err
	}
	top, err := topMount(s.super)
	if err != nil {
		return spot{}, err
	}
	if top == nil {
		return fail(fmt.Errorf("somebody unmounted %s", s.super))
	}
	at := filepath.Join(s.super, name)
	next := s.o.Dir + ".coppice-next"
	_ = os.Remove(next)
	if err := os.Symlink(at, next); err != nil {
		return fail(err)
	}
	if err := os.Rename(next, s.o.Dir); err != nil {
		return fail(err)
	}
	s.link = true
	return spot{top.id, at}, nil
}

// checkLink makes sure that what is at Dir is the link that we put there.
func (s *symlink) checkLink() error {
	target, err := os.Readlink(s.o.Dir)
	if err != nil || filepath.Dir(target) != s.super {
		return namespace.E(namespace.Exist, "link", s.o.Dir, errors.New("somebody replaced the link by something else"))
	}
	return nil
}

func (s *symlink) hide(bool) error {
	if !s.link {
		return nil
	}
	s.link = false
	if s.checkLink() != nil {
		return nil // there is nothing of ours to take away
	}
	if err := os.Remove(s.o.Dir); err != nil {
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
	err := detach(s.super)
	if top, terr := topMount(s.super); terr == nil && top == nil {
		err = nil // it was not mounted, or somebody was faster
	}
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
