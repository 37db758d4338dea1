package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io/fs"
	"log/slog"
	"net/url"
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
	"coppice.dev/coppice/internal/disk"
	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/origin"
	"coppice.dev/coppice/namespace/trust"
	"coppice.dev/coppice/rollout"
	"coppice.dev/coppice/rollout/identity"
)

// endpoint is one mount: an origin seen through the cache, what is to be active, and the kernel's
// view of it.
type endpoint struct {
	req    mountRequest
	log    *slog.Logger
	state  stateDir
	source *origin.Sources
	link   *linkKeeper
	refs   trust.Refs
	view   *cache.Reader
	cache  *cache.Cache
	server *fusefs.Server
	key    string // what to say of the origin's server, if its key was pinned just now

	follower *rollout.Follower // nil for a fixed version
	ctx      context.Context   // of the follower and of background work
	cancel   context.CancelFunc
	work     sync.WaitGroup
	done     chan struct{} // closed when all is over
	resumed  bool          // an older version is shown until the first one is staged; used by one goroutine at a time

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
		Dir: req.Dir, Source: e.view, RunDir: filepath.Join(req.RunDir, "fuse"), Name: req.Target,
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
	src, link, err := d.openSources(ctx, req, known)
	if err != nil {
		return nil, "", err
	}
	root, presented, pinned, err := d.trustOrigin(ctx, src, req)
	if err != nil {
		return nil, "", errors.Join(err, src.Close())
	}
	src.Trust(believes(root, presented))
	e := &endpoint{req: req, log: d.log.With("dir", req.Dir), done: make(chan struct{}), source: src, link: link, cache: d.cache,
		state: stateDir(filepath.Join(d.dir, "state", root.ID)),
		refs:  trust.Refs{Reader: src, Root: root}, view: d.cache.Reader(src)}
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
	if kept, err := e.state.read(n.String()); err == nil && kept != nil {
		e.source.Seen(n, kept)
	}
	e.follower = rollout.New(rollout.Options{
		Channel: e.req.Target, Reader: e.refs.Reader, Root: e.refs.Root, Memory: e.state,
		Activator: e, Poll: e.req.Poll, Logger: e.log, Wake: e.link.wake,
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

// fixed resolves a namespace version, from the origin or, if that is out of reach, from what was
// verified before.
func (e *endpoint) fixed(ctx context.Context, v namespace.Version) (namespace.Pointer, error) {
	n := namespace.RefName{Kind: namespace.NamespaceRef, Name: v.Name}
	raw, err := e.refs.Reader.Ref(ctx, n)
	if namespace.IsKind(err, namespace.Unavailable) {
		if kept, lerr := e.state.read(n.String()); lerr == nil && kept != nil {
			raw, err = kept, nil
		}
	}
	if err != nil {
		return namespace.Pointer{}, err
	}
	kept := trust.Refs{Reader: oneRef(raw), Root: e.refs.Root}
	nv, v, err := kept.ResolveNamespace(ctx, v)
	if err != nil {
		return namespace.Pointer{}, err
	}
	p := namespace.Pointer{Version: v, Manifest: nv.Manifest, Issued: nv.Created}
	e.mu.Lock()
	e.status.Desired = p
	e.mu.Unlock()
	return p, e.state.write(n.String(), raw)
}

// oneRef is a RefReader of a single record.
type oneRef []byte

// Ref implements namespace.RefReader.
func (r oneRef) Ref(context.Context, namespace.RefName) ([]byte, error) { return r, nil }

// Refs implements namespace.RefReader.
func (r oneRef) Refs(context.Context, string) ([]string, error) { return nil, nil }

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
	if _, err := e.server.Activate(ctx, m.Root, p.Version.String()); err != nil {
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
	e.work.Go(e.healMisses)
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

// trustOrigin returns the origin's root of trust, and its record: the one given with the request, or pinned for
// the origin before, or, at first contact, the one it presents, which is pinned then.
func (d *daemon) trustOrigin(ctx context.Context, src namespace.RefReader, req mountRequest) (r *trust.Root, record []byte, news string, err error) {
	pin, pinned, err := d.findPin(req.sources())
	if err != nil {
		return nil, nil, "", err
	}
	if req.Trust != nil {
		pinned = req.Trust
	}
	root, presented, err := trust.FetchRoot(ctx, src)
	if namespace.IsKind(err, namespace.Unavailable) && pinned != nil {
		root, err = trust.OpenRoot(pinned)
		return root, pinned, "", err
	}
	if err != nil {
		return nil, nil, "", err
	}
	if pinned != nil {
		if err := trust.CheckPin(pinned, presented); err != nil {
			return nil, nil, "", namespace.WithHint(err, "if the origin was made anew on purpose, remove "+pin)
		}
	}
	if pinned == nil {
		news = root.ID
	}
	return root, presented, news, disk.Replace(pin, presented, 0o600)
}

// findPin returns what was pinned for the first of several sources that has been met before, so that
// another order of them is no first contact; and the file for it, or for the preferred one.
func (d *daemon) findPin(locations []string) (file string, pinned []byte, err error) {
	for i, loc := range locations {
		sum := sha256.Sum256([]byte(loc))
		pin := filepath.Join(d.dir, "trust", hex.EncodeToString(sum[:8])+".json")
		b, err := os.ReadFile(pin)
		if err == nil {
			return pin, b, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return "", nil, disk.Error("read", pin, err)
		}
		if i == 0 {
			file = pin
		}
	}
	return file, nil, nil
}

// stateDir remembers what was accepted from one origin: envelopes, by ref. It implements
// rollout.Memory.
type stateDir string

// Load implements rollout.Memory.
func (s stateDir) Load(channel string) ([]byte, error) {
	return s.read(namespace.ChannelRef + "/" + channel)
}

// Save implements rollout.Memory.
func (s stateDir) Save(channel string, envelope []byte) error {
	return s.write(namespace.ChannelRef+"/"+channel, envelope)
}

// path escapes a ref's name into one file name.
func (s stateDir) path(name string) string {
	return filepath.Join(string(s), url.PathEscape(name)+".json")
}

func (s stateDir) read(name string) ([]byte, error) {
	b, err := os.ReadFile(s.path(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, disk.Error("read", s.path(name), err)
	}
	return b, nil
}

// refs returns the names of all refs that are remembered.
func (s stateDir) refs() (all []namespace.RefName) {
	files, _ := filepath.Glob(filepath.Join(string(s), "*.json"))
	for _, f := range files {
		name, err := url.PathUnescape(strings.TrimSuffix(filepath.Base(f), ".json"))
		kind, rest, ok := strings.Cut(name, "/")
		if n := (namespace.RefName{Kind: kind, Name: rest}); err == nil && ok && n.Check() == nil {
			all = append(all, n)
		}
	}
	return all
}

func (s stateDir) write(name string, b []byte) error { return disk.Replace(s.path(name), b, 0o600) }
