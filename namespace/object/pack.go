package object

import (
	"fmt"
	"hash/crc32"
	"io"

	"coppice.dev/coppice/namespace"
)

const (
	packMagic       = "COPPCK1\n"
	packFooter      = 24
	packFrameBytes  = 12
	packChunkBytes  = namespace.DigestSize + 4
	packFramesLimit = namespace.PackBytesMax / packFrameBytes
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// PackWriter collects frames into a pack, in memory. Not safe for concurrent use.
type PackWriter struct {
	b      []byte
	frames []Frame
	chunks int
}

// NewPackWriter returns a writer of an empty pack.
func NewPackWriter() *PackWriter { return &PackWriter{b: []byte(packMagic)} }

// Add appends a frame: its stored bytes as [EncodeFrame] made them, the size of its plaintext and
// the chunks that lie in it, one after the other without gap. It copies stored, keeps chunks.
// Errors: Invalid (the frame could not be read back; nothing was added), Limit.
func (w *PackWriter) Add(stored []byte, c Codec, plain uint32, chunks []FrameChunk) error {
	f := Frame{Off: int64(len(w.b)), Len: uint32(len(stored)), Plain: plain, Codec: c, Chunks: chunks}
	if err := f.check(); err != nil {
		return namespace.E(namespace.Invalid, "add frame", "", err)
	}
	if w.Size()+int64(len(stored)+packFrameBytes+len(chunks)*packChunkBytes) > namespace.PackBytesMax {
		return namespace.E(namespace.Limit, "add frame", "", fmt.Errorf("a pack has at most %d bytes", namespace.PackBytesMax))
	}
	w.b = append(w.b, stored...)
	w.frames = append(w.frames, f)
	w.chunks += len(chunks)
	return nil
}

// Size returns the bytes that Finish would return now.
func (w *PackWriter) Size() int64 {
	return int64(len(w.b) + len(w.frames)*packFrameBytes + w.chunks*packChunkBytes + packFooter)
}

// Finish returns the pack, its digest and its frames. The writer is empty afterwards and may be
// used again; it shares no memory with what it returned.
func (w *PackWriter) Finish() (pack []byte, d namespace.Digest, frames []Frame) {
	start := len(w.b)
	for _, f := range w.frames {
		w.b = le.AppendUint32(w.b, f.Len)
		w.b = le.AppendUint32(w.b, f.Plain)
		w.b = le.AppendUint16(w.b, uint16(len(f.Chunks)))
		w.b = append(w.b, byte(f.Codec), 0)
	}
	for _, f := range w.frames {
		for _, c := range f.Chunks {
			w.b = append(w.b, c.Digest[:]...)
			w.b = le.AppendUint32(w.b, c.Len)
		}
	}
	sum := crc32.Checksum(w.b[start:], castagnoli)
	w.b = le.AppendUint32(w.b, uint32(len(w.frames)))
	w.b = le.AppendUint32(w.b, uint32(w.chunks))
	w.b = le.AppendUint32(w.b, sum)
	w.b = le.AppendUint32(w.b, 0)
	w.b = append(w.b, packMagic...)
	pack, frames = w.b, w.frames
	// Packs of one writer are of one size: what follows need not grow step by step.
	*w = PackWriter{b: append(make([]byte, 0, len(pack)), packMagic...)}
	return pack, namespace.Sum(pack), frames
}

// check holds the rules of a frame: chunks cover its plaintext one after the other, sizes are
// within limits, and compression is used if and only if it saved something.
func (f *Frame) check() error {
	var end uint32
	for i, c := range f.Chunks {
		if c.Off != end || c.Len == 0 || c.Len > namespace.ChunkBytesMax || c.Digest.IsZero() {
			return fmt.Errorf("chunk %d is [%d, +%d), the one before ends at %d", i, c.Off, c.Len, end)
		}
		if end += c.Len; end > namespace.FrameBytesMax {
			return fmt.Errorf("a frame of more than %d bytes", namespace.FrameBytesMax)
		}
	}
	switch {
	case len(f.Chunks) == 0 || len(f.Chunks) > namespace.FrameChunksMax || end != f.Plain:
		return fmt.Errorf("%d chunks of %d bytes in a frame of %d", len(f.Chunks), end, f.Plain)
	case f.Codec == Raw && f.Len != f.Plain,
		f.Codec == Zstd && (f.Len >= f.Plain || f.Len == 0),
		f.Codec >= codecEnd:
		return fmt.Errorf("codec %d, %d stored bytes for %d", f.Codec, f.Len, f.Plain)
	}
	return nil
}

// ReadPackDirectory returns the frames of the pack r of size bytes, in order, having checked that
// they cover it without gap or overlap and are within limits. It reads the directory only; frames
// themselves are not verified. Errors: Corrupt, Limit, those of r.
func ReadPackDirectory(r io.ReaderAt, size int64) ([]Frame, error) {
	const op = "read pack directory"
	if size > namespace.PackBytesMax {
		return nil, namespace.E(namespace.Limit, op, "", fmt.Errorf("%d bytes, at most %d", size, namespace.PackBytesMax))
	}
	if size < int64(len(packMagic)+packFooter) {
		return nil, corrupt(op, "%d bytes are too few", size)
	}
	var foot [packFooter]byte
	if err := readAt(r, foot[:], size-packFooter); err != nil {
		return nil, err
	}
	nf, nc, sum := uint64(le.Uint32(foot[0:])), uint64(le.Uint32(foot[4:])), le.Uint32(foot[8:])
	length := nf*packFrameBytes + nc*packChunkBytes
	if string(foot[16:]) != packMagic || le.Uint32(foot[12:]) != 0 || nf > packFramesLimit ||
		length > uint64(size)-packFooter-uint64(len(packMagic)) {
		return nil, corrupt(op, "the footer makes no sense")
	}
	dir := make([]byte, length)
	if err := readAt(r, dir, size-packFooter-int64(length)); err != nil {
		return nil, err
	}
	if crc32.Checksum(dir, castagnoli) != sum {
		return nil, corrupt(op, "checksum mismatch")
	}
	return parseDirectory(dir, int(nf), int(nc), size-packFooter-int64(length))
}

// parseDirectory decodes nf frames and nc chunks; end is where the last frame must end.
func parseDirectory(dir []byte, nf, nc int, end int64) ([]Frame, error) {
	const op = "read pack directory"
	frames, all := make([]Frame, nf), make([]FrameChunk, nc)
	chunks := dir[nf*packFrameBytes:]
	off := int64(len(packMagic))
	for i := range frames {
		b := dir[i*packFrameBytes:][:packFrameBytes]
		n := int(le.Uint16(b[8:]))
		if n > len(all) || b[11] != 0 {
			return nil, corrupt(op, "frame %d has %d chunks, %d are left", i, n, len(all))
		}
		f := &frames[i]
		*f = Frame{Off: off, Len: le.Uint32(b), Plain: le.Uint32(b[4:]), Codec: Codec(b[10]), Chunks: all[:n:n]}
		var at uint32
		for k := range f.Chunks {
			c := FrameChunk{Digest: namespace.Digest(chunks[:32]), Off: at, Len: le.Uint32(chunks[32:])}
			f.Chunks[k], chunks = c, chunks[packChunkBytes:]
			if c.Len <= namespace.ChunkBytesMax { // else check refuses it; do not overflow first
				at += c.Len
			}
		}
		if err := f.check(); err != nil {
			return nil, corrupt(op, "frame %d: %w", i, err)
		}
		all = all[n:]
		off += int64(f.Len)
	}
	if off != end || len(all) != 0 {
		return nil, corrupt(op, "frames end at %d, the directory begins at %d; %d chunks in no frame", off, end, len(all))
	}
	return frames, nil
}

func readAt(r io.ReaderAt, b []byte, off int64) error {
	if n, err := r.ReadAt(b, off); n < len(b) {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return namespace.E(namespace.KindOf(err), "read pack directory", "", err)
	}
	return nil
}
