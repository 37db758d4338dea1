package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/rollout/policy"
)

// writeAll makes files below a directory of the test's.
func writeAll(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestAgentConfigFaults(t *testing.T) {
	const good = "id: desk\norigins: [http://o.example]\ntrust: DIR/root\nmounts:\n  - channel: desk/stable\n    dir: DIR/mnt\n"
	for _, c := range []struct{ name, old, new, want string }{
		{"fine", "", "", ""},
		{"unknown key", "id:", "idd:", "agent.yaml:1:1"},
		{"no origin", "origins: [http://o.example]\n", "", "origins"},
		{"no trust", "trust: DIR/root\n", "", "trusts nobody"},
		{"trust is not there", "DIR/root", "DIR/none", "agent.yaml:3"},
		{"relative", "dir: DIR/mnt", "dir: mnt", "agent.yaml:6"},
		{"two on one", "dir: DIR/mnt\n", "dir: DIR/mnt\n  - channel: b/c\n    dir: DIR/mnt\n", "agent.yaml:8"},
		{"bad channel", "desk/stable", "../x", "agent.yaml:5"},
		{"poll", "dir: DIR/mnt\n", "dir: DIR/mnt\n    poll: 1ms\n", "agent.yaml:7"},
		{"probe", "dir: DIR/mnt\n", "dir: DIR/mnt\n    probes: [{name: x}]\n", "agent.yaml:7"},
		{"policy", "mounts:", "policy:\n  - {level: endpoint, name: a, seq: 1, settings: {nonsense: 1}}\nmounts:", "agent.yaml:5"},
		{"when", "mounts:", "policy:\n  - {level: endpoint, name: a, seq: 1, settings: {when: '((('}}\nmounts:", "agent.yaml:"},
	} {
		dir := writeAll(t, map[string]string{"root": "x"})
		name := filepath.Join(dir, "agent.yaml")
		text := strings.ReplaceAll(strings.Replace(good, c.old, c.new, 1), "DIR", dir)
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		_, err := readAgentConfig(name)
		if c.want == "" != (err == nil) || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", c.name, err)
		}
		if c.name != "trust is not there" && err != nil && !namespace.IsKind(err, namespace.Invalid) {
			t.Errorf("%s: kind %s", c.name, namespace.KindOf(err))
		}
	}
}

func TestActivity(t *testing.T) {
	run := writeAll(t, map[string]string{
		"sessions/1": "CLASS=user\nSTATE=active\n", "sessions/2": "CLASS=user\nSTATE=closing\n", "sessions/3": "CLASS=greeter\nSTATE=online\n",
		"sessions/1.ref": "", "inhibit/4": "WHAT=shutdown:sleep\nMODE=block\nWHO=talk\n", "inhibit/5": "WHAT=sleep\nMODE=delay\nWHO=net\n", "lock": "",
	})
	want := policy.Activity{Known: true, Sessions: 1, Inhibitor: "talk", LockFile: filepath.Join(run, "lock")}
	if a := activity(run, want.LockFile); a != want {
		t.Errorf("%+v", a)
	}
	if a := activity(filepath.Join(run, "none"), ""); a != (policy.Activity{Known: true}) {
		t.Errorf("no logind: %+v", a)
	}
	if a := activity(writeAll(t, map[string]string{"sessions": "a file"}), ""); a.Known {
		t.Error("what cannot be read is not known")
	}
}

func TestSupply(t *testing.T) {
	battery := map[string]string{"AC/type": "Mains\n", "AC/online": "0\n", "BAT0/type": "Battery\n", "BAT0/capacity": "41\n",
		"mouse/type": "Battery\n", "mouse/scope": "Device\n", "mouse/capacity": "90\n"}
	if s := supply(writeAll(t, battery)); s != (policy.Supply{Known: true, Percent: 41}) {
		t.Errorf("on battery: %+v", s)
	}
	battery["AC/online"] = "1\n"
	if s := supply(writeAll(t, battery)); !s.AC || s.Percent != 41 {
		t.Errorf("plugged in: %+v", s)
	}
	if s := supply(filepath.Join(t.TempDir(), "none")); !s.Known || !s.AC {
		t.Errorf("a server: %+v", s)
	}
}

// TestProbe holds that a probe that hangs, forks, or prints without end is over in time, bounded.
func TestProbe(t *testing.T) {
	run := func(timeout time.Duration, script string) error {
		return agentProbe{"p", []string{"sh", "-c", script}, timeout}.run(t.Context(), t.TempDir(), "desk@1")
	}
	if err := run(10*time.Second, `test "$COPPICE_VERSION" = desk@1 && test "$PWD" = "$COPPICE_DIR"`); err != nil {
		t.Error(err)
	}
	if err := run(10*time.Second, "echo because >&2; exit 3"); err == nil || err.Error() != "p: exit status 3: because" {
		t.Error(err)
	}
	start := time.Now()
	if err := run(200*time.Millisecond, "sleep 60 & sleep 60"); err == nil || !strings.Contains(err.Error(), "no end within 200ms") {
		t.Error(err)
	}
	if err := run(200*time.Millisecond, "yes"); err == nil || len(err.Error()) > 2*probeOutputMax {
		t.Error(err)
	}
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("it took %s", took)
	}
}
