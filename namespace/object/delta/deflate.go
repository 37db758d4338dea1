package delta

import "encoding/binary"

// What gzip -9 does, bit for bit: packages compress their documentation so, and no other encoder
// makes the same choices. The algorithm is that of deflate.c of gzip 1.2.4 and all that followed it
// (Gailly, 1993), with its sliding window, since what lies behind the end of the input, and what
// the window forgets when it slides, decide some matches.
const (
	windowSize   = 32 << 10
	minMatch     = 3
	maxMatch     = 258
	minLookahead = maxMatch + minMatch + 1
	maxDist      = windowSize - minLookahead
	tooFar       = 4096 // a match of three bytes this far costs more than three literals
	hashBits     = 15
	hashMask     = 1<<hashBits - 1
	hashShift    = (hashBits + minMatch - 1) / minMatch
	// Those of level 9.
	goodMatch = 32
	maxLazy   = 258
	niceMatch = 258
	maxChain  = 4096
)

// deflater is the state of deflate.c. Positions are in the window; 0 ends a chain.
type deflater struct {
	in     []byte
	eof    bool
	window [2*windowSize + maxMatch]byte
	prev   [windowSize]uint16
	head   [1 << hashBits]uint16

	hash                uint32
	start, lookahead    int // the next byte, and how many are known
	blockStart          int
	matchStart, matchAt int
	prevLength          int
	block               blockWriter
}

// deflate appends to dst what gzip -9 makes of in, without header and trailer.
func deflate(dst, in []byte) []byte {
	d := &deflater{in: in}
	d.block.out = dst
	d.block.reset()
	d.fill()
	for d.lookahead < minLookahead && !d.eof {
		d.fill()
	}
	for i := range minMatch - 1 {
		d.roll(d.window[i])
	}
	d.run()
	return d.block.out
}

// fill moves the window if half of it is used, and reads as much as there is room for.
func (d *deflater) fill() {
	more := 2*windowSize - d.lookahead - d.start
	if d.start >= windowSize+maxDist {
		copy(d.window[:windowSize], d.window[windowSize:2*windowSize])
		d.matchStart -= windowSize
		d.start -= windowSize
		d.blockStart -= windowSize
		for i, p := range d.head {
			d.head[i] = slid(p)
		}
		for i, p := range d.prev {
			d.prev[i] = slid(p)
		}
		more += windowSize
	}
	if d.eof {
		return
	}
	at := d.start + d.lookahead
	n := copy(d.window[at:at+more], d.in)
	d.in = d.in[n:]
	d.lookahead += n
	if n == 0 {
		d.eof = true
		clear(d.window[at : at+minMatch-1])
	}
}

func slid(p uint16) uint16 {
	if p >= windowSize {
		return p - windowSize
	}
	return 0
}

func (d *deflater) roll(c byte) { d.hash = (d.hash<<hashShift ^ uint32(c)) & hashMask }

// insert adds the string at d.start to its chain and returns the one before it.
func (d *deflater) insert() int {
	d.roll(d.window[d.start+minMatch-1])
	first := d.head[d.hash]
	d.prev[d.start&(windowSize-1)] = first
	d.head[d.hash] = uint16(d.start)
	return int(first)
}

// longest returns the length of the longest match in the chain from p on, if it exceeds
// d.prevLength, and sets d.matchStart.
func (d *deflater) longest(p int) int {
	chain, best := maxChain, d.prevLength
	if best >= goodMatch {
		chain >>= 2
	}
	window, limit := &d.window, max(0, d.start-maxDist)
	// Most candidates are refused by the two bytes that would make them longer than the best one.
	begin, end := pair(window, d.start), pair(window, d.start+best-1)
	for {
		if pair(window, p+best-1) == end && pair(window, p) == begin {
			if n := common(window[p:p+maxMatch], window[d.start:d.start+maxMatch]); n > best {
				d.matchStart, best = p, n
				if n >= niceMatch {
					return best
				}
				end = pair(window, d.start+best-1)
			}
		}
		if p = int(d.prev[p&(windowSize-1)]); p <= limit {
			return best
		}
		if chain--; chain == 0 {
			return best
		}
	}
}

func pair(window *[2*windowSize + maxMatch]byte, at int) uint16 {
	return binary.LittleEndian.Uint16(window[at:])
}

// run compresses everything: a match is only taken if none longer starts at the next byte.
func (d *deflater) run() {
	length, available := minMatch-1, false
	for d.lookahead != 0 {
		first := d.insert()
		d.prevLength, d.matchAt = length, d.matchStart
		length = minMatch - 1
		if first != 0 && d.prevLength < maxLazy && d.start-first <= maxDist && d.start <= 2*windowSize-minLookahead {
			length = min(d.longest(first), d.lookahead)
			if length == minMatch && d.start-d.matchStart > tooFar {
				length--
			}
		}
		switch {
		case d.prevLength >= minMatch && length <= d.prevLength:
			full := d.block.match(d.start-1-d.matchAt, d.prevLength-minMatch, d.start-d.blockStart)
			d.lookahead -= d.prevLength - 1
			for range d.prevLength - 2 {
				d.start++
				d.insert()
			}
			available, length = false, minMatch-1
			d.start++
			if full {
				d.flush(false)
			}
		case available:
			if d.block.literal(d.window[d.start-1], d.start-d.blockStart) {
				d.flush(false)
			}
			d.start++
			d.lookahead--
		default:
			available = true
			d.start++
			d.lookahead--
		}
		for d.lookahead < minLookahead && !d.eof {
			d.fill()
		}
	}
	if available {
		d.block.literal(d.window[d.start-1], d.start-d.blockStart)
	}
	d.flush(true)
}

// flush ends a block.
func (d *deflater) flush(last bool) {
	var stored []byte
	if d.blockStart >= 0 {
		stored = d.window[d.blockStart:d.start]
	}
	d.block.flush(stored, d.start-d.blockStart, last)
	d.blockStart = d.start
}
