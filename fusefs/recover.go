package fusefs

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"coppice.dev/coppice/namespace"
)

// mountLine is what we need of a line of mountinfo.
type mountLine struct {
	id     uint64
	device string // MAJOR:MINOR
	dir    string
	fsType string
}

// mountLines reads mountinfo, in the order of mounting.
func mountLines() ([]mountLine, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, namespace.E(namespace.KindOf(err), "read", "mountinfo", err)
	}
	var all []mountLine
	for line := range bytes.Lines(b) {
		head, tail, ok := strings.Cut(string(line), " - ")
		f := strings.Fields(head)
		if !ok || len(f) < 5 {
			continue
		}
		id, err := strconv.ParseUint(f[0], 10, 64)
		if err != nil {
			continue
		}
		typ, _, _ := strings.Cut(tail, " ")
		all = append(all, mountLine{id, f[2], unescape(f[4]), typ})
	}
	return all, nil
}

// unescape undoes the octal escapes of mountinfo (\040 for a space).
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// deviceOf returns the device number of a mount, as MAJOR:MINOR.
func deviceOf(id uint64) (string, bool) {
	lines, err := mountLines()
	if err != nil {
		return "", false
	}
	for _, l := range lines {
		if l.id == id {
			return l.device, true
		}
	}
	return "", false
}

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
		if err := unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			if errors.Is(err, unix.EPERM) {
				return fusermountDetach(dir)
			}
			return namespace.E(mountKind(err), "clean up", dir, err)
		}
	}
}

// topMount returns the mount that covers dir itself, nil if there is none.
func topMount(dir string) (*mountLine, error) {
	lines, err := mountLines()
	if err != nil {
		return nil, err
	}
	for i := len(lines) - 1; i >= 0; i-- {
		if lines[i].dir == dir {
			return &lines[i], nil
		}
	}
	return nil, nil
}

// alive asks the file system at dir something that the kernel cannot answer from its caches.
func alive(dir string) bool {
	var st unix.Statfs_t
	return !errors.Is(unix.Statfs(dir, &st), unix.ENOTCONN)
}

// recoverLink removes a link of ours whose mount is dead or gone, and makes the directory again.
func recoverLink(dir, target string) error {
	super := filepath.Dir(target)
	if !strings.HasPrefix(filepath.Base(super), "sb-") {
		return nil
	}
	top, err := topMount(super)
	if err != nil {
		return err
	}
	if top != nil {
		if alive(super) {
			return namespace.WithHint(namespace.E(namespace.Exist, "mount", dir, errors.New("it is a mount of coppice already")),
				"`coppice unmount "+dir+"` ends it")
		}
		if err := fusermountDetach(super); err != nil {
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
