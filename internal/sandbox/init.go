package sandbox

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"coppice.dev/coppice/namespace"
)

// Init is the life of pid 1 of a sandbox: it makes the view the root, runs the command and returns its
// exit code when it ends. File 3 is the spec, file 4 takes the reply.
func Init() int {
	// A handler, so that the command starts with the defaults: it decides what an interrupt means.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM, syscall.SIGHUP)
	in, out := os.NewFile(3, "spec"), os.NewFile(4, "reply")
	unix.CloseOnExec(3)
	unix.CloseOnExec(4)
	var s Spec
	r := reply{}
	err := json.NewDecoder(in).Decode(&s)
	if err == nil {
		r.Status, r.Left, err = s.run()
	}
	if err != nil {
		r = reply{Kind: namespace.KindOf(err).String(), Message: err.Error(), Hint: namespace.HintOf(err), Status: 1}
	}
	_ = json.NewEncoder(out).Encode(r) // whoever does not get it says so
	return r.Status
}

// run enters the view, starts the command and reaps until it ends.
func (s *Spec) run() (status, left int, err error) {
	if err := s.enter(); err != nil {
		return 0, 0, err
	}
	path, err := s.lookPath()
	if err != nil {
		return 0, 0, err
	}
	attr := &syscall.ProcAttr{Env: s.Env, Files: []uintptr{0, 1, 2}, Sys: &syscall.SysProcAttr{}}
	if s.User != "" {
		if attr.Sys.Credential, err = credential(s.User); err != nil {
			return 0, 0, err
		}
	}
	pid, err := syscall.ForkExec(path, s.Command, attr)
	if err != nil {
		return 0, 0, namespace.E(namespace.Invalid, "start", s.Command[0], err)
	}
	for {
		var ws syscall.WaitStatus
		got, err := syscall.Wait4(-1, &ws, 0, nil)
		if err == syscall.EINTR {
			continue
		}
		if err != nil {
			return 0, 0, namespace.E(namespace.Internal, "wait for", s.Command[0], err)
		}
		if got != pid {
			continue // an orphan
		}
		status = ws.ExitStatus()
		if ws.Signaled() {
			status = 128 + int(ws.Signal())
		}
		return status, others(), nil
	}
}

// others counts the processes beside this one.
func others() (n int) {
	names, _ := filepath.Glob("/proc/[0-9]*")
	for _, name := range names {
		b, _ := os.ReadFile(name + "/stat")
		_, rest, _ := strings.Cut(string(b), ") ")
		if name != "/proc/1" && rest != "" && rest[0] != 'Z' {
			n++
		}
	}
	return n
}

// lookPath finds the command as a shell would, in the PATH of the spec.
func (s *Spec) lookPath() (string, error) {
	for _, kv := range s.Env {
		if path, ok := strings.CutPrefix(kv, "PATH="); ok {
			if err := os.Setenv("PATH", path); err != nil {
				return "", namespace.E(namespace.Invalid, "set", "PATH", err)
			}
		}
	}
	path, err := exec.LookPath(s.Command[0])
	if err != nil {
		err = namespace.E(namespace.Invalid, "find", s.Command[0], errors.New("the tree holds no such program"))
		if s.Outside {
			return "", namespace.E(namespace.Invalid, "find", s.Command[0], errors.New("no such program"))
		}
		return "", namespace.WithHint(err, "--outside runs a command of this machine, with the tree as its directory of work")
	}
	return path, nil
}

// enter makes the view the root, or the directory of work.
func (s *Spec) enter() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return namespace.E(namespace.Denied, "make private", "mounts", err)
	}
	if err := unix.Sethostname([]byte("coppice")); err != nil {
		return namespace.E(namespace.Denied, "name", "sandbox", err)
	}
	if !s.Network {
		raiseLoopback()
	}
	if s.Outside {
		if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
			return namespace.E(namespace.Denied, "mount", "/proc", err)
		}
		return chdir(filepath.Join(s.Root, s.Dir))
	}
	binds, err := s.clones()
	if err != nil {
		return err
	}
	if err := s.mountSystem(); err != nil {
		return err
	}
	// pivot_root(".", ".") puts the old root on top of the new one, from where it is taken away: the
	// command sees nothing of this machine but what was bound.
	if err := unix.Chdir(s.Root); err != nil {
		return namespace.E(namespace.Internal, "enter", s.Root, err)
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return namespace.E(namespace.Denied, "enter", s.Root, err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return namespace.E(namespace.Internal, "leave", "old root", err)
	}
	if err := unix.Chdir("/"); err != nil {
		return namespace.E(namespace.Internal, "enter", "/", err)
	}
	for i, b := range s.Binds {
		if err := b.attach(binds[i]); err != nil {
			return err
		}
	}
	if s.Resolver != nil {
		s.resolver()
	}
	return chdir(filepath.Join("/", s.Dir))
}

func chdir(dir string) error {
	if err := unix.Chdir(dir); err != nil {
		return namespace.E(namespace.Invalid, "enter", dir, err)
	}
	return nil
}

// credential returns who USER[:GROUP] is, by numbers or by the names in /etc/passwd and /etc/group,
// which are read directly: a name service would be this machine's library with the tree's plug-ins.
func credential(user string) (*syscall.Credential, error) {
	name, group, hasGroup := strings.Cut(user, ":")
	uid, gid, err := lookUser(name)
	if err == nil && hasGroup {
		gid, err = lookID("/etc/group", group, 2)
	}
	if err != nil {
		return nil, err
	}
	return &syscall.Credential{Uid: uid, Gid: gid}, nil
}

func lookUser(name string) (uid, gid uint32, err error) {
	if n, err := strconv.ParseUint(name, 10, 32); err == nil {
		return uint32(n), uint32(n), nil
	}
	if uid, err = lookID("/etc/passwd", name, 2); err == nil {
		gid, err = lookID("/etc/passwd", name, 3)
	}
	return uid, gid, err
}

// lookID returns field number field of the line for name in a file of colon-separated fields.
func lookID(file, name string, field int) (uint32, error) {
	if n, err := strconv.ParseUint(name, 10, 32); err == nil {
		return uint32(n), nil
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return 0, namespace.E(namespace.Invalid, "find user", name, err)
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Split(strings.TrimSpace(line), ":")
		if f[0] != name || len(f) <= field {
			continue
		}
		if n, err := strconv.ParseUint(f[field], 10, 32); err == nil {
			return uint32(n), nil
		}
	}
	return 0, namespace.E(namespace.Invalid, "find user", name, fmt.Errorf("%s does not know it", file))
}
