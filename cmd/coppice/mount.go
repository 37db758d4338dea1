package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"coppice.dev/coppice/fusefs"
	"coppice.dev/coppice/internal/disk"
	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/origin"
	"coppice.dev/coppice/namespace/trust"
)

type mountFlags struct {
	foreground, suid, dev, noExec, hydrate, noAhead bool
	poll, check, lease                              time.Duration
	quota, trust, then, stage                       string
	links, class, proxy                             string
	lower                                           []string
}

func (a *app) mountCommand() *cobra.Command {
	var f mountFlags
	c := &cobra.Command{
		Use:   "mount CHANNEL|NAME@N DIR",
		Short: "Mount a channel's active version, or a fixed one",
		Long: `Mounts a namespace version at DIR, read-only, and returns when the tree is usable. A channel is
followed: when its pointer moves, DIR shows the new version, at once and entirely; open files
and working directories stay on the old one. What is read is verified and kept in the cache,
which all mounts of a cache share; one daemon serves them and keeps a log in the cache.

Several origins (--origin A --origin B, or with commas) are relays and mirrors of one: the first that
answers is asked, and the others when it fails or is slow. Without a network what is in the cache works,
and the rest fails at once; coppice cache misses lists it. What a link is used for, by its class (lan,
vpn, internet, metered), is said by --links.

At first contact with an origin its root of trust is pinned; another one is refused ever after, unless
the pinned one's keys signed it. When the origin's timestamp has expired nothing new is accepted and
what is mounted stays; when the lease is over the mount does what the policy says.
Setuid bits and devices have no effect unless --suid and --dev are given; with --no-exec no program of
the tree can be executed.

As root, and in a user namespace, DIR is a mount point and a swap is atomic. Without privileges
DIR becomes a symbolic link into a mount made by fusermount3, replaced atomically.`,
		Example: `  coppice mount desktop/stable /mnt --origin https://origin.example
  coppice mount desk@7 /mnt/old --foreground`,
		Args: exact(2),
		RunE: func(c *cobra.Command, args []string) error { return a.mount(c.Context(), args[0], args[1], f) },
	}
	fl := c.Flags()
	fl.BoolVar(&f.foreground, "foreground", false, "stay until unmounted or interrupted")
	fl.BoolVar(&f.suid, "suid", false, "let setuid bits and file capabilities have effect")
	fl.BoolVar(&f.dev, "dev", false, "let devices be opened")
	fl.BoolVar(&f.noExec, "no-exec", false, "let no program of the tree be executed")
	fl.BoolVar(&f.hydrate, "hydrate", false, "fetch all content in the background")
	fl.BoolVar(&f.noAhead, "no-prefetch", false, "do not fetch the namespace's profiles ahead")
	fl.DurationVar(&f.poll, "poll", 30*time.Second, "`INTERVAL` of asking a static server for a new pointer")
	fl.DurationVar(&f.check, "check", 5*time.Minute, "`INTERVAL` of looking at the origin's timestamp")
	fl.DurationVar(&f.lease, "lease", 0, "how `LONG` to run without a fresh timestamp (default: what the origin's policy says)")
	fl.StringVar(&f.then, "lease-then", "", "what to do after that: warn, report or quarantine (default: the policy's)")
	fl.StringVar(&f.quota, "quota", "", "bound of the cache in `BYTES` (20G, 512M), from now on")
	fl.StringVar(&f.stage, "stage", stagePinned, "`WHAT` of a new version is fetched before it is shown: all, pinned (what is pinned or was hydrated) or metadata")
	fl.StringArrayVar(&f.lower, "cache-lower", nil, "`DIR` of another cache, only read, to look in before the network, when this starts the daemon; repeatable")
	fl.StringVar(&f.trust, "trust", "", "`FILE` with the origin's root of trust (a copy of ref/trust/root)")
	fl.StringVar(&f.links, "links", "", "`FILE` that says what which class of link is used for")
	fl.StringVar(&f.class, "link-class", "", "`CLASS` of the link, instead of the one detected: lan, vpn, internet, metered")
	fl.StringVar(&f.proxy, "proxy", "", "`URL` of a proxy, or none (default: HTTP_PROXY, HTTPS_PROXY and NO_PROXY)")
	return c
}

func (a *app) mount(ctx context.Context, target, dir string, f mountFlags) error {
	req, cacheDir, err := a.mountRequest(target, dir, f)
	if err != nil {
		return err
	}
	lower, err := lowerDirs(f.lower)
	if err != nil {
		return err
	}
	if f.foreground {
		if stop, err := a.serveInForeground(ctx, cacheDir, f.quota, lower...); err == nil {
			defer stop()
		} else if !namespace.IsKind(err, namespace.Exist) {
			return err
		}
	}
	d, reply, err := requestMount(ctx, req, cacheDir, f.quota, lower...)
	if err != nil {
		return err
	}
	if reply.PinnedKey != "" && !a.quiet {
		a.note("first contact with %s", reply.PinnedKey)
	}
	if reply.Pinned != "" && !a.quiet {
		a.note("first contact with %s: pinned its root of trust, origin id %s", req.Origin, reply.Pinned)
	}
	err = a.result(map[string]string{"dir": req.Dir, "version": reply.Version, "manifest": reply.Manifest, "mode": reply.Mode},
		func(w io.Writer) { fmt.Fprintf(w, "%s %s\n", reply.Version, req.Dir) })
	if err != nil || !f.foreground {
		return err
	}
	return a.attend(ctx, d, req)
}

// brokenMax bounds how often a mount is asked for again when the daemon is gone before it answers:
// one was ending, unluckily; a daemon that dies of the request would do so each time.
const brokenMax = 2

// requestMount has the cache's daemon mount, the next one if the present one is just ending.
func requestMount(ctx context.Context, req mountRequest, cacheDir, quota string, lower ...string) (*daemonClient, mountReply, error) {
	var reply mountReply
	for broken := 0; ; {
		d, err := reachDaemon(ctx, cacheDir, quota, lower...)
		if err != nil {
			return nil, reply, err
		}
		err = d.call(ctx, "/mount", req, &reply)
		if isBroken(err) {
			broken++
		}
		if !errors.Is(err, errEnding) && (!isBroken(err) || broken > brokenMax) {
			return d, reply, err
		}
		select {
		case <-ctx.Done():
			return nil, reply, err
		case <-time.After(startPause):
		}
	}
}

// isBroken reports whether the daemon was gone before it answered.
func isBroken(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.EPIPE) ||
		errors.Is(err, syscall.ENOENT) || errors.Is(err, io.EOF)
}

// mountRequest checks the arguments and makes them absolute.
func (a *app) mountRequest(target, dir string, f mountFlags) (req mountRequest, cacheDir string, err error) {
	if strings.Contains(target, "@") {
		_, err = namespace.ParseVersion(target)
	} else {
		err = namespace.CheckName(target)
	}
	if err != nil {
		return req, "", err
	}
	locs, err := a.locations()
	if err != nil {
		return req, "", err
	}
	links, err := readLinks(f.links, f.class, locs)
	if err != nil {
		return req, "", err
	}
	proxies, err := origin.ParseProxy(f.proxy)
	if err != nil {
		return req, "", err
	}
	transport, err := a.tls.transport()
	if err != nil {
		return req, "", err
	}
	if cacheDir, err = a.cacheDir(); err != nil {
		return req, "", err
	}
	abs, err := mountPoint(dir)
	if err != nil {
		return req, "", err
	}
	req = mountRequest{Target: target, Dir: abs, Origin: locs[0], Poll: f.poll, AllowSuid: f.suid, AllowDev: f.dev, DenyExec: f.noExec,
		Hydrate: f.hydrate, NoAhead: f.noAhead, Stage: f.stage, RunDir: runDir(), Transport: transport, Origins: locs, Proxies: &proxies, Links: links,
		Check: f.check, Lease: f.lease, Then: trust.Then(f.then)}
	if t := req.Then; t != "" && t != trust.Warn && t != trust.Report && t != trust.Quarantine {
		return req, "", usage("--lease-then %q: want warn, report or quarantine", t)
	}
	if req.Quota, err = parseSize(f.quota); err != nil {
		return req, "", err
	}
	if err := checkStage(f.stage); err != nil {
		return req, "", err
	}
	if f.trust != "" {
		if req.Trust, err = os.ReadFile(f.trust); err != nil {
			return req, "", disk.Error("read", f.trust, err)
		}
	}
	return req, cacheDir, nil
}

// mountPoint returns dir absolute, its parent's symlinks resolved, so that one directory has one
// name. It does not look at dir itself: that may be a dead mount, or a symlink of ours.
func mountPoint(dir string) (string, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", namespace.E(namespace.Invalid, "find", dir, err)
	}
	parent, err := filepath.EvalSymlinks(filepath.Dir(abs))
	if err != nil {
		return "", disk.Error("find", dir, err)
	}
	return filepath.Join(parent, filepath.Base(abs)), nil
}

// serveInForeground makes this process the cache's daemon. Exist: another is. stop ends it.
func (a *app) serveInForeground(ctx context.Context, cacheDir, quota string, lower ...string) (stop func(), err error) {
	if d, err := dialDaemon(cacheDir); err == nil {
		d.http.CloseIdleConnections()
		return nil, namespace.E(namespace.Exist, "start daemon", cacheDir, nil)
	}
	if err := os.MkdirAll(cacheDir, 0o700); err != nil {
		return nil, disk.Error("create", cacheDir, err)
	}
	log := slog.New(slog.NewTextHandler(a.stderr, nil))
	if err := shedPrivileges(); err != nil {
		log.Warn("runs with more privileges than it needs", "error", err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	ready, ended := make(chan error, 1), make(chan struct{})
	go func() {
		defer close(ended)
		if err := runDaemon(ctx, cacheDir, quota, log, func(err error) { ready <- err }, lower...); err != nil {
			log.Error("daemon failed", "error", err)
		}
	}()
	if err := <-ready; err != nil {
		cancel()
		<-ended
		return nil, err
	}
	return func() { cancel(); <-ended }, nil
}

// attendEvery is how often a command in the foreground looks whether its mount is still there.
const attendEvery = 500 * time.Millisecond

// attend waits until the mount is gone; an interrupt unmounts it.
func (a *app) attend(ctx context.Context, d *daemonClient, req mountRequest) error {
	tick := time.NewTicker(attendEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			var none struct{}
			grace, cancel := context.WithTimeout(context.Background(), 30*time.Second)
			defer cancel()
			err := d.call(grace, "/unmount", unmountRequest{Dir: req.Dir, Force: true}, &none)
			if namespace.IsKind(err, namespace.NotExist) {
				err = nil
			}
			return err
		case <-tick.C:
			var all []mountStatus
			err := d.call(ctx, "/status", statusRequest{Dir: req.Dir, Brief: true}, &all)
			if ctx.Err() == nil && (err != nil || len(all) == 0) {
				return nil
			}
		}
	}
}

func (a *app) unmountCommand() *cobra.Command {
	var force bool
	c := &cobra.Command{
		Use:   "unmount DIR",
		Short: "End a mount",
		Long: `Ends the mount at DIR. One that is in use is refused, unless --force is given: then it leaves the
name space now and goes away when its last user does. A mount whose daemon died is cleaned up.`,
		Example: "  coppice unmount /mnt",
		Args:    exact(1),
		RunE: func(c *cobra.Command, args []string) error {
			dir, err := mountPoint(args[0])
			if err != nil {
				return err
			}
			return a.unmount(c.Context(), dir, force)
		},
	}
	c.Flags().BoolVarP(&force, "force", "f", false, "also if it is in use")
	return c
}

func (a *app) unmount(ctx context.Context, dir string, force bool) error {
	cacheDir, err := a.cacheDir()
	if err != nil {
		return err
	}
	r, known := lookup(runDir(), dir)
	if known {
		cacheDir = r.Cache
	}
	d, err := dialDaemon(cacheDir)
	if err == nil {
		var none struct{}
		err = d.call(ctx, "/unmount", unmountRequest{Dir: dir, Force: force}, &none)
	}
	if err == nil || !namespace.IsKind(err, namespace.NotExist) {
		return err
	}
	// No daemon knows it: clean up after one that died, and forget it.
	if rerr := fusefs.Recover(dir); rerr != nil {
		return rerr
	}
	unregister(runDir(), dir)
	if !known {
		return namespace.WithHint(namespace.E(namespace.NotExist, "unmount", dir, errors.New("not a mount of coppice")), "`coppice status` lists them")
	}
	return nil
}
