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

func TestPendingDir(t *testing.T) {
	for name, prepare := range map[string]func(string) error{
		"absent": func(string) error { return nil },
		"empty":  func(dir string) error { return os.Mkdir(dir, 0o755) },
		"mounted": func(dir string) error {
			if err := os.Mkdir(dir, 0o755); err != nil {
				return err
			}
			t.Cleanup(func() { _ = syscall.Unmount(dir, 0) })
			return syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=64k")
		},
	} {
		dest := filepath.Join(t.TempDir(), "dest")
		if err := prepare(dest); err != nil {
			t.Fatal(err)
		}
		for _, commit := range []bool{false, true} {
			p, err := disk.NewDir("test", dest)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.MkdirAll(filepath.Join(p.Path, "sub"), 0o500); err != nil {
				t.Fatal(err)
			}
			if commit {
				if err := p.Commit(); err != nil {
					t.Errorf("%s: %v", name, err)
				}
			}
			p.Discard()
			names, _ := os.ReadDir(dest)
			if (len(names) == 1) != commit {
				t.Errorf("%s: it holds %v, committed %v", name, names, commit)
			}
			if beside, _ := os.ReadDir(filepath.Dir(dest)); len(beside) > 1 {
				t.Errorf("%s: left behind: %v", name, beside)
			}
		}
		if _, err := disk.NewDir("test", dest); !namespace.IsKind(err, namespace.Exist) {
			t.Errorf("%s: over what is there: %v", name, err)
		}
	}
	if _, err := disk.NewDir("test", filepath.Join(t.TempDir(), "no", "parent")); !namespace.IsKind(err, namespace.NotExist) {
		t.Errorf("no parent: %v", err)
	}
}

func TestPendingFile(t *testing.T) {
	dest := filepath.Join(t.TempDir(), "dest")
	for _, commit := range []bool{false, true} {
		f, err := disk.NewFile("test", dest, 0o640)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Write([]byte("text")); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(dest); err == nil {
			t.Error("it is there before it is complete")
		}
		if commit {
			if err := f.Commit(); err != nil {
				t.Error(err)
			}
		}
		f.Discard()
		if b, _ := os.ReadFile(dest); (string(b) == "text") != commit {
			t.Errorf("%q, committed %v", b, commit)
		}
		if beside, _ := os.ReadDir(filepath.Dir(dest)); len(beside) > 1 {
			t.Errorf("left behind: %v", beside)
		}
	}
	if _, err := disk.NewFile("test", dest, 0o640); !namespace.IsKind(err, namespace.Exist) {
		t.Errorf("over what is there: %v", err)
	}
	null, err := disk.NewFile("test", os.DevNull, 0o640)
	if err != nil {
		t.Fatal(err)
	}
	if err := null.Commit(); err != nil {
		t.Error(err)
	}
	null.Discard()
	if info, err := os.Stat(os.DevNull); err != nil || info.Mode().IsRegular() {
		t.Errorf("the device is gone: %v", err)
	}
}
