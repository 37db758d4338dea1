package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// The commands that the scripts have besides those of testscript.

// patience is how long a script waits for what comes by itself.
const patience = 40 * time.Second

// scriptCommand prepares a command with a script's environment and directory.
func scriptCommand(ts *testscript.TestScript, args []string) *exec.Cmd {
	name := args[0]
	if path, err := exec.LookPath(name); err == nil {
		name = path
	}
	c := exec.Command(name, args[1:]...)
	c.Args[0] = args[0]
	c.Dir = ts.MkAbs(".")
	c.Env = os.Environ()
	for _, key := range []string{"WORK", "HOME", "TMPDIR", "GORACE", "COPPICE_ORIGIN", "COPPICE_CACHE", "COPPICE_RUN", "COPPICE_KEYS", netEnv} {
		c.Env = append(c.Env, key+"="+ts.Getenv(key))
	}
	return c
}

// exits CODE COMMAND...: the command must end with this exit code.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE COMMAND...")
	}
	c := scriptCommand(ts, args[1:])
	c.Stdout, c.Stderr = ts.Stdout(), ts.Stderr()
	err := c.Run()
	if ended := (*exec.ExitError)(nil); err != nil && !errors.As(err, &ended) {
		ts.Fatalf("%v", err)
	}
	if got := strconv.Itoa(c.ProcessState.ExitCode()); got != args[0] {
		ts.Fatalf("exit code %s, want %s", got, args[0])
	}
}

// await REGEXP COMMAND...: repeats the command until what it prints matches. With !: until not.
func await(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: await REGEXP COMMAND...")
	}
	want, err := regexp.Compile("(?m)" + args[0])
	ts.Check(err)
	var out []byte
	for start := time.Now(); time.Since(start) < patience; time.Sleep(50 * time.Millisecond) {
		if out, _ = scriptCommand(ts, args[1:]).CombinedOutput(); want.Match(out) != neg {
			fmt.Fprintf(ts.Stdout(), "%s", out)
			return
		}
	}
	ts.Fatalf("after %v it still prints:\n%s", patience, out)
}

// within DURATION COMMAND...: the command must fail, and in that time.
func within(ts *testscript.TestScript, neg bool, args []string) {
	if !neg || len(args) < 2 {
		ts.Fatalf("usage: ! within DURATION COMMAND...")
	}
	bound, err := time.ParseDuration(args[0])
	ts.Check(err)
	c := scriptCommand(ts, args[1:])
	c.Stdout, c.Stderr = ts.Stdout(), ts.Stderr()
	start := time.Now()
	if err := c.Run(); err == nil {
		ts.Fatalf("it succeeded")
	}
	if took := time.Since(start); took > bound {
		ts.Fatalf("it took %v, more than %v", took, bound)
	}
}

// server is the `coppice origin serve` of a script.
type server struct{ cmd *exec.Cmd }

// serve DIR [ADDR] [-- FLAG...]: serves an origin in the background; $URL and $ADDR say where, and
// with --tls, $PIN its key.
func serve(ts *testscript.TestScript, _ bool, args []string) {
	s := ts.Value(server{}).(*server)
	var flags []string
	if i := slices.Index(args, "--"); i >= 0 {
		args, flags = args[:i], args[i+1:]
	}
	if len(args) < 1 || len(args) > 2 || s.cmd != nil {
		ts.Fatalf("usage: serve DIR [ADDR], once")
	}
	addr := "127.0.0.1:0"
	if len(args) == 2 {
		addr = args[1]
	}
	s.cmd = scriptCommand(ts, append([]string{"coppice", "origin", "serve", args[0], "--listen", addr}, flags...))
	stderr, err := s.cmd.StderrPipe()
	ts.Check(err)
	ts.Check(s.cmd.Start())
	ts.Defer(func() { s.stop() })
	lines := bufio.NewReader(stderr)
	line, _ := lines.ReadString('\n')
	_, url, ok := strings.Cut(strings.TrimSpace(line), " on ")
	if !ok {
		rest, _ := io.ReadAll(lines)
		ts.Fatalf("it does not serve: %s%s", line, rest)
	}
	ts.Setenv("URL", url)
	_, address, _ := strings.Cut(url, "://")
	ts.Setenv("ADDR", address)
	if slices.Contains(flags, "--tls") {
		line, _ = lines.ReadString('\n')
		ts.Setenv("PIN", regexp.MustCompile("sha256:[0-9a-f]{64}").FindString(line))
	}
}

// unserve: interrupts the server and waits for it.
func unserve(ts *testscript.TestScript, _ bool, _ []string) {
	ts.Check(ts.Value(server{}).(*server).stop())
}

func (s *server) stop() error {
	if s.cmd == nil {
		return nil
	}
	c := s.cmd
	s.cmd = nil
	if err := c.Process.Signal(syscall.SIGINT); err != nil {
		return err
	}
	return c.Wait()
}

// capture NAME REGEXP: sets an environment variable to the first group in what was printed last.
func capture(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: capture NAME REGEXP")
	}
	re, err := regexp.Compile("(?m)" + args[1])
	ts.Check(err)
	m := re.FindStringSubmatch(ts.ReadFile("stdout"))
	if len(m) < 2 {
		ts.Fatalf("no match")
	}
	ts.Setenv(args[0], m[1])
}

// json [KEY.KEY.0 VALUE]...: what was printed last is one JSON value, and has these fields.
func jsonField(ts *testscript.TestScript, neg bool, args []string) {
	dec := json.NewDecoder(strings.NewReader(ts.ReadFile("stdout")))
	var all any
	ts.Check(dec.Decode(&all))
	if dec.More() {
		ts.Fatalf("more than one value")
	}
	if neg || len(args)%2 != 0 {
		ts.Fatalf("usage: json [FIELD VALUE]...")
	}
	for i := 0; i < len(args); i += 2 {
		if got := fmt.Sprint(dig(all, strings.Split(args[i], "."))); got != args[i+1] {
			ts.Fatalf("%s is %s, want %s", args[i], got, args[i+1])
		}
	}
}

// dig follows a path of keys, indexes and len.
func dig(v any, path []string) any {
	for _, key := range path {
		switch x := v.(type) {
		case map[string]any:
			v = x[key]
		case []any:
			i, err := strconv.Atoi(key)
			switch {
			case key == "len":
				v = len(x)
			case err != nil || i >= len(x):
				return nil
			default:
				v = x[i]
			}
		default:
			return nil
		}
	}
	return v
}

// flip GLOB: inverts a bit in the middle of the largest file that matches.
func flip(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 1 {
		ts.Fatalf("usage: flip GLOB")
	}
	names, err := filepath.Glob(ts.MkAbs(args[0]))
	ts.Check(err)
	var name string
	var bytes int64
	for _, n := range names {
		if info, err := os.Stat(n); err == nil && info.Size() > bytes {
			name, bytes = n, info.Size()
		}
	}
	if name == "" {
		ts.Fatalf("no such file")
	}
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	ts.Check(err)
	defer f.Close()
	b := make([]byte, 1)
	_, err = f.ReadAt(b, bytes/2)
	ts.Check(err)
	b[0] ^= 1
	_, err = f.WriteAt(b, bytes/2)
	ts.Check(err)
	ts.Logf("flipped a bit of %s at %d", name, bytes/2)
}

// rootfs DIR PROGRAM...: makes the directories of a small system in DIR and copies programs of this
// machine there, with the libraries that they need.
func rootfs(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: rootfs DIR PROGRAM...")
	}
	root := ts.MkAbs(args[0])
	for _, dir := range []string{"bin", "etc", "proc", "dev", "sys", "run", "tmp", "mnt"} {
		ts.Check(os.MkdirAll(filepath.Join(root, dir), 0o755))
	}
	for _, program := range args[1:] {
		path, err := exec.LookPath(program)
		ts.Check(err)
		need, err := exec.Command("ldd", path).Output()
		ts.Check(err)
		copyFile(ts, path, filepath.Join(root, "bin", program))
		for _, lib := range regexp.MustCompile(`/\S+`).FindAllString(string(need), -1) {
			copyFile(ts, lib, filepath.Join(root, lib))
		}
	}
}

func copyFile(ts *testscript.TestScript, from, to string) {
	b, err := os.ReadFile(from)
	ts.Check(err)
	ts.Check(os.MkdirAll(filepath.Dir(to), 0o755))
	ts.Check(os.WriteFile(to, b, 0o755))
}
