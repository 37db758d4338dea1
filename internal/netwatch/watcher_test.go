package netwatch_test

import (
	"context"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
	"github.com/godbus/dbus/v5/prop"

	"coppice.dev/coppice/internal/netwatch"
)

// insideEnv says that a test runs in a network name space of its own.
const insideEnv = "NETWATCH_TEST_INSIDE"

// inNamespace runs the test that calls it again, as a process in new name spaces, and returns false
// there.
func inNamespace(t *testing.T) (outside bool) {
	if os.Getenv(insideEnv) != "" {
		return false
	}
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=60s")
	cmd.Env = append(os.Environ(), insideEnv+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	if os.Geteuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()) {
		t.Errorf("inside: %v\n%s", err, out)
	}
	return true
}

func ip(t *testing.T, args string) {
	t.Helper()
	if out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
		t.Fatalf("ip %s: %v %s", args, err, out)
	}
}

// eventually waits for what comes by itself.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(10 * time.Second)
	for !ok() {
		select {
		case <-deadline:
			t.Fatalf("never: %s", what)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// started runs a Watcher for the time of a test and counts its events.
func started(t *testing.T, o netwatch.Options) (*netwatch.Watcher, *atomic.Int64, *atomic.Int64) {
	w := netwatch.New(o)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	var events, slept atomic.Int64
	go func() {
		defer close(ended)
		w.Run(ctx, func(e netwatch.Event) {
			events.Add(1)
			slept.Add(int64(e.Slept))
		})
	}()
	t.Cleanup(func() {
		cancel()
		select {
		case <-ended:
		case <-time.After(10 * time.Second):
			t.Error("a watcher did not end")
		}
	})
	return w, &events, &slept
}

func TestWatcherNetlink(t *testing.T) {
	if inNamespace(t) {
		return
	}
	w, events, _ := started(t, netwatch.Options{Bus: "none"})
	origin := netip.MustParseAddr("10.9.0.2")
	class := func(target netip.Addr) netwatch.Class {
		f, err := w.Facts(target)
		if err != nil {
			t.Fatal(err)
		}
		c, _ := netwatch.Classify(f, netwatch.Config{})
		return c
	}
	if c := class(origin); c != netwatch.Offline {
		t.Errorf("an empty name space is %v", c)
	}
	if f, err := w.Facts(netip.MustParseAddr("127.0.0.1")); err != nil || !f.Local {
		t.Errorf("loopback: %+v, %v", f, err)
	}
	eventually(t, "a first event", func() bool { return events.Load() > 0 })
	step := func(args string, target netip.Addr, want netwatch.Class) {
		t.Helper()
		before := events.Load()
		ip(t, args)
		eventually(t, "an event of "+args, func() bool { return events.Load() > before })
		eventually(t, want.String()+" after "+args, func() bool { return class(target) == want })
	}
	ip(t, "link add up0 type veth peer name far0")
	ip(t, "addr add 10.9.0.1/24 dev up0")
	ip(t, "link set far0 up")
	step("link set up0 up", origin, netwatch.LAN)
	step("link set far0 down", origin, netwatch.Offline) // no carrier: the cable
	step("link set far0 up", origin, netwatch.LAN)
	if c := class(netip.Addr{}); c != netwatch.Internet {
		t.Errorf("a name, with a network and no default route: %v", c)
	}
	step("route add default via 10.9.0.2", netip.Addr{}, netwatch.Internet)
	step("route add 198.51.100.0/24 via 10.9.0.2", netip.MustParseAddr("198.51.100.7"), netwatch.Internet)
	step("route add blackhole 203.0.113.0/24", netip.MustParseAddr("203.0.113.7"), netwatch.Offline)
	f, err := w.Facts(netip.MustParseAddr("198.51.100.7"))
	if err != nil || f.Route == nil || f.Route.Iface.Name != "up0" || f.Route.Iface.Kind != "veth" || f.Route.OnLink || f.Route.Source.String() != "10.9.0.1" {
		t.Errorf("the facts of a route: %+v, %+v, %v", f, f.Route, err)
	}
	step("addr del 10.9.0.1/24 dev up0", origin, netwatch.Offline)
}

func TestWatcherSuspend(t *testing.T) {
	var asleep, looks atomic.Int64
	start := time.Now()
	_, _, slept := started(t, netwatch.Options{Bus: "none", Tick: 10 * time.Millisecond, Clocks: func() (time.Duration, time.Duration) {
		looks.Add(1)
		mono := time.Since(start)
		return mono + time.Duration(asleep.Load()), mono
	}})
	eventually(t, "the clocks were compared", func() bool { return looks.Load() > 2 })
	asleep.Store(int64(3 * time.Hour))
	eventually(t, "the suspend was told", func() bool { return time.Duration(slept.Load()) > 2*time.Hour })
	if d := time.Duration(slept.Load()); d > 4*time.Hour {
		t.Errorf("it slept for %v", d)
	}
}

// The metered flag is what NetworkManager says, as it changes; a bus without it is waited at.
func TestWatcherMetered(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "bus")
	daemon := exec.Command("dbus-daemon", "--session", "--nofork", "--nopidfile", "--address=unix:path="+socket)
	if err := daemon.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = daemon.Process.Kill()
		_ = daemon.Wait()
	})
	eventually(t, "the bus", func() bool { _, err := os.Stat(socket); return err == nil })
	address := "unix:path=" + socket
	w, _, _ := started(t, netwatch.Options{Bus: address})
	flag := func(want netwatch.Flag) func() bool {
		return func() bool {
			f, err := w.Facts(netip.MustParseAddr("127.0.0.1"))
			return err == nil && f.MeteredFlag == want
		}
	}
	if !flag(netwatch.Unknown)() {
		t.Error("a flag without NetworkManager")
	}
	nm, err := dbus.Connect(address)
	if err != nil {
		t.Fatal(err)
	}
	defer nm.Close()
	const name, path = "org.freedesktop.NetworkManager", "/org/freedesktop/NetworkManager"
	props, err := prop.Export(nm, path, prop.Map{name: {"Metered": {Value: uint32(1), Writable: true, Emit: prop.EmitTrue}}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := nm.RequestName(name, 0); err != nil {
		t.Fatal(err)
	}
	eventually(t, "metered", flag(netwatch.Yes))
	for value, want := range map[uint32]netwatch.Flag{2: netwatch.No, 3: netwatch.Yes, 4: netwatch.No, 0: netwatch.Unknown} {
		props.SetMust(name, "Metered", value)
		eventually(t, "another value", flag(want))
	}
	props.SetMust(name, "Metered", uint32(1))
	eventually(t, "metered again", flag(netwatch.Yes))
	if _, err := nm.ReleaseName(name); err != nil {
		t.Fatal(err)
	}
	eventually(t, "forgotten with NetworkManager", flag(netwatch.Unknown))
}
