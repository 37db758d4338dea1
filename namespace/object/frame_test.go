package object_test

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/object"
)

func random(seed uint64, n int) []byte {
	b := make([]byte, n)
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	_, _ = rand.NewChaCha8(key).Read(b)
	return b
}

func text(n int) []byte { return bytes.Repeat([]byte("a line of text, again\n"), n/22+1)[:n] }

func wantKind(t *testing.T, what string, err error, k namespace.Kind) {
	t.Helper()
	if !namespace.IsKind(err, k) {
		t.Errorf("%s: error %v, want Kind %v", what, err, k)
	}
}

func TestFrameRoundTrip(t *testing.T) {
	for _, c := range []struct {
		plain []byte
		codec object.Codec
	}{
		{[]byte("x"), object.Raw}, {random(1, 200_000), object.Raw},
		{text(100), object.Zstd}, {text(namespace.FrameBytesMax), object.Zstd},
	} {
		stored, codec := object.EncodeFrame(c.plain)
		if codec != c.codec {
			t.Errorf("%d bytes: codec %v, want %v", len(c.plain), codec, c.codec)
		}
		if codec == object.Zstd && len(stored) >= len(c.plain) {
			t.Errorf("%d bytes stored as %d", len(c.plain), len(stored))
		}
		for _, dst := range [][]byte{nil, make([]byte, 10, 50), make([]byte, 0, 3<<20)} {
			got, err := object.DecodeFrame(dst, stored, codec, len(c.plain))
			if err != nil || !bytes.Equal(got, c.plain) {
				t.Errorf("%d bytes into %d: %v, or differs", len(c.plain), cap(dst), err)
			}
		}
	}
}

func TestFrameRefuses(t *testing.T) {
	zeros := make([]byte, namespace.FrameBytesMax)
	bomb, _ := object.EncodeFrame(zeros)
	some, _ := object.EncodeFrame(text(1000))
	for name, c := range map[string]struct {
		stored []byte
		codec  object.Codec
		size   int
	}{
		"smaller than said": {some, object.Zstd, 1001}, "larger than said": {some, object.Zstd, 999},
		"bomb": {bomb, object.Zstd, 100}, "beyond the limit": {bomb, object.Zstd, namespace.FrameBytesMax + 1},
		"negative": {some, object.Zstd, -1}, "raw of another size": {[]byte("abc"), object.Raw, 4},
		"unknown codec": {some, 7, 1000}, "garbage": {[]byte("garbage"), object.Zstd, 10},
		"truncated": {some[:len(some)-1], object.Zstd, 1000}, "empty": {nil, object.Zstd, 10},
		"two frames": {append(bytes.Clone(some), some...), object.Zstd, 1000},
	} {
		_, err := object.DecodeFrame(nil, c.stored, c.codec, c.size)
		wantKind(t, name, err, namespace.Corrupt)
	}
}

func TestFrameConcurrent(t *testing.T) {
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			plain := append(text(50_000+i), byte(i))
			stored, c := object.EncodeFrame(plain)
			got, err := object.DecodeFrame(nil, stored, c, len(plain))
			if err != nil || !bytes.Equal(got, plain) {
				t.Errorf("frame %d: %v, or differs", i, err)
			}
		})
	}
	wg.Wait()
}

func TestBlob(t *testing.T) {
	for _, plain := range [][]byte{nil, []byte("{}\n"), text(100_000), random(2, 1000), make([]byte, 5<<20)} {
		stored := object.EncodeBlob(plain)
		got, err := object.DecodeBlob(stored, namespace.Sum(plain), int64(len(plain)))
		if err != nil || !bytes.Equal(got, plain) {
			t.Errorf("%d bytes: %v, or differs", len(plain), err)
		}
		_, err = object.DecodeBlob(stored, namespace.Digest{1}, 10<<20)
		wantKind(t, "other digest", err, namespace.Corrupt)
		if len(plain) > 0 {
			_, err = object.DecodeBlob(stored, namespace.Sum(plain), int64(len(plain)-1))
			wantKind(t, "limit", err, namespace.Limit)
			_, err = object.DecodeBlob(stored[:len(stored)-1], namespace.Sum(plain), 10<<20)
			wantKind(t, "truncated", err, namespace.Corrupt)
		}
	}
}

// A blob of few bytes that claims a gigabyte must not be given one before it is decoded.
func TestBlobClaimsMuch(t *testing.T) {
	stored := object.EncodeBlob(text(1000))
	binary.LittleEndian.PutUint32(stored[8:], 1<<30)
	if n := testing.AllocsPerRun(3, func() {
		_, err := object.DecodeBlob(stored, namespace.Digest{}, 1<<30)
		wantKind(t, "false claim", err, namespace.Corrupt)
	}); n > 1000 {
		t.Errorf("%v allocations", n)
	}
}

func FuzzDecodeBlob(f *testing.F) {
	for _, plain := range [][]byte{nil, []byte("x"), text(1000), make([]byte, 1<<20)} {
		f.Add(object.EncodeBlob(plain))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		const limit = 4 << 20
		if got, err := object.DecodeBlob(b, namespace.Digest{}, limit); err == nil {
			t.Fatalf("accepted %d bytes of a digest that nothing has", len(got))
		}
	})
}

func TestStreamReaders(t *testing.T) {
	var z bytes.Buffer
	g := gzip.NewWriter(&z)
	if _, err := g.Write(text(100_000)); err != nil || g.Close() != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		open   func(io.Reader) (io.ReadCloser, error)
		stored []byte
	}{"gzip": {object.NewGzipReader, z.Bytes()}, "zstd": {object.NewZstdReader, object.EncodeBlob(text(100_000))[12:]}} {
		r, err := c.open(bytes.NewReader(c.stored))
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(r)
		if err != nil || !bytes.Equal(got, text(100_000)) || r.Close() != nil {
			t.Errorf("%s: %v, or differs", name, err)
		}
		if r, err := c.open(strings.NewReader("neither of both")); err == nil {
			_, err = io.ReadAll(r)
			r.Close()
			if err == nil {
				t.Errorf("%s: read a stream that is none", name)
			}
		} else {
			wantKind(t, name, err, namespace.Corrupt)
		}
	}
}
