package main

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"coppice.dev/coppice/internal/launch"
)

// TestMain lets the scripts run this test binary under the name coppice.
func TestMain(m *testing.M) {
	if launch.Is(os.Args) { // as main does: a probe that a test starts
		os.Exit(launch.Run(os.Args))
	}
	testscript.Main(manyAtOnce{m}, map[string]func(){"coppice": main,
		"near": func() { inside("near") }, "far": func() { inside("far") }, "hostile": hostileMain, "dns": dnsMain})
}

// manyAtOnce runs more scripts at a time than there are processors: some wait for most of a minute
// that an origin which is away is given up.
type manyAtOnce struct{ *testing.M }

// Run implements testscript.TestingM.
func (m manyAtOnce) Run() int {
	flag.Parse()
	if err := flag.Set("test.parallel", "8"); err != nil {
		panic(err)
	}
	return m.M.Run()
}

// TestScripts runs testdata/script. Each script has an origin's location, a cache and a register
// of mounts of its own; what any of them leaves behind is a failure.
func TestScripts(t *testing.T) {
	root := t.TempDir()
	t.Cleanup(func() { expectNothingLeft(t, root) })
	testscript.Run(t, testscript.Params{
		Dir:                "testdata/script",
		WorkdirRoot:        root,
		RequireUniqueNames: true,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits": exits, "await": await, "serve": serve, "unserve": unserve,
			"json": jsonField, "capture": capture, "flip": flip, "within": within, "rootfs": rootfs,
			"as": as, "hold": hold, "unhold": unhold,
			"network": network,
		},
		Setup: func(env *testscript.Env) error {
			work := env.WorkDir
			for name, value := range map[string]string{
				"COPPICE_ORIGIN": work + "/origin", "COPPICE_CACHE": work + "/cache", "COPPICE_RUN": work + "/run",
				"COPPICE_KEYS": "", "HOME": work, "TMPDIR": work + "/.tmp",
				"REPO": repository(), "GORACE": "atexit_sleep_ms=0 log_path=" + work + "/race",
			} {
				env.Setenv(name, value)
			}
			env.Setenv("KILLS", "10") // of daemons
			if os.Getenv("COPPICE_TEST_LONG") != "" {
				env.Setenv("KILLS", "500")
			}
			env.Values[server{}] = &server{}
			env.Values[holder{}] = &holder{}
			env.Defer(func() { tellLog(env, work+"/cache/log/daemon.log") })
			return nil
		},
	})
}

// repository is the directory of the module.
func repository() string {
	dir, err := filepath.Abs("../..")
	if err != nil {
		panic(err)
	}
	return dir
}

// tellLog shows a daemon's log below a script that failed.
func tellLog(env *testscript.Env, path string) {
	if b, err := os.ReadFile(path); err == nil {
		env.T().Log("the daemon's log:\n" + string(b))
	}
}

// endsWithin is how long a process may take to go after its script: a daemon that never had a mount
// waits for one, for lingerEmpty.
const endsWithin = lingerEmpty + 5*time.Second

// expectNothingLeft fails for every mount, process and data race that a script in root left, and takes
// the first two away.
func expectNothingLeft(t *testing.T, root string) {
	for _, dir := range mountsBelow(t, root) {
		t.Errorf("%s is still mounted", dir)
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	}
	deadline := time.Now().Add(endsWithin)
	for len(processesOf(root)) > 0 && time.Now().Before(deadline) {
		time.Sleep(50 * time.Millisecond)
	}
	for pid, cmdline := range processesOf(root) {
		t.Errorf("process %d is still there: %s", pid, cmdline)
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	races, _ := filepath.Glob(filepath.Join(root, "*", "race.*"))
	for _, name := range races {
		b, _ := os.ReadFile(name)
		t.Errorf("%s\n%s", name, b)
	}
}

// mountsBelow returns the mount points below root, the newest first.
func mountsBelow(t *testing.T, root string) []string {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	var dirs []string
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], root+"/") {
			dirs = append([]string{f[4]}, dirs...)
		}
	}
	return dirs
}

// processesOf returns the processes whose environment says that a script in root started them, by
// id, with their command lines. A process that ended and was not yet waited for has neither.
func processesOf(root string) map[int]string {
	found := map[int]string{}
	names, _ := filepath.Glob("/proc/[0-9]*/environ")
	for _, name := range names {
		environ, err := os.ReadFile(name)
		if err != nil || !bytes.Contains(environ, []byte("WORK="+root+"/")) {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(name)))
		if err != nil {
			continue
		}
		cmdline, _ := os.ReadFile(filepath.Join(filepath.Dir(name), "cmdline"))
		found[pid] = string(bytes.ReplaceAll(cmdline, []byte{0}, []byte{' '}))
	}
	return found
}
