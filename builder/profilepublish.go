package builder

import (
	"context"
	"slices"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/object"
)

// A LayoutTarget is a namespace version for which profiles are laid out, and its root catalog.
type LayoutTarget struct {
	Version namespace.Version
	Root    namespace.Digest
}

// LaidOut is what became of one profile for one version.
type LaidOut struct {
	Profile string            `json:"profile"`
	Version namespace.Version `json:"version"`
	Layout  namespace.Digest  `json:"layout"`
	LayOutReport
}

// LayOutAll lays out the profiles of rec for targets, the most important first, and returns rec with the
// new layouts. Layouts for other roots stay if keep holds for the root. The caller writes the record.
// progress is as in [LayOutOptions], of one profile after the other. Kinds: those of [LayOut].
func LayOutAll(ctx context.Context, store namespace.Store, rec namespace.Profiles, targets []LayoutTarget,
	keep func(root namespace.Digest) bool, progress func(chunks, chunksAll, bytes, bytesAll uint64)) (namespace.Profiles, []LaidOut, error) {
	var all []LaidOut
	rec.Profiles = slices.Clone(rec.Profiles)
	lay := make([][]*object.Layout, len(rec.Profiles)) // of each profile, the best first
	for i, r := range rec.Profiles {
		for _, ref := range r.Layouts {
			l, err := LoadLayout(ctx, store, ref.Layout)
			if err != nil && !damaged(err) {
				return rec, nil, err
			}
			if err == nil {
				lay[i] = append(lay[i], l)
			}
		}
	}
	for i := range rec.Profiles {
		r := &rec.Profiles[i]
		p, err := LoadProfile(ctx, store, r.Profile)
		if err != nil {
			return rec, all, collected(err)
		}
		var made []*object.Layout
		var refs []namespace.LayoutRef
		for _, t := range targets {
			d, report, err := LayOut(ctx, store, t.Root, r.Profile, p, LayOutOptions{Before: append(slices.Clone(made), lay[i]...),
				Others: slices.Concat(slices.Concat(lay[:i]...), slices.Concat(lay[i+1:]...)), Progress: progress})
			if err != nil {
				return rec, all, err
			}
			l, err := LoadLayout(ctx, store, d)
			if err != nil {
				return rec, all, err
			}
			made, refs = append(made, l), append(refs, namespace.LayoutRef{Version: t.Version, Root: t.Root, Layout: d})
			all = append(all, LaidOut{r.Name, t.Version, d, report})
		}
		r.Layouts = KeepLayouts(refs, r.Layouts, keep)
		// What is left of the older ones is named by the record no more, and nobody is led there.
		lay[i] = made
	}
	return rec, all, nil
}
