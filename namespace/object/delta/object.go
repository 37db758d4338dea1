package delta

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"slices"

	"coppice.dev/coppice/namespace"
)

const (
	magic = "COPDLT1\n"
	// HeaderBytes is the size of a delta object's header, all that [Need] looks at.
	HeaderBytes = 24
	// IndexBytesMax bounds the index, decompressed: some hundred thousand files, and what it becomes
	// in memory is at most twelve times as much.
	IndexBytesMax = 16 << 20
	// FrameBytesMax bounds a frame, decompressed: what a reader of one file has to decode. A patch is
	// in one frame, so it bounds patches too.
	FrameBytesMax = 8 << 20
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func checksum(b []byte) uint32 { return crc32.Checksum(b, castagnoli) }

// Method says how an entry makes a file.
type Method uint8

// The methods.
const (
	// Plain is the file itself: it has no base, and gains from what it shares its frame with.
	Plain Method = iota
	// Difference is a patch on the base, see [Apply].
	Difference
	methodEnd
)

// Extent is a part of an old file: a chunk of Size bytes, or a hole if Digest is zero.
type Extent struct {
	Digest namespace.Digest
	Size   uint64
}

// Entry makes one file of the new catalog: the extents [Lo, Hi) of its chunk table, Size bytes
// with their holes. Base is the old file whose extents, one after the other, a Difference refers
// to. Off and Len say where in the plaintext of frame Frame the file or the patch is.
type Entry struct {
	Lo, Hi   uint32
	Size     uint64
	Method   Method
	Base     []Extent
	Frame    uint32
	Off, Len uint32
}

// BaseBytes returns the size of the old file.
func (e *Entry) BaseBytes() uint64 {
	var n uint64
	for _, x := range e.Base {
		n += x.Size
	}
	return n
}

// Frame is where a frame is stored in the object, and its size decompressed.
type Frame struct {
	Off   int64
	Len   uint32
	Plain uint32
	Codec Codec
	CRC   uint32 // CRC-32C of the stored bytes: a delta object's name says nothing about them
}

// Object is the index of a delta object. Catalog is the one whose chunks it makes; Predecessors
// are those the old files are from, whose own delta objects may make a base that is not there.
// Entries are sorted by Lo and do not overlap. If CatalogBytes is not 0, the catalog itself, of so
// many bytes, is made too, from the first of Predecessors: see [MakeCatalog]. Immutable, safe for
// concurrent use.
type Object struct {
	Catalog      namespace.Digest
	CatalogBytes uint64
	Predecessors []namespace.Digest
	Entries      []Entry
	Frames       []Frame
}

// Find returns the entry that makes extent k of the chunk table, if there is one. Of files with
// equal chunks, such as names of one file, only the first has an entry: whoever wants all looks
// through Entries for the digests that are missing, and has the others then.
func (o *Object) Find(k uint32) (*Entry, bool) {
	lo, hi := 0, len(o.Entries)
	for lo < hi {
		if mid := (lo + hi) / 2; o.Entries[mid].Hi <= k {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	if lo == len(o.Entries) || o.Entries[lo].Lo > k {
		return nil, false
	}
	return &o.Entries[lo], true
}

// Encode returns the bytes of a delta object (little endian):
//
//	header  24 B: magic "COPDLT1\n", u32 stored bytes of the index, u32 its plain size, u8 codec (0 raw, 1 brotli), 3 B zero,
//	        u32 CRC-32C of its stored bytes
//	index   compressed columns: the catalog's digest; uvarints: bytes of the catalog, predecessors, bases, frames, entries;
//	        predecessors' digests; per base: uvarint extents, then for each uvarint size × 2, plus 1
//	        and a digest unless it is a hole; frames: uvarint stored bytes, uvarint plain size, u8
//	        codec, u32 CRC-32C of the stored bytes; entries: columns of uvarints: step of Lo from the Hi before, extents, size, frame,
//	        bytes, 0 for Plain or 1 + the number of the base
//	frames  one after the other
//
// Of o it takes all but Frames, and of Entries all but Off and Len: payloads are the files or
// patches, which lie in their frames in the order of Entries. Bases are numbered by first use. If
// CatalogBytes is not 0, catalogPatch makes the catalog and is frame 0, which no entry may be in.
// Errors: Invalid (entries overlap or are out of order, a frame is empty or too large).
func Encode(o *Object, payloads [][]byte, catalogPatch []byte) ([]byte, error) {
	const op = "encode delta"
	if len(payloads) != len(o.Entries) {
		return nil, namespace.E(namespace.Invalid, op, o.Catalog.String(), fmt.Errorf("%d payloads for %d entries", len(payloads), len(o.Entries)))
	}
	x := *o
	x.Frames, x.Entries = nil, slices.Clone(o.Entries)
	var plain [][]byte
	if x.CatalogBytes > 0 {
		plain = append(plain, catalogPatch)
	}
	for i := range x.Entries {
		e := &x.Entries[i]
		if int(e.Frame) > len(x.Entries) || e.Frame == 0 && x.CatalogBytes > 0 {
			return nil, namespace.E(namespace.Invalid, op, o.Catalog.String(), fmt.Errorf("frame %d", e.Frame))
		}
		for int(e.Frame) >= len(plain) {
			plain = append(plain, nil)
		}
		e.Len = uint32(len(payloads[i]))
		plain[e.Frame] = append(plain[e.Frame], payloads[i]...)
	}
	var body []byte
	frames, codecs := packAll(plain)
	for i, f := range frames {
		x.Frames = append(x.Frames, Frame{Len: uint32(len(f)), Plain: uint32(len(plain[i])), Codec: codecs[i], CRC: checksum(f)})
		body = append(body, f...)
	}
	index := x.encode()
	stored, codec := pack(index)
	b := make([]byte, HeaderBytes, HeaderBytes+len(stored)+len(body))
	copy(b, magic)
	binary.LittleEndian.PutUint32(b[8:], uint32(len(stored)))
	binary.LittleEndian.PutUint32(b[12:], uint32(len(index)))
	b[16] = byte(codec)
	binary.LittleEndian.PutUint32(b[20:], checksum(stored))
	b = append(append(b, stored...), body...)
	if _, err := Open(b, o.Catalog); err != nil { // nothing is written that cannot be read
		return nil, namespace.E(namespace.Invalid, op, o.Catalog.String(), err)
	}
	return b, nil
}

// Need returns how many bytes of a delta object, from its beginning, [Open] wants, given the first
// HeaderBytes or more of it. Errors: Corrupt, Limit.
func Need(head []byte) (int64, error) {
	const op = "open delta"
	if len(head) < HeaderBytes || string(head[:8]) != magic || !bytes.Equal(head[17:20], make([]byte, 3)) {
		return 0, corrupt(op, "not a delta, or of a version this build does not know")
	}
	stored, plain := binary.LittleEndian.Uint32(head[8:]), binary.LittleEndian.Uint32(head[12:])
	if plain > IndexBytesMax || stored > plain {
		return 0, namespace.E(namespace.Limit, op, "", fmt.Errorf("an index of %d bytes in %d, at most %d", plain, stored, IndexBytesMax))
	}
	return HeaderBytes + int64(stored), nil
}

// Open decodes the index of the delta object of a catalog. head are its first [Need] bytes or more.
// Memory: some times the index, which is at most IndexBytesMax. Errors: Corrupt (it is none, is
// damaged or is another catalog's), Limit. Nothing in it is trusted: files that it makes are held
// against the catalog.
func Open(head []byte, catalog namespace.Digest) (*Object, error) {
	const op = "open delta"
	need, err := Need(head)
	if err != nil {
		return nil, err
	}
	if int64(len(head)) < need {
		return nil, corrupt(op, "%d bytes, want %d", len(head), need)
	}
	if checksum(head[HeaderBytes:need]) != binary.LittleEndian.Uint32(head[20:]) {
		return nil, corrupt(op, "its index has another checksum")
	}
	size := int64(binary.LittleEndian.Uint32(head[12:]))
	b, err := unpack(head[HeaderBytes:need], Codec(head[16]), size, IndexBytesMax)
	if err != nil {
		return nil, namespace.E(namespace.KindOf(err), op, "", err)
	}
	r := cursor{b: b}
	o, err := r.object(need)
	if err != nil {
		return nil, corrupt(op, "%w", err)
	}
	if o.Catalog != catalog {
		return nil, corrupt(op, "it is that of catalog %v", o.Catalog)
	}
	if !bytes.Equal(o.encode(), b) {
		return nil, corrupt(op, "not in canonical form")
	}
	return o, nil
}

// MakeCatalog returns the plaintext of the catalog of o, which the caller holds against its digest.
// base is the plaintext of the first of o.Predecessors, frame that of o.Frames[0]. Memory and errors:
// those of [Apply]. Safe for concurrent use.
func MakeCatalog(o *Object, base, frame []byte) ([]byte, error) {
	if o.CatalogBytes == 0 {
		return nil, namespace.E(namespace.NotExist, "make catalog", o.Catalog.String(), fmt.Errorf("its delta does not make it"))
	}
	return Apply(base, frame, int(o.CatalogBytes))
}

// DecodeFrame returns the plaintext of frame f, at most FrameBytesMax bytes, given its stored ones,
// [f.Off, f.Off+f.Len) of the object. Errors: Corrupt, Limit. Safe for concurrent use.
func DecodeFrame(f Frame, stored []byte) ([]byte, error) {
	if len(stored) != int(f.Len) {
		return nil, corrupt("decode frame", "%d bytes, want %d", len(stored), f.Len)
	}
	if checksum(stored) != f.CRC {
		return nil, corrupt("decode frame", "another checksum")
	}
	return unpack(stored, f.Codec, int64(f.Plain), FrameBytesMax)
}

// Make returns the new file of entry e, which the caller holds against the digests of its chunks.
// base is the old file, its holes as zeros; nil for Plain. frame is the plaintext of e's frame,
// which the result may alias. Memory: that of [Apply]. Errors: Corrupt, Limit. Safe for concurrent
// use.
func Make(e *Entry, base, frame []byte) ([]byte, error) {
	const op = "make file"
	if uint64(e.Off)+uint64(e.Len) > uint64(len(frame)) || uint64(len(base)) != e.BaseBytes() {
		return nil, corrupt(op, "%d bytes of base and %d of frame, other than its entry says", len(base), len(frame))
	}
	payload := frame[e.Off:][:e.Len:e.Len]
	if e.Method == Plain {
		if uint64(len(payload)) != e.Size {
			return nil, corrupt(op, "%d bytes, want %d", len(payload), e.Size)
		}
		return payload, nil
	}
	return Apply(base, payload, int(e.Size))
}
