package launch

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestMain(m *testing.M) {
	if Is(os.Args) {
		os.Exit(Run(os.Args))
	}
	os.Exit(m.Run())
}

func TestCommand(t *testing.T) {
	dir := t.TempDir()
	for name, mode := range map[string]os.FileMode{"tool": 0o755, "text": 0o644} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\npwd\necho \"$1\"\nexit 3\n"), mode); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		argv []string
		code int
		says string
	}{
		{[]string{"./tool", "a b"}, 3, dir + "\na b\n"},
		{[]string{"sh", "-c", "pwd; exit 4"}, 4, dir + "\n"},
		{[]string{"true"}, 0, ""},
		{[]string{"./text"}, notStarted, "./text: permission denied\n"},
		{[]string{"no-such-program"}, notFound, "not found"},
	} {
		cmd := Command(t.Context(), dir, c.argv...)
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := cmd.Run(); cmd.ProcessState == nil || cmd.ProcessState.ExitCode() != c.code || !strings.Contains(out.String(), c.says) {
			t.Errorf("%v: %v, %q", c.argv, err, out.String())
		}
	}
	cmd := Command(t.Context(), filepath.Join(dir, "gone"), "true")
	if err := cmd.Run(); err == nil || cmd.ProcessState.ExitCode() != notStarted {
		t.Errorf("a directory that is not there: %v", err)
	}
}

func TestCommandOfWhoDoesNotRun(t *testing.T) {
	t.Setenv(mark, "1")
	if err := Command(t.Context(), "/", "true").Run(); err == nil {
		t.Error("it starts itself again")
	}
}
