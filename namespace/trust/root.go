package trust

import (
	"crypto/ed25519"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"coppice.dev/coppice/namespace"
)

// RootName is the ref that holds an origin's newest root, for first contact. Every version is the ref
// [RootVersion] as well.
var RootName = namespace.RefName{Kind: namespace.TrustRef, Name: DocRoot}

// TimestampName is the ref that holds the timestamp: swapping it is what commits a change of vouching or
// of a channel.
var TimestampName = namespace.RefName{Kind: namespace.TrustRef, Name: DocTimestamp}

// RootVersion returns the ref that holds version n of the root.
func RootVersion(n int64) namespace.RefName {
	return namespace.RefName{Kind: namespace.TrustRef, Name: fmt.Sprintf("%d.%s", n, DocRoot)}
}

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

// Root is the document all trust in an origin starts from: which keys may sign for which role. ID is the
// origin's random name, the same in every version of its root. A value; nothing in it changes.
type Root struct {
	ID      string
	Version uint64
	doc     *metadata.Metadata[metadata.RootType]
	raw     []byte
	extra   extra
	keys    map[string]ed25519.PublicKey
}

// OpenRoot reads a root and checks that it is consistent and signed by its own root keys. That makes it
// intact, not trusted: whether this is the right root is the caller's to know, from a pin or a person.
// Kinds: Corrupt, Denied, Limit.
func OpenRoot(b []byte) (*Root, error) {
	doc, err := decodeDocument[metadata.RootType](DocRoot, b)
	if err != nil {
		return nil, err
	}
	if err := doc.VerifyDelegate(DocRoot, doc); err != nil {
		return nil, tufError("verify", RootName.String(), err)
	}
	e, err := readExtra(doc.Signed.UnrecognizedFields, DocRoot)
	if err != nil {
		return nil, err
	}
	r := &Root{ID: e.ID, Version: uint64(doc.Signed.Version), doc: doc, raw: b, extra: e, keys: publicKeys(doc.Signed.Keys)}
	if err := r.check(); err != nil {
		return nil, namespace.E(namespace.Corrupt, "open root", r.ID, err)
	}
	return r, nil
}

func (r *Root) check() error {
	if b, err := hex.DecodeString(r.ID); err != nil || len(b) == 0 || len(b) > 64 {
		return errors.New("it has no id") // which becomes a file's name
	}
	if r.extra.Publisher == nil {
		return errors.New("it has no publishers")
	}
	for _, role := range []Role{RoleRoot, RoleVouching, RoleSnapshot, RoleTimestamp, RolePublish} {
		want := r.Keys(role)
		distinct := map[string]bool{}
		for _, id := range want.KeyIDs {
			if r.keys[id] == nil {
				return fmt.Errorf("role %s names an unknown key %q", role, id)
			}
			distinct[string(r.keys[id])] = true
		}
		if want.Threshold < 1 || want.Threshold > len(distinct) {
			return fmt.Errorf("role %s asks for %d of %d keys", role, want.Threshold, len(distinct))
		}
	}
	return nil
}

// publicKeys returns the ed25519 keys of a document by id, of those whose id is right.
func publicKeys(all map[string]*metadata.Key) map[string]ed25519.PublicKey {
	keys := map[string]ed25519.PublicKey{}
	for id, k := range all {
		b, err := hex.DecodeString(k.Value.PublicKey)
		if err == nil && k.Type == metadata.KeyTypeEd25519 && len(b) == ed25519.PublicKeySize && KeyID(b) == id {
			keys[id] = b
		}
	}
	return keys
}

// Bytes returns the document, for pinning.
func (r *Root) Bytes() []byte { return slices.Clone(r.raw) }

// Next opens the root that follows r: signed by the keys of both. Kinds: those of OpenRoot, Stale.
func (r *Root) Next(b []byte) (*Root, error) {
	next, err := OpenRoot(b)
	if err != nil {
		return nil, err
	}
	if next.Version != r.Version+1 || next.ID != r.ID {
		return nil, namespace.E(namespace.Stale, "verify", RootName.String(), fmt.Errorf("version %d of %s after %d of %s", next.Version, next.ID, r.Version, r.ID))
	}
	return next, tufError("verify", RootName.String(), r.doc.VerifyDelegate(DocRoot, next.doc))
}

// OpenTimestamp verifies a timestamp's signatures, not its age, and returns its version. Kinds: Denied,
// Corrupt, Limit.
func (r *Root) OpenTimestamp(b []byte) (version uint64, err error) {
	doc, err := decodeDocument[metadata.TimestampType](DocTimestamp, b)
	if err != nil {
		return 0, err
	}
	return uint64(doc.Signed.Version), tufError("verify", TimestampName.String(), r.doc.VerifyDelegate(DocTimestamp, doc))
}

// Keys returns who signs for a role of the root.
func (r *Root) Keys(role Role) RoleKeys {
	if role == RolePublish {
		return *r.extra.Publisher
	}
	if want, ok := r.doc.Signed.Roles[string(role)]; ok {
		return RoleKeys{role, want.Threshold, want.KeyIDs}
	}
	return RoleKeys{Role: role}
}

// NameOf returns what a key is called, or "".
func (r *Root) NameOf(keyID string) string { return r.extra.Names[keyID] }

// Open checks that b is an envelope for the ref n with enough signatures of the publisher's role and
// returns its payload. Kinds: Corrupt (malformed), Denied (not signed as the root demands), Limit.
func (r *Root) Open(n namespace.RefName, b []byte) ([]byte, error) {
	env, err := unwrap(n, b)
	if err != nil {
		return nil, err
	}
	deny := func(format string, args ...any) ([]byte, error) {
		return nil, namespace.E(namespace.Denied, "verify", n.String(), fmt.Errorf(format, args...))
	}
	if len(env.Signatures) > signaturesMax {
		return deny("%d signatures, at most %d", len(env.Signatures), signaturesMax)
	}
	if RoleOf(n.Kind) != RolePublish {
		return deny("this kind of record is no envelope")
	}
	want := r.Keys(RolePublish)
	if good := r.countGood(env, want); good < want.Threshold {
		return deny("%d valid signatures of role %s, %d needed", good, want.Role, want.Threshold)
	}
	return env.Payload, nil
}

// countGood counts the distinct keys of a role that signed env.
func (r *Root) countGood(env Envelope, want RoleKeys) int {
	good := map[string]bool{}
	msg := preAuth(env.Type, env.Payload)
	for _, id := range want.KeyIDs {
		key := r.keys[id]
		for _, s := range env.Signatures {
			if s.KeyID == id && len(key) == ed25519.PublicKeySize && ed25519.Verify(key, msg, s.Sig) {
				good[string(key)] = true
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

// CheckPin compares the root that an origin presents with the one pinned for it: both must be of the same
// origin, and of the same version the same. Whether a newer one follows from the pinned one is
// [Updater.Refresh]'s to find out. Kinds: Denied, Stale (older than the pinned one).
func CheckPin(pinned, presented *Root) error {
	switch {
	case pinned.ID != presented.ID || pinned.Version == presented.Version && string(pinned.raw) != string(presented.raw):
		return namespace.E(namespace.Denied, "verify", RootName.String(),
			fmt.Errorf("the origin presents another root of trust than the one pinned at first contact"))
	case presented.Version < pinned.Version:
		return namespace.E(namespace.Stale, "verify", RootName.String(),
			fmt.Errorf("the origin presents version %d of its root, and %d was seen: an old record is being replayed", presented.Version, pinned.Version))
	}
	return nil
}
