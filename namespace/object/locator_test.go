package object_test

import (
	"bytes"
	"slices"
	"testing"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/object"
)

// samplePlaces returns n places in tree order, with holes and with repeated chunks.
func samplePlaces(n int) []object.Place {
	var places []object.Place
	for i := range n {
		switch {
		case i%11 == 5:
			places = append(places, object.Place{})
		case i%13 == 7:
			places = append(places, places[i/2])
		default:
			places = append(places, object.Place{
				Pack: namespace.Sum([]byte{byte(i / 100)}), FrameOff: 8 + int64(i/8)*70_000, FrameLen: 65_000 + uint32(i/8),
				FramePlain: 130_000, Codec: object.Zstd, Off: uint32(i%8) * 16_000,
			})
		}
	}
	return places
}

func TestLocatorRoundTrip(t *testing.T) {
	for _, n := range []int{0, 1, 6, 1000} {
		places := samplePlaces(n)
		stored := object.EncodeLocator(places)
		l, err := object.OpenLocator(stored)
		if err != nil {
			t.Fatal(err)
		}
		var got []object.Place
		for i := range l.Len() {
			got = append(got, l.Place(i))
		}
		if !slices.Equal(got, places) {
			t.Fatalf("%d places differ after a round trip", n)
		}
		if n == 1000 && len(stored) > 10*n {
			t.Errorf("%d bytes for %d places", len(stored), n)
		}
		if n == 1000 && len(l.Packs()) != 10 {
			t.Errorf("%d packs, want 10", len(l.Packs()))
		}
	}
}

func TestLocatorRefuses(t *testing.T) {
	good := samplePlaces(50)[0]
	for name, change := range map[string]func(p *object.Place){
		"offset outside":   func(p *object.Place) { p.Off = p.FramePlain },
		"frame too large":  func(p *object.Place) { p.FramePlain = namespace.FrameBytesMax + 1 },
		"outside any pack": func(p *object.Place) { p.FrameOff = namespace.PackBytesMax },
		"unknown codec":    func(p *object.Place) { p.Codec = 9 },
		"useless codec":    func(p *object.Place) { p.FrameLen = p.FramePlain },
		"empty frame":      func(p *object.Place) { p.FrameLen = 0 },
	} {
		p := good
		change(&p)
		_, err := object.OpenLocator(object.EncodeLocator([]object.Place{p}))
		wantKind(t, name, err, namespace.Corrupt)
	}
	_, err := object.OpenLocator(object.EncodeBlob([]byte("COPLOC1\n\x00\x00\x00rest")))
	wantKind(t, "trailing bytes", err, namespace.Corrupt)
	_, err = object.OpenLocator(object.EncodeBlob([]byte("COPLOC1\n\x00\x80\x00\x00")))
	wantKind(t, "overlong varint", err, namespace.Corrupt)
	_, err = object.OpenLocator(object.EncodeBlob([]byte("COPLOC1\n\xff\xff\xff\xff\x0f\x00\x00")))
	wantKind(t, "impossible count", err, namespace.Corrupt)
	_, err = object.OpenLocator([]byte("nothing"))
	wantKind(t, "no blob", err, namespace.Corrupt)
}

func FuzzOpenLocator(f *testing.F) {
	for _, n := range []int{0, 1, 30} {
		f.Add(plainOf(f, object.EncodeLocator(samplePlaces(n))))
	}
	f.Fuzz(func(t *testing.T, plain []byte) {
		l, err := object.OpenLocator(object.EncodeBlob(plain))
		if err != nil {
			return
		}
		var places []object.Place
		for i := range l.Len() {
			places = append(places, l.Place(i))
		}
		if again := plainOf(t, object.EncodeLocator(places)); !bytes.Equal(again, plain) {
			t.Fatalf("re-encodes to other bytes:\n%x\n%x", plain, again)
		}
	})
}

// plainOf decodes a blob whose digest the test does not know, through the error that names it.
func plainOf(t testing.TB, stored []byte) []byte {
	t.Helper()
	body := stored[12:]
	if object.Codec(stored[4]) == object.Raw {
		return body
	}
	size := int(stored[8]) | int(stored[9])<<8 | int(stored[10])<<16
	plain, err := object.DecodeFrame(nil, body, object.Zstd, size)
	if err != nil {
		t.Fatal(err)
	}
	return plain
}

func sampleRecords(n int) []object.IndexRecord {
	var recs []object.IndexRecord
	for i, p := range samplePlaces(n) {
		if !p.IsZero() {
			recs = append(recs, object.IndexRecord{Digest: namespace.Sum([]byte{byte(i), byte(i >> 8)}), Place: p})
		}
	}
	return recs
}

func TestIndexRoundTrip(t *testing.T) {
	extra := namespace.Sum([]byte("a pack of which nothing is kept"))
	for _, n := range []int{0, 1, 5000} {
		recs := sampleRecords(n)
		want := slices.Clone(recs)
		b := object.EncodeIndex([]namespace.Digest{extra}, recs)
		x, err := object.OpenIndex(b)
		if err != nil {
			t.Fatal(err)
		}
		if x.Len() != len(want) || !slices.Contains(x.Packs(), extra) {
			t.Fatalf("%d records, want %d; packs %v", x.Len(), len(want), x.Packs())
		}
		for _, r := range want {
			if p, ok := x.Lookup(r.Digest); !ok || p != r.Place {
				t.Fatalf("%v is at %v, want %v", r.Digest, p, r.Place)
			}
		}
		for i := range 1000 {
			if _, ok := x.Lookup(namespace.Sum([]byte{1, 2, 3, byte(i), byte(i >> 8)})); ok {
				t.Fatal("found what is not there")
			}
		}
		for _, d := range []namespace.Digest{{}, {31: 1}, {0: 255, 1: 255, 2: 255, 3: 255, 4: 255, 5: 255, 6: 255, 7: 255, 31: 255}} {
			if _, ok := x.Lookup(d); ok {
				t.Fatal("found what is not there")
			}
		}
		slices.Reverse(recs)
		if again := object.EncodeIndex(x.Packs(), slices.Collect(x.Records())); !bytes.Equal(again, b) {
			t.Error("re-encodes to other bytes")
		}
	}
}

func TestIndexKeepsOnePlaceOfAChunk(t *testing.T) {
	recs := sampleRecords(200)
	other := recs[3]
	other.Place.Pack = namespace.Digest{0xff}
	x, err := object.OpenIndex(object.EncodeIndex(nil, append([]object.IndexRecord{other}, recs...)))
	if err != nil {
		t.Fatal(err)
	}
	if p, ok := x.Lookup(other.Digest); !ok || p == other.Place {
		t.Errorf("place %v, want that of the first pack", p)
	}
	if !slices.Contains(x.Packs(), other.Place.Pack) {
		t.Error("the other pack is not covered")
	}
}

func FuzzOpenIndex(f *testing.F) {
	for _, n := range []int{0, 1, 20} {
		f.Add(object.EncodeIndex(nil, sampleRecords(n)))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		x, err := object.OpenIndex(b)
		if err != nil {
			return
		}
		if again := object.EncodeIndex(x.Packs(), slices.Collect(x.Records())); !bytes.Equal(again, b) {
			t.Fatal("re-encodes to other bytes")
		}
	})
}
