package delta

import (
	"encoding/binary"
	"fmt"

	"coppice.dev/coppice/namespace"
)

// encode returns the plaintext of the index.
func (o *Object) encode() []byte {
	bases, numbers := o.bases()
	b := append(make([]byte, 0, 64+len(o.Entries)*48), o.Catalog[:]...)
	b = binary.AppendUvarint(b, o.CatalogBytes)
	for _, n := range []int{len(o.Predecessors), len(bases), len(o.Frames), len(o.Entries)} {
		b = binary.AppendUvarint(b, uint64(n))
	}
	for _, d := range o.Predecessors {
		b = append(b, d[:]...)
	}
	for _, base := range bases {
		b = append(b, base...)
	}
	for _, f := range o.Frames {
		b = binary.AppendUvarint(b, uint64(f.Len))
		b = binary.AppendUvarint(b, uint64(f.Plain))
		b = binary.LittleEndian.AppendUint32(append(b, byte(f.Codec)), f.CRC)
	}
	hi := uint32(0)
	for _, e := range o.Entries {
		b = binary.AppendUvarint(b, uint64(e.Lo-hi))
		hi = e.Hi
	}
	for _, column := range entryColumns {
		for i := range o.Entries {
			b = binary.AppendUvarint(b, column(&o.Entries[i]))
		}
	}
	for i := range o.Entries {
		n := 0
		if o.Entries[i].Method == Difference {
			n = 1 + numbers[i]
		}
		b = binary.AppendUvarint(b, uint64(n))
	}
	return b
}

var entryColumns = []func(e *Entry) uint64{
	func(e *Entry) uint64 { return uint64(e.Hi - e.Lo) },
	func(e *Entry) uint64 { return e.Size },
	func(e *Entry) uint64 { return uint64(e.Frame) },
	func(e *Entry) uint64 { return uint64(e.Len) },
}

// bases returns the bases in their encoded form, each once, in order of first use, and which of
// them each entry has.
func (o *Object) bases() (bases []string, numbers []int) {
	known := map[string]int{}
	numbers = make([]int, len(o.Entries))
	for i, e := range o.Entries {
		if e.Method != Difference {
			continue
		}
		b := binary.AppendUvarint(nil, uint64(len(e.Base)))
		for _, x := range e.Base {
			if x.Digest.IsZero() {
				b = binary.AppendUvarint(b, x.Size<<1)
				continue
			}
			b = append(binary.AppendUvarint(b, x.Size<<1|1), x.Digest[:]...)
		}
		n, ok := known[string(b)]
		if !ok {
			n = len(bases)
			known[string(b)], bases = n, append(bases, string(b))
		}
		numbers[i] = n
	}
	return bases, numbers
}

// object reads an index. Frames start at the offset start of the object. Counts are held against
// the bytes that are left before anything is allocated.
func (r *cursor) object(start int64) (*Object, error) {
	o := &Object{Catalog: r.digest(), CatalogBytes: r.uvarint(FileBytesMax)}
	left := uint64(len(r.b))
	predecessors, bases := r.uvarint(left/namespace.DigestSize), r.uvarint(left/2)
	frames, entries := r.uvarint(left/7), r.uvarint(left/6)
	if r.bad || predecessors*namespace.DigestSize+bases+frames*7+entries*6 > uint64(len(r.b)) {
		return nil, fmt.Errorf("truncated, or impossible counts")
	}
	if o.CatalogBytes > 0 && (predecessors == 0 || frames == 0) {
		return nil, fmt.Errorf("the catalog is made from nothing")
	}
	o.Predecessors = make([]namespace.Digest, predecessors)
	for i := range o.Predecessors {
		o.Predecessors[i] = r.digest()
	}
	all := make([][]Extent, bases)
	for i := range all {
		var err error
		if all[i], err = r.base(); err != nil {
			return nil, fmt.Errorf("base %d %w", i, err)
		}
	}
	o.Frames = make([]Frame, frames)
	for i := range o.Frames {
		if err := r.frame(&o.Frames[i], start); err != nil {
			return nil, fmt.Errorf("frame %d %w", i, err)
		}
		start += int64(o.Frames[i].Len)
	}
	o.Entries = make([]Entry, entries)
	if err := r.entries(o, all); err != nil {
		return nil, err
	}
	if r.bad || len(r.b) > 0 {
		return nil, fmt.Errorf("truncated, or %d bytes after the end", len(r.b))
	}
	return o, nil
}

func (r *cursor) digest() (d namespace.Digest) {
	if len(r.b) < len(d) {
		r.bad, r.b = true, nil
		return d
	}
	copy(d[:], r.b)
	r.b = r.b[len(d):]
	return d
}

func (r *cursor) base() ([]Extent, error) {
	n := r.uvarint(uint64(len(r.b)))
	if n == 0 {
		return nil, fmt.Errorf("is truncated or empty")
	}
	var base []Extent // grows with what is really there
	total := uint64(0)
	for range n {
		v := r.uvarint(FileBytesMax<<1 | 1)
		x := Extent{Size: v >> 1}
		if v&1 != 0 {
			if x.Digest = r.digest(); x.Digest.IsZero() || x.Size > namespace.ChunkBytesMax {
				return nil, fmt.Errorf("has a chunk of %d bytes", x.Size)
			}
		}
		if len(base) > 0 && x.Digest.IsZero() && base[len(base)-1].Digest.IsZero() {
			return nil, fmt.Errorf("has two holes in a row")
		}
		if total += x.Size; r.bad || x.Size == 0 || total > FileBytesMax {
			return nil, fmt.Errorf("is truncated, has an empty extent or is too large")
		}
		base = append(base, x)
	}
	return base, nil
}

func (r *cursor) frame(f *Frame, start int64) error {
	f.Off, f.Len, f.Plain = start, uint32(r.uvarint(FrameBytesMax)), uint32(r.uvarint(FrameBytesMax))
	if len(r.b) < 5 {
		return fmt.Errorf("is truncated")
	}
	f.Codec, f.CRC, r.b = Codec(r.b[0]), binary.LittleEndian.Uint32(r.b[1:]), r.b[5:]
	if f.Plain == 0 || f.Len == 0 || f.Codec >= codecEnd || (f.Codec == Raw) != (f.Len == f.Plain) || f.Len > f.Plain {
		return fmt.Errorf("of %d bytes in %d, codec %d", f.Plain, f.Len, f.Codec)
	}
	return nil
}

// entries reads the columns and checks that entries are in order, that each frame is filled by its
// entries exactly, and that sizes are within bounds.
func (r *cursor) entries(o *Object, bases [][]Extent) error {
	for i := range o.Entries {
		o.Entries[i].Lo = uint32(r.uvarint(1<<32 - 1)) // a step until Hi is known
	}
	hi := uint64(0)
	for i := range o.Entries {
		e := &o.Entries[i]
		lo := hi + uint64(e.Lo)
		if hi = lo + r.uvarint(1<<32-1); hi == lo || hi > 1<<32-1 {
			return fmt.Errorf("entry %d makes no extent, or one that cannot be", i)
		}
		e.Lo, e.Hi = uint32(lo), uint32(hi)
	}
	for i := range o.Entries {
		if o.Entries[i].Size = r.uvarint(FileBytesMax); o.Entries[i].Size == 0 {
			return fmt.Errorf("entry %d is of an empty file", i)
		}
	}
	for i := range o.Entries {
		if o.Entries[i].Frame = uint32(r.uvarint(1<<32 - 1)); int(o.Entries[i].Frame) >= len(o.Frames) {
			return fmt.Errorf("entry %d is in no frame", i)
		}
	}
	filled := make([]uint32, len(o.Frames))
	if o.CatalogBytes > 0 {
		filled[0] = o.Frames[0].Plain
	}
	for i := range o.Entries {
		e := &o.Entries[i]
		e.Off, e.Len = filled[e.Frame], uint32(r.uvarint(FrameBytesMax))
		if e.Len == 0 || e.Len > o.Frames[e.Frame].Plain-e.Off {
			return fmt.Errorf("entry %d is empty, or outside its frame", i)
		}
		filled[e.Frame] += e.Len
	}
	for i, n := range filled {
		if n != o.Frames[i].Plain {
			return fmt.Errorf("frame %d has %d bytes that no entry uses", i, o.Frames[i].Plain-n)
		}
	}
	for i := range o.Entries {
		e := &o.Entries[i]
		switch n := r.uvarint(uint64(len(bases))); {
		case n > 0:
			e.Method, e.Base = Difference, bases[n-1]
		case uint64(e.Len) != e.Size:
			return fmt.Errorf("entry %d is plain, of %d bytes in %d", i, e.Size, e.Len)
		}
	}
	return nil
}
