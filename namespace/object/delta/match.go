package delta

import (
	"encoding/binary"
	"math/bits"
)

// step is one instruction of a patch: differ bytes of the new file are those of the old one at
// from, changed in few places; fresh bytes after them are new.
type step struct {
	from, differ, fresh int
}

const (
	// gram is how many bytes in a row a match must share with the old file to be looked for: a
	// shorter one costs more to describe than it saves.
	gram = 8
	// keep is a run of equal bytes that is reason enough to stay where the old file is being
	// followed, without a search for something better.
	keep = 32
	// gain is by how many bytes a match must beat the place that is being followed.
	gain = 8
	// matchMax bounds what is compared for one search, so that runs of one byte cost no square.
	matchMax = 1 << 16
)

// matcher finds the longest match in an old file.
type matcher struct {
	old   []byte
	sa    []int32
	first []int32  // where the suffixes that start with two given bytes begin in sa
	grams []uint64 // a set: hashes of all runs of gram bytes
	shift uint
}

func newMatcher(old []byte) *matcher {
	m := &matcher{old: old, sa: make([]int32, len(old)), first: make([]int32, 1<<16+1)}
	suffixArray(old, m.sa)
	m.index()
	return m
}

func (m *matcher) index() {
	// A suffix of one byte sorts before those of two that start with it.
	for i := range m.old {
		pair := int(m.old[i]) << 8
		if i+1 < len(m.old) {
			pair |= int(m.old[i+1])
		}
		m.first[pair+1]++
	}
	for i := range 1 << 16 {
		m.first[i+1] += m.first[i]
	}
	size := max(10, bits.Len(uint(len(m.old)))+2)
	m.grams, m.shift = make([]uint64, 1<<(size-6)), uint(64-size)
	for i := 0; i+gram <= len(m.old); i++ {
		h := m.hash(m.old[i:])
		m.grams[h>>6] |= 1 << (h & 63)
	}
}

func (m *matcher) hash(b []byte) uint64 {
	return binary.LittleEndian.Uint64(b) * 0x9E3779B97F4A7C15 >> m.shift
}

// longest returns where in the old file the longest match of the beginning of b is, and its
// length; 0 if it is surely shorter than gram.
func (m *matcher) longest(b []byte) (at, length int) {
	if len(b) < gram {
		return 0, 0
	}
	if h := m.hash(b); m.grams[h>>6]>>(h&63)&1 == 0 {
		return 0, 0
	}
	pair := int(b[0])<<8 | int(b[1])
	lo, hi := int(m.first[pair]), int(m.first[pair+1])
	if lo == hi {
		return 0, 0
	}
	// The longest match is a neighbour of where b would be. Both ends' matches are known, so only
	// what is beyond the shorter of them needs to be compared.
	loLen, hiLen := 0, 0
	l, h := lo-1, hi
	for h-l > 1 {
		mid := int(uint(l+h) >> 1)
		p := int(m.sa[mid])
		k := min(loLen, hiLen)
		k += common(m.old[p+k:], b[k:])
		if k > length {
			at, length = p, k
		}
		if k == len(b) || k >= matchMax {
			break
		}
		if p+k == len(m.old) || m.old[p+k] < b[k] {
			l, loLen = mid, k
		} else {
			h, hiLen = mid, k
		}
	}
	return at, length
}

// common returns how many bytes a and b have in common at their beginning, at most matchMax.
func common(a, b []byte) int {
	n := min(len(a), len(b), matchMax)
	a, b = a[:n], b[:n]
	i := 0
	for ; i+8 <= n; i += 8 {
		if x := binary.LittleEndian.Uint64(a[i:]) ^ binary.LittleEndian.Uint64(b[i:]); x != 0 {
			return i + bits.TrailingZeros64(x)>>3
		}
	}
	for i < n && a[i] == b[i] {
		i++
	}
	return i
}

// follower walks through the new file along places of the old one (Percival, "Naive differences of
// executable code", 2003): a place is left for a match only if that is longer by gain than what
// the place would give, and every step then grows into both directions as long as more than half
// of the bytes are equal.
type follower struct {
	m    *matcher
	new  []byte
	emit func(step)

	last, from int // the current step: start in the new file, and in the old one
}

// steps calls emit for the steps that make new, in order.
func (m *matcher) steps(new []byte, emit func(step)) {
	f := follower{m: m, new: new, emit: emit}
	for scan := 0; ; {
		at, next := f.search(scan)
		f.jump(next, at)
		if next == len(new) {
			return
		}
		scan = next + common(m.old[at:], new[next:]) // what the new place certainly gives
	}
}

// search returns the next position of the new file at which another place of the old one is worth
// going to, and that place; the end if there is none.
func (f *follower) search(scan int) (at, next int) {
	old, shift := f.m.old, f.from-f.last
	score, scored := 0, scan // equal bytes at the current place in [scan, scored)
	equalAt := func(i int) bool {
		j := i + shift
		return j < len(old) && old[j] == f.new[i]
	}
	for scan < len(f.new) {
		if j := scan + shift; j < len(old) && old[j] == f.new[scan] {
			if run := common(old[j:], f.new[scan:]); run >= keep || scan+run == len(f.new) {
				scan += run
				score, scored = 0, scan
				continue
			}
		}
		at, length := f.m.longest(f.new[scan:])
		for ; scored < scan+length; scored++ {
			if equalAt(scored) {
				score++
			}
		}
		if length > score+gain {
			return at, scan
		}
		if length > 0 && length == score { // it is the current place, or as good
			scan += length
			score, scored = 0, scan
			continue
		}
		if scored > scan {
			if equalAt(scan) {
				score--
			}
		} else {
			scored = scan + 1
		}
		scan++
	}
	return 0, len(f.new)
}

// jump ends the current step before next, where at begins, growing both towards each other.
func (f *follower) jump(next, at int) {
	old, forward, back := f.m.old, f.forward(next), 0
	if next < len(f.new) {
		back = f.backward(next, at)
	}
	if over := f.last + forward - (next - back); over > 0 {
		// Both would have these bytes: cut where the sum of equal ones is largest.
		score, best, cut := 0, 0, 0
		a, b := f.from+forward-over, at-back
		for i := range over {
			c := f.new[next-back+i]
			if old[a+i] == c {
				score++
			}
			if old[b+i] == c {
				score--
			}
			if score > best {
				best, cut = score, i+1
			}
		}
		forward += cut - over
		back -= cut
	}
	fresh := next - back - (f.last + forward)
	if forward+fresh > 0 {
		f.emit(step{f.from, forward, fresh})
	}
	f.last, f.from = next-back, at-back
}

// forward returns how far the current step is worth following, at most to next.
func (f *follower) forward(next int) int {
	score, best, length := 0, 0, 0
	end := min(next-f.last, len(f.m.old)-f.from)
	old, new := f.m.old[f.from:], f.new[f.last:]
	for i := 0; i < end; i++ {
		if old[i] == new[i] {
			score++
		}
		if value := 2*score - (i + 1); value > best {
			best, length = value, i+1
		}
	}
	return length
}

// backward returns how much of what is before next the place at is worth.
func (f *follower) backward(next, at int) int {
	score, best, length := 0, 0, 0
	end := min(next-f.last, at)
	for i := 1; i <= end; i++ {
		if f.m.old[at-i] == f.new[next-i] {
			score++
		}
		if value := 2*score - i; value > best {
			best, length = value, i
		}
	}
	return length
}
