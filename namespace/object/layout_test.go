package object_test

import (
	"bytes"
	"reflect"
	"testing"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/object"
)

// sampleLayout has n chunks in frames of eight.
func sampleLayout(n int) *object.Layout {
	l := &object.Layout{Root: namespace.Sum([]byte("root")), Profile: namespace.Sum([]byte("profile")),
		Catalogs: []namespace.Digest{namespace.Sum([]byte("root")), namespace.Sum([]byte("nested"))}, Chunks: []object.LayoutChunk{}}
	for i := range n {
		l.Chunks = append(l.Chunks, object.LayoutChunk{Digest: namespace.Sum([]byte{1, byte(i), byte(i >> 8)}), Len: 16_000, Place: object.Place{
			Pack: namespace.Sum([]byte{byte(i / 100)}), FrameOff: 8 + int64(i/8)*70_000, FrameLen: 65_000, FramePlain: 130_000,
			Codec: object.Zstd, Off: uint32(i%8) * 16_000}})
	}
	return l
}

func TestLayoutRoundTrip(t *testing.T) {
	for _, n := range []int{0, 1, 300} {
		l := sampleLayout(n)
		b, err := object.EncodeLayout(l)
		if err != nil {
			t.Fatal(err)
		}
		got, err := object.OpenLayout(b)
		if err != nil || !reflect.DeepEqual(got, l) {
			t.Fatalf("%d chunks: %v", n, err)
		}
		if n == 300 {
			if len(b) > 45*n {
				t.Errorf("%d bytes for %d chunks", len(b), n)
			}
			// One of the 38 runs of eight chunks lies in two packs.
			if frames, stored := got.Frames(); len(got.Packs()) != 3 || frames != 39 || stored != 39*65_000 {
				t.Errorf("%d packs, %d frames, %d bytes", len(got.Packs()), frames, stored)
			}
		}
	}
}

func TestLayoutRefuses(t *testing.T) {
	for name, change := range map[string]func(l *object.Layout){
		"a hole":         func(l *object.Layout) { l.Chunks[3].Place = object.Place{} },
		"no digest":      func(l *object.Layout) { l.Chunks[3].Digest = namespace.Digest{} },
		"a chunk twice":  func(l *object.Layout) { l.Chunks[3].Digest = l.Chunks[2].Digest },
		"outside":        func(l *object.Layout) { l.Chunks[3].Len = 120_000 },
		"empty":          func(l *object.Layout) { l.Chunks[3].Len = 0 },
		"too large":      func(l *object.Layout) { l.Chunks[3].Len = namespace.ChunkBytesMax + 1 },
		"catalogs twice": func(l *object.Layout) { l.Catalogs[1] = l.Catalogs[0] },
		"no catalog":     func(l *object.Layout) { l.Catalogs[1] = namespace.Digest{} },
	} {
		l := sampleLayout(20)
		change(l)
		if _, err := object.EncodeLayout(l); !namespace.IsKind(err, namespace.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	good, err := object.EncodeLayout(sampleLayout(20))
	if err != nil {
		t.Fatal(err)
	}
	for n := range good {
		if _, err := object.OpenLayout(good[:n]); !namespace.IsKind(err, namespace.Corrupt) {
			t.Fatalf("cut to %d of %d bytes: %v", n, len(good), err)
		}
	}
	for name, b := range map[string][]byte{
		"a byte more": append(bytes.Clone(good), 0),
		// The count of catalogs, as large as a varint of five bytes tells.
		"impossible count": append(append(bytes.Clone(good[:72]), 0xff, 0xff, 0xff, 0xff, 0x0f), good[73:]...),
		"long varint":      append(append(bytes.Clone(good[:72]), good[72]|0x80, 0), good[73:]...),
	} {
		if _, err := object.OpenLayout(b); !namespace.IsKind(err, namespace.Corrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := object.OpenLayout(make([]byte, namespace.LayoutBytesMax+1)); !namespace.IsKind(err, namespace.Limit) {
		t.Errorf("too large: %v", err)
	}
}

func FuzzOpenLayout(f *testing.F) {
	for _, n := range []int{0, 1, 9} {
		b, err := object.EncodeLayout(sampleLayout(n))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := object.OpenLayout(b)
		if err != nil {
			return
		}
		if again, err := object.EncodeLayout(l); err != nil || !bytes.Equal(again, b) {
			t.Fatalf("opens, and encodes as something else: %v", err)
		}
	})
}
