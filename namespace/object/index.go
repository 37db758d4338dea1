package object

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"iter"
	"math/bits"
	"slices"
	"sort"

	"coppice.dev/coppice/namespace"
)

const (
	indexMagic      = "COPIDX1\n"
	indexHeader     = 32
	indexFrameBytes = 16
	indexRecBytes   = namespace.DigestSize + 8
	indexZstd       = 1 << 31 // in the plain size: the codec
)

// IndexRecord says where a chunk is.
type IndexRecord struct {
	Digest namespace.Digest
	Place  Place
}

// Index is a segment of an origin's chunk index: chunk digest to Place, for builders. It keeps the
// bytes it was opened on and nothing else. Immutable, safe for concurrent use.
type Index struct {
	packs, frames, recs []byte
}

// EncodeIndex returns a segment that covers packs and holds recs: header (magic; u32 packs, u32
// frames, u64 records, u64 zero), packs' digests sorted, frames of 16 B (u32 pack, u32 offset, u32
// length, u32 plain size with the codec in the highest bit) sorted, records of 40 B (digest, u32
// frame, u32 offset) sorted by digest. Of several places of one chunk the first is kept. The
// packs of recs are covered even if packs does not name them. It sorts recs in place.
func EncodeIndex(packs []namespace.Digest, recs []IndexRecord) []byte {
	packs = slices.Clone(packs)
	for i := range recs {
		if i == 0 || recs[i].Place.Pack != recs[i-1].Place.Pack {
			packs = append(packs, recs[i].Place.Pack)
		}
	}
	slices.SortFunc(packs, func(a, b namespace.Digest) int { return bytes.Compare(a[:], b[:]) })
	packs = slices.Compact(packs)
	number := make(map[namespace.Digest]uint32, len(packs))
	for i, d := range packs {
		number[d] = uint32(i)
	}
	slices.SortFunc(recs, compareRecords)
	recs = slices.CompactFunc(recs, func(a, b IndexRecord) bool { return a.Digest == b.Digest })
	frames, frameNumber := indexFrames(recs, number)

	b := make([]byte, indexHeader, indexHeader+len(packs)*32+len(frames)*indexFrameBytes+len(recs)*indexRecBytes)
	copy(b, indexMagic)
	le.PutUint32(b[8:], uint32(len(packs)))
	le.PutUint32(b[12:], uint32(len(frames)))
	le.PutUint64(b[16:], uint64(len(recs)))
	for _, d := range packs {
		b = append(b, d[:]...)
	}
	for _, f := range frames {
		b = le.AppendUint32(b, f.pack)
		b = le.AppendUint32(b, f.off)
		b = le.AppendUint32(b, f.len)
		b = le.AppendUint32(b, f.plain|uint32(f.codec)*indexZstd)
	}
	for _, r := range recs {
		b = append(b, r.Digest[:]...)
		b = le.AppendUint32(b, frameNumber[frameOf(r.Place, number)])
		b = le.AppendUint32(b, r.Place.Off)
	}
	return b
}

func frameOf(p Place, number map[namespace.Digest]uint32) placeFrame {
	return placeFrame{number[p.Pack], uint32(p.FrameOff), p.FrameLen, p.FramePlain, p.Codec}
}

// indexFrames returns the distinct frames of recs, sorted, and their numbers.
func indexFrames(recs []IndexRecord, number map[namespace.Digest]uint32) ([]placeFrame, map[placeFrame]uint32) {
	seen := map[placeFrame]uint32{}
	for _, r := range recs {
		seen[frameOf(r.Place, number)] = 0
	}
	frames := make([]placeFrame, 0, len(seen))
	for f := range seen {
		frames = append(frames, f)
	}
	slices.SortFunc(frames, compareFrames)
	for i, f := range frames {
		seen[f] = uint32(i)
	}
	return frames, seen
}

func compareFrames(a, b placeFrame) int {
	return cmp.Or(cmp.Compare(a.pack, b.pack), cmp.Compare(a.off, b.off), cmp.Compare(a.len, b.len),
		cmp.Compare(a.plain, b.plain), cmp.Compare(a.codec, b.codec))
}

func compareRecords(a, b IndexRecord) int {
	return cmp.Or(bytes.Compare(a.Digest[:], b.Digest[:]), bytes.Compare(a.Place.Pack[:], b.Place.Pack[:]),
		cmp.Compare(a.Place.FrameOff, b.Place.FrameOff), cmp.Compare(a.Place.Off, b.Place.Off))
}

// OpenIndex checks a segment and returns a view of b, which must stay unchanged. The caller has
// verified b's digest. Errors: Corrupt.
func OpenIndex(b []byte) (*Index, error) {
	const op = "open index"
	if len(b) < indexHeader || string(b[:8]) != indexMagic || le.Uint64(b[24:]) != 0 {
		return nil, corrupt(op, "not an index, or of a version this build does not know")
	}
	packs, frames, recs := uint64(le.Uint32(b[8:])), uint64(le.Uint32(b[12:])), le.Uint64(b[16:])
	rest := b[indexHeader:]
	if recs > uint64(len(rest))/indexRecBytes ||
		packs*32+frames*indexFrameBytes+recs*indexRecBytes != uint64(len(rest)) {
		return nil, corrupt(op, "%d bytes for %d packs, %d frames, %d records", len(rest), packs, frames, recs)
	}
	x := &Index{}
	x.packs, rest = rest[:packs*32], rest[packs*32:]
	x.frames, x.recs = rest[:frames*indexFrameBytes], rest[frames*indexFrameBytes:]
	if err := x.check(int(packs), int(frames)); err != nil {
		return nil, corrupt(op, "%w", err)
	}
	return x, nil
}

func (x *Index) check(packs, frames int) error {
	for i := 1; i < packs; i++ {
		if bytes.Compare(x.packs[(i-1)*32:i*32], x.packs[i*32:(i+1)*32]) >= 0 {
			return fmt.Errorf("packs out of order")
		}
	}
	var prev placeFrame
	for i := range frames {
		f := x.frame(uint32(i))
		if err := f.check(); err != nil {
			return err
		}
		if f.pack >= uint32(packs) || i > 0 && compareFrames(prev, f) >= 0 {
			return fmt.Errorf("frame %d names no pack or is out of order", i)
		}
		prev = f
	}
	used := make([]bool, frames)
	for i := range x.Len() {
		b := x.recs[i*indexRecBytes:][:indexRecBytes]
		f, off := le.Uint32(b[32:]), le.Uint32(b[36:])
		if f >= uint32(frames) || off >= x.frame(f).plain {
			return fmt.Errorf("record %d is in no frame", i)
		}
		if i > 0 && bytes.Compare(x.digest(i-1), b[:32]) >= 0 || namespace.Digest(b[:32]).IsZero() {
			return fmt.Errorf("record %d is out of order", i)
		}
		used[f] = true
	}
	if slices.Contains(used, false) {
		return fmt.Errorf("a frame that no record uses")
	}
	return nil
}

func (x *Index) frame(i uint32) placeFrame {
	b := x.frames[i*indexFrameBytes:][:indexFrameBytes]
	plain := le.Uint32(b[12:])
	return placeFrame{le.Uint32(b), le.Uint32(b[4:]), le.Uint32(b[8:]), plain &^ indexZstd, Codec(plain / indexZstd)}
}

func (x *Index) digest(i int) []byte { return x.recs[i*indexRecBytes:][:32] }

// Len returns the number of records.
func (x *Index) Len() int { return len(x.recs) / indexRecBytes }

// Record returns record i, 0 ≤ i < Len, in the order of digests.
func (x *Index) Record(i int) IndexRecord {
	b := x.recs[i*indexRecBytes:][:indexRecBytes]
	f := x.frame(le.Uint32(b[32:]))
	return IndexRecord{namespace.Digest(b[:32]), Place{
		Pack:     namespace.Digest(x.packs[f.pack*32:][:32]),
		FrameOff: int64(f.off), FrameLen: f.len, FramePlain: f.plain, Codec: f.codec,
		Off: le.Uint32(b[36:]),
	}}
}

// Lookup finds the place of chunk d.
func (x *Index) Lookup(d namespace.Digest) (Place, bool) {
	lo, hi := x.guess(d)
	i := lo + sort.Search(hi-lo, func(i int) bool { return bytes.Compare(x.digest(lo+i), d[:]) >= 0 })
	if i == x.Len() || !bytes.Equal(x.digest(i), d[:]) {
		return Place{}, false
	}
	return x.Record(i).Place, true
}

// guess returns a range of records that holds d's position. Digests are evenly spread, so that the
// position is known to about the square root of Len, and few cache lines are touched.
func (x *Index) guess(d namespace.Digest) (lo, hi int) {
	n := x.Len()
	at, _ := bits.Mul64(binary.BigEndian.Uint64(d[:]), uint64(n))
	lo, hi = int(at), int(at)
	for step := 16; lo > 0 && bytes.Compare(x.digest(lo), d[:]) >= 0; step *= 2 {
		lo = max(0, lo-step)
	}
	for step := 16; hi < n && bytes.Compare(x.digest(hi), d[:]) < 0; step *= 2 {
		hi = min(n, hi+step)
	}
	return lo, hi
}

// Packs returns the packs whose chunks the segment covers, sorted.
func (x *Index) Packs() []namespace.Digest {
	packs := make([]namespace.Digest, len(x.packs)/32)
	for i := range packs {
		packs[i] = namespace.Digest(x.packs[i*32:][:32])
	}
	return packs
}

// Records yields all records in the order of digests, for merging.
func (x *Index) Records() iter.Seq[IndexRecord] {
	return func(yield func(IndexRecord) bool) {
		for i := range x.Len() {
			if !yield(x.Record(i)) {
				return
			}
		}
	}
}
