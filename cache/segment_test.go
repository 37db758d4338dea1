package cache

import (
	"bytes"
	"slices"
	"testing"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/object"
)

// encoded returns a record of n chunks of size bytes each.
func encoded(n, size int) []byte {
	var chunks []object.FrameChunk
	plain := bytes.Repeat([]byte("some plaintext "), n*size/15+1)[:n*size]
	for i := range n {
		chunks = append(chunks, object.FrameChunk{Digest: namespace.Sum(plain[i*size:][:size]), Off: uint32(i * size), Len: uint32(size)})
	}
	stored, codec := object.EncodeFrame(plain)
	b := append(make([]byte, recordPrefix(chunks)), stored...)
	sealRecord(b, codec, uint32(len(plain)), chunks)
	return b
}

func TestRecord(t *testing.T) {
	b := encoded(3, 1000)
	rec, err := readRecord(bytes.NewReader(append([]byte("before"), b...)), 6)
	if err != nil || int(rec.end()) != 6+len(b) || len(rec.chunks) != 3 || rec.plain != 3000 {
		t.Fatalf("%+v, %v", rec, err)
	}
	prefix := len(b) - int(rec.stored)
	for bit := range prefix * 8 {
		bad := slices.Clone(b)
		bad[bit/8] ^= 1 << (bit % 8)
		if _, err := readRecord(bytes.NewReader(bad), 0); err == nil {
			t.Errorf("bit %d flipped, not noticed", bit)
		}
	}
	for n := range prefix {
		if _, err := readRecord(bytes.NewReader(b[:n]), 0); err == nil {
			t.Errorf("a record of %d bytes was read", n)
		}
	}
}

func FuzzReadRecord(f *testing.F) {
	f.Add(encoded(1, 10), uint32(0))
	f.Add(encoded(5, 1000), uint32(0))
	f.Add(encoded(2, 100)[3:], uint32(7))
	f.Add([]byte(recordMagic), uint32(1<<32-1))
	f.Add([]byte{}, uint32(0))
	f.Fuzz(func(t *testing.T, b []byte, at uint32) {
		rec, err := readRecord(bytes.NewReader(b), at)
		if err != nil {
			return
		}
		if rec.plain > namespace.FrameBytesMax || rec.stored > rec.plain || rec.payload() < at || rec.end() < rec.payload() {
			t.Errorf("accepted %+v", rec)
		}
		for _, e := range rec.extents(1) {
			if uint64(e.extent.off)+uint64(e.extent.size) > uint64(rec.plain) {
				t.Errorf("a chunk outside its frame: %+v", e)
			}
		}
	})
}

func TestExtent(t *testing.T) {
	d := namespace.Sum([]byte("x"))
	e := extent{seg: 1, at: 2, stored: 3, plain: 4, sum: 5, codec: object.Zstd, off: 6, size: 7}
	v := encodeExtent(&d, e)
	b := v[:]
	if got, ok := decodeExtent(&d, b); !ok || got != e {
		t.Fatalf("%+v, %v", got, ok)
	}
	for bit := range len(b) * 8 {
		b[bit/8] ^= 1 << (bit % 8)
		if _, ok := decodeExtent(&d, b); ok {
			t.Errorf("bit %d flipped, not noticed", bit)
		}
		b[bit/8] ^= 1 << (bit % 8)
	}
	other := namespace.Sum([]byte("y"))
	if _, ok := decodeExtent(&other, b); ok {
		t.Error("another chunk's entry was taken")
	}
}

func FuzzDecodeExtent(f *testing.F) {
	d := namespace.Sum([]byte("x"))
	v := encodeExtent(&d, extent{seg: 1, at: 2, stored: 3, plain: 4, sum: 5, off: 6, size: 7})
	f.Add(d[:], v[:])
	f.Add(d[:], []byte{})
	f.Add(d[:], make([]byte, len(extentValue{})))
	f.Fuzz(func(t *testing.T, digest, b []byte) {
		var d namespace.Digest
		copy(d[:], digest)
		e, ok := decodeExtent(&d, b)
		if !ok {
			return
		}
		if again := encodeExtent(&d, e); !bytes.Equal(again[:], b) {
			t.Errorf("%x decodes to %+v, which is %x", b, e, again)
		}
	})
}
