package main

import (
	"context"
	"time"

	"coppice.dev/coppice/cache"
	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/catalog"
	"coppice.dev/coppice/namespace/trust"
)

// leaseEvery is how often a mount looks at its lease, at most: what it bounds is days.
const leaseEvery = 30 * time.Second

// emptyTree is what a mount in quarantine shows: a directory with nothing in it.
var emptyTree, emptyRoot = func() ([]byte, namespace.Digest) {
	b, err := catalog.Encode(&catalog.Node{Attr: catalog.Attr{Type: catalog.Dir, Mode: 0o555}})
	if err != nil {
		return nil, namespace.Digest{}
	}
	return b, namespace.Sum(b)
}()

// quarantineView is a cache's reader that also has the empty tree.
type quarantineView struct{ *cache.Reader }

// Catalog implements catalog.Loader.
func (v quarantineView) Catalog(ctx context.Context, d namespace.Digest) (*catalog.Catalog, error) {
	if d == emptyRoot {
		return catalog.Open(emptyTree)
	}
	return v.Reader.Catalog(ctx, d)
}

// minded says how the mount stands with the two clocks.
func (e *endpoint) minded() trust.Standing {
	return e.trust.keep.standing(trust.Policy{Lease: e.req.Lease, Then: e.req.Then})
}

// mindLease does what the policy asks for when the lease is over, until the mount ends.
func (e *endpoint) mindLease() {
	tick := time.NewTicker(leaseEvery)
	if e.req.Lease > 0 {
		tick.Reset(min(leaseEvery, max(e.req.Lease/8, 100*time.Millisecond)))
	}
	defer tick.Stop()
	checked := time.Now()
	for {
		if e.follower == nil && e.loop == nil && time.Since(checked) > e.req.Check { // else the follower does
			checked = time.Now()
			err := e.trust.keep.look(e.ctx, e.trust.from, func(*trust.Updater, *trust.Trusted) error { return nil })
			if err != nil && e.ctx.Err() == nil {
				e.log.Warn("no fresh word of the origin", "error", err)
			}
		}
		e.applyLease(e.minded())
		select {
		case <-e.ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// applyLease acts on a change of standing.
func (e *endpoint) applyLease(s trust.Standing) {
	e.swap.Lock()
	defer e.swap.Unlock()
	if s.LeaseOver == e.leaseOver {
		return
	}
	e.leaseOver = s.LeaseOver
	if !s.LeaseOver {
		e.log.Info("the origin was reached, the lease runs again", "until", s.LeaseUntil)
		if e.quarantined {
			e.quarantined = false
			if err := e.show(e.ctx, e.activePointer()); err != nil {
				e.quarantined, e.leaseOver = true, true // tried again
				e.log.Error("still in quarantine", "error", err)
			}
		}
		return
	}
	e.log.Warn("the lease is over: no fresh word of the origin", "since", s.LeaseUntil, "then", s.Then)
	if s.Then != trust.Quarantine {
		return
	}
	if _, err := e.server.Activate(e.ctx, emptyRoot, "quarantine"); err != nil {
		e.leaseOver = false // tried again
		e.log.Error("not in quarantine", "error", err)
		return
	}
	e.quarantined = true
}
