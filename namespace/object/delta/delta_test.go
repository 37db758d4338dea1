package delta

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"testing"

	"coppice.dev/coppice/namespace"
)

func TestDiffApply(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 8))
	for i := range 100 {
		old := random(r, r.IntN(3000), 2+i%250)
		new := edited(r, old, r.IntN(10))
		for _, k := range []Kind{Bytes, Bits, Code} {
			patch, err := Diff(k, old, new)
			if err != nil {
				t.Fatal(err)
			}
			got, err := Apply(old, patch, len(new))
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, new) {
				t.Fatalf("kind %d: %d bytes came out wrong", k, len(new))
			}
		}
	}
}

// A bit put into a bit stream moves all that follows; the difference by bits does not care.
func TestBitsFindMovedBits(t *testing.T) {
	r := rand.New(rand.NewPCG(9, 10))
	old := random(r, 2000, 256)
	new := Bits.base(old)[3*2000:][:2000]
	patch, err := Diff(Bits, old, new)
	if err != nil {
		t.Fatal(err)
	}
	if len(patch) > 50 {
		t.Fatalf("%d bytes for bytes that are there, moved by three bits", len(patch))
	}
}

func TestApplyRefuses(t *testing.T) {
	old, new := []byte("the quick brown fox jumps over the lazy dog"), []byte("the quick brown cat jumps over the lazy hen")
	good, err := Diff(Bytes, old, new)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		patch []byte
		size  int
		want  namespace.Kind
	}{
		"nothing":              {nil, len(new), namespace.Corrupt},
		"unknown kind":         {append([]byte{99}, good[1:]...), len(new), namespace.Corrupt},
		"too short":            {good, len(new) + 1, namespace.Corrupt},
		"too long":             {good, len(new) - 1, namespace.Corrupt},
		"negative":             {good, -1, namespace.Corrupt},
		"beyond the bound":     {good, FileBytesMax + 1, namespace.Limit},
		"trailing byte":        {append(slices.Clone(good), 0), len(new), namespace.Corrupt},
		"impossible counts":    {[]byte{0, 0xff, 0xff, 0x7f, 0, 0}, len(new), namespace.Corrupt},
		"before the old file":  {[]byte{0, 1, 0, 0, 1, 43, 0}, 43, namespace.Corrupt},
		"gzip of nothing":      {[]byte{2, 9, 0, 0, 0}, 20, namespace.Corrupt},
		"gzip of too much":     {[]byte{2, 0xff, 0xff, 0xff, 0x7f, 0, 0, 0}, 20, namespace.Corrupt},
		"gzip of other size":   {[]byte{2, 10, 1, 0, 0, 0, 10, 0}, 43, namespace.Corrupt},
		"behind the old file":  {[]byte{0, 1, 0, 0, 2, 43, 0}, 43, namespace.Corrupt},
		"varint not minimal":   {[]byte{0, 1, 0, 0, 0, 0xab, 0, 0}, 43, namespace.Corrupt},
		"change by nothing":    {[]byte{0, 1, 1, 0, 0, 43, 0, 5, 0}, 43, namespace.Corrupt},
		"change after the end": {[]byte{0, 1, 1, 0, 0, 43, 0, 43, 1}, 43, namespace.Corrupt},
	} {
		if _, err := Apply(old, c.patch, c.size); !namespace.IsKind(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
	for n := range good {
		if _, err := Apply(old, good[:n], len(new)); !namespace.IsKind(err, namespace.Corrupt) {
			t.Errorf("cut to %d bytes: %v", n, err)
		}
	}
}

func TestPatchIsTheSameAgain(t *testing.T) {
	r := rand.New(rand.NewPCG(11, 12))
	old := random(r, 20000, 40)
	new := edited(r, old, 50)
	first, err := Diff(Bytes, old, new)
	if err != nil {
		t.Fatal(err)
	}
	again, err := Diff(Bytes, slices.Clone(old), slices.Clone(new))
	if err != nil || !bytes.Equal(first, again) {
		t.Fatalf("two patches of the same files differ, or %v", err)
	}
}

func FuzzApply(f *testing.F) {
	old := []byte("the quick brown fox jumps over the lazy dog, again and again and again")
	for _, k := range []Kind{Bytes, Bits, Code} {
		patch, err := Diff(k, old, append([]byte("what "), old[10:]...))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(old, patch, len(old)-5)
	}
	f.Add(old, []byte{0, 1, 1, 0, 0, 43, 0, 5, 1}, 43)
	packed := regzip(append([]byte("\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\x03"), old...))
	patch, err := Diff(Gzip, old, packed)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(old, patch, len(packed))
	f.Add(packed, patch, len(packed))
	f.Fuzz(func(t *testing.T, old, patch []byte, size int) {
		b, err := Apply(old, patch, size)
		if err == nil && len(b) != size {
			t.Fatalf("%d bytes, want %d", len(b), size)
		}
		if err != nil && !namespace.IsKind(err, namespace.Corrupt) && !namespace.IsKind(err, namespace.Limit) {
			t.Fatal(err)
		}
	})
}

func FuzzDiff(f *testing.F) {
	f.Add([]byte("one file"), []byte("another file"))
	f.Add([]byte{}, []byte("all new"))
	f.Add(bytes.Repeat([]byte("ab"), 100), bytes.Repeat([]byte("ba"), 90))
	f.Fuzz(func(t *testing.T, old, new []byte) {
		for _, k := range []Kind{Bytes, Bits, Code} {
			patch, err := Diff(k, old, new)
			if err != nil {
				t.Fatal(err)
			}
			got, err := Apply(old, patch, len(new))
			if err != nil || !bytes.Equal(got, new) {
				t.Fatalf("%v, or other bytes", err)
			}
		}
	})
}
