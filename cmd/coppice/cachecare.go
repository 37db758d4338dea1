package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"path/filepath"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"coppice.dev/coppice/cache"
	"coppice.dev/coppice/namespace"
)

// The care of a cache works while its daemon runs, through the daemon, and when none does.

type verifyRequest struct {
	Repair bool `json:"repair,omitempty"`
}

type gcRequest struct {
	DryRun bool `json:"dry_run,omitempty"`
}

// handleCare adds verify and gc to the control protocol.
func (d *daemon) handleCare(mux *http.ServeMux) {
	mux.HandleFunc("POST /verify", answer(d.verify))
	mux.HandleFunc("POST /gc", answer(d.gc))
}

func (d *daemon) verify(ctx context.Context, req verifyRequest) (cache.VerifyReport, error) {
	return d.cache.Verify(ctx, req.Repair)
}

// gc drops what neither a mount uses nor the cache remembers a verified record of.
func (d *daemon) gc(ctx context.Context, req gcRequest) (cache.GCReport, error) {
	return d.cache.GC(ctx, d.keep(), req.DryRun)
}

// keep collects the versions that are in use, or may be mounted without a network.
func (d *daemon) keep() cache.Keep {
	manifests := map[namespace.Digest]bool{}
	for _, e := range d.endpoints() {
		e.mu.Lock()
		for _, p := range []namespace.Pointer{e.status.Active, e.status.Desired, e.previous} {
			manifests[p.Manifest] = true
		}
		e.mu.Unlock()
	}
	for _, m := range d.remembered() {
		manifests[m] = true
	}
	var k cache.Keep
	for _, h := range d.cache.Holds() {
		for _, g := range h.Generations {
			k.Objects, k.Trees = append(k.Objects, g.Manifest), append(k.Trees, g.Root)
			delete(manifests, g.Manifest)
		}
	}
	for digest := range manifests {
		b, err := d.cache.Object(digest, namespace.ManifestBytesMax)
		if err != nil {
			continue // none, or not here, and then nothing of it can be used
		}
		if m, err := readManifest(b, digest); err == nil {
			k.Objects, k.Trees = append(k.Objects, digest), append(k.Trees, m.Root)
		}
	}
	slices.SortFunc(k.Trees, func(a, b namespace.Digest) int { return bytes.Compare(a[:], b[:]) })
	k.Trees = slices.Compact(k.Trees)
	return k
}

// remembered returns the manifests that what is kept of origins names.
func (d *daemon) remembered() (all []namespace.Digest) {
	for _, dir := range d.trustDirs() {
		all = append(all, fileKeeper(dir).remembered()...)
	}
	return all
}

// onCache asks the daemon that has the cache, or works on the cache itself if none does. A daemon that is
// just ending is waited for.
func (a *app) onCache(ctx context.Context, o cache.Options, ask func(*daemonClient) error, work func(*daemon) error) (err error) {
	if o.Dir, err = a.cacheDir(); err != nil {
		return err
	}
	for range startAttempts {
		if err = tryCache(o, ask, work); !isBroken(err) && !errors.Is(err, errTaken) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(startPause):
		}
	}
	return err
}

// errTaken says that no daemon answers and another process has the cache.
var errTaken = errors.New("another process has the cache")

func tryCache(o cache.Options, ask func(*daemonClient) error, work func(*daemon) error) error {
	client, err := dialDaemon(o.Dir)
	if err == nil {
		defer client.http.CloseIdleConnections()
		return ask(client)
	}
	if !namespace.IsKind(err, namespace.NotExist) {
		return err
	}
	c, err := cache.Open(o)
	if namespace.IsKind(err, namespace.Exist) {
		return namespace.WithHint(namespace.E(namespace.Exist, "open cache", o.Dir, errTaken), namespace.HintOf(err))
	}
	if err != nil {
		return err
	}
	err = work(&daemon{dir: o.Dir, cache: c, log: slog.New(slog.DiscardHandler), trusts: map[string]*trustKeeper{}})
	if cerr := c.Close(); err == nil {
		err = cerr
	}
	return err
}

// care is onCache for a request with one reply.
func care[Req, Reply any](ctx context.Context, a *app, path string, req Req, work func(*daemon, context.Context, Req) (Reply, error)) (reply Reply, err error) {
	err = a.onCache(ctx, cache.Options{},
		func(c *daemonClient) error { return c.call(ctx, path, req, &reply) },
		func(d *daemon) (err error) { reply, err = work(d, ctx, req); return err })
	return reply, err
}

func (a *app) verifyCache(ctx context.Context, repair bool) error {
	rep, err := care(ctx, a, "/verify", verifyRequest{repair}, (*daemon).verify)
	if err != nil {
		return err
	}
	if err := a.result(rep, func(w io.Writer) {
		fmt.Fprintf(w, "%d extents and objects, %d damaged\n", rep.Checked, rep.Damaged)
	}); err != nil {
		return err
	}
	if rep.Damaged > 0 && !repair {
		return namespace.WithHint(namespace.E(namespace.Corrupt, "verify", "cache", fmt.Errorf("%d damaged", rep.Damaged)), "--repair drops them")
	}
	return nil
}

func (a *app) cacheGC() *cobra.Command {
	var req gcRequest
	c := &cobra.Command{
		Use:   "gc",
		Short: "Drop what no mount uses and no pin holds",
		Long: `Drops from the cache what belongs neither to a version that is mounted, asked for or was active
before, nor to one that a record which this endpoint verified still names: what may be mounted
without a network stays. Mounts go on meanwhile. The cache is bounded without it; this makes room
before it is needed.`,
		Example: "  coppice cache gc --dry-run",
		Args:    exact(0),
		RunE: func(c *cobra.Command, _ []string) error {
			rep, err := care(c.Context(), a, "/gc", req, (*daemon).gc)
			if err != nil {
				return err
			}
			return a.result(rep, func(w io.Writer) {
				verb := "dropped"
				if rep.DryRun {
					verb = "would drop"
				}
				fmt.Fprintf(w, "%s %s in %d segments and %d objects; %d trees kept\n", verb, size(uint64(max(rep.Bytes, 0))), rep.Segments+rep.Moved, rep.Objects, rep.Trees)
			})
		},
	}
	c.Flags().BoolVar(&req.DryRun, "dry-run", false, "only say what would go")
	return c
}

// lowerDirs makes the directories of lower caches absolute.
func lowerDirs(dirs []string) ([]string, error) {
	var all []string
	for _, dir := range dirs {
		abs, err := filepath.Abs(dir)
		if err != nil {
			return nil, namespace.E(namespace.Invalid, "find", dir, err)
		}
		all = append(all, abs)
	}
	return all, nil
}
