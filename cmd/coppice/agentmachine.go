package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"coppice.dev/coppice/cache"
	"coppice.dev/coppice/internal/disk"
	"coppice.dev/coppice/internal/launch"
	"coppice.dev/coppice/internal/netwatch"
	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/trust"
	"coppice.dev/coppice/rollout/agent"
	"coppice.dev/coppice/rollout/offer"
	"coppice.dev/coppice/rollout/policy"
)

// agentEnd is an endpoint as the agent's loop sees it: source, machine, prober, sensors and keeper.
type agentEnd struct {
	*endpoint
	with *agentMount
}

// newLoop makes the loop that decides for a mount of the agent.
func (e *endpoint) newLoop(notify func(agent.Status)) (*agent.Loop, error) {
	x := agentEnd{e, e.req.Agent}
	return agent.New(agent.Options{Channel: e.req.Target, ID: x.with.ID, Source: x, Machine: x, Prober: x, Sensors: x, Keeper: x,
		Layers: x.with.Layers, Poll: e.req.Poll, Logger: e.log, Notify: notify})
}

// Look implements agent.Source.
func (x agentEnd) Look(ctx context.Context) (agent.Seen, error) {
	b, err := x.source.Ref(ctx, namespace.RefName{Kind: namespace.ChannelRef, Name: x.req.Target})
	var p namespace.Pointer
	if err == nil {
		p, err = x.trust.Accept(ctx, x.req.Target, b)
	}
	confirmed := err == nil
	if err != nil {
		last, known, rerr := x.trust.Recall(ctx, x.req.Target)
		if !namespace.IsKind(err, namespace.Unavailable) || rerr != nil || !known {
			return agent.Seen{}, errors.Join(err, rerr)
		}
		p = last
	}
	seen, oerr := x.offered(ctx, p)
	seen.Confirmed = confirmed
	return seen, errors.Join(err, oerr)
}

// offered reads what goes with a pointer.
func (x agentEnd) offered(ctx context.Context, p namespace.Pointer) (seen agent.Seen, err error) {
	var record []byte
	if !p.Offer.IsZero() {
		if record, err = x.view.Blob(ctx, p.Offer, namespace.ManifestBytesMax); err != nil {
			return seen, err
		}
	}
	if !p.Policy.IsZero() {
		b, err := x.view.Blob(ctx, p.Policy, namespace.ManifestBytesMax)
		if err != nil {
			return seen, err
		}
		if err := namespace.DecodeRecord(b, namespace.ManifestBytesMax, "policy "+p.Policy.Short(), &seen.Layers); err != nil {
			return seen, err
		}
	}
	err = x.trust.keep.recall(ctx, func(_ *trust.Updater, trusted *trust.Trusted) error {
		said, err := trusted.Vouching()
		if err != nil {
			return err
		}
		seen.Offer, err = offer.Of(p, record, func(v namespace.NamedVersion) (offer.Standing, error) {
			one, err := said.Resolve(v.Version)
			if err != nil {
				return offer.Standing{}, err
			}
			s := offer.Standing{Content: one.Content, Floor: said.Floors[v.Version.Name]}
			s.Excepted = s.Content < s.Floor && said.Allows(p.Channel, v.Version, v.Manifest, x.trust.keep.now()) == nil
			return s, nil
		})
		return err
	})
	return seen, err
}

// generation returns what of a version the cache holds.
func (x agentEnd) generation(ctx context.Context, t offer.Target) (cache.Held, error) {
	m, err := x.manifest(ctx, t.Manifest)
	return held(namespace.Pointer{Version: t.Version, Manifest: t.Manifest}, m), err
}

// Here implements agent.Machine.
func (x agentEnd) Here(ctx context.Context, t offer.Target) (bool, error) {
	for _, h := range x.holds() {
		for i, g := range h.Generations {
			if h.Kind != cache.Mounted || g.Manifest != t.Manifest {
				continue
			}
			ready, err := x.cache.Ready(ctx, h, false)
			return err == nil && i < len(ready) && ready[i].Version == g.Version && ready[i].Complete, err
		}
	}
	return false, nil
}

// Fetch implements agent.Machine.
func (x agentEnd) Fetch(ctx context.Context, t offer.Target) error {
	g, err := x.generation(ctx, t)
	if err == nil {
		err = x.eachHold(func(h *cache.Hold) { h.Stage(g) })
	}
	if err == nil {
		err = x.view.HydrateMetadata(ctx, g.Root)
	}
	if err != nil {
		return err
	}
	return x.fill(namespace.InBackground(ctx, nil), g, cache.FillOptions{Select: cache.Selection{All: true}})
}

// Show implements agent.Machine.
func (x agentEnd) Show(ctx context.Context, t offer.Target) error {
	p := namespace.Pointer{Channel: x.req.Target, Version: t.Version, Manifest: t.Manifest}
	err := x.Activate(ctx, p)
	if err == nil {
		x.mu.Lock()
		x.status.Desired = p
		x.mu.Unlock()
	}
	return err
}

// Serving implements agent.Machine.
func (x agentEnd) Serving() namespace.Digest { return x.activePointer().Manifest }

// Load implements agent.Keeper.
func (x agentEnd) Load() ([]byte, error) {
	b, err := os.ReadFile(x.with.State)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, disk.Error("read", x.with.State, err)
	}
	return b, nil
}

// Keep implements agent.Keeper.
func (x agentEnd) Keep(b []byte) error { return disk.Replace(x.with.State, b, 0o600) }

// Probe implements agent.Prober: every command has to succeed, in order.
func (x agentEnd) Probe(ctx context.Context, t offer.Target) error {
	for _, p := range x.with.Probes {
		if err := p.run(ctx, x.req.Dir, t.Version.String()); err != nil {
			return err
		}
	}
	return nil
}

// probeOutputMax is how much of what a probe prints is kept: the end of it, where the error is.
const probeOutputMax = 400

// tail keeps the last bytes written to it.
type tail struct{ b []byte }

func (t *tail) Write(p []byte) (int, error) {
	t.b = append(t.b, p[max(0, len(p)-probeOutputMax):]...)
	t.b = t.b[max(0, len(t.b)-probeOutputMax):]
	return len(p), nil
}

// run runs a probe in the tree. What it left running in its process group is ended with it.
func (p agentProbe) run(ctx context.Context, dir, version string) error {
	ctx, cancel := context.WithTimeout(ctx, p.Timeout)
	defer cancel()
	cmd := launch.Command(ctx, dir, p.Command...) // the tree is this process's to serve
	var out tail
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.Env = append(cmd.Env, "COPPICE_DIR="+dir, "COPPICE_VERSION="+version)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	kill := func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.Cancel, cmd.WaitDelay = kill, time.Second
	err := cmd.Start()
	if err == nil {
		err = cmd.Wait()
		_ = kill() // nobody left is no error
	}
	switch {
	case ctx.Err() == context.DeadlineExceeded:
		err = fmt.Errorf("no end within %s", p.Timeout)
	case err == nil:
		return nil
	}
	if said := strings.Join(strings.Fields(string(bytes.ToValidUTF8(out.b, []byte("?")))), " "); said != "" {
		err = fmt.Errorf("%w: %s", err, said)
	}
	return fmt.Errorf("%s: %w", p.Name, err)
}

// Sense implements agent.Sensors.
func (x agentEnd) Sense() (s agent.Sensed) {
	s.Zone, s.Link = time.Local, policyLink(x.link.status())
	s.Busy, s.Power = activity("/run/systemd", x.with.LockFile), supply("/sys/class/power_supply")
	if b, err := os.ReadFile("/proc/sys/kernel/random/boot_id"); err == nil {
		h := fnv.New64a()
		_, _ = h.Write(b)
		s.Boot = h.Sum64() | 1
	}
	var t unix.Timespec
	if unix.ClockGettime(unix.CLOCK_MONOTONIC, &t) == nil {
		s.Awake = time.Duration(t.Nano())
	}
	return s
}

func policyLink(l linkStatus) policy.Link {
	if l.State != netwatch.Online {
		return policy.OfflineLink
	}
	switch l.Class {
	case netwatch.LAN:
		return policy.LAN
	case netwatch.VPN:
		return policy.VPN
	case netwatch.Metered:
		return policy.Metered
	case netwatch.Offline:
		return policy.OfflineLink
	}
	return policy.Internet
}

// activity reads who uses the machine from what systemd-logind keeps below run; where there is no
// logind, there are no sessions of it and no inhibitors. What cannot be read is not known.
func activity(run, lockFile string) policy.Activity {
	a := policy.Activity{Known: true}
	each := func(dir string, see func(map[string]string)) {
		names, err := os.ReadDir(filepath.Join(run, dir))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			a.Known = false
		}
		for _, n := range names {
			if strings.HasSuffix(n.Name(), ".ref") {
				continue
			}
			b, err := os.ReadFile(filepath.Join(run, dir, n.Name()))
			if err != nil && !errors.Is(err, os.ErrNotExist) { // it may just have ended
				a.Known = false
			}
			values := map[string]string{}
			for line := range strings.Lines(string(b)) {
				k, v, _ := strings.Cut(strings.TrimSpace(line), "=")
				values[k] = v
			}
			see(values)
		}
	}
	each("sessions", func(v map[string]string) {
		if v["CLASS"] == "user" && v["STATE"] != "closing" {
			a.Sessions++
		}
	})
	each("inhibit", func(v map[string]string) {
		if strings.Contains(v["WHAT"], "shutdown") && v["MODE"] == "block" {
			a.Inhibitor = v["WHO"]
		}
	})
	if _, err := os.Stat(lockFile); lockFile != "" && err == nil {
		a.LockFile = lockFile
	}
	return a
}

// supply reads the power supplies of the kernel; a machine without any is on the mains.
func supply(dir string) policy.Supply {
	names, err := os.ReadDir(dir)
	s, batteries := policy.Supply{Known: err == nil || errors.Is(err, os.ErrNotExist)}, 0
	read := func(n, file string) string {
		b, _ := os.ReadFile(filepath.Join(dir, n, file))
		return strings.TrimSpace(string(b))
	}
	for _, n := range names {
		switch read(n.Name(), "type") {
		case "Mains", "USB":
			s.AC = s.AC || read(n.Name(), "online") == "1"
		case "Battery":
			percent, err := strconv.Atoi(read(n.Name(), "capacity"))
			if err != nil || read(n.Name(), "scope") == "Device" { // a mouse's
				continue
			}
			batteries++
			s.Percent = max(s.Percent, percent)
		}
	}
	s.AC = s.AC || batteries == 0
	return s
}
