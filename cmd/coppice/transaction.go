package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"coppice.dev/coppice/builder"
	"coppice.dev/coppice/fusefs"
	"coppice.dev/coppice/internal/disk"
	"coppice.dev/coppice/internal/sandbox"
	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/trust"
)

// scratch is a directory that holds what a transaction writes until it is stored:
//
//	lock    held while the transaction lives, so that others can tell what a crash left
//	lower   the tree, mounted
//	upper   what changed
//	work    of the overlay
//	view    lower with upper over it
type scratch string

const (
	scratchEnv    = "COPPICE_SCRATCH"
	scratchPrefix = "coppice-patch-"
)

func (s scratch) path(name string) string { return filepath.Join(string(s), name) }

// clear removes what belongs to root of the user namespace, if that is who made it. Best effort: the
// next transaction tries again.
func (s scratch) clear() {
	for _, name := range []string{"upper", "work"} {
		_ = os.RemoveAll(s.path(name))
	}
}

// enterScratch makes a scratch directory below base and runs this command again in a sandbox, which uses
// it. What crashed transactions left below base is removed.
func enterScratch(ctx context.Context, base string) error {
	if base == "" {
		base = "/var/tmp"
	}
	sweepScratch(base)
	dir, err := os.MkdirTemp(base, scratchPrefix)
	if err != nil {
		return disk.Error("make scratch directory in", base, err)
	}
	defer os.RemoveAll(dir)
	if dir, err = filepath.Abs(dir); err != nil {
		return disk.Error("find", dir, err)
	}
	lock, err := lockScratch(dir)
	if err != nil {
		return disk.Error("lock", dir, err)
	}
	defer lock.Close()
	if err := os.Setenv(scratchEnv, dir); err != nil {
		return disk.Error("name", dir, err)
	}
	code, err := sandbox.Enter(ctx)
	if err == nil && code != 0 {
		err = exitCode(code)
	}
	return err
}

func lockScratch(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// sweepScratch removes what transactions that were killed left below base. Their mounts went with them.
func sweepScratch(base string) {
	left, _ := filepath.Glob(filepath.Join(base, scratchPrefix+"*"))
	for _, dir := range left {
		info, err := os.Lstat(dir)
		if err != nil || !info.IsDir() || int(info.Sys().(*syscall.Stat_t).Uid) != os.Geteuid() ||
			time.Since(info.ModTime()) < time.Minute { // its maker may not have locked it yet
			continue
		}
		if lock, err := lockScratch(dir); err == nil {
			_ = os.RemoveAll(dir)
			lock.Close()
		}
	}
}

// transaction is a writable view of a tree, in the sandbox's stage.
type transaction struct {
	*workshop
	a       *app
	pub     *trust.Publisher
	stored  *builder.Stored
	base    namespace.TreeVersion
	version namespace.Version // of base
	newest  uint64            // number of the newest version when it began
	latest  time.Time         // modification time that nothing may exceed; zero: any
	scratch scratch
}

func (a *app) openTransaction(ctx context.Context, target string) (*transaction, error) {
	v, err := namespace.ParseVersion(target)
	if err != nil {
		return nil, err
	}
	w, err := a.openWorkshop(ctx)
	if err != nil {
		return nil, err
	}
	p, err := w.publisher()
	if err != nil {
		return nil, err
	}
	tree, err := w.refs.Tree(ctx, v.Name)
	if err != nil {
		return nil, err
	}
	base, v, err := w.refs.ResolveTree(ctx, v)
	if err != nil {
		return nil, err
	}
	return &transaction{workshop: w, a: a, pub: p, stored: builder.NewStored(w.origin), base: base, version: v,
		newest: uint64(len(tree.Versions)), scratch: scratch(os.Getenv(scratchEnv))}, nil
}

// change shows the view and runs the command of s in it. When it returns, nothing is mounted.
func (t *transaction) change(ctx context.Context, s sandbox.Spec) error {
	for _, name := range []string{"lower", "upper", "work", "view", "run"} {
		if err := os.Mkdir(t.scratch.path(name), 0o700); err != nil {
			return disk.Error("make", t.scratch.path(name), err)
		}
	}
	real := !sandbox.InUserNamespace()
	server, err := fusefs.Mount(ctx, fusefs.Options{Dir: t.scratch.path("lower"), Source: t.stored,
		RunDir: t.scratch.path("run"), Name: t.version.String(), AllowSuid: real, AllowDev: real})
	if err != nil {
		return err
	}
	_, err = server.Activate(ctx, t.base.Root, t.version.String())
	if err == nil {
		err = t.runOver(ctx, s)
	}
	if uerr := server.Unmount(true); err == nil {
		err = uerr
	}
	server.Wait()
	return err
}

// runOver runs the command in an overlay over the mounted tree.
func (t *transaction) runOver(ctx context.Context, s sandbox.Spec) error {
	if err := t.rootAttributes(ctx); err != nil {
		return err
	}
	s.Root = t.scratch.path("view")
	if err := sandbox.Overlay(t.scratch.path("lower"), t.scratch.path("upper"), t.scratch.path("work"), s.Root); err != nil {
		return err
	}
	stdout := os.Stdout
	if t.a.json { // which is for the result
		stdout = os.Stderr
	}
	err := sandbox.Run(ctx, s, stdout)
	if uerr := unix.Unmount(s.Root, unix.MNT_DETACH); err == nil && uerr != nil {
		err = namespace.E(namespace.Internal, "unmount", s.Root, uerr)
	}
	return err
}

// rootAttributes gives the upper directory those of the tree's root, which it stands for.
func (t *transaction) rootAttributes(ctx context.Context) error {
	c, err := t.stored.Catalog(ctx, t.base.Root)
	if err != nil {
		return err
	}
	upper, e := t.scratch.path("upper"), c.Entry(0)
	for _, x := range c.Xattrs(0) {
		if err := unix.Setxattr(upper, x.Name, x.Value, 0); err != nil && !sandbox.InUserNamespace() {
			return disk.Error("set "+x.Name+" of", upper, err)
		}
	}
	times := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Sec: e.MtimeSec, Nsec: int64(e.MtimeNsec)}}
	err = errors.Join(os.Chown(upper, int(e.UID), int(e.GID)), unix.Chmod(upper, uint32(e.Mode)),
		unix.UtimesNanoAt(unix.AT_FDCWD, upper, times, unix.AT_SYMLINK_NOFOLLOW))
	switch {
	case errors.Is(err, unix.EINVAL) && sandbox.InUserNamespace(): // the owner is not mapped
		return namespace.WithHint(
			namespace.E(namespace.Denied, "patch", t.version.String(), fmt.Errorf("its root belongs to %d:%d, whom this user may not stand for", e.UID, e.GID)),
			"give this user a range of ids in /etc/subuid and /etc/subgid and install newuidmap, or run as root")
	case err != nil:
		return disk.Error("set attributes of", upper, err)
	}
	return nil
}

// store stores what the upper directory holds, upon the base.
func (t *transaction) store(ctx context.Context, bar *bar) (builder.Result, error) {
	return builder.Import(ctx, t.origin, builder.OverlaySource{Base: t.base.Root, Loader: t.stored, Upper: t.scratch.path("upper"), Latest: t.latest},
		builder.Options{Previous: t.base.Root, Loader: t.stored, Progress: bar.Import,
			Warn: func(path, reason string) { bar.Note("warning: " + path + ": " + reason) }})
}
