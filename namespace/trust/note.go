package trust

import (
	"crypto/ed25519"
	"encoding/hex"
	"fmt"
	"time"

	"github.com/secure-systems-lab/go-securesystemslib/cjson"
	"github.com/theupdateframework/go-tuf/v2/metadata"

	"coppice.dev/coppice/namespace"
)

// Note is what a person says with a signature: who signed, when, and why. It is signed by the same key,
// together with what the signature is for, and lies beside the signature in the document, where readers
// of The Update Framework who do not know it pass it over.
type Note struct {
	By  string    `json:"by"`
	At  time.Time `json:"at"`
	Why string    `json:"why"`
}

// Signed is a signature as it is shown: the key's id, its note, and whether key and note were verified.
type Signed struct {
	KeyID string `json:"keyid"`
	Note
	Verified bool `json:"verified"`
}

// noteBytesMax bounds the texts of a note.
const noteBytesMax = 4 << 10

// noteMember is the member of a signature that holds its note.
const noteMember = "note"

// noteMessage is what a note's signature covers: the note, and the payload of the signature beside it.
func noteMessage(n Note, payload []byte) ([]byte, error) {
	record, err := namespace.EncodeRecord(struct {
		Note
		Of namespace.Digest `json:"of"`
	}{n, namespace.Sum(payload)})
	return preAuth("note", record), err
}

// signDocument adds the signatures of keys to a document, each with the note. A key that signed before
// signs anew.
func signDocument[T metadata.Roles](m *metadata.Metadata[T], note Note, keys ...Signer) error {
	if len(note.By)+len(note.Why) > noteBytesMax {
		return namespace.E(namespace.Limit, "sign", "", fmt.Errorf("a note of more than %d bytes", noteBytesMax))
	}
	note.At = note.At.UTC().Truncate(time.Second)
	payload, err := cjson.EncodeCanonical(m.Signed)
	if err != nil {
		return namespace.E(namespace.Internal, "sign", "", err)
	}
	said, err := noteMessage(note, payload)
	if err != nil {
		return err
	}
	for _, k := range keys {
		sig, err := k.Sign(payload)
		if err != nil {
			return err
		}
		noteSig, err := k.Sign(said)
		if err != nil {
			return err
		}
		dropSignature(m, k.KeyID())
		m.Signatures = append(m.Signatures, metadata.Signature{KeyID: k.KeyID(), Signature: sig, UnrecognizedFields: map[string]any{
			noteMember: map[string]any{"by": note.By, "at": note.At.Format(time.RFC3339), "why": note.Why, "sig": hex.EncodeToString(noteSig)},
		}})
	}
	return nil
}

// dropSignature removes the signature of a key.
func dropSignature[T metadata.Roles](m *metadata.Metadata[T], keyID string) {
	kept := m.Signatures[:0]
	for _, s := range m.Signatures {
		if s.KeyID != keyID {
			kept = append(kept, s)
		}
	}
	m.Signatures = kept
}

// signatures returns the signatures of a document, as they are shown. keys are those that may be
// believed, by id; a note that is not signed by its key is left out.
func signatures[T metadata.Roles](m *metadata.Metadata[T], keys map[string]ed25519.PublicKey) []Signed {
	payload, err := cjson.EncodeCanonical(m.Signed)
	if err != nil {
		return nil
	}
	all := []Signed{}
	for _, s := range m.Signatures {
		one := Signed{KeyID: s.KeyID}
		note, sig := readNote(s)
		key := keys[s.KeyID]
		if key == nil { // a key of before: the chain of digests says that this is what was shown then
			one.Note = note
		} else if said, err := noteMessage(note, payload); err == nil && ed25519.Verify(key, payload, s.Signature) && ed25519.Verify(key, said, sig) {
			one.Note, one.Verified = note, true
		}
		all = append(all, one)
	}
	return all
}

func readNote(s metadata.Signature) (n Note, sig []byte) {
	m, _ := s.UnrecognizedFields[noteMember].(map[string]any)
	text := func(name string) string { v, _ := m[name].(string); return v }
	n.By, n.Why = text("by"), text("why")
	n.At, _ = time.Parse(time.RFC3339, text("at"))
	sig, _ = hex.DecodeString(text("sig"))
	return n, sig
}
