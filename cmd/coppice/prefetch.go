package main

import (
	"context"
	"time"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/object"
	"coppice.dev/coppice/namespace/trust"
)

// The kernel reads ahead around each fault in a mapped file. As long as content has to be fetched, most of
// that is fetched for nothing: 4 MiB make a cold start half as long again. What is here is read faster so.
const (
	readAheadCold = 128 // KiB: the kernel's default
	readAheadWarm = 4096
)

// widen lets the kernel read further ahead if all of the tree at root is here.
func (e *endpoint) widen(root namespace.Digest) {
	kb := readAheadCold
	if e.view.Whole(root) {
		kb = readAheadWarm
	}
	e.server.SetReadAhead(kb)
}

// fetchAhead fetches in the background what the version that was just activated will want: first what its
// profiles name, then all catalogs. What was under way for the version before is given up.
func (e *endpoint) fetchAhead(name string, root namespace.Digest) {
	ctx, cancel := context.WithCancel(e.ctx)
	e.mu.Lock()
	if e.ahead != nil {
		e.ahead()
	}
	e.ahead = cancel
	e.mu.Unlock()
	e.work.Go(func() {
		defer cancel()
		err := e.link.background(ctx, func(ctx context.Context) error {
			var left error
			if !e.req.NoAhead {
				left = e.prefetch(ctx, name, root)
			}
			e.view.Quiet(ctx)
			if err := e.view.HydrateMetadata(ctx, root); err != nil {
				return err
			}
			e.widen(root)
			return left
		})
		if err != nil && ctx.Err() == nil {
			e.log.Warn("not fetched ahead", "error", err)
		}
	})
}

// prefetch fetches what the profiles of a namespace name in the tree at root. An error is the network's, and
// worth another try; others are logged.
func (e *endpoint) prefetch(ctx context.Context, name string, root namespace.Digest) error {
	rec, err := e.profiles(ctx, name)
	for _, r := range rec.Profiles {
		if err != nil || ctx.Err() != nil {
			break
		}
		start := time.Now()
		if err = e.prefetchOne(ctx, r, root); err == nil {
			e.log.Info("profile fetched ahead", "profile", r.Name, "took", time.Since(start))
		}
	}
	if namespace.IsKind(err, namespace.Unavailable) || ctx.Err() != nil {
		return err
	}
	if err != nil {
		e.log.Warn("not fetched ahead", "what", "profiles", "error", err)
	}
	return nil
}

// profiles returns the record of a namespace's profiles, without any if there is none: the origin's or, if
// that is out of reach, the one that was verified before.
func (e *endpoint) profiles(ctx context.Context, name string) (namespace.Profiles, error) {
	n := namespace.RefName{Kind: namespace.ProfileRef, Name: name}
	raw, err := e.source.Ref(ctx, n)
	switch {
	case namespace.IsKind(err, namespace.NotExist):
		return namespace.Profiles{}, nil
	case namespace.IsKind(err, namespace.Unavailable):
		if kept, lerr := e.trust.keep.files().Load(n.String()); lerr == nil && kept != nil {
			raw, err = kept, nil
		}
	}
	if err != nil {
		return namespace.Profiles{}, err
	}
	rec, _, err := trust.Refs{Reader: oneRef(raw), Root: e.trust.keep.root.Load()}.Profiles(ctx, name)
	if err != nil {
		return namespace.Profiles{}, err
	}
	return rec, e.trust.keep.files().Save(n.String(), raw)
}

// prefetchOne fetches what one profile names: by its layout for root, or, if it has none or one that is out
// of date, by its paths.
func (e *endpoint) prefetchOne(ctx context.Context, r namespace.ProfileRecord, root namespace.Digest) error {
	if d := r.Layout(root); !d.IsZero() {
		err := e.prefetchLayout(ctx, d)
		switch {
		case err == nil || ctx.Err() != nil:
			return err
		case namespace.IsKind(err, namespace.Unavailable), namespace.IsKind(err, namespace.Limit):
			return err
		}
		e.log.Info("a layout is out of date", "profile", r.Name, "error", err)
	}
	b, err := e.view.Blob(ctx, r.Profile, namespace.ProfileBytesMax)
	if err != nil {
		return err
	}
	p, err := namespace.DecodeProfile(b, "profile "+r.Name)
	if err != nil {
		return err
	}
	return e.view.PrefetchProfile(ctx, root, p)
}

func (e *endpoint) prefetchLayout(ctx context.Context, d namespace.Digest) error {
	b, err := e.view.Blob(ctx, d, namespace.LayoutBytesMax)
	if err != nil {
		return err
	}
	l, err := object.OpenLayout(b)
	if err != nil {
		return err
	}
	return e.view.Prefetch(ctx, l)
}

// oneRef is a RefReader of a single record.
type oneRef []byte

// Ref implements namespace.RefReader.
func (r oneRef) Ref(context.Context, namespace.RefName) ([]byte, error) { return r, nil }

// Refs implements namespace.RefReader.
func (r oneRef) Refs(context.Context, string) ([]string, error) { return nil, nil }
