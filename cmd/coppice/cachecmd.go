package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"coppice.dev/coppice/namespace"
)

func (a *app) cacheCommand() *cobra.Command {
	return group("cache", "Look at, fill and check the endpoint's cache", a.cacheStatus(), a.cacheHydrate(), a.cacheMisses(), a.cacheVerify(), a.cacheGC(), a.cacheExport(), a.cacheImport())
}

func (a *app) cacheStatus() *cobra.Command {
	return &cobra.Command{
		Use:     "status",
		Short:   "Show what the cache holds and did",
		Example: "  coppice cache status --json",
		Args:    exact(0),
		RunE: func(c *cobra.Command, _ []string) error {
			s, err := a.cacheStats(c.Context())
			if err != nil {
				return err
			}
			return a.result(s, func(w io.Writer) {
				field(w, "used", fmt.Sprintf("%s of %s in %d segments", size(uint64(s.UsedBytes)), size(uint64(s.QuotaBytes)), s.Segments))
				field(w, "fetched", fmt.Sprintf("%s in %d requests", size(s.Fetched), s.Requests))
				field(w, "hits", fmt.Sprint(s.Hits))
				field(w, "refused", fmt.Sprintf("%d objects whose bytes were wrong", s.Corrupt))
				field(w, "evicted", fmt.Sprintf("%d segments", s.Evictions))
				for _, l := range s.Lower {
					field(w, "lower", fmt.Sprintf("%s  %d hits  %s", l.Dir, l.Hits, l.Error))
				}
				if s.Failed > 0 {
					field(w, "failed", fmt.Sprintf("%d reads of what was not here and not to be had; `coppice cache misses` lists it", s.Failed))
				}
				for _, m := range s.Sources {
					field(w, "mount", m.Dir)
					printSources(w, m.Sources)
				}
				if s.ReadThrough {
					field(w, "warning", fmt.Sprintf("reading through: %d objects could not be kept", s.Unkept))
				}
			})
		},
	}
}

// cacheStats asks the daemon that uses the cache, or opens it.
func (a *app) cacheStats(ctx context.Context) (cacheReport, error) {
	return care(ctx, a, "/cache", struct{}{}, (*daemon).cacheReport)
}

func (a *app) cacheHydrate() *cobra.Command {
	return &cobra.Command{
		Use:   "hydrate DIR",
		Short: "Fetch all content of the version mounted at DIR",
		Long: `Fetches what the cache does not hold yet of the version that is active at DIR, so that it works
without a network. It can be interrupted: what was fetched stays.`,
		Example: "  coppice cache hydrate /mnt",
		Args:    exact(1),
		RunE: func(c *cobra.Command, args []string) error {
			dir, err := mountPoint(args[0])
			if err != nil {
				return err
			}
			r, ok := lookup(runDir(), dir)
			if !ok {
				return namespace.E(namespace.NotExist, "hydrate", dir, fmt.Errorf("not a mount of coppice"))
			}
			d, err := dialDaemon(r.Cache)
			if err != nil {
				return err
			}
			body, err := d.stream(c.Context(), "/hydrate", hydrateRequest{dir})
			if err != nil {
				return err
			}
			defer body.Close()
			return a.showHydrate(dir, body)
		},
	}
}

// showHydrate follows the daemon's progress to its end.
func (a *app) showHydrate(dir string, body io.Reader) error {
	bar := a.progress("hydrating "+dir, "")
	defer bar.Close()
	dec := json.NewDecoder(body)
	var u hydrateUpdate
	for !u.End {
		if err := dec.Decode(&u); err != nil {
			return namespace.E(namespace.Unavailable, "hydrate", dir, fmt.Errorf("the daemon stopped answering: %w", err))
		}
		if !u.End {
			bar.Set(0, 0, uint64(u.Done), uint64(u.Total))
		}
	}
	if u.Error != nil {
		return u.Error.err()
	}
	return nil
}

func (a *app) cacheVerify() *cobra.Command {
	var repair bool
	c := &cobra.Command{
		Use:   "verify",
		Short: "Read everything in the cache and check it",
		Long: `Reads every extent and object of the cache and compares checksums and digests. With --repair what
is damaged is dropped, to be fetched again when it is needed. Mounts go on meanwhile.`,
		Example: "  coppice cache verify --repair",
		Args:    exact(0),
		RunE: func(c *cobra.Command, _ []string) error {
			return a.verifyCache(c.Context(), repair)
		},
	}
	c.Flags().BoolVar(&repair, "repair", false, "drop what is damaged")
	return c
}
