package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"coppice.dev/coppice/cache"
	"coppice.dev/coppice/fusefs"
	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/origin"
	"coppice.dev/coppice/namespace/trust"
	"coppice.dev/coppice/rollout"
	"coppice.dev/coppice/rollout/agent"
	"coppice.dev/coppice/rollout/identity"
)

// endpoint is one mount: an origin seen through the cache, what is to be active, and the kernel's
// view of it.
type endpoint struct {
	req    mountRequest
	log    *slog.Logger
	trust  endpointTrust
	source *origin.Sources
	link   *linkKeeper
	view   *cache.Reader
	cache  *cache.Cache
	server *fusefs.Server
	key    string // what to say of the origin's server, if its key was pinned just now

	follower *rollout.Follower // nil for a fixed version, and where the agent decides
	loop     *agent.Loop       // nil unless the agent decides
	ctx      context.Context   // of the follower and of background work
	cancel   context.CancelFunc
	work     sync.WaitGroup
	done     chan struct{} // closed when all is over
	resumed  bool          // an older version is shown until the first one is staged; used by one goroutine at a time

	swap        sync.Mutex // held while what is shown changes
	leaseOver   bool
	quarantined bool

	mu       sync.Mutex
	status   rollout.Status
	previous namespace.Pointer
	root     namespace.Digest   // catalog of the active version
	ahead    context.CancelFunc // of what is fetched ahead for the active version
}

// openEndpoint makes a mount with its version active. pinned is the id of an origin whose root
// was pinned just now.
func (d *daemon) openEndpoint(ctx context.Context, req mountRequest) (e *endpoint, pinned string, err error) {
	opened, pinned, err := d.openSource(ctx, req)
	if err != nil {
		return nil, "", err
	}
	e = opened
	defer func() {
		if err != nil { // e may be nil by now
			opened.discard()
		}
	}()
	if err := fusefs.Recover(req.Dir); err != nil {
		return nil, "", err
	}
	e.server, err = fusefs.Mount(ctx, fusefs.Options{
		Dir: req.Dir, Source: quarantineView{e.view}, RunDir: filepath.Join(req.RunDir, "fuse"), Name: req.Target,
		AllowSuid: req.AllowSuid, AllowDev: req.AllowDev, DenyExec: req.DenyExec, Logger: e.log, ReadAheadKB: readAheadCold,
	})
	if err != nil {
		return nil, "", err
	}
	e.link.meet(ctx)
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

// openSource makes an endpoint that has an origin and no mount yet. Whoever does without one discards it.
func (d *daemon) openSource(ctx context.Context, req mountRequest) (*endpoint, string, error) {
	var pinnedKey atomic.Value
	known := knownServers(d.dir, func(host string, pin identity.Pin) { pinnedKey.Store(host + ": pinned its key " + pin.String()) })
	keep, err := d.trustOf(req.sources())
	if err != nil {
		return nil, "", err
	}
	src, link, err := d.openSources(ctx, req, keep, known)
	if err != nil {
		return nil, "", err
	}
	_, pinned, err := keep.pin(ctx, src, req.Trust)
	if err != nil {
		return nil, "", errors.Join(err, src.Close())
	}
	src.Trust(keep.believes)
	e := &endpoint{req: req, log: d.log.With("dir", req.Dir), done: make(chan struct{}), source: src, link: link, cache: d.cache,
		trust: endpointTrust{keep, trust.OriginDocuments(src, sourceBlobs{src})}, view: d.cache.Reader(src)}
	e.key, _ = pinnedKey.Load().(string)
	e.view.SetWatch(link)
	e.ctx, e.cancel = context.WithCancel(context.Background())
	e.work.Go(func() { link.run(e.ctx) })
	d.rates.Store(req.Origin, e.view)
	return e, pinned, nil
}

// discard ends an endpoint that has no mount.
func (e *endpoint) discard() {
	e.cancel()
	e.work.Wait()
	if err := e.source.Close(); err != nil {
		e.log.Warn("origin not closed", "error", err)
	}
}

// start activates the first version.
func (e *endpoint) start(ctx context.Context) error {
	if e.req.Agent != nil {
		return e.startLoop()
	}
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
	n := namespace.RefName{Kind: namespace.ChannelRef, Name: e.req.Target}
	if kept, err := e.trust.keep.files().Load(n.String()); err == nil && kept != nil {
		e.source.Seen(n, kept)
	}
	e.follower = rollout.New(rollout.Options{
		Channel: e.req.Target, Reader: e.source, Trust: e.trust,
		Activator: e, Check: e.req.Check, Poll: e.req.Poll, Logger: e.log, Wake: e.link.wake,
		Notify: func(s rollout.Status) {
			e.mu.Lock()
			if s.Active.Manifest.IsZero() { // the follower knows nothing of what resume showed
				s.Active = e.status.Active
			}
			e.status = s
			e.mu.Unlock()
		},
	})
	err := e.resume(ctx)
	if err == nil {
		err = e.follower.Start(ctx)
	}
	if errors.Is(err, errStagedLater) {
		err = nil
	}
	return err
}

// errStagedLater says that a version is not shown at the start, since another one that is complete is,
// beside which it is completed.
var errStagedLater = errors.New("completed first")

// resume shows the generation that was active when the mount was last here, if the channel has moved on
// since and --stage asks for content that the new one may lack. Without a network nobody knows, and the
// follower shows what it remembers, which is that generation or one that was being staged.
func (e *endpoint) resume(ctx context.Context) error {
	if e.req.Stage == stageMetadata {
		return nil
	}
	for _, h := range e.holds() {
		for _, g := range h.Generations {
			if g.Role != cache.Active || e.wanted(g.Manifest).Empty() && e.req.Stage != stageAll {
				continue
			}
			v, err := namespace.ParseVersion(g.Version)
			if err != nil {
				continue
			}
			if ready, err := e.cache.Ready(ctx, h, false); err != nil || !slices.ContainsFunc(ready, func(r cache.Readiness) bool {
				return r.Role == cache.Active && r.Complete
			}) {
				continue
			}
			if now, err := e.pointer(ctx); err != nil || now.Manifest == g.Manifest {
				return nil // the follower says what is wrong
			}
			e.resumed = true
			return e.Activate(ctx, namespace.Pointer{Version: v, Manifest: g.Manifest})
		}
	}
	return nil
}

// fixed resolves a namespace version that somebody vouches for, and notes that it was used here.
func (e *endpoint) fixed(ctx context.Context, v namespace.Version) (namespace.Pointer, error) {
	one, err := e.trust.vouched(ctx, v)
	if err != nil {
		return namespace.Pointer{}, err
	}
	p := namespace.Pointer{Version: one.Version, Manifest: one.Manifest}
	e.mu.Lock()
	e.status.Desired = p
	e.mu.Unlock()
	return p, e.trust.keep.use(one)
}

// Stage implements rollout.Activator: the manifest and all catalogs are fetched, so that the swap
// waits for no network and the new version can be listed offline at once, and the content that --stage
// asks for: it is completed beside the version that is shown, and flips as a whole. The first version
// is not waited for: a mount of a huge tree should appear at once.
func (e *endpoint) Stage(ctx context.Context, p namespace.Pointer) error {
	if e.resumed {
		e.resumed = false
		return errStagedLater
	}
	m, err := e.manifest(ctx, p.Manifest)
	active := e.activePointer().Manifest
	if err != nil || active.IsZero() {
		return err
	}
	g := held(p, m)
	err = e.eachHold(func(h *cache.Hold) {
		for _, x := range h.Generations { // what was fetched of this one is wanted of the next
			if x.Manifest == active {
				g.Hydrated = x.Hydrated
			}
		}
		h.Stage(g)
		g.Hydrated = cache.Selection{}
	})
	if err == nil {
		err = e.view.HydrateMetadata(ctx, m.Root)
	}
	if err != nil {
		return err
	}
	if !e.req.NoAhead { // not waited for: a fix does not wait for what only saves time
		e.background(func(ctx context.Context) error { return e.prefetch(ctx, p.Version.Name, m.Root) }, "profiles")
	}
	return e.stageContent(ctx, p, g)
}

// Activate implements rollout.Activator.
func (e *endpoint) Activate(ctx context.Context, p namespace.Pointer) error {
	m, err := e.manifest(ctx, p.Manifest)
	if err != nil {
		return err
	}
	e.swap.Lock()
	if err = e.show(ctx, p); err == nil {
		e.quarantined = false
	}
	e.swap.Unlock()
	if err != nil {
		return err
	}
	e.mu.Lock()
	e.previous, e.status.Active, e.root = e.status.Active, p, m.Root
	e.mu.Unlock()
	e.fetchAhead(p.Version.Name, m.Root)
	g := held(p, m)
	if err := e.eachHold(func(h *cache.Hold) { h.Activate(g) }); err != nil {
		e.log.Error("what is shown may be evicted: it could not be noted", "version", g.Version, "error", err)
	}
	if want := e.wanted(g.Manifest); !want.Empty() {
		e.background(func(ctx context.Context) error {
			err := e.fill(ctx, g, cache.FillOptions{Select: want})
			e.widen(m.Root)
			return err
		}, g.Version)
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

// background fetches ahead while the mount is in use and the link is for it. Meanwhile, and if it fails,
// reads fetch.
func (e *endpoint) background(fetch func(context.Context) error, what string) {
	e.work.Go(func() {
		if err := e.link.background(e.ctx, fetch); err != nil && e.ctx.Err() == nil {
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

// activeRoot returns the root catalog of the active version; zero before there is one.
func (e *endpoint) activeRoot() namespace.Digest {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.root
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
	if e.loop != nil {
		e.work.Go(func() { e.loop.Run(e.ctx) })
	}
	e.work.Go(e.healMisses)
	e.work.Go(e.mindLease)
	e.server.Wait()
	e.cancel()
	e.work.Wait()
	e.source.Close()
	close(e.done)
}

// healEvery is how often what reads did not get is looked through, while the link is for it.
const healEvery = 30 * time.Second

// healMisses fetches what reads needed and did not get, whenever the link is for it.
func (e *endpoint) healMisses() {
	for e.ctx.Err() == nil {
		err := e.link.background(e.ctx, func(ctx context.Context) error {
			n, err := e.view.FetchMisses(ctx)
			if n > 0 {
				e.log.Info("fetched what reads did not get", "objects", n)
			}
			return err
		})
		if err != nil && e.ctx.Err() == nil {
			e.log.Warn("not fetched", "what", "misses", "error", err)
		}
		e.link.next(e.ctx, healEvery)
	}
}

// collectors returns the metrics of a mount.
func (e *endpoint) collectors() []prometheus.Collector {
	online := prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "coppice_link_online", Help: "Whether a source of the mount answers."},
		func() float64 {
			if e.link.Link().State == cache.LinkOnline {
				return 1
			}
			return 0
		})
	return []prometheus.Collector{e.server.Collector(), e.source, online}
}
