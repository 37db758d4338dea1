package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"coppice.dev/coppice/namespace"
)

func (a *app) agentCommand() *cobra.Command {
	var config string
	c := &cobra.Command{
		Use:   "agent --config FILE",
		Short: "Decide for this machine what its mounts show, and when",
		Long: `Runs the daemon of a cache in this process and follows the channels of FILE. Of a new version all is
fetched first; when the gates of the policy are open it is shown; then probes, commands that are run in the
tree, have to succeed. If one fails the last version that was proven comes back, and the failed one is
not shown again until ` + "`coppice agent allow`" + ` says so. What was decided is kept before it is done, so
that the agent may be killed at any time. SIGHUP reads FILE again.`,
		Example: "  coppice agent --config /etc/coppice/agent.yaml\n  coppice agent check --config /etc/coppice/agent.yaml",
		Args:    exact(0),
		RunE:    func(c *cobra.Command, _ []string) error { return a.runAgent(c.Context(), config) },
	}
	check := &cobra.Command{
		Use:     "check --config FILE",
		Short:   "Check the agent's file",
		Example: "  coppice agent check --config agent.yaml",
		Args:    exact(0),
		RunE: func(*cobra.Command, []string) error {
			cfg, err := readAgentConfig(config)
			if err != nil {
				return err
			}
			return a.result(map[string]any{"file": config, "mounts": len(cfg.mounts), "id": cfg.mounts[0].ID},
				func(w io.Writer) { fmt.Fprintf(w, "%s: %d mounts, as %s\n", config, len(cfg.mounts), cfg.mounts[0].ID) })
		},
	}
	for _, x := range []*cobra.Command{c, check} {
		x.Flags().StringVar(&config, "config", "/etc/coppice/agent.yaml", "`FILE` of the agent")
	}
	allow := &cobra.Command{
		Use:     "allow NAME@N",
		Short:   "Let a version that failed here be shown again",
		Example: "  coppice agent allow desk@7",
		Args:    exact(1),
		RunE: func(c *cobra.Command, args []string) error {
			if _, err := namespace.ParseVersion(args[0]); err != nil {
				return err
			}
			return a.askAgent(c.Context(), "", agentRequest{Verb: "allow", Version: args[0]})
		},
	}
	c.AddCommand(check, allow)
	return c
}

func (a *app) updateCommand() *cobra.Command {
	return group("update", "Ask the agent for updates", &cobra.Command{
		Use:     "now [DIR]",
		Short:   "Show now what is waiting, as far as the policy lets people say so",
		Example: "  coppice update now",
		Args:    between(0, 1),
		RunE: func(c *cobra.Command, args []string) error {
			return a.askAgent(c.Context(), optional(args, 0), agentRequest{Verb: "now"})
		},
	})
}

func (a *app) deferCommand() *cobra.Command {
	var reason string
	c := &cobra.Command{
		Use:     "defer DURATION [DIR]",
		Short:   "Put off what is waiting, within what the policy allows",
		Example: "  coppice defer 4h --reason 'on stage until noon'",
		Args:    between(1, 2),
		RunE: func(c *cobra.Command, args []string) error {
			d, err := time.ParseDuration(args[0])
			if err != nil || d <= 0 {
				return usage("%q: want a duration, as 4h or 30m", args[0])
			}
			return a.askAgent(c.Context(), optional(args, 1), agentRequest{Verb: "defer", For: d, Reason: reason})
		},
	}
	c.Flags().StringVar(&reason, "reason", "", "`WHY`, for the log")
	return c
}

func (a *app) explainCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "explain [DIR]",
		Short: "Say what keeps a version from being shown, who set that, and until when",
		Long: `Prints for each mount of the agent, or that at DIR, every gate that is closed, the layer of the policy
that set it, and the earliest instant at which all could be open.`,
		Example: "  coppice explain\n  coppice explain /srv/tree --json",
		Args:    between(0, 1),
		RunE: func(c *cobra.Command, args []string) error {
			return a.askAgent(c.Context(), optional(args, 0), agentRequest{Verb: "explain"})
		},
	}
}

func optional(args []string, i int) string {
	if i < len(args) {
		return args[i]
	}
	return ""
}

// askAgent asks the daemon of a mount, or that of the cache, and prints how things stand then.
func (a *app) askAgent(ctx context.Context, dir string, req agentRequest) error {
	cacheDir, err := a.cacheDir()
	if err != nil {
		return err
	}
	if dir != "" {
		if req.Dir, err = mountPoint(dir); err != nil {
			return err
		}
		if r, known := lookup(runDir(), req.Dir); known {
			cacheDir = r.Cache
		}
	}
	d, err := dialDaemon(cacheDir)
	if err != nil {
		return err
	}
	defer d.http.CloseIdleConnections()
	var all []agentReply
	if err := d.call(ctx, "/agent", req, &all); err != nil {
		return err
	}
	return a.result(all, func(w io.Writer) {
		for _, r := range all {
			fmt.Fprintf(w, "%s  %s  %s: %s\n", r.Dir, r.Channel, r.Explain.Phase, r.Explain.Sentence)
			for _, b := range append(r.Explain.Holds, r.Explain.Gates.Blocking...) {
				line := b.Why
				if !b.Until.IsZero() {
					line += ", until " + when(b.Until)
				}
				if b.By.Key != "" {
					line += fmt.Sprintf("  (%s, set by %s)", b.By.Key, b.By.Origin)
				}
				field(w, b.Gate, line)
			}
		}
	})
}

// agentRetry is how long the agent waits before it tries a mount again that could not be made.
const agentRetry = 5 * time.Second

// runAgent serves the mounts of a file until it is told to end.
func (a *app) runAgent(ctx context.Context, config string) error {
	cfg, err := readAgentConfig(config)
	if err != nil {
		return err
	}
	if cfg.cache != "" {
		a.cache = cfg.cache
	}
	cacheDir, err := a.cacheDir()
	if err != nil {
		return err
	}
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	var stop func()
	defer func() {
		if stop != nil {
			stop()
		}
	}()
	tick := time.NewTicker(agentRetry)
	defer tick.Stop()
	up := map[string]agentMounted{}
	told := map[string]string{}
	for {
		if d, err := dialDaemon(cacheDir); err == nil && stop != nil {
			a.agentMounts(ctx, d, cfg, up, told)
			d.http.CloseIdleConnections()
		} else if !errors.Is(ctx.Err(), context.Canceled) {
			if stop != nil { // it had no mount for a while
				stop()
			}
			clear(up)
			if stop, err = a.serveInForeground(ctx, cacheDir, ""); err != nil {
				stop = nil
				return err
			}
			continue
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-hup:
			next, err := readAgentConfig(config)
			if err != nil {
				a.note("%v; going on with what was read before", err)
				continue
			}
			cfg = next
		}
	}
}

// agentMounts makes the mounts that are missing and ends those that are not wanted, or not so.
func (a *app) agentMounts(ctx context.Context, d *daemonClient, cfg agentConfig, up map[string]agentMounted, told map[string]string) {
	wanted := map[string]agentMounted{}
	for _, m := range cfg.mounts {
		wanted[m.dir] = m
	}
	var live []mountStatus
	if err := d.call(ctx, "/status", statusRequest{Brief: true}, &live); err != nil {
		return
	}
	there := map[string]bool{}
	for _, s := range live {
		there[s.Dir] = true
	}
	for dir, m := range up {
		if w, ok := wanted[dir]; there[dir] && (!ok || !sameJSON(w, m)) {
			var none struct{}
			if err := d.call(ctx, "/unmount", unmountRequest{Dir: dir, Force: true}, &none); err != nil {
				a.note("%s: %v", dir, err)
				continue
			}
			there[dir] = false
		}
		if !there[dir] {
			delete(up, dir)
		}
	}
	for dir, m := range wanted {
		if there[dir] {
			continue
		}
		if err := a.agentMount(ctx, d, cfg, m); err != nil {
			if err.Error() != told[dir] { // once: the network may be away for long
				a.note("%s: %v", dir, err)
			}
			told[dir] = err.Error()
			continue
		}
		delete(told, dir)
		up[dir] = m
	}
}

func (a *app) agentMount(ctx context.Context, d *daemonClient, cfg agentConfig, m agentMounted) error {
	a.origin = cfg.origins
	req, _, err := a.mountRequest(m.channel, m.dir, mountFlags{poll: m.poll, check: 5 * time.Minute, hydrate: true, stage: stageAll})
	if err != nil {
		return err
	}
	req.Trust, req.Agent = cfg.trust, &m.agentMount
	var reply mountReply
	return d.call(ctx, "/mount", req, &reply)
}

// sameJSON reports whether two mounts are the same in all that the daemon is told.
func sameJSON(a, b agentMounted) bool {
	x, xerr := namespace.EncodeRecord(a.agentMount)
	y, yerr := namespace.EncodeRecord(b.agentMount)
	return xerr == nil && yerr == nil && string(x) == string(y) && a.channel == b.channel && a.poll == b.poll
}
