package object

import (
	"bytes"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"

	"coppice.dev/coppice/namespace"
)

const (
	blobMagic  = "CPB1"
	blobHeader = 12
	// blobTrust is how far a blob's claimed size may exceed its stored bytes before it is
	// decoded as a stream, growing as bytes come, instead of into memory allocated at once.
	blobTrust = 64
)

// EncodeBlob returns the stored form of a catalog or a manifest. Safe for concurrent use.
func EncodeBlob(plain []byte) []byte {
	stored, c := compress(plain)
	b := make([]byte, blobHeader, blobHeader+len(stored))
	copy(b, blobMagic)
	b[4] = byte(c)
	le.PutUint32(b[8:], uint32(len(plain)))
	return append(b, stored...)
}

// DecodeBlob returns the plaintext of a stored blob if its digest is want. limit bounds the
// plaintext in bytes. Errors: Corrupt, Limit. Safe for concurrent use.
func DecodeBlob(stored []byte, want namespace.Digest, limit int64) ([]byte, error) {
	b, err := decodeBlob("decode blob", stored, limit)
	if err != nil {
		return nil, namespace.E(namespace.KindOf(err), "", want.String(), err)
	}
	if got := namespace.Sum(b); got != want {
		return nil, namespace.E(namespace.Corrupt, "decode blob", want.String(), fmt.Errorf("its digest is %v", got))
	}
	return b, nil
}

func decodeBlob(op string, stored []byte, limit int64) ([]byte, error) {
	if len(stored) < blobHeader || string(stored[:4]) != blobMagic || stored[5]|stored[6]|stored[7] != 0 {
		return nil, corrupt(op, "not a blob, or of a version this build does not know")
	}
	c, size, body := Codec(stored[4]), int64(le.Uint32(stored[8:])), stored[blobHeader:]
	if size > limit {
		return nil, namespace.E(namespace.Limit, op, "", fmt.Errorf("%d bytes, at most %d", size, limit))
	}
	switch {
	case c == Raw && int64(len(body)) == size:
		return bytes.Clone(body), nil
	case c == Zstd && int64(len(body)) >= size:
		return nil, corrupt(op, "stored compressed though that saves nothing")
	case c == Zstd && size <= blobTrust*int64(len(body)):
		return decompress(nil, body, int(size))
	case c == Zstd:
		return decodeStream(op, body, size)
	}
	return nil, corrupt(op, "codec %d, %d stored bytes, size %d", c, len(body), size)
}

// decodeStream decodes with memory that follows what is really there.
func decodeStream(op string, body []byte, size int64) ([]byte, error) {
	d, err := zstd.NewReader(bytes.NewReader(body), zstd.WithDecoderConcurrency(1),
		zstd.WithDecoderMaxMemory(namespace.CatalogBytesMax), zstd.WithDecoderLowmem(true))
	if err != nil {
		return nil, corrupt(op, "%w", err)
	}
	defer d.Close()
	b, err := io.ReadAll(io.LimitReader(d, size+1))
	if err != nil {
		return nil, corrupt(op, "%w", err)
	}
	if int64(len(b)) != size {
		return nil, corrupt(op, "%d bytes or more, want %d", len(b), size)
	}
	return b, nil
}
