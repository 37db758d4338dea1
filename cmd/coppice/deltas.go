package main

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"coppice.dev/coppice/builder"
	"coppice.dev/coppice/namespace"
)

func (a *app) treeDelta() *cobra.Command {
	from := ""
	c := &cobra.Command{
		Use:   "delta NAME@N",
		Short: "Store what an endpoint that has the version before needs to make this one",
		Long: `Compares the files of a version of a tree with those of the version before, or of --from, and
stores binary differences in the origin where they are smaller than the files' own chunks. Programs
that were only relinked, and catalogs, cost a few percent of their size. An endpoint that has the old
files makes the new ones from them and verifies the result; one that does not fetches chunks as ever.
The deltas of a version are those of the last run: a run with another --from replaces them. Nothing
that endpoints rely on changes.`,
		Example: "  coppice tree delta debian@2\n  coppice tree delta debian@5 --from debian@3 --json",
		Args:    exact(1),
		RunE: func(c *cobra.Command, args []string) error {
			return a.makeDeltas(c.Context(), args[0], from)
		},
	}
	c.Flags().StringVar(&from, "from", "", "`NAME@M` that endpoints have (default: the version before)")
	return c
}

// deltaMade is the result of `tree delta`.
type deltaMade struct {
	Version namespace.Version `json:"version"`
	From    namespace.Version `json:"from"`
	// Fetch is all that an endpoint with From fetches to hold Version: deltas, chunks, catalogs and locators.
	Fetch      uint64   `json:"fetch_bytes"`
	FetchPlain uint64   `json:"fetch_bytes_without"`
	Warnings   []string `json:"warnings,omitempty"`
	builder.DeltaReport
}

func (a *app) makeDeltas(ctx context.Context, name, fromName string) error {
	w, err := a.openWorkshop(ctx)
	if err != nil {
		return err
	}
	v, err := namespace.ParseVersion(name)
	if err != nil {
		return err
	}
	to, v, err := w.refs.ResolveTree(ctx, v)
	if err != nil {
		return err
	}
	from := namespace.Version{Name: v.Name, N: v.N - 1}
	if fromName != "" {
		if from, err = namespace.ParseVersion(fromName); err != nil {
			return err
		}
	} else if from.N == 0 {
		return namespace.WithHint(usage("%s is the first version: there is none before it", v), "name a version of another tree with --from")
	}
	old, from, err := w.refs.ResolveTree(ctx, from)
	if err != nil {
		return err
	}
	made, err := a.delta(ctx, w, deltaMade{Version: v, From: from}, old.Root, to.Root)
	if err != nil {
		return err
	}
	return a.result(made, func(out io.Writer) {
		fmt.Fprintf(out, "%s from %s: %s to fetch, %s without deltas\n", v, from, size(made.Fetch), size(made.FetchPlain))
		if !a.quiet {
			a.note("%d of %d files, %s of deltas, %s of chunks, %s of catalogs and locators",
				made.Covered, made.Files, size(made.DeltaBytes), size(made.RestBytes), size(made.MetadataRest))
		}
	})
}

// delta stores the differences between two trees, which made names, and completes made.
func (a *app) delta(ctx context.Context, w *workshop, made deltaMade, old, to namespace.Digest) (deltaMade, error) {
	bar := a.progress("comparing "+made.Version.String()+" with "+made.From.String(), "files")
	defer bar.Close()
	var err error
	made.DeltaReport, err = builder.Deltas(ctx, w.origin, old, to, builder.DeltaOptions{
		Progress: bar.Set,
		Warn: func(path, reason string) {
			made.Warnings = append(made.Warnings, path+": "+reason)
			bar.Note("warning: " + path + ": " + reason)
		},
	})
	made.Fetch = made.DeltaBytes + made.RestBytes + made.MetadataRest
	made.FetchPlain = made.PlainBytes + made.MetadataBytes
	return made, err
}

// deltasSince stores the differences of the trees in changed, from what was mounted before.
func (a *app) deltasSince(ctx context.Context, w *workshop, changed []mountChange) ([]deltaMade, error) {
	all := []deltaMade{}
	for _, c := range changed {
		made, err := a.delta(ctx, w, deltaMade{Version: c.after.Version, From: c.before.Version}, c.before.Tree, c.after.Tree)
		if err != nil {
			return nil, err
		}
		all = append(all, made)
		if !a.quiet {
			a.note("%s from %s: %s to fetch, %s without deltas", made.Version, made.From, size(made.Fetch), size(made.FetchPlain))
		}
	}
	return all, nil
}
