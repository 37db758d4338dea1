// Package identity says who is at the other end of a connection, and what it may do. It is a library
// for every listener and every client of Coppice: `coppice origin serve`, relays, the control server.
//
// # Who
//
// A server proves itself by its key: with a certificate that the client's authorities vouch for, or,
// as with ssh, by the digest of its public key (a [Pin]) that the client was given or saw before.
// An endpoint proves itself by a client certificate of a small authority of the access directory; it
// gets one for an invitation, once, and renews it with the one it has. A person proves himself by a
// token. Only TLS 1.3 is spoken.
//
// # The access directory
//
// An [Access] is a directory that nobody but its owner can enter. Secrets are kept as digests.
//
//	ca.key, ca.crt       the authority of endpoints' certificates
//	tls.key, tls.crt     the server's own key, if it made one
//	tokens/ID.json       people's tokens
//	invitations/ID.json  invitations that nobody has used
//	used/ID.json         invitations that were used: by whom, with which key
//	endpoints/ID.json    endpoints, their last certificate, and whether it was revoked
//	lock                 taken (flock) by whoever changes any of these
//
// What a method reported as done is on disk: a crash takes nothing back, and in particular makes no
// invitation good again.
//
// # Limits
//
// Nothing here trusts a peer before it proved itself: [Limits] bounds connections, requests, headers,
// bodies and time, for each client and for all of them.
package identity

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"

	"coppice.dev/coppice/namespace"
)

// Role is what somebody may do. The set is closed: a role is written into tokens.
type Role string

// The roles. What is open to endpoints is open to every person with a token; viewers look, operators
// also move rollouts, publishers also publish, and administrators may do all that people may do.
const (
	Endpoint  Role = "endpoint"
	Viewer    Role = "viewer"
	Operator  Role = "operator"
	Publisher Role = "publisher"
	Admin     Role = "admin"
)

// allows lists what each role may do what is required of.
var allows = map[Role][]Role{
	Endpoint:  {Endpoint},
	Viewer:    {Endpoint, Viewer},
	Operator:  {Endpoint, Viewer, Operator},
	Publisher: {Endpoint, Viewer, Publisher},
	Admin:     {Endpoint, Viewer, Operator, Publisher, Admin},
}

// PeopleRoles lists the roles that a token can have.
func PeopleRoles() []Role { return []Role{Viewer, Operator, Publisher, Admin} }

// ParseRole reads a role. Kinds: Invalid.
func ParseRole(s string) (Role, error) {
	if _, ok := allows[Role(s)]; !ok {
		return "", namespace.WithHint(namespace.E(namespace.Invalid, "parse role", strconv.Quote(s), nil),
			"roles are endpoint, viewer, operator, publisher and admin")
	}
	return Role(s), nil
}

// Allows reports whether r may do what need is required for. A role that is none allows nothing.
func (r Role) Allows(need Role) bool { return slices.Contains(allows[r], need) }

// Principal is who is at the other end: proven, not claimed.
type Principal struct {
	Name string `json:"name"` // an endpoint's id, or a token's name
	Role Role   `json:"role"`
	Via  string `json:"via"` // "certificate" or "token"
	ID   string `json:"id"`  // of the token, or the certificate's serial number
}

// String returns "role name", for logs.
func (p Principal) String() string { return string(p.Role) + " " + p.Name }

type principalKey struct{}

// FromContext returns who a request comes from, as [Guard.Require] found out.
func FromContext(ctx context.Context) (Principal, bool) {
	p, ok := ctx.Value(principalKey{}).(Principal)
	return p, ok
}

// idBytesMax bounds an endpoint's id: a DNS label has 63 bytes, and it is a file name and a
// certificate's common name (64).
const idBytesMax = 63

// CheckID returns an Invalid error unless s can be an endpoint's id or a token's name: 1 to 63 bytes,
// lower-case letters, digits and . _ + -, a letter or digit first. Such an id is safe as a file name,
// in a URL and in a log line, and two never differ in case only.
func CheckID(s string) error {
	err := namespace.CheckName(s)
	if err == nil && (len(s) > idBytesMax || strings.Contains(s, "/")) {
		err = errors.New("an id is one component of at most 63 bytes")
	}
	if err != nil {
		return namespace.E(namespace.Invalid, "check id", strconv.Quote(s), err)
	}
	return nil
}
