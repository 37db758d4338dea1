package cache

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
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

// serveHTTP serves an origin over loopback as a static server does, and returns a Fetcher of it.
func serveHTTP(b *testing.B, from namespace.Fetcher) namespace.Fetcher {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		class, hex, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
		d, err := namespace.ParseHex(hex)
		for _, c := range namespace.Classes() {
			var off, n int64 = 0, -1
			if c.String() != class || err != nil {
				continue
			}
			if _, err := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &off, &n); err == nil {
				n = n - off + 1
			}
			body, err := from.Get(r.Context(), namespace.Key{Class: c, Digest: d}, off, n)
			if err != nil {
				break
			}
			defer body.Close()
			_, _ = io.Copy(w, body)
			return
		}
		w.WriteHeader(http.StatusNotFound)
	}))
	b.Cleanup(srv.Close)
	return overHTTP{srv.URL, srv.Client()}
}

type overHTTP struct {
	url  string
	http *http.Client
}

func (o overHTTP) Get(ctx context.Context, k namespace.Key, off, n int64) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, o.url+"/"+k.Class.String()+"/"+k.Digest.Hex(), nil)
	if err != nil {
		return nil, err
	}
	if n >= 0 {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", off, off+n-1))
	}
	resp, err := o.http.Do(req)
	if err != nil {
		return nil, namespace.E(namespace.Unavailable, "get", k.String(), err)
	}
	if resp.StatusCode != http.StatusOK {
		resp.Body.Close()
		return nil, namespace.E(namespace.NotExist, "get", k.String(), nil)
	}
	return resp.Body, nil
}

// anonymous returns the process's anonymous memory, in bytes: all that is neither a file's nor shared.
func anonymous(b *testing.B) int64 {
	raw, err := os.ReadFile("/proc/self/status")
	if err != nil {
		b.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(raw), "RssAnon:")
	var kib int64
	if _, err := fmt.Sscanf(rest, "%d", &kib); err != nil {
		b.Fatal(err)
	}
	return kib << 10
}

// BenchmarkFillSmall fills a cache with 50,000 files of 3,000 bytes from an origin on loopback, in a
// tree of 25 catalogs: files a second, and what memory that takes beyond what the origin itself does.
func BenchmarkFillSmall(b *testing.B) {
	f := newFixture(b, 25, 2000, 3000, layoutOf{40, 200, 0})
	f.plain = nil
	from := serveHTTP(b, f.origin.Origin)
	for b.Loop() {
		runtime.GC()
		debug.FreeOSMemory()
		before, most := anonymous(b), int64(0)
		c, err := Open(Options{Dir: b.TempDir(), QuotaBytes: 4 << 30})
		if err != nil {
			b.Fatal(err)
		}
		done := make(chan struct{})
		start := time.Now()
		go func() {
			defer close(done)
			if err := c.Reader(from).Hydrate(context.Background(), f.root, nil); err != nil {
				b.Error(err)
			}
		}()
		for filling := true; filling; {
			select {
			case <-done:
				filling = false
			case <-time.After(5 * time.Millisecond):
				most = max(most, anonymous(b)-before)
			}
		}
		b.ReportMetric(float64(len(f.refs))/time.Since(start).Seconds(), "files/s")
		b.ReportMetric(float64(most)/(1<<20), "MiB")
		if err := c.Close(); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkOpenMillion opens a cache of a million chunks in 64 segments after a clean end, after the death
// of its process, after a crash of the machine, and without its index.
func BenchmarkOpenMillion(b *testing.B) {
	dir := b.TempDir()
	c, err := Open(Options{Dir: dir, QuotaBytes: 1 << 40})
	if err != nil {
		b.Fatal(err)
	}
	const perFrame, frames = 40, 1 << 20 / 40
	plain := make([]byte, perFrame*64)
	for i := range frames {
		var chunks []object.FrameChunk
		for k := range perFrame {
			d, _ := numbered(i*perFrame + k)
			chunks = append(chunks, object.FrameChunk{Digest: d, Off: uint32(k * 64), Len: 64})
		}
		rec := append(make([]byte, recordPrefix(chunks)), plain...)
		c.segments.grain = 1 << 20
		seg, r, err := c.append(planned{Place: object.Place{FrameLen: uint32(len(plain)), FramePlain: uint32(len(plain)), Codec: object.Raw}, chunks: chunks}, rec)
		if err != nil {
			b.Fatal(err)
		}
		c.enter(seg, r)
	}
	if err := c.Close(); err != nil {
		b.Fatal(err)
	}
	lock := filepath.Join(dir, "lock")
	for what, disturb := range map[string]func() error{
		"closed": func() error { return nil },
		"killed": func() error {
			file, err := os.Open(lock)
			if err != nil {
				return err
			}
			defer file.Close()
			return os.WriteFile(lock, []byte("1\n"+machineRun(file)+"\n"), 0o600)
		},
		"crashed":  func() error { return os.WriteFile(lock, []byte("1\nanother\n"), 0o600) },
		"no-index": func() error { return os.Remove(filepath.Join(dir, "index.db")) },
	} {
		b.Run(what, func(b *testing.B) {
			for b.Loop() {
				b.StopTimer()
				if err := disturb(); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
				c, err := Open(Options{Dir: dir, QuotaBytes: 1 << 40})
				if err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				d, _ := numbered(12345)
				if !c.holds(d) {
					b.Fatal("a chunk is lost")
				}
				if err := c.Close(); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
		})
	}
}
