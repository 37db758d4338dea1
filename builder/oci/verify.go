package oci

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"hash"
	"io"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"coppice.dev/coppice/builder"
	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/object"
)

// verified reads bytes and fails at their end, or before, if they are not those that want names.
type verified struct {
	r    io.Reader
	h    hash.Hash
	want v1.Hash
	left int64 // bytes that must follow; -1 if that is not known
}

// newVerified checks the bytes of r, size of them or any number if size is -1. Errors: Invalid (the
// digest is not one that is known).
func newVerified(r io.Reader, want v1.Hash, size int64) (*verified, error) {
	h, err := v1.Hasher(want.Algorithm)
	if err != nil {
		return nil, namespace.E(namespace.Invalid, "verify", want.String(), err)
	}
	return &verified{r, h, want, size}, nil
}

// Read implements io.Reader. Errors: Corrupt, those of the reader below.
func (v *verified) Read(b []byte) (int, error) {
	n, err := v.r.Read(b)
	v.h.Write(b[:n])
	if v.left >= 0 {
		if v.left -= int64(n); v.left < 0 {
			return n, v.corrupt("there are more bytes than were promised")
		}
	}
	if err != nil && err != io.EOF && v.left == 0 && v.sum() != v.want.Hex {
		return n, v.corrupt("the bytes have another digest") // as whoever reads below has noticed too
	}
	if err != io.EOF {
		return n, err
	}
	if v.left > 0 {
		return n, v.corrupt(fmt.Sprintf("%d bytes are missing", v.left))
	}
	if got := v.sum(); got != v.want.Hex {
		return n, v.corrupt("the bytes have digest " + v.want.Algorithm + ":" + got)
	}
	return n, io.EOF
}

func (v *verified) sum() string { return fmt.Sprintf("%x", v.h.Sum(nil)) }

func (v *verified) corrupt(why string) error {
	return namespace.E(namespace.Corrupt, "verify", v.want.String(), fmt.Errorf("%s", why))
}

// layer returns layer n of an image, whose stored bytes are d and whose archive is diff.
func layer(s source, n int, d v1.Descriptor, diff v1.Hash) builder.Layer {
	name := fmt.Sprintf("layer %d (%s)", n, diff)
	return builder.Layer{Name: name, Open: func(ctx context.Context) (io.ReadCloser, error) {
		raw, err := s.blob(ctx, d)
		if err != nil {
			return nil, err
		}
		l, err := openLayer(raw, d, diff)
		if err != nil {
			raw.Close()
			return nil, namespace.E(kindOf(err), "open", name, err)
		}
		return l, nil
	}}
}

// layerReader reads a layer's archive: decompressed, and verified on both sides of that.
type layerReader struct {
	plain  *verified
	stored io.Reader
	close  []io.Closer
}

func openLayer(raw io.ReadCloser, d v1.Descriptor, diff v1.Hash) (*layerReader, error) {
	var checked io.Reader = raw
	if d.Digest.Hex != "" { // an archive of docker names only what layers hold
		v, err := newVerified(raw, d.Digest, d.Size)
		if err != nil {
			return nil, err
		}
		checked = v
	}
	l := &layerReader{stored: bufio.NewReaderSize(checked, 1<<20), close: []io.Closer{raw}}
	plain, err := decompress(l.stored.(*bufio.Reader))
	if err != nil {
		return nil, err
	}
	early := newAhead(plain)
	l.close = append(l.close, plain, early)
	if l.plain, err = newVerified(early, diff, -1); err != nil {
		early.Close()
		plain.Close()
		return nil, err
	}
	return l, nil
}

// decompress tells a layer's compression by its first bytes, as container engines do.
func decompress(r *bufio.Reader) (io.ReadCloser, error) {
	head, err := r.Peek(4)
	if err != nil && err != io.EOF {
		return nil, err
	}
	switch {
	case bytes.HasPrefix(head, []byte("\x1f\x8b")):
		return object.NewGzipReader(r)
	case bytes.HasPrefix(head, []byte("\x28\xb5\x2f\xfd")):
		return object.NewZstdReader(r)
	}
	return io.NopCloser(r), nil
}

// aheadBytes and aheadBuffers bound what is decompressed before it is wanted.
const (
	aheadBytes   = 256 << 10
	aheadBuffers = 4
)

// ahead reads in a goroutine of its own, so that decompression and what uses it run side by side.
type ahead struct {
	full chan piece
	free chan []byte
	quit chan struct{}
	done chan struct{}
	at   piece
	rest []byte // of at
}

// piece is what was read, and the error that followed.
type piece struct {
	b   []byte
	n   int
	err error
}

// newAhead starts to read r, until its end or Close.
func newAhead(r io.Reader) *ahead {
	a := &ahead{full: make(chan piece, aheadBuffers), free: make(chan []byte, aheadBuffers),
		quit: make(chan struct{}), done: make(chan struct{})}
	for range aheadBuffers {
		a.free <- make([]byte, aheadBytes)
	}
	go a.run(r)
	return a
}

func (a *ahead) run(r io.Reader) {
	defer close(a.done)
	for {
		select {
		case <-a.quit:
			return
		case b := <-a.free:
			p := piece{b: b}
			for p.n < len(b) && p.err == nil {
				var n int
				n, p.err = r.Read(b[p.n:])
				p.n += n
			}
			a.full <- p // there is room: as much as there are buffers
			if p.err != nil {
				return
			}
		}
	}
}

// Read implements io.Reader.
func (a *ahead) Read(b []byte) (int, error) {
	for len(a.rest) == 0 {
		if a.at.err != nil {
			return 0, a.at.err
		}
		if a.at.b != nil {
			a.free <- a.at.b
		}
		a.at = <-a.full
		a.rest = a.at.b[:a.at.n]
	}
	n := copy(b, a.rest)
	a.rest = a.rest[n:]
	return n, nil
}

// Close ends the goroutine, and waits for it: what it reads is closed next.
func (a *ahead) Close() error {
	close(a.quit)
	<-a.done
	return nil
}

// Read implements io.Reader.
func (l *layerReader) Read(b []byte) (int, error) {
	n, err := l.plain.Read(b)
	if err == io.EOF { // what follows the compressed stream counts for the digest
		if _, rest := io.Copy(io.Discard, l.stored); rest != nil {
			return n, rest
		}
	}
	return n, err
}

// Close implements io.Closer.
func (l *layerReader) Close() error {
	for i := len(l.close) - 1; i >= 0; i-- {
		l.close[i].Close()
	}
	return nil
}
