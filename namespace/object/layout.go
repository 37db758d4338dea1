package object

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"coppice.dev/coppice/namespace"
)

const layoutMagic = "COPLAY1\n"

// Layout says where the content of a profile is for one root catalog, in the profile's order, so that an
// endpoint fetches it before it knows the tree: Catalogs are those that list the profile's files, Root
// among them, Chunks what is read. An object of class Blob, named by a signed record; what arrives is
// verified by the digests in it all the same. Immutable, safe for concurrent use.
type Layout struct {
	Root, Profile namespace.Digest
	Catalogs      []namespace.Digest
	Chunks        []LayoutChunk
}

// LayoutChunk is a chunk of Len bytes of plaintext and where it is.
type LayoutChunk struct {
	Digest namespace.Digest
	Len    uint32
	Place  Place
}

// Packs returns the packs that a layout names, in order of first use.
func (l *Layout) Packs() []namespace.Digest { return l.locator().Packs() }

// Frames returns how many frames a layout names, and their stored bytes: what fetching it costs.
func (l *Layout) Frames() (n int, stored uint64) {
	for _, f := range l.locator().frames {
		stored += uint64(f.len)
		n++
	}
	return n, stored
}

func (l *Layout) locator() *Locator {
	places := make([]Place, len(l.Chunks))
	for i, c := range l.Chunks {
		places[i] = c.Place
	}
	return NewLocator(places)
}

// check holds the rules of a layout: all that is named is something, once, and within its frame.
func (l *Layout) check() error {
	seen := make(map[namespace.Digest]bool, len(l.Chunks))
	for i, d := range l.Catalogs {
		if d.IsZero() || seen[d] {
			return fmt.Errorf("catalog %d is none, or there twice", i)
		}
		seen[d] = true
	}
	clear(seen)
	for i, c := range l.Chunks {
		if c.Digest.IsZero() || seen[c.Digest] {
			return fmt.Errorf("chunk %d is none, or there twice", i)
		}
		if seen[c.Digest] = true; c.Len == 0 || c.Len > namespace.ChunkBytesMax || c.Place.IsZero() ||
			uint64(c.Place.Off)+uint64(c.Len) > uint64(c.Place.FramePlain) {
			return fmt.Errorf("chunk %d: %d bytes at %d of a frame of %d", i, c.Len, c.Place.Off, c.Place.FramePlain)
		}
	}
	return nil
}

// EncodeLayout returns the canonical plaintext of a layout: magic; the digests of root and profile; a
// varint and the digests of catalogs; a varint, the digests and then the lengths of chunks, varints; then
// their places as a locator's plaintext. Kinds: Invalid, Limit.
func EncodeLayout(l *Layout) ([]byte, error) {
	if err := l.check(); err != nil {
		return nil, namespace.E(namespace.Invalid, "encode layout", l.Root.String(), err)
	}
	b := l.encode()
	if len(b) > namespace.LayoutBytesMax {
		return nil, namespace.E(namespace.Limit, "encode layout", l.Root.String(), fmt.Errorf("%d bytes, at most %d", len(b), namespace.LayoutBytesMax))
	}
	return b, nil
}

func (l *Layout) encode() []byte {
	b := append([]byte(layoutMagic), l.Root[:]...)
	b = append(b, l.Profile[:]...)
	b = binary.AppendUvarint(b, uint64(len(l.Catalogs)))
	for _, d := range l.Catalogs {
		b = append(b, d[:]...)
	}
	b = binary.AppendUvarint(b, uint64(len(l.Chunks)))
	for _, c := range l.Chunks {
		b = append(b, c.Digest[:]...)
	}
	for _, c := range l.Chunks {
		b = binary.AppendUvarint(b, uint64(c.Len))
	}
	return append(b, l.locator().encode()...)
}

// OpenLayout decodes the plaintext of a layout, of which nothing is kept. Kinds: Corrupt, Limit.
func OpenLayout(b []byte) (*Layout, error) {
	const op = "open layout"
	if len(b) > namespace.LayoutBytesMax {
		return nil, namespace.E(namespace.Limit, op, "", fmt.Errorf("%d bytes, at most %d", len(b), namespace.LayoutBytesMax))
	}
	if len(b) < len(layoutMagic)+2*namespace.DigestSize || string(b[:len(layoutMagic)]) != layoutMagic {
		return nil, corrupt(op, "not a layout, or of a version this build does not know")
	}
	c := cursor{b: b[len(layoutMagic):]}
	l := &Layout{Root: c.digest(), Profile: c.digest()}
	n := c.uvarint(uint64(len(c.b)) / namespace.DigestSize)
	l.Catalogs = make([]namespace.Digest, n)
	for i := range l.Catalogs {
		l.Catalogs[i] = c.digest()
	}
	n = c.uvarint(uint64(len(c.b)) / (namespace.DigestSize + 1))
	l.Chunks = make([]LayoutChunk, n)
	for i := range l.Chunks {
		l.Chunks[i].Digest = c.digest()
	}
	for i := range l.Chunks {
		l.Chunks[i].Len = uint32(c.uvarint(namespace.ChunkBytesMax))
	}
	if c.bad || !bytes.HasPrefix(c.b, []byte(locatorMagic)) {
		return nil, corrupt(op, "truncated, or impossible counts")
	}
	c.b = c.b[len(locatorMagic):]
	places, err := c.locator()
	if err == nil && places.Len() != len(l.Chunks) {
		err = fmt.Errorf("%d places for %d chunks", places.Len(), len(l.Chunks))
	}
	if err != nil {
		return nil, corrupt(op, "%w", err)
	}
	for i := range l.Chunks {
		l.Chunks[i].Place = places.Place(i)
	}
	if err := l.check(); err != nil {
		return nil, corrupt(op, "%w", err)
	}
	if !bytes.Equal(l.encode(), b) {
		return nil, corrupt(op, "not in canonical form")
	}
	return l, nil
}

// digest reads one; after the first failure the zero Digest.
func (c *cursor) digest() (d namespace.Digest) {
	if c.bad = c.bad || len(c.b) < len(d); c.bad {
		return d
	}
	c.b = c.b[copy(d[:], c.b):]
	return d
}
