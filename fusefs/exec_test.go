package fusefs_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"coppice.dev/coppice/fusefs"
)

// TestDenyExec executes a program of a tree that may not be executed, in both modes.
func TestDenyExec(t *testing.T) {
	for _, mode := range []string{fusefs.ModeBeneath, fusefs.ModeSymlink} {
		t.Run(mode, func(t *testing.T) {
			undo := fusefs.OldKernel(mode == fusefs.ModeSymlink, false)
			defer undo()
			for _, deny := range []bool{false, true} {
				src := t.TempDir()
				if err := os.WriteFile(filepath.Join(src, "tool"), []byte("#!/bin/sh\nexit 0\n"), 0o755); err != nil {
					t.Fatal(err)
				}
				m := newMemory()
				s, mnt := mount(t, m, func(o *fusefs.Options) { o.DenyExec = deny })
				if got := s.Status().Mode; got != mode {
					t.Fatalf("mode %s", got)
				}
				activate(t, s, m.add(t, m.importDir(t, src)), "t@1")
				err := exec.Command(filepath.Join(mnt, "tool")).Run()
				if deny != errors.Is(err, syscall.EACCES) || !deny && err != nil {
					t.Errorf("denied %v: %v", deny, err)
				}
			}
		})
	}
}
