package cache

import (
	"encoding/binary"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"coppice.dev/coppice/internal/disk"
	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/object"
)

// numbered is the digest of a number, and where a chunk of that name would be.
func numbered(i int) (namespace.Digest, extent) {
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], uint64(i))
	return namespace.Sum(b[:]), extent{seg: uint32(1 + i/20000), at: uint32(i%20000) * 3000, stored: 60_000, plain: 128 << 10,
		codec: object.Zstd, off: uint32(i%40) * 3000, size: 3000, sum: uint64(i) * 0x9e3779b97f4a7c15}
}

// BenchmarkIndexMillion commits a million chunks as a fill does and says what that costs: bytes of the
// file and time, each a chunk.
func BenchmarkIndexMillion(b *testing.B) {
	const chunks = 1 << 20
	for b.Loop() {
		path := filepath.Join(b.TempDir(), "index.db")
		x, err := openIndex(path, disk.System{}, slog.New(slog.DiscardHandler))
		if err != nil {
			b.Fatal(err)
		}
		start := time.Now()
		for i := range chunks {
			x.put(numbered(i))
			if x.waiting() >= flushEntries {
				if err := x.flush(); err != nil {
					b.Fatal(err)
				}
			}
		}
		if err := x.flush(); err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(time.Since(start).Nanoseconds())/chunks, "ns/chunk")
		b.ReportMetric(float64(fileSize(b, path))/chunks, "bytes/chunk")
		start = time.Now()
		const looks = 200_000
		for i := range looks {
			d, want := numbered(i * 5)
			if e, ok := x.get(d); !ok || e != want {
				b.Fatalf("%+v, %v, want %+v", e, ok, want)
			}
		}
		b.ReportMetric(float64(time.Since(start).Nanoseconds())/looks, "ns/look-up")
		x.close()
	}
}
