package main

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"time"

	"coppice.dev/coppice/cache"
	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/origin"
	"coppice.dev/coppice/rollout/identity"
)

// absolute returns a location as the daemon can use it, which does not run where the command did: a
// URL as it is, a directory made absolute.
func absolute(location string) (string, error) {
	if strings.Contains(location, "://") {
		return location, nil
	}
	abs, err := filepath.Abs(location)
	if err != nil {
		return "", namespace.E(namespace.Invalid, "find", location, err)
	}
	return abs, nil
}

// locations returns the sources named by --origin, the most preferred one first.
func (a *app) locations() ([]string, error) {
	if len(a.origin) == 0 || a.origin[0] == "" {
		return nil, namespace.WithHint(usage("no origin"), "name one with --origin or COPPICE_ORIGIN; `coppice origin init DIR` makes one")
	}
	all := make([]string, len(a.origin))
	for i, loc := range a.origin {
		var err error
		if all[i], err = absolute(strings.TrimSpace(loc)); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// splitOrigins reads COPPICE_ORIGIN: locations with commas between them.
func splitOrigins(env string) []string {
	if env == "" {
		return nil
	}
	return strings.Split(env, ",")
}

// A mount's only source is given up sooner than that of a command which has nobody waiting: a read
// behind a connection that died silently waits for the next attempt.
const (
	mountStall  = 8 * time.Second
	mountHeader = 15 * time.Second
)

// openSources opens what a mount reads from, with the keeper that watches over it. Nobody is asked yet.
func (d *daemon) openSources(ctx context.Context, req mountRequest, keep *trustKeeper, known *identity.Known) (*origin.Sources, *linkKeeper, error) {
	k := newLinkKeeper(req.Links, d.watcher.Facts, d.log.With("dir", req.Dir))
	opts := origin.SourcesOptions{Prove: keep.proves, Changed: k.poke, Gate: k.gate}
	if len(req.sources()) == 1 {
		opts.HTTP.StallTimeout, opts.HTTP.HeaderTimeout = mountStall, mountHeader
	}
	opts.HTTP.Poll, opts.HTTP.Proxies, opts.HTTP.Secure = req.Poll, req.Proxies, secure(req.Transport, known)
	src, err := origin.OpenSources(ctx, req.sources(), opts)
	if err != nil {
		return nil, nil, err
	}
	k.attach(src)
	return src, k, nil
}

// cacheReport is what `coppice cache status` tells: the cache, and who fills it.
type cacheReport struct {
	cache.Stats
	Pins    []readiness    `json:"pins,omitempty"`
	Sources []mountSources `json:"sources,omitempty"`
}

// mountSources are the sources of one mount.
type mountSources struct {
	Dir     string                `json:"dir"`
	Sources []origin.SourceStatus `json:"sources"`
}

func (d *daemon) cacheReport(ctx context.Context, _ struct{}) (cacheReport, error) {
	rep := cacheReport{Stats: d.cache.Stats()}
	var err error
	if rep.Pins, err = d.ready(ctx, keepRequest{}); err != nil {
		return rep, err
	}
	for _, e := range d.endpoints() {
		rep.Sources = append(rep.Sources, mountSources{e.req.Dir, e.source.Status()})
	}
	return rep, nil
}

// printSources prints a line for each source.
func printSources(w io.Writer, all []origin.SourceStatus) {
	for _, s := range all {
		line := fmt.Sprintf("%s  %s  %s in %d requests", s.Source, s.State, size(s.Bytes), s.Requests)
		for _, c := range []struct {
			n    uint64
			what string
		}{{s.Failures, "failed"}, {s.Rejected, "wrong"}, {s.Lagging, "old"}, {s.Hedged, "second"}} {
			if c.n > 0 {
				line += fmt.Sprintf(", %d %s", c.n, c.what)
			}
		}
		field(w, "source", line)
		if s.State != "up" && s.State != "off" && s.LastError != "" {
			fmt.Fprintf(w, "            %s\n", s.LastError)
		}
	}
}

// printLink prints the link of a mount.
func printLink(w io.Writer, l *linkStatus) {
	line := fmt.Sprintf("%s (%s)", l.Class, l.Why)
	if !l.Since.IsZero() {
		line += fmt.Sprintf("  %s since %s", l.State, when(l.Since))
	}
	switch {
	case !l.Background:
		line += "  nothing in the background"
	case l.Rate > 0:
		line += fmt.Sprintf("  %s/s in the background", size(uint64(l.Rate)))
	}
	field(w, "link", line)
	if l.Error != "" {
		fmt.Fprintf(w, "            %s\n", l.Error)
	}
	plain := len(l.Sources) == 1 && l.Sources[0].Rejected == 0
	if !plain {
		printSources(w, l.Sources)
	}
}
