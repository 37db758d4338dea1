package main

import (
	"bufio"
	"os/exec"
	"syscall"

	"github.com/rogpeppe/go-internal/testscript"
)

// as UID COMMAND...: runs the command as another user, from the script's directory.
func as(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: as UID COMMAND...")
	}
	c := userCommand(ts, args)
	c.Stdout, c.Stderr = ts.Stdout(), ts.Stderr()
	if err := c.Run(); (err != nil) != neg {
		ts.Fatalf("as user %s: %v", args[0], err)
	}
}

// userCommand prepares a command of another user, who is let in as far as the script's directory.
func userCommand(ts *testscript.TestScript, args []string) *exec.Cmd {
	c := scriptCommand(ts, args[1:])
	// The directories above are the tests' alone: enter as root, and become the user there.
	c.Args = append([]string{"setpriv", "--reuid", args[0], "--regid", args[0], "--clear-groups", c.Path}, args[2:]...)
	path, err := exec.LookPath("setpriv")
	ts.Check(err)
	c.Path = path
	c.Env = append(c.Env, "GORACE=atexit_sleep_ms=0") // the reports' directory is closed to others
	return c
}

// holder is a process of another user that holds a file.
type holder struct{ cmd *exec.Cmd }

// hold UID FILE: another user keeps FILE open, until unhold.
func hold(ts *testscript.TestScript, _ bool, args []string) {
	h := ts.Value(holder{}).(*holder)
	if len(args) != 2 || h.cmd != nil {
		ts.Fatalf("usage: hold UID FILE, once")
	}
	c := userCommand(ts, []string{args[0], "sh", "-c", `exec 3<"$1" && echo open && exec sleep 60`, "sh", args[1]})
	out, err := c.StdoutPipe()
	ts.Check(err)
	ts.Check(c.Start())
	h.cmd = c
	ts.Defer(func() { h.stop() })
	if line, _ := bufio.NewReader(out).ReadString('\n'); line != "open\n" {
		ts.Fatalf("it does not open %s", args[1])
	}
}

// unhold: ends the process of hold.
func unhold(ts *testscript.TestScript, _ bool, _ []string) { ts.Value(holder{}).(*holder).stop() }

func (h *holder) stop() {
	if h.cmd == nil {
		return
	}
	_ = h.cmd.Process.Signal(syscall.SIGKILL)
	_ = h.cmd.Wait() // killed
	h.cmd = nil
}
