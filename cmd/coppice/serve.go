package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/spf13/cobra"

	"coppice.dev/coppice/cache"
	"coppice.dev/coppice/internal/privilege"
	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/rollout/identity"
)

// daemonCommand is the process behind `coppice mount`. People do not call it.
func (a *app) daemonCommand() *cobra.Command {
	var quota string
	var lower []string
	c := &cobra.Command{
		Use:    "daemon",
		Short:  "Keep the mounts of a cache alive (started by `coppice mount`)",
		Hidden: true,
		Args:   exact(0),
		RunE: func(c *cobra.Command, _ []string) error {
			dir, err := a.cacheDir()
			if err != nil {
				return err
			}
			shed := shedPrivileges() // may start this anew: before anything is opened
			ready := os.NewFile(readyFD, "ready")
			if err := checkCacheDir(dir); err != nil {
				return announce(ready, err)
			}
			file, err := openLog(dir)
			if err != nil {
				return announce(ready, namespace.E(namespace.KindOf(err), "open log", logPath(dir), err))
			}
			_ = debug.SetCrashOutput(file, debug.CrashOptions{}) // nobody sees what is printed
			log := slog.New(slog.NewTextHandler(file, nil))
			if shed != nil {
				log.Warn("runs with more privileges than it needs", "error", shed)
			}
			err = runDaemon(c.Context(), dir, quota, log, func(err error) { _ = announce(ready, err) }, lower...)
			if err != nil {
				log.Error("daemon failed", "error", err)
			}
			return err
		},
	}
	c.Flags().StringVar(&quota, "quota", "", "bound of the cache")
	c.Flags().StringArrayVar(&lower, "cache-lower", nil, "lower cache")
	return c
}

// readyFD is where a daemon says that it answers, or why it never will.
const readyFD = 3

// announce writes the outcome of a start as JSON and returns it.
func announce(w io.WriteCloser, err error) error {
	var msg controlError
	if err != nil {
		msg = *wireError(err)
	}
	_ = json.NewEncoder(w).Encode(msg) // the one who started us may have gone
	_ = w.Close()
	return err
}

// runDaemon serves a cache's control socket until the last mount is gone or ctx ends. ready is
// called once, when it answers or has failed to.
func runDaemon(ctx context.Context, dir, quota string, log *slog.Logger, ready func(error), lower ...string) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	bytes, err := parseSize(quota)
	if err != nil {
		ready(err)
		return err
	}
	debug.SetMemoryLimit(daemonMemory)
	if err := checkCacheDir(dir); err != nil {
		ready(err)
		return err
	}
	c, err := cache.Open(cache.Options{Dir: dir, QuotaBytes: bytes, Logger: log, Lower: lower})
	if err == nil && bytes != 0 {
		if err = c.SetQuota(bytes); err != nil {
			err = errors.Join(err, c.Close())
		}
	}
	if err != nil {
		ready(err)
		return err
	}
	ln, err := listenControl(dir)
	if err != nil {
		ready(err)
		return errors.Join(err, c.Close())
	}
	d := newDaemon(dir, c, log, stop)
	srv := identity.NewServer(identity.RequirePeer(os.Geteuid(), identity.Body(requestBytesMax, d.handler())), identity.Limits{Rate: -1}, log)
	srv.ConnContext = identity.PeerContext
	served := make(chan error, 1)
	go func() { served <- srv.Serve(ln) }()
	watching := make(chan struct{})
	go func() { defer close(watching); d.watcher.Run(ctx, d.networkChanged) }()
	go watchGeneration(ctx, d.announce)
	log.Info("daemon started", "cache", dir, "pid", os.Getpid())
	ready(nil)
	<-ctx.Done()
	<-watching
	d.close()
	grace, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	_ = srv.Shutdown(grace)
	<-served
	log.Info("daemon ended")
	return nil
}

// requestBytesMax bounds a request to the daemon: one may carry a root of trust.
const requestBytesMax = 16 << 20

// daemonMemory is what the daemon's heap is kept to, by collecting garbage more often near it.
const daemonMemory = 72 << 20

// listenControl makes the control socket. The cache is locked, so a socket that is there is dead.
func listenControl(dir string) (net.Listener, error) {
	_ = os.Remove(filepath.Join(dir, socketName))
	path, d, err := socketPath(dir)
	if err != nil {
		return nil, namespace.E(namespace.KindOf(err), "listen in", dir, err)
	}
	defer d.Close()
	ln, err := net.Listen("unix", path)
	if err != nil {
		return nil, namespace.E(namespace.KindOf(err), "listen in", dir, err)
	}
	ln.(*net.UnixListener).SetUnlinkOnClose(false) // the path is gone with d; the next start removes it
	if err := os.Chmod(filepath.Join(dir, socketName), 0o600); err != nil {
		return nil, errors.Join(namespace.E(namespace.KindOf(err), "listen in", dir, err), ln.Close())
	}
	return ln, nil
}

// handler is the control protocol.
func (d *daemon) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /mount", answer(d.mount))
	mux.HandleFunc("POST /unmount", answer(func(ctx context.Context, req unmountRequest) (struct{}, error) {
		return struct{}{}, d.unmount(ctx, req)
	}))
	mux.HandleFunc("POST /status", answer(d.status))
	mux.HandleFunc("POST /current", answer(d.current))
	mux.HandleFunc("POST /cache", answer(d.cacheReport))
	mux.HandleFunc("POST /misses", answer(d.misses))
	mux.HandleFunc("POST /hydrate", d.hydrate)
	d.handleArchive(mux)
	d.handleCare(mux)
	d.handleProfiles(mux)
	mux.HandleFunc("POST /agent", answer(d.agent))
	mux.HandleFunc("POST /pin", answer(busyWith(d, d.pin)))
	mux.HandleFunc("POST /unpin", answer(busyWith(d, d.unpin)))
	mux.HandleFunc("POST /ready", answer(busyWith(d, d.ready)))
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.Handle("/metrics", promhttp.HandlerFor(d.reg, promhttp.HandlerOpts{}))
	return mux
}

// answer makes a handler of a function from request to reply.
func answer[Req, Reply any](f func(context.Context, Req) (Reply, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var req Req
		err := json.NewDecoder(r.Body).Decode(&req)
		var reply Reply
		if err == nil {
			reply, err = f(r.Context(), req)
		}
		if err != nil {
			w.WriteHeader(http.StatusConflict)
			_ = json.NewEncoder(w).Encode(wireError(err))
			return
		}
		_ = json.NewEncoder(w).Encode(reply)
	}
}

// startAttempts and startPause bound how long a command tries to reach or start a daemon: an old
// one that is just ending may hold the cache for a moment.
const (
	startAttempts = 100
	startPause    = 100 * time.Millisecond
)

// reachDaemon connects to the cache's daemon, starting one if none runs.
func reachDaemon(ctx context.Context, dir, quota string, lower ...string) (*daemonClient, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, namespace.E(namespace.KindOf(err), "create", dir, err)
	}
	var last error
	for range startAttempts {
		c, err := dialDaemon(dir)
		if err == nil || !namespace.IsKind(err, namespace.NotExist) {
			return c, err
		}
		if last = startDaemon(dir, quota, lower...); last != nil && !namespace.IsKind(last, namespace.Exist) {
			return nil, last
		}
		if last != nil { // another process has the cache: a daemon that starts or ends
			select {
			case <-ctx.Done():
				return nil, namespace.E(namespace.Canceled, "start daemon", dir, ctx.Err())
			case <-time.After(startPause):
			}
		}
	}
	return nil, last
}

// startDaemon starts a daemon in a session of its own and waits until it answers or fails.
func startDaemon(dir, quota string, lower ...string) error {
	fail := func(err error) error { return namespace.E(namespace.Internal, "start daemon", dir, err) }
	r, w, err := os.Pipe()
	if err != nil {
		return fail(err)
	}
	defer r.Close()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return fail(err)
	}
	defer null.Close()
	args := []string{"daemon", "--cache", dir, "--quota", quota}
	for _, l := range lower {
		args = append(args, "--cache-lower", l)
	}
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Args[0] = os.Args[0]
	cmd.Dir = "/"
	cmd.Stdin, cmd.Stdout, cmd.Stderr = null, null, null
	cmd.ExtraFiles = []*os.File{w}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = privilege.Start(cmd, daemonCaps...)
	w.Close()
	if err != nil {
		return fail(err)
	}
	var msg controlError
	if err := json.NewDecoder(r).Decode(&msg); err != nil {
		return namespace.WithHint(fail(errors.New("it ended before it answered")), "its log is "+logPath(dir))
	}
	if msg.Kind != "" {
		_ = cmd.Wait()
		return msg.err()
	}
	return cmd.Process.Release()
}
