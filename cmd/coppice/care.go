package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"coppice.dev/coppice/builder"
	"coppice.dev/coppice/internal/disk"
	"coppice.dev/coppice/namespace"
)

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
	unlock, err := w.lockCare()
	if err != nil {
		return err
	}
	defer unlock()
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
