package main

import (
	"context"
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
	"golang.org/x/sys/unix"

	"coppice.dev/coppice/builder"
	"coppice.dev/coppice/internal/disk"
	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/origin"
	"coppice.dev/coppice/namespace/trust"
)

func (a *app) originVerify() *cobra.Command {
	var quick bool
	c := &cobra.Command{
		Use:   "verify",
		Short: "Check every object and reference of an origin",
		Long: `Reads every object of the origin and checks digests, formats, signatures, and that everything a
version refers to is there. Prints what is wrong, an object a line, with the versions that need
it; exit status 11 if anything is. Versions that ` + "`origin gc`" + ` dropped are no fault. With --quick
it follows references and checks sizes, and reads no content.

With --json, "faults" lists each damaged object: class, digest, path in the tree where it was met
first, kind, reason, and in "needs" the versions (NAME@N, or "channel NAME"). A record that is
damaged, or not signed as it must be, has the class "ref" and its name as the path.`,
		Example: "  coppice origin verify --origin /srv/origin\n  coppice origin verify --quick --json",
		Args:    exact(0),
		RunE:    func(c *cobra.Command, _ []string) error { return a.verifyOrigin(c.Context(), quick) },
	}
	c.Flags().BoolVar(&quick, "quick", false, "check references and sizes, not content")
	return c
}

func (a *app) verifyOrigin(ctx context.Context, quick bool) error {
	w, err := a.openWorkshop(ctx)
	if err != nil {
		return err
	}
	bad, refs := []string{}, []builder.Fault{}
	policy := builder.Policy{All: true, Bad: func(n namespace.RefName, err error) {
		bad = append(bad, err.Error())
		refs = append(refs, builder.Fault{Class: "ref", Path: n.String(), Kind: namespace.KindOf(err).String(), Reason: err.Error(), Needs: []string{}})
	}}
	all, err := policy.Retain(ctx, w.refs, w.origin)
	if err != nil {
		return err
	}
	var roots []namespace.Digest
	for _, t := range all.Trees {
		roots = append(roots, t.Root)
	}
	bar := a.progress("verifying", "objects")
	var objectsAll, bytesAll uint64
	rep, err := builder.VerifyStore(ctx, w.origin, roots, builder.VerifyOptions{
		Quick: quick, Names: all.Trees, Layouts: all.Layouts,
		Total:    func(objects, bytes uint64) { objectsAll, bytesAll = objects, bytes },
		Progress: func(objects, bytes uint64) { bar.Set(objects, objectsAll, bytes, bytesAll) },
		Problem:  func(subject string, err error) { bad = append(bad, subject+": "+err.Error()) },
	})
	bar.Close()
	if err != nil {
		return err
	}
	rep.Faults = append(refs, rep.Faults...)
	return a.verified(w.dir, rep, bad, append(rep.Dropped, all.Missing...))
}

// verified prints the result of `origin verify`.
func (a *app) verified(dir string, rep builder.VerifyReport, bad, dropped []string) error {
	err := a.result(map[string]any{"objects": rep.Objects, "bytes": rep.Bytes, "catalogs": rep.Catalogs, "chunks": rep.Chunks,
		"problems": bad, "faults": rep.Faults, "dropped": append([]string{}, dropped...)}, func(out io.Writer) {
		for _, p := range bad {
			fmt.Fprintln(out, p)
		}
		for _, f := range rep.Faults {
			if len(f.Needs) > 0 {
				fmt.Fprintf(out, "%s %s is needed by %s\n", f.Class, f.Digest, strings.Join(f.Needs, ", "))
			}
		}
		if len(dropped) > 0 {
			fmt.Fprintf(out, "%d versions were dropped by gc\n", len(dropped))
		}
		fmt.Fprintf(out, "%d objects, %s, %d problems\n", rep.Objects, size(rep.Bytes), len(bad))
	})
	if err == nil && len(bad) > 0 {
		err = namespace.WithHint(namespace.E(namespace.Corrupt, "verify", dir, fmt.Errorf("%d problems", len(bad))),
			"delete what is damaged and `coppice origin sync` from a mirror, or import again what it belongs to")
	}
	return err
}

// gcFlags are those of `origin gc`.
type gcFlags struct {
	keep          int
	within, grace string
	repack        int
	dryRun        bool
	noRepack      bool
}

func (a *app) originGC() *cobra.Command {
	var f gcFlags
	c := &cobra.Command{
		Use:   "gc",
		Short: "Delete what no kept version needs",
		Long: `Deletes the objects that no kept version of a tree or namespace needs. Kept are the newest --keep
versions of each name, those that were the newest at any time within --keep-within, what the
newest --keep pointers of each channel name, what any channel pointed at within --keep-within,
and the trees that a kept namespace version mounts. The newest version of each name and what a
channel points at now are always kept. Lists and histories stay whole: a version that was dropped
keeps its number, and using it fails with a clear error.

Publishing and serving go on meanwhile. What is younger than --grace is left alone, referred to
or not; no import may take longer. Packs of which less than --repack per cent is in use are
rewritten; the old ones wait for --grace, so that endpoints that still read them can go on, and
the gc after that deletes them. An interrupted gc has broken nothing, and the next one goes on.`,
		Example: "  coppice origin gc --origin /srv/origin --dry-run\n  coppice origin gc --keep 5 --keep-within 90d",
		Args:    exact(0),
		RunE:    func(c *cobra.Command, _ []string) error { return a.gcOrigin(c.Context(), f) },
	}
	c.Flags().IntVar(&f.keep, "keep", 10, "keep the newest `N` versions of each name")
	c.Flags().StringVar(&f.within, "keep-within", "30d", "keep what was the newest within `TIME` (90m, 12h, 30d, 4w)")
	c.Flags().StringVar(&f.grace, "grace", "24h", "leave alone what is younger than `TIME`")
	c.Flags().IntVar(&f.repack, "repack", 25, "rewrite packs of which less than `PERCENT` is in use")
	c.Flags().BoolVar(&f.noRepack, "no-repack", false, "rewrite no packs")
	c.Flags().BoolVar(&f.dryRun, "dry-run", false, "change nothing, print what would be deleted")
	return c
}

// options checks the flags.
func (f gcFlags) options() (p builder.Policy, o builder.CollectOptions, err error) {
	p.Keep, p.Now = f.keep, time.Now()
	if f.keep < 1 || f.repack < 0 || f.repack > 100 {
		return p, o, usage("--keep wants 1 or more, --repack 0 to 100")
	}
	if p.Within, err = parseAge(f.within); err != nil {
		return p, o, err
	}
	o.Grace, err = parseAge(f.grace)
	o.Repack, o.DryRun = float64(f.repack)/100, f.dryRun
	if f.noRepack {
		o.Repack = 0
	}
	return p, o, err
}

// parseAge reads a duration that may also be in days and weeks: "30d", "4w", "12h".
func parseAge(s string) (time.Duration, error) {
	unit := map[byte]time.Duration{'d': 24 * time.Hour, 'w': 7 * 24 * time.Hour}
	d, err := time.ParseDuration(s)
	if s != "" && unit[s[len(s)-1]] > 0 {
		var n int
		n, err = strconv.Atoi(s[:len(s)-1])
		if n > 36500 {
			err = errors.New("more than a hundred years")
		}
		d = time.Duration(n) * unit[s[len(s)-1]]
	}
	if err != nil || d < 0 {
		return 0, usage("time %q: want a number with m, h, d or w", s)
	}
	return d, nil
}

func (a *app) gcOrigin(ctx context.Context, f gcFlags) error {
	policy, o, err := f.options()
	if err != nil {
		return err
	}
	w, err := a.openWorkshop(ctx)
	if err != nil {
		return err
	}
	if !f.dryRun {
		unlock, err := w.lockCare()
		if err != nil {
			return err
		}
		defer unlock()
	}
	bar := a.progress("collecting", "objects")
	o.Retain = func(ctx context.Context) (builder.Retained, error) { return policy.Retain(ctx, w.refs, w.origin) }
	o.Progress = func(_ string, objects uint64) { bar.Set(objects, 0, 0, 0) }
	o.Warn = func(subject, reason string) { bar.Note("warning: " + subject + ": " + reason) }
	rep, err := builder.Collect(ctx, w.origin, o)
	bar.Close()
	if err != nil {
		return err
	}
	return a.result(collected(rep, f.dryRun), func(out io.Writer) { printCollected(out, rep, f.dryRun) })
}

// lockCare makes sure that one gc runs at a time. A crash gives the lock up.
func (w *workshop) lockCare() (unlock func(), err error) {
	path := filepath.Join(strings.TrimPrefix(w.dir, "file://"), "lock.gc")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, disk.Error("lock", path, err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, namespace.WithHint(namespace.E(namespace.Unavailable, "lock", path, fmt.Errorf("another gc runs")), "wait until it has ended")
		}
		return nil, disk.Error("lock", path, err)
	}
	return func() { f.Close() }, nil
}

// collected is the result of `origin gc`.
func collected(r builder.CollectReport, dryRun bool) map[string]any {
	return map[string]any{"dry_run": dryRun, "catalogs": r.Catalogs, "classes": r.Classes,
		"repacked": r.Repacked, "moved": r.Moved, "missing": append([]string{}, r.Missing...)}
}

func printCollected(out io.Writer, r builder.CollectReport, dryRun bool) {
	var rows [][]string
	var kept, waiting, gone builder.Tally
	cell := func(t builder.Tally, all *builder.Tally) string {
		all.Objects, all.Bytes = all.Objects+t.Objects, all.Bytes+t.Bytes
		return fmt.Sprintf("%d (%s)", t.Objects, size(t.Bytes))
	}
	for _, class := range namespace.Classes() {
		c := r.Classes[class.String()]
		rows = append(rows, []string{class.String(), cell(c.Kept, &kept), cell(c.Waiting, &waiting), cell(c.Deleted, &gone)})
	}
	deleted := "DELETED"
	if dryRun {
		deleted = "WOULD-DELETE"
	}
	table(out, "CLASS KEPT WAITING "+deleted, rows)
	if r.Repacked.Objects > 0 {
		fmt.Fprintf(out, "%d packs of %s are mostly dead: %s of them moved to new packs; the old ones wait for --grace\n",
			r.Repacked.Objects, size(r.Repacked.Bytes), size(r.Moved.Bytes))
	}
	fmt.Fprintf(out, "%s deleted, %s kept\n", size(gone.Bytes), size(kept.Bytes+waiting.Bytes))
}

// syncFlags are those of `origin sync`.
type syncFlags struct {
	only []string
	keep int
}

func (a *app) originSync() *cobra.Command {
	var f syncFlags
	c := &cobra.Command{
		Use:   "sync SRC DST",
		Short: "Mirror one origin to another",
		Long: `Copies from the origin SRC, a directory or an http(s) URL, what the origin in the directory DST
lacks. An empty or absent DST is made a mirror of SRC. Packs and blobs are verified on the way;
records come last, those of channels last of all, with the signatures they have: a mirror needs
no key. Interrupted, it leaves DST as it was, and the next sync goes on from what was copied.

Refused are a DST with another root of trust, and any record of SRC that is older than the one
in DST. --only chooses names: NAME, or KIND/NAME with the kinds tree, namespace and channel; a
channel comes with all that it mounts. --keep copies only the newest N versions of each name, and
of a channel what its newest N pointers name.`,
		Example: "  coppice origin sync http://origin.example/ /srv/mirror\n  coppice origin sync /srv/origin /mnt/usb --only channel/desktop/stable --keep 2",
		Args:    exact(2),
		RunE:    func(c *cobra.Command, args []string) error { return a.syncOrigin(c.Context(), args[0], args[1], f) },
	}
	c.Flags().StringArrayVar(&f.only, "only", nil, "copy `NAME` only; may be repeated")
	c.Flags().IntVar(&f.keep, "keep", 0, "copy the newest `N` versions of each name; 0 copies all")
	return c
}

// policy checks the flags.
func (f syncFlags) policy() (builder.Policy, error) {
	p := builder.Policy{Keep: f.keep, All: f.keep == 0, Now: time.Now()}
	if f.keep < 0 {
		return p, usage("--keep wants 0 or more")
	}
	if len(f.only) == 0 {
		return p, nil
	}
	for _, name := range f.only {
		if err := namespace.CheckName(name); err != nil {
			return p, err
		}
	}
	p.Only = func(n namespace.RefName) bool {
		return slices.Contains(f.only, n.Name) || slices.Contains(f.only, n.String())
	}
	return p, nil
}

func (a *app) syncOrigin(ctx context.Context, from, to string, f syncFlags) error {
	policy, err := f.policy()
	if err != nil {
		return err
	}
	src, err := a.openServer(ctx, from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := openMirror(ctx, src, to)
	if err != nil {
		return err
	}
	defer dst.Close()
	bar := a.progress("copying", "packs")
	rep, err := builder.Sync(ctx, src, dst, builder.SyncOptions{Policy: policy, Progress: bar.Set})
	bar.Close()
	if err != nil {
		return err
	}
	var all builder.Tally
	for _, t := range rep.Copied {
		all.Objects, all.Bytes = all.Objects+t.Objects, all.Bytes+t.Bytes
	}
	return a.result(map[string]any{"catalogs": rep.Catalogs, "copied": rep.Copied, "objects": all.Objects, "bytes": all.Bytes,
		"refs": append([]string{}, rep.Refs...), "missing": append([]string{}, rep.Missing...)}, func(out io.Writer) {
		for _, r := range rep.Refs {
			fmt.Fprintln(out, r)
		}
		fmt.Fprintf(out, "%d objects, %s copied, %d records written\n", all.Objects, size(all.Bytes), len(rep.Refs))
	})
}

// openMirror opens the origin in the directory dir, or makes an empty one; src is looked at first, so
// that a wrong name leaves nothing behind.
func openMirror(ctx context.Context, src namespace.RefReader, dir string) (origin.WritableConn, error) {
	dst, err := origin.OpenWritable(ctx, dir)
	if !namespace.IsKind(err, namespace.NotExist) {
		return dst, err
	}
	if _, _, err := trust.FetchRoot(ctx, src); err != nil {
		return nil, err
	}
	return origin.CreateDir(strings.TrimPrefix(dir, "file://"))
}
