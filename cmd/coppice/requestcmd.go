package main

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"coppice.dev/coppice/internal/disk"
	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/trust"
)

func (a *app) requestCommand() *cobra.Command {
	return group("request", "Have something signed by people or machines elsewhere",
		a.requestCreate(), a.requestShow(), a.requestSign(), a.requestApply())
}

func (a *app) requestCreate() *cobra.Command {
	c := group("create", "Ask for signatures: a file to carry to where the keys are",
		a.createVouch(), a.createPoint(), a.createChannel(), a.createKeys(), a.createRenew())
	c.Long = `Writes a request to -o FILE: the document that would be next, and the one before it. It is carried
to each of those who must sign, by whatever means; nothing in it is secret, and nothing is believed
because it says so. ` + "`request show`" + ` tells what it changes, ` + "`request sign`" + ` signs it where the
keys are, without a network and without the origin, and ` + "`request apply`" + ` puts it into effect.`
	return c
}

// asking is what all kinds of request have.
type asking struct{ out, why string }

func (q *asking) add(c *cobra.Command) *cobra.Command {
	c.Flags().StringVarP(&q.out, "output", "o", "", "`FILE` to write (required)")
	c.Flags().StringVar(&q.why, "reason", "", "`TEXT` that those who sign see, and that is kept")
	return c
}

// create makes a request and writes it.
func (a *app) create(ctx context.Context, q *asking, ask func(*trust.Publisher) (trust.Request, error)) error {
	if q.out == "" {
		return usage("no file for the request: name it with -o")
	}
	w, err := a.openWorkshop(ctx)
	if err != nil {
		return err
	}
	p := &trust.Publisher{Refs: w.refs, Writer: w.origin, By: signerName(), Now: time.Now}
	r, err := ask(p)
	if err != nil {
		return err
	}
	if err := writeRequest(q.out, r); err != nil {
		return err
	}
	return a.showRequest(r)
}

func (a *app) createVouch() *cobra.Command {
	var q asking
	var floor, withdraw bool
	var except []string
	var until time.Duration
	var content uint64
	c := &cobra.Command{
		Use:     "vouch NAME@N",
		Short:   "Ask that a version may be named by channels",
		Long:    "Asks the vouching keys for what `namespace vouch` does with the same flags.",
		Example: "  coppice request create vouch desk@7 --floor --reason 'CVE-2026-1234' -o vouch.json",
		Args:    exact(1),
		RunE: func(c *cobra.Command, args []string) error {
			change, err := vouchChange(args[0], floor, withdraw, content, except, until)
			if err != nil {
				return err
			}
			return a.create(c.Context(), &q, func(p *trust.Publisher) (trust.Request, error) {
				return p.AskVouching(c.Context(), change, q.why)
			})
		},
	}
	fl := c.Flags()
	fl.BoolVar(&floor, "floor", false, "no channel may name what holds less than this version")
	fl.BoolVar(&withdraw, "withdraw", false, "no channel may name it any more")
	fl.StringArrayVar(&except, "except", nil, "`CHANNEL` that may name it though it is below the floor")
	fl.DurationVar(&until, "for", 0, "how `LONG` the exception holds; 0: until it is withdrawn")
	fl.Uint64Var(&content, "content", 0, "`NUMBER` that orders what versions hold, for the floor (default: N)")
	return q.add(c)
}

func (a *app) createPoint() *cobra.Command {
	var q asking
	c := &cobra.Command{
		Use:     "point CHANNEL [NAME@N]",
		Short:   "Ask that a channel names a version, or goes back to the one before",
		Long:    "Asks the channel's keys for what `channel set` does or, without a version, `channel rollback`.",
		Example: "  coppice request create point desktop/stable desk@7 --reason 'openssl 3.0.17' -o point.json",
		Args:    between(1, 2),
		RunE: func(c *cobra.Command, args []string) error {
			var v namespace.Version
			if len(args) == 2 {
				var err error
				if v, err = namespace.ParseVersion(args[1]); err != nil {
					return err
				}
			}
			return a.create(c.Context(), &q, func(p *trust.Publisher) (trust.Request, error) {
				return p.AskPoint(c.Context(), args[0], v, q.why)
			})
		},
	}
	return q.add(c)
}

func (a *app) createChannel() *cobra.Command {
	var q asking
	c := &cobra.Command{
		Use:     "channel CHANNEL",
		Short:   "Ask for a new channel",
		Long:    "Asks the vouching keys to give a new channel to the keys that point new channels.",
		Example: "  coppice request create channel desktop/beta -o channel.json",
		Args:    exact(1),
		RunE: func(c *cobra.Command, args []string) error {
			return a.create(c.Context(), &q, func(p *trust.Publisher) (trust.Request, error) {
				return p.AskVouching(c.Context(), trust.VouchingChange{Channels: args}, q.why)
			})
		},
	}
	return q.add(c)
}

func (a *app) createKeys() *cobra.Command {
	var q asking
	var f keyFlags
	var add, remove string
	c := &cobra.Command{
		Use:   "keys ROLE",
		Short: "Ask that a role gets a key, or loses one",
		Long: `Asks the root keys, or for the role pointer the vouching keys, for what ` + "`key rotate`" + ` and
` + "`key revoke`" + ` do. Without --add, --remove and --threshold it asks for a document with a later
expiry and nothing else.`,
		Example: "  coppice request create keys root --add bob.pub --name Bob --threshold 2 -o keys.json",
		Args:    exact(1),
		RunE: func(c *cobra.Command, args []string) error {
			return a.create(c.Context(), &q, func(p *trust.Publisher) (trust.Request, error) {
				v, err := p.Vouching(c.Context())
				if err != nil {
					return trust.Request{}, err
				}
				f.why = q.why
				change, err := f.change(args[0], add, remove, trust.Members(p.Root, v))
				if err != nil {
					return trust.Request{}, err
				}
				if change.Role == trust.RolePoint {
					return p.AskVouching(c.Context(), trust.VouchingChange{Keys: []trust.KeyChange{change}}, q.why)
				}
				return p.AskRoot(c.Context(), []trust.KeyChange{change}, q.why)
			})
		},
	}
	c.Flags().StringVar(&add, "add", "", "`FILE` of the public key that comes")
	c.Flags().StringVar(&remove, "remove", "", "the `KEY` that goes: the beginning of its id")
	c.Flags().StringVar(&f.channel, "channel", "", "only for this `CHANNEL` (role pointer)")
	c.Flags().StringVar(&f.name, "name", "", "whose the new key is: `TEXT` shown in lists")
	c.Flags().IntVar(&f.threshold, "threshold", 0, "how `MANY` keys of the role must sign (default: as it is)")
	return q.add(c)
}

func (a *app) createRenew() *cobra.Command {
	var q asking
	var also []string
	c := &cobra.Command{
		Use:   "renew",
		Short: "Ask that what the vouching keys say is signed anew, as it is",
		Long: `Asks the vouching keys to sign their document again, with a later expiry. With --also the keys in those
files may sign it too, before they have the role: so vouching keys that live on different machines
are rotated, and their threshold is raised. First this, signed by the old and the new ones, then
` + "`request create keys vouching`" + `, signed by the root keys.`,
		Example: "  coppice request create renew --also bob.pub -o renew.json",
		Args:    exact(0),
		RunE: func(c *cobra.Command, _ []string) error {
			var keys []ed25519.PublicKey
			for _, file := range also {
				k, err := publicKey(file)
				if err != nil {
					return err
				}
				keys = append(keys, k)
			}
			return a.create(c.Context(), &q, func(p *trust.Publisher) (trust.Request, error) {
				return p.AskVouching(c.Context(), trust.VouchingChange{}, q.why, keys...)
			})
		},
	}
	c.Flags().StringArrayVar(&also, "also", nil, "`FILE` of a public key that may sign too")
	return q.add(c)
}

func writeRequest(file string, r trust.Request) error {
	b, err := namespace.EncodeRecord(r)
	if err != nil {
		return err
	}
	return disk.Replace(file, b, 0o644)
}

func readRequest(file string) (trust.Request, error) {
	f, err := os.Open(file)
	if err != nil {
		return trust.Request{}, disk.Error("read", file, err)
	}
	defer f.Close() // it was only read
	b, err := io.ReadAll(io.LimitReader(f, trust.RequestBytesMax+1))
	if err != nil {
		return trust.Request{}, disk.Error("read", file, err)
	}
	return trust.OpenRequest(b)
}

// showRequest prints a request: what it changes, found by comparing its documents.
func (a *app) showRequest(r trust.Request) error {
	signed := r.Signatures()
	return a.result(map[string]any{"origin": r.Origin, "document": r.Document, "asked": r.Asked, "threshold": r.Need, "keys": r.Keys,
		"changes": r.Changes(), "signed": signed}, func(w io.Writer) {
		fmt.Fprintf(w, "for     %s of origin %s\nasked   %s, %s: %s\n", r.Document, r.Origin, r.Asked.By, when(r.Asked.At), r.Asked.Why)
		fmt.Fprintf(w, "signed  %d, %d needed of %d keys\n", len(signed), r.Need, len(r.Keys))
		for _, s := range signed {
			fmt.Fprintf(w, "        %.16s  %s, %s: %s\n", s.KeyID, s.By, when(s.At), s.Why)
		}
		for _, line := range r.Changes() {
			fmt.Fprintln(w, line)
		}
	})
}

func (a *app) requestShow() *cobra.Command {
	return &cobra.Command{
		Use:   "show FILE",
		Short: "Tell what a request changes, and who signed it",
		Long: `Compares the document that the request asks for with the one before it, and prints what is added
(+), removed (-) and changed (~). Who asks, and why, is what they say of themselves; signatures are
verified when the request is applied.`,
		Example: "  coppice request show vouch.json",
		Args:    exact(1),
		RunE: func(_ *cobra.Command, args []string) error {
			r, err := readRequest(args[0])
			if err != nil {
				return err
			}
			return a.showRequest(r)
		},
	}
}

func (a *app) requestSign() *cobra.Command {
	var by, why, out string
	c := &cobra.Command{
		Use:   "sign FILE",
		Short: "Sign a request with the keys of this machine",
		Long: `Signs the request with those keys in --keys that count for it, and writes it back, or to -o FILE.
It needs neither the origin nor a network. Each signature says who signed (--by, COPPICE_SIGNER or
user@host), when, and why. It prints what was signed: look with ` + "`request show`" + ` first.`,
		Example: "  coppice request sign vouch.json --keys /media/keys --by 'Ann, security' --reason 'reviewed'",
		Args:    exact(1),
		RunE: func(_ *cobra.Command, args []string) error {
			r, err := readRequest(args[0])
			if err != nil {
				return err
			}
			if a.keys == "" {
				return namespace.WithHint(usage("no keys to sign with"), "name their directory with --keys or COPPICE_KEYS")
			}
			all, err := a.readKeys(a.keys)
			if err != nil {
				return err
			}
			var keys []trust.Signer
			for _, k := range all {
				keys = append(keys, k)
			}
			if by == "" {
				by = signerName()
			}
			if r, _, err = trust.SignRequest(r, trust.Note{By: by, At: time.Now(), Why: why}, keys...); err != nil {
				return err
			}
			if out == "" {
				out = args[0]
			}
			if err := writeRequest(out, r); err != nil {
				return err
			}
			return a.showRequest(r)
		},
	}
	c.Flags().StringVar(&by, "by", "", "who signs: `TEXT` (COPPICE_SIGNER; default user@host)")
	c.Flags().StringVar(&why, "reason", "", "why: `TEXT`")
	c.Flags().StringVarP(&out, "output", "o", "", "`FILE` to write (default: the request itself)")
	return c
}

func (a *app) requestApply() *cobra.Command {
	return &cobra.Command{
		Use:   "apply FILE…",
		Short: "Put a signed request into effect",
		Long: `Verifies the signatures of the request, those of further copies of it that others signed included, and
if there are enough of them makes its document the current one, with the online key. A request is
refused if the document was changed since it was made: make it anew.`,
		Example: "  coppice request apply vouch-ann.json vouch-bob.json --origin /srv/origin",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			var all []trust.Request
			for _, file := range args {
				r, err := readRequest(file)
				if err != nil {
					return err
				}
				all = append(all, r)
			}
			r, err := all[0].Merge(all[1:]...)
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
			if err := p.Apply(c.Context(), r); err != nil {
				return err
			}
			return a.showRequest(r)
		},
	}
}
