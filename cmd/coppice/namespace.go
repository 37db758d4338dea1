package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"

	"github.com/spf13/cobra"

	"coppice.dev/coppice/builder"
	"coppice.dev/coppice/internal/disk"
	"coppice.dev/coppice/namespace"
)

func (a *app) namespaceCommand() *cobra.Command {
	return group("namespace", "Compose trees into namespace versions", a.namespacePublish(), a.namespaceVouch(), a.namespaceList(), a.namespaceShow())
}

func (a *app) namespacePublish() *cobra.Command {
	var file, comment string
	var allow []string
	var deltas bool
	c := &cobra.Command{
		Use:   "publish NAME -f FILE",
		Short: "Publish the next version of a namespace",
		Long: `Composes the trees that FILE names at the paths it gives, stores the result as the next version of
the namespace NAME, and prints NAME@N and its digest. Nothing changes on any endpoint: that is
what ` + "`channel set`" + ` does. FILE is YAML ("-" reads standard input):

  mounts:
    - path: /            # where in the mount
      tree: debian@2     # NAME@N, NAME for the newest, or a root digest
    - path: /opt/go
      tree: go@7
      replace: true      # hide what the tree above has there

A path that another tree has a file or a non-empty directory at is a conflict unless replace is
set. Missing parent directories are made.

The packages and shared libraries of each tree are compared with those of the tree that the last
version had at the same path. If one is older than there, nothing is published, unless
--allow-downgrade names it: a package, its source package or a library's file name; * and ? match as
in a shell, and the flag may be repeated. What was removed is no downgrade.

With --deltas, binary differences of those trees are stored first, as ` + "`coppice tree delta`" + ` does, so that
endpoints with the last version fetch a fraction of what changed.`,
		Example: "  coppice namespace publish desk -f desk.yaml\n  coppice namespace publish desk -f desk.yaml --deltas",
		Args:    exact(1),
		RunE: func(c *cobra.Command, args []string) error {
			if file == "" {
				return namespace.WithHint(usage("no file with the composition"), "name it with -f; `"+c.CommandPath()+" --help` shows what is in it")
			}
			return a.publishNamespace(c.Context(), args[0], file, comment, allow, deltas)
		},
	}
	c.Flags().StringVarP(&file, "file", "f", "", "`FILE` with the composition (required)")
	c.Flags().StringVar(&comment, "comment", "", "`TEXT` kept with the version")
	c.Flags().StringArrayVar(&allow, "allow-downgrade", nil, "`NAME` of a package or library that may be older than before")
	c.Flags().BoolVar(&deltas, "deltas", false, "store what endpoints with the last version need to make this one")
	return c
}

func (a *app) publishNamespace(ctx context.Context, name, file, comment string, allow []string, deltas bool) error {
	if err := namespace.CheckName(name); err != nil {
		return err
	}
	b, err := readFileOrStdin(file)
	if err != nil {
		return err
	}
	f, err := parseComposition(file, b)
	if err != nil {
		return err
	}
	w, err := a.openWorkshop(ctx)
	if err != nil {
		return err
	}
	p, err := w.publisher()
	if err != nil {
		return err
	}
	mounts, err := f.resolve(ctx, w.refs)
	if err != nil {
		return err
	}
	since, changed, err := w.mountChanges(ctx, name, mounts)
	if err != nil {
		return err
	}
	changes, err := w.comparePackages(ctx, name, since, changed, allow)
	if err != nil {
		return err
	}
	root, entries, bytes, err := builder.Compose(ctx, w.origin, w, mounts)
	if err != nil {
		var conflict *builder.MountError
		if errors.As(err, &conflict) {
			err = f.at(conflict.Index, err)
		}
		return err
	}
	made := []deltaMade{}
	if deltas {
		if made, err = a.deltasSince(ctx, w, changed); err != nil {
			return err
		}
	}
	m := namespace.Manifest{Format: namespace.RecordFormat, Name: name, Mounts: mounts, Root: root, Entries: entries, Bytes: bytes}
	mb, err := namespace.EncodeRecord(m)
	if err != nil {
		return err
	}
	d, err := w.PutBlob(ctx, mb)
	if err != nil {
		return err
	}
	v, err := p.AddNamespace(ctx, name, d, comment)
	if err != nil {
		return err
	}
	laid := a.layOutNewest(ctx, w, p, builder.LayoutTarget{Version: v, Root: root})
	if !p.CanVouch() && !a.quiet {
		a.note("nobody vouches for %v yet: no channel can name it before `coppice namespace vouch`, or a request that the vouching keys signed", v)
	}
	if changes != nil && changes.String() != "" && !a.quiet {
		a.note("packages since %v: %v", changes.Since, changes)
	}
	return a.result(map[string]any{"version": v, "manifest": d, "root": root, "entries": entries, "bytes": bytes, "mounts": mounts, "packages": changes,
		"deltas": made, "profiles": laid},
		func(out io.Writer) { fmt.Fprintf(out, "%s %s\n", v, d) })
}

func readFileOrStdin(name string) ([]byte, error) {
	if name == "-" {
		b, err := io.ReadAll(io.LimitReader(os.Stdin, namespace.ManifestBytesMax))
		if err != nil {
			return nil, disk.Error("read", "standard input", err)
		}
		return b, nil
	}
	b, err := os.ReadFile(name)
	if err != nil {
		return nil, disk.Error("read", name, err)
	}
	return b, nil
}

func (a *app) namespaceList() *cobra.Command {
	return &cobra.Command{
		Use:     "list [NAME]",
		Short:   "List the namespaces, or the versions of one",
		Example: "  coppice namespace list desk",
		Args:    between(0, 1),
		RunE: func(c *cobra.Command, args []string) error {
			r, err := a.openReader(c.Context())
			if err != nil {
				return err
			}
			names := args
			if len(args) == 0 {
				if names, err = r.source.Refs(c.Context(), namespace.NamespaceRef); err != nil {
					return err
				}
			}
			all := []namespace.Namespace{}
			var rows [][]string
			for _, name := range names {
				ns, err := r.refs.Namespace(c.Context(), name)
				if err != nil {
					return err
				}
				all = append(all, ns)
				versions := ns.Versions
				if len(args) == 0 && len(versions) > 1 {
					versions = versions[len(versions)-1:]
				}
				for _, v := range versions {
					rows = append(rows, []string{name + "@" + strconv.FormatUint(v.N, 10), when(v.Created), v.Manifest.Short(), v.Comment})
				}
			}
			return a.result(all, func(w io.Writer) { table(w, "VERSION CREATED MANIFEST COMMENT", rows) })
		},
	}
}

func (a *app) namespaceShow() *cobra.Command {
	return &cobra.Command{
		Use:     "show NAME@N",
		Short:   "Show what a namespace version is made of",
		Example: "  coppice namespace show desk@3",
		Args:    exact(1),
		RunE: func(c *cobra.Command, args []string) error {
			ctx := c.Context()
			v, err := namespace.ParseVersion(args[0])
			if err != nil {
				return err
			}
			r, err := a.openReader(ctx)
			if err != nil {
				return err
			}
			nv, _, err := r.refs.ResolveNamespace(ctx, v)
			if err != nil {
				return err
			}
			b, err := r.GetBlob(ctx, nv.Manifest, namespace.ManifestBytesMax)
			if err != nil {
				return err
			}
			m, err := readManifest(b, nv.Manifest)
			if err != nil {
				return err
			}
			return a.result(m, func(w io.Writer) {
				var rows [][]string
				for _, mt := range m.Mounts {
					rows = append(rows, []string{mt.Path, mt.Version.String(), mt.Tree.String()})
				}
				table(w, "PATH TREE ROOT", rows)
			})
		},
	}
}
