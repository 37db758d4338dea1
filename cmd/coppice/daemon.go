package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"coppice.dev/coppice/cache"
	"coppice.dev/coppice/internal/netwatch"
	"coppice.dev/coppice/namespace"
)

// daemon keeps the mounts of one cache alive. It ends when the last of them is gone.
type daemon struct {
	dir   string // of the cache
	cache *cache.Cache
	log   *slog.Logger
	stop  context.CancelFunc // ends the daemon
	reg   *prometheus.Registry
	rates sync.Map // origin → the *cache.Reader that reads from it, which knows how fast it is

	watcher *netwatch.Watcher

	mu      sync.Mutex
	mounts  map[string]*endpoint    // by directory
	records map[string]*recording   // under way, by the directory of their mount
	trusts  map[string]*trustKeeper // by their directory
	leaving int                     // endpoints out of the name space that processes still use
	busy    int                     // mount requests under way
	ending  bool
}

// leaveWithin is how long an unmount by force waits for the mount's users before it leaves them to
// end when they like.
const leaveWithin = time.Second

// lingerEmpty is how long a daemon without a mount waits for one: for the command that started it.
const lingerEmpty = 10 * time.Second

func newDaemon(dir string, c *cache.Cache, log *slog.Logger, stop context.CancelFunc) *daemon {
	d := &daemon{dir: dir, cache: c, log: log, stop: stop, reg: prometheus.NewRegistry(), mounts: map[string]*endpoint{}, trusts: map[string]*trustKeeper{},
		records: map[string]*recording{}, watcher: netwatch.New(netwatch.Options{Logger: log})}
	d.reg.MustRegister(c.Collector())
	time.AfterFunc(lingerEmpty, d.endIfEmpty)
	return d
}

// announce tells all keepers that this virtual machine was restored or copied.
func (d *daemon) announce() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.log.Warn("the kernel says that this virtual machine was restored or copied: origins are asked before anything is started")
	for _, k := range d.trusts {
		go k.announce() // it may be waiting for its origin
	}
}

// endIfEmpty ends the daemon unless it has, or is making, a mount.
func (d *daemon) endIfEmpty() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.mounts) == 0 && d.leaving == 0 && d.busy == 0 && !d.ending {
		d.ending = true
		d.log.Info("no mount left, ending")
		d.stop()
	}
}

// mount makes a mount and returns when its tree is usable.
func (d *daemon) mount(ctx context.Context, req mountRequest) (mountReply, error) {
	if err := d.setQuota(req.Quota); err != nil {
		return mountReply{}, err
	}
	if err := d.claim(req.Dir); err != nil {
		return mountReply{}, err
	}
	e, pinned, err := d.openEndpoint(ctx, req)
	d.mu.Lock()
	d.busy--
	if err == nil {
		d.mounts[req.Dir] = e
	} else {
		delete(d.mounts, req.Dir)
	}
	d.mu.Unlock()
	if err != nil {
		d.log.Error("not mounted", "dir", req.Dir, "target", req.Target, "error", err)
		time.AfterFunc(time.Second, d.endIfEmpty)
		return mountReply{}, err
	}
	labelled := prometheus.WrapRegistererWith(prometheus.Labels{"dir": req.Dir}, d.reg)
	for _, c := range e.collectors() {
		if err := labelled.Register(c); err != nil {
			d.log.Warn("no metrics of this mount", "dir", req.Dir, "error", err)
		}
	}
	go d.follow(e)
	active := e.activePointer()
	d.log.Info("mounted", "dir", req.Dir, "target", req.Target, "version", active.Version.String(), "mode", e.server.Status().Mode)
	return mountReply{Version: active.Version.String(), Manifest: active.Manifest.String(), Mode: e.server.Status().Mode, Pinned: pinned, PinnedKey: e.key}, nil
}

// errEnding says that the daemon has no mount any more and goes: the next one serves the request.
var errEnding = errors.New("the daemon is ending")

// claim reserves dir, so that two requests for it cannot both go on.
func (d *daemon) claim(dir string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ending {
		return namespace.E(namespace.Unavailable, "mount", dir, errEnding)
	}
	if _, taken := d.mounts[dir]; taken {
		return namespace.WithHint(namespace.E(namespace.Exist, "mount", dir, errors.New("it is a mount already")), "`coppice unmount "+dir+"` ends it")
	}
	d.mounts[dir] = nil
	d.busy++
	return nil
}

// follow runs an endpoint until it ends, by request or because somebody unmounted it.
func (d *daemon) follow(e *endpoint) {
	e.run()
	d.forget(e, -1)
	d.log.Info("unmounted", "dir", e.req.Dir)
	d.endIfEmpty()
}

// forget frees the directory of e for another mount, once. left is what it adds to those that
// are leaving: 1 if processes still use e, -1 if e is over.
func (d *daemon) forget(e *endpoint, left int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.mounts[e.req.Dir] != e {
		d.leaving += min(left, 0)
		return
	}
	d.leaving += max(left, 0)
	delete(d.mounts, e.req.Dir)
	unregister(e.req.RunDir, e.req.Dir)
	for _, c := range e.collectors() {
		prometheus.WrapRegistererWith(prometheus.Labels{"dir": e.req.Dir}, d.reg).Unregister(c)
	}
}

// networkChanged tells all mounts.
func (d *daemon) networkChanged(ev netwatch.Event) {
	for _, e := range d.endpoints() {
		e.link.event(ev)
	}
}

// unmount ends the mount at dir and returns when it is gone.
func (d *daemon) unmount(ctx context.Context, req unmountRequest) error {
	e, err := d.find(req.Dir)
	if err != nil {
		return err
	}
	if err := e.server.Unmount(req.Force); err != nil {
		return err
	}
	// Nobody wants it back at once, so room may be made of it; what is pinned stays.
	if _, err := d.cache.ChangeHold(e.mountID(), func(h *cache.Hold) { h.ID = "" }); err != nil {
		d.log.Warn("what was mounted is still kept", "dir", req.Dir, "error", err)
	}
	var users <-chan time.Time
	if req.Force {
		users = time.After(leaveWithin)
	}
	select {
	case <-e.done:
		return nil
	case <-users:
		d.leave(e)
		return nil
	case <-ctx.Done():
		return namespace.E(namespace.KindOf(ctx.Err()), "unmount", req.Dir, ctx.Err())
	}
}

// leave gives up a mount that left the name space and still has users.
func (d *daemon) leave(e *endpoint) {
	select {
	case <-e.done: // just now
	default:
		d.log.Info("unmounted, still in use", "dir", e.req.Dir)
		d.forget(e, 1)
	}
}

// find returns the endpoint at dir.
func (d *daemon) find(dir string) (*endpoint, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if e := d.mounts[dir]; e != nil {
		return e, nil
	}
	return nil, namespace.E(namespace.NotExist, "find", dir, fmt.Errorf("no mount of this daemon"))
}

// endpoints returns all mounts, in no order.
func (d *daemon) endpoints() []*endpoint {
	d.mu.Lock()
	defer d.mu.Unlock()
	var all []*endpoint
	for _, e := range d.mounts {
		if e != nil {
			all = append(all, e)
		}
	}
	return all
}

// close unmounts everything, lazily: the daemon was told to end.
func (d *daemon) close() {
	d.mu.Lock()
	d.ending = true
	d.mu.Unlock()
	for _, e := range d.endpoints() {
		if err := e.server.Unmount(true); err != nil {
			d.log.Error("not unmounted", "dir", e.req.Dir, "error", err)
			continue
		}
		select {
		case <-e.done:
		case <-time.After(leaveWithin):
			d.log.Warn("ending under the users of a mount", "dir", e.req.Dir)
		}
	}
	if err := d.cache.Close(); err != nil {
		d.log.Error("cache not closed", "error", err)
	}
}

// logPath returns the daemon's log of the cache dir.
func logPath(dir string) string { return filepath.Join(dir, "log", "daemon.log") }

// logBytesMax is where a log is put aside at the next start, as daemon.log.1.
const logBytesMax = 8 << 20

// openLog opens the log for appending.
func openLog(dir string) (*os.File, error) {
	path := logPath(dir)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	if info, err := os.Stat(path); err == nil && info.Size() > logBytesMax {
		if err := os.Rename(path, path+".1"); err != nil {
			return nil, err
		}
	}
	return os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
}
