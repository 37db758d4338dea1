package object

import (
	"runtime"
	"sync"

	"github.com/klauspost/compress/zstd"

	"coppice.dev/coppice/namespace"
)

// frameWindow holds a whole frame, so that every frame is decoded without a window buffer.
const frameWindow = namespace.FrameBytesMax

// encoder is shared: EncodeAll is concurrent and keeps one state a processor. No checksum is
// written, since digests say more. Constant options cannot fail.
var encoder = sync.OnceValue(func() *zstd.Encoder {
	e, _ := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedDefault), zstd.WithEncoderCRC(false),
		zstd.WithWindowSize(frameWindow), zstd.WithEncoderConcurrency(runtime.GOMAXPROCS(0)))
	return e
})

// decoder never writes past the capacity it is given, so a frame cannot claim more memory than
// the caller allowed.
var decoder = sync.OnceValue(func() *zstd.Decoder {
	d, _ := zstd.NewReader(nil, zstd.WithDecodeAllCapLimit(true), zstd.WithDecoderConcurrency(runtime.GOMAXPROCS(0)),
		zstd.WithDecoderMaxMemory(namespace.CatalogBytesMax))
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
