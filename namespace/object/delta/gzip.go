package delta

import (
	"bytes"
	"compress/flate"
	"encoding/binary"
	"hash/crc32"
	"io"
)

const (
	gzipHeader  = 10 // without any optional field
	gzipTrailer = 8
	// gunzipBytesMax bounds what a compressed file becomes: with it, making a difference stays
	// within memory, and a file that is a bomb is compared as it is.
	gunzipBytesMax = 24 << 20
)

// gunzip returns the header of b and its decompressed content, if b is what gzip -9 makes of them.
// A change in a compressed file changes all that follows it; in its content it does not.
func gunzip(b []byte) ([]byte, bool) {
	plain, ok := inflate(b)
	if !ok || !bytes.Equal(regzip(plain), b) {
		return nil, false
	}
	return plain, true
}

// inflate returns the header of b and its decompressed content, whatever made it.
func inflate(b []byte) ([]byte, bool) {
	if len(b) < gzipHeader+gzipTrailer || string(b[:4]) != "\x1f\x8b\x08\x00" {
		return nil, false
	}
	// The size it claims decides how much is allocated, but no more than deflate can hold in b.
	size := binary.LittleEndian.Uint32(b[len(b)-4:])
	if size > gunzipBytesMax || uint64(size) > 1032*uint64(len(b)) {
		return nil, false
	}
	r := flate.NewReader(bytes.NewReader(b[gzipHeader : len(b)-gzipTrailer]))
	plain := make([]byte, gzipHeader+int(size))
	copy(plain, b[:gzipHeader])
	if _, err := io.ReadFull(r, plain[gzipHeader:]); err != nil {
		return nil, false
	}
	if n, err := r.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		return nil, false
	}
	return plain, true
}

// regzip is the inverse of gunzip: a header and what gzip -9 makes of the rest.
func regzip(plain []byte) []byte {
	b := append(make([]byte, 0, len(plain)/3+64), plain[:gzipHeader]...)
	plain = plain[gzipHeader:]
	b = deflate(b, plain)
	b = binary.LittleEndian.AppendUint32(b, crc32.ChecksumIEEE(plain))
	return binary.LittleEndian.AppendUint32(b, uint32(len(plain)))
}
