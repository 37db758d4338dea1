package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"coppice.dev/coppice/builder"
	"coppice.dev/coppice/internal/disk"
	"coppice.dev/coppice/internal/sandbox"
	"coppice.dev/coppice/namespace"
)

type buildFlags struct {
	file, comment, scratch string
	noCache, dryRun        bool
}

func (a *app) treeBuild() *cobra.Command {
	var f buildFlags
	c := &cobra.Command{
		Use:   "build -f FILE",
		Short: "Build the next version of a tree by a recipe",
		Long: `Makes the next version of a tree from a base by the steps of FILE, a recipe in YAML:

  name: debian                 # the tree that is built
  base: debian@1               # NAME@N, NAME for the newest, or a root digest; or
                               # import: SRC as in ` + "`tree import`" + `; or nothing, for an empty tree
  epoch: 2026-11-23            # no file is newer: builds do not depend on the clock (SOURCE_DATE_EPOCH)
  labels: {team: base}         # kept with the version
  steps:
    - run: apt-get update && apt-get -y upgrade     # sh -c, as in ` + "`tree patch`" + `
      env: {DEBIAN_FRONTEND: noninteractive}        # also: network: false, user, workdir
    - copy: files              # a file or a directory beside FILE, laid over
      to: /etc                 # also: owner: "0:0", mode: "0644" of files
    - drop: [/usr/share/doc/*, /usr/**/*.a]
    - normalise: [all]         # caches, clock, logs, machine-id, ssh-host-keys, temporary

All steps together make one version. What a run step made of a tree is remembered: the same command
on the same tree does not run again, unless --no-cache says so. Equal inputs give equal digests as far
as the commands do; with an epoch, the clock has no part in it.`,
		Example: "  coppice tree build -f debian.yaml\n  coppice tree build -f debian.yaml --dry-run",
		Args:    exact(0),
		RunE: func(c *cobra.Command, _ []string) error {
			if f.file == "" {
				return namespace.WithHint(usage("no recipe"), "name it with -f; `"+c.CommandPath()+" --help` shows what is in it")
			}
			return a.buildTree(c.Context(), f)
		},
	}
	fl := c.Flags()
	fl.StringVarP(&f.file, "file", "f", "", "`FILE` with the recipe (required)")
	fl.StringVar(&f.comment, "comment", "", "`TEXT` kept with the version")
	fl.StringVar(&f.scratch, "scratch", os.Getenv("TMPDIR"), "`DIR` for what steps change, until it is stored; default /var/tmp")
	fl.BoolVar(&f.noCache, "no-cache", false, "run every step, also those whose result is known")
	fl.BoolVar(&f.dryRun, "dry-run", false, "build, but publish no version")
	fl.Lookup("scratch").DefValue = ""
	return c
}

func (a *app) buildTree(ctx context.Context, f buildFlags) error {
	if !sandbox.IsStage() {
		b, err := os.ReadFile(f.file)
		if err != nil {
			return disk.Error("read", f.file, err)
		}
		if _, err := parseRecipe(f.file, b); err != nil { // before anything is made for it
			return err
		}
		return enterScratch(ctx, f.scratch)
	}
	if err := sandbox.Stage(); err != nil {
		return err
	}
	b, err := os.ReadFile(f.file)
	if err != nil {
		return disk.Error("read", f.file, err)
	}
	r, err := parseRecipe(f.file, b)
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
	build := &build{app: a, workshop: w, recipeFile: r, stored: builder.NewStored(w.origin), scratch: scratch(os.Getenv(scratchEnv)), noCache: f.noCache}
	start := time.Now()
	if err := build.all(ctx); err != nil {
		return err
	}
	out := patched{Version: namespace.Version{Name: r.Name}, Root: build.root, Base: build.base, NewBytes: build.newBytes}
	newest, newestVersion, err := w.refs.ResolveTree(ctx, out.Version)
	if err != nil && !namespace.IsKind(err, namespace.NotExist) {
		return err
	}
	if out.Changed = newest.Root != build.root; !out.Changed {
		out.Version = newestVersion
		return a.printPatched(out, start)
	}
	if !newest.Root.IsZero() {
		if out.Counts, err = countChanges(ctx, build.stored, newest.Root, build.root); err != nil {
			return err
		}
	}
	if f.dryRun {
		return a.printPatched(out, start)
	}
	v := namespace.TreeVersion{Root: build.root, Entries: build.entries, Bytes: build.bytes, Comment: f.comment, Labels: r.Labels}
	if err := builder.Hold(ctx, w.origin, build.root); err != nil {
		return err
	}
	v.Packages, _ = w.recordPackages(ctx, build.root)
	if out.Version, err = p.AddTree(ctx, r.Name, v); err != nil {
		return err
	}
	return a.printPatched(out, start)
}

// build is a recipe at work: the tree so far.
type build struct {
	*app
	*workshop
	*recipeFile
	stored   *builder.Stored
	scratch  scratch
	noCache  bool
	base     namespace.Version
	root     namespace.Digest
	entries  uint64
	bytes    uint64
	newBytes uint64
}

func (b *build) all(ctx context.Context) error {
	if err := b.begin(ctx); err != nil {
		return err
	}
	for i := range b.Steps {
		if err := b.step(ctx, i); err != nil {
			return b.atStep(i, err)
		}
	}
	c, err := b.stored.Catalog(ctx, b.root)
	if err != nil {
		return err
	}
	b.entries, b.bytes = c.Total(), c.Bytes()
	return nil
}

// begin finds, imports or makes the tree that the first step starts from.
func (b *build) begin(ctx context.Context) error {
	switch {
	case b.Base != "":
		root, v, err := treeRoot(ctx, b.refs, b.Base)
		if err != nil {
			return b.at("$.base", err)
		}
		b.root, b.base = root, v
		return nil
	case b.Import != "":
		src := b.Import
		if !filepath.IsAbs(src) && !strings.Contains(src, "://") {
			src = filepath.Join(filepath.Dir(b.recipeFile.name), src)
		}
		source, _, done, err := b.openSource(ctx, src, importFlags{})
		if err != nil {
			return b.at("$.import", err)
		}
		defer done()
		return b.take(ctx, "importing "+b.Import, source)
	}
	return b.take(ctx, "starting", builder.EditSource{Loader: b.stored, Latest: b.latest})
}

// take makes what a source gives the tree so far.
func (b *build) take(ctx context.Context, what string, src builder.Source) error {
	bar := b.progress(what, "files")
	defer bar.Close()
	res, err := builder.Import(ctx, b.workshop.origin, src, builder.Options{Previous: b.root, Loader: b.stored, Progress: bar.Import,
		Warn: func(path, reason string) { bar.Note("warning: " + path + ": " + reason) }})
	if err == nil {
		b.root = res.Root
		b.newBytes += res.NewBytes
	}
	return err
}

func (b *build) step(ctx context.Context, i int) error {
	s := &b.Steps[i]
	name := fmt.Sprintf("step %d of %d", i+1, len(b.Steps))
	if s.Run == "" {
		dir := filepath.Dir(b.recipeFile.name)
		edits, err := s.edits(dir)
		if err != nil {
			return err
		}
		if err := b.stageFiles(i, edits); err != nil {
			return err
		}
		return b.take(ctx, name, builder.EditSource{Base: b.root, Loader: b.stored, Edits: edits, Latest: b.latest})
	}
	key, err := b.key(s)
	if err != nil {
		return err
	}
	if root, ok := b.recall(ctx, key); ok && !b.noCache {
		b.say("%s: known: %s", name, firstLine(s.Run))
		b.root = root
		return nil
	}
	b.say("%s: %s", name, firstLine(s.Run))
	if err := b.run(ctx, i, s); err != nil {
		return err
	}
	b.remember(key)
	return nil
}

func (b *build) say(format string, args ...any) {
	if !b.quiet {
		b.note(format, args...)
	}
}

func firstLine(s string) string {
	line, rest, _ := strings.Cut(strings.TrimSpace(s), "\n")
	if rest != "" {
		line += " …"
	}
	return line
}

// run runs the command of a step in a view of the tree so far.
func (b *build) run(ctx context.Context, i int, s *step) error {
	t := &transaction{workshop: b.workshop, a: b.app, stored: b.stored, base: namespace.TreeVersion{Root: b.root},
		version: namespace.Version{Name: b.Name}, latest: b.latest, scratch: scratch(b.scratch.path(strconv.Itoa(i)))}
	if err := os.Mkdir(string(t.scratch), 0o700); err != nil {
		return disk.Error("make", string(t.scratch), err)
	}
	defer t.scratch.clear()
	f := patchFlags{user: s.User, workdir: s.Workdir, noNetwork: s.Network != nil && !*s.Network}
	for k, v := range s.Env {
		f.env = append(f.env, k+"="+v)
	}
	slices.Sort(f.env)
	if !b.latest.IsZero() {
		f.env = append(f.env, "SOURCE_DATE_EPOCH="+strconv.FormatInt(b.latest.Unix(), 10))
	}
	spec, err := f.spec([]string{"sh", "-ec", s.Run})
	if err != nil {
		return err
	}
	if err := t.change(ctx, spec); err != nil {
		return err
	}
	bar := b.progress("storing", "files")
	defer bar.Close()
	res, err := t.store(ctx, bar)
	if err == nil {
		b.root = res.Root
		b.newBytes += res.NewBytes
	}
	return err
}

// stageFiles gives each single file that is copied a directory of its own, since directories are what
// is laid over a tree.
func (b *build) stageFiles(i int, edits []builder.Edit) error {
	for k := range edits {
		e := &edits[k]
		if e.Copy == "" {
			continue
		}
		info, err := os.Stat(e.Copy)
		if err != nil {
			return disk.Error("copy", e.Copy, err)
		}
		if info.IsDir() {
			continue
		}
		dir := b.scratch.path(fmt.Sprintf("files-%d-%d", i, k))
		name := filepath.Base(e.To)
		if strings.HasSuffix(e.To, "/") {
			name = filepath.Base(e.Copy)
		} else {
			e.To = filepath.Dir(e.To)
		}
		if err := errors.Join(os.Mkdir(dir, 0o755), copyOne(e.Copy, filepath.Join(dir, name), info)); err != nil {
			return disk.Error("copy", e.Copy, err)
		}
		e.Copy = dir
	}
	return nil
}

// copyOne copies a file with its mode and time.
func copyOne(from, to string, info os.FileInfo) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close(), os.Chmod(to, info.Mode()), os.Chtimes(to, info.ModTime(), info.ModTime()))
}

// stepFormat is raised when what a step does to a tree changes.
const stepFormat = 1

// key names the result of a run step: what it runs, on which tree.
func (b *build) key(s *step) (string, error) {
	rec, err := json.Marshal([]any{stepFormat, b.refs.Root.ID, b.root, s, b.latest.UTC()})
	if err != nil {
		return "", namespace.E(namespace.Internal, "encode", "step", err)
	}
	return namespace.Sum(rec).Hex(), nil
}

// stepDir is where results of steps are remembered. Losing it costs running them again.
func stepDir() (string, error) {
	base, err := os.UserCacheDir()
	return filepath.Join(base, "coppice-build"), err
}

// recall returns the tree that a step made before, if the origin has it still.
func (b *build) recall(ctx context.Context, key string) (namespace.Digest, bool) {
	dir, err := stepDir()
	if err != nil {
		return namespace.Digest{}, false
	}
	text, err := os.ReadFile(filepath.Join(dir, key))
	if err != nil {
		return namespace.Digest{}, false
	}
	root, err := namespace.ParseDigest(strings.TrimSpace(string(text)))
	return root, err == nil && builder.Hold(ctx, b.workshop.origin, root) == nil
}

// remember is best effort.
func (b *build) remember(key string) {
	dir, err := stepDir()
	if err == nil {
		err = errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(filepath.Join(dir, key), []byte(b.root.String()+"\n"), 0o644))
	}
	if err != nil {
		b.note("warning: the result of this step is not remembered: %v", err)
	}
}
