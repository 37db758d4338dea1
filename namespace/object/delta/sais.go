package delta

// suffixArray fills sa with the start offsets of all suffixes of s in lexicographic order, by
// induced sorting (Nong, Zhang and Chan, "Two Efficient Algorithms for Linear Time Suffix Array
// Construction", 2009): linear time, and besides sa only a bit for each byte of s. len(sa) must be
// len(s), which fits an int32. The standard library sorts suffixes too, but does not hand out
// their order.
func suffixArray(s []byte, sa []int32) {
	if len(s) == 0 {
		return
	}
	induced(s, sa, 256)
}

// induced is suffixArray for any alphabet of k letters. A suffix is of type S if it sorts before
// the one that starts a letter later, of type L if after; an S that follows an L is an LMS. The
// order of the LMS suffixes, found by recursion, induces that of all. The end of s counts as a
// letter smaller than any, which is in no bucket.
func induced[T byte | int32](s []T, sa []int32, k int) {
	n := len(s)
	counts, at := make([]int32, k), make([]int32, k)
	for _, c := range s {
		counts[c]++
	}
	lms := make([]uint64, n/64+1)
	clear(sa)
	fillMinus(sa)
	ends(counts, at)
	eachLMS(s, func(i int32) {
		lms[i>>6] |= 1 << (i & 63)
		c := s[i]
		at[c]--
		sa[at[c]] = i
	})
	induceAll(s, sa, counts, at)

	// Substrings from one LMS to the next are in order now; equal ones get one name.
	m := 0
	for _, p := range sa {
		if lms[p>>6]>>(p&63)&1 != 0 {
			sa[m] = p
			m++
		}
	}
	names := nameLMS(s, sa, m)
	order, text := sa[:m], sa[n-m:]
	if names < m {
		induced(text, order, names)
	} else {
		for i, name := range text {
			order[name] = int32(i)
		}
	}

	// The names' order is that of the LMS suffixes: induce the rest from it.
	j := m
	eachLMS(s, func(i int32) {
		j--
		text[j] = i
	})
	for i := range order {
		order[i] = text[order[i]]
	}
	fillMinus(sa[m:])
	ends(counts, at)
	for i := m - 1; i >= 0; i-- {
		p := sa[i]
		sa[i] = -1
		c := s[p]
		at[c]--
		sa[at[c]] = p
	}
	induceAll(s, sa, counts, at)
}

func fillMinus(sa []int32) {
	for i := range sa {
		sa[i] = -1
	}
}

// ends sets at to the end of each letter's bucket, starts to its start.
func ends(counts, at []int32) {
	var sum int32
	for c, n := range counts {
		sum += n
		at[c] = sum
	}
}

func starts(counts, at []int32) {
	var sum int32
	for c, n := range counts {
		at[c] = sum
		sum += n
	}
}

// eachLMS calls fn for the offset of every LMS suffix, from the last to the first.
func eachLMS[T byte | int32](s []T, fn func(i int32)) {
	sType := false // of suffix i+1; the last one is larger than the end, hence L
	for i := len(s) - 2; i >= 0; i-- {
		switch {
		case s[i] < s[i+1]:
			sType = true
		case s[i] > s[i+1]:
			if sType {
				fn(int32(i + 1))
			}
			sType = false
		}
	}
}

// induceAll sorts all suffixes into sa, which holds LMS suffixes at the ends of their buckets and
// -1 elsewhere.
func induceAll[T byte | int32](s []T, sa, counts, at []int32) {
	n := len(s)
	// L types, from left to right, starting with the one before the end.
	starts(counts, at)
	last := s[n-1]
	sa[at[last]] = int32(n - 1)
	at[last]++
	for i := range sa {
		if p := sa[i]; p > 0 {
			if c := s[p-1]; c >= s[p] {
				sa[at[c]] = p - 1
				at[c]++
			}
		}
	}
	// S types, from right to left, over the LMS that were only there to induce. In a bucket all S
	// follow all L, so one at or after the last S put there is an S.
	ends(counts, at)
	for i := n - 1; i >= 0; i-- {
		if p := sa[i]; p > 0 {
			if c, next := s[p-1], s[p]; c < next || c == next && at[c] <= int32(i) {
				at[c]--
				sa[at[c]] = p - 1
			}
		}
	}
}

// nameLMS names the m sorted LMS substrings in sa[:m] by their rank, equal ones alike, and leaves
// the names in sa[len(sa)-m:], in the order of the substrings in s. It returns how many there are.
func nameLMS[T byte | int32](s []T, sa []int32, m int) int {
	n := int32(len(s))
	rest := sa[m:]
	fillMinus(rest)
	// No two LMS are neighbours, so half an offset is a place of its own. First the lengths.
	next := n
	eachLMS(s, func(i int32) {
		rest[i>>1] = next - i + 1 // with the first letter of the next; the last one with the end
		next = i
	})
	names, prev, prevLen := int32(0), int32(-1), int32(0)
	for _, p := range sa[:m] {
		length := rest[p>>1]
		if prev < 0 || length != prevLen || p+length > n || prev+length > n || !equal(s[p:p+length], s[prev:prev+length]) {
			names++
			prev, prevLen = p, length
		}
		rest[p>>1] = names - 1
	}
	j := len(sa)
	for i := len(rest) - 1; i >= 0; i-- {
		if name := rest[i]; name >= 0 {
			j--
			sa[j] = name
		}
	}
	return int(names)
}

func equal[T byte | int32](a, b []T) bool {
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}
