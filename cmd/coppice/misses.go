package main

import (
	"context"
	"fmt"
	"io"
	"path"
	"strconv"

	"github.com/spf13/cobra"

	"coppice.dev/coppice/cache"
	"coppice.dev/coppice/namespace"
)

type missesRequest struct {
	Clear bool `json:"clear,omitempty"`
}

// missesReply is what `coppice cache misses` tells.
type missesReply struct {
	Misses  []cache.Miss `json:"misses"`
	Cleared int          `json:"cleared,omitempty"`
}

func (a *app) cacheMisses() *cobra.Command {
	var req missesRequest
	c := &cobra.Command{
		Use:   "misses",
		Short: "Show what reads needed and did not get",
		Long: `Lists the objects that reads failed for because they were not in the cache and could not be fetched,
the newest first: which file they belong to, when, how often, and whether they have come since. The
next connection fetches them by itself, at low priority, if the link's class allows that. The list
is bounded and survives restarts; --clear forgets it.`,
		Example: "  coppice cache misses\n  coppice cache misses --clear",
		Args:    exact(0),
		RunE: func(c *cobra.Command, _ []string) error {
			reply, err := a.askMisses(c.Context(), req)
			if err != nil {
				return err
			}
			return a.result(reply, func(w io.Writer) { printMisses(w, reply, req.Clear) })
		},
	}
	c.Flags().BoolVar(&req.Clear, "clear", false, "forget the list")
	return c
}

// askMisses asks the daemon that uses the cache, or opens it.
func (a *app) askMisses(ctx context.Context, req missesRequest) (missesReply, error) {
	return care(ctx, a, "/misses", req, (*daemon).misses)
}

func listMisses(c *cache.Cache, req missesRequest) (reply missesReply, err error) {
	reply.Misses = c.Misses()
	if req.Clear {
		reply.Misses = []cache.Miss{}
		reply.Cleared, err = c.ClearMisses()
	}
	return reply, err
}

func printMisses(w io.Writer, reply missesReply, cleared bool) {
	if cleared {
		fmt.Fprintf(w, "%d forgotten\n", reply.Cleared)
		return
	}
	if len(reply.Misses) == 0 {
		fmt.Fprintln(w, "no read failed")
		return
	}
	var rows [][]string
	for _, m := range reply.Misses {
		name := m.Path
		if name == "" && m.File != "" {
			name = "…/" + m.File
		}
		if name == "" {
			name = m.Object.String()
		}
		state := m.Reason
		if !m.Fetched.IsZero() {
			state = "here since " + when(m.Fetched)
		}
		rows = append(rows, []string{when(m.Last), strconv.FormatUint(m.Count, 10), name, state})
	}
	table(w, "LAST TIMES WHAT STATE", rows)
}

// misses answers `coppice cache misses`: with paths, as far as a mount shows the objects.
func (d *daemon) misses(_ context.Context, req missesRequest) (missesReply, error) {
	if !req.Clear {
		d.nameMisses()
	}
	return listMisses(d.cache, req)
}

// nameMisses finds out where in the mounts the missed objects are.
func (d *daemon) nameMisses() {
	var unnamed []cache.Miss
	for _, m := range d.cache.Misses() {
		if m.Path == "" {
			unnamed = append(unnamed, m)
		}
	}
	if len(unnamed) == 0 {
		return
	}
	for _, e := range d.endpoints() {
		places := e.catalogPlaces()
		for _, m := range unnamed {
			at := m.Catalog
			if at.IsZero() {
				at = m.Object
			}
			if dir, ok := places[at]; ok && (m.Catalog.IsZero() || m.File != "") {
				d.cache.NameMiss(m.Object, path.Join(e.req.Dir, dir, m.File))
			}
		}
	}
}

// catalogPlaces returns the directories of the active version's catalogs, as far as they are here.
func (e *endpoint) catalogPlaces() map[namespace.Digest]string {
	root := e.activeRoot()
	places := map[namespace.Digest]string{}
	if root.IsZero() {
		return places
	}
	places[root] = "/"
	for todo := []namespace.Digest{root}; len(todo) > 0; todo = todo[1:] {
		cat, err := e.cache.LocalCatalog(todo[0])
		if err != nil {
			continue
		}
		for i := range cat.Len() {
			n, ok := cat.Nested(i)
			if !ok {
				continue
			}
			if _, seen := places[n.Digest]; !seen {
				places[n.Digest] = path.Join(places[todo[0]], cache.PathIn(cat, i))
				todo = append(todo, n.Digest)
			}
		}
	}
	return places
}
