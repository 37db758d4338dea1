package delta

// builder makes the codes of one tree: Huffman's, with ties broken by depth, lengths bounded.
type builder struct {
	freq  []int
	depth [2 * heapSize]uint8
	dad   [2 * heapSize]int
	lens  [2 * heapSize]int
	heap  [heapSize + 1]int
	n     int // in the heap, from 1
	top   int // what left the heap, from top on, by frequency
}

// build returns the codes for n frequencies, which it changes, none longer than limit bits, and adds
// the bits that they take to w.optimal, those of static to w.static. Codes from base on have
// extra bits.
func (w *blockWriter) build(freq []int, n, limit int, extra []uint8, base int, static []uint8) tree {
	b := &builder{freq: freq, top: heapSize}
	last := -1
	for i := range n {
		if freq[i] != 0 {
			b.n++
			b.heap[b.n], last = i, i
		}
	}
	for b.n < 2 { // a decoder wants two codes
		node := 0
		if last < 2 {
			last++
			node = last
		}
		b.n++
		b.heap[b.n] = node
		freq[node] = 1
		w.optimal--
		if static != nil {
			w.static -= int(static[node])
		}
	}
	for i := b.n / 2; i >= 1; i-- {
		b.sink(i)
	}
	b.join(n)
	b.lengths(last, limit)
	t := tree{lens: make([]uint8, n), max: last}
	for i := range last + 1 {
		if b.lens[i] == 0 {
			continue
		}
		t.lens[i] = uint8(b.lens[i])
		x := 0
		if i >= base {
			x = int(extra[i-base])
		}
		w.optimal += freq[i] * (b.lens[i] + x)
		if static != nil {
			w.static += freq[i] * (int(static[i]) + x)
		}
	}
	t.codes = codes(t.lens, last)
	return t
}

func (b *builder) smaller(i, j int) bool {
	return b.freq[i] < b.freq[j] || b.freq[i] == b.freq[j] && b.depth[i] <= b.depth[j]
}

func (b *builder) sink(k int) {
	v := b.heap[k]
	for j := k * 2; j <= b.n; j *= 2 {
		if j < b.n && b.smaller(b.heap[j+1], b.heap[j]) {
			j++
		}
		if b.smaller(v, b.heap[j]) {
			break
		}
		b.heap[k] = b.heap[j]
		k = j
	}
	b.heap[k] = v
}

// join makes inner nodes, from number node on, of the two least frequent until one is left.
func (b *builder) join(node int) {
	for {
		i := b.heap[1]
		b.heap[1] = b.heap[b.n]
		b.n--
		b.sink(1)
		j := b.heap[1]
		b.heap[b.top-1], b.heap[b.top-2] = i, j
		b.top -= 2
		b.freq[node] = b.freq[i] + b.freq[j]
		b.depth[node] = max(b.depth[i], b.depth[j]) + 1
		b.dad[i], b.dad[j] = node, node
		b.heap[1] = node
		node++
		b.sink(1)
		if b.n < 2 {
			b.top--
			b.heap[b.top] = b.heap[1]
			return
		}
	}
}

// lengths sets the lengths of the codes up to last, moving those over the limit up the tree.
func (b *builder) lengths(last, limit int) {
	var count [16]int
	over := 0
	b.lens[b.heap[b.top]] = 0
	for _, i := range b.heap[b.top+1 : heapSize] {
		n := b.lens[b.dad[i]] + 1
		if n > limit {
			n = limit
			over++
		}
		b.lens[i] = n
		if i <= last {
			count[n]++
		}
	}
	if over == 0 {
		return
	}
	for ; over > 0; over -= 2 {
		n := limit - 1
		for count[n] == 0 {
			n--
		}
		count[n]--
		count[n+1] += 2
		count[limit]--
	}
	at := heapSize
	for n := limit; n > 0; n-- {
		for k := count[n]; k > 0; {
			at--
			if i := b.heap[at]; i <= last {
				b.lens[i] = n
				k--
			}
		}
	}
}
