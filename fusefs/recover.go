package fusefs

import (
	"errors"
	"os"
	"path/filepath"
	"strings"

	"coppice.dev/coppice/namespace"
)

// Recover takes away what a daemon that died left at dir: mounts that answer nothing, or a link into
// one. A mount of ours that lives is Exist; what is not ours is left alone. Kinds: Exist, Denied,
// Unavailable.
func Recover(dir string) error {
	if target, err := os.Readlink(dir); err == nil {
		return recoverLink(dir, target)
	}
	for {
		top, err := topMount(dir)
		if err != nil || top == nil || top.fsType != fsType {
			return err
		}
		if alive(dir) {
			return namespace.WithHint(namespace.E(namespace.Exist, "mount", dir, errors.New("it is a mount of coppice already")),
				"`coppice unmount "+dir+"` ends it")
		}
		if err := detach(dir); err != nil {
			return err
		}
	}
}

// recoverLink removes a link of ours whose mount is dead or gone, and makes the directory again.
func recoverLink(dir, target string) error {
	super := filepath.Dir(target)
	if !strings.HasPrefix(filepath.Base(super), superPrefix) {
		return nil
	}
	top, err := topMount(super)
	if err != nil {
		return err
	}
	if top != nil && top.fsType == fsType {
		if alive(super) {
			return namespace.WithHint(namespace.E(namespace.Exist, "mount", dir, errors.New("it is a mount of coppice already")),
				"`coppice unmount "+dir+"` ends it")
		}
		if err := detach(super); err != nil {
			return err
		}
	}
	_ = os.Remove(super)
	if err := os.Remove(dir); err != nil {
		return namespace.E(namespace.KindOf(err), "clean up", dir, err)
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		return namespace.E(namespace.KindOf(err), "clean up", dir, err)
	}
	return nil
}
