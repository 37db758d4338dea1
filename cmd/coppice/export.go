package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"coppice.dev/coppice/builder"
	"coppice.dev/coppice/builder/oci"
	"coppice.dev/coppice/internal/disk"
	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/object"
)

type exportFlags struct {
	format string
	image  oci.WriteOptions
	labels []string
}

func (a *app) treeExport() *cobra.Command {
	var f exportFlags
	c := &cobra.Command{
		Use:   "export NAME@N DEST",
		Short: "Write a version of a tree as an archive, a directory or a container image",
		Long: `Writes a version of a tree to DEST, which must not exist or be empty:

  -, *.tar               a tar archive ("-" is standard output)
  *.tar.gz, *.tar.zst    the same, compressed
  DIR/, an empty DIR     a directory
  --format oci           an OCI image layout: a directory, or an archive if DEST ends with .tar

Importing what was exported gives the same tree again, with the same root. Archives and images of
one version have the same bytes wherever they are made. DEST appears when it is complete; an
interrupted export leaves nothing. A directory has everything if root writes it: what another user
may not set, as owners and devices, is left out and told.

An image has one layer. Container tools read it as oci:DEST, or oci-archive:DEST; how to run it is
said by --entrypoint and --cmd (once for each word), --env, --label, --user and --workdir.`,
		Example: `  coppice tree export debian@3 debian.tar.zst
  coppice tree export debian@3 /srv/chroot/
  coppice tree export debian@3 debian.oci --format oci --tag bookworm --entrypoint /bin/bash
  coppice tree export debian@3 - | ssh host tar -x -C /srv/chroot`,
		Args: exact(2),
		RunE: func(c *cobra.Command, args []string) error {
			return a.exportTree(c, args[0], args[1], f)
		},
	}
	s := c.Flags()
	s.StringVar(&f.format, "format", "", "`FORM` of DEST: tar, dir or oci (default: as its name says)")
	s.StringVar(&f.image.Tag, "tag", "", "image: `NAME` in the layout")
	s.StringVar(&f.image.Compression, "compression", "gzip", "image: `METHOD` of the layer: gzip, zstd or none")
	s.StringVar(&f.image.Image.Platform, "platform", "", "image: `OS/ARCH` that it is for (default: this machine's)")
	s.StringArrayVar(&f.image.Image.Entrypoint, "entrypoint", nil, "image: `WORD` of the command that it runs")
	s.StringArrayVar(&f.image.Image.Cmd, "cmd", nil, "image: `WORD` of the arguments that a user may replace")
	s.StringArrayVar(&f.image.Image.Env, "env", nil, "image: `NAME=VALUE` in the environment")
	s.StringArrayVar(&f.labels, "label", nil, "image: `NAME=VALUE` kept with it")
	s.StringVar(&f.image.Image.User, "user", "", "image: `USER[:GROUP]` that runs it")
	s.StringVar(&f.image.Image.WorkingDir, "workdir", "", "image: `DIR` where it runs")
	return c
}

// exported is the result of `tree export`.
type exported struct {
	Version namespace.Version `json:"version,omitzero"`
	Root    namespace.Digest  `json:"root"`
	Dest    string            `json:"dest"`
	Format  string            `json:"format"`
	Bytes   uint64            `json:"bytes"` // written: of the archive, of the image's layer, of the directory's files
	NotKept []builder.Loss    `json:"not_kept,omitempty"`
	Image   *oci.Written      `json:"image,omitempty"`
}

// flagsOfImages are the flags that mean nothing for other forms.
var flagsOfImages = strings.Fields("tag compression platform entrypoint cmd env label user workdir")

func (a *app) exportTree(c *cobra.Command, version, dest string, f exportFlags) error {
	ctx := c.Context()
	format, err := f.formOf(dest)
	if err != nil {
		return err
	}
	for _, name := range flagsOfImages {
		if format != "oci" && c.Flags().Changed(name) {
			return namespace.WithHint(usage("--%s describes an image, but %s is to be a %s", name, dest, format), "add --format oci")
		}
	}
	r, err := a.openReader(ctx)
	if err != nil {
		return err
	}
	root, v, err := treeRoot(ctx, r.refs, version)
	if err != nil {
		return err
	}
	e := exporting{app: a, flags: f, stored: builder.NewStored(r.source), result: exported{Version: v, Root: root, Dest: dest, Format: format}}
	if v.Name != "" {
		tv, _, err := r.refs.ResolveTree(ctx, v)
		if err != nil {
			return err
		}
		e.flags.image.Image.Created = tv.Created
	}
	bar := a.progress("exporting "+version, "files")
	e.progress = func(p builder.Progress) { e.bytes = p.Bytes; bar.Import(p) }
	switch format {
	case "dir":
		err = e.dir(ctx)
	case "oci":
		err = e.image(ctx)
	default:
		err = e.tar(ctx)
	}
	bar.Close()
	if err != nil {
		return err
	}
	return e.tell()
}

// formOf says what dest is to be: by --format, or as it looks.
func (f exportFlags) formOf(dest string) (string, error) {
	switch f.format {
	case "tar", "dir", "oci":
		if f.format != "tar" && dest == "-" {
			return "", namespace.WithHint(usage("standard output takes an archive, not --format %s", f.format), "name a DEST")
		}
		return f.format, nil
	case "":
	default:
		return "", namespace.WithHint(usage("--format %q", f.format), "tar, dir or oci")
	}
	if _, ok := packing(dest); ok {
		return "tar", nil
	}
	if info, err := os.Stat(dest); strings.HasSuffix(dest, "/") || err == nil && info.IsDir() {
		return "dir", nil
	}
	return "", namespace.WithHint(usage("%s does not say what it is to be", dest),
		"end it with .tar, .tar.gz, .tar.zst or /, or say --format tar, dir or oci")
}

// packing returns the compression of an archive by its name; ok says that it is one's name.
func packing(dest string) (open func(io.Writer) io.WriteCloser, ok bool) {
	switch {
	case strings.HasSuffix(dest, ".tar.gz"), strings.HasSuffix(dest, ".tgz"):
		return object.NewGzipWriter, true
	case strings.HasSuffix(dest, ".tar.zst"), strings.HasSuffix(dest, ".tzst"):
		return object.NewZstdWriter, true
	}
	return nil, dest == "-" || strings.HasSuffix(dest, ".tar")
}

// exporting is the state of one export.
type exporting struct {
	*app
	flags    exportFlags
	stored   *builder.Stored
	progress func(builder.Progress)
	bytes    uint64 // of files
	result   exported
}

func (e *exporting) dir(ctx context.Context) (err error) {
	e.result.NotKept, err = builder.ExportDir(ctx, e.stored, e.result.Root, e.result.Dest, builder.ExportOptions{Progress: e.progress})
	e.result.Bytes = e.bytes
	return err
}

func (e *exporting) image(ctx context.Context) error {
	o := e.flags.image
	o.Progress, o.Archive = e.progress, strings.HasSuffix(e.result.Dest, ".tar")
	o.Image.Labels = map[string]string{}
	for _, l := range e.flags.labels {
		name, value, _ := strings.Cut(l, "=")
		o.Image.Labels[name] = value
	}
	for _, env := range o.Image.Env {
		if name, _, ok := strings.Cut(env, "="); !ok || name == "" {
			return usage("--env %q is not NAME=VALUE", env)
		}
	}
	w, err := oci.Write(ctx, e.stored, e.result.Root, e.result.Dest, o)
	e.result.Image, e.result.Bytes = &w, w.Bytes
	return err
}

func (e *exporting) tar(ctx context.Context) error {
	if e.result.Dest == "-" {
		if isTerminal(e.stdout) {
			return usage("an archive is not for a terminal: redirect it")
		}
		return e.archive(ctx, e.stdout)
	}
	file, err := disk.NewFile("export", e.result.Dest, 0o666)
	if err != nil {
		return err
	}
	defer file.Discard()
	if err := e.archive(ctx, file); err != nil {
		return err
	}
	return file.Commit()
}

// archive writes the archive to w, compressed as the name of the destination says.
func (e *exporting) archive(ctx context.Context, w io.Writer) error {
	counted := &countingWriter{w: w}
	out := io.Writer(counted)
	open, _ := packing(e.result.Dest)
	var z io.WriteCloser
	if open != nil {
		z = open(counted)
		out = z
	}
	err := builder.ExportTar(ctx, e.stored, e.result.Root, out, builder.ExportOptions{Progress: e.progress})
	if z != nil && err == nil {
		if err = z.Close(); err != nil {
			err = disk.Error("write", e.result.Dest, err)
		}
	}
	e.result.Bytes = counted.n
	return err
}

// tell prints the result. Standard output may be the archive; then it is a note.
func (e *exporting) tell() error {
	for _, l := range e.result.NotKept {
		e.note("not kept: %s of %d entries, the first is %s", l.What, l.Count, l.First)
	}
	if len(e.result.NotKept) > 0 && os.Geteuid() != 0 {
		e.note("  root may set these; a tar archive or an image keeps them in any case")
	}
	digest := e.result.Root
	if e.result.Image != nil {
		digest = e.result.Image.Manifest
	}
	if !e.quiet {
		defer e.note("%s written to %s", size(e.result.Bytes), e.result.Dest)
	}
	if e.result.Dest == "-" {
		return nil
	}
	return e.app.result(e.result, func(out io.Writer) {
		fmt.Fprintln(out, strings.TrimSpace(e.result.Version.String()+" "+digest.String()))
	})
}

// countingWriter counts what goes to w.
type countingWriter struct {
	w io.Writer
	n uint64
}

// Write implements io.Writer.
func (c *countingWriter) Write(b []byte) (int, error) {
	n, err := c.w.Write(b)
	c.n += uint64(n)
	return n, err
}
