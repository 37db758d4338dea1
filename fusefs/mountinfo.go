package fusefs

import (
	"bytes"
	"errors"
	"fmt"
	"os"
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

// mountLines reads mountinfo.
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
	if l := byID(lines, id); l != nil {
		return l.device, true
	}
	return "", false
}

// byID returns the line of a mount, nil if it is none of this mount namespace.
func byID(lines []mountLine, id uint64) *mountLine {
	for i := range lines {
		if lines[i].id == id {
			return &lines[i]
		}
	}
	return nil
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

// topMount returns the mount that covers dir itself, nil if there is none. It asks no file system:
// the path is walked with O_PATH, the last component is not followed.
func topMount(dir string) (*mountLine, error) {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	if err != nil {
		return nil, namespace.E(mountKind(err), "look at", dir, err)
	}
	defer unix.Close(fd)
	id, err := mountIDOf(fd)
	if err != nil {
		return nil, namespace.E(namespace.KindOf(err), "look at", dir, err)
	}
	path, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd)) // without links on the way
	if err != nil {
		return nil, namespace.E(namespace.KindOf(err), "look at", dir, err)
	}
	lines, err := mountLines()
	if err != nil {
		return nil, err
	}
	if l := byID(lines, id); l != nil && l.dir == path {
		return l, nil
	}
	return nil, nil
}
