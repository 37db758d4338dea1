package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"coppice.dev/coppice/builder"
	"coppice.dev/coppice/builder/oci"
	"coppice.dev/coppice/internal/disk"
	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/catalog"
)

func (a *app) treeCommand() *cobra.Command {
	return group("tree", "Import, list, compare and check trees",
		a.treeImport(), a.treeExport(), a.treeBuild(), a.treePatch(), a.treeRebase(), a.treeDelta(), a.treeList(), a.treeShow(),
		a.treeDiff(), a.treeVerify(), a.treePackages(), a.treeSBOM(), a.treePrivileged())
}

type importFlags struct {
	comment      string
	crossDevices bool
	readAll      bool
	format       string
	image        oci.Options
}

func (a *app) treeImport() *cobra.Command {
	var f importFlags
	c := &cobra.Command{
		Use:   "import NAME SRC",
		Short: "Import a directory, an archive or a container image as the next version of a tree",
		Long: `Imports SRC, a directory or a tar archive (plain, gzip, zstd or xz; "-" reads standard input), as
the next version of the tree NAME, and prints NAME@N and the digest of its root. Content the
origin already has is not stored again. Everything is kept: owners, modes with setuid, times,
links, devices, extended attributes, holes. Sockets are left out, with a warning; other file
systems mounted below SRC are left out unless --cross-devices is given. An interrupted import
leaves the origin as it was; the next one uses what was written. Files whose inode, size and times are
what they were at the last import of the same directory are not read again, unless --read-all is given.

SRC may be a container image: an OCI layout (its directory or an archive of it), an archive of
` + "`docker save`" + `, or docker://HOST/NAME:TAG in a registry, with the credentials that docker or podman
keep. Its layers become one tree, checked against the digests that the image names; how to run it
is printed and not kept. --format says what SRC is when that cannot be told by looking.`,
		Example: `  coppice tree import go /usr/local/go
  coppice tree import debian rootfs.tar.zst --comment 'bookworm 12.12'
  coppice tree import alpine docker://docker.io/library/alpine:3.22 --platform linux/arm64`,
		Args: exact(2),
		RunE: func(c *cobra.Command, args []string) error {
			return a.importTree(c.Context(), args[0], args[1], f)
		},
	}
	c.Flags().StringVar(&f.comment, "comment", "", "`TEXT` kept with the version")
	c.Flags().BoolVar(&f.crossDevices, "cross-devices", false, "descend into other file systems")
	c.Flags().StringVar(&f.format, "format", "", "`FORM` of SRC: dir, tar or oci (default: what it looks like)")
	c.Flags().BoolVar(&f.readAll, "read-all", false, "read every file of a directory, also those that did not change since the last import")
	c.Flags().StringVar(&f.image.Platform, "platform", "", "`OS/ARCH` of an image for several (default: this machine's)")
	c.Flags().StringVar(&f.image.Name, "image", "", "`NAME` of an image among several in a layout or archive")
	return c
}

// imported is the result of `tree import`.
type imported struct {
	Version  namespace.Version `json:"version"`
	Root     namespace.Digest  `json:"root"`
	Entries  uint64            `json:"entries"`
	Bytes    uint64            `json:"bytes"`
	NewBytes uint64            `json:"new_bytes"`
	Warnings []string          `json:"warnings,omitempty"`
	Image    *oci.Image        `json:"image,omitempty"`
}

func (a *app) importTree(ctx context.Context, name, src string, f importFlags) error {
	if err := namespace.CheckName(name); err != nil {
		return err
	}
	w, err := a.openWorkshop(ctx)
	if err != nil {
		return err
	}
	p, err := w.publisher() // before the work: a missing key should not cost an import
	if err != nil {
		return err
	}
	source, image, done, err := a.openSource(ctx, src, f)
	if err != nil {
		return err
	}
	defer done()
	before, _, err := w.refs.ResolveTree(ctx, namespace.Version{Name: name})
	if err != nil && !namespace.IsKind(err, namespace.NotExist) {
		return err
	}
	warnings := []string{}
	memory := rememberImport(w, source, f.readAll)
	bar := a.progress("importing "+src, "files")
	res, err := builder.Import(ctx, w.origin, source, builder.Options{
		Previous: before.Root,
		Loader:   w,
		Memory:   memory.Memory,
		Progress: bar.Import,
		Warn: func(path, reason string) {
			warnings = append(warnings, path+": "+reason)
			bar.Note("warning: " + path + ": " + reason)
		},
	})
	if err != nil {
		bar.Close()
		return err
	}
	table := before.Packages
	if before.Root != res.Root || table.IsZero() {
		var more []string
		table, more = w.recordPackages(ctx, res.Root)
		for _, warning := range more {
			warnings = append(warnings, warning)
			bar.Note("warning: " + warning)
		}
	}
	bar.Close()
	v, err := p.AddTree(ctx, name, namespace.TreeVersion{Root: res.Root, Entries: res.Entries, Bytes: res.Bytes, Comment: f.comment, Packages: table})
	if err != nil {
		return err
	}
	memory.save()
	return a.result(imported{v, res.Root, res.Entries, res.Bytes, res.NewBytes, warnings, image}, func(out io.Writer) {
		fmt.Fprintf(out, "%s %s\n", v, res.Root)
		if !a.quiet {
			a.note("%d entries, %s of files, %s new in the origin", res.Entries, size(res.Bytes), size(res.NewBytes))
			a.noteImage(image)
		}
	})
}

// openSource chooses how to read src; image is nil unless it is one. done ends the use of it.
func (a *app) openSource(ctx context.Context, src string, f importFlags) (source builder.Source, image *oci.Image, done func(), err error) {
	if err := f.check(); err != nil {
		return nil, nil, nil, err
	}
	if f.format == "oci" || f.format == "" && src != "-" && oci.Is(src) {
		return a.openImage(ctx, src, f.image)
	}
	if src == "-" {
		return builder.TarSource{R: os.Stdin, Name: "standard input"}, nil, func() {}, nil
	}
	info, err := os.Stat(src)
	if err != nil {
		return nil, nil, nil, disk.Error("import", src, err)
	}
	if info.IsDir() && f.format != "tar" {
		return builder.DirSource{Path: src, CrossDevices: f.crossDevices}, nil, func() {}, nil
	}
	file, err := os.Open(src)
	if err != nil {
		return nil, nil, nil, disk.Error("import", src, err)
	}
	return builder.TarSource{R: file, Name: src}, nil, func() { file.Close() }, nil
}

func (a *app) treeList() *cobra.Command {
	return &cobra.Command{
		Use:     "list [NAME]",
		Short:   "List the trees, or the versions of one",
		Example: "  coppice tree list\n  coppice tree list debian --json",
		Args:    between(0, 1),
		RunE: func(c *cobra.Command, args []string) error {
			r, err := a.openReader(c.Context())
			if err != nil {
				return err
			}
			names := args
			if len(args) == 0 {
				if names, err = r.source.Refs(c.Context(), namespace.TreeRef); err != nil {
					return err
				}
			}
			all := []namespace.Tree{}
			var rows [][]string
			for _, name := range names {
				t, err := r.refs.Tree(c.Context(), name)
				if err != nil {
					return err
				}
				all = append(all, t)
				for _, v := range listed(t.Versions, len(args) == 1) {
					rows = append(rows, []string{fmt.Sprintf("%s@%d", name, v.N), strconv.FormatUint(v.Entries, 10),
						size(v.Bytes), when(v.Created), v.Root.Short(), v.Comment})
				}
			}
			return a.result(all, func(w io.Writer) { table(w, "VERSION ENTRIES BYTES CREATED ROOT COMMENT", rows) })
		},
	}
}

// listed returns all versions, or only the newest.
func listed(versions []namespace.TreeVersion, all bool) []namespace.TreeVersion {
	if all || len(versions) == 0 {
		return versions
	}
	return versions[len(versions)-1:]
}

// shown is a line of `tree show`.
type shown struct {
	Path   string `json:"path"`
	Type   string `json:"type"`
	Mode   string `json:"mode"`
	UID    uint32 `json:"uid"`
	GID    uint32 `json:"gid"`
	Size   uint64 `json:"size"`
	Mtime  int64  `json:"mtime"`
	Target string `json:"target,omitempty"`
}

func (a *app) treeShow() *cobra.Command {
	return &cobra.Command{
		Use:     "show NAME@N [PATH]",
		Short:   "List what a version of a tree holds, from PATH down",
		Example: "  coppice tree show debian@3 etc/ssl",
		Args:    between(1, 2),
		RunE: func(c *cobra.Command, args []string) error {
			ctx := c.Context()
			r, err := a.openReader(ctx)
			if err != nil {
				return err
			}
			root, _, err := treeRoot(ctx, r.refs, args[0])
			if err != nil {
				return err
			}
			path := ""
			if len(args) == 2 {
				path = strings.Trim(args[1], "/")
			}
			lines := []shown{}
			err = catalog.WalkFrom(ctx, r, root, path, func(p string, cat *catalog.Catalog, e catalog.Entry) error {
				s := shown{"/" + p, e.Type.String(), fmt.Sprintf("%04o", e.Mode), e.UID, e.GID, e.Size, e.MtimeSec, string(cat.Target(e.Index))}
				if !a.json {
					printShown(a.stdout, s)
					return nil
				}
				lines = append(lines, s)
				return nil
			})
			if err != nil || !a.json {
				return err
			}
			return a.result(lines, nil)
		},
	}
}

func printShown(w io.Writer, s shown) {
	target := ""
	if s.Target != "" {
		target = " -> " + s.Target
	}
	fmt.Fprintf(w, "%-12s %s %5d %5d %10d %s%s\n", s.Type, s.Mode, s.UID, s.GID, s.Size, s.Path, target)
}

// changed is a line of `tree diff`.
type changed struct {
	Path   string `json:"path"`
	What   string `json:"what"`
	Before uint64 `json:"size_before"`
	After  uint64 `json:"size_after"`
}

func (a *app) treeDiff() *cobra.Command {
	var stat, byPackage bool
	c := &cobra.Command{
		Use:   "diff A B",
		Short: "Show what changed between two versions of trees",
		Long: `Prints every path at which two versions differ: + added, - removed, ~ changed, and how. The cost
follows the size of the change. Exit status 3 if there is any difference.

--stat prints totals by kind of change instead; a path that changed in several ways counts in each.
--package groups the paths by the package that owns them, with its versions in A and in B; with
--stat as well, a line a package.`,
		Example: "  coppice tree diff debian@1 debian@2\n  coppice tree diff debian@1 debian@2 --package --stat",
		Args:    exact(2),
		RunE: func(c *cobra.Command, args []string) error {
			ctx := c.Context()
			r, err := a.openReader(ctx)
			if err != nil {
				return err
			}
			var versions [2]namespace.TreeVersion
			for i, s := range args {
				if versions[i], _, err = treeVersion(ctx, r.refs, s); err != nil {
					return err
				}
			}
			if stat || byPackage {
				return a.diffTotals(ctx, r, versions, stat, byPackage)
			}
			all := []changed{}
			err = catalog.Diff(ctx, r, versions[0].Root, versions[1].Root, func(ch catalog.Change) error {
				all = append(all, changeLine(ch))
				return nil
			})
			if err != nil {
				return err
			}
			err = a.result(all, func(w io.Writer) { printChanges(w, all) })
			if err == nil && len(all) > 0 {
				err = errDiffers
			}
			return err
		},
	}
	c.Flags().BoolVar(&stat, "stat", false, "print totals instead of paths")
	c.Flags().BoolVar(&byPackage, "package", false, "group by the package that owns a path")
	return c
}

func changeLine(ch catalog.Change) changed {
	return changed{"/" + ch.Path, ch.What.String(), ch.Before.Entry.Size, ch.After.Entry.Size}
}

func printChanges(w io.Writer, all []changed) {
	for _, c := range all {
		switch c.What {
		case "added":
			fmt.Fprintln(w, "+", c.Path)
		case "removed":
			fmt.Fprintln(w, "-", c.Path)
		default:
			fmt.Fprintf(w, "~ %s  (%s)\n", c.Path, c.What)
		}
	}
}

func (a *app) treeVerify() *cobra.Command {
	return &cobra.Command{
		Use:   "verify NAME@N DIR",
		Short: "Compare a directory with a version of a tree",
		Long: `Compares DIR, for instance a mount or the directory a tree was imported from, with a version of a
tree: every name, attribute, link and byte. Prints the differences; exit status 3 if there are any.`,
		Example: "  coppice tree verify go@1 /mnt/go",
		Args:    exact(2),
		RunE: func(c *cobra.Command, args []string) error {
			ctx := c.Context()
			r, err := a.openReader(ctx)
			if err != nil {
				return err
			}
			root, _, err := treeRoot(ctx, r.refs, args[0])
			if err != nil {
				return err
			}
			all := []changed{}
			bar := a.progress("verifying "+args[1], "files")
			err = builder.VerifyDir(ctx, r, root, builder.DirSource{Path: args[1]}, builder.Options{Progress: bar.Import},
				func(ch catalog.Change) error { all = append(all, changeLine(ch)); return nil })
			bar.Close()
			if err != nil {
				return err
			}
			err = a.result(all, func(w io.Writer) { printChanges(w, all) })
			if err == nil && len(all) > 0 {
				err = errDiffers
			}
			return err
		},
	}
}
