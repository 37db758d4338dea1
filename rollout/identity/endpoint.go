package identity

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"coppice.dev/coppice/internal/disk"
	"coppice.dev/coppice/namespace"
)

// Credentials is an endpoint's file with its key and certificate, PEM, mode 0600: one file, so that
// a renewal replaces both at once. It serves as [Transport.ClientCert].
type Credentials struct {
	Path string
	// Transport says how the server is proven. Its ClientCert and TokenFile are not looked at.
	Transport Transport
	Known     *Known
	Now       func() time.Time // default time.Now
}

// Enrolled says what an endpoint is, from its own file.
type Enrolled struct {
	ID         string    `json:"id"`
	NotAfter   time.Time `json:"not_after"`
	RenewAfter time.Time `json:"renew_after"`
}

func (c *Credentials) now() time.Time {
	if c.Now == nil {
		return time.Now()
	}
	return c.Now()
}

// Load reads the file. Kinds: NotExist, Denied, Corrupt.
func (c *Credentials) Load() (Enrolled, error) {
	leaf, _, err := c.load()
	if err != nil {
		return Enrolled{}, err
	}
	id, _, err := parseIdentityURL(leaf.URIs[0])
	return Enrolled{id, leaf.NotAfter.UTC(), RenewAfter(leaf).UTC()}, err
}

func (c *Credentials) load() (*x509.Certificate, *ecdsa.PrivateKey, error) {
	b, err := readPrivate(c.Path)
	if err != nil {
		return nil, nil, err
	}
	key, err := parseKey(c.Path, b)
	if err != nil {
		return nil, nil, err
	}
	certs, err := parseCertificates(c.Path, b)
	if err == nil && (!key.PublicKey.Equal(certs[0].PublicKey) || len(certs[0].URIs) != 1) {
		err = namespace.E(namespace.Corrupt, "read certificate", c.Path, errors.New("it is not one of the key beside it"))
	}
	if err != nil {
		return nil, nil, err
	}
	return certs[0], key, nil
}

// Enrol gets a certificate for id at the server, for an invitation. The key is made here, kept beside
// the file as PATH.new until the server has answered, and never sent: an attempt whose answer was lost
// can be made again. A file that is there already is not replaced unless again is set.
// Kinds: Exist, Denied, Invalid, Unavailable, and those of files.
func (c *Credentials) Enrol(ctx context.Context, server, invitation, id string, again bool) (Enrolled, error) {
	if err := CheckID(id); err != nil {
		return Enrolled{}, err
	}
	if _, err := c.Load(); err == nil && !again {
		return Enrolled{}, namespace.WithHint(namespace.E(namespace.Exist, "enrol", c.Path, errors.New("this endpoint is enrolled already")),
			"`coppice endpoint renew` renews its certificate; --again enrols it anew")
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) && !again {
		return Enrolled{}, err
	}
	key, err := readOrMakeKey(c.Path + ".new")
	if err != nil {
		return Enrolled{}, err
	}
	request, err := signingRequest(key)
	if err != nil {
		return Enrolled{}, err
	}
	return c.obtain(ctx, strings.TrimRight(server, "/")+enrolPath, Transport{}, enrolRequest{invitation, id, request}, id, key)
}

// Renew gets a new certificate, for a new key, with the one there is. Kinds: Denied, Unavailable, and
// those of files.
func (c *Credentials) Renew(ctx context.Context, server string) (Enrolled, error) {
	was, err := c.Load()
	if err != nil {
		return Enrolled{}, err
	}
	if !c.now().Before(was.NotAfter) {
		return Enrolled{}, namespace.WithHint(namespace.E(namespace.Denied, "renew", was.ID, fmt.Errorf("its certificate expired on %s", was.NotAfter.Format(time.RFC3339))),
			"enrol it anew with an invitation for this id: `coppice endpoint enrol --again`")
	}
	key, err := readOrMakeKey(c.Path + ".new")
	if err != nil {
		return Enrolled{}, err
	}
	request, err := signingRequest(key)
	if err != nil {
		return Enrolled{}, err
	}
	return c.obtain(ctx, strings.TrimRight(server, "/")+renewPath, Transport{ClientCert: c.Path}, renewRequest{request}, was.ID, key)
}

// signingRequest proves that we have key. What else a request can say, the server does not read.
func signingRequest(key *ecdsa.PrivateKey) (string, error) {
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "endpoint"}}, key)
	if err != nil {
		return "", namespace.E(namespace.Internal, "make", "signing request", err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})), nil
}

// obtain posts a request and keeps the certificate that is answered, if it is what was asked for.
func (c *Credentials) obtain(ctx context.Context, to string, self Transport, request any, id string, key *ecdsa.PrivateKey) (Enrolled, error) {
	self.Pin, self.Authority = c.Transport.Pin, c.Transport.Authority
	var issued Issued
	if err := post(ctx, to, self, c.Known, request, &issued); err != nil {
		return Enrolled{}, err
	}
	refuse := func(why string) (Enrolled, error) {
		return Enrolled{}, namespace.E(namespace.Corrupt, "read", "answer of "+to, errors.New(why))
	}
	certs, err := parseCertificates("answer", []byte(issued.Certificate))
	if err != nil {
		return Enrolled{}, err
	}
	leaf := certs[0]
	if !key.PublicKey.Equal(leaf.PublicKey) || len(leaf.URIs) != 1 {
		return refuse("the certificate is for another key")
	}
	if got, _, err := parseIdentityURL(leaf.URIs[0]); err != nil || got != id {
		return refuse("the certificate is for another endpoint")
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return Enrolled{}, namespace.E(namespace.Internal, "keep", c.Path, err)
	}
	file := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	file = append(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf.Raw})...)
	if err := disk.Replace(c.Path, file, 0o600); err != nil {
		return Enrolled{}, err
	}
	if err := removeIfThere(c.Path + ".new"); err != nil {
		return Enrolled{}, err
	}
	return Enrolled{id, leaf.NotAfter.UTC(), RenewAfter(leaf).UTC()}, nil
}

// Bounds of a conversation with the server.
const (
	dialTimeout   = 10 * time.Second
	answerTimeout = 30 * time.Second
	answerBytes   = 256 << 10
)

// post sends v as JSON and decodes the answer. Only https is spoken, no proxy's word is taken for the
// server's, and no redirect is followed: a secret goes to whom it is meant for.
func post(ctx context.Context, to string, t Transport, known *Known, v, answer any) error {
	const op = "ask"
	d, err := t.Prepare(to, known)
	if err != nil {
		return err
	}
	if d.TLS == nil {
		return namespace.WithHint(namespace.E(namespace.Denied, op, to, errors.New("secrets do not travel in the clear")), "name the server as https://…")
	}
	b, err := json.Marshal(v)
	if err != nil {
		return namespace.E(namespace.Internal, op, d.URL, err)
	}
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, d.URL, bytes.NewReader(b))
	if err != nil {
		return namespace.E(namespace.Invalid, op, d.URL, err)
	}
	r.Header.Set("Content-Type", "application/json")
	client := postClient(d.TLS)
	defer client.CloseIdleConnections()
	resp, err := client.Do(r)
	if err != nil {
		var ue *url.Error
		if errors.As(err, &ue) {
			err = ue.Err
		}
		return namespace.E(transportKind(err), op, d.URL, err)
	}
	defer resp.Body.Close()
	return readAnswer(d.URL, resp, answer)
}

func postClient(cfg *tls.Config) *http.Client {
	return &http.Client{
		Transport: &http.Transport{
			Proxy: http.ProxyFromEnvironment, TLSClientConfig: cfg, TLSHandshakeTimeout: dialTimeout,
			DialContext:            (&net.Dialer{Timeout: dialTimeout}).DialContext,
			MaxResponseHeaderBytes: 64 << 10, DisableKeepAlives: true,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// transportKind tells a server that is not who it should be from one that does not answer.
func transportKind(err error) namespace.Kind {
	var verification *tls.CertificateVerificationError
	if errors.As(err, &verification) {
		return namespace.Denied
	}
	if kind := namespace.KindOf(err); kind == namespace.Canceled {
		return kind
	}
	return namespace.Unavailable
}

// readAnswer decodes a success into answer, and anything else into an error.
func readAnswer(from string, resp *http.Response, answer any) error {
	const op = "ask"
	b, err := io.ReadAll(io.LimitReader(resp.Body, answerBytes+1))
	if err != nil || len(b) > answerBytes {
		return namespace.E(namespace.Unavailable, op, from, errors.Join(errors.New("its answer broke off or does not end"), err))
	}
	if resp.StatusCode == http.StatusOK {
		if err := DecodeJSON(b, answerBytes, "answer of "+from, answer); err != nil {
			return namespace.E(namespace.Unavailable, op, from, err)
		}
		return nil
	}
	var e wireError
	if resp.Header.Get(kindHeader) == "" || DecodeJSON(b, answerBytes, "answer", &e) != nil {
		return namespace.WithHint(namespace.E(namespace.Unavailable, op, from, fmt.Errorf("it answered %s", resp.Status)), "does this server enrol endpoints? `coppice origin serve --enrol` does")
	}
	err = namespace.E(namespace.ParseKind(e.Kind), op, from, errors.New(strings.ToValidUTF8(e.Message, "?")))
	if e.Hint != "" {
		err = namespace.WithHint(err, e.Hint)
	}
	return err
}
