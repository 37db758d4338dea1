package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"coppice.dev/coppice/builder"
	"coppice.dev/coppice/internal/sandbox"
	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/trust"
)

func (a *app) profilePublish() *cobra.Command {
	var name, comment string
	c := &cobra.Command{
		Use:   "publish NAMESPACE PROFILE",
		Short: "Give a profile to the endpoints that mount a namespace",
		Long: `Publishes a profile for the namespace, in the place of the one of the same name, and lays out what it
names, in its order, in packs of its own, for the newest version and for those that channels name: a
cold start then needs a few large requests. That costs the origin at most the profile's size. The next
` + "`namespace publish`" + ` lays it out for the next version; no version and no pointer changes. Endpoints
fetch the profiles of a namespace ahead, in the order of ` + "`profile list`" + `, when they mount or
activate a version of it.`,
		Example: "  coppice profile publish desk login.profile\n  coppice profile publish desk merged.profile --name login --comment 'with what laptops missed'",
		Args:    exact(2),
		RunE: func(c *cobra.Command, args []string) error {
			return a.publishProfile(c.Context(), args[0], args[1], name, comment)
		},
	}
	c.Flags().StringVar(&name, "name", "", "`NAME` to publish it by (default: its own)")
	c.Flags().StringVar(&comment, "comment", "", "`TEXT` kept with it")
	return c
}

func (a *app) publishProfile(ctx context.Context, space, file, name, comment string) error {
	p, err := a.readProfile(ctx, file)
	if err != nil {
		return err
	}
	if name != "" {
		p.Name = name
	}
	b, err := namespace.EncodeProfile(p)
	if err != nil {
		return err
	}
	w, err := a.openWorkshop(ctx)
	if err != nil {
		return err
	}
	pub, err := w.publisher()
	if err != nil {
		return err
	}
	targets, err := w.layoutTargets(ctx, space)
	if err != nil {
		return err
	}
	r := namespace.ProfileRecord{Name: p.Name, Comment: comment}
	if r.Profile, err = w.PutBlob(ctx, b); err != nil {
		return err
	}
	rec, _, err := w.refs.Profiles(ctx, space)
	if err != nil {
		return err
	}
	if i := slices.IndexFunc(rec.Profiles, func(o namespace.ProfileRecord) bool { return o.Name == p.Name }); i < 0 {
		rec.Profiles = append(rec.Profiles, r)
	} else {
		r.Layouts = rec.Profiles[i].Layouts // which may serve in part
		rec.Profiles[i] = r
	}
	keep := func(namespace.Digest) bool { return false }
	laid, err := a.layOut(ctx, w, pub, space, rec, targets, keep, p.Name)
	if err != nil {
		return err
	}
	return a.result(map[string]any{"namespace": space, "profile": p.Name, "digest": r.Profile, "laid_out": laid}, func(out io.Writer) {
		fmt.Fprintf(out, "%s:%s %s\n", space, p.Name, r.Profile)
		if a.quiet {
			return
		}
		for _, l := range laid {
			if l.Profile == p.Name {
				a.note("%v: %d chunks of %s, %s to fetch in %d ranges, and %d catalogs of %s; %s written", l.Version, l.Chunks,
					size(l.Bytes), size(l.Stored), l.Ranges, l.Catalogs, size(l.Metadata), size(l.Packs.Bytes))
			}
		}
	})
}

// layOut lays out the profiles of rec and writes the record. new names a profile that was published now.
func (a *app) layOut(ctx context.Context, w *workshop, pub *trust.Publisher, space string, rec namespace.Profiles,
	targets []builder.LayoutTarget, keep func(namespace.Digest) bool, new string) ([]builder.LaidOut, error) {
	bar := a.progress("laying out profiles of "+space, "chunks")
	rec, laid, err := builder.LayOutAll(ctx, w.origin, rec, targets, keep, bar.Set)
	bar.Close()
	if err != nil {
		return laid, err
	}
	return laid, pub.ChangeProfiles(ctx, space, func(now *namespace.Profiles) error {
		for _, r := range rec.Profiles {
			i := slices.IndexFunc(now.Profiles, func(o namespace.ProfileRecord) bool { return o.Name == r.Name })
			switch {
			case r.Name == new:
				r.Created = pub.Now().UTC().Truncate(time.Second)
				if i < 0 {
					now.Profiles = append(now.Profiles, r)
				} else {
					now.Profiles[i] = r
				}
			case i >= 0 && now.Profiles[i].Profile == r.Profile: // else it was changed meanwhile, by who laid it out
				now.Profiles[i].Layouts = r.Layouts
			}
		}
		return nil
	})
}

// layOutNewest lays out the profiles of a namespace for its version that was published just now. That it
// cannot be done is no reason to fail: the version is published, and only starts slower.
func (a *app) layOutNewest(ctx context.Context, w *workshop, pub *trust.Publisher, t builder.LayoutTarget) []builder.LaidOut {
	rec, found, err := w.refs.Profiles(ctx, t.Version.Name)
	if err != nil || !found || len(rec.Profiles) == 0 {
		if err != nil {
			a.note("warning: profiles are not laid out: %v", err)
		}
		return nil
	}
	used, err := w.channelTargets(ctx, t.Version.Name)
	var laid []builder.LaidOut
	if err == nil {
		keep := func(root namespace.Digest) bool {
			return slices.ContainsFunc(used, func(u builder.LayoutTarget) bool { return u.Root == root })
		}
		laid, err = a.layOut(ctx, w, pub, t.Version.Name, rec, []builder.LayoutTarget{t}, keep, "")
	}
	if err != nil {
		a.note("warning: profiles are not laid out: %v", err)
	}
	return laid
}

// layoutTargets returns the newest version of a namespace and those that channels name.
func (w *workshop) layoutTargets(ctx context.Context, space string) ([]builder.LayoutTarget, error) {
	nv, v, err := w.refs.ResolveNamespace(ctx, namespace.Version{Name: space})
	if err != nil {
		return nil, err
	}
	newest, err := w.layoutTarget(ctx, v, nv.Manifest)
	if err != nil {
		return nil, err
	}
	used, err := w.channelTargets(ctx, space)
	all := []builder.LayoutTarget{newest}
	for _, t := range used {
		if !slices.ContainsFunc(all, func(o builder.LayoutTarget) bool { return o.Root == t.Root }) {
			all = append(all, t)
		}
	}
	return all[:min(len(all), namespace.LayoutsMax)], err
}

// channelTargets returns the versions of a namespace that channels name.
func (w *workshop) channelTargets(ctx context.Context, space string) (all []builder.LayoutTarget, err error) {
	channels, err := w.refs.Reader.Refs(ctx, namespace.ChannelRef)
	if err != nil {
		return nil, err
	}
	for _, name := range channels {
		ptr, err := w.refs.Pointer(ctx, name)
		if err != nil {
			return nil, err
		}
		if ptr.Version.Name != space {
			continue
		}
		t, err := w.layoutTarget(ctx, ptr.Version, ptr.Manifest)
		if err != nil {
			return nil, err
		}
		all = append(all, t)
	}
	return all, nil
}

func (w *workshop) layoutTarget(ctx context.Context, v namespace.Version, manifest namespace.Digest) (builder.LayoutTarget, error) {
	b, err := w.GetBlob(ctx, manifest, namespace.ManifestBytesMax)
	if err != nil {
		return builder.LayoutTarget{}, err
	}
	m, err := readManifest(b, manifest)
	return builder.LayoutTarget{Version: v, Root: m.Root}, err
}

func (a *app) profileRemove() *cobra.Command {
	return &cobra.Command{
		Use:   "remove NAMESPACE NAME",
		Short: "Publish a profile no more",
		Long: `Takes a profile out of what endpoints of the namespace fetch ahead. Nothing that anybody mounts
changes; what was laid out for it alone goes with the next ` + "`origin gc`" + `.`,
		Example: "  coppice profile remove desk login",
		Args:    exact(2),
		RunE: func(c *cobra.Command, args []string) error {
			w, err := a.openWorkshop(c.Context())
			if err != nil {
				return err
			}
			pub, err := w.publisher()
			if err != nil {
				return err
			}
			if _, err := publishedProfile(c.Context(), w.refs, args[0], args[1]); err != nil {
				return err
			}
			return pub.ChangeProfiles(c.Context(), args[0], func(p *namespace.Profiles) error {
				p.Profiles = slices.DeleteFunc(p.Profiles, func(r namespace.ProfileRecord) bool { return r.Name == args[1] })
				return nil
			})
		},
	}
}

// exitStatus returns the status with which a command that was run ended, 0 if that is not what err says.
func exitStatus(err error) int {
	var failed *sandbox.ExitError
	if errors.As(err, &failed) {
		return failed.Code
	}
	return 0
}
