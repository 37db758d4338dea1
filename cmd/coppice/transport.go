package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"

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

// server returns the origin's location, without a pin, and how its server proves itself.
func (a *app) server() (string, identity.Transport, error) {
	loc, err := a.location()
	if err != nil {
		return "", identity.Transport{}, err
	}
	return a.proof(loc)
}

// proof takes a pin out of a location.
func (a *app) proof(location string) (string, identity.Transport, error) {
	t, err := a.tls.transport()
	if err != nil {
		return "", t, err
	}
	l, err := identity.ParseLocation(location)
	if err != nil {
		return "", t, err
	}
	if !l.Pin.IsZero() && !t.Pin.IsZero() && l.Pin != t.Pin {
		return "", t, usage("the location and --tls-pin name different keys")
	}
	if t.Pin.IsZero() {
		t.Pin = l.Pin
	}
	t.ByKey = l.ByKey
	return l.URL, t, nil
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
	loc, t, err := a.proof(location)
	if err != nil {
		return nil, err
	}
	dir, err := a.cacheDir()
	if err != nil {
		return nil, err
	}
	known := knownServers(dir, func(pin any) {
		if !a.quiet {
			a.note("first contact with %s: pinned its key %s", loc, pin)
		}
	})
	return openSource(ctx, loc, t, known, origin.Options{})
}

// knownServers is the memory of servers' keys in the cache's directory. first is told of a key that
// is pinned.
func knownServers(cacheDir string, first func(pin any)) *identity.Known {
	return &identity.Known{Dir: filepath.Join(cacheDir, "trust", "tls"), Notify: func(_ string, pin identity.Pin) { first(pin.String()) }}
}

// openSource opens the origin at location for reading, as [origin.Open] does, over a connection on
// which both sides prove themselves as t says.
func openSource(ctx context.Context, location string, t identity.Transport, known *identity.Known, o origin.Options) (origin.Conn, error) {
	if !strings.HasPrefix(location, "http://") && !strings.HasPrefix(location, "https://") {
		if !t.Pin.IsZero() || t.ByKey {
			return nil, namespace.E(namespace.Invalid, "open origin", location, errors.New("a pin is for a server: https://…"))
		}
		return origin.Open(ctx, location, o)
	}
	d, err := t.Prepare(location, known)
	if err != nil {
		return nil, err
	}
	o.HTTP.TLS, o.HTTP.Authorize = d.TLS, d.Authorize
	return origin.Open(ctx, d.URL, o)
}
