// Package delta makes new files from old ones: the difference of two files, and the delta object,
// which holds the differences that make the chunks of one catalog. It does no I/O, and only [Encode]
// works on several processors. Its decoders are strict and bounded (invariant N5), and nothing they make is to be
// trusted: the caller holds it against the digests of the new file's chunks (invariant N4).
//
// # Patch (version 1)
//
//	u8 kind: how the files are looked at, see [Kind]
//	uvarint size of the new content, if the kind is Gzip
//	uvarint steps, changes, fresh: lengths of the columns below
//	varint  × steps     where the old bytes of a step begin, from where those of the last one ended
//	uvarint × steps     how many they are
//	uvarint × steps     how many fresh bytes follow them
//	uvarint × changes   how many of the old bytes are equal before one that is not
//	u8      × changes   what is to be added to it, modulo 256
//	u8      × fresh     the fresh bytes of all steps
//
// Of relocated programs most bytes are equal and the others repeat; columns of their own let a
// general compressor see that, and they are a tenth of the bytes that a dense difference has.
//
// # Delta object
//
// See [Encode] for its layout, [Open] for reading one.
package delta

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"coppice.dev/coppice/namespace"
)

const (
	// FileBytesMax bounds the old and the new file of a difference, so that making it (six bytes
	// for each old one: [Memory]) and applying it (both files) stay within memory.
	FileBytesMax = 96 << 20
	// BitsBytesMax bounds the old file of a difference by bits: it is looked at eight times.
	BitsBytesMax = FileBytesMax / 8
)

// Kind says how a difference looks at the old file.
type Kind uint8

// The kinds.
const (
	// Bytes takes the old file as it is.
	Bytes Kind = iota
	// Bits takes the old file, followed by itself moved down by one to seven bits: fields of a bit
	// stream, such as compiled bitcode, are found again behind a field that became longer.
	Bits
	// Gzip takes the content of both files, each after the ten bytes of its header, if gzip -9 made the
	// new one: then it does so again. An old file that is not compressed is taken as it is.
	Gzip
	// Code takes both files as they are, and predicts the addresses in the old bytes from how far
	// the parts of the file moved: for programs.
	Code
	kindEnd
)

// ForFile returns the kind that suits a new file best, as far as its beginning says.
func ForFile(old, new []byte) Kind {
	const bitcode, gzipped = "BC\xc0\xde", "\x1f\x8b\x08\x00"
	switch {
	case bytes.HasPrefix(new, []byte(bitcode)) && len(old) <= BitsBytesMax/3: // it takes eight times as long
		return Bits
	case bytes.HasPrefix(new, []byte(gzipped)):
		return Gzip
	case isProgram(new):
		return Code
	}
	return Bytes
}

// Memory returns how many bytes making a difference of this kind takes at most, the two files
// included.
func Memory(k Kind, old, new int) int64 {
	o := int64(old)
	switch k {
	case Bits:
		o *= 9
	case Gzip:
		o += 2 * gunzipBytesMax
	}
	return 6*o + 2*int64(new) + 1<<20
}

func corrupt(op, format string, args ...any) error {
	return namespace.E(namespace.Corrupt, op, "", fmt.Errorf(format, args...))
}

// base returns what a difference of kind k refers to.
func (k Kind) base(old []byte) []byte {
	switch k {
	case Bits:
		return allShifts(old)
	case Gzip:
		if plain, ok := inflate(old); ok {
			return plain
		}
	}
	return old
}

func allShifts(old []byte) []byte {
	all := make([]byte, 8*len(old))
	n := copy(all, old)
	for shift := 1; shift < 8; shift++ {
		for i, b := range old {
			next := byte(0)
			if i+1 < len(old) {
				next = old[i+1]
			}
			all[n] = b>>shift | next<<(8-shift)
			n++
		}
	}
	return all
}

// fits returns an error if an old or a new file is too large for kind k.
func (k Kind) fits(op string, old, new int) error {
	limit := FileBytesMax
	if k == Bits {
		limit = BitsBytesMax
	}
	if old > limit || new > FileBytesMax {
		return namespace.E(namespace.Limit, op, "", fmt.Errorf("%d old bytes and %d new ones, at most %d and %d", old, new, limit, FileBytesMax))
	}
	return nil
}

// columns are the parts of a patch.
type columns struct {
	kind    Kind
	size    int // of the new content
	steps   []step
	gaps    []byte // uvarints
	changes []byte
	fresh   []byte
}

// Diff returns a patch that makes new from old. Time and memory ([Memory]) are linear in both.
// Equal input gives equal patches. Errors: Limit; Invalid (new is not what gzip -9 makes, and k is
// Gzip). Safe for concurrent use.
func Diff(k Kind, old, new []byte) ([]byte, error) {
	const op = "make difference"
	if err := k.fits(op, len(old), len(new)); err != nil {
		return nil, err
	}
	if k == Gzip {
		plain, ok := gunzip(new)
		if !ok {
			return nil, namespace.E(namespace.Invalid, op, "", fmt.Errorf("the new file is not one that gzip -9 makes"))
		}
		new = plain
	}
	base := k.base(old)
	c := columns{kind: k, size: len(new)}
	newMatcher(base).steps(new, func(s step) { c.steps = append(c.steps, s) })
	c.compare(base, new)
	return c.encode(), nil
}

// compare fills the columns of changes and fresh bytes, given the steps.
func (c *columns) compare(base, new []byte) {
	var p *predictor
	if c.kind == Code {
		p = newPredictor(base, c.steps)
	}
	at, gap := 0, uint64(0)
	var predicted []byte
	for _, s := range c.steps {
		was := base[s.from : s.from+s.differ]
		if p != nil {
			predicted = append(predicted[:0], was...)
			p.predict(predicted, s.from, at)
			was = predicted
		}
		for i, b := range new[at : at+s.differ] {
			if d := b - was[i]; d != 0 {
				c.gaps = binary.AppendUvarint(c.gaps, gap)
				c.changes = append(c.changes, d)
				gap = 0
			} else {
				gap++
			}
		}
		at += s.differ
		c.fresh = append(c.fresh, new[at:at+s.fresh]...)
		at += s.fresh
	}
}

func (c *columns) encode() []byte {
	b := make([]byte, 0, 64+len(c.steps)*8+len(c.gaps)+len(c.changes)+len(c.fresh))
	b = append(b, byte(c.kind))
	if c.kind == Gzip {
		b = binary.AppendUvarint(b, uint64(c.size))
	}
	for _, n := range []int{len(c.steps), len(c.changes), len(c.fresh)} {
		b = binary.AppendUvarint(b, uint64(n))
	}
	at := 0
	for _, s := range c.steps {
		b = binary.AppendVarint(b, int64(s.from-at))
		at = s.from + s.differ
	}
	for _, s := range c.steps {
		b = binary.AppendUvarint(b, uint64(s.differ))
	}
	for _, s := range c.steps {
		b = binary.AppendUvarint(b, uint64(s.fresh))
	}
	b = append(b, c.gaps...)
	b = append(b, c.changes...)
	return append(b, c.fresh...)
}

// decode reads a patch of kind k, without its first byte, for a base of a given size and a new file
// of size bytes, or of those it says if k is Gzip. Slices alias patch.
func decode(k Kind, patch []byte, base, size int) (*columns, error) {
	c := &columns{kind: k, size: size}
	r := cursor{b: patch}
	if k == Gzip {
		if c.size = int(r.uvarint(gzipHeader + gunzipBytesMax)); c.size < gzipHeader {
			return nil, fmt.Errorf("a compressed file without a header")
		}
	}
	left := uint64(len(r.b))
	steps, changes, fresh := r.uvarint(left/3), r.uvarint(left/2), r.uvarint(left)
	if r.bad || 3*steps+2*changes+fresh > uint64(len(r.b)) {
		return nil, fmt.Errorf("truncated, or impossible counts")
	}
	c.steps = make([]step, steps)
	if err := r.steps(c.steps, base, c.size, int(fresh)); err != nil {
		return nil, err
	}
	tail := uint64(len(r.b))
	if tail < changes+fresh {
		return nil, fmt.Errorf("truncated")
	}
	c.gaps = r.b[:tail-changes-fresh]
	c.changes = r.b[len(c.gaps):][:changes]
	c.fresh = r.b[uint64(len(c.gaps))+changes:]
	return c, nil
}

// steps reads the columns of steps and checks that they stay within the base, that the fresh bytes
// are as many as said, and that the new file comes out with size bytes.
func (r *cursor) steps(steps []step, base, size, fresh int) error {
	for i := range steps {
		steps[i].from = int(r.varint()) // relative until the lengths are known
	}
	for i := range steps {
		steps[i].differ = int(r.uvarint(FileBytesMax))
	}
	made, at := 0, 0
	for i := range steps {
		s := &steps[i]
		s.fresh = int(r.uvarint(uint64(fresh)))
		fresh -= s.fresh
		made += s.differ + s.fresh
		if r.bad || s.differ+s.fresh == 0 || made > size {
			return fmt.Errorf("step %d is truncated, empty or too large", i)
		}
		if s.from < -at || s.from > base-at || s.differ > base-at-s.from {
			return fmt.Errorf("step %d is outside the old file", i)
		}
		s.from += at
		at = s.from + s.differ
	}
	if fresh != 0 || made != size {
		return fmt.Errorf("steps make %d bytes, want %d, with %d fresh ones left", made, size, fresh)
	}
	return nil
}

// Apply returns the file of size bytes that patch makes from old. What is returned is to be held
// against a digest. Memory: the new file, and nine old ones if the patch is one of [Bits], or 75 MB
// if it is one of [Gzip]; the new file is allocated when patch is known to make size bytes. Errors:
// Limit (size or old exceeds the bounds), Corrupt (patch is none for such files). Safe for concurrent
// use.
func Apply(old, patch []byte, size int) ([]byte, error) {
	const op = "apply difference"
	if size < 0 || len(patch) == 0 || Kind(patch[0]) >= kindEnd {
		return nil, corrupt(op, "%d bytes, of a kind this build does not know", size)
	}
	k := Kind(patch[0])
	if err := k.fits(op, len(old), size); err != nil {
		return nil, err
	}
	base := k.base(old)
	c, err := decode(k, patch[1:], len(base), size)
	if err != nil {
		return nil, corrupt(op, "%w", err)
	}
	b, err := c.apply(base)
	if err != nil {
		return nil, corrupt(op, "%w", err)
	}
	if k == Gzip {
		if b = regzip(b); len(b) != size {
			return nil, corrupt(op, "%d bytes compressed, want %d", len(b), size)
		}
	}
	return b, nil
}

func (c *columns) apply(base []byte) ([]byte, error) {
	b := make([]byte, 0, c.size)
	gaps, changes, fresh := cursor{b: c.gaps}, c.changes, c.fresh
	next := func() int { // equal bytes before the next change
		if len(changes) == 0 {
			return FileBytesMax + 1
		}
		return int(gaps.uvarint(FileBytesMax))
	}
	var p *predictor
	if c.kind == Code {
		p = newPredictor(base, c.steps)
	}
	gap := next()
	for _, s := range c.steps {
		start := len(b)
		b = append(b, base[s.from:s.from+s.differ]...)
		differ := b[start:]
		if p != nil {
			p.predict(differ, s.from, start)
		}
		for gap < len(differ) && !gaps.bad {
			if changes[0] == 0 {
				return nil, fmt.Errorf("a change by nothing")
			}
			differ[gap] += changes[0]
			differ, changes = differ[gap+1:], changes[1:]
			gap = next()
		}
		gap -= len(differ)
		b = append(b, fresh[:s.fresh]...)
		fresh = fresh[s.fresh:]
	}
	if len(changes) > 0 || gaps.bad || len(gaps.b) > 0 {
		return nil, fmt.Errorf("changes after the end, or truncated")
	}
	return b, nil
}

// cursor reads varints; after the first failure it only returns zeros.
type cursor struct {
	b   []byte
	bad bool
}

func (c *cursor) uvarint(limit uint64) uint64 {
	if len(c.b) > 0 && c.b[0] < 0x80 && uint64(c.b[0]) <= limit { // most are small
		v := uint64(c.b[0])
		c.b = c.b[1:]
		return v
	}
	v, n := binary.Uvarint(c.b)
	if n <= 0 || v > limit || n > 1 && c.b[n-1] == 0 {
		c.bad, c.b = true, nil
		return 0
	}
	c.b = c.b[n:]
	return v
}

func (c *cursor) varint() int64 {
	v, n := binary.Varint(c.b)
	if n <= 0 || n > 1 && c.b[n-1] == 0 {
		c.bad, c.b = true, nil
		return 0
	}
	c.b = c.b[n:]
	return v
}
