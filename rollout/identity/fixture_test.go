package identity_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/rollout/identity"
)

// clock is a clock that tests move.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time { c.mu.Lock(); defer c.mu.Unlock(); return c.now }
func (c *clock) pass(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// trail is a Recorder in memory; broken makes it fail.
type trail struct {
	mu     sync.Mutex
	lines  []string
	broken error
}

func (t *trail) Record(actor, action, subject, outcome string, _ map[string]string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.broken == nil {
		t.lines = append(t.lines, strings.Join([]string{actor, action, subject, outcome}, " "))
	}
	return t.broken
}

func (t *trail) has(part string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.Contains(strings.Join(t.lines, "\n"), part)
}

// site is a server with an access directory.
type site struct {
	t      *testing.T
	dir    string
	access *identity.Access
	clock  *clock
	trail  *trail
	pair   *identity.KeyPair
	url    string // https

	arrived, leave chan struct{} // of /wait
}

// newSite starts a server: /open is for all, /endpoint, /viewer, /publisher and /admin for roles, and
// enrolment is served. It ends with the test.
func newSite(t *testing.T) *site {
	s := &site{t: t, dir: filepath.Join(t.TempDir(), "access"), clock: &clock{now: time.Now()}, trail: &trail{},
		arrived: make(chan struct{}, 1), leave: make(chan struct{}, 1)}
	s.reopen()
	if err := s.access.MakeAuthority(); err != nil {
		t.Fatal(err)
	}
	var err error
	if s.pair, err = identity.SelfSigned(s.dir, []string{"127.0.0.1"}, nil); err != nil {
		t.Fatal(err)
	}
	s.url = serve(t, s.handler(), identity.Limits{}, s.pair)
	return s
}

// reopen opens the directory as a server does that was started anew.
func (s *site) reopen() {
	a, err := identity.OpenAccess(s.dir, identity.AccessOptions{Now: s.clock.Now, Recorder: s.trail})
	if err != nil {
		s.t.Fatal(err)
	}
	s.access = a
}

func (s *site) handler() http.Handler {
	guard := identity.NewGuard(s.access, nil)
	who := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p, _ := identity.FromContext(r.Context())
		_, _ = io.WriteString(w, p.String())
	})
	mux := http.NewServeMux()
	mux.Handle("/open", who)
	mux.Handle("/wait", guard.Require(identity.Endpoint, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Etag", "secret")
		s.arrived <- struct{}{}
		<-s.leave
		_, _ = io.WriteString(w, "secret")
	})))
	for _, role := range []identity.Role{identity.Endpoint, identity.Viewer, identity.Operator, identity.Publisher, identity.Admin} {
		mux.Handle("/"+string(role), guard.Require(role, who))
	}
	mux.Handle(identity.HandlerPrefix, guard.EnrolHandler())
	return mux
}

// serve serves h on a loopback port, with TLS if pair is not nil, and returns its URL.
func serve(t *testing.T, h http.Handler, l identity.Limits, pair *identity.KeyPair) string {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address, scheme := ln.Addr().String(), "http://"
	srv := identity.NewServer(h, l, nil)
	ln = l.Listener(ln)
	if pair != nil {
		scheme, ln = "https://", tls.NewListener(ln, identity.ServerTLS(pair))
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(ln) }()
	t.Cleanup(func() {
		_ = srv.Close()
		if err := <-served; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
	return scheme + address
}

// client returns a client of the site with a transport.
func client(t *testing.T, location string, tr identity.Transport, known *identity.Known) (*http.Client, identity.Dialled, error) {
	d, err := tr.Prepare(location, known)
	if err != nil {
		return nil, d, err
	}
	transport := &http.Transport{TLSClientConfig: d.TLS}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: 20 * time.Second}, d, nil
}

// get asks for a path and returns status and body.
func get(t *testing.T, location, path string, tr identity.Transport, known *identity.Known) (int, string, error) {
	c, d, err := client(t, location, tr, known)
	if err != nil {
		return 0, "", err
	}
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, d.URL+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Authorize(r); err != nil {
		return 0, "", err
	}
	resp, err := c.Do(r)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b), err
}

// pinned is a transport that holds the site to its key.
func (s *site) pinned() identity.Transport { return identity.Transport{Pin: s.pair.Pin()} }

// token makes a token and a file with it.
func (s *site) token(role identity.Role, life time.Duration) (file string, kept identity.Token) {
	text, kept, err := s.access.CreateToken("test", "ann", role, life)
	if err != nil {
		s.t.Fatal(err)
	}
	return secretFile(s.t, text+"\n"), kept
}

func secretFile(t *testing.T, text string) string {
	file := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// machine is an endpoint's credentials of this site.
func (s *site) machine() *identity.Credentials {
	return &identity.Credentials{Path: filepath.Join(s.t.TempDir(), "endpoint.pem"), Transport: s.pinned(), Now: s.clock.Now}
}

// enrolled invites and enrols an endpoint.
func (s *site) enrolled(id string) *identity.Credentials {
	m := s.machine()
	if _, err := m.Enrol(s.t.Context(), s.url, s.invite(id), id, false); err != nil {
		s.t.Fatal(err)
	}
	return m
}

func (s *site) invite(id string) string {
	text, _, err := s.access.Invite("test", id, nil, time.Hour)
	if err != nil {
		s.t.Fatal(err)
	}
	return text
}

func (s *site) as(m *identity.Credentials) identity.Transport {
	tr := s.pinned()
	tr.ClientCert = m.Path
	return tr
}

// expectStatus asks and compares.
func (s *site) expectStatus(path string, tr identity.Transport, want int, part string) {
	s.t.Helper()
	status, body, err := get(s.t, s.url, path, tr, nil)
	if err != nil || status != want || !strings.Contains(body, part) {
		s.t.Fatalf("%s: %d %q %v, want %d with %q", path, status, body, err, want, part)
	}
}

// expectKind compares an error's Kind and text.
func expectKind(t *testing.T, err error, kind namespace.Kind, part string) {
	t.Helper()
	if !namespace.IsKind(err, kind) || !strings.Contains(err.Error(), part) {
		t.Fatalf("got %v, want %v with %q", err, kind, part)
	}
}

// forged makes a client certificate as change wants it, signed by a key of its own or by parent's.
func forged(t *testing.T, change func(*x509.Certificate)) string {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	name, err := url.Parse("coppice://endpoint/desk-1?enrolment=1")
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: "desk-1"}, URIs: []*url.URL{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}
	if change != nil {
		change(template)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return pemFile(t, key, der)
}

func pemFile(t *testing.T, key *ecdsa.PrivateKey, certs ...[]byte) string {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	b := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	for _, c := range certs {
		b = append(b, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c})...)
	}
	return secretFile(t, string(b))
}

// request makes a signing request of a new key.
func request(t *testing.T) []byte {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
}
