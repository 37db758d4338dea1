package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"coppice.dev/coppice/internal/disk"
	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/rollout/identity"
)

func (a *app) endpointCommand() *cobra.Command {
	return group("endpoint", "This machine's identity", a.endpointEnrol(), a.endpointRenew(), a.endpointIdentity())
}

// credentials are this machine's.
func (a *app) credentials() (*identity.Credentials, error) {
	t, err := a.tls.transport()
	if err != nil {
		return nil, err
	}
	path := t.ClientCert
	if path == "" {
		path = "/var/lib/coppice/endpoint.pem"
		if os.Geteuid() != 0 {
			home, err := os.UserHomeDir()
			if err != nil {
				return nil, namespace.WithHint(namespace.E(namespace.NotExist, "find", "home directory", err), "name the file with --client-cert")
			}
			path = filepath.Join(home, ".local/state/coppice/endpoint.pem")
		}
	}
	known, err := a.knownServers()
	return &identity.Credentials{Path: path, Transport: t, Known: known}, err
}

func (a *app) endpointEnrol() *cobra.Command {
	var invitation, server, id string
	var again bool
	c := &cobra.Command{
		Use:   "enrol",
		Short: "Get this machine a certificate for an invitation",
		Long: `Makes a key and gets a certificate for it from a server, for an invitation ("coppice access endpoint
invite" makes one). Key and certificate are kept in one file, which nobody else can read; mounts name
it with --client-cert, which also says here where it is (default: /var/lib/coppice/endpoint.pem for
root, ~/.local/state/coppice/endpoint.pem else). The key never leaves this machine. If the answer was lost, the same command may
be given again; else an invitation is good once.`,
		Example: `  coppice endpoint enrol --token @invitation --server https+pin://sha256:…@origin.example:8443 --id desk-17
  coppice endpoint enrol --token - --server https://origin.example <invitation`,
		Args: exact(0),
		RunE: func(c *cobra.Command, _ []string) error {
			if invitation == "" || server == "" {
				return usage("--token and --server are needed")
			}
			text, err := readSecret(invitation, c.InOrStdin())
			if err != nil {
				return err
			}
			if id == "" {
				if id, err = hostID(); err != nil {
					return err
				}
			}
			creds, err := a.credentials()
			if err != nil {
				return err
			}
			e, err := creds.Enrol(c.Context(), server, text, id, again)
			return a.showIdentity(creds, e, err)
		},
	}
	fl := c.Flags()
	fl.StringVar(&invitation, "token", "", "the invitation: `TEXT`, @FILE, or - for the standard input (who lists processes sees TEXT)")
	fl.StringVar(&server, "server", "", "`URL` of the server that enrols")
	fl.StringVar(&id, "id", "", "this machine's `ID`; default: its host name")
	fl.BoolVar(&again, "again", false, "also if this machine is enrolled already")
	return c
}

func (a *app) endpointRenew() *cobra.Command {
	var server string
	var force bool
	c := &cobra.Command{
		Use:   "renew",
		Short: "Renew this machine's certificate, if it is time",
		Long: `Gets a new certificate with the one that this machine has, if two thirds of its life are over; before,
nothing is done. A timer may call this once a day. An expired certificate cannot be renewed: that
takes a new invitation.`,
		Example: "  coppice endpoint renew --server https://origin.example:8443",
		Args:    exact(0),
		RunE: func(c *cobra.Command, _ []string) error {
			if server == "" {
				return usage("--server is needed")
			}
			creds, err := a.credentials()
			if err != nil {
				return err
			}
			e, err := renew(c.Context(), creds, server, force)
			return a.showIdentity(creds, e, err)
		},
	}
	c.Flags().StringVar(&server, "server", "", "`URL` of the server that enrolled this machine")
	c.Flags().BoolVar(&force, "force", false, "also if it is not time yet")
	return c
}

func renew(ctx context.Context, creds *identity.Credentials, url string, force bool) (identity.Enrolled, error) {
	e, err := creds.Load()
	if err != nil || !force && time.Now().Before(e.RenewAfter) {
		return e, err
	}
	return creds.Renew(ctx, url)
}

func (a *app) endpointIdentity() *cobra.Command {
	return &cobra.Command{
		Use:     "identity",
		Short:   "Show who this machine is",
		Long:    "Shows the id in this machine's certificate, until when that is valid, and from when it is renewed.",
		Example: "  coppice endpoint identity",
		Args:    exact(0),
		RunE: func(*cobra.Command, []string) error {
			creds, err := a.credentials()
			if err != nil {
				return err
			}
			e, err := creds.Load()
			if errors.Is(err, os.ErrNotExist) {
				err = namespace.WithHint(err, "`coppice endpoint enrol` makes it; --client-cert names it")
			}
			return a.showIdentity(creds, e, err)
		},
	}
}

// showIdentity prints who this machine is.
func (a *app) showIdentity(creds *identity.Credentials, e identity.Enrolled, err error) error {
	if err != nil {
		return err
	}
	return a.result(map[string]any{"id": e.ID, "file": creds.Path, "not_after": e.NotAfter, "renew_after": e.RenewAfter}, func(w io.Writer) {
		fmt.Fprintf(w, "id       %s\nfile     %s\nvalid    until %s, renewed from %s\n", e.ID, creds.Path, when(e.NotAfter), when(e.RenewAfter))
	})
}

// secretMax bounds a secret on the standard input or in a file.
const secretMax = 4 << 10

// readSecret reads TEXT, @FILE or -.
func readSecret(s string, stdin io.Reader) (string, error) {
	var b []byte
	var err error
	switch {
	case s == "-":
		b, err = io.ReadAll(io.LimitReader(stdin, secretMax))
	case strings.HasPrefix(s, "@"):
		b, err = os.ReadFile(s[1:])
	default:
		return s, nil
	}
	if err != nil {
		return "", disk.Error("read", s, err)
	}
	return strings.TrimSpace(string(b)), nil
}

// hostID makes an id of this machine's name.
func hostID() (string, error) {
	name, err := os.Hostname()
	if err != nil {
		return "", namespace.WithHint(namespace.E(namespace.Internal, "find", "host name", err), "name the id with --id")
	}
	name = strings.ToLower(name)
	if err := identity.CheckID(name); err != nil {
		return "", namespace.WithHint(err, "name an id with --id")
	}
	return name, nil
}
