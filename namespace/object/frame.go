package object

import (
	"coppice.dev/coppice/namespace"
)

// Frame is one compressed unit of a pack: a large chunk, or several small ones of neighbouring
// files. Off and Len are its stored bytes in the pack, Plain its size decompressed.
type Frame struct {
	Off    int64
	Len    uint32
	Plain  uint32
	Codec  Codec
	Chunks []FrameChunk
}

// FrameChunk is a chunk in a frame's plaintext: bytes [Off, Off+Len).
type FrameChunk struct {
	Digest   namespace.Digest
	Off, Len uint32
}

// EncodeFrame returns the stored form of plain (1 to FrameBytesMax bytes): Raw if zstd saves
// nothing, and then it aliases plain. Safe for concurrent use.
func EncodeFrame(plain []byte) ([]byte, Codec) { return compress(plain) }

// DecodeFrame returns the plaintext of a frame of plainSize bytes in dst[:0], which grows if it
// must. Errors: Corrupt, also if plainSize exceeds FrameBytesMax. Safe for concurrent use.
func DecodeFrame(dst, stored []byte, c Codec, plainSize int) ([]byte, error) {
	if plainSize < 0 || plainSize > namespace.FrameBytesMax {
		return nil, corrupt("decode frame", "%d bytes, at most %d", plainSize, namespace.FrameBytesMax)
	}
	switch c {
	case Raw:
		if len(stored) != plainSize {
			return nil, corrupt("decode frame", "%d raw bytes, want %d", len(stored), plainSize)
		}
		return append(dst[:0], stored...), nil
	case Zstd:
		return decompress(dst, stored, plainSize)
	}
	return nil, corrupt("decode frame", "codec %d", c)
}

// decompress needs room for exactly size bytes, all allocated beforehand.
func decompress(dst, stored []byte, size int) ([]byte, error) {
	if cap(dst) < size {
		dst = make([]byte, 0, size)
	}
	// The decoder's limit is the capacity: a larger one would let a frame outgrow its size.
	b, err := decoder().DecodeAll(stored, dst[:0:size])
	if err != nil {
		return nil, corrupt("decode frame", "%w", err)
	}
	if len(b) != size {
		return nil, corrupt("decode frame", "%d bytes, want %d", len(b), size)
	}
	return b, nil
}
