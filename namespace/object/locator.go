package object

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"coppice.dev/coppice/namespace"
)

const locatorMagic = "COPLOC1\n"

// Place is where a chunk's bytes are: plaintext offset Off of the frame at [FrameOff,
// FrameOff+FrameLen) of Pack, which has FramePlain bytes decompressed. The zero Place is nowhere:
// a hole.
type Place struct {
	Pack       namespace.Digest
	FrameOff   int64
	FrameLen   uint32
	FramePlain uint32
	Codec      Codec
	Off        uint32
}

// IsZero reports whether p is nowhere.
func (p Place) IsZero() bool { return p == Place{} }

// placeFrame is the part of a Place that chunks of one frame share; pack indexes a table.
type placeFrame struct {
	pack, off, len, plain uint32
	codec                 Codec
}

func (f placeFrame) check() error {
	if f.plain == 0 || f.plain > namespace.FrameBytesMax || f.len == 0 || f.len > f.plain ||
		uint64(f.off)+uint64(f.len) > namespace.PackBytesMax || f.codec >= codecEnd ||
		(f.codec == Raw) != (f.len == f.plain) {
		return fmt.Errorf("a frame of %d bytes at %d, %d decompressed, codec %d", f.len, f.off, f.plain, f.codec)
	}
	return nil
}

// Locator says where the chunks of one catalog are. A few bytes a chunk. Immutable, safe for
// concurrent use. Nothing in it is trusted.
type Locator struct {
	packs  []namespace.Digest
	frames []placeFrame
	places []placeRef
}

// placeRef is a chunk's frame, 1-based (0: a hole), and its offset in the plaintext.
type placeRef struct{ frame, off uint32 }

// NewLocator returns the locator of places, which are in the order of a catalog's chunk table.
// Packs and frames are numbered by first use, so equal places give equal bytes.
func NewLocator(places []Place) *Locator {
	l := &Locator{places: make([]placeRef, len(places))}
	packs, frames := map[namespace.Digest]uint32{}, map[placeFrame]uint32{}
	for i, p := range places {
		if p.IsZero() {
			continue
		}
		n, ok := packs[p.Pack]
		if !ok {
			n = uint32(len(l.packs))
			packs[p.Pack], l.packs = n, append(l.packs, p.Pack)
		}
		f := placeFrame{n, uint32(p.FrameOff), p.FrameLen, p.FramePlain, p.Codec}
		k, ok := frames[f]
		if !ok {
			k = uint32(len(l.frames))
			frames[f], l.frames = k, append(l.frames, f)
		}
		l.places[i] = placeRef{k + 1, p.Off}
	}
	return l
}

// Len returns the number of chunks.
func (l *Locator) Len() int { return len(l.places) }

// Packs returns the digests of all packs it refers to, in order of first use.
func (l *Locator) Packs() []namespace.Digest { return l.packs }

// Place returns where chunk i is, 0 ≤ i < Len; the zero Place for a hole.
func (l *Locator) Place(i int) Place {
	ref := l.places[i]
	if ref.frame == 0 {
		return Place{}
	}
	f := l.frames[ref.frame-1]
	return Place{
		Pack: l.packs[f.pack], FrameOff: int64(f.off), FrameLen: f.len, FramePlain: f.plain,
		Codec: f.codec, Off: ref.off,
	}
}

// EncodeLocator returns the stored form of a locator, a compressed blob of: magic; varints:
// places, packs, frames; the packs' digests; columns of varints for the frames: step of the pack
// index (signed), offset, length, plain size, codec; for the places: 0 for a hole or 1 + the step
// of the frame index (zigzag), then for all but holes the offset, relative to the place before if
// that is in the same frame (signed).
func EncodeLocator(places []Place) []byte { return EncodeBlob(NewLocator(places).encode()) }

func (l *Locator) encode() []byte {
	b := append(make([]byte, 0, 64+len(l.packs)*32+len(l.frames)*12+len(l.places)*4), locatorMagic...)
	for _, n := range []int{len(l.places), len(l.packs), len(l.frames)} {
		b = binary.AppendUvarint(b, uint64(n))
	}
	for _, d := range l.packs {
		b = append(b, d[:]...)
	}
	var pack uint32
	for _, f := range l.frames {
		b = binary.AppendVarint(b, int64(f.pack)-int64(pack))
		pack = f.pack
	}
	for _, column := range frameColumns {
		for i := range l.frames {
			b = binary.AppendUvarint(b, uint64(*column(&l.frames[i])))
		}
	}
	for _, f := range l.frames {
		b = append(b, byte(f.codec))
	}
	var frame uint32
	for _, p := range l.places {
		if p.frame == 0 {
			b = append(b, 0)
			continue
		}
		step := int64(p.frame) - int64(frame)
		b = binary.AppendUvarint(b, 1+uint64(step<<1^step>>63))
		frame = p.frame
	}
	var last placeRef
	for _, p := range l.places {
		if p.frame == 0 {
			continue
		}
		if p.frame != last.frame {
			last.off = 0
		}
		b = binary.AppendVarint(b, int64(p.off)-int64(last.off))
		last = p
	}
	return b
}

// frameColumns are the fields of a frame in the order of their columns.
var frameColumns = []func(*placeFrame) *uint32{
	func(f *placeFrame) *uint32 { return &f.off },
	func(f *placeFrame) *uint32 { return &f.len },
	func(f *placeFrame) *uint32 { return &f.plain },
}

// OpenLocator decodes a stored locator and checks that every place is within limits.
// Errors: Corrupt, Limit.
func OpenLocator(stored []byte) (*Locator, error) {
	const op = "open locator"
	b, err := decodeBlob(op, stored, namespace.LocatorBytesMax)
	if err != nil {
		return nil, err
	}
	if !bytes.HasPrefix(b, []byte(locatorMagic)) {
		return nil, corrupt(op, "not a locator, or of a version this build does not know")
	}
	c := cursor{b: b[len(locatorMagic):]}
	l, err := c.locator()
	if err != nil {
		return nil, corrupt(op, "%w", err)
	}
	places := make([]Place, l.Len())
	for i := range places {
		places[i] = l.Place(i)
	}
	if !bytes.Equal(NewLocator(places).encode(), b) {
		return nil, corrupt(op, "not in canonical form")
	}
	return l, nil
}

// cursor reads varints; after the first failure it only returns zeros.
type cursor struct {
	b   []byte
	bad bool
}

func (c *cursor) uvarint(limit uint64) uint64 {
	v, n := binary.Uvarint(c.b)
	if n <= 0 || v > limit {
		c.bad = true
		return 0
	}
	c.b = c.b[n:]
	return v
}

func (c *cursor) varint() int64 {
	v, n := binary.Varint(c.b)
	if n <= 0 {
		c.bad = true
		return 0
	}
	c.b = c.b[n:]
	return v
}

// locator reads the body. Counts are held against the bytes that are left before allocating.
func (c *cursor) locator() (*Locator, error) {
	left := uint64(len(c.b))
	places, packs, frames := c.uvarint(left), c.uvarint(left/namespace.DigestSize), c.uvarint(left/5)
	if c.bad || packs*namespace.DigestSize+frames*5+places > uint64(len(c.b)) {
		return nil, fmt.Errorf("truncated, or impossible counts")
	}
	l := &Locator{
		packs:  make([]namespace.Digest, packs),
		frames: make([]placeFrame, frames),
		places: make([]placeRef, places),
	}
	for i := range l.packs {
		l.packs[i], c.b = namespace.Digest(c.b[:32]), c.b[32:]
	}
	if err := c.frames(l); err != nil {
		return nil, err
	}
	if err := c.places(l); err != nil {
		return nil, err
	}
	if len(c.b) != 0 {
		return nil, fmt.Errorf("%d bytes after the end", len(c.b))
	}
	return l, nil
}

func (c *cursor) frames(l *Locator) error {
	var pack int64
	for i := range l.frames {
		if pack += c.varint(); c.bad || pack < 0 || pack >= int64(len(l.packs)) {
			return fmt.Errorf("frame %d names no pack", i)
		}
		l.frames[i].pack = uint32(pack)
	}
	for _, column := range frameColumns {
		for i := range l.frames {
			*column(&l.frames[i]) = uint32(c.uvarint(namespace.PackBytesMax))
		}
	}
	if c.bad || len(c.b) < len(l.frames) {
		return fmt.Errorf("truncated")
	}
	for i := range l.frames {
		l.frames[i].codec = Codec(c.b[i])
		if err := l.frames[i].check(); err != nil {
			return err
		}
	}
	c.b = c.b[len(l.frames):]
	return nil
}

func (c *cursor) places(l *Locator) error {
	var frame int64
	for i := range l.places {
		v := c.uvarint(1 << 34)
		if v == 0 {
			continue
		}
		v--
		if frame += int64(v>>1) ^ -int64(v&1); frame < 1 || frame > int64(len(l.frames)) {
			return fmt.Errorf("place %d names no frame", i)
		}
		l.places[i].frame = uint32(frame)
	}
	var last placeRef
	for i, p := range l.places {
		if p.frame == 0 {
			continue
		}
		if p.frame != last.frame {
			last.off = 0
		}
		off := int64(last.off) + c.varint()
		if off < 0 || off >= int64(l.frames[p.frame-1].plain) {
			return fmt.Errorf("place %d is outside its frame", i)
		}
		last = placeRef{p.frame, uint32(off)}
		l.places[i] = last
	}
	if c.bad {
		return fmt.Errorf("truncated")
	}
	return nil
}
