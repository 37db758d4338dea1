package cache

import (
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
)

// stamp fills a frame so that one that was recycled too early shows.
func stamp(buf []byte, n int, key frameKey) []byte {
	buf = buf[:n]
	for i := 0; i+8 <= n; i += 1024 {
		binary.LittleEndian.PutUint32(buf[i:], key.seg)
		binary.LittleEndian.PutUint32(buf[i+4:], key.at)
	}
	return buf
}

func stamped(buf []byte, key frameKey) bool {
	for i := 0; i+8 <= len(buf); i += 1024 {
		if binary.LittleEndian.Uint32(buf[i:]) != key.seg || binary.LittleEndian.Uint32(buf[i+4:]) != key.at {
			return false
		}
	}
	return true
}

// Frames keep their bound under concurrent use, and a frame that is held is not written to.
func TestFramesBound(t *testing.T) {
	const (
		bound   = 4 << 20
		readers = 4
		largest = 2 << 20
	)
	fs := newFrames(bound)
	bad := errors.New("bad")
	var loads, peak atomic.Int64
	var all sync.WaitGroup
	for g := range readers {
		all.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(g), 1))
			for range 400 {
				key := frameKey{uint32(rng.IntN(3)), uint32(rng.IntN(30))}
				size := 100<<10 + int(key.at)*(60<<10)
				f, _, err := fs.get(key, uint32(size), rng.IntN(2) == 0, func(buf []byte) ([]byte, error) {
					loads.Add(1)
					if key.at == 13 {
						return nil, bad
					}
					return stamp(buf, size, key), nil
				})
				if key.at == 13 {
					if !errors.Is(err, bad) {
						t.Errorf("a frame that cannot be loaded: %v", err)
					}
					continue
				}
				if rng.IntN(20) == 0 {
					fs.forget(key)
				}
				if err != nil || len(f.buf) != size || !stamped(f.buf, key) {
					t.Errorf("frame %v: %v, or another's bytes", key, err)
					return
				}
				fs.mu.Lock()
				peak.Store(max(peak.Load(), int64(fs.bytes)))
				fs.mu.Unlock()
				fs.release(f)
			}
		})
	}
	all.Wait()
	// What is held may exceed the bound: a frame for each reader.
	if p := peak.Load(); p > bound+readers*largest {
		t.Errorf("%d bytes at the peak, bound %d", p, bound)
	}
	// The next load brings it down, and the sum is right.
	f, _, _ := fs.get(frameKey{9, 9}, 1, true, func(buf []byte) ([]byte, error) { return buf[:1], nil })
	fs.release(f)
	sum := 0
	for e := fs.lru.Front(); e != nil; e = e.Next() {
		sum += cap(e.Value.(*frame).buf)
	}
	if fs.bytes != sum || sum > bound || len(fs.byKey) != fs.lru.Len() {
		t.Errorf("%d bytes counted, %d kept, bound %d; %d keys, %d frames", fs.bytes, sum, bound, len(fs.byKey), fs.lru.Len())
	}
	if loads.Load() < 100 {
		t.Errorf("only %d loads: the test tests nothing", loads.Load())
	}
}

// Concurrent gets of one frame load it once, and the first demand is told to one of them.
func TestFramesLoadOnce(t *testing.T) {
	fs := newFrames(1 << 20)
	gate := make(chan struct{})
	var loads, firsts atomic.Int64
	var all, asked sync.WaitGroup
	for range 8 {
		asked.Add(1)
		all.Go(func() {
			asked.Done()
			f, first, err := fs.get(frameKey{1, 1}, 10, true, func(buf []byte) ([]byte, error) {
				<-gate
				loads.Add(1)
				return buf[:10], nil
			})
			if err != nil {
				t.Error(err)
				return
			}
			if first {
				firsts.Add(1)
			}
			fs.release(f)
		})
	}
	asked.Wait()
	close(gate)
	all.Wait()
	if loads.Load() != 1 || firsts.Load() != 1 {
		t.Errorf("%d loads, %d first demands", loads.Load(), firsts.Load())
	}
}

// What was decoded ahead is first demanded later.
func TestFramesAhead(t *testing.T) {
	fs := newFrames(1 << 20)
	load := func(buf []byte) ([]byte, error) { return buf[:10], nil }
	for i, want := range []struct{ demand, first bool }{{false, false}, {false, false}, {true, true}, {true, false}} {
		f, first, err := fs.get(frameKey{1, 1}, 10, want.demand, load)
		if err != nil || first != want.first {
			t.Errorf("get %d: first %v, %v", i, first, err)
		}
		fs.release(f)
	}
}
