package object_test

import (
	"bytes"
	"reflect"
	"testing"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/object"
)

// samplePack returns a pack of n frames of several chunks each, and its plaintexts.
func samplePack(t testing.TB, n int) ([]byte, namespace.Digest, []object.Frame, [][]byte) {
	w := object.NewPackWriter()
	var plains [][]byte
	for i := range n {
		var plain []byte
		var chunks []object.FrameChunk
		for k := range i%3 + 1 {
			data := append(text(100*i+k+1), random(uint64(i*10+k), i)...)
			chunks = append(chunks, object.FrameChunk{Digest: namespace.Sum(data), Off: uint32(len(plain)), Len: uint32(len(data))})
			plain = append(plain, data...)
		}
		stored, c := object.EncodeFrame(plain)
		if err := w.Add(stored, c, uint32(len(plain)), chunks); err != nil {
			t.Fatal(err)
		}
		plains = append(plains, plain)
	}
	want := w.Size()
	b, d, frames := w.Finish()
	if int64(len(b)) != want || namespace.Sum(b) != d {
		t.Fatalf("a pack of %d bytes, Size said %d; digest %v", len(b), want, d)
	}
	return b, d, frames, plains
}

func TestPackRoundTrip(t *testing.T) {
	for _, n := range []int{0, 1, 40} {
		b, _, frames, plains := samplePack(t, n)
		got, err := object.ReadPackDirectory(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			t.Fatal(err)
		}
		if len(got) != n || n > 0 && !reflect.DeepEqual(got, frames) {
			t.Fatalf("directory differs: %v, want %v", got, frames)
		}
		for i, f := range got {
			plain, err := object.DecodeFrame(nil, b[f.Off:f.Off+int64(f.Len)], f.Codec, int(f.Plain))
			if err != nil || !bytes.Equal(plain, plains[i]) {
				t.Fatalf("frame %d: %v, or differs", i, err)
			}
		}
	}
}

func TestPackRefusesEveryFlippedByteOfTheDirectory(t *testing.T) {
	b, _, frames, _ := samplePack(t, 5)
	last := frames[len(frames)-1]
	for i := last.Off + int64(last.Len); i < int64(len(b)); i++ {
		bad := bytes.Clone(b)
		bad[i] ^= 0x40
		if _, err := object.ReadPackDirectory(bytes.NewReader(bad), int64(len(bad))); !namespace.IsKind(err, namespace.Corrupt) {
			t.Errorf("byte %d of %d: %v, want Corrupt", i, len(b), err)
		}
	}
	for n := range b {
		if _, err := object.ReadPackDirectory(bytes.NewReader(b[:n]), int64(n)); err == nil {
			t.Errorf("accepted the first %d bytes of %d", n, len(b))
		}
	}
}

func TestPackAddRefuses(t *testing.T) {
	d := namespace.Digest{1}
	for name, c := range map[string]struct {
		stored []byte
		codec  object.Codec
		plain  uint32
		chunks []object.FrameChunk
	}{
		"no chunks":      {[]byte("ab"), object.Raw, 2, nil},
		"gap":            {[]byte("ab"), object.Raw, 2, []object.FrameChunk{{d, 1, 1}}},
		"overlap":        {[]byte("ab"), object.Raw, 2, []object.FrameChunk{{d, 0, 2}, {d, 1, 1}}},
		"uncovered":      {[]byte("ab"), object.Raw, 2, []object.FrameChunk{{d, 0, 1}}},
		"hole":           {[]byte("ab"), object.Raw, 2, []object.FrameChunk{{namespace.Digest{}, 0, 2}}},
		"useless codec":  {[]byte("ab"), object.Zstd, 2, []object.FrameChunk{{d, 0, 2}}},
		"raw mismatch":   {[]byte("ab"), object.Raw, 3, []object.FrameChunk{{d, 0, 3}}},
		"unknown codec":  {[]byte("ab"), 9, 2, []object.FrameChunk{{d, 0, 2}}},
		"huge chunk":     {[]byte("ab"), object.Zstd, 1 << 31, []object.FrameChunk{{d, 0, 1 << 31}}},
		"overflow":       {[]byte("ab"), object.Zstd, 0, []object.FrameChunk{{d, 0, 2 << 20}, {d, 2 << 20, 1<<32 - 2<<20}}},
		"too many bytes": {[]byte("ab"), object.Zstd, 4 << 20, []object.FrameChunk{{d, 0, 2 << 20}, {d, 2 << 20, 2 << 20}}},
	} {
		w := object.NewPackWriter()
		wantKind(t, name, w.Add(c.stored, c.codec, c.plain, c.chunks), namespace.Invalid)
		if _, _, frames := w.Finish(); len(frames) != 0 {
			t.Errorf("%s: something was added", name)
		}
	}
}

func TestPackLimit(t *testing.T) {
	w := object.NewPackWriter()
	b := random(3, namespace.FrameBytesMax)
	chunk := []object.FrameChunk{{Digest: namespace.Sum(b), Len: uint32(len(b))}}
	var err error
	for n := 0; err == nil; n++ {
		if n > namespace.PackBytesMax/len(b) {
			t.Fatal("a pack took more than its limit")
		}
		err = w.Add(b, object.Raw, uint32(len(b)), chunk)
	}
	wantKind(t, "full pack", err, namespace.Limit)
}

func FuzzReadPackDirectory(f *testing.F) {
	for _, n := range []int{0, 1, 5} {
		b, _, _, _ := samplePack(f, n)
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		frames, err := object.ReadPackDirectory(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			return
		}
		w := object.NewPackWriter()
		for _, fr := range frames {
			if err := w.Add(b[fr.Off:fr.Off+int64(fr.Len)], fr.Codec, fr.Plain, fr.Chunks); err != nil {
				t.Fatalf("accepted a frame that cannot be written: %v", err)
			}
		}
		again, _, _ := w.Finish()
		if !bytes.Equal(again[8:], b[8:]) { // the magic at the start is not read
			t.Fatal("re-encodes to other bytes")
		}
	})
}
