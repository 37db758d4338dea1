package trust

import (
	"crypto/ed25519"
	"encoding/hex"
	"fmt"

	"coppice.dev/coppice/namespace"
)

// RootName is the ref that holds an origin's root record.
var RootName = namespace.RefName{Kind: namespace.TrustRef, Name: "root"}

// keysMax and signaturesMax bound a root and an envelope: no organisation has more signers.
const (
	keysMax       = 64
	signaturesMax = 64
)

// RoleKeys says which keys may sign for a role, and how many of them must.
type RoleKeys struct {
	Role      Role     `json:"role"`
	Threshold int      `json:"threshold"`
	KeyIDs    []string `json:"keyids"`
}

// Root is the record all trust in an origin starts from. ID is the origin's random name, the
// same in every version of its root.
type Root struct {
	Format  int        `json:"format"`
	ID      string     `json:"id"`
	Version uint64     `json:"version"`
	Keys    []string   `json:"keys"` // ed25519 public keys, 64 hex digits each
	Roles   []RoleKeys `json:"roles"`
}

// NewRoot returns version 1 of a root in which key signs for every role.
func NewRoot(id string, key ed25519.PublicKey) Root {
	root := Root{Format: namespace.RecordFormat, ID: id, Version: 1, Keys: []string{hex.EncodeToString(key)}}
	for _, r := range []Role{RoleRoot, RolePublish, RolePoint} {
		root.Roles = append(root.Roles, RoleKeys{Role: r, Threshold: 1, KeyIDs: []string{KeyID(key)}})
	}
	return root
}

// OpenRoot reads a root envelope and checks that it is consistent and signed by its own root
// keys. That makes it intact, not trusted: whether this is the right root is the caller's to
// know, from a pin or a person. Kinds: Corrupt, Denied, Limit, Invalid.
func OpenRoot(b []byte) (*Root, error) {
	env, err := unwrap(RootName, b)
	if err != nil {
		return nil, err
	}
	var root Root
	if err := namespace.DecodeRecord(env.Payload, namespace.RefBytesMax, RootName.String(), &root); err != nil {
		return nil, err
	}
	if err := root.check(); err != nil {
		return nil, namespace.E(namespace.Corrupt, "open root", root.ID, err)
	}
	if _, err := root.Open(RootName, b); err != nil {
		return nil, err
	}
	return &root, nil
}

func (r *Root) check() error {
	if r.Format != namespace.RecordFormat || r.ID == "" || r.Version == 0 || len(r.Keys) > keysMax {
		return fmt.Errorf("format %d, version %d, %d keys", r.Format, r.Version, len(r.Keys))
	}
	keys, err := r.keys()
	if err != nil {
		return err
	}
	seen := map[Role]bool{}
	for _, role := range r.Roles {
		distinct := map[string]bool{}
		for _, id := range role.KeyIDs {
			if keys[id] == nil {
				return fmt.Errorf("role %s names an unknown key %q", role.Role, id)
			}
			distinct[id] = true
		}
		if seen[role.Role] || role.Threshold < 1 || role.Threshold > len(distinct) {
			return fmt.Errorf("role %s asks for %d of %d keys", role.Role, role.Threshold, len(distinct))
		}
		seen[role.Role] = true
	}
	if !seen[RoleRoot] {
		return fmt.Errorf("no root role")
	}
	return nil
}

// keys returns the public keys by id.
func (r *Root) keys() (map[string]ed25519.PublicKey, error) {
	keys := map[string]ed25519.PublicKey{}
	for _, k := range r.Keys {
		b, err := hex.DecodeString(k)
		if err != nil || len(b) != ed25519.PublicKeySize {
			return nil, fmt.Errorf("key %q is no ed25519 public key", k)
		}
		keys[KeyID(b)] = b
	}
	return keys, nil
}

// Open checks that b is an envelope for the ref n with enough signatures of n's role and returns
// its payload. Kinds: Corrupt (malformed), Denied (not signed as the root demands), Limit.
func (r *Root) Open(n namespace.RefName, b []byte) ([]byte, error) {
	env, err := unwrap(n, b)
	if err != nil {
		return nil, err
	}
	role := RoleOf(n.Kind)
	deny := func(format string, args ...any) ([]byte, error) {
		return nil, namespace.E(namespace.Denied, "verify", n.String(), fmt.Errorf(format, args...))
	}
	if len(env.Signatures) > signaturesMax {
		return deny("%d signatures, at most %d", len(env.Signatures), signaturesMax)
	}
	keys, err := r.keys()
	if err != nil {
		return deny("%w", err)
	}
	for _, want := range r.Roles {
		if want.Role == role {
			if good := countGood(env, want, keys); good < want.Threshold {
				return deny("%d valid signatures of role %s, %d needed", good, role, want.Threshold)
			}
			return env.Payload, nil
		}
	}
	return deny("the root knows no role %s", role)
}

// countGood counts the distinct keys of a role that signed env.
func countGood(env Envelope, want RoleKeys, keys map[string]ed25519.PublicKey) int {
	good := map[string]bool{}
	msg := preAuth(env.Type, env.Payload)
	for _, id := range want.KeyIDs {
		for _, s := range env.Signatures {
			if s.KeyID == id && ed25519.Verify(keys[id], msg, s.Sig) {
				good[id] = true
			}
		}
	}
	return len(good)
}

// OpenRecord is [Root.Open] followed by decoding the payload into record, a pointer to the record
// type of n's kind. Kinds: those of Open.
func (r *Root) OpenRecord(n namespace.RefName, b []byte, record any) error {
	payload, err := r.Open(n, b)
	if err != nil {
		return err
	}
	return namespace.DecodeRecord(payload, namespace.RefBytesMax, n.String(), record)
}

// OpenPointer verifies the record of a channel and holds it against the highest seq seen so far
// (0: none): a lower seq, or the same seq with other content, is Stale. lastManifest is the
// manifest that was seen with lastSeq. Kinds: those of Open, Stale.
func (r *Root) OpenPointer(channel string, b []byte, lastSeq uint64, lastManifest namespace.Digest) (namespace.Pointer, error) {
	n := namespace.RefName{Kind: namespace.ChannelRef, Name: channel}
	var p namespace.Pointer
	if err := r.OpenRecord(n, b, &p); err != nil {
		return p, err
	}
	switch {
	case p.Format != namespace.RecordFormat || p.Channel != channel || p.Seq == 0 || p.Manifest.IsZero():
		return p, namespace.E(namespace.Corrupt, "verify", n.String(), fmt.Errorf("format %d, channel %q, seq %d", p.Format, p.Channel, p.Seq))
	case p.Seq < lastSeq:
		return p, namespace.E(namespace.Stale, "verify", n.String(), fmt.Errorf("seq %d, but %d was seen: an old record is being replayed", p.Seq, lastSeq))
	case p.Seq == lastSeq && p.Manifest != lastManifest:
		return p, namespace.E(namespace.Stale, "verify", n.String(), fmt.Errorf("seq %d came with two different versions", p.Seq))
	}
	return p, nil
}
