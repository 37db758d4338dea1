package delta

import (
	"bytes"
	"math/rand/v2"
	"testing"
)

func TestSuffixArray(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for n := range 400 {
		for _, letters := range []int{1, 2, 3, 256} {
			s := make([]byte, n)
			for i := range s {
				s[i] = byte(r.IntN(letters))
			}
			checkSuffixes(t, s)
		}
	}
	checkSuffixes(t, []byte("mississippi"))
	checkSuffixes(t, bytes.Repeat([]byte("abracadabra"), 500))
}

func checkSuffixes(t *testing.T, s []byte) {
	t.Helper()
	sa := make([]int32, len(s))
	suffixArray(s, sa)
	seen := make([]bool, len(s))
	for i, p := range sa {
		if p < 0 || int(p) >= len(s) || seen[p] {
			t.Fatalf("%q: entry %d is %d", s, i, p)
		}
		seen[p] = true
		if i > 0 && bytes.Compare(s[sa[i-1]:], s[p:]) >= 0 {
			t.Fatalf("%q: suffixes %d and %d are not in order", s, sa[i-1], p)
		}
	}
}
