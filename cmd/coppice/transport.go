package main

import (
	"context"
	"os"
	"path/filepath"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/origin"
	"coppice.dev/coppice/rollout/identity"
)

// transportFlags say how servers prove themselves to any command, and the command to them.
type transportFlags struct{ pin, authority, token, cert string }

// transportNames are their names.
var transportNames = []string{"tls-pin", "tls-ca", "token-file", "client-cert"}

func (t *transportFlags) register(f interface {
	StringVar(p *string, name, value, usage string)
}) {
	f.StringVar(&t.pin, "tls-pin", os.Getenv("COPPICE_TLS_PIN"), "`PIN` (sha256:…) of the key that the server must have, as `coppice origin serve` shows it (COPPICE_TLS_PIN)")
	f.StringVar(&t.authority, "tls-ca", os.Getenv("COPPICE_TLS_CA"), "`FILE` with the certificates of the authorities to believe, not the system's (COPPICE_TLS_CA)")
	f.StringVar(&t.token, "token-file", os.Getenv("COPPICE_TOKEN_FILE"), "`FILE` with a token, to prove who reads (COPPICE_TOKEN_FILE)")
	f.StringVar(&t.cert, "client-cert", os.Getenv("COPPICE_CLIENT_CERT"), "`FILE` with a certificate and its key, to prove which endpoint reads (COPPICE_CLIENT_CERT)")
}

// transport returns what the flags say, paths absolute, since the daemon runs elsewhere.
func (t *transportFlags) transport() (identity.Transport, error) {
	var all identity.Transport
	var err error
	if t.pin != "" {
		if all.Pin, err = identity.ParsePin(t.pin); err != nil {
			return all, err
		}
	}
	for to, path := range map[*string]string{&all.Authority: t.authority, &all.TokenFile: t.token, &all.ClientCert: t.cert} {
		if path == "" {
			continue
		}
		if *to, err = filepath.Abs(path); err != nil {
			return all, namespace.E(namespace.Invalid, "find", path, err)
		}
	}
	return all, nil
}

// openOrigin opens the origin named by --origin for reading.
func (a *app) openOrigin(ctx context.Context) (origin.Conn, error) {
	loc, err := a.location()
	if err != nil {
		return nil, err
	}
	return a.openServer(ctx, loc)
}

// openServer opens an origin for reading; which keys servers had is remembered in the cache's
// directory.
func (a *app) openServer(ctx context.Context, location string) (origin.Conn, error) {
	t, err := a.tls.transport()
	if err != nil {
		return nil, err
	}
	known, err := a.knownServers()
	if err != nil {
		return nil, err
	}
	return openSource(ctx, location, t, known, origin.Options{})
}

// knownServers is the memory of servers' keys of this command.
func (a *app) knownServers() (*identity.Known, error) {
	dir, err := a.cacheDir()
	if err != nil {
		return nil, err
	}
	return knownServers(dir, func(host string, pin identity.Pin) {
		if !a.quiet {
			a.note("first contact with %s: pinned its key %s", host, pin)
		}
	}), nil
}

// knownServers is the memory of servers' keys in the cache's directory. first is told of a key that
// is pinned.
func knownServers(cacheDir string, first func(host string, pin identity.Pin)) *identity.Known {
	return &identity.Known{Dir: filepath.Join(cacheDir, "trust", "tls"), Notify: first}
}

// openSource opens the origin at location for reading, as [origin.Open] does, over a connection on
// which both sides prove themselves as t says.
func openSource(ctx context.Context, location string, t identity.Transport, known *identity.Known, o origin.Options) (origin.Conn, error) {
	o.HTTP.Secure = secure(t, known)
	return origin.Open(ctx, location, o)
}

// secure makes an origin's client prove itself and its server.
func secure(t identity.Transport, known *identity.Known) func(string) (origin.Secured, error) {
	return func(location string) (origin.Secured, error) {
		d, err := t.Prepare(location, known)
		return origin.Secured{URL: d.URL, TLS: d.TLS, Authorize: d.Authorize}, err
	}
}
