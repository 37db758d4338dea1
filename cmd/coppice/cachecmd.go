package main

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"
)

func (a *app) cacheCommand() *cobra.Command {
	return group("cache", "Look at, fill and check the endpoint's cache", a.cacheStatus(), a.cachePin(), a.cacheUnpin(), a.cachePins(),
		a.cacheHydrate(), a.cacheReady(), a.cacheQuota(), a.cacheMisses(), a.cacheVerify(), a.cacheGC(), a.cacheExport(), a.cacheImport())
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
			return a.result(s, s.print)
		},
	}
}

func (s cacheReport) print(w io.Writer) {
	field(w, "used", fmt.Sprintf("%s of %s in %d segments", size(uint64(s.UsedBytes)), size(uint64(s.QuotaBytes)), s.Segments))
	field(w, "fetched", fmt.Sprintf("%s in %d requests", size(s.Fetched), s.Requests))
	field(w, "hits", fmt.Sprint(s.Hits))
	field(w, "refused", fmt.Sprintf("%d objects whose bytes were wrong", s.Corrupt))
	field(w, "evicted", fmt.Sprintf("%d segments; %s written anew", s.Evictions, size(s.Moved)))
	for _, l := range s.Lower {
		field(w, "lower", fmt.Sprintf("%s  %d hits  %s", l.Dir, l.Hits, l.Error))
	}
	for _, r := range s.Pins {
		field(w, "ready", r.Target+"  "+r.text())
	}
	for _, file := range s.DamagedHolds {
		field(w, "warning", file+" cannot be read: what it pinned may be evicted; pin again")
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
}

// cacheStats asks the daemon that uses the cache, or opens it.
func (a *app) cacheStats(ctx context.Context) (cacheReport, error) {
	return care(ctx, a, "/cache", struct{}{}, (*daemon).cacheReport)
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
