package delta

import "math/bits"

// Blocks and their codes, as trees.c of gzip has them.
const (
	litLenCodes  = 286
	distCodes    = 30
	lenCodeCodes = 19
	endOfBlock   = 256
	heapSize     = 2*litLenCodes + 1
	blockSymbols = 32 << 10 // where a block ends at the latest
)

var (
	lenExtra  = [29]uint8{0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 0}
	distExtra = [30]uint8{0, 0, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 13, 13}
	codeExtra = [19]uint8{16: 2, 17: 3, 18: 7}
	codeOrder = [19]uint8{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15}

	lenBase, distBase = bases(lenExtra[:28]), bases(distExtra[:])
	staticLens        = func() (all [288]uint8) {
		for i := range all {
			switch {
			case i < 144 || i >= 280:
				all[i] = 8
			case i < 256:
				all[i] = 9
			default:
				all[i] = 7
			}
		}
		return all
	}()
	staticCodes = codes(staticLens[:], 287)
)

func bases(extra []uint8) []int {
	all, sum := make([]int, len(extra)+1), 0
	for i, e := range extra {
		all[i] = sum
		sum += 1 << e
	}
	all[len(extra)] = sum
	return all
}

// codeOf returns the last code whose base is not above v.
func codeOf(base []int, codes, v int) int {
	lo, hi := 0, codes
	for hi-lo > 1 {
		if mid := (lo + hi) / 2; base[mid] <= v {
			lo = mid
		} else {
			hi = mid
		}
	}
	return lo
}

func lenCode(n int) int {
	if n == maxMatch-minMatch {
		return 28
	}
	return codeOf(lenBase, 28, n)
}

func distCode(dist int) int { return codeOf(distBase, distCodes, dist) }

// symbol is a literal (dist 0) or a match: its length less minMatch, and its distance.
type symbol struct{ value, dist uint16 }

// blockWriter collects symbols and writes blocks.
type blockWriter struct {
	out  []byte
	bits uint64
	n    uint

	symbols  []symbol
	matches  int
	lit      [2 * heapSize]int // frequencies; room for the inner nodes
	dist     [2 * heapSize]int
	codeFreq [2 * heapSize]int

	optimal, static int // bits of the block with its own codes, and with the fixed ones
}

func (w *blockWriter) reset() {
	clear(w.lit[:])
	clear(w.dist[:])
	clear(w.codeFreq[:])
	w.lit[endOfBlock] = 1
	w.symbols, w.matches, w.optimal, w.static = w.symbols[:0], 0, 0, 0
}

// literal and match note a symbol and report whether the block should end; covered is how many
// bytes of input it has by then.
func (w *blockWriter) literal(c byte, covered int) bool {
	w.symbols = append(w.symbols, symbol{uint16(c), 0})
	w.lit[c]++
	return w.full(covered)
}

func (w *blockWriter) match(dist, length, covered int) bool {
	w.symbols = append(w.symbols, symbol{uint16(length), uint16(dist)})
	w.lit[lenCode(length)+endOfBlock+1]++
	w.dist[distCode(dist-1)]++
	w.matches++
	return w.full(covered)
}

func (w *blockWriter) full(covered int) bool {
	if len(w.symbols)&0xfff == 0 { // guess whether another block would be smaller
		size := len(w.symbols) * 8
		for c, e := range distExtra {
			size += w.dist[c] * (5 + int(e))
		}
		if w.matches < len(w.symbols)/2 && size>>3 < covered/2 {
			return true
		}
	}
	return len(w.symbols) == blockSymbols-1
}

func (w *blockWriter) put(v uint32, n uint) {
	w.bits |= uint64(v) << w.n
	for w.n += n; w.n >= 8; w.n -= 8 {
		w.out = append(w.out, byte(w.bits))
		w.bits >>= 8
	}
}

// align fills the last byte.
func (w *blockWriter) align() {
	if w.n > 0 {
		w.put(0, 8-w.n)
	}
}

// flush writes a block of size bytes in its smallest form; stored is nil where they are gone.
func (w *blockWriter) flush(stored []byte, size int, last bool) {
	lit := w.build(w.lit[:], litLenCodes, 15, lenExtra[:], endOfBlock+1, staticLens[:])
	static5 := make([]uint8, distCodes)
	for i := range static5 {
		static5[i] = 5
	}
	dist := w.build(w.dist[:], distCodes, 15, distExtra[:], 0, static5)
	lens := append(runs(lit), runs(dist)...)
	for _, r := range lens {
		w.codeFreq[r.code]++
	}
	code := w.build(w.codeFreq[:], lenCodeCodes, 7, codeExtra[:], 0, nil)
	used := lenCodeCodes
	for used > 4 && code.lens[codeOrder[used-1]] == 0 {
		used--
	}
	w.optimal += 3*used + 5 + 5 + 4
	end := uint32(0)
	if last {
		end = 1
	}
	optimal, static := (w.optimal+3+7)>>3, (w.static+3+7)>>3
	switch {
	case stored != nil && size+4 <= min(optimal, static):
		w.put(end, 3)
		w.align()
		w.out = append(w.out, byte(size), byte(size>>8), byte(^size), byte(^size>>8))
		w.out = append(w.out, stored...)
	case static <= optimal:
		w.put(1<<1|end, 3)
		w.body(tree{lens: staticLens[:], codes: staticCodes}, tree{lens: static5, codes: codes(static5, distCodes-1)})
	default:
		w.put(2<<1|end, 3)
		w.put(uint32(lit.max-256), 5)
		w.put(uint32(dist.max), 5)
		w.put(uint32(used-4), 4)
		for _, c := range codeOrder[:used] {
			w.put(uint32(code.lens[c]), 3)
		}
		for _, r := range lens {
			w.put(uint32(code.codes[r.code]), uint(code.lens[r.code]))
			w.put(uint32(r.extra), uint(codeExtra[r.code]))
		}
		w.body(lit, dist)
	}
	if last {
		w.align()
	}
	w.reset()
}

func (w *blockWriter) body(lit, dist tree) {
	for _, s := range w.symbols {
		if s.dist == 0 {
			w.put(uint32(lit.codes[s.value]), uint(lit.lens[s.value]))
			continue
		}
		c := lenCode(int(s.value))
		w.put(uint32(lit.codes[endOfBlock+1+c]), uint(lit.lens[endOfBlock+1+c]))
		if e := lenExtra[c]; e > 0 {
			w.put(uint32(int(s.value)-lenBase[c]), uint(e))
		}
		d := int(s.dist) - 1
		c = distCode(d)
		w.put(uint32(dist.codes[c]), uint(dist.lens[c]))
		w.put(uint32(d-distBase[c]), uint(distExtra[c]))
	}
	w.put(uint32(lit.codes[endOfBlock]), uint(lit.lens[endOfBlock]))
}

// run is a code of the lengths of codes.
type run struct{ code, extra uint8 }

// runs describes the lengths of t, whose repetitions are shortened.
func runs(t tree) (all []run) {
	prev, most, least, count := -1, 7, 4, 0
	if t.lens[0] == 0 {
		most, least = 138, 3
	}
	for i := 0; i <= t.max; i++ {
		cur, next := int(t.lens[i]), 0xffff
		if i < t.max {
			next = int(t.lens[i+1])
		}
		if count++; count < most && cur == next {
			continue
		}
		switch {
		case count < least:
			for range count {
				all = append(all, run{uint8(cur), 0})
			}
		case cur != 0:
			if cur != prev {
				all = append(all, run{uint8(cur), 0})
				count--
			}
			all = append(all, run{16, uint8(count - 3)})
		case count <= 10:
			all = append(all, run{17, uint8(count - 3)})
		default:
			all = append(all, run{18, uint8(count - 11)})
		}
		prev, count = cur, 0
		switch next {
		case 0:
			most, least = 138, 3
		case cur:
			most, least = 6, 3
		default:
			most, least = 7, 4
		}
	}
	return all
}

// tree is a set of prefix codes; max is the largest that is used.
type tree struct {
	lens  []uint8
	codes []uint16
	max   int
}

// codes returns the codes of given lengths, bits reversed, as they are written.
func codes(lens []uint8, last int) []uint16 {
	var next, count [16]uint16
	for _, n := range lens[:last+1] {
		count[n]++
	}
	count[0] = 0
	for n := 1; n < 16; n++ {
		next[n] = (next[n-1] + count[n-1]) << 1
	}
	all := make([]uint16, len(lens))
	for i, n := range lens[:last+1] {
		if n > 0 {
			all[i] = bits.Reverse16(next[n]) >> (16 - n)
			next[n]++
		}
	}
	return all
}
