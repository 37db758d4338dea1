package object

import (
	"bytes"
	"fmt"
	"io"
	"sync"

	chunkers "github.com/PlakarKorp/go-cdc-chunkers"
	_ "github.com/PlakarKorp/go-cdc-chunkers/chunkers/fastcdc" // registers the algorithm

	"coppice.dev/coppice/namespace"
)

// How large files are cut, part of the format: other values would give other digests.
const (
	cutAlgorithm = "fastcdc-v1.0.0"
	cutMin       = 256 << 10
	cutNormal    = 512 << 10
	cutMax       = namespace.ChunkBytesMax
)

// HoleSkipper is what a reader given to [Chunks] may implement to save reading zeros that the
// source knows of. SkipHole advances over the largest multiple of granule bytes that lies in a
// hole at the current position and returns how many; 0 is always a correct answer.
type HoleSkipper interface {
	SkipHole(granule int64) (int64, error)
}

// Cutter cuts files into extents. It owns its buffers and is used again for the next file. Not
// safe for concurrent use: one a goroutine.
type Cutter struct {
	whole []byte
	src   granules
}

// NewCutter returns a Cutter.
func NewCutter() *Cutter { return &Cutter{} }

// cutBuffers are shared by Cutters that meet no large file for a while.
var cutBuffers = sync.Pool{New: func() any { b := make([]byte, 2*cutMax); return &b }}

// Chunks calls emit for every extent of the size bytes of r, in order: data is a chunk, valid
// during the call, or empty for a hole of hole bytes. Files of at most ChunkWholeMax bytes are one
// chunk. In larger ones every aligned block of HoleBytes zeros belongs to a hole, whatever the
// source recorded, and the runs between holes are cut by content. An empty file has no extent.
// Memory is bounded. Errors: those of r (io.ErrUnexpectedEOF if it is shorter) and of emit.
func (c *Cutter) Chunks(r io.Reader, size int64, emit func(data []byte, hole uint64) error) error {
	if size < 0 {
		return namespace.E(namespace.Invalid, "cut file", "", fmt.Errorf("%d bytes", size))
	}
	if size > namespace.ChunkWholeMax {
		return c.large(r, size, emit)
	}
	if size == 0 {
		return nil
	}
	if c.whole == nil {
		c.whole = make([]byte, namespace.ChunkWholeMax)
	}
	if _, err := io.ReadFull(r, c.whole[:size]); err != nil {
		return short(err)
	}
	return emit(c.whole[:size], 0)
}

// Chunks is [Cutter.Chunks] with a Cutter of its own.
func Chunks(r io.Reader, size int64, emit func(data []byte, hole uint64) error) error {
	return NewCutter().Chunks(r, size, emit)
}

func (c *Cutter) large(r io.Reader, size int64, emit func([]byte, uint64) error) error {
	skipper, _ := r.(HoleSkipper)
	c.src = granules{r: r, skipper: skipper, left: size}
	buf := cutBuffers.Get().(*[]byte)
	defer cutBuffers.Put(buf)
	cut, err := chunkers.NewChunkerBuffer(cutAlgorithm, &c.src,
		&chunkers.ChunkerOpts{MinSize: cutMin, NormalSize: cutNormal, MaxSize: cutMax}, *buf)
	if err != nil {
		return namespace.E(namespace.Internal, "cut file", "", err)
	}
	for !c.src.done() {
		hole, err := c.src.hole()
		if err != nil {
			return short(err)
		}
		if hole > 0 {
			if err := emit(nil, uint64(hole)); err != nil {
				return err
			}
			continue
		}
		cut.Reset(&c.src)
		if err := cutRun(cut, emit); err != nil {
			return err
		}
	}
	return nil
}

// cutRun emits the chunks up to the next hole or the end.
func cutRun(cut *chunkers.Chunker, emit func([]byte, uint64) error) error {
	for {
		data, err := cut.Next()
		if err != nil && err != io.EOF {
			return err
		}
		if len(data) > 0 {
			if err := emit(data, 0); err != nil {
				return err
			}
		}
		if err == io.EOF || len(data) == 0 {
			return nil
		}
	}
}

func short(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// granules reads a file in aligned blocks of HoleBytes and ends, as a Reader, before each block
// of zeros; hole then tells how many follow.
type granules struct {
	r       io.Reader
	skipper HoleSkipper
	left    int64  // bytes not yet read from r
	next    []byte // read ahead: the block that ended the last hole, or what Read had no room for
	buf     [namespace.HoleBytes]byte
	zero    bool // the block just read was zeros; it is not yet counted
}

func (g *granules) done() bool { return g.left == 0 && len(g.next) == 0 && !g.zero }

// load reads the next block into b, of HoleBytes, and returns the part that is data; none if the
// block is a hole.
func (g *granules) load(b []byte) ([]byte, error) {
	n := min(g.left, namespace.HoleBytes)
	if _, err := io.ReadFull(g.r, b[:n]); err != nil {
		return nil, short(err)
	}
	g.left -= n
	if n == namespace.HoleBytes && allZero(b) {
		g.zero = true
		return nil, nil
	}
	return b[:n], nil
}

// Read implements io.Reader for a run of data.
func (g *granules) Read(p []byte) (int, error) {
	if len(g.next) == 0 {
		if g.left == 0 || g.zero {
			return 0, io.EOF
		}
		into := g.buf[:]
		if len(p) >= namespace.HoleBytes { // straight to the caller, one copy less
			into = p[:namespace.HoleBytes]
		}
		b, err := g.load(into)
		switch {
		case err != nil:
			return 0, err
		case g.zero:
			return 0, io.EOF
		case len(p) >= namespace.HoleBytes:
			return len(b), nil
		}
		g.next = b
	}
	n := copy(p, g.next)
	g.next = g.next[n:]
	return n, nil
}

// hole returns the length of the hole at the current position, 0 if data is there.
func (g *granules) hole() (int64, error) {
	var n int64
	if g.zero {
		g.zero, n = false, namespace.HoleBytes
	}
	for len(g.next) == 0 && g.left > 0 {
		if g.skipper != nil && g.left >= namespace.HoleBytes {
			k, err := g.skipper.SkipHole(namespace.HoleBytes)
			if err != nil {
				return 0, err
			}
			if k < 0 || k > g.left || k%namespace.HoleBytes != 0 {
				return 0, namespace.E(namespace.Internal, "skip hole", "", fmt.Errorf("%d of %d bytes", k, g.left))
			}
			if k > 0 {
				g.left -= k
				n += k
				continue
			}
		}
		b, err := g.load(g.buf[:])
		if err != nil {
			return 0, err
		}
		if g.zero {
			g.zero = false
			n += namespace.HoleBytes
		}
		g.next = b
	}
	return n, nil
}

var zeros [4096]byte

func allZero(b []byte) bool {
	for len(b) > 0 {
		n := min(len(b), len(zeros))
		if !bytes.Equal(b[:n], zeros[:n]) {
			return false
		}
		b = b[n:]
	}
	return true
}
