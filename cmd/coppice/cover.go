package main

import (
	"errors"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"coppice.dev/coppice/internal/sandbox"
	"coppice.dev/coppice/namespace"
)

// runOver runs a command that sees the mount at src in the place of dir, with what is mounted below dir;
// nobody else does. The command has the terminal, and its signals. Kinds: Invalid (no such command, or an
// *sandbox.ExitError: it failed), Denied.
func runOver(src, dir string, command []string, stdout *os.File) error {
	path, err := exec.LookPath(command[0])
	if err != nil {
		return namespace.E(namespace.Invalid, "find", command[0], errors.New("no such program"))
	}
	cmd := exec.Command(path)
	cmd.Args = command
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, stdout, os.Stderr
	if wd, err := os.Getwd(); err == nil && (wd == dir || strings.HasPrefix(wd, dir+"/")) {
		cmd.Dir = wd // by its name, which means the private mount then
	}
	// The terminal sends interrupts to the command as well, which decides what they mean.
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM, syscall.SIGHUP)
	defer signal.Stop(signals)
	started := make(chan error)
	go func() {
		// The thread is in a mount namespace of its own from here on: it is never unlocked, so it ends with
		// this goroutine, and nothing else runs on it.
		runtime.LockOSThread()
		err := coverPrivately(src, dir)
		if err == nil {
			if err = cmd.Start(); err != nil {
				err = namespace.E(namespace.Invalid, "start", command[0], err)
			}
		}
		started <- err
	}()
	if err := <-started; err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for {
		select {
		case s := <-signals:
			if s == syscall.SIGTERM || s == syscall.SIGHUP { // these come to one process
				_ = cmd.Process.Signal(s)
			}
		case err := <-ended:
			return exited(command[0], err)
		}
	}
}

// exited turns the end of a command into what `tree patch` makes of it.
func exited(command string, err error) error {
	var failed *exec.ExitError
	if !errors.As(err, &failed) {
		if err != nil {
			err = namespace.E(namespace.Internal, "wait for", command, err)
		}
		return err
	}
	ws, ok := failed.Sys().(syscall.WaitStatus)
	code := failed.ExitCode()
	if ok && ws.Signaled() {
		code = 128 + int(ws.Signal())
	}
	return namespace.E(namespace.Invalid, "run", command, &sandbox.ExitError{Code: code})
}

// coverPrivately puts the mount at src over dir in a mount namespace of this thread alone.
func coverPrivately(src, dir string) error {
	denied := func(what, subject string, err error) error {
		return namespace.WithHint(namespace.E(namespace.Denied, what, subject, err), "recording needs root")
	}
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return denied("leave", "mount namespace", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return denied("make private", "mounts", err)
	}
	below, err := mountsUnder(dir)
	if err != nil {
		return err
	}
	clones := make([]int, len(below))
	for i, path := range below {
		if clones[i], err = unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC); err != nil {
			return denied("clone", path, err)
		}
		defer unix.Close(clones[i])
	}
	if err := unix.Mount(src, dir, "", unix.MS_BIND, ""); err != nil {
		return denied("mount on", dir, err)
	}
	for i, path := range below {
		if err := unix.MoveMount(clones[i], "", unix.AT_FDCWD, path, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
			return denied("mount on", path, err)
		}
	}
	return nil
}

// mountsUnder returns the mount points below dir, those above first. A name with a space is left out.
func mountsUnder(dir string) ([]string, error) {
	b, err := os.ReadFile("/proc/thread-self/mountinfo")
	if err != nil {
		return nil, namespace.E(namespace.KindOf(err), "read", "mountinfo", err)
	}
	var all []string
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 5 || !strings.HasPrefix(f[4], dir+"/") || strings.Contains(f[4], `\`) {
			continue
		}
		all = append(all, filepath.Clean(f[4]))
	}
	return all, nil
}
