package delta

import (
	"encoding/binary"
	"slices"
	"sort"
)

// A program that was linked anew differs mostly in addresses: what moved is called and pointed to
// elsewhere. How far every part moved is known from the steps, so the addresses in old bytes can be
// predicted; what is predicted wrongly becomes a change, as any other byte that differs.
type predictor struct {
	old   []byte
	moved []move // sorted by from
	// Where the table of the unwinder is, which holds addresses relative to its own start, and the
	// frames that follow it, which hold them relative to themselves; both are 0 if there is none.
	table, tableEnd int
}

// move says that old bytes [from, end) are by further in the new file.
type move struct{ from, end, by int }

const (
	elfHeader  = 64
	elfMagic   = "\x7fELF\x02\x01" // 64 bits, little endian
	elfMachine = 18
	elfX86     = 62
	elfUnwind  = 0x6474e550
	// pointerMin is the least that is taken for a pointer: smaller numbers are more likely counts.
	pointerMin = 4096
	// unwindRatio is how many times the table its frames take at most.
	unwindRatio = 12
)

func isProgram(b []byte) bool {
	return len(b) > elfHeader && string(b[:6]) == elfMagic && binary.LittleEndian.Uint16(b[elfMachine:]) == elfX86
}

func newPredictor(old []byte, steps []step) *predictor {
	p := &predictor{old: old}
	var all []move
	at := 0
	for _, s := range steps {
		if s.differ > 0 {
			all = append(all, move{s.from, s.from + s.differ, at - s.from})
		}
		at += s.differ + s.fresh
	}
	slices.SortStableFunc(all, func(a, b move) int { return a.from - b.from })
	// Where steps share old bytes, the longer one says where they went: the other is a stray match.
	for _, m := range all {
		if last := len(p.moved) - 1; last >= 0 && m.from < p.moved[last].end {
			l := &p.moved[last]
			switch {
			case m.end-m.from > l.end-l.from:
				l.end = m.from
			case m.end > l.end:
				m.from = l.end
			default:
				continue
			}
		}
		p.moved = append(p.moved, m)
	}
	p.findTable()
	return p
}

// findTable reads the program headers, as far as they are within the file.
func (p *predictor) findTable() {
	if !isProgram(p.old) {
		return
	}
	size := uint64(len(p.old))
	off := binary.LittleEndian.Uint64(p.old[32:])
	for range binary.LittleEndian.Uint16(p.old[56:]) {
		if off > size || size-off < 56 {
			return
		}
		h := p.old[off:][:56]
		if start, n := binary.LittleEndian.Uint64(h[8:]), binary.LittleEndian.Uint64(h[32:]); binary.LittleEndian.Uint32(h) == elfUnwind && start < size && n <= size-start {
			p.table, p.tableEnd = int(start), int(start+n)
			return
		}
		off += 56
	}
}

// by returns how far what is at offset t of the old file moved, or what is before it did.
func (p *predictor) by(t int) int {
	i := sort.Search(len(p.moved), func(i int) bool { return p.moved[i].from > t })
	if i == 0 {
		return 0
	}
	return p.moved[i-1].by
}

// predict changes the addresses in b, which are the old bytes at from, to what they become at the
// offset at of the new file.
func (p *predictor) predict(b []byte, from, at int) {
	shift := at - from
	for i := 0; i+4 <= len(b); {
		i += p.field(b, i, from, shift)
	}
}

// field predicts the address at b[i:], if there is one, and returns how many bytes it has seen.
func (p *predictor) field(b []byte, i, from, shift int) int {
	here, size := from+i, len(p.old)
	if here&3 == 0 && p.tableEnd > 0 && here >= p.table {
		v := int(int32(binary.LittleEndian.Uint32(b[i:])))
		switch {
		case here >= p.tableEnd+unwindRatio*(p.tableEnd-p.table):
		case here < p.tableEnd:
			if t := p.table + v; here >= p.table+12 && t >= 0 && t < size {
				put32(b[i:], v+p.by(t)-p.by(p.table))
			}
			return 4
		case v < 0 && here+v >= 0:
			put32(b[i:], v+p.by(here+v)-shift)
			return 4
		}
	}
	if here&7 == 0 && i+8 <= len(b) {
		if v := binary.LittleEndian.Uint64(b[i:]); v >= pointerMin && v < uint64(size) {
			binary.LittleEndian.PutUint64(b[i:], v+uint64(p.by(int(v))))
			return 8
		}
	}
	if i > 0 && isBranch(b, i) {
		v := int(int32(binary.LittleEndian.Uint32(b[i:])))
		if t := here + 4 + v; t >= 0 && t < size {
			put32(b[i:], v+p.by(t)-shift)
			return 4
		}
	}
	return 1
}

func put32(b []byte, v int) { binary.LittleEndian.PutUint32(b, uint32(v)) }

// isBranch reports whether what is before b[i:] looks like an instruction that is followed by a
// relative address: call, jmp, jcc, or any with a memory operand relative to itself.
func isBranch(b []byte, i int) bool {
	switch op := b[i-1]; {
	case op == 0xe8, op == 0xe9, op&0xc7 == 0x05:
		return true
	case op&0xf0 == 0x80:
		return i > 1 && b[i-2] == 0x0f
	}
	return false
}
