package privilege_test

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"coppice.dev/coppice/internal/privilege"
)

// The test binary is its own subject: with this variable it sheds and tells what it has left.
const subject = "COPPICE_TEST_SHED"

func TestMain(m *testing.M) {
	if os.Getenv(subject) == "" {
		os.Exit(m.Run())
	}
	if err := privilege.Shed(unix.CAP_SYS_ADMIN, unix.CAP_SYS_PTRACE); err != nil {
		fmt.Println("error", err)
		os.Exit(0)
	}
	var wg sync.WaitGroup // of threads
	for range 8 {
		wg.Go(func() { _, _ = os.ReadFile("/proc/self/status") })
	}
	wg.Wait()
	threads, _ := filepath.Glob("/proc/self/task/*/status")
	for _, name := range threads {
		b, _ := os.ReadFile(name)
		for line := range strings.Lines(string(b)) {
			if strings.HasPrefix(line, "Cap") || strings.HasPrefix(line, "NoNewPrivs") {
				fmt.Print(line)
			}
		}
	}
	inherited, err := io.ReadAll(os.NewFile(3, "inherited"))
	fmt.Println("args", os.Args[1:], "inherited", string(inherited), err, "pid", os.Getpid())
	child, err := exec.Command("grep", "^Cap[PEB]", "/proc/self/status").CombinedOutput()
	fmt.Printf("child\n%s%v\n", child, err)
	os.Exit(0)
}

func self(t *testing.T) string {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return exe
}

// run starts the subject, through a wrapper if one is given.
func run(t *testing.T, exe string, wrap ...string) (out string, pid int) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	args := append(wrap, exe, "one", "two words")
	c := exec.Command(args[0], args[1:]...)
	c.Env = append(os.Environ(), subject+"=1")
	c.ExtraFiles = []*os.File{r}
	if _, err := w.WriteString("kept"); err != nil {
		t.Fatal(err)
	}
	w.Close()
	var b strings.Builder
	c.Stdout, c.Stderr = &b, &b
	if err := c.Run(); err != nil {
		t.Fatalf("%v: %s", err, b.String())
	}
	return b.String(), c.Process.Pid
}

func TestShed(t *testing.T) {
	out, pid := run(t, self(t))
	const kept = "0000000000280000"
	for line := range strings.Lines(out) {
		name, value, ok := strings.Cut(strings.TrimSpace(line), ":\t")
		if !ok {
			continue
		}
		want := map[string]string{"CapInh": "0000000000000000", "CapPrm": kept, "CapEff": kept, "CapBnd": kept, "CapAmb": "0000000000000000", "NoNewPrivs": "1"}
		if want[name] != value {
			t.Errorf("%s is %s, want %s", name, value, want[name])
		}
	}
	if n := strings.Count(out, "CapEff:\t"+kept); n < 3 { // several threads and the child
		t.Errorf("%d sets were looked at:\n%s", n, out)
	}
	if want := fmt.Sprintf("args [one two words] inherited kept <nil> pid %d\n", pid); !strings.Contains(out, want) {
		t.Errorf("not the same process with the same arguments and descriptors:\n%s", out)
	}
}

// TestStart starts a program narrowed, and stays as it is.
func TestStart(t *testing.T) {
	before, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	c := exec.Command("grep", "-E", "^(CapEff|CapBnd|NoNewPrivs)", "/proc/self/status")
	c.Stdout = &b
	if err := privilege.Start(c, unix.CAP_SYS_ADMIN, unix.CAP_SYS_PTRACE); err != nil {
		t.Fatal(err)
	}
	if err := c.Wait(); err != nil || b.String() != "CapEff:\t0000000000280000\nCapBnd:\t0000000000280000\nNoNewPrivs:\t1\n" {
		t.Fatalf("%v: %s", err, b.String())
	}
	threads, err := filepath.Glob("/proc/self/task/*/status")
	if err != nil {
		t.Fatal(err)
	}
	after, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	caps := func(b []byte) string { _, rest, _ := strings.Cut(string(b), "CapInh"); return rest[:100] }
	if caps(before) != caps(after) || len(threads) == 0 {
		t.Fatalf("this process has changed:\n%s\n%s", caps(before), caps(after))
	}
	if err := privilege.Start(exec.Command("/nonexistent"), unix.CAP_SYS_ADMIN); err == nil {
		t.Fatal("an error is lost")
	}
}

func TestOthersThanRootKeepWhatTheyNeed(t *testing.T) {
	dir, err := os.MkdirTemp("", "shed") // where another user can execute from
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(self(t))
	if err != nil {
		t.Fatal(err)
	}
	exe := filepath.Join(dir, "subject")
	if err := os.WriteFile(exe, b, 0o755); err != nil {
		t.Fatal(err)
	}
	out, _ := run(t, exe, "setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups")
	if !strings.Contains(out, "NoNewPrivs:\t0") || strings.Contains(out, "error") {
		t.Fatal(out)
	}
}

// TestWhoMayNotShed is root in a container that lacks CAP_SETPCAP.
func TestWhoMayNotShed(t *testing.T) {
	out, _ := run(t, self(t), "setpriv", "--inh-caps=-all", "--bounding-set=-setpcap")
	if !strings.Contains(out, "error give up capabilities") {
		t.Fatal(out)
	}
}
