package cache_test

import (
	"testing"

	"coppice.dev/coppice/cache"
)

// BenchmarkWarm reads a tree in order that is in the cache, decoding every frame.
func BenchmarkWarm(b *testing.B) {
	for name, compressible := range map[string]bool{"compressed": true, "raw": false} {
		b.Run(name, func(b *testing.B) {
			tr := newTree(b, smallFiles(1, 4000, compressible))
			var size int64
			for _, c := range tr.chunks {
				size += int64(len(c.plain))
			}
			c := open(b, cache.Options{Dir: b.TempDir(), FrameBytes: 2 << 20})
			r := c.Reader(tr.from)
			readAll(b, r, tr.chunks)
			p := make([]byte, chunkFull)
			b.SetBytes(size)
			for b.Loop() {
				for _, ch := range tr.chunks {
					if _, err := r.ReadChunk(b.Context(), ch.ref, p, 0); err != nil {
						b.Fatal(err)
					}
				}
			}
		})
	}
}

// BenchmarkCold reads a tree in order from an origin in memory.
func BenchmarkCold(b *testing.B) {
	tr := newTree(b, smallFiles(1, 4000, true))
	var size int64
	for _, c := range tr.chunks {
		size += int64(len(c.plain))
	}
	p := make([]byte, chunkFull)
	b.SetBytes(size)
	for b.Loop() {
		c := open(b, cache.Options{Dir: b.TempDir()})
		r := c.Reader(tr.from)
		for _, ch := range tr.chunks {
			if _, err := r.ReadChunk(b.Context(), ch.ref, p, 0); err != nil {
				b.Fatal(err)
			}
		}
		shut(b, c)
	}
}

// BenchmarkHot reads 4 KiB of a chunk whose frame is decoded.
func BenchmarkHot(b *testing.B) {
	tr := newTree(b, smallFiles(1, 20, true))
	r := open(b, cache.Options{Dir: b.TempDir()}).Reader(tr.from)
	readAll(b, r, tr.chunks)
	p := make([]byte, 4<<10)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := r.ReadChunk(b.Context(), tr.chunks[7].ref, p, 0); err != nil {
			b.Fatal(err)
		}
	}
}
