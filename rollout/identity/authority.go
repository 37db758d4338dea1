package identity

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"coppice.dev/coppice/internal/disk"
	"coppice.dev/coppice/namespace"
)

const (
	// CertificateLife is how long an endpoint's certificate is valid: what is lost and not revoked
	// ends by itself, and a laptop may be in a drawer for a month.
	CertificateLife = 30 * 24 * time.Hour
	// clockSkew is how far an endpoint's clock may be behind the server's.
	clockSkew     = 10 * time.Minute
	authorityLife = 20 * 365 * 24 * time.Hour
)

// RenewAfter returns when a certificate should be renewed: after two thirds of its life, so that ten
// days of failures are no loss.
func RenewAfter(c *x509.Certificate) time.Time {
	return c.NotBefore.Add(c.NotAfter.Sub(c.NotBefore) * 2 / 3)
}

// authority is the key that signs endpoints' certificates.
type authority struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

func (a *Access) authorityPaths() (key, cert string) {
	return filepath.Join(a.dir, "ca.key"), filepath.Join(a.dir, "ca.crt")
}

// MakeAuthority makes the authority of endpoints' certificates if there is none. Kinds: Denied,
// Corrupt, Limit.
func (a *Access) MakeAuthority() error {
	return a.change(func() error {
		keyPath, certPath := a.authorityPaths()
		if _, err := os.Stat(certPath); err == nil {
			_, err := a.signer()
			return err
		}
		key, err := readOrMakeKey(keyPath)
		if err != nil {
			return err
		}
		serial, err := newSerial()
		if err != nil {
			return err
		}
		now := a.now()
		template := &x509.Certificate{
			SerialNumber: serial, Subject: pkix.Name{CommonName: "coppice endpoints"},
			NotBefore: now.Add(-clockSkew), NotAfter: now.Add(authorityLife),
			KeyUsage: x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
			BasicConstraintsValid: true, IsCA: true, MaxPathLenZero: true,
		}
		der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
		if err != nil {
			return namespace.E(namespace.Internal, "make", "authority", err)
		}
		return disk.Replace(certPath, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644)
	})
}

// signer reads the authority. Kinds: NotExist, Denied, Corrupt.
func (a *Access) signer() (*authority, error) {
	keyPath, certPath := a.authorityPaths()
	b, err := readPrivate(keyPath)
	if err != nil {
		return nil, err
	}
	key, err := parseKey(keyPath, b)
	if err != nil {
		return nil, err
	}
	certs, err := readCertificates(certPath)
	if err != nil {
		return nil, err
	}
	for _, c := range certs {
		if key.PublicKey.Equal(c.PublicKey) {
			return &authority{key, c}, nil
		}
	}
	return nil, namespace.E(namespace.Corrupt, "read authority", certPath, errors.New("no certificate of the key in ca.key"))
}

// authorities returns the certificates of ca.crt: those of authorities before may stay for as long
// as certificates of theirs are valid. Kinds: NotExist, Corrupt.
func (a *Access) authorities() (*x509.CertPool, error) {
	_, path := a.authorityPaths()
	certs, err := readCertificates(path)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	for _, c := range certs {
		pool.AddCert(c)
	}
	return pool, nil
}

// readCertificates reads a file of PEM certificates.
func readCertificates(path string) ([]*x509.Certificate, error) {
	b, err := readBounded(path, pairBytesMax)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, namespace.E(namespace.NotExist, "read", filepath.Base(path), nil)
	}
	if err != nil {
		return nil, err
	}
	return parseCertificates(filepath.Base(path), b)
}

// parseCertificates reads one or more PEM certificates and nothing else.
func parseCertificates(subject string, b []byte) ([]*x509.Certificate, error) {
	var all []*x509.Certificate
	block, rest := pem.Decode(b)
	for ; block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, namespace.E(namespace.Corrupt, "read certificate", subject, err)
		}
		all = append(all, c)
	}
	if len(all) == 0 {
		return nil, namespace.E(namespace.Corrupt, "read certificate", subject, errors.New("no PEM certificate"))
	}
	return all, nil
}

// issue signs a certificate that names an endpoint and its enrolment. Nothing of the request but its
// key gets into it.
func (s *authority) issue(id string, enrolment uint64, key any, now time.Time) (*x509.Certificate, error) {
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	name := identityURL(id, enrolment)
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: id}, URIs: []*url.URL{name},
		NotBefore: now.Add(-clockSkew), NotAfter: now.Add(CertificateLife),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, s.cert, key, s.key)
	if err != nil {
		return nil, namespace.E(namespace.Internal, "sign certificate of", id, err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, namespace.E(namespace.Internal, "sign certificate of", id, err)
	}
	return c, nil
}

const identityPrefix = "coppice://endpoint/"

// identityURL is an endpoint's name in its certificate. The enrolment counts: a machine that was
// enrolled anew makes the certificates of the one before worthless.
func identityURL(id string, enrolment uint64) *url.URL {
	return &url.URL{Scheme: "coppice", Host: "endpoint", Path: "/" + id, RawQuery: "enrolment=" + strconv.FormatUint(enrolment, 10)}
}

// parseIdentityURL is the inverse; only the exact form is accepted.
func parseIdentityURL(u *url.URL) (id string, enrolment uint64, err error) {
	rest, ok := strings.CutPrefix(u.String(), identityPrefix)
	id, query, _ := strings.Cut(rest, "?")
	digits, ok2 := strings.CutPrefix(query, "enrolment=")
	enrolment, err = strconv.ParseUint(digits, 10, 63)
	if !ok || !ok2 || err != nil || CheckID(id) != nil || identityURL(id, enrolment).String() != u.String() {
		return "", 0, namespace.E(namespace.Denied, "read identity", strconv.Quote(u.String()), errors.New("it names no endpoint"))
	}
	return id, enrolment, nil
}

// VerifyCertificate returns which endpoint a client certificate belongs to; its key was proven by the
// handshake. Kinds: Denied (another authority, expired, revoked, replaced), Internal.
func (a *Access) VerifyCertificate(leaf *x509.Certificate) (Principal, error) {
	refuse := func(err error) (Principal, error) {
		return Principal{}, namespace.E(namespace.Denied, "verify certificate", strconv.Quote(leaf.Subject.CommonName), err)
	}
	pool, err := a.authorities()
	if namespace.IsKind(err, namespace.NotExist) {
		return refuse(errors.New("this server enrols no endpoints"))
	}
	if err != nil {
		return Principal{}, err
	}
	now := a.now()
	if now.After(leaf.NotAfter) {
		return refuse(fmt.Errorf("it expired on %s", leaf.NotAfter.UTC().Format(time.RFC3339)))
	}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: pool, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		return refuse(err)
	}
	if len(leaf.URIs) != 1 {
		return refuse(errors.New("it names no endpoint"))
	}
	id, enrolment, err := parseIdentityURL(leaf.URIs[0])
	if err != nil {
		return refuse(err)
	}
	p := Principal{Name: id, Role: Endpoint, Via: "certificate", ID: serialText(leaf.SerialNumber)}
	return p, a.stillGood(id, enrolment, leaf)
}

// stillGood looks up whether an endpoint's certificate was revoked. It is asked at each request.
func (a *Access) stillGood(id string, enrolment uint64, leaf *x509.Certificate) error {
	var e EndpointRecord
	err := a.read("endpoints", id, &e)
	why := ""
	switch {
	case namespace.IsKind(err, namespace.NotExist):
		why = "this endpoint is not known"
	case err != nil:
		return err
	case !e.Revoked.IsZero():
		why = "it was revoked on " + e.Revoked.UTC().Format(time.RFC3339)
	case e.Enrolment != enrolment:
		why = "this endpoint was enrolled anew since"
	case a.now().After(leaf.NotAfter):
		why = "it expired on " + leaf.NotAfter.UTC().Format(time.RFC3339)
	default:
		return nil
	}
	return namespace.WithHint(namespace.E(namespace.Denied, "verify certificate", id, errors.New(why)), "enrol it anew with an invitation for this id")
}

func serialText(n *big.Int) string { return fmt.Sprintf("%032x", n) }

// parseRequest reads a certificate signing request (PKCS #10, PEM) and proves that whoever made it
// has the key. Kinds: Invalid.
func parseRequest(b []byte) (*x509.CertificateRequest, error) {
	refuse := func(err error) (*x509.CertificateRequest, error) {
		return nil, namespace.E(namespace.Invalid, "read", "signing request", err)
	}
	block, rest := pem.Decode(b)
	if block == nil || block.Type != "CERTIFICATE REQUEST" || len(strings.TrimSpace(string(rest))) > 0 {
		return refuse(errors.New("want one PEM block CERTIFICATE REQUEST"))
	}
	r, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return refuse(err)
	}
	if err := r.CheckSignature(); err != nil {
		return refuse(err)
	}
	switch key := r.PublicKey.(type) {
	case ed25519.PublicKey:
		return r, nil
	case *ecdsa.PublicKey:
		if key.Curve == elliptic.P256() || key.Curve == elliptic.P384() {
			return r, nil
		}
	}
	return refuse(errors.New("want a key of P-256, P-384 or Ed25519"))
}
