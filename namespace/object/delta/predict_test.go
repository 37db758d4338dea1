package delta_test

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"coppice.dev/coppice/namespace/object/delta"
)

// program is a program of functions that call and point to each other, with gap bytes more before
// the function in the middle: those behind it move.
func program(gap int) []byte {
	r := rand.New(rand.NewPCG(19, 20))
	const functions, size = 200, 64
	place := func(f int) int {
		at := 512 + f*size
		if f >= functions/2 {
			at += gap
		}
		return at
	}
	b := make([]byte, place(functions)+functions*8)
	copy(b, "\x7fELF\x02\x01\x01")
	binary.LittleEndian.PutUint16(b[18:], 62)
	table := place(functions)
	for f := range functions {
		body := b[place(f):][:size]
		for i := range body {
			body[i] = byte(0x50 + r.IntN(8)) // push
		}
		for i := 4; i+8 < size; i += 10 {
			body[i] = 0xe8
			binary.LittleEndian.PutUint32(body[i+1:], uint32(place(r.IntN(functions))-(place(f)+i+5)))
		}
		binary.LittleEndian.PutUint64(b[table+8*f:], uint64(4096+place(f)))
	}
	return b
}

func TestAddressesArePredicted(t *testing.T) {
	old, new := program(0), program(48)
	if k := delta.ForFile(old, new); k != delta.Code {
		t.Fatalf("kind %d", k)
	}
	plain, err := delta.Diff(delta.Bytes, old, new)
	if err != nil {
		t.Fatal(err)
	}
	predicted, err := delta.Diff(delta.Code, old, new)
	if err != nil {
		t.Fatal(err)
	}
	if len(predicted)*2 > len(plain) {
		t.Errorf("%d bytes with addresses predicted, %d without", len(predicted), len(plain))
	}
	if got, err := delta.Apply(old, predicted, len(new)); err != nil || !bytes.Equal(got, new) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
}

// A patch of this version must make the same for ever, so predictions cannot change.
func TestGoldenCode(t *testing.T) {
	path := filepath.Join("testdata", "v1.code.patch")
	old, new := program(0), program(48)
	if *update {
		patch, err := delta.Diff(delta.Code, old, new)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, patch, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	patch, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := delta.Apply(old, patch, len(new)); err != nil || !bytes.Equal(got, new) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
}

// Whatever program headers say, nothing outside the file is looked at.
func FuzzCode(f *testing.F) {
	f.Add(program(0), program(16))
	hostile := program(0)
	binary.LittleEndian.PutUint64(hostile[32:], 64)
	binary.LittleEndian.PutUint16(hostile[56:], 0xffff)
	binary.LittleEndian.PutUint32(hostile[64:], 0x6474e550)
	binary.LittleEndian.PutUint64(hostile[72:], 600)
	binary.LittleEndian.PutUint64(hostile[96:], 100)
	f.Add(hostile, program(16))
	f.Fuzz(func(t *testing.T, old, new []byte) {
		patch, err := delta.Diff(delta.Code, old, new)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := delta.Apply(old, patch, len(new)); err != nil || !bytes.Equal(got, new) {
			t.Fatalf("%v, or other bytes", err)
		}
	})
}
