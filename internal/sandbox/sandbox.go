// Package sandbox runs a command in a writable view of a directory: an overlay as its root, with mount,
// process, host-name and, if wanted, network namespaces of its own. Nothing of it outlives its processes:
// mounts are in namespaces that go with them, and every process dies with the one that started it.
//
// # Processes
//
//	caller ──Enter──► stage: private mounts, may be root of a user namespace; serves and mounts the view
//	                  stage ──Run──► init, pid 1: pivots into the view, starts the command, reaps
//	                                 init ──► the command
//
// Each is the running program again: the caller's main must call [Init] when [IsInit] says so, before
// anything else. When init ends the kernel ends whatever the command left running.
package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"coppice.dev/coppice/namespace"
)

// Bind shows a directory or file of this machine, Source, at the path Target of the view, where
// something must be already. Both are absolute.
type Bind struct {
	Source   string `json:"source"`
	Target   string `json:"target"`
	ReadOnly bool   `json:"read_only,omitempty"`
}

// Spec says what to run and in what. The zero value of what is optional is the safe choice.
type Spec struct {
	Root    string   `json:"root"` // directory: the view
	Command []string `json:"command"`
	Env     []string `json:"env"`
	Dir     string   `json:"dir,omitempty"`  // of work, in the view; "/" if empty
	User    string   `json:"user,omitempty"` // NAME or UID, with :GID if need be; root if empty
	Network bool     `json:"network,omitempty"`
	Binds   []Bind   `json:"binds,omitempty"`
	// Outside runs the command on this machine's root, with the view as its directory of work: for trees
	// that hold no shell. User is one of this machine then.
	Outside bool `json:"outside,omitempty"`
	// Resolver is the content of /etc/resolv.conf while the command runs, for Network.
	Resolver []byte `json:"resolver,omitempty"`
}

// ExitError says that the command ran and failed. Code is its exit status, 128 and the number of the
// signal if that ended it.
type ExitError struct{ Code int }

// Error implements error.
func (e *ExitError) Error() string { return fmt.Sprintf("the command ended with status %d", e.Code) }

const (
	stageEnv = "COPPICE_SANDBOX_STAGE"
	initArg  = "sandbox-init"
	// endWithin is how long a process may take to clean up when it is asked to end.
	endWithin = 15 * time.Second
)

// IsStage reports whether this process is the one that Enter started.
func IsStage() bool { return os.Getenv(stageEnv) != "" }

// IsInit reports whether this process is pid 1 of a sandbox: main must call [Init] then.
func IsInit(args []string) bool { return len(args) == 2 && args[1] == initArg && os.Getpid() == 1 }

// Enter runs this program again, with the same arguments, standard streams and environment, with mounts
// of its own; as root of a user namespace unless it is root already. It returns its exit code. When ctx
// ends it is asked to end (SIGTERM) and waited for; when this process dies, it dies.
// Kinds: Denied (the kernel does not allow it), Internal.
func Enter(ctx context.Context) (int, error) {
	cmd := exec.CommandContext(ctx, "/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), stageEnv+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = endWithin
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	if os.Geteuid() != 0 {
		asRoot(cmd)
	}
	// The signal of the parent's death is that of the thread which started the child.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit) && exit.Exited():
		return exit.ExitCode(), nil
	case errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.ENOSPC):
		return 0, namespace.WithHint(namespace.E(namespace.Denied, "start", "sandbox", err),
			"the kernel allows no user namespace here; run as root")
	case err != nil:
		return 0, namespace.E(namespace.Internal, "run", "sandbox", err)
	}
	return 0, nil
}

// asRoot makes cmd root of a user namespace. With newuidmap and a range in /etc/subuid, by way of
// unshare, all owners can be written; without, only one.
func asRoot(cmd *exec.Cmd) {
	if unshare, err := exec.LookPath("unshare"); err == nil && hasSubids() {
		self, args := cmd.Path, cmd.Args
		if exe, err := os.Readlink(self); err == nil {
			self = exe
		}
		cmd.Path, cmd.SysProcAttr.Cloneflags = unshare, 0
		cmd.Args = append([]string{"unshare", "--user", "--map-root-user", "--map-auto", "--mount", "--propagation", "private", "--", self}, args[1:]...)
		return
	}
	cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
	cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Geteuid(), Size: 1}}
	cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getegid(), Size: 1}}
}

// hasSubids reports whether this user may map a range of owners.
func hasSubids() bool {
	if _, err := exec.LookPath("newuidmap"); err != nil {
		return false
	}
	b, err := os.ReadFile("/etc/subuid")
	if err != nil {
		return false
	}
	id := fmt.Sprintf("%d:", os.Geteuid())
	name := os.Getenv("USER") + ":"
	for line := range strings.Lines(string(b)) {
		if strings.HasPrefix(line, id) || name != ":" && strings.HasPrefix(line, name) {
			return true
		}
	}
	return false
}

// Stage makes this process, which Enter started, ready: it dies with its parent, and what it mounts is
// nobody else's. Kinds: Denied, Internal.
func Stage() error {
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		return namespace.E(namespace.Internal, "prepare", "sandbox", err)
	}
	if err := os.Unsetenv(stageEnv); err != nil {
		return namespace.E(namespace.Internal, "prepare", "sandbox", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return namespace.E(namespace.Denied, "make private", "mounts", err)
	}
	return nil
}

// Overlay mounts the directory lower at root, writable: what changes goes to upper. work is an empty
// directory on upper's file system, which must keep extended attributes. Nothing is synced to the
// disk: it is for one transaction, whose result is stored elsewhere. Kinds: Denied, Invalid, Internal.
func Overlay(lower, upper, work, root string) error {
	escape := strings.NewReplacer(`\`, `\\`, ",", `\,`, ":", `\:`)
	options := "lowerdir=" + escape.Replace(lower) + ",upperdir=" + escape.Replace(upper) + ",workdir=" + escape.Replace(work) +
		",index=off,volatile"
	if InUserNamespace() {
		options += ",userxattr" // which excludes the other two
	} else {
		options += ",redirect_dir=off,metacopy=off"
	}
	err := unix.Mount("overlay", root, "overlay", 0, options)
	switch {
	case errors.Is(err, unix.EPERM):
		return namespace.WithHint(namespace.E(namespace.Denied, "mount overlay on", root, err), "this kernel lets only root do so")
	case errors.Is(err, unix.EINVAL):
		return namespace.WithHint(namespace.E(namespace.Invalid, "mount overlay on", root, err),
			"the scratch directory must be on a file system that can be an overlay's upper one, as ext4, xfs, btrfs or tmpfs")
	case err != nil:
		return namespace.E(namespace.Internal, "mount overlay on", root, err)
	}
	return nil
}

// InUserNamespace reports whether root here is not the machine's.
func InUserNamespace() bool {
	b, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		return false
	}
	f := strings.Fields(string(b))
	return len(f) != 3 || f[1] != "0" || f[2] != "4294967295"
}

// Run runs the command of s and returns when it, and everything it started, has ended. stdout takes the
// command's standard output; its other streams are this process' own. When ctx ends, everything is
// killed. Kinds: Invalid (the spec: no such command, user, target), Denied, Internal, Canceled; an
// *ExitError if the command failed.
func Run(ctx context.Context, s Spec, stdout *os.File) error {
	if b, err := os.ReadFile("/etc/resolv.conf"); err == nil && s.Network {
		s.Resolver = b
	}
	spec, err := json.Marshal(s)
	if err != nil {
		return namespace.E(namespace.Internal, "encode", "sandbox", err)
	}
	in, out, err := os.Pipe()
	if err != nil {
		return namespace.E(namespace.Internal, "start", "sandbox", err)
	}
	defer in.Close()
	replyIn, replyOut, err := os.Pipe()
	if err != nil {
		out.Close()
		return namespace.E(namespace.Internal, "start", "sandbox", err)
	}
	defer replyIn.Close()
	cmd := exec.CommandContext(ctx, "/proc/self/exe", initArg)
	cmd.Args[0] = os.Args[0]
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, stdout, os.Stderr
	cmd.ExtraFiles = []*os.File{in, replyOut}
	flags := uintptr(unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC)
	if !s.Network {
		flags |= unix.CLONE_NEWNET
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: flags, Pdeathsig: syscall.SIGKILL}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err = cmd.Start()
	replyOut.Close()
	if err != nil {
		out.Close()
		return namespace.E(namespace.Denied, "start", "sandbox", err)
	}
	_, werr := out.Write(spec)
	out.Close()
	var reply reply
	derr := json.NewDecoder(replyIn).Decode(&reply)
	err = cmd.Wait()
	switch {
	case ctx.Err() != nil:
		return namespace.E(namespace.Canceled, "run", s.Command[0], ctx.Err())
	case werr != nil || derr != nil:
		return namespace.E(namespace.Internal, "run", s.Command[0], errors.Join(werr, derr, err))
	}
	return reply.err(s.Command[0])
}

// reply is what init says when it ends.
type reply struct {
	Kind    string `json:"kind,omitempty"` // of what went wrong before the command ran
	Message string `json:"message,omitempty"`
	Hint    string `json:"hint,omitempty"`
	Status  int    `json:"status"`
	Left    int    `json:"left,omitempty"` // processes that the command left running
}

func (r reply) err(command string) error {
	if r.Left > 0 {
		fmt.Fprintf(os.Stderr, "%d processes that the command left running were ended\n", r.Left)
	}
	switch {
	case r.Kind != "":
		return namespace.WithHint(namespace.E(namespace.ParseKind(r.Kind), "", "", errors.New(r.Message)), r.Hint)
	case r.Status != 0:
		return namespace.E(namespace.Invalid, "run", command, &ExitError{r.Status})
	}
	return nil
}
