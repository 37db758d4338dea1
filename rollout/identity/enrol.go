package identity

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"coppice.dev/coppice/internal/disk"
	"coppice.dev/coppice/namespace"
)

// Invitation is what is kept of the permission to enrol one endpoint, once. Endpoint, if set, is the
// only id that it is good for; an invitation without one is good for an id that was never enrolled.
type Invitation struct {
	ID       string            `json:"id"`
	Endpoint string            `json:"endpoint,omitempty"`
	Labels   map[string]string `json:"labels,omitempty"`
	Hash     string            `json:"hash"`
	Created  time.Time         `json:"created"`
	By       string            `json:"by"`
	Expires  time.Time         `json:"expires"`
	// Once it was used: by whom, with which key (the digest of the public key), and the number of the
	// enrolment that came, or comes, of it.
	Used    time.Time `json:"used,omitzero"`
	UsedBy  string    `json:"used_by,omitempty"`
	UsedKey string    `json:"used_key,omitempty"`
	UsedFor uint64    `json:"used_for,omitempty"`
}

// EndpointRecord is what is kept of an endpoint. Enrolment counts how often it was enrolled;
// certificates of an earlier one are refused.
type EndpointRecord struct {
	ID         string            `json:"id"`
	Labels     map[string]string `json:"labels,omitempty"`
	Enrolment  uint64            `json:"enrolment"`
	Invitation string            `json:"invitation"` // that this enrolment came of
	Enrolled   time.Time         `json:"enrolled"`
	Renewed    time.Time         `json:"renewed,omitzero"`
	Serial     string            `json:"serial"` // of the last certificate
	Expires    time.Time         `json:"expires"`
	Revoked    time.Time         `json:"revoked,omitzero"`
	Reason     string            `json:"reason,omitempty"`
}

// Bounds of an invitation's labels, those of Kubernetes' labels in round figures.
const (
	labelsMax     = 64
	labelBytesMax = 256
	// inviteLifeMax bounds how long an invitation is good: it is for a machine that is being installed.
	inviteLifeMax = 90 * 24 * time.Hour
)

// CheckLabels returns an Invalid error unless labels can be an endpoint's.
func CheckLabels(labels map[string]string) error {
	if len(labels) > labelsMax {
		return namespace.E(namespace.Limit, "check labels", "", fmt.Errorf("%d labels, at most %d", len(labels), labelsMax))
	}
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		if len(k) > labelBytesMax || !plainKey(k) || len(labels[k]) > labelBytesMax || !printable(labels[k]) {
			return namespace.E(namespace.Invalid, "check labels", strconv.Quote(k), errors.New("want lower-case letters, digits and . _ + - = any printable text, 256 bytes each"))
		}
	}
	return nil
}

func printable(s string) bool {
	for _, r := range s {
		if !strconv.IsPrint(r) || r == '\uFFFD' {
			return false
		}
	}
	return true
}

// Invite makes an invitation and returns its secret text; it can never be shown again. endpoint may
// be "". Kinds: Invalid, Limit, Denied.
func (a *Access) Invite(by, endpoint string, labels map[string]string, life time.Duration) (string, Invitation, error) {
	if endpoint != "" {
		if err := CheckID(endpoint); err != nil {
			return "", Invitation{}, err
		}
	}
	if err := CheckLabels(labels); err != nil {
		return "", Invitation{}, err
	}
	if life <= 0 || life > inviteLifeMax {
		return "", Invitation{}, namespace.E(namespace.Invalid, "invite", endpoint, errors.New("it must expire, and within 90 days"))
	}
	if err := a.MakeAuthority(); err != nil {
		return "", Invitation{}, err
	}
	id, text, hash, err := newSecret(invitePrefix)
	if err != nil {
		return "", Invitation{}, err
	}
	now := a.now().UTC()
	v := Invitation{ID: id, Endpoint: endpoint, Labels: labels, Hash: hash, Created: now, By: by, Expires: now.Add(life)}
	err = a.change(func() error {
		if err := a.record.Record(by, "endpoint.invite", endpoint, Done, map[string]string{"id": id, "expires": v.Expires.Format(time.RFC3339)}); err != nil {
			return err
		}
		return a.write("invitations", id, v)
	})
	if err != nil {
		return "", Invitation{}, err
	}
	return text, v, nil
}

// Enrol uses an invitation: the endpoint id gets a certificate for the key of the signing request csr
// (PEM). It is used, durably, before the certificate is made. Whoever lost the answer may ask again
// with the same key, for as long as the invitation would have been good; anybody else is refused.
// Kinds: Denied, Invalid, Exist (the id is taken, and the invitation is not for it), NotExist (no
// authority), Limit.
func (a *Access) Enrol(text, id string, csr []byte) (Issued, error) {
	refuse := func(why string) error {
		return namespace.WithHint(namespace.E(namespace.Denied, "enrol", strconv.Quote(id), errors.New(why)), "an administrator makes an invitation with `coppice access endpoint invite`")
	}
	if err := CheckID(id); err != nil {
		return Issued{}, err
	}
	request, err := parseRequest(csr)
	if err != nil {
		return Issued{}, err
	}
	number, secret, ok := splitSecret(invitePrefix, text)
	if !ok {
		return Issued{}, refuse("this is no invitation")
	}
	signer, err := a.signer()
	if err != nil {
		return Issued{}, namespace.E(namespace.KindOf(err), "enrol", id, errors.New("this server has no authority"))
	}
	sum := sha256.Sum256(request.RawSubjectPublicKeyInfo)
	key := hex.EncodeToString(sum[:])
	var issued Issued
	err = a.change(func() error {
		v, again, err := a.invitation(number)
		if err != nil {
			return err
		}
		switch now := a.now(); {
		case !sameHash(hashSecret(invitePrefix, number, secret), v.Hash):
			return refuse("the invitation is not known")
		case !now.Before(v.Expires):
			return refuse("the invitation expired on " + v.Expires.Format(time.RFC3339))
		case v.Endpoint != "" && v.Endpoint != id:
			return refuse("the invitation is for another id")
		case again && (v.UsedKey != key || v.UsedBy != id):
			return refuse("the invitation was used before")
		}
		issued, err = a.enrol(signer, v, again, id, key, request)
		return err
	})
	return issued, err
}

// invitation finds an invitation; again says that it was used. One that is not there is the zero one,
// which no secret fits.
func (a *Access) invitation(number string) (v Invitation, again bool, err error) {
	if err = a.read("used", number, &v); err == nil {
		return v, true, nil
	}
	if namespace.IsKind(err, namespace.NotExist) {
		err = a.read("invitations", number, &v)
	}
	if namespace.IsKind(err, namespace.NotExist) {
		return Invitation{}, false, nil
	}
	return v, false, err
}

// enrol does what Enrol decided. The order is what a crash at any point makes safe: the invitation is
// used up first.
func (a *Access) enrol(s *authority, v Invitation, again bool, id, key string, request *x509.CertificateRequest) (Issued, error) {
	var e EndpointRecord
	err := a.read("endpoints", id, &e)
	known := err == nil
	if err != nil && !namespace.IsKind(err, namespace.NotExist) {
		return Issued{}, err
	}
	if known && v.Endpoint == "" && !again {
		return Issued{}, namespace.WithHint(namespace.E(namespace.Exist, "enrol", id, errors.New("an endpoint of this id is enrolled, and the invitation is for a new one")),
			"`coppice access endpoint invite --id "+id+"` lets another machine take its place")
	}
	if again && (e.Enrolment > v.UsedFor || e.Enrolment == v.UsedFor && e.Invitation != v.ID) {
		return Issued{}, namespace.E(namespace.Denied, "enrol", id, errors.New("the invitation was used before, and the endpoint was enrolled anew since"))
	}
	if again && e.Enrolment == v.UsedFor && !e.Revoked.IsZero() {
		return Issued{}, namespace.E(namespace.Denied, "enrol", id, errors.New("it was revoked since"))
	}
	now := a.now().UTC()
	if err := a.record.Record("invitation "+v.ID, "endpoint.enrol", id, Done, map[string]string{"key": key}); err != nil {
		return Issued{}, err
	}
	if !again {
		v.Used, v.UsedBy, v.UsedKey, v.UsedFor = now, id, key, e.Enrolment+1
		if err := a.write("used", v.ID, v); err != nil {
			return Issued{}, err
		}
		// What is in used counts; that it is listed as open until the next change is no harm.
		_ = os.Remove(a.path("invitations", v.ID))
	}
	if e.Enrolment < v.UsedFor { // or a crash came between
		e = EndpointRecord{ID: id, Labels: v.Labels, Enrolment: v.UsedFor, Invitation: v.ID, Enrolled: now}
	}
	return a.issue(s, e, request.PublicKey, now)
}

// issue signs a certificate and keeps the endpoint's record, in the order in which a crash does no harm.
func (a *Access) issue(s *authority, e EndpointRecord, key any, now time.Time) (Issued, error) {
	c, err := s.issue(e.ID, e.Enrolment, key, now)
	if err != nil {
		return Issued{}, err
	}
	e.Serial, e.Expires = serialText(c.SerialNumber), c.NotAfter.UTC()
	if err := a.write("endpoints", e.ID, e); err != nil {
		return Issued{}, err
	}
	return Issued{
		ID:          e.ID,
		Certificate: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})),
		NotAfter:    c.NotAfter.UTC(), RenewAfter: RenewAfter(c).UTC(),
	}, nil
}

// Issued is an answer to an enrolment or a renewal.
type Issued struct {
	ID          string    `json:"id"`
	Certificate string    `json:"certificate"` // PEM
	NotAfter    time.Time `json:"not_after"`
	RenewAfter  time.Time `json:"renew_after"`
}

// Renew gives the endpoint p, which proved itself with the certificate leaf, another one for the key of
// csr. The one it has stays valid, since the answer may be lost. Kinds: Denied, Invalid, Limit.
func (a *Access) Renew(p Principal, leaf *x509.Certificate, csr []byte) (Issued, error) {
	if p.Role != Endpoint || p.Via != "certificate" {
		return Issued{}, namespace.E(namespace.Denied, "renew", p.Name, errors.New("only an endpoint's certificate is renewed"))
	}
	request, err := parseRequest(csr)
	if err != nil {
		return Issued{}, err
	}
	signer, err := a.signer()
	if err != nil {
		return Issued{}, namespace.E(namespace.KindOf(err), "renew", p.Name, errors.New("this server has no authority"))
	}
	var issued Issued
	err = a.change(func() error {
		if _, err := a.VerifyCertificate(leaf); err != nil { // it may have been revoked a moment ago
			return err
		}
		var e EndpointRecord
		if err := a.read("endpoints", p.Name, &e); err != nil {
			return err
		}
		if err := a.record.Record(p.String(), "endpoint.renew", p.Name, Done, map[string]string{"serial": p.ID}); err != nil {
			return err
		}
		now := a.now().UTC()
		e.Renewed = now
		issued, err = a.issue(signer, e, request.PublicKey, now)
		return err
	})
	return issued, err
}

// Endpoints returns all endpoints, by id. Kinds: Corrupt, Denied.
func (a *Access) Endpoints() ([]EndpointRecord, error) {
	all, err := readAll[EndpointRecord](a, "endpoints")
	slices.SortFunc(all, func(x, y EndpointRecord) int { return strings.Compare(x.ID, y.ID) })
	return all, err
}

// Invitations returns those that nobody has used, the oldest first, and takes away what has expired.
// Kinds: Corrupt, Denied.
func (a *Access) Invitations() ([]Invitation, error) {
	var open []Invitation
	err := a.change(func() error {
		for _, class := range []string{"used", "invitations"} {
			all, err := readAll[Invitation](a, class)
			if err != nil {
				return err
			}
			for _, v := range all {
				if _, used, err := a.invitation(v.ID); err != nil {
					return err
				} else if !a.now().Before(v.Expires) { // refused with it and without it
					if err := os.Remove(a.path(class, v.ID)); err != nil {
						return disk.Error("remove", a.path(class, v.ID), err)
					}
				} else if !used {
					open = append(open, v)
				}
			}
		}
		return nil
	})
	slices.SortFunc(open, func(x, y Invitation) int { return x.Created.Compare(y.Created) })
	return open, err
}

// Revoke refuses an endpoint's certificates from now on; an invitation for its id lets it, or another
// machine, come back. Kinds: NotExist, Invalid, Limit.
func (a *Access) Revoke(by, id, reason string) error {
	if err := CheckID(id); err != nil {
		return err
	}
	return a.change(func() error {
		var e EndpointRecord
		if err := a.read("endpoints", id, &e); err != nil {
			return err
		}
		if !e.Revoked.IsZero() {
			return nil
		}
		if err := a.record.Record(by, "endpoint.revoke", id, Done, map[string]string{"reason": reason, "serial": e.Serial}); err != nil {
			return err
		}
		e.Revoked, e.Reason = a.now().UTC(), reason
		return a.write("endpoints", id, e)
	})
}
