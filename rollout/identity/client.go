package identity

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"coppice.dev/coppice/namespace"
)

// Transport says how a client proves a server and itself. The zero value is the default: authorities
// of the system, and no proof of its own. Paths are absolute when it crosses to another process.
type Transport struct {
	Pin        Pin    `json:"pin,omitzero"`          // of the server's key; wins over authorities
	Authority  string `json:"authority,omitempty"`   // file with the certificates of authorities, in place of the system's
	TokenFile  string `json:"token_file,omitempty"`  // with a bearer token; read again for each request
	ClientCert string `json:"client_cert,omitempty"` // file with a certificate and its key; read again when it changes
}

// IsZero reports whether t is the default.
func (t Transport) IsZero() bool { return t == Transport{} }

// Dialled is what a client of one server needs.
type Dialled struct {
	URL string      // http or https, without a pin
	TLS *tls.Config // nil for http
	// Authorize adds the token, if there is one, to a request. It refuses one that would travel in
	// the clear.
	Authorize func(*http.Request) error
}

// Prepare makes the configuration of a client of the server at location (see [ParseLocation]). known
// remembers the servers' keys; nil is no memory. It does no network I/O.
// Kinds: Invalid, NotExist, Denied, Corrupt.
func (t Transport) Prepare(location string, known *Known) (Dialled, error) {
	l, err := ParseLocation(location)
	if err != nil {
		return Dialled{}, err
	}
	if !t.Pin.IsZero() {
		if !l.Pin.IsZero() && l.Pin != t.Pin {
			return Dialled{}, namespace.E(namespace.Invalid, "open", l.URL, errors.New("the location and the flag name different pins"))
		}
		l.Pin = t.Pin
	}
	l.ByKey = l.ByKey || !t.Pin.IsZero()
	u, err := url.Parse(l.URL)
	if err != nil {
		return Dialled{}, namespace.E(namespace.Invalid, "open", l.URL, errors.New("malformed URL"))
	}
	if u.Scheme == "http" {
		return t.prepareClear(u, l, known)
	}
	cfg := &tls.Config{MinVersion: tls.VersionTLS13}
	if t.Authority != "" {
		if cfg.RootCAs, err = readAuthorities(t.Authority); err != nil {
			return Dialled{}, err
		}
	}
	if t.ClientCert != "" {
		pair, err := LoadKeyPair(t.ClientCert, t.ClientCert, nil)
		if err != nil {
			return Dialled{}, err
		}
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return pair.Certificate(), nil }
	}
	host := hostPort(u)
	if err := byKey(cfg, host, l, known, t.TokenFile != ""); err != nil {
		return Dialled{}, err
	}
	return Dialled{l.URL, cfg, t.authorize}, nil
}

// prepareClear refuses http where more was asked for, or was there before.
func (t Transport) prepareClear(u *url.URL, l Location, known *Known) (Dialled, error) {
	refuse := func(why, hint string) (Dialled, error) {
		return Dialled{}, namespace.WithHint(namespace.E(namespace.Denied, "open", u.Redacted(), errors.New(why)), hint)
	}
	switch {
	case l.ByKey || t.Authority != "" || t.ClientCert != "":
		return refuse("http proves nothing about the server, and nothing to it", "name it as https://"+u.Host)
	case known.secure(u.Host):
		return refuse("this host proved itself by its key before: a downgrade", "name it as https://"+u.Host+
			"; if it gave up TLS on purpose, remove "+known.path(u.Host))
	}
	return Dialled{u.String(), nil, t.authorize}, nil
}

// byKey makes cfg verify the server of host by its key, if the location, or what is known, says so.
func byKey(cfg *tls.Config, host string, l Location, known *Known, token bool) error {
	seen, err := known.Pin(host)
	if err != nil {
		return err
	}
	pin, first := l.Pin, false
	switch {
	case !pin.IsZero():
	case !seen.IsZero():
		pin = seen
	case l.ByKey && known == nil:
		return namespace.WithHint(namespace.E(namespace.Invalid, "open", host, errors.New("no pin, and nowhere to keep one")), "name the pin: https+pin://sha256:HEX@"+host)
	case l.ByKey && token:
		return namespace.WithHint(namespace.E(namespace.Denied, "open", host, errors.New("a token would go to whoever answers first")),
			"name the pin that `coppice origin serve` shows: --tls-pin sha256:…")
	case l.ByKey:
		first = true
	default: // authorities vouch
		return nil
	}
	cfg.InsecureSkipVerify = true // in place of it, the key itself is compared, also when a session is resumed
	cfg.VerifyConnection = func(s tls.ConnectionState) error {
		leaf := s.PeerCertificates[0]
		switch {
		case first:
			return known.meet(host, leaf)
		case !pin.Matches(leaf):
			return impostor(host, pin, leaf)
		}
		_ = known.note(host, pin) // for those who do not name it the next time, if it can be
		return nil
	}
	return nil
}

// impostor is the error of a server with another key than the pinned one. It is one of verification,
// as a certificate of an unknown authority is: nobody who counts has answered.
func impostor(host string, want Pin, leaf *x509.Certificate) error {
	err := namespace.E(namespace.Denied, "verify", host, fmt.Errorf("its key is %s, pinned is %s", PinOf(leaf), want))
	return &tls.CertificateVerificationError{
		UnverifiedCertificates: []*x509.Certificate{leaf},
		Err: namespace.WithHint(err, "somebody is in between, or the server has a new key: compare with what `coppice origin serve` shows, "+
			"and name that with --tls-pin"),
	}
}

// authorize adds the token to r.
func (t Transport) authorize(r *http.Request) error {
	if t.TokenFile == "" {
		return nil
	}
	if r.URL.Scheme != "https" && !isLoopback(r.URL.Hostname()) {
		return namespace.WithHint(namespace.E(namespace.Denied, "send token to", r.URL.Host, errors.New("over http, everybody on the way would have it")),
			"name the server as https://"+r.URL.Host)
	}
	b, err := readPrivate(t.TokenFile)
	if err != nil {
		return err
	}
	token := strings.TrimSpace(string(b))
	if strings.ContainsAny(token, "\r\n\x00 ") || token == "" {
		return namespace.E(namespace.Corrupt, "read token", t.TokenFile, errors.New("want one line with one token"))
	}
	r.Header.Set("Authorization", "Bearer "+token)
	return nil
}

// readAuthorities reads a file of PEM certificates.
func readAuthorities(path string) (*x509.CertPool, error) {
	b, err := readBounded(path, pairBytesMax)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(b) {
		return nil, namespace.E(namespace.Corrupt, "read authorities", path, errors.New("no PEM certificate"))
	}
	return pool, nil
}
