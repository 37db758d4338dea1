// Package storetest is for tests only: the conformance suites that every implementation of the
// contracts in namespace/store.go runs, decorators included, and two doubles, [Mem] and [Faulty].
//
// A suite takes a function that makes a fresh, empty pair: where to write and where to read what
// was written. For a store that does both they are the same value; for an HTTP client the first
// is what its server serves.
package storetest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"testing"

	"coppice.dev/coppice/namespace"
)

// Bytes returns n bytes that do not compress, the same for the same seed.
func Bytes(seed uint64, n int) []byte {
	b := make([]byte, n)
	var key [32]byte
	for i := range 8 {
		key[i] = byte(seed >> (8 * i))
	}
	rng := rand.NewChaCha8(key)
	_, _ = rng.Read(b) // never fails
	return b
}

// ReadAll gets a range of an object and closes the reader.
func ReadAll(ctx context.Context, f namespace.Fetcher, k namespace.Key, off, n int64) ([]byte, error) {
	r, err := f.Get(ctx, k, off, n)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(r)
	return b, errors.Join(err, r.Close())
}

// key names b in class c; good enough for suites, since stores do not check names.
func key(c namespace.Class, b []byte) namespace.Key {
	return namespace.Key{Class: c, Digest: namespace.Sum(b)}
}

func wantKind(t *testing.T, what string, err error, want namespace.Kind) {
	t.Helper()
	if !namespace.IsKind(err, want) {
		t.Errorf("%s: got error %v, want kind %v", what, err, want)
	}
}

func wantBytes(t *testing.T, what string, got []byte, err error, want []byte) {
	t.Helper()
	if err != nil {
		t.Errorf("%s: %v", what, err)
	} else if !bytes.Equal(got, want) {
		t.Errorf("%s: got %d bytes, want %d, or they differ", what, len(got), len(want))
	}
}
