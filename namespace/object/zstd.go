package object

import (
	"io"
	"runtime"
	"sync"

	"github.com/klauspost/compress/zstd"

	"coppice.dev/coppice/namespace"
)

// frameWindow holds a whole frame, so that every frame is decoded without a window buffer.
const frameWindow = namespace.FrameBytesMax

// encoder is shared: EncodeAll is concurrent and keeps one state a processor. No checksum is
// written, since digests say more.
var encoder = sync.OnceValue(func() *zstd.Encoder {
	e, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedDefault), zstd.WithEncoderCRC(false),
		zstd.WithWindowSize(frameWindow), zstd.WithEncoderConcurrency(runtime.GOMAXPROCS(0)))
	if err != nil {
		panic("object: zstd options: " + err.Error()) // constants above; cannot depend on input
	}
	return e
})

// decoder never writes past the capacity it is given, so a frame cannot claim more memory than
// the caller allowed.
var decoder = sync.OnceValue(func() *zstd.Decoder {
	d, err := zstd.NewReader(nil, zstd.WithDecodeAllCapLimit(true), zstd.WithDecoderConcurrency(runtime.GOMAXPROCS(0)),
		zstd.WithDecoderMaxMemory(namespace.CatalogBytesMax))
	if err != nil {
		panic("object: zstd options: " + err.Error())
	}
	return d
})

// compress returns the stored form of plain. The result may alias plain if the codec is Raw.
func compress(plain []byte) ([]byte, Codec) {
	b := encoder().EncodeAll(plain, make([]byte, 0, len(plain)/2+64))
	if len(b) >= len(plain) {
		return plain, Raw
	}
	return b, Zstd
}

// NewZstdReader returns a reader of the zstd stream r, such as a compressed tar archive. Memory is
// bounded by the format's window (at most 128 MiB). The caller closes it; that does not close r.
// Kinds: Corrupt when the stream does not begin as one; later, what reading it returns.
func NewZstdReader(r io.Reader) (io.ReadCloser, error) {
	d, err := zstd.NewReader(r, zstd.WithDecoderMaxWindow(128<<20), zstd.WithDecoderConcurrency(2))
	if err != nil {
		return nil, namespace.E(namespace.Corrupt, "read zstd", "", err)
	}
	return d.IOReadCloser(), nil
}
