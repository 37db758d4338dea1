package delta

import (
	"bytes"
	"fmt"
	"io"
	"runtime"
	"sync"

	"github.com/andybalholm/brotli"

	"coppice.dev/coppice/namespace"
)

// Codec says how a frame or an index is stored.
type Codec uint8

// The codecs.
const (
	Raw Codec = iota
	Brotli
	codecEnd
)

const (
	// packQuality is the second best: the best takes three times as long and saves two percent.
	packQuality = 10
	// packWindow, as a power of two, is what [deltaFrame] in builder fills.
	packWindow = 22
)

// pack returns the smallest stored form of plain, at some hundred KB/s. Brotli's model of the
// context of each byte makes of patches an eighth less than zstd does at its best level.
func pack(plain []byte) ([]byte, Codec) {
	var b bytes.Buffer
	w := brotli.NewWriterOptions(&b, brotli.WriterOptions{Quality: packQuality, LGWin: packWindow})
	_, err := w.Write(plain)
	if err != nil || w.Close() != nil || b.Len() >= len(plain) { // a Buffer takes all
		return plain, Raw
	}
	return b.Bytes(), Brotli
}

// packAll packs several frames, as many at a time as there are processors: it is by far the slowest
// part of making an object.
func packAll(plain [][]byte) (stored [][]byte, codecs []Codec) {
	stored, codecs = make([][]byte, len(plain)), make([]Codec, len(plain))
	next := make(chan int)
	var wg sync.WaitGroup
	for range min(runtime.GOMAXPROCS(0), len(plain)) {
		wg.Go(func() {
			for i := range next {
				stored[i], codecs[i] = pack(plain[i])
			}
		})
	}
	for i := range plain {
		next <- i
	}
	close(next)
	wg.Wait()
	return stored, codecs
}

// unpack returns the size bytes, at most limit, that are stored; it may alias stored. Memory
// follows what is really there: a claim is not believed beforehand.
func unpack(stored []byte, c Codec, size, limit int64) ([]byte, error) {
	const op = "unpack"
	if size < 0 || size > limit {
		return nil, namespace.E(namespace.Limit, op, "", fmt.Errorf("%d bytes, at most %d", size, limit))
	}
	switch {
	case c == Raw && int64(len(stored)) == size:
		return stored, nil
	case c != Brotli || int64(len(stored)) >= size:
		return nil, corrupt(op, "codec %d, %d bytes that should be %d", c, len(stored), size)
	}
	b := bytes.NewBuffer(make([]byte, 0, min(size, 64*int64(len(stored)))+bytes.MinRead))
	r := brotli.NewReader(bytes.NewReader(stored))
	if _, err := b.ReadFrom(io.LimitReader(r, size+1)); err != nil {
		return nil, corrupt(op, "%w", err)
	}
	if int64(b.Len()) != size {
		return nil, corrupt(op, "%d bytes or more, want %d", b.Len(), size)
	}
	return b.Bytes(), nil
}
