package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"coppice.dev/coppice/cache"
	"coppice.dev/coppice/namespace"
)

func (a *app) cacheCommand() *cobra.Command {
	return group("cache", "Look at, fill and check the endpoint's cache", a.cacheStatus(), a.cachePin(), a.cacheUnpin(), a.cachePins(),
		a.cacheHydrate(), a.cacheReady(), a.cacheQuota(), a.cacheVerify())
}

// withCache runs f on the cache of --cache, which no daemon must be using.
func (a *app) withCache(ctx context.Context, f func(*cache.Cache) error) error {
	dir, err := a.cacheDir()
	if err != nil {
		return err
	}
	c, err := openIdle(ctx, cache.Options{Dir: dir})
	if err != nil {
		return err
	}
	err = f(c)
	if cerr := c.Close(); err == nil {
		err = cerr
	}
	return err
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

// cacheState is the result of `cache status`.
type cacheState struct {
	cache.Stats
	Pins []readiness `json:"pins,omitempty"`
}

func (s cacheState) print(w io.Writer) {
	field(w, "used", fmt.Sprintf("%s of %s in %d segments", size(uint64(s.UsedBytes)), size(uint64(s.QuotaBytes)), s.Segments))
	field(w, "fetched", fmt.Sprintf("%s in %d requests", size(s.Fetched), s.Requests))
	field(w, "hits", fmt.Sprint(s.Hits))
	field(w, "refused", fmt.Sprintf("%d objects whose bytes were wrong", s.Corrupt))
	field(w, "evicted", fmt.Sprintf("%d segments, %s of them kept for pins", s.Evictions, size(s.Carried)))
	for _, r := range s.Pins {
		field(w, "ready", r.Target+"  "+r.text())
	}
	for _, file := range s.DamagedHolds {
		field(w, "warning", file+" cannot be read: what it pinned may be evicted; pin again")
	}
	if s.ReadThrough {
		field(w, "warning", fmt.Sprintf("reading through: %d objects could not be kept", s.Unkept))
	}
}

// cacheStats asks the daemon that uses the cache, or opens it.
func (a *app) cacheStats(ctx context.Context) (s cacheState, err error) {
	dir, err := a.cacheDir()
	if err != nil {
		return s, err
	}
	if d, derr := dialDaemon(dir); derr == nil {
		if err = d.call(ctx, "/cache", struct{}{}, &s.Stats); err == nil {
			err = d.call(ctx, "/ready", keepRequest{}, &s.Pins)
		}
		if !errors.Is(err, errEnding) && !isBroken(err) {
			return s, err
		}
	}
	err = a.withCache(ctx, func(c *cache.Cache) error {
		s.Stats = c.Stats()
		for _, h := range c.Holds() {
			if h.Kind != cache.Pinned {
				continue
			}
			found, err := c.Ready(ctx, h, false)
			if err != nil {
				return err
			}
			for _, r := range found {
				s.Pins = append(s.Pins, readiness{Readiness: r})
			}
		}
		return nil
	})
	return s, err
}

func (a *app) cacheVerify() *cobra.Command {
	var repair bool
	c := &cobra.Command{
		Use:   "verify",
		Short: "Read everything in the cache and check it",
		Long: `Reads every extent and object of the cache and compares checksums and digests. With --repair what
is damaged is dropped, to be fetched again when it is needed. The cache must not be in use.`,
		Example: "  coppice cache verify --repair",
		Args:    exact(0),
		RunE: func(c *cobra.Command, _ []string) error {
			return a.withCache(c.Context(), func(k *cache.Cache) error {
				rep, err := k.Verify(c.Context(), repair)
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
			})
		},
	}
	c.Flags().BoolVar(&repair, "repair", false, "drop what is damaged")
	return c
}
