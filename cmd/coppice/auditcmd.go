package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/rollout/audit"
)

func (a *app) auditCommand() *cobra.Command {
	return group("audit", "Read the trail of who did what", a.auditVerify(), a.auditShow())
}

// parseAnchors reads the values of --anchor.
func parseAnchors(texts []string) ([]audit.Anchor, error) {
	var all []audit.Anchor
	for _, s := range texts {
		one, err := audit.ParseAnchor(s)
		if err != nil {
			return nil, err
		}
		all = append(all, one)
	}
	return all, nil
}

const anchorText = "`SEQ:DIGEST` that must be in it; may be repeated"

func (a *app) auditVerify() *cobra.Command {
	var texts []string
	c := &cobra.Command{
		Use:   "verify FILE",
		Short: "Check that nobody tampered with a trail",
		Long: `Checks the trail in FILE, with the files that were put aside beside it: each entry names the digest of
the one before, and FILE.head the last one, so that an entry which was changed, left out, moved or cut
off is found. It prints the anchor of the last entry. Who can write everything here can also rewrite
everything: write the anchor down elsewhere, and give it with --anchor the next time.`,
		Example: "  coppice audit verify /srv/origin.keys/access/audit.log\n  coppice audit verify audit.log --anchor 1041:sha256:…",
		Args:    exact(1),
		RunE: func(_ *cobra.Command, args []string) error {
			anchors, err := parseAnchors(texts)
			if err != nil {
				return err
			}
			r, err := audit.Verify(args[0], anchors, nil)
			if err != nil {
				return err
			}
			return a.result(map[string]any{"first": r.First, "last": r.Head.Seq, "head": r.Head.String(), "files": r.Files}, func(w io.Writer) {
				fmt.Fprintln(w, r.Head)
				a.note("entries %d to %d follow from each other", r.First, r.Head.Seq)
			})
		},
	}
	c.Flags().StringArrayVar(&texts, "anchor", nil, anchorText)
	return c
}

func (a *app) auditShow() *cobra.Command {
	var texts []string
	var last int
	c := &cobra.Command{
		Use:   "show FILE",
		Short: "Show a trail, verified",
		Long: `Shows the last entries of the trail in FILE after it was checked as "coppice audit verify" does; nothing
is shown of one that somebody tampered with.`,
		Example: "  coppice audit show /srv/origin.keys/access/audit.log --last 20\n  coppice audit show audit.log --last 0 --json",
		Args:    exact(1),
		RunE: func(_ *cobra.Command, args []string) error {
			anchors, err := parseAnchors(texts)
			if err != nil {
				return err
			}
			if last < 0 {
				return usage("--last wants 0 or more")
			}
			entries := []audit.Entry{}
			if _, err := audit.Verify(args[0], anchors, func(e audit.Entry) error {
				if entries = append(entries, e); last > 0 && len(entries) >= 2*last { // amortised
					entries = slices.Delete(entries, 0, len(entries)-last)
				}
				return nil
			}); err != nil {
				return namespace.WithHint(err, "what is there can be read as text, but not believed")
			}
			if last > 0 {
				entries = entries[max(0, len(entries)-last):]
			}
			return a.result(entries, func(w io.Writer) { table(w, "SEQ TIME ACTOR ACTION SUBJECT OUTCOME DETAIL", entryRows(entries)) })
		},
	}
	c.Flags().StringArrayVar(&texts, "anchor", nil, anchorText)
	c.Flags().IntVar(&last, "last", 50, "show the last `N` entries; 0 shows all")
	return c
}

// entryRows makes rows for a terminal, which obeys no text of strangers.
func entryRows(entries []audit.Entry) [][]string {
	var rows [][]string
	for _, e := range entries {
		var detail []string
		for _, k := range slices.Sorted(maps.Keys(e.Detail)) {
			detail = append(detail, k+"="+e.Detail[k])
		}
		row := []string{fmt.Sprint(e.Seq), when(e.Time), e.Actor, e.Action, e.Subject, e.Outcome, strings.Join(detail, " ")}
		for i := range row {
			row[i] = strings.Trim(fmt.Sprintf("%q", row[i]), `"`)
		}
		rows = append(rows, row)
	}
	return rows
}
