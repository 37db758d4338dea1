package identity

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"unicode/utf8"

	"coppice.dev/coppice/namespace"
)

// wireError is an error on the wire. Its kind, which the header Coppice-Kind has as well, survives.
type wireError struct {
	Kind    string `json:"kind"`
	Message string `json:"message"`
	Hint    string `json:"hint,omitempty"`
}

// kindHeader carries an error's Kind, as on every server of ours.
const kindHeader = "Coppice-Kind"

// answerError answers with err. Its texts must not name files of this machine.
func answerError(w http.ResponseWriter, status int, err error) {
	kind := namespace.KindOf(err).String()
	w.Header().Set(kindHeader, kind)
	answerJSON(w, status, wireError{kind, err.Error(), namespace.HintOf(err)})
}

// answerJSON answers with v.
func answerJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // whoever asked may have gone
}

// jsonDepthMax bounds the nesting of a request: ours have three levels.
const jsonDepthMax = 16

// DecodeJSON reads one JSON value of at most limit bytes into v, a pointer to a struct, with one
// meaning only: a key that is there twice, differs in case from the field's name or belongs to no
// field, bytes that are not UTF-8, a number out of range and anything behind the value are refused.
// subject names the source. Kinds: Invalid, Limit.
func DecodeJSON(b []byte, limit int, subject string, v any) error {
	const op = "decode request"
	if len(b) > limit {
		return namespace.E(namespace.Limit, op, subject, fmt.Errorf("%d bytes, at most %d", len(b), limit))
	}
	if !utf8.Valid(b) {
		return namespace.E(namespace.Invalid, op, subject, errors.New("it is not UTF-8"))
	}
	if err := checkUnambiguous(json.NewDecoder(bytes.NewReader(b))); err != nil {
		return namespace.E(namespace.Invalid, op, subject, err)
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return namespace.E(namespace.Invalid, op, subject, err)
	}
	return nil
}

// checkUnambiguous reads a value and refuses what two parsers might read differently.
func checkUnambiguous(dec *json.Decoder) error {
	dec.UseNumber() // what a number means is for the field to say
	if err := checkValue(dec, 0); err != nil {
		return err
	}
	if _, err := dec.Token(); err != io.EOF {
		return errors.New("something follows the value")
	}
	return nil
}

func checkValue(dec *json.Decoder, depth int) error {
	if depth > jsonDepthMax {
		return fmt.Errorf("nested more than %d deep", jsonDepthMax)
	}
	t, err := dec.Token()
	if err != nil {
		return err
	}
	open, ok := t.(json.Delim)
	if !ok {
		return nil
	}
	keys := map[string]bool{}
	for dec.More() {
		if open == '{' {
			t, err := dec.Token()
			if err != nil {
				return err
			}
			key, _ := t.(string)
			if !plainKey(key) {
				return fmt.Errorf("the key %q: want lower-case letters, digits and . _ + -", key)
			}
			if keys[key] {
				return fmt.Errorf("the key %q is there twice", key)
			}
			keys[key] = true
		}
		if err := checkValue(dec, depth+1); err != nil {
			return err
		}
	}
	_, err = dec.Token() // the closing delimiter
	return err
}

// plainKey holds for keys that cannot match a field by folding case, of which Unicode has surprises.
func plainKey(s string) bool {
	return s != "" && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789._+-") == ""
}
