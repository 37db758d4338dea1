package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"coppice.dev/coppice/builder"
	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/trust"
)

func (a *app) channelCommand() *cobra.Command {
	return group("channel", "Point endpoints at namespace versions", a.channelSet(), a.channelRollback(), a.channelList(), a.channelLog())
}

func (a *app) channelSet() *cobra.Command {
	var reason string
	c := &cobra.Command{
		Use:   "set CHANNEL NAME@N",
		Short: "Make a namespace version the active one of a channel",
		Long: `Writes a signed pointer with the next seq. Endpoints that follow the channel switch to the
version as soon as they hear of it. Setting what is set already writes a new seq as well.`,
		Example: "  coppice channel set desktop/stable desk@7 --reason 'openssl 3.0.17'",
		Args:    exact(2),
		RunE: func(c *cobra.Command, args []string) error {
			v, err := namespace.ParseVersion(args[1])
			if err != nil {
				return err
			}
			return a.movePointer(c, args[0], v, func(p *trust.Publisher) (namespace.Pointer, error) {
				return p.Set(c.Context(), args[0], v, reason)
			})
		},
	}
	c.Flags().StringVar(&reason, "reason", "", "`TEXT` kept in the history")
	return c
}

func (a *app) channelRollback() *cobra.Command {
	var to, reason string
	c := &cobra.Command{
		Use:   "rollback CHANNEL",
		Short: "Go back to the version that was active before",
		Long: `Writes a signed pointer with the next, higher seq that names the version which was active before
the current one, or the one given with --to. No data moves.`,
		Example: "  coppice channel rollback desktop/stable\n  coppice channel rollback desktop/stable --to desk@3",
		Args:    exact(1),
		RunE: func(c *cobra.Command, args []string) error {
			var v namespace.Version
			if to != "" {
				var err error
				if v, err = namespace.ParseVersion(to); err != nil {
					return err
				}
			}
			return a.movePointer(c, args[0], v, func(p *trust.Publisher) (namespace.Pointer, error) {
				return p.Rollback(c.Context(), args[0], v, reason)
			})
		},
	}
	c.Flags().StringVar(&to, "to", "", "go to `NAME@N`")
	c.Flags().StringVar(&reason, "reason", "", "`TEXT` kept in the history")
	return c
}

// movePointer writes a channel's next pointer. to is the version that it will name, zero for the one
// before: `origin gc` may be about to drop it, or did.
func (a *app) movePointer(c *cobra.Command, channel string, to namespace.Version, move func(*trust.Publisher) (namespace.Pointer, error)) error {
	w, err := a.openWorkshop(c.Context())
	if err != nil {
		return err
	}
	p, err := w.publisher()
	if err != nil {
		return err
	}
	if err := w.hold(c.Context(), p, channel, to); err != nil {
		return err
	}
	ptr, err := move(p)
	if err != nil {
		return err
	}
	return a.result(ptr, func(out io.Writer) {
		fmt.Fprintf(out, "%s  seq %d  %s  %s\n", ptr.Channel, ptr.Seq, ptr.Version, ptr.Manifest)
	})
}

func (a *app) channelList() *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Short:   "List the channels and what they point at",
		Example: "  coppice channel list --json",
		Args:    exact(0),
		RunE: func(c *cobra.Command, _ []string) error {
			r, err := a.openReader(c.Context())
			if err != nil {
				return err
			}
			names, err := r.source.Refs(c.Context(), namespace.ChannelRef)
			if err != nil {
				return err
			}
			all := []namespace.Pointer{}
			for _, name := range names {
				p, err := r.refs.Pointer(c.Context(), name)
				if err != nil {
					return err
				}
				all = append(all, p)
			}
			return a.result(all, func(w io.Writer) { table(w, "CHANNEL SEQ VERSION ISSUED REASON", pointerRows(all)) })
		},
	}
}

func (a *app) channelLog() *cobra.Command {
	var limit int
	c := &cobra.Command{
		Use:   "log CHANNEL",
		Short: "Show what a channel pointed at, newest first, and who signed it",
		Long: `Shows the pointers of a channel, newest first: when each was signed, by whom and why. With --json
every signature is listed, with its note and whether it was verified with a key that counts today;
those of older pointers are vouched for by the digest that the next pointer has of them.`,
		Example: "  coppice channel log desktop/stable -n 10",
		Args:    exact(1),
		RunE: func(c *cobra.Command, args []string) error {
			r, err := a.openReader(c.Context())
			if err != nil {
				return err
			}
			all := []trust.Entry{}
			err = r.refs.Log(c.Context(), args[0], func(e trust.Entry) bool {
				all = append(all, e)
				return limit <= 0 || len(all) < limit
			})
			if err != nil {
				return err
			}
			return a.result(all, func(w io.Writer) { table(w, "CHANNEL SEQ VERSION ISSUED SIGNED REASON", logRows(all)) })
		},
	}
	c.Flags().IntVarP(&limit, "number", "n", 0, "show at most `N`; 0 shows all")
	return c
}

func pointerRows(all []namespace.Pointer) [][]string {
	var rows [][]string
	for _, p := range all {
		rows = append(rows, []string{p.Channel, strconv.FormatUint(p.Seq, 10), p.Version.String(), when(p.Issued), p.Reason})
	}
	return rows
}

func logRows(all []trust.Entry) [][]string {
	var rows [][]string
	for _, e := range all {
		var by []string
		for _, s := range e.Signed {
			by = append(by, cmp.Or(s.By, s.KeyID[:min(16, len(s.KeyID))]))
		}
		rows = append(rows, []string{e.Channel, strconv.FormatUint(e.Seq, 10), e.Version.String(), when(e.Issued), strings.Join(by, ","), e.Reason})
	}
	return rows
}

// hold makes sure that the version which a channel is about to name is there, and stays for a gc's
// grace period. v is zero for a rollback to what was active before.
func (w *workshop) hold(ctx context.Context, p *trust.Publisher, channel string, v namespace.Version) error {
	if v.Name != "" {
		nv, _, err := w.refs.ResolveNamespace(ctx, v)
		if err != nil {
			return err
		}
		return builder.HoldNamespace(ctx, w.origin, nv.Manifest)
	}
	var current, before namespace.Pointer
	err := p.History(ctx, channel, func(ptr namespace.Pointer) bool {
		if current.Seq == 0 {
			current = ptr
		}
		before = ptr
		return ptr.Manifest == current.Manifest
	})
	if err != nil || before.Manifest == current.Manifest { // the latter is Rollback's to say
		return err
	}
	return builder.HoldNamespace(ctx, w.origin, before.Manifest)
}
