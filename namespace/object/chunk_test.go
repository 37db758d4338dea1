package object_test

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"testing"
	"testing/iotest"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/object"
)

type extent struct {
	digest namespace.Digest
	n      uint64
}

// cut returns the extents of b and fails unless they add up to it.
func cut(t *testing.T, r io.Reader, b []byte) []extent {
	t.Helper()
	var all []extent
	var joined []byte
	err := object.Chunks(r, int64(len(b)), func(data []byte, hole uint64) error {
		if (len(data) == 0) == (hole == 0) {
			t.Errorf("an extent of %d bytes and a hole of %d", len(data), hole)
		}
		if hole > 0 {
			all = append(all, extent{n: hole})
			joined = append(joined, make([]byte, hole)...)
			return nil
		}
		all = append(all, extent{namespace.Sum(data), uint64(len(data))})
		joined = append(joined, data...)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(joined, b) {
		t.Fatalf("extents of %d bytes give %d, or others", len(b), len(joined))
	}
	for i, e := range all {
		if e.digest.IsZero() && i > 0 && all[i-1].digest.IsZero() {
			t.Error("two holes in a row")
		}
		if !e.digest.IsZero() && e.n > namespace.ChunkBytesMax {
			t.Errorf("a chunk of %d bytes", e.n)
		}
	}
	return all
}

func TestSmallFileIsOneChunk(t *testing.T) {
	for _, n := range []int{1, 64 << 10, namespace.ChunkWholeMax} {
		b := make([]byte, n) // zeros too: only large files have holes
		if got := cut(t, bytes.NewReader(b), b); len(got) != 1 || got[0].n != uint64(n) {
			t.Errorf("%d bytes are %v", n, got)
		}
	}
	if got := cut(t, bytes.NewReader(nil), nil); len(got) != 0 {
		t.Errorf("an empty file is %v", got)
	}
}

// The cuts are part of the format: if this fails, digests of large files changed for every user.
func TestCutsAreFixed(t *testing.T) {
	b := random(7, 5<<20)
	var sizes []uint64
	for _, e := range cut(t, bytes.NewReader(b), b) {
		sizes = append(sizes, e.n)
	}
	want := []uint64{599009, 581355, 566586, 617110, 814327, 618855, 530115, 575248, 340275}
	if !slices.Equal(sizes, want) {
		t.Errorf("cut into %v, want %v", sizes, want)
	}
}

func TestCutsDoNotDependOnReads(t *testing.T) {
	b := random(8, 3<<20)
	clear(b[1<<20 : 1<<20+300_000])
	want := cut(t, bytes.NewReader(b), b)
	if got := cut(t, iotest.HalfReader(bytes.NewReader(b)), b); !slices.Equal(got, want) {
		t.Error("half reads give other cuts")
	}
	c := object.NewCutter()
	for range 2 { // a Cutter keeps nothing from the file before
		var got []extent
		if err := c.Chunks(bytes.NewReader(b), int64(len(b)), func(data []byte, hole uint64) error {
			e := extent{n: hole + uint64(len(data))}
			if len(data) > 0 {
				e.digest = namespace.Sum(data)
			}
			got = append(got, e)
			return nil
		}); err != nil || !slices.Equal(got, want) {
			t.Errorf("used again, a Cutter gives other cuts (%v)", err)
		}
	}
}

func TestInsertionMovesFewCuts(t *testing.T) {
	b := random(9, 16<<20)
	before := cut(t, bytes.NewReader(b), b)
	changed := slices.Concat(b[:8<<20], []byte("inserted"), b[8<<20:])
	fresh := 0
	for _, e := range cut(t, bytes.NewReader(changed), changed) {
		if !slices.Contains(before, e) {
			fresh++
		}
	}
	if fresh > 4 || len(before) < 10 {
		t.Errorf("%d of %d chunks are new after an insertion", fresh, len(before))
	}
}

// skipReader is a reader that knows holes.
type skipReader struct {
	*bytes.Reader
	b       []byte
	skipped int64
}

func (s *skipReader) SkipHole(granule int64) (int64, error) {
	at := s.Size() - int64(s.Len())
	end := at
	for end < s.Size() && s.b[end] == 0 {
		end++
	}
	n := (end - at) / granule * granule
	s.skipped += n
	_, err := s.Seek(n, io.SeekCurrent)
	return n, err
}

func TestHoles(t *testing.T) {
	const g = namespace.HoleBytes
	for name, c := range map[string]struct {
		size  int
		data  [][2]int // ranges that are not zero
		holes []uint64
	}{
		"all zero":            {20 * g, nil, []uint64{20 * g}},
		"all zero and a tail": {20*g + 5, nil, []uint64{20 * g}},
		"data in front":       {20 * g, [][2]int{{0, g}}, []uint64{19 * g}},
		"data behind":         {20 * g, [][2]int{{19 * g, 20 * g}}, []uint64{19 * g}},
		"unaligned zeros":     {20 * g, [][2]int{{0, 5*g - 1}, {7*g + 1, 20 * g}}, []uint64{2 * g}},
		"too short for one":   {20 * g, [][2]int{{0, 5*g + 1}, {6*g + 1, 20 * g}}, nil},
		"many":                {20 * g, [][2]int{{2 * g, 3 * g}, {5 * g, 5*g + 1}, {19 * g, 20 * g}}, []uint64{2 * g, 2 * g, 13 * g}},
	} {
		b := make([]byte, c.size)
		for _, r := range c.data {
			for i := r[0]; i < r[1]; i++ {
				b[i] = byte(i)%255 + 1
			}
		}
		got := cut(t, bytes.NewReader(b), b)
		var holes []uint64
		for _, e := range got {
			if e.digest.IsZero() {
				holes = append(holes, e.n)
			}
		}
		if !slices.Equal(holes, c.holes) {
			t.Errorf("%s: holes %v, want %v", name, holes, c.holes)
		}
		skip := &skipReader{bytes.NewReader(b), b, 0}
		if other := cut(t, skip, b); !slices.Equal(other, got) {
			t.Errorf("%s: a source that knows its holes gives %v, another %v", name, other, got)
		}
		if name == "all zero" && skip.skipped != int64(c.size) {
			t.Errorf("skipped %d of %d bytes", skip.skipped, c.size)
		}
	}
}

func TestChunksErrors(t *testing.T) {
	nothing := func([]byte, uint64) error { return nil }
	for _, n := range []int64{10, 5 << 20} {
		if err := object.Chunks(bytes.NewReader(make([]byte, n-1)), n, nothing); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("a file that is too short: %v", err)
		}
		if err := object.Chunks(bytes.NewReader(random(1, int(n)-1)), n, nothing); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("a file that is too short: %v", err)
		}
		stop := errors.New("stop")
		if err := object.Chunks(bytes.NewReader(make([]byte, n)), n, func([]byte, uint64) error { return stop }); !errors.Is(err, stop) {
			t.Errorf("emit failed: %v", err)
		}
		if err := object.Chunks(iotest.ErrReader(stop), n, nothing); !errors.Is(err, stop) {
			t.Errorf("the source failed: %v", err)
		}
	}
	wantKind(t, "negative", object.Chunks(nil, -1, nothing), namespace.Invalid)
}

func BenchmarkChunks(b *testing.B) {
	data := random(1, 32<<20)
	b.SetBytes(int64(len(data)))
	c := object.NewCutter()
	for b.Loop() {
		_ = c.Chunks(bytes.NewReader(data), int64(len(data)), func([]byte, uint64) error { return nil })
	}
}

func BenchmarkDecodeFrame(b *testing.B) {
	plain := slices.Concat(text(64<<10), random(1, 64<<10))
	stored, c := object.EncodeFrame(plain)
	b.SetBytes(int64(len(plain)))
	dst := make([]byte, 0, len(plain))
	for b.Loop() {
		_, _ = object.DecodeFrame(dst, stored, c, len(plain))
	}
}
