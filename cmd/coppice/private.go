package main

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"coppice.dev/coppice/internal/disk"
	"coppice.dev/coppice/internal/privilege"
	"coppice.dev/coppice/namespace"
)

// daemonCaps is what stays of root's privileges in a process that serves mounts, and what for:
//
//	CAP_SYS_ADMIN        the mount, the swap and the end of it: fsmount, open_tree, move_mount, umount
//	CAP_DAC_READ_SEARCH  mount points and origins in directories that root is not let into by mode,
//	                     and /proc/PID/fd of other users, to tell who still uses an old version
//	CAP_SYS_PTRACE       the links there
//
// What goes, among others: writing what others own, changing owners and modes, other users' ids,
// signals, the network's configuration, raw devices, kernel modules; and setuid programs gain nothing
// when it starts them. Without root nothing is given up: fusermount3, which mounts then, is setuid.
var daemonCaps = []uintptr{unix.CAP_SYS_ADMIN, unix.CAP_DAC_READ_SEARCH, unix.CAP_SYS_PTRACE}

// shedPrivileges gives up all others, for good. It may start the program anew.
func shedPrivileges() error { return privilege.Shed(daemonCaps...) }

// checkCacheDir makes the cache's directory, or refuses one in which somebody else could put things in
// the way. That others may list it is no harm: all that is in it is its owner's alone, since the files
// of a tree are there without the permissions that the mount would hold their readers to.
func checkCacheDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return disk.Error("create", dir, err)
	}
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return disk.Error("open cache", dir, err)
	}
	why := ""
	switch uid := os.Geteuid(); {
	case int(st.Uid) != uid && st.Uid != 0:
		why = fmt.Sprintf("it belongs to user %d", st.Uid)
	case st.Mode&0o022 != 0:
		why = fmt.Sprintf("its mode is %#o: others can write there", st.Mode&0o7777)
	default:
		return nil
	}
	return namespace.WithHint(namespace.E(namespace.Denied, "open cache", dir, errors.New(why)), "name a directory of your own, mode 0700, with --cache")
}
