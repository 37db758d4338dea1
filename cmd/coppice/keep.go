package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"coppice.dev/coppice/cache"
	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/trust"
	"coppice.dev/coppice/rollout/identity"
)

// The daemon's side of pins: which generation a pin means, what is fetched for it, and when.

// keepRequest names what is pinned, hydrated or looked at: the mount at Dir, or a target of an origin,
// or, if both are empty, everything that is pinned.
type keepRequest struct {
	Dir      string          `json:"dir,omitempty"`
	Target   string          `json:"target,omitempty"`
	Origin   string          `json:"origin,omitempty"`
	Select   cache.Selection `json:"select"`
	Priority int             `json:"priority,omitempty"`
	Rate     int64           `json:"rate,omitempty"`  // bytes a second; 0: no bound
	Deep     bool            `json:"deep,omitempty"`  // read and hash everything
	Quota    int64           `json:"quota,omitempty"` // 0: as it is
	// Transport says how the origin of a target that is not mounted proves itself, and this endpoint to it.
	Transport identity.Transport `json:"transport,omitzero"`
}

// readiness is the state of a generation that is held, and how long what is missing takes.
type readiness struct {
	cache.Readiness
	Rate    int64 `json:"rate,omitempty"`    // bytes a second that the origin delivered of late
	Seconds int64 `json:"seconds,omitempty"` // FetchBytes at Rate, rounded up
}

// holdID is the name of a hold: one pin for each target of an origin, one hold for each mount.
func holdID(kind cache.HoldKind, parts ...string) string {
	sum := sha256.Sum256([]byte(strings.Join(parts, "\x00")))
	return string(kind) + "-" + hex.EncodeToString(sum[:8])
}

func (e *endpoint) pinID() string { return holdID(cache.Pinned, e.req.Origin, e.req.Target) }
func (e *endpoint) mountID() string {
	return holdID(cache.Mounted, e.req.Origin, e.req.Target, e.req.Dir)
}

// held is the generation that a pointer means.
func held(p namespace.Pointer, m namespace.Manifest) cache.Held {
	return cache.Held{Version: p.Version.String(), Manifest: p.Manifest, Root: m.Root}
}

// holds returns the pin of e's target, if there is one, and the hold of the mount.
func (e *endpoint) holds() []cache.Hold {
	pin, mount := e.pinID(), e.mountID()
	return slices.DeleteFunc(e.cache.Holds(), func(h cache.Hold) bool { return h.ID != pin && h.ID != mount })
}

// eachHold changes the pin of e's target, if there is one, and the hold of the mount, which is made.
func (e *endpoint) eachHold(fn func(*cache.Hold)) error {
	_, err := e.cache.ChangeHold(e.mountID(), func(h *cache.Hold) {
		if h.ID == "" {
			*h = cache.Hold{ID: e.mountID(), Kind: cache.Mounted, Target: e.req.Target, Origin: e.req.Origin, Created: time.Now().UTC()}
		}
		h.Select.All = e.req.Hydrate
		fn(h)
	})
	if err != nil {
		return err
	}
	_, err = e.cache.ChangeHold(e.pinID(), func(h *cache.Hold) {
		if h.ID != "" {
			fn(h)
		}
	})
	return err
}

// wanted returns what is held of a generation's content, by the pin and by the mount.
func (e *endpoint) wanted(manifest namespace.Digest) (s cache.Selection) {
	for _, h := range e.holds() {
		for _, g := range h.Generations {
			if g.Manifest == manifest {
				w := h.Wanted(g)
				s.All, s.Paths = s.All || w.All, append(s.Paths, w.Paths...)
			}
		}
	}
	if s.All {
		s.Paths = nil
	}
	return s
}

// fill fetches what is wanted of a generation and notes the proof where that is all that is held.
func (e *endpoint) fill(ctx context.Context, g cache.Held, o cache.FillOptions) error {
	proof, err := e.view.Fill(ctx, g.Root, o)
	if err != nil {
		return err
	}
	for _, h := range e.holds() {
		_, err = e.cache.ChangeHold(h.ID, func(h *cache.Hold) {
			for i, x := range h.Generations {
				if w := h.Wanted(x); x.Manifest == g.Manifest && w.All == o.Select.All && slices.Equal(w.Paths, o.Select.Paths) {
					h.Generations[i].Proof = &proof
				}
			}
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// pointer returns what e's target means now: what the origin says or, if that is out of reach, what was
// verified last.
func (e *endpoint) pointer(ctx context.Context) (namespace.Pointer, error) {
	if strings.Contains(e.req.Target, "@") {
		v, err := namespace.ParseVersion(e.req.Target)
		if err != nil {
			return namespace.Pointer{}, err
		}
		return e.fixed(ctx, v)
	}
	b, err := e.source.Ref(ctx, namespace.RefName{Kind: namespace.ChannelRef, Name: e.req.Target})
	var p namespace.Pointer
	if err == nil {
		p, err = e.trust.Accept(ctx, e.req.Target, b)
	}
	if !namespace.IsKind(err, namespace.Unavailable) {
		return p, err
	}
	last, known, rerr := e.trust.Recall(ctx, e.req.Target)
	if rerr != nil || !known {
		return p, errors.Join(err, rerr)
	}
	return last, nil
}

// subject finds what a request names: the endpoint, a mounted one if there is one, and the generation.
// The caller calls done.
func (d *daemon) subject(ctx context.Context, req keepRequest) (e *endpoint, g cache.Held, done func(), err error) {
	done = func() {}
	for _, x := range d.endpoints() {
		if req.Dir != "" && x.req.Dir == req.Dir || req.Dir == "" && x.req.Target == req.Target && x.req.Origin == req.Origin {
			e = x
		}
	}
	var p namespace.Pointer
	switch {
	case e != nil:
		p = e.activePointer()
	case req.Dir != "":
		_, err = d.find(req.Dir)
	default:
		if e, _, err = d.openSource(ctx, mountRequest{Target: req.Target, Origin: req.Origin, Transport: req.Transport, Links: defaultRules()}); err == nil {
			done = e.discard
			e.link.meet(ctx)
			p, err = e.pointer(ctx)
		}
	}
	if err == nil {
		var m namespace.Manifest
		if m, err = e.manifest(ctx, p.Manifest); err == nil {
			return e, held(p, m), done, nil
		}
	}
	done()
	return nil, g, func() {}, err
}

// pin makes or replaces the pin of a target and says what is missing for it. The content is fetched
// at once for a mount, else by a hydrate.
func (d *daemon) pin(ctx context.Context, req keepRequest) ([]readiness, error) {
	if err := d.setQuota(req.Quota); err != nil {
		return nil, err
	}
	if err := req.Select.Check(); err != nil {
		return nil, err
	}
	e, g, done, err := d.subject(ctx, req)
	if err != nil {
		return nil, err
	}
	defer done()
	if err := e.view.HydrateMetadata(ctx, g.Root); err != nil {
		return nil, err
	}
	h, err := d.cache.ChangeHold(e.pinID(), func(h *cache.Hold) {
		if h.ID == "" {
			*h = cache.Hold{ID: e.pinID(), Kind: cache.Pinned, Target: e.req.Target, Origin: e.req.Origin, Created: time.Now().UTC().Truncate(time.Second)}
		}
		h.Select, h.Priority = req.Select, req.Priority
		for i := range h.Generations {
			h.Generations[i].Proof = nil
		}
		h.Activate(g)
	})
	if err != nil {
		return nil, err
	}
	if e.server != nil {
		e.background(func(ctx context.Context) error {
			return e.fill(ctx, g, cache.FillOptions{Select: e.wanted(g.Manifest)})
		}, "pinned content")
	}
	return d.readyOf(ctx, []cache.Hold{h}, false)
}

// unpin removes a pin. What it kept stays until room is needed.
func (d *daemon) unpin(_ context.Context, req keepRequest) (struct{}, error) {
	if req.Dir != "" {
		e, err := d.find(req.Dir)
		if err != nil {
			return struct{}{}, err
		}
		req.Target, req.Origin = e.req.Target, e.req.Origin
	}
	found := false
	for _, h := range d.cache.Holds() {
		if h.Kind != cache.Pinned || h.Target != req.Target || req.Origin != "" && h.Origin != req.Origin {
			continue
		}
		found = true
		if _, err := d.cache.ChangeHold(h.ID, func(h *cache.Hold) { h.ID = "" }); err != nil {
			return struct{}{}, err
		}
	}
	if !found {
		return struct{}{}, namespace.WithHint(namespace.E(namespace.NotExist, "unpin", req.Target, errors.New("it is not pinned")), "`coppice cache pins` lists what is")
	}
	return struct{}{}, nil
}

// ready answers for the pins, or for what the mount at req.Dir keeps.
func (d *daemon) ready(ctx context.Context, req keepRequest) ([]readiness, error) {
	if err := d.setQuota(req.Quota); err != nil {
		return nil, err
	}
	holds := slices.DeleteFunc(d.cache.Holds(), func(h cache.Hold) bool { return h.Kind != cache.Pinned })
	if req.Dir != "" {
		e, err := d.find(req.Dir)
		if err != nil {
			return nil, err
		}
		holds = e.holds()
	}
	return d.readyOf(ctx, holds, req.Deep)
}

func (d *daemon) setQuota(n int64) error {
	if n == 0 {
		return nil
	}
	return d.cache.SetQuota(n)
}

// readyOf checks holds, and tells how long what is missing takes.
func (d *daemon) readyOf(ctx context.Context, holds []cache.Hold, deep bool) ([]readiness, error) {
	all := []readiness{}
	for _, h := range holds {
		found, err := d.cache.Ready(ctx, h, deep)
		if err != nil {
			return nil, err
		}
		for _, r := range found {
			all = append(all, d.timed(r))
		}
	}
	return all, nil
}

func (d *daemon) timed(r cache.Readiness) readiness {
	t := readiness{Readiness: r}
	if r.Complete {
		return t
	}
	if v, ok := d.rates.Load(r.Origin); ok {
		t.Rate = v.(*cache.Reader).Rate()
	}
	if t.Rate > 0 {
		t.Seconds = (r.FetchBytes + t.Rate - 1) / t.Rate
	}
	return t
}

// hydrate fetches content, telling of its progress line by line.
func (d *daemon) hydrate(w http.ResponseWriter, r *http.Request) {
	var req keepRequest
	err := json.NewDecoder(r.Body).Decode(&req)
	enc, flush := json.NewEncoder(w), http.NewResponseController(w)
	if err == nil {
		err = d.enter(req.Target)
	}
	if err == nil {
		defer d.exit()
		var last time.Time
		err = d.hydrateAll(r.Context(), req, func(what string, done, total int64) {
			if time.Since(last) > 100*time.Millisecond {
				last = time.Now()
				_ = enc.Encode(hydrateUpdate{What: what, Done: done, Total: total})
				_ = flush.Flush()
			}
		})
	}
	end := hydrateUpdate{End: true}
	if err != nil {
		end.Error = wireError(err)
	}
	_ = enc.Encode(end)
}

// hydrateAll fetches what a request names: of one target, or what all pins name, the most important first.
func (d *daemon) hydrateAll(ctx context.Context, req keepRequest, tell func(what string, done, total int64)) error {
	if err := d.setQuota(req.Quota); err != nil {
		return err
	}
	if req.Dir != "" || req.Target != "" {
		return d.hydrateOne(ctx, req, tell)
	}
	pins := slices.DeleteFunc(d.cache.Holds(), func(h cache.Hold) bool { return h.Kind != cache.Pinned })
	if len(pins) == 0 {
		return namespace.WithHint(namespace.E(namespace.NotExist, "hydrate", "pins", errors.New("nothing is pinned")),
			"`coppice cache pin CHANNEL` pins, `coppice cache hydrate DIR` fetches without")
	}
	for _, h := range pins {
		one := req
		one.Target, one.Origin, one.Select = h.Target, h.Origin, cache.Selection{}
		if err := d.hydrateOne(ctx, one, tell); err != nil {
			return err
		}
	}
	return nil
}

// hydrateOne fetches content of one target: what is selected, or else what is held of it, or else all.
func (d *daemon) hydrateOne(ctx context.Context, req keepRequest, tell func(what string, done, total int64)) error {
	e, g, done, err := d.subject(ctx, req)
	if err != nil {
		return err
	}
	defer done()
	pinned := req.Select.Empty() && slices.ContainsFunc(e.holds(), func(h cache.Hold) bool { return h.Kind == cache.Pinned })
	switch {
	case pinned: // the channel may have moved since
		if _, err := e.cache.ChangeHold(e.pinID(), func(h *cache.Hold) {
			if h.ID != "" {
				h.Activate(g)
			}
		}); err != nil {
			return err
		}
		req.Select = e.wanted(g.Manifest)
	case req.Select.Empty():
		req.Select.All = true
	}
	err = e.fill(namespace.InBackground(ctx, nil), g, cache.FillOptions{Select: req.Select, Rate: req.Rate,
		Progress: func(done, total int64) { tell(g.Version, done, total) }})
	if e.server != nil {
		e.widen(g.Root)
	}
	if err != nil || pinned || e.server == nil {
		return err
	}
	return e.hydrated(g.Manifest, req.Select)
}

// hydrated notes what was fetched on purpose of a version: it stays as long as that may be shown.
func (e *endpoint) hydrated(manifest namespace.Digest, s cache.Selection) error {
	return e.eachHold(func(h *cache.Hold) {
		for i, x := range h.Generations {
			if h.Kind != cache.Mounted || x.Manifest != manifest {
				continue
			}
			x.Hydrated.All = x.Hydrated.All || s.All
			x.Hydrated.Paths = slices.Concat(x.Hydrated.Paths, s.Paths)
			slices.Sort(x.Hydrated.Paths)
			x.Hydrated.Paths = slices.Compact(x.Hydrated.Paths)
			h.Generations[i] = x
		}
	})
}

// enter keeps the daemon from ending while a request without a mount is served; exit lets it go.
func (d *daemon) enter(subject string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ending {
		return namespace.E(namespace.Unavailable, "ask daemon", subject, errEnding)
	}
	d.busy++
	return nil
}

func (d *daemon) exit() {
	d.mu.Lock()
	d.busy--
	d.mu.Unlock()
	time.AfterFunc(lingerIdle, d.endIfEmpty)
}

// lingerIdle is how long a daemon without a mount waits after a request for the next one.
const lingerIdle = 300 * time.Millisecond

// busyWith makes a handler's function one that keeps the daemon from ending meanwhile.
func busyWith[Reply any](d *daemon, f func(context.Context, keepRequest) (Reply, error)) func(context.Context, keepRequest) (Reply, error) {
	return func(ctx context.Context, req keepRequest) (Reply, error) {
		if err := d.enter(req.Target); err != nil {
			var none Reply
			return none, err
		}
		defer d.exit()
		return f(ctx, req)
	}
}

// errSuperseded says that a generation is not staged to its end, since another one is wanted by now.
var errSuperseded = errors.New("another version is wanted by now")

// unlessSuperseded runs fn with a context that ends, with errSuperseded, when the channel moves on from p:
// a rollback must not wait for gigabytes of what it takes back.
func (e *endpoint) unlessSuperseded(ctx context.Context, p namespace.Pointer, fn func(context.Context) error) error {
	inner, cancel := context.WithCancelCause(ctx)
	var watching sync.WaitGroup
	watching.Go(func() {
		tick := time.NewTicker(max(e.req.Poll, time.Second))
		defer tick.Stop()
		for {
			select {
			case <-inner.Done():
				return
			case <-tick.C:
			}
			b, err := e.source.Ref(inner, namespace.RefName{Kind: namespace.ChannelRef, Name: e.req.Target})
			if err != nil {
				continue
			}
			if shown, err := trust.ReadPointer(e.req.Target, b); err != nil || shown.Seq == p.Seq {
				continue // nothing new, or nothing to be believed
			}
			if now, err := e.trust.Accept(inner, e.req.Target, b); err == nil && now.Manifest != p.Manifest {
				cancel(errSuperseded)
				return
			}
		}
	})
	err := fn(inner)
	if errors.Is(context.Cause(inner), errSuperseded) {
		err = namespace.E(namespace.Unavailable, "stage", p.Version.String(), errSuperseded)
	}
	cancel(nil)
	watching.Wait()
	return err
}

// The values of mount --stage: what of a new version is fetched before it is shown.
const (
	stageAll      = "all"
	stagePinned   = "pinned"
	stageMetadata = "metadata"
)

func checkStage(s string) error {
	switch s {
	case stageAll, stagePinned, stageMetadata:
		return nil
	}
	return usage("--stage %q: want all, pinned or metadata", s)
}

// stageContent fetches what must be here of a version before it is shown.
func (e *endpoint) stageContent(ctx context.Context, p namespace.Pointer, g cache.Held) error {
	want := e.wanted(g.Manifest)
	switch e.req.Stage {
	case stageMetadata:
		return nil
	case stageAll:
		want = cache.Selection{All: true}
	}
	if want.Empty() {
		return nil
	}
	fetch := func(ctx context.Context) error {
		return e.fill(namespace.InBackground(ctx, nil), g, cache.FillOptions{Select: want})
	}
	if e.follower == nil {
		return fetch(ctx)
	}
	err := e.unlessSuperseded(ctx, p, fetch)
	if err != nil {
		err = fmt.Errorf("staging %s: %w", p.Version, err)
	}
	return err
}
