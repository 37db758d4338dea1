package delta_test

import (
	"bytes"
	"encoding/binary"
	"flag"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/andybalholm/brotli"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/object/delta"
)

var update = flag.Bool("update", false, "write the golden file anew")

var (
	oldText = []byte(strings.Repeat("All that is gold does not glitter. ", 40))
	newText = []byte(strings.Repeat("All that is gold does not glitter. ", 30) + "Not all those who wander are lost.")
	license = []byte(strings.Repeat("Permission is hereby granted. ", 20))
	catalog = namespace.Sum([]byte("catalog"))
)

// sample returns a delta object of three files, in two frames, and of the catalog, and its parts.
func sample(t testing.TB) (*delta.Object, [][]byte, []byte) {
	t.Helper()
	patch, err := delta.Diff(delta.Bytes, oldText, newText)
	if err != nil {
		t.Fatal(err)
	}
	bits, err := delta.Diff(delta.Bits, oldText, oldText[5:])
	if err != nil {
		t.Fatal(err)
	}
	base := []delta.Extent{{Digest: namespace.Sum(oldText[:1000]), Size: 1000}, {Digest: namespace.Sum(oldText[1000:]), Size: uint64(len(oldText) - 1000)}}
	o := &delta.Object{
		Catalog:      catalog,
		CatalogBytes: uint64(len(newText)),
		Predecessors: []namespace.Digest{namespace.Sum([]byte("old catalog"))},
		Entries: []delta.Entry{
			{Lo: 2, Hi: 3, Size: uint64(len(newText)), Method: delta.Difference, Base: base, Frame: 2},
			{Lo: 3, Hi: 4, Size: uint64(len(license)), Method: delta.Plain, Frame: 1},
			{Lo: 7, Hi: 9, Size: uint64(len(oldText) - 5), Method: delta.Difference, Base: base, Frame: 2},
		},
	}
	payloads := [][]byte{patch, license, bits}
	b, err := delta.Encode(o, payloads, patch)
	if err != nil {
		t.Fatal(err)
	}
	return o, payloads, b
}

func TestObjectMakesItsFiles(t *testing.T) {
	_, _, b := sample(t)
	need, err := delta.Need(b[:delta.HeaderBytes])
	if err != nil {
		t.Fatal(err)
	}
	o, err := delta.Open(b[:need], catalog)
	if err != nil {
		t.Fatal(err)
	}
	first, err := delta.DecodeFrame(o.Frames[0], b[need:need+int64(o.Frames[0].Len)])
	if err != nil {
		t.Fatal(err)
	}
	if got, err := delta.MakeCatalog(o, oldText, first); err != nil || !bytes.Equal(got, newText) {
		t.Fatalf("catalog: %d bytes, %v", len(got), err)
	}
	want := map[uint32][]byte{2: newText, 3: license, 8: oldText[5:]}
	for k := range uint32(12) {
		e, ok := o.Find(k)
		if in := k == 2 || k == 3 || k == 7 || k == 8; ok != in {
			t.Fatalf("extent %d: found is %v", k, ok)
		}
		if !ok || want[k] == nil {
			continue
		}
		f := o.Frames[e.Frame]
		plain, err := delta.DecodeFrame(f, b[f.Off:f.Off+int64(f.Len)])
		if err != nil {
			t.Fatal(err)
		}
		var base []byte
		if e.Method == delta.Difference {
			base = oldText
		}
		got, err := delta.Make(e, base, plain)
		if err != nil || !bytes.Equal(got, want[k]) {
			t.Fatalf("extent %d: %d bytes, %v", k, len(got), err)
		}
	}
}

// What this version wrote once must open for ever.
func TestGolden(t *testing.T) {
	path := filepath.Join("testdata", "v1.delta")
	_, _, b := sample(t)
	if *update {
		if err := os.WriteFile(path, b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	golden, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	o, err := delta.Open(golden, catalog)
	if err != nil {
		t.Fatal(err)
	}
	fresh, err := delta.Open(b, catalog)
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range [][]byte{newText, license, oldText[5:]} {
		e := &o.Entries[i]
		f := o.Frames[e.Frame]
		plain, err := delta.DecodeFrame(f, golden[f.Off:f.Off+int64(f.Len)])
		if err != nil {
			t.Fatal(err)
		}
		var base []byte
		if e.Method == delta.Difference {
			base = oldText
		}
		if got, err := delta.Make(e, base, plain); err != nil || !bytes.Equal(got, want) {
			t.Errorf("entry %d: %d bytes, %v", i, len(got), err)
		}
		if e.Lo != fresh.Entries[i].Lo || e.Hi != fresh.Entries[i].Hi || !slices.Equal(e.Base, fresh.Entries[i].Base) {
			t.Errorf("entry %d is another one now", i)
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	_, _, b := sample(t)
	need, err := delta.Need(b)
	if err != nil {
		t.Fatal(err)
	}
	change := func(at int, v byte) []byte {
		c := slices.Clone(b)
		c[at] = v
		return c
	}
	large := slices.Clone(b)
	binary.LittleEndian.PutUint32(large[12:], delta.IndexBytesMax+1)
	for name, c := range map[string]struct {
		b    []byte
		of   namespace.Digest
		want namespace.Kind
	}{
		"nothing":         {nil, catalog, namespace.Corrupt},
		"another magic":   {change(6, '2'), catalog, namespace.Corrupt},
		"unused bytes":    {change(18, 1), catalog, namespace.Corrupt},
		"codec":           {change(16, 7), catalog, namespace.Corrupt},
		"checksum":        {change(20, b[20]+1), catalog, namespace.Corrupt},
		"another catalog": {b, namespace.Sum(nil), namespace.Corrupt},
		"truncated":       {b[:need-1], catalog, namespace.Corrupt},
		"too large":       {large, catalog, namespace.Limit},
	} {
		if _, err := delta.Open(c.b, c.of); !namespace.IsKind(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
}

func TestEncodeRefuses(t *testing.T) {
	o, payloads, _ := sample(t)
	for name, change := range map[string]func(o *delta.Object, payloads [][]byte){
		"overlap":             func(o *delta.Object, _ [][]byte) { o.Entries[1].Lo = 2 },
		"out of order":        func(o *delta.Object, _ [][]byte) { o.Entries[0].Lo, o.Entries[0].Hi = 20, 21 },
		"no extent":           func(o *delta.Object, _ [][]byte) { o.Entries[0].Hi = 2 },
		"frame that is empty": func(o *delta.Object, _ [][]byte) { o.Entries[0].Frame = 3; o.Entries[2].Frame = 3 },
		"frame of catalog":    func(o *delta.Object, _ [][]byte) { o.Entries[1].Frame = 0 },
		"no predecessor":      func(o *delta.Object, _ [][]byte) { o.Predecessors = nil },
		"plain of other size": func(o *delta.Object, _ [][]byte) { o.Entries[1].Size++ },
		"no base":             func(o *delta.Object, _ [][]byte) { o.Entries[0].Base = nil },
		"holes in a row": func(o *delta.Object, _ [][]byte) {
			o.Entries[0].Base = []delta.Extent{{Size: 1}, {Size: uint64(len(oldText)) - 1}}
		},
		"chunk too large": func(o *delta.Object, _ [][]byte) {
			o.Entries[0].Base = []delta.Extent{{Digest: catalog, Size: namespace.ChunkBytesMax + 1}}
		},
		"empty patch": func(_ *delta.Object, p [][]byte) { p[0] = nil },
	} {
		bad := *o
		bad.Entries = slices.Clone(o.Entries)
		p := slices.Clone(payloads)
		change(&bad, p)
		if _, err := delta.Encode(&bad, p, p[2]); !namespace.IsKind(err, namespace.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestMakeRefuses(t *testing.T) {
	_, _, b := sample(t)
	o, err := delta.Open(b, catalog)
	if err != nil {
		t.Fatal(err)
	}
	e := &o.Entries[0]
	f := o.Frames[e.Frame]
	plain, err := delta.DecodeFrame(f, b[f.Off:f.Off+int64(f.Len)])
	if err != nil {
		t.Fatal(err)
	}
	if _, err := delta.Make(e, oldText[1:], plain); !namespace.IsKind(err, namespace.Corrupt) {
		t.Errorf("a base of another size: %v", err)
	}
	if _, err := delta.Make(e, oldText, plain[:e.Off+e.Len-1]); !namespace.IsKind(err, namespace.Corrupt) {
		t.Errorf("a frame cut off: %v", err)
	}
	if _, err := delta.DecodeFrame(f, b[f.Off:f.Off+int64(f.Len)-1]); !namespace.IsKind(err, namespace.Corrupt) {
		t.Errorf("a stored frame cut off: %v", err)
	}
	flipped := slices.Clone(b[f.Off : f.Off+int64(f.Len)])
	flipped[9] ^= 4
	if _, err := delta.DecodeFrame(f, flipped); !namespace.IsKind(err, namespace.Corrupt) {
		t.Errorf("a bit flipped in a frame: %v", err)
	}
	f.Plain--
	if _, err := delta.DecodeFrame(f, b[f.Off:f.Off+int64(f.Len)]); !namespace.IsKind(err, namespace.Corrupt) {
		t.Errorf("a frame larger than it says: %v", err)
	}
}

func FuzzOpen(f *testing.F) {
	_, _, b := sample(f)
	f.Add(b)
	need, err := delta.Need(b)
	if err != nil {
		f.Fatal(err)
	}
	// Uncompressed too, so that mutations reach the index.
	plain := b[delta.HeaderBytes:need]
	if b[16] == byte(delta.Brotli) {
		plain, err = io.ReadAll(brotli.NewReader(bytes.NewReader(plain)))
	}
	if err != nil {
		f.Fatal(err)
	}
	raw := slices.Clone(b[:delta.HeaderBytes])
	binary.LittleEndian.PutUint32(raw[8:], uint32(len(plain)))
	raw[16] = byte(delta.Raw)
	binary.LittleEndian.PutUint32(raw[20:], crc32.Checksum(plain, crc32.MakeTable(crc32.Castagnoli)))
	f.Add(append(raw, plain...))
	f.Fuzz(func(t *testing.T, b []byte) {
		if need, err := delta.Need(b); err == nil && need <= int64(len(b)) { // let mutations through
			b = slices.Clone(b)
			binary.LittleEndian.PutUint32(b[20:], crc32.Checksum(b[delta.HeaderBytes:need], crc32.MakeTable(crc32.Castagnoli)))
		}
		o, err := delta.Open(b, catalog)
		if err != nil {
			if !namespace.IsKind(err, namespace.Corrupt) && !namespace.IsKind(err, namespace.Limit) {
				t.Fatal(err)
			}
			return
		}
		for i := range o.Entries {
			e := &o.Entries[i]
			if got, ok := o.Find(e.Lo); !ok || got != e {
				t.Fatalf("entry %d is not found", i)
			}
			fr := o.Frames[e.Frame]
			if fr.Off+int64(fr.Len) > int64(len(b)) || e.BaseBytes() > 1<<20 || e.Size > 1<<20 {
				continue
			}
			plain, err := delta.DecodeFrame(fr, b[fr.Off:fr.Off+int64(fr.Len)])
			if err != nil {
				continue
			}
			if made, err := delta.Make(e, make([]byte, e.BaseBytes()), plain); err == nil && uint64(len(made)) != e.Size {
				t.Fatalf("%d bytes, want %d", len(made), e.Size)
			}
		}
	})
}
