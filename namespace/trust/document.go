package trust

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"coppice.dev/coppice/namespace"
)

// The documents of The Update Framework that an origin has. Vouching is its targets role; the role of
// a channel is delegated by it.
const (
	DocRoot      = metadata.ROOT
	DocTimestamp = metadata.TIMESTAMP
	DocSnapshot  = metadata.SNAPSHOT
	DocVouching  = metadata.TARGETS
)

// channelPrefix begins the name of a channel's role.
const channelPrefix = namespace.ChannelRef + "/"

// ChannelDoc returns the role of a channel.
func ChannelDoc(channel string) string { return channelPrefix + channel }

// documentLimit bounds the document of a role.
func documentLimit(role string) int {
	switch role {
	case DocRoot:
		return RootBytesMax
	case DocTimestamp:
		return TimestampBytesMax
	case DocSnapshot:
		return SnapshotBytesMax
	case DocVouching:
		return VouchingBytesMax
	}
	if strings.HasPrefix(role, channelPrefix) {
		return PointerBytesMax
	}
	return VouchingBytesMax // of another's repository
}

// decodeDocument reads a document strictly; nothing in it is verified yet. What go-tuf leaves to its
// caller is checked here: versions, the sizes of keys. Kinds: Limit, Corrupt.
func decodeDocument[T metadata.Roles](role string, b []byte) (*metadata.Metadata[T], error) {
	if err := checkJSON(b, documentLimit(role), role); err != nil {
		return nil, err
	}
	m, err := new(metadata.Metadata[T]).FromBytes(b)
	if err == nil {
		err = checkDocument(m)
	}
	if err != nil {
		return nil, namespace.E(namespace.Corrupt, "read", role, err)
	}
	return m, nil
}

func checkDocument[T metadata.Roles](m *metadata.Metadata[T]) error {
	if len(m.Signatures) > signaturesMax {
		return fmt.Errorf("%d signatures, at most %d", len(m.Signatures), signaturesMax)
	}
	switch s := any(&m.Signed).(type) {
	case *metadata.RootType:
		for name, r := range s.Roles {
			if r == nil || len(r.KeyIDs) > keysMax {
				return fmt.Errorf("role %q", name)
			}
		}
		return errors.Join(checkHead(s.Version, s.SpecVersion), checkKeys(s.Keys))
	case *metadata.TimestampType:
		if s.Meta[DocSnapshot+".json"] == nil {
			return errors.New("no snapshot is named")
		}
		return errors.Join(checkHead(s.Version, s.SpecVersion), checkMeta(s.Meta))
	case *metadata.SnapshotType:
		if s.Meta[DocVouching+".json"] == nil {
			return errors.New("no targets are named")
		}
		return errors.Join(checkHead(s.Version, s.SpecVersion), checkMeta(s.Meta))
	case *metadata.TargetsType:
		for name, t := range s.Targets {
			if t == nil || t.Length < 0 {
				return fmt.Errorf("target %q", name)
			}
		}
		if s.Delegations == nil {
			return checkHead(s.Version, s.SpecVersion)
		}
		return errors.Join(checkHead(s.Version, s.SpecVersion), checkKeys(s.Delegations.Keys))
	}
	return nil
}

func checkHead(version int64, spec string) error {
	if version < 1 {
		return fmt.Errorf("version %d", version)
	}
	if !strings.HasPrefix(spec, "1.") {
		return fmt.Errorf("version %.20q of the specification", spec)
	}
	return nil
}

func checkMeta(all map[string]*metadata.MetaFiles) error {
	for name, m := range all {
		if m == nil || m.Version < 1 || m.Length < 0 {
			return fmt.Errorf("entry %.200q", name)
		}
	}
	return nil
}

// checkKeys bounds the keys: an ed25519 key of another size makes the standard library panic.
func checkKeys(keys map[string]*metadata.Key) error {
	if len(keys) > keysMax {
		return fmt.Errorf("%d keys, at most %d", len(keys), keysMax)
	}
	for id, k := range keys {
		if k == nil {
			return fmt.Errorf("key %.80q", id)
		}
		if b, err := hex.DecodeString(k.Value.PublicKey); k.Type == metadata.KeyTypeEd25519 && (err != nil || len(b) != 32) {
			return fmt.Errorf("key %.80q is no ed25519 public key", id)
		}
	}
	return nil
}

// tufError gives an error of go-tuf its Kind.
func tufError(op, role string, err error) error {
	var (
		expired  *metadata.ErrExpiredMetadata
		version  *metadata.ErrBadVersionNumber
		mismatch *metadata.ErrLengthOrHashMismatch
		repo     *metadata.ErrRepository
		own      *namespace.Error
	)
	switch {
	case err == nil:
		return nil
	case errors.As(err, &own):
		return err
	case errors.As(err, &expired):
		return namespace.WithHint(namespace.E(namespace.Stale, op, role, fmt.Errorf("%w: %w", errExpired, err)),
			"has the origin stopped being re-signed (`coppice origin refresh`), is somebody withholding what is newer, or is this machine's clock wrong?")
	case errors.As(err, &version):
		return namespace.E(namespace.Stale, op, role, fmt.Errorf("an old record is being replayed: %w", err))
	case errors.As(err, &mismatch):
		return namespace.E(namespace.Corrupt, op, role, err)
	case errors.As(err, &repo):
		return namespace.E(namespace.Denied, op, role, err)
	}
	return namespace.E(namespace.Denied, op, role, err)
}

// errExpired marks an error that says a document's time is over.
var errExpired = errors.New("expired")

// IsExpired reports whether err says that a document's time is over.
func IsExpired(err error) bool { return errors.Is(err, errExpired) }

// extra is what Coppice adds to a document, in the member "coppice" of its signed part.
type extra struct {
	ID        string            `json:"id,omitempty"`        // root: the origin's random name
	Publisher *RoleKeys         `json:"publisher,omitempty"` // root: who signs trees and namespaces
	Pointer   *RoleKeys         `json:"pointer,omitempty"`   // vouching: who points new channels
	Names     map[string]string `json:"names,omitempty"`     // root, vouching: who has which key
	Issued    time.Time         `json:"issued,omitzero"`     // timestamp
	Floors    map[string]uint64 `json:"floors,omitempty"`    // vouching: by namespace
	Policy    *Policy           `json:"policy,omitempty"`    // vouching
}

const extraMember = "coppice"

func readExtra(fields map[string]any, role string) (e extra, err error) {
	v, ok := fields[extraMember]
	if !ok {
		return e, nil
	}
	b, err := json.Marshal(v)
	if err == nil {
		err = json.Unmarshal(b, &e)
	}
	if err != nil {
		return e, namespace.E(namespace.Corrupt, "read", role, err)
	}
	return e, nil
}

// writeExtra puts e into the fields of a document's signed part and returns them.
func writeExtra(fields map[string]any, e extra) (map[string]any, error) {
	var v any
	b, err := json.Marshal(e)
	if err == nil {
		err = json.Unmarshal(b, &v)
	}
	if err != nil {
		return fields, namespace.E(namespace.Internal, "write", "document", err)
	}
	if fields == nil {
		fields = map[string]any{}
	}
	fields[extraMember] = v
	return fields, nil
}
