// Package launch starts programs that lie, or work, on a mount which this process serves.
//
// The Go runtime starts a program from a child that shares its memory, while the thread that made the child
// waits and keeps its processor. If the child has to read the mount before its execve returns, to change to
// a directory, to find the program, to read its first page, the request goes to the very process that
// waits: as soon as it collects garbage it stops for good, and everybody who reads the mount with it. So
// what is started is this program again, which lies elsewhere, and it goes to the mount.
package launch

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
)

// argument tells a started program what it is.
const argument = "launch-in"

// mark is in the environment of a started program until it has become another. Without it a program whose
// main does not call Run would start itself over and over.
const mark = "COPPICE_LAUNCHED"

// Exit codes of what could not be started, as a shell's.
const (
	notStarted = 126
	notFound   = 127
)

// Command returns a command that runs argv in dir, both of which may be on a mount that this process serves;
// it asks neither. Its Env is set: add to that. The caller's main must call [Run] when [Is] says so. Like a shell's child it exits with
// 127 if there is no such program and 126 if it cannot be started, with a line on standard error.
func Command(ctx context.Context, dir string, argv ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "/proc/self/exe", append([]string{argument, dir}, argv...)...)
	cmd.Args[0], cmd.Env = os.Args[0], append(os.Environ(), mark+"=1")
	if os.Getenv(mark) != "" {
		cmd.Err = errors.New("this program was started to start another, and did not")
	}
	return cmd
}

// Is reports whether a program with these arguments was started by Command.
func Is(args []string) bool { return len(args) > 3 && args[1] == argument }

// Run becomes the program. It returns an exit code if that fails.
func Run(args []string) int {
	dir, argv := args[2], args[3:]
	code, err := notStarted, os.Unsetenv(mark)
	if err == nil {
		err = os.Chdir(dir)
	}
	if err == nil {
		var path string
		if path, err = find(argv[0]); err == nil {
			err = syscall.Exec(path, argv, os.Environ())
		} else {
			code = notFound
		}
	}
	fmt.Fprintf(os.Stderr, "%s: %v\n", argv[0], err)
	return code
}

// find looks a program up as a shell does; a path relative to the directory is meant as it is.
func find(name string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	path, err := exec.LookPath(name)
	if errors.Is(err, exec.ErrDot) {
		err = nil
	}
	return path, err
}
