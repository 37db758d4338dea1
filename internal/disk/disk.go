// Package disk replaces small files so that a crash leaves the old or the new one, never a part.
package disk

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"

	"github.com/google/renameio/v2"

	"coppice.dev/coppice/namespace"
)

// Replace writes b to path, durably: it returns when file and directory entry are on disk.
// Missing directories are made with mode 0700. Kinds: Limit (disk full), Denied, Internal.
func Replace(path string, b []byte, perm os.FileMode) error {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return Error("create", dir, err)
	}
	if err := renameio.WriteFile(path, b, perm); err != nil {
		return Error("write", path, err)
	}
	// renameio syncs the file, not the directory that names it.
	return syncDir(dir)
}

// Error gives an error of the operating system the Kind it has for a person: a full disk or an
// exhausted quota is a Limit.
func Error(op, path string, err error) error {
	kind := namespace.KindOf(err)
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		kind = namespace.Limit
		err = namespace.WithHint(err, "make room on the file system of "+filepath.Dir(path)+" and try again")
	}
	return namespace.E(kind, op, path, err)
}
