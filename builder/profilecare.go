package builder

import (
	"context"
	"fmt"
	"slices"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/object"
)

// profiles retains the profiles of a namespace, and their layouts for roots that are retained.
func (r *retaining) profiles(ctx context.Context, name string) error {
	rec, found, err := r.refs.Profiles(ctx, name)
	if err != nil || !found {
		return err
	}
	r.Profiles = append(r.Profiles, name)
	roots := map[namespace.Digest]bool{}
	for _, t := range r.Trees {
		roots[t.Root] = true
	}
	for _, p := range rec.Profiles {
		r.Blobs = append(r.Blobs, p.Profile)
		for _, l := range p.Layouts {
			if roots[l.Root] {
				r.Layouts = append(r.Layouts, l)
			}
		}
	}
	return nil
}

// markLayouts marks layouts and the packs they name. These stay as they are while a record names the
// layout: repacking would undo it, and endpoints ask for what it says. [LayOut] bounds what is dead in
// them. One that is missing or damaged holds nothing.
func (c *collector) markLayouts(all []namespace.LayoutRef) error {
	for _, ref := range all {
		d := ref.Layout
		if c.blobs[d] {
			continue
		}
		c.blobs[d] = true
		l, err := LoadLayout(c.ctx, c.store, d)
		if err != nil {
			if !damaged(err) {
				return err
			}
			c.warn("layout "+d.String(), err.Error())
			continue
		}
		for _, p := range l.Packs() {
			c.use(p).whole = true
		}
	}
	return nil
}

// dropProfiles leaves out profiles of which nothing is copied.
func (s *syncer) dropProfiles() {
	s.refs = slices.DeleteFunc(s.refs, func(r syncRef) bool {
		return r.name.Kind == namespace.ProfileRef && !slices.Contains(s.kept.Profiles, r.name.Name)
	})
}

// layouts copies layouts, and wants the packs they name, which the destination's own locators may not
// lead to. One that the source itself lost is no reason to fail.
func (s *syncer) layouts(ctx context.Context) error {
	for _, ref := range s.kept.Layouts {
		b, err := s.blob(ctx, ref.Layout, true)
		if namespace.IsKind(err, namespace.NotExist) {
			continue
		}
		if err != nil {
			return err
		}
		l, err := object.OpenLayout(b)
		if err != nil {
			return namespace.E(namespace.KindOf(err), "sync", "layout "+ref.Layout.String(), err)
		}
		for _, p := range l.Packs() {
			ok, err := s.packs.has(ctx, p)
			if err != nil {
				return err
			}
			if !ok {
				s.want[p] = true
			}
		}
	}
	return nil
}

// layouts checks that each chunk of a layout is where it says.
func (v *verifier) layouts() error {
	for _, ref := range v.o.Layouts {
		k := namespace.Key{Class: namespace.Blob, Digest: ref.Layout}
		err := v.layout(ref.Layout)
		if namespace.IsKind(err, namespace.NotExist) {
			_, there := v.store.Stat(v.ctx, namespace.Key{Class: namespace.Blob, Digest: ref.Root})
			if namespace.IsKind(there, namespace.NotExist) {
				continue
			}
		}
		if err := v.tell(k, "", "layout "+ref.Layout.String(), err); err != nil {
			return err
		}
	}
	return nil
}

func (v *verifier) layout(d namespace.Digest) error {
	l, err := LoadLayout(v.ctx, v.store, d)
	if err != nil {
		return err
	}
	for _, c := range l.Chunks {
		dir, err := v.dirs.get(v.ctx, c.Place.Pack)
		if err != nil {
			return fmt.Errorf("its pack %v: %w", c.Place.Pack, err)
		}
		if _, found, ok := dir.find(c.Place); !ok || found.Digest != c.Digest || found.Len != c.Len {
			return corrupt(namespace.Key{Class: namespace.Blob, Digest: d}, "chunk %v is not at %d+%d of pack %v", c.Digest, c.Place.FrameOff, c.Place.Off, c.Place.Pack)
		}
	}
	return nil
}
