package object

import (
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"coppice.dev/coppice/namespace"
)

// streamWindowMax is the largest window of a zstd stream that is accepted, hence its memory: what
// the zstd program takes without being asked.
const streamWindowMax = 128 << 20

// NewZstdReader returns a reader of the zstd stream r, such as a compressed tar archive. The caller
// closes it; that does not close r. Errors: Corrupt when the stream does not begin as one; later,
// what the decoder and r return.
func NewZstdReader(r io.Reader) (io.ReadCloser, error) {
	d, err := zstd.NewReader(r, zstd.WithDecoderMaxWindow(streamWindowMax), zstd.WithDecoderConcurrency(2))
	if err != nil {
		return nil, namespace.E(namespace.Corrupt, "read zstd", "", err)
	}
	return d.IOReadCloser(), nil
}

// NewGzipReader is [NewZstdReader] for gzip.
func NewGzipReader(r io.Reader) (io.ReadCloser, error) {
	d, err := gzip.NewReader(r)
	if err != nil {
		return nil, namespace.E(namespace.Corrupt, "read gzip", "", err)
	}
	return d, nil
}

// NewGzipWriter returns a writer of a gzip stream to w, the same for the same bytes. The caller
// closes it, which does not close w. Errors: those of w.
func NewGzipWriter(w io.Writer) io.WriteCloser {
	z, _ := gzip.NewWriterLevel(w, gzip.DefaultCompression) // fails for levels that there are not
	return z
}

// NewZstdWriter is [NewGzipWriter] for zstd.
func NewZstdWriter(w io.Writer) io.WriteCloser {
	z, _ := zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.SpeedDefault)) // no option that can fail
	return z
}
