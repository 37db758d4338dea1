package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/origin"
	"coppice.dev/coppice/namespace/trust"
)

func (a *app) originRefresh() *cobra.Command {
	return &cobra.Command{
		Use:   "refresh",
		Short: "Sign the timestamp anew, so that endpoints know they see the newest",
		Long: `Signs a new timestamp, and a new snapshot when it is time, with the online key. Endpoints accept
nothing new from an origin whose timestamp has expired: run this from cron a few times within its
life (` + "`origin policy`" + ` says how long that is), or let ` + "`origin serve --refresh`" + ` do it. Publishing
and moving a channel sign a new timestamp as well. It also makes good what a publisher that died
halfway left.`,
		Example: "  coppice origin refresh --origin /srv/origin --keys /etc/coppice/online",
		Args:    exact(0),
		RunE: func(c *cobra.Command, _ []string) error {
			w, err := a.openWorkshop(c.Context())
			if err != nil {
				return err
			}
			p, err := w.publisher()
			if err != nil {
				return err
			}
			if err := p.Refresh(c.Context()); err != nil {
				return err
			}
			all, err := p.Expiries(c.Context())
			if err != nil {
				return err
			}
			return a.result(all, func(out io.Writer) {
				var rows [][]string
				for _, e := range all {
					rows = append(rows, []string{e.Document, when(e.Expires)})
				}
				table(out, "DOCUMENT EXPIRES", rows)
			})
		},
	}
}

// refreshEvery is the part of a timestamp's life after which the server signs the next one: three
// attempts may fail.
const refreshEvery = 4

// keepFresh signs timestamps of the origin in dir until ctx ends or stop is called. The first one is
// signed before it returns, so that what cannot work is known at the start.
func (a *app) keepFresh(ctx context.Context, dir string) (stop func(), err error) {
	o, err := origin.OpenDir(dir)
	if err != nil {
		return nil, err
	}
	keys, err := a.signers(a.keysDir(dir))
	if err != nil {
		return nil, errors.Join(err, o.Close())
	}
	once := func(ctx context.Context) (time.Duration, error) {
		root, _, err := trust.FetchRoot(ctx, o)
		if err != nil {
			return 0, err
		}
		p := trust.Publisher{Refs: trust.Refs{Reader: o, Root: root, Blobs: originBlobs{o}}, Writer: o, Signers: keys, By: signerName(), Now: time.Now}
		if err := p.Refresh(ctx); err != nil {
			return 0, err
		}
		v, err := p.Vouching(ctx)
		if err != nil {
			return 0, err
		}
		return v.Policy.Fresh / refreshEvery, nil
	}
	every, err := once(ctx)
	if err != nil {
		return nil, errors.Join(err, o.Close())
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for tick := time.NewTimer(every); ; tick.Reset(every) {
			select {
			case <-ctx.Done():
				tick.Stop()
				return
			case <-tick.C:
			}
			if next, err := once(ctx); err == nil {
				every = next
			} else if ctx.Err() == nil {
				a.note("the timestamp was not signed anew: %v", err)
			}
		}
	}()
	return func() { cancel(); <-done; _ = o.Close() }, nil // nothing is under way any more
}

func (a *app) originPolicy() *cobra.Command {
	var p trust.Policy
	var then, why string
	c := &cobra.Command{
		Use:   "policy",
		Short: "Show or change how long endpoints trust without hearing of the origin",
		Long: `Shows, or with flags changes, what the vouching keys ask of endpoints. Two clocks run: when the
timestamp has expired (--fresh after it was signed) nothing new is accepted, and what runs goes on;
when the lease is over (--lease after the last fresh timestamp was seen) an endpoint does what
--then says: warn, report, or quarantine, which shows an empty tree until the origin is reached.`,
		Example: "  coppice origin policy\n  coppice origin policy --fresh 24h --lease 720h --then warn",
		Args:    exact(0),
		RunE: func(c *cobra.Command, _ []string) error {
			if c.Flags().NFlag() == 0 || !c.Flags().Changed("fresh") && !c.Flags().Changed("lease") && !c.Flags().Changed("then") {
				r, err := a.openReader(c.Context())
				if err != nil {
					return err
				}
				v, err := r.refs.Vouching(c.Context())
				if err != nil {
					return err
				}
				return a.showPolicy(v.Policy)
			}
			p.Then = trust.Then(then)
			return a.setPolicy(c.Context(), p, why)
		},
	}
	c.Flags().DurationVar(&p.Fresh, "fresh", 0, "a timestamp's `LIFE` (default: as it is)")
	c.Flags().DurationVar(&p.Lease, "lease", 0, "how `LONG` an endpoint runs without a fresh one (default: as it is)")
	c.Flags().StringVar(&then, "then", "", "what it does after that: warn, report or quarantine")
	c.Flags().StringVar(&why, "reason", "", "`TEXT` kept with the signatures")
	return c
}

func (a *app) setPolicy(ctx context.Context, change trust.Policy, why string) error {
	w, err := a.openWorkshop(ctx)
	if err != nil {
		return err
	}
	p, err := w.publisher()
	if err != nil {
		return err
	}
	v, err := p.Vouching(ctx)
	if err != nil {
		return err
	}
	next := v.Policy
	if change.Fresh != 0 {
		next.Fresh = change.Fresh
	}
	if change.Lease != 0 {
		next.Lease = change.Lease
	}
	if change.Then != "" {
		next.Then = change.Then
	}
	if v, err = p.ChangeVouching(ctx, trust.VouchingChange{Policy: &next}, why); err != nil {
		return err
	}
	return a.showPolicy(v.Policy)
}

func (a *app) showPolicy(p trust.Policy) error {
	return a.result(map[string]any{"fresh_seconds": int64(p.Fresh / time.Second), "lease_seconds": int64(p.Lease / time.Second), "then": p.Then}, func(w io.Writer) {
		fmt.Fprintf(w, "fresh  %v\nlease  %v\nthen   %s\n", p.Fresh, p.Lease, p.Then)
	})
}

func (a *app) namespaceVouch() *cobra.Command {
	var floor, withdraw bool
	var except []string
	var until time.Duration
	var content uint64
	var why string
	c := &cobra.Command{
		Use:   "vouch NAME@N",
		Short: "Let channels name a version, set the floor, or withdraw one",
		Long: `Signs with the vouching keys that channels may name the version. Publishing does this by itself
where those keys are at hand; where they are not, ` + "`request create vouch`" + ` makes a request for them.

--floor makes the version the oldest that any channel may name; what holds less is refused by
publishers and endpoints, unless --except names a channel that may go there, for some time with
--for. --withdraw takes the signature back: no channel can be moved to the version any more.`,
		Example: `  coppice namespace vouch desk@7 --floor --reason 'CVE-2026-1234'
  coppice namespace vouch desk@3 --except lab/old --for 168h
  coppice namespace vouch desk@5 --withdraw`,
		Args: exact(1),
		RunE: func(c *cobra.Command, args []string) error {
			change, err := vouchChange(args[0], floor, withdraw, content, except, until)
			if err != nil {
				return err
			}
			w, err := a.openWorkshop(c.Context())
			if err != nil {
				return err
			}
			p, err := w.publisher()
			if err != nil {
				return err
			}
			v, err := p.ChangeVouching(c.Context(), change, why)
			if err != nil {
				return err
			}
			return a.showVouching(v)
		},
	}
	fl := c.Flags()
	fl.BoolVar(&floor, "floor", false, "no channel may name what holds less than this version")
	fl.BoolVar(&withdraw, "withdraw", false, "take the signature back")
	fl.StringArrayVar(&except, "except", nil, "`CHANNEL` that may name it though it is below the floor")
	fl.DurationVar(&until, "for", 0, "how `LONG` the exception holds; 0: until it is withdrawn")
	fl.Uint64Var(&content, "content", 0, "`NUMBER` that orders what versions hold, for the floor (default: N)")
	fl.StringVar(&why, "reason", "", "`TEXT` kept with the signatures")
	return c
}

// vouchChange makes the change that the arguments ask for.
func vouchChange(name string, floor, withdraw bool, content uint64, except []string, until time.Duration) (c trust.VouchingChange, err error) {
	v, err := namespace.ParseVersion(name)
	if err != nil {
		return c, err
	}
	if v.N == 0 && (withdraw || floor) {
		return c, usage("name the version: %s@N", v.Name)
	}
	if withdraw {
		if floor || len(except) > 0 {
			return c, usage("a version that is withdrawn can be no floor and no exception")
		}
		c.Withdraw = []namespace.Version{v}
		return c, nil
	}
	c.Vouch, c.Content = []namespace.Version{v}, content
	if floor {
		c.Floor = c.Vouch
	}
	for _, channel := range except {
		x := trust.Exception{Channel: channel}
		if until > 0 {
			x.Until = time.Now().Add(until).UTC().Truncate(time.Second)
		}
		c.Except = append(c.Except, x)
	}
	return c, nil
}

// vouchedLine is a vouched version as it is printed.
type vouchedLine struct {
	Version    string            `json:"version"`
	Manifest   namespace.Digest  `json:"manifest"`
	Content    uint64            `json:"content"`
	BelowFloor bool              `json:"below_floor"`
	Exceptions []trust.Exception `json:"exceptions,omitempty"`
}

func (a *app) showVouching(v *trust.Vouching) error {
	lines := []vouchedLine{}
	var rows [][]string
	for _, name := range v.Names() {
		one := v.Versions[name]
		l := vouchedLine{name.String(), one.Manifest, one.Content, one.Content < v.Floors[name.Name], one.Exceptions}
		note := ""
		if l.BelowFloor {
			note = "below the floor"
		}
		for _, x := range one.Exceptions {
			note += ", except in " + x.Channel
		}
		lines = append(lines, l)
		rows = append(rows, []string{l.Version, fmt.Sprint(l.Content), l.Manifest.Short(), note})
	}
	return a.result(lines, func(w io.Writer) { table(w, "VERSION CONTENT MANIFEST NOTE", rows) })
}
