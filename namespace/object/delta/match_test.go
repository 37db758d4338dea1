package delta

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"testing"
)

// edited returns b with n small changes: bytes replaced, inserted and removed.
func edited(r *rand.Rand, b []byte, n int) []byte {
	b = slices.Clone(b)
	for range n {
		at := r.IntN(len(b) + 1)
		switch r.IntN(3) {
		case 0:
			b = slices.Insert(b, at, byte(r.Uint32()), byte(r.Uint32()))
		case 1:
			b = slices.Delete(b, at, min(len(b), at+r.IntN(30)))
		case 2:
			if at < len(b) {
				b[at]++
			}
		}
	}
	return b
}

func random(r *rand.Rand, n, letters int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.IntN(letters))
	}
	return b
}

func TestStepsCoverTheNewFile(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for i := range 100 {
		old := random(r, r.IntN(5000), 2+i%250)
		new := edited(r, old, r.IntN(20))
		at := 0
		newMatcher(old).steps(new, func(s step) {
			if s.from < 0 || s.differ < 0 || s.fresh < 0 || s.from+s.differ > len(old) {
				t.Fatalf("step %+v of %d old bytes", s, len(old))
			}
			at += s.differ + s.fresh
		})
		if at != len(new) {
			t.Fatalf("steps make %d bytes of %d", at, len(new))
		}
	}
}

func TestLongestMatch(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	old := random(r, 3000, 3)
	m := newMatcher(old)
	for range 500 {
		at := r.IntN(len(old) - 100)
		b := edited(r, old[at:at+100], 1)
		got, length := m.longest(b)
		if length > 0 && common(old[got:], b) != length {
			t.Fatalf("a match of %d bytes at %d has %d", length, got, common(old[got:], b))
		}
		for i := range old {
			if n := common(old[i:], b); n > length && n >= gram {
				t.Fatalf("a match of %d bytes at %d, %d at %d was missed", length, got, n, i)
			}
		}
	}
	if _, n := m.longest(bytes.Repeat([]byte{9}, 50)); n != 0 {
		t.Fatalf("a match of %d bytes that are not there", n)
	}
}
