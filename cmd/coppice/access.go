package main

import (
	"fmt"
	"io"
	"os"
	"os/user"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/rollout/identity"
)

func (a *app) accessCommand() *cobra.Command {
	token := group("token", "Tokens of people", a.tokenCreate(), a.tokenList(), a.tokenRevoke())
	endpoint := group("endpoint", "Endpoints that may read, and invitations for new ones", a.inviteEndpoint(), a.listEndpoints(), a.revokeEndpoint())
	c := group("access", "Say who may read an origin and what people may do", token, endpoint)
	c.Long = `Keeps who may do what in the directory "access" of the keys directory: tokens of people, with a role
each, and the certificates of endpoints. Secrets are shown once and kept as digests. A server that
runs sees every change at once; each is recorded in audit.log there (see "coppice audit").`
	return c
}

// actor is who calls, for the trail.
func actor() string {
	name := strconv.Itoa(os.Getuid())
	if u, err := user.Current(); err == nil {
		name = u.Username
	}
	if by := os.Getenv("SUDO_USER"); by != "" {
		name += " for " + by
	}
	return "local " + name
}

// withAccess runs fn with the access directory of the origin.
func (a *app) withAccess(fn func(*identity.Access) error) error {
	keys := a.keys
	if keys == "" {
		loc, err := a.location()
		if err != nil {
			return err
		}
		if strings.Contains(loc, "://") {
			return namespace.WithHint(usage("who may do what is kept with the keys, not at %s", loc), "name the keys' directory with --keys")
		}
		keys = a.keysDir(loc)
	}
	if _, err := os.Stat(keys); err != nil {
		return namespace.WithHint(namespace.E(namespace.KindOf(err), "open keys", keys, err), "`coppice origin init` makes it; --keys or COPPICE_KEYS names it")
	}
	access, trail, err := openAccess(keys)
	if err != nil {
		return err
	}
	defer trail.Close() // each entry was synced
	return fn(access)
}

// parseLife reads how long something is good: a duration, or days as 90d.
func parseLife(s string) (time.Duration, error) {
	if days, ok := strings.CutSuffix(s, "d"); ok {
		if n, err := strconv.ParseUint(days, 10, 16); err == nil && n > 0 {
			return time.Duration(n) * 24 * time.Hour, nil
		}
	}
	d, err := time.ParseDuration(s)
	if err != nil || d <= 0 {
		return 0, usage("--expires %s: want 90d, 12h, 30m", s)
	}
	return d, nil
}

func (a *app) tokenCreate() *cobra.Command {
	var role, expires string
	c := &cobra.Command{
		Use:   "create NAME",
		Short: "Make a token for a person and show it once",
		Long: `Makes a token for NAME and prints it. It is shown this once: only a digest is kept. Put it into a
file that nobody else can read, and name that with --token-file.`,
		Example: "  coppice access token create ann --role operator >ann.token\n  coppice access token create backup --role viewer --expires 12h",
		Args:    exact(1),
		RunE: func(_ *cobra.Command, args []string) error {
			life, err := parseLife(expires)
			if err != nil {
				return err
			}
			r, err := identity.ParseRole(role)
			if err != nil {
				return err
			}
			return a.withAccess(func(access *identity.Access) error {
				text, t, err := access.CreateToken(actor(), args[0], r, life)
				if err != nil {
					return err
				}
				return a.result(map[string]any{"id": t.ID, "name": t.Name, "role": t.Role, "expires": t.Expires, "token": text}, func(w io.Writer) {
					a.note("token %s of %s, %s, good until %s", t.ID, t.Name, t.Role, when(t.Expires))
					fmt.Fprintln(w, text)
				})
			})
		},
	}
	c.Flags().StringVar(&role, "role", "viewer", "what it allows: `ROLE` viewer, operator, publisher or admin")
	c.Flags().StringVar(&expires, "expires", "90d", "it is good for `TIME` (90d, 12h); at most a year")
	return c
}

func (a *app) tokenList() *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Short:   "List tokens",
		Long:    "Lists all tokens, also those that expired or were revoked.",
		Example: "  coppice access token list",
		Args:    exact(0),
		RunE: func(*cobra.Command, []string) error {
			return a.withAccess(func(access *identity.Access) error {
				all, err := access.Tokens()
				if err != nil {
					return err
				}
				type line struct {
					ID      string        `json:"id"`
					Name    string        `json:"name"`
					Role    identity.Role `json:"role"`
					State   string        `json:"state"`
					Created time.Time     `json:"created"`
					By      string        `json:"by"`
					Expires time.Time     `json:"expires"`
				}
				lines, rows := []line{}, [][]string{}
				for _, t := range all {
					state := t.State(time.Now())
					lines = append(lines, line{t.ID, t.Name, t.Role, state, t.Created, t.By, t.Expires})
					rows = append(rows, []string{t.ID, t.Name, string(t.Role), state, when(t.Expires), t.By})
				}
				return a.result(lines, func(w io.Writer) { table(w, "ID NAME ROLE STATE EXPIRES BY", rows) })
			})
		},
	}
}

func (a *app) tokenRevoke() *cobra.Command {
	return &cobra.Command{
		Use:     "revoke ID",
		Short:   "Make a token worthless, from now on",
		Long:    "Revokes the token with the id ID, as `coppice access token list` shows it. Servers refuse it at once.",
		Example: "  coppice access token revoke 5f0c41d2a7be9931",
		Args:    exact(1),
		RunE: func(_ *cobra.Command, args []string) error {
			return a.withAccess(func(access *identity.Access) error {
				if err := access.RevokeToken(actor(), args[0]); err != nil {
					return err
				}
				return a.result(map[string]string{"revoked": args[0]}, func(w io.Writer) { fmt.Fprintln(w, "revoked", args[0]) })
			})
		},
	}
}

func (a *app) inviteEndpoint() *cobra.Command {
	var id, expires string
	var labels map[string]string
	c := &cobra.Command{
		Use:   "invite",
		Short: "Make an invitation with which an endpoint enrols, once",
		Long: `Makes an invitation and prints it, this once. With it one endpoint gets a certificate (see "coppice
endpoint enrol"); then it is used up. With --id it is good for that id only, and also if an endpoint
of that id is enrolled already, whose certificates are worthless afterwards: a machine was replaced.
Without --id the endpoint chooses an id that nobody has.`,
		Example: "  coppice access endpoint invite --id desk-17 --label site=london\n  coppice access endpoint invite --expires 1h",
		Args:    exact(0),
		RunE: func(*cobra.Command, []string) error {
			life, err := parseLife(expires)
			if err != nil {
				return err
			}
			return a.withAccess(func(access *identity.Access) error {
				text, v, err := access.Invite(actor(), id, labels, life)
				if err != nil {
					return err
				}
				return a.result(map[string]any{"id": v.ID, "endpoint": v.Endpoint, "expires": v.Expires, "invitation": text}, func(w io.Writer) {
					a.note("invitation %s for %s, good until %s", v.ID, orAny(v.Endpoint), when(v.Expires))
					fmt.Fprintln(w, text)
				})
			})
		},
	}
	c.Flags().StringVar(&id, "id", "", "only for the endpoint `ID`")
	c.Flags().StringToStringVar(&labels, "label", nil, "`KEY=VALUE` that the endpoint will have; may be repeated")
	c.Flags().StringVar(&expires, "expires", "24h", "it is good for `TIME` (7d, 12h); at most 90 days")
	return c
}

func orAny(id string) string {
	if id == "" {
		return "a new endpoint"
	}
	return id
}

func (a *app) listEndpoints() *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Short:   "List enrolled endpoints and open invitations",
		Long:    "Lists the endpoints that were enrolled, with the end of their last certificate, and the invitations that nobody has used.",
		Example: "  coppice access endpoint list",
		Args:    exact(0),
		RunE: func(*cobra.Command, []string) error {
			return a.withAccess(func(access *identity.Access) error {
				all, err := access.Endpoints()
				if err != nil {
					return err
				}
				open, err := access.Invitations()
				if err != nil {
					return err
				}
				type invitation struct {
					ID       string            `json:"id"`
					Endpoint string            `json:"endpoint,omitempty"`
					Labels   map[string]string `json:"labels,omitempty"`
					By       string            `json:"by"`
					Expires  time.Time         `json:"expires"`
				}
				invitations := []invitation{}
				var rows [][]string
				for _, e := range all {
					rows = append(rows, []string{e.ID, endpointState(e), when(e.Expires), e.Serial})
				}
				for _, v := range open {
					invitations = append(invitations, invitation{v.ID, v.Endpoint, v.Labels, v.By, v.Expires})
					rows = append(rows, []string{orAny(v.Endpoint), "invited", when(v.Expires), v.ID})
				}
				return a.result(map[string]any{"endpoints": append([]identity.EndpointRecord{}, all...), "invitations": invitations},
					func(w io.Writer) { table(w, "ENDPOINT STATE UNTIL CERTIFICATE", rows) })
			})
		},
	}
}

func endpointState(e identity.EndpointRecord) string {
	switch {
	case !e.Revoked.IsZero():
		return "revoked"
	case !time.Now().Before(e.Expires):
		return "expired"
	}
	return "enrolled"
}

func (a *app) revokeEndpoint() *cobra.Command {
	var reason string
	c := &cobra.Command{
		Use:   "revoke ID",
		Short: "Refuse an endpoint's certificates, from now on",
		Long: `Revokes all certificates of the endpoint ID. Servers refuse them at once, on open connections too,
and renew none. What the endpoint has in its cache it has; it gets nothing new. A new invitation with
--id ID lets it, or another machine, come back.`,
		Example: "  coppice access endpoint revoke desk-17 --reason stolen",
		Args:    exact(1),
		RunE: func(_ *cobra.Command, args []string) error {
			return a.withAccess(func(access *identity.Access) error {
				if err := access.Revoke(actor(), args[0], reason); err != nil {
					return err
				}
				return a.result(map[string]string{"revoked": args[0]}, func(w io.Writer) { fmt.Fprintln(w, "revoked", args[0]) })
			})
		},
	}
	c.Flags().StringVar(&reason, "reason", "", "`TEXT` for the trail")
	return c
}
