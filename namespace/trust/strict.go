package trust

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode/utf8"

	"coppice.dev/coppice/namespace"
)

// Bounds of what is read from outside, each checked before anything is decoded.
const (
	// RootBytesMax bounds a root: a hundred keys and as many signatures.
	RootBytesMax = 256 << 10
	// TimestampBytesMax bounds a timestamp: one entry and some signatures.
	TimestampBytesMax = 16 << 10
	// SnapshotBytesMax bounds a snapshot: 20,000 channels.
	SnapshotBytesMax = 4 << 20
	// VouchingBytesMax bounds the targets role: 20,000 namespace versions and channels.
	VouchingBytesMax = namespace.RefBytesMax
	// PointerBytesMax bounds the role of one channel: one pointer and some signatures with their notes.
	PointerBytesMax = 256 << 10
	// RootsMax bounds the new roots that one refresh walks: a rotation a week for a year. What was
	// walked is kept, so that the next refresh goes on from there.
	RootsMax = 64

	// jsonDepthMax bounds nesting: our documents need seven.
	jsonDepthMax = 24
	// jsonIntegerMax is the largest integer that every JSON reader understands alike: 2^53.
	jsonIntegerMax = 1 << 53
)

// checkJSON refuses bytes that two readers could understand differently, or that readers were seen to
// stumble on: more than limit bytes, what is not UTF-8, an object with the same name twice (also in
// another case: encoding/json does not mind it), null, numbers that are no integers below 2^53 or not
// in their shortest form, deep nesting, anything behind the value. subject names the source.
// Kinds: Limit, Corrupt.
func checkJSON(b []byte, limit int, subject string) error {
	const op = "read"
	if len(b) > limit {
		return namespace.E(namespace.Limit, op, subject, fmt.Errorf("%d bytes, at most %d", len(b), limit))
	}
	if !utf8.Valid(b) {
		return namespace.E(namespace.Corrupt, op, subject, errors.New("not UTF-8"))
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.UseNumber()
	if err := checkValue(dec, 0); err != nil {
		return namespace.E(namespace.Corrupt, op, subject, err)
	}
	if _, err := dec.Token(); err != io.EOF {
		return namespace.E(namespace.Corrupt, op, subject, errors.New("there is something behind the document"))
	}
	return nil
}

func checkValue(dec *json.Decoder, depth int) error {
	if depth > jsonDepthMax {
		return fmt.Errorf("nested deeper than %d", jsonDepthMax)
	}
	t, err := dec.Token()
	if err != nil {
		return err
	}
	switch v := t.(type) {
	case nil:
		return errors.New("null is no value here")
	case json.Number:
		n, err := strconv.ParseInt(v.String(), 10, 64)
		if err != nil || n > jsonIntegerMax || n < -jsonIntegerMax || strconv.FormatInt(n, 10) != v.String() {
			return fmt.Errorf("the number %.32s is no plain integer", v)
		}
	case json.Delim:
		if v == '{' {
			return checkObject(dec, depth)
		}
		for dec.More() {
			if err := checkValue(dec, depth+1); err != nil {
				return err
			}
		}
		_, err = dec.Token() // the end: the decoder sees to it that it fits
	}
	return err
}

func checkObject(dec *json.Decoder, depth int) error {
	seen := map[string]bool{}
	for dec.More() {
		t, err := dec.Token()
		if err != nil {
			return err
		}
		name, ok := t.(string)
		if !ok {
			return errors.New("a member without a name")
		}
		folded := strings.ToLower(strings.ToUpper(name))
		if seen[folded] {
			return fmt.Errorf("the name %.64q comes twice", name)
		}
		seen[folded] = true
		if err := checkValue(dec, depth+1); err != nil {
			return err
		}
	}
	_, err := dec.Token()
	return err
}
