// Package trust decides what to believe of an origin.
//
// Which namespace version a channel names, and which versions there are to be named, is said in documents of
// The Update Framework (theupdateframework.io), read by go-tuf and moved forward by [Updater]: a root that
// says whose keys count, vouching (the targets role, offline keys, a threshold of them), one delegated role
// for each channel, snapshot and timestamp. The catalogues of what was published, trees and namespaces with
// their versions, are envelopes signed by publishers' keys, which the root lists as well: they are what
// engineers work with, and no endpoint runs anything because of them.
//
// The decisions are pure: bytes in, values or errors out, no clock, no disk and no network but through
// [Documents], [Keeper] and the stores of namespace. docs/decisions/0013 has the reasons.
//
// The signed bytes of an envelope are those of DSSE (github.com/secure-systems-lab/dsse, protocol.md): the
// pre-authentication encoding of the payload's type and the payload, so that a record of one kind can never
// be passed off as another.
package trust

import (
	"bytes"
	"cmp"
	"crypto/ed25519"
	"fmt"
	"slices"
	"strconv"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"coppice.dev/coppice/namespace"
)

// Role says what a key may sign.
type Role string

// The roles.
const (
	RoleRoot      Role = "root"      // the root itself
	RoleVouching  Role = "targets"   // which namespace versions may be named, and by whom
	RoleSnapshot  Role = "snapshot"  // which documents belong together
	RoleTimestamp Role = "timestamp" // which snapshot is the newest, and until when
	RolePublish   Role = "publish"   // the catalogues of trees and namespaces
	RolePoint     Role = "point"     // channels; each has its own keys, in the vouching document
)

// word returns what people call a role.
func (r Role) word() string {
	if r == RoleVouching {
		return "vouching"
	}
	return string(r)
}

// RoleOf returns the role that signs refs of a kind.
func RoleOf(refKind string) Role {
	switch refKind {
	case namespace.ChannelRef:
		return RolePoint
	case namespace.TrustRef:
		return RoleRoot
	}
	return RolePublish
}

// Signature is one signature of an envelope's payload. KeyID is [KeyID] of the public key.
type Signature struct {
	KeyID string `json:"keyid"`
	Sig   []byte `json:"sig"`
}

// Envelope is a signed record. Type names the ref it is for ("channel/desktop/stable"), so that
// a record cannot be moved to another name.
type Envelope struct {
	Type       string      `json:"type"`
	Payload    []byte      `json:"payload"`
	Signatures []Signature `json:"signatures"`
}

// Signer signs with one key.
type Signer interface {
	// KeyID returns the id of the public key.
	KeyID() string
	// Public returns the public key.
	Public() ed25519.PublicKey
	// Sign returns the signature of msg. Kinds: Denied, Unavailable.
	Sign(msg []byte) ([]byte, error)
}

// Key is a Signer that holds its private key in memory.
type Key struct{ private ed25519.PrivateKey }

// NewKey makes a Key of a 32-byte seed. Kinds: Invalid.
func NewKey(seed []byte) (Key, error) {
	if len(seed) != ed25519.SeedSize {
		return Key{}, namespace.E(namespace.Invalid, "read key", "", fmt.Errorf("a seed of %d bytes, want %d", len(seed), ed25519.SeedSize))
	}
	return Key{ed25519.NewKeyFromSeed(seed)}, nil
}

// Public returns the public key.
func (k Key) Public() ed25519.PublicKey { return k.private.Public().(ed25519.PublicKey) }

// KeyID implements Signer.
func (k Key) KeyID() string { return KeyID(k.Public()) }

// Sign implements Signer.
func (k Key) Sign(msg []byte) ([]byte, error) { return ed25519.Sign(k.private, msg), nil }

// KeyID returns the id of a public key: that of The Update Framework, 64 hex digits.
func KeyID(pub ed25519.PublicKey) string {
	key, err := metadata.KeyFromPublicKey(pub)
	if err != nil {
		return ""
	}
	id, err := key.ID()
	if err != nil {
		return ""
	}
	return id
}

// preAuth returns the bytes that are signed: DSSE's PAE.
func preAuth(typ string, payload []byte) []byte {
	var b bytes.Buffer
	for _, part := range [][]byte{[]byte("DSSEv1"), []byte("application/vnd.coppice." + typ), payload} {
		if b.Len() > 0 {
			b.WriteByte(' ')
			b.WriteString(strconv.Itoa(len(part)))
			b.WriteByte(' ')
		}
		b.Write(part)
	}
	return b.Bytes()
}

// Seal encodes record canonically and signs it for the ref n. Kinds: those of the signers,
// Limit, Internal.
func Seal(n namespace.RefName, record any, signers ...Signer) ([]byte, error) {
	payload, err := namespace.EncodeRecord(record)
	if err != nil {
		return nil, err
	}
	return sealPayload(n, payload, signers...)
}

func sealPayload(n namespace.RefName, payload []byte, signers ...Signer) ([]byte, error) {
	env := Envelope{Type: n.String(), Payload: payload, Signatures: []Signature{}}
	for _, s := range signers {
		sig, err := s.Sign(preAuth(env.Type, payload))
		if err != nil {
			return nil, err
		}
		env.Signatures = append(env.Signatures, Signature{s.KeyID(), sig})
	}
	slices.SortFunc(env.Signatures, func(a, b Signature) int { return cmp.Compare(a.KeyID, b.KeyID) })
	b, err := namespace.EncodeRecord(env)
	if err == nil && len(b) > namespace.RefBytesMax {
		err = namespace.E(namespace.Limit, "sign", n.String(), fmt.Errorf("%d bytes, at most %d", len(b), namespace.RefBytesMax))
	}
	return b, err
}

// unwrap decodes an envelope meant for n, its signatures unchecked.
func unwrap(n namespace.RefName, b []byte) (Envelope, error) {
	var env Envelope
	if err := namespace.DecodeRecord(b, namespace.RefBytesMax, n.String(), &env); err != nil {
		return env, err
	}
	if env.Type != n.String() {
		return env, namespace.E(namespace.Denied, "verify", n.String(), fmt.Errorf("the record was signed for %q", env.Type))
	}
	return env, nil
}
