// Package object is the bytes of stored objects: compressed frames, packs of frames with their
// directories, blobs, locators, segments of the chunk index, and how files are cut into chunks.
// It does no I/O of its own. Its decoders are strict and bounded (invariant N5).
//
// # Layouts (version 1, little endian)
//
//	blob     magic "CPB1", u8 codec, 3 B zero, u32 plain size, stored bytes
//	pack     magic "COPPCK1\n", frames, directory, footer
//	         directory: per frame 12 B (u32 stored, u32 plain, u16 chunks, u8 codec, u8 zero),
//	         then per chunk 36 B (digest, u32 length), in frame order
//	         footer 24 B: u32 frames, u32 chunks, u32 CRC-32C of the directory, u32 zero, magic
//	locator  a blob of: magic "COPLOC1\n" and columns of varints, see [EncodeLocator]
//	index    magic "COPIDX1\n", packs, frames, records sorted by digest, see [EncodeIndex]
//
// # Trust
//
// Nothing here is trusted but digests. A pack's directory, a locator and an index only say where
// to look; what is found is held against the chunk's digest by the reader (invariant N4).
package object

import (
	"encoding/binary"
	"fmt"

	"coppice.dev/coppice/namespace"
)

// Codec says how a frame or a blob is stored. It is not part of any identity.
type Codec uint8

// The codecs.
const (
	Raw Codec = iota
	Zstd
	codecEnd
)

var codecNames = [codecEnd]string{"raw", "zstd"}

// String returns the codec's name.
func (c Codec) String() string {
	if c < codecEnd {
		return codecNames[c]
	}
	return "unknown"
}

var le = binary.LittleEndian

func corrupt(op, format string, args ...any) error {
	return namespace.E(namespace.Corrupt, op, "", fmt.Errorf(format, args...))
}
