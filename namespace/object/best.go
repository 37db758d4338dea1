package object

import (
	"fmt"
	"sync"

	"github.com/klauspost/compress/zstd"

	"coppice.dev/coppice/namespace"
)

// bestWindow is what any zstd decoder accepts (RFC 8878), and holds a frame of deltas.
const bestWindow = 8 << 20

// best is for what is written once and fetched by many. It keeps one state, of some 100 MB, since
// there is little to compress.
var best = sync.OnceValue(func() *zstd.Encoder {
	e, _ := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedBestCompression), zstd.WithEncoderCRC(false),
		zstd.WithWindowSize(bestWindow), zstd.WithEncoderConcurrency(1))
	return e
})

// EncodeBest returns the smallest stored form of plain that this package knows to make, at some 10
// MB/s: Raw if zstd saves nothing, and then it aliases plain. Equal bytes are stored alike by one
// build. Safe for concurrent use, but one call at a time compresses.
func EncodeBest(plain []byte) ([]byte, Codec) {
	b := best().EncodeAll(plain, make([]byte, 0, len(plain)/4+64))
	if len(b) >= len(plain) {
		return plain, Raw
	}
	return b, Zstd
}

// DecodeBest returns what [EncodeBest] was given, of size bytes, at most limit; it may alias
// stored. Memory follows what is really there: a claim is not believed beforehand. Errors:
// Corrupt, Limit. Safe for concurrent use.
func DecodeBest(stored []byte, c Codec, size, limit int64) ([]byte, error) {
	const op = "decode frame"
	if size < 0 || size > limit {
		return nil, namespace.E(namespace.Limit, op, "", fmt.Errorf("%d bytes, at most %d", size, limit))
	}
	return decodeBody(op, stored, c, size)
}
