package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"coppice.dev/coppice/cache"
	"coppice.dev/coppice/fusefs"
	"coppice.dev/coppice/internal/disk"
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
	state  stateDir
	source io.Closer // of the origin
	refs   trust.Refs
	view   *cache.Reader
	cache  *cache.Cache
	server *fusefs.Server

	follower *rollout.Follower // nil for a fixed version
	ctx      context.Context   // of the follower and of background work
	cancel   context.CancelFunc
	work     sync.WaitGroup
	done     chan struct{} // closed when all is over
	resumed  bool          // an older version is shown until the first one is staged; used by one goroutine at a time

	mu       sync.Mutex
	status   rollout.Status
	previous namespace.Pointer
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
			opened.cancel()
			opened.source.Close()
		}
	}()
	if err := fusefs.Recover(req.Dir); err != nil {
		return nil, "", err
	}
	e.server, err = fusefs.Mount(ctx, fusefs.Options{
		Dir: req.Dir, Source: e.view, RunDir: filepath.Join(req.RunDir, "fuse"), Name: req.Target,
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

// openSource makes an endpoint that has an origin and no mount yet. Whoever does without one cancels it
// and closes its source.
func (d *daemon) openSource(ctx context.Context, req mountRequest) (*endpoint, string, error) {
	src, err := origin.Open(ctx, req.Origin, origin.Options{HTTP: origin.ClientOptions{Poll: req.Poll}})
	if err != nil {
		return nil, "", err
	}
	root, pinned, err := d.trustOrigin(ctx, src, req)
	if err != nil {
		src.Close()
		return nil, "", err
	}
	e := &endpoint{req: req, log: d.log.With("dir", req.Dir), done: make(chan struct{}), source: src, cache: d.cache,
		state: stateDir(filepath.Join(d.dir, "state", root.ID)),
		refs:  trust.Refs{Reader: src, Root: root}, view: d.cache.Reader(src)}
	e.ctx, e.cancel = context.WithCancel(context.Background())
	d.rates.Store(req.Origin, e.view)
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
		Channel: e.req.Target, Reader: e.refs.Reader, Root: e.refs.Root, Memory: e.state,
		Activator: e, Poll: e.req.Poll, Logger: e.log,
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
	e.previous, e.status.Active = e.status.Active, p
	e.mu.Unlock()
	g := held(p, m)
	if err := e.eachHold(func(h *cache.Hold) { h.Activate(g) }); err != nil {
		e.log.Error("what is shown may be evicted: it could not be noted", "version", g.Version, "error", err)
	}
	e.background(func(ctx context.Context) error {
		if err := e.view.HydrateMetadata(ctx, m.Root); err != nil {
			return err
		}
		if want := e.wanted(g.Manifest); !want.Empty() {
			return e.fill(ctx, g, cache.FillOptions{Select: want})
		}
		return nil
	}, g.Version)
	return nil
}

// againMin and againMax bound the pause before fetching ahead is tried again.
const (
	againMin = time.Second
	againMax = time.Minute
)

// background fetches ahead while the mount is in use. Meanwhile, and if it fails, reads fetch; as long as
// the origin is out of reach it is tried again.
func (e *endpoint) background(fetch func(context.Context) error, what string) {
	e.work.Go(func() {
		for pause := againMin; ; pause = min(2*pause, againMax) {
			err := fetch(e.ctx)
			if err == nil || e.ctx.Err() != nil {
				return
			}
			e.log.Warn("not hydrated", "what", what, "error", err)
			if !namespace.IsKind(err, namespace.Unavailable) {
				return
			}
			select {
			case <-e.ctx.Done():
				return
			case <-time.After(pause):
			}
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
	e.server.Wait()
	e.cancel()
	e.work.Wait()
	e.source.Close()
	close(e.done)
}

// trustOrigin returns the origin's root of trust: the one given with the request, or pinned for
// the origin before, or, at first contact, the one it presents, which is pinned then.
func (d *daemon) trustOrigin(ctx context.Context, src namespace.RefReader, req mountRequest) (*trust.Root, string, error) {
	sum := sha256.Sum256([]byte(req.Origin))
	pin := filepath.Join(d.dir, "trust", hex.EncodeToString(sum[:8])+".json")
	pinned, err := os.ReadFile(pin)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, "", disk.Error("read", pin, err)
	}
	if req.Trust != nil {
		pinned = req.Trust
	}
	root, presented, err := trust.FetchRoot(ctx, src)
	if namespace.IsKind(err, namespace.Unavailable) && pinned != nil {
		root, err = trust.OpenRoot(pinned)
		return root, "", err
	}
	if err != nil {
		return nil, "", err
	}
	if pinned != nil {
		if err := trust.CheckPin(pinned, presented); err != nil {
			return nil, "", namespace.WithHint(err, "if the origin was made anew on purpose, remove "+pin)
		}
	}
	news := ""
	if pinned == nil {
		news = root.ID
	}
	return root, news, disk.Replace(pin, presented, 0o600)
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

func (s stateDir) write(name string, b []byte) error { return disk.Replace(s.path(name), b, 0o600) }
