package disk_test

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"coppice.dev/coppice/internal/disk"
	"coppice.dev/coppice/namespace"
)

func TestReplace(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a", "b")
	for _, want := range []string{"one", "two"} {
		if err := disk.Replace(path, []byte(want), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, _ := os.ReadFile(path); string(got) != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	if names, _ := os.ReadDir(filepath.Dir(path)); len(names) != 1 {
		t.Errorf("left behind: %v", names)
	}
}

func TestFullDiskIsALimit(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	path := filepath.Join(dir, "f")
	if err := disk.Replace(path, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := disk.Replace(path, make([]byte, 1<<20), 0o600); !namespace.IsKind(err, namespace.Limit) {
		t.Errorf("a full disk: %v", err)
	}
	if got, _ := os.ReadFile(path); string(got) != "old" {
		t.Errorf("the old file is %q", got)
	}
}
