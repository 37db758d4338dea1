package main

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"coppice.dev/coppice/builder"
	"coppice.dev/coppice/builder/packages"
	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/trust"
)

// recordPackages reads the package table of the tree root and stores it. It returns the table's
// digest, for TreeVersion.Packages, or zero if it could not be made; a version without a table is
// whole, so what went wrong is a warning.
func (w *workshop) recordPackages(ctx context.Context, root namespace.Digest) (d namespace.Digest, warnings []string) {
	t, err := packages.Read(ctx, builder.NewStored(w.origin), root)
	if err != nil {
		return d, []string{"no package table: " + err.Error()}
	}
	b, err := t.Encode()
	if err == nil {
		d, err = w.PutBlob(ctx, b)
	}
	if err != nil {
		return namespace.Digest{}, append(t.Warnings, "no package table: "+err.Error())
	}
	return d, t.Warnings
}

// tables hands out the package tables of tree versions: those stored with them, and for a version
// without one, such as an older coppice made, what its tree says now.
type tables struct {
	from   namespace.Fetcher
	stored *builder.Stored
	known  map[namespace.Digest]*packages.Table // by the tree's root
}

func newTables(from namespace.Fetcher) *tables {
	return &tables{from, builder.NewStored(from), map[namespace.Digest]*packages.Table{}}
}

// of returns the table of a tree version; of one that has a root and nothing else, too.
func (t *tables) of(ctx context.Context, v namespace.TreeVersion) (*packages.Table, error) {
	if known, ok := t.known[v.Root]; ok {
		return known, nil
	}
	var (
		table *packages.Table
		err   error
	)
	if v.Packages.IsZero() {
		table, err = packages.Read(ctx, t.stored, v.Root)
	} else {
		var b []byte
		if b, err = fetchBlob(ctx, t.from, v.Packages, packages.TableBytesMax); err == nil {
			table, err = packages.Decode(b, "package table "+v.Packages.String())
		}
	}
	if err != nil {
		return nil, err
	}
	t.known[v.Root] = table
	return table, nil
}

// forget drops the table of a tree that is not needed again soon.
func (t *tables) forget(root namespace.Digest) { delete(t.known, root) }

// treeVersion resolves a tree's NAME@N, or the digest of a root catalog, of which nothing else is known.
func treeVersion(ctx context.Context, refs trust.Refs, s string) (namespace.TreeVersion, namespace.Version, error) {
	root, v, err := treeRoot(ctx, refs, s)
	if err != nil || v.Name == "" {
		return namespace.TreeVersion{Root: root}, v, err
	}
	return refs.ResolveTree(ctx, v)
}

// tableOf opens the origin and returns the table of the version that s names.
func (a *app) tableOf(ctx context.Context, s string) (*packages.Table, namespace.TreeVersion, namespace.Version, error) {
	r, err := a.openReader(ctx)
	if err != nil {
		return nil, namespace.TreeVersion{}, namespace.Version{}, err
	}
	tv, v, err := treeVersion(ctx, r.refs, s)
	if err != nil {
		return nil, tv, v, err
	}
	t, err := newTables(r.source).of(ctx, tv)
	if err == nil && !a.quiet {
		for _, warning := range t.Warnings {
			a.note("warning: %s", warning)
		}
	}
	return t, tv, v, err
}

func (a *app) treePackages() *cobra.Command {
	return &cobra.Command{
		Use:   "packages NAME@N",
		Short: "List the packages that a version of a tree holds",
		Long: `Lists the packages of a version as its own metadata tells of them: those of dpkg, rpm and apk, and
projects of python and node. The table is made when a version is imported; for a version without
one it is read from the tree. With --json also the shared libraries with a version in their name,
which the check for downgrades looks at. Metadata that could not be read is named on stderr.`,
		Example: "  coppice tree packages debian@3\n  coppice tree packages debian@3 --json",
		Args:    exact(1),
		RunE: func(c *cobra.Command, args []string) error {
			t, _, _, err := a.tableOf(c.Context(), args[0])
			if err != nil {
				return err
			}
			return a.result(t, func(w io.Writer) {
				var rows [][]string
				for _, p := range t.Packages {
					rows = append(rows, []string{string(p.Ecosystem), p.Name, p.Version, p.Arch, strings.TrimSpace(p.Source + " " + p.SourceVersion)})
				}
				table(w, "KIND NAME VERSION ARCH SOURCE", rows)
			})
		},
	}
}

func (a *app) treeSBOM() *cobra.Command {
	format := "cyclonedx"
	c := &cobra.Command{
		Use:   "sbom NAME@N",
		Short: "Write a version's software bill of materials",
		Long: `Writes the packages of a version to standard output as a bill of materials, in the JSON of
CycloneDX 1.6 or of SPDX 2.3, with package URLs. It is made from the version alone, time and serial
number included, so the same version gives the same bytes everywhere.`,
		Example: "  coppice tree sbom debian@3 --format spdx >debian.spdx.json",
		Args:    exact(1),
		RunE: func(c *cobra.Command, args []string) error {
			write, ok := map[string]func(io.Writer, *packages.Table, packages.Subject) error{
				"cyclonedx": packages.CycloneDX, "spdx": packages.SPDX,
			}[format]
			if !ok {
				return namespace.WithHint(usage("no format is called %q", format), "--format cyclonedx or --format spdx")
			}
			t, tv, v, err := a.tableOf(c.Context(), args[0])
			if err != nil {
				return err
			}
			of := packages.Subject{Name: v.Name, Root: tv.Root, Created: tv.Created}
			if v.Name == "" {
				of.Name = "tree"
			} else {
				of.Version = strconv.FormatUint(v.N, 10)
			}
			return write(a.stdout, t, of)
		},
	}
	c.Flags().StringVar(&format, "format", format, "`FORMAT` of the bill: cyclonedx or spdx")
	return c
}

func (a *app) treePrivileged() *cobra.Command {
	var since string
	c := &cobra.Command{
		Use:   "privileged NAME@N",
		Short: "List what in a version of a tree gives privileges away",
		Long: `Lists the files of a version that run with the privileges of their owner or group (setuid, setgid),
that have capabilities, and the paths that everybody may write to; directories of those with the
sticky bit, as /tmp, are marked. With --since it prints what differs from another version: + new,
- gone, ~ changed, with exit status 3 if there is any difference. No content is read.`,
		Example: "  coppice tree privileged debian@3 --since debian@2",
		Args:    exact(1),
		RunE: func(c *cobra.Command, args []string) error {
			ctx := c.Context()
			r, err := a.openReader(ctx)
			if err != nil {
				return err
			}
			list := func(s string) ([]packages.Privilege, error) {
				root, _, err := treeRoot(ctx, r.refs, s)
				if err != nil {
					return nil, err
				}
				return packages.Privileged(ctx, r, root)
			}
			now, err := list(args[0])
			if err != nil {
				return err
			}
			if since == "" {
				return a.result(now, func(w io.Writer) { printPrivileges(w, now) })
			}
			then, err := list(since)
			if err != nil {
				return err
			}
			changes := packages.ComparePrivileged(then, now)
			err = a.result(changes, func(w io.Writer) { printPrivilegeChanges(w, changes) })
			if err == nil && len(changes) > 0 {
				err = errDiffers
			}
			return err
		},
	}
	c.Flags().StringVar(&since, "since", "", "print only what differs from the version `NAME@M`")
	return c
}

func printPrivileges(w io.Writer, all []packages.Privilege) {
	var rows [][]string
	for _, p := range all {
		rows = append(rows, []string{p.Mode, fmt.Sprintf("%d:%d", p.UID, p.GID), privilegeWords(p), p.Path})
	}
	table(w, "MODE OWNER WHAT PATH", rows)
}

func privilegeWords(p packages.Privilege) string {
	words := strings.Join(p.Kinds, ",")
	if p.Capabilities != "" {
		words = strings.Replace(words, "capabilities", p.Capabilities, 1)
	}
	return words
}

func printPrivilegeChanges(w io.Writer, changes []packages.PrivilegeChange) {
	tell := func(p *packages.Privilege) string {
		return fmt.Sprintf("%s %d:%d %s", p.Mode, p.UID, p.GID, privilegeWords(*p))
	}
	for _, c := range changes {
		switch {
		case c.Before == nil:
			fmt.Fprintf(w, "+ %s  (%s)\n", c.Path, tell(c.After))
		case c.After == nil:
			fmt.Fprintf(w, "- %s  (%s)\n", c.Path, tell(c.Before))
		default:
			fmt.Fprintf(w, "~ %s  (%s, was %s)\n", c.Path, tell(c.After), tell(c.Before))
		}
	}
}
