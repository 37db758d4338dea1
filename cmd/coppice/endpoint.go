package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"coppice.dev/coppice/cache"
	"coppice.dev/coppice/fusefs"
	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/origin"
	"coppice.dev/coppice/namespace/trust"
	"coppice.dev/coppice/rollout"
)

// endpoint is one mount: an origin seen through the cache, what is to be active, and the kernel's
// view of it.
type endpoint struct {
	req    mountRequest
	log    *slog.Logger
	source io.Closer // of the origin
	reader namespace.RefReader
	trust  endpointTrust
	view   *cache.Reader
	server *fusefs.Server

	follower *rollout.Follower // nil for a fixed version
	ctx      context.Context   // of the follower and of background work
	cancel   context.CancelFunc
	work     sync.WaitGroup
	done     chan struct{} // closed when all is over

	swap        sync.Mutex // held while what is shown changes
	leaseOver   bool
	quarantined bool

	mu       sync.Mutex
	status   rollout.Status
	previous namespace.Pointer
}

// openEndpoint makes a mount with its version active. pinned is the id of an origin whose root
// was pinned just now.
func (d *daemon) openEndpoint(ctx context.Context, req mountRequest) (e *endpoint, pinned string, err error) {
	src, err := origin.Open(ctx, req.Origin, origin.Options{HTTP: origin.ClientOptions{Poll: req.Poll}})
	if err != nil {
		return nil, "", err
	}
	keep, err := d.trustOf(req.Origin)
	if err == nil {
		_, pinned, err = keep.pin(ctx, src, req.Trust)
	}
	if err != nil {
		return nil, "", errors.Join(err, src.Close())
	}
	e = &endpoint{req: req, log: d.log.With("dir", req.Dir), done: make(chan struct{}), source: src, reader: src,
		trust: endpointTrust{keep, trust.OriginDocuments(src, sourceBlobs{src})}, view: d.cache.Reader(src)}
	bg, cancel := context.WithCancel(context.Background())
	e.ctx, e.cancel = bg, cancel
	defer func() {
		if err != nil { // e may be nil by now
			cancel()
			src.Close()
		}
	}()
	if err := fusefs.Recover(req.Dir); err != nil {
		return nil, "", err
	}
	e.server, err = fusefs.Mount(ctx, fusefs.Options{
		Dir: req.Dir, Source: quarantineView{e.view}, RunDir: filepath.Join(req.RunDir, "fuse"), Name: req.Target,
		AllowSuid: req.AllowSuid, AllowDev: req.AllowDev, Logger: e.log,
	})
	if err != nil {
		return nil, "", err
	}
	if err = e.start(ctx); err == nil {
		err = register(req.RunDir, registered{req.Dir, d.dir, os.Getpid(), req.Target})
	}
	if err != nil {
		if uerr := e.server.Unmount(true); uerr != nil {
			e.log.Error("half a mount left behind", "error", uerr)
		}
		return nil, "", err
	}
	return e, pinned, nil
}

// start activates the first version.
func (e *endpoint) start(ctx context.Context) error {
	if strings.Contains(e.req.Target, "@") {
		v, err := namespace.ParseVersion(e.req.Target)
		if err != nil {
			return err
		}
		p, err := e.fixed(ctx, v)
		if err != nil {
			return err
		}
		return e.Activate(ctx, p)
	}
	e.follower = rollout.New(rollout.Options{
		Channel: e.req.Target, Reader: e.reader, Trust: e.trust, Activator: e,
		Check: e.req.Check, Poll: e.req.Poll, Logger: e.log,
		Notify: func(s rollout.Status) {
			e.mu.Lock()
			e.status = s
			e.mu.Unlock()
		},
	})
	return e.follower.Start(ctx)
}

// fixed resolves a namespace version that somebody vouches for.
func (e *endpoint) fixed(ctx context.Context, v namespace.Version) (namespace.Pointer, error) {
	one, err := e.trust.vouched(ctx, v)
	if err != nil {
		return namespace.Pointer{}, err
	}
	p := namespace.Pointer{Version: one.Version, Manifest: one.Manifest}
	e.mu.Lock()
	e.status.Desired = p
	e.mu.Unlock()
	return p, nil
}

// Stage implements rollout.Activator: the manifest and all catalogs are fetched, so that the swap
// waits for no network and the new version can be listed offline at once. The first version is
// not waited for: a mount of a huge tree should appear at once.
func (e *endpoint) Stage(ctx context.Context, p namespace.Pointer) error {
	m, err := e.manifest(ctx, p.Manifest)
	if err != nil || e.activePointer().Manifest.IsZero() {
		return err
	}
	return e.view.HydrateMetadata(ctx, m.Root)
}

// Activate implements rollout.Activator.
func (e *endpoint) Activate(ctx context.Context, p namespace.Pointer) error {
	m, err := e.manifest(ctx, p.Manifest)
	if err != nil {
		return err
	}
	e.swap.Lock()
	err = e.show(ctx, p)
	if err == nil {
		e.quarantined = false
	}
	e.swap.Unlock()
	if err != nil {
		return err
	}
	e.mu.Lock()
	e.previous, e.status.Active = e.status.Active, p
	e.mu.Unlock()
	e.background(func(ctx context.Context) error { return e.view.HydrateMetadata(ctx, m.Root) }, "metadata")
	if e.req.Hydrate {
		e.background(func(ctx context.Context) error { return e.view.Hydrate(ctx, m.Root, nil) }, "content")
	}
	return nil
}

// show makes the mount show a version.
func (e *endpoint) show(ctx context.Context, p namespace.Pointer) error {
	m, err := e.manifest(ctx, p.Manifest)
	if err == nil {
		_, err = e.server.Activate(ctx, m.Root, p.Version.String())
	}
	return err
}

// background fetches ahead while the mount is in use. It may fail: then reads fetch.
func (e *endpoint) background(fetch func(context.Context) error, what string) {
	e.work.Go(func() {
		if err := fetch(e.ctx); err != nil && e.ctx.Err() == nil {
			e.log.Warn("not hydrated", "what", what, "error", err)
		}
	})
}

func (e *endpoint) manifest(ctx context.Context, d namespace.Digest) (namespace.Manifest, error) {
	b, err := e.view.Blob(ctx, d, namespace.ManifestBytesMax)
	if err != nil {
		return namespace.Manifest{}, err
	}
	return readManifest(b, d)
}

func (e *endpoint) activePointer() namespace.Pointer {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.status.Active
}

// run follows the channel until the mount is gone, then cleans up.
func (e *endpoint) run() {
	if e.follower != nil {
		e.work.Go(func() { _ = e.follower.Run(e.ctx) }) // ends with ctx, and only then
	}
	e.work.Go(e.mindLease)
	e.server.Wait()
	e.cancel()
	e.work.Wait()
	e.source.Close()
	close(e.done)
}
