package builder

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"errors"
	"io"

	"github.com/ulikunitz/xz"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/object"
)

// compressions are told by the bytes that a stream begins with.
var compressions = []struct {
	magic string
	open  func(io.Reader) (io.ReadCloser, error)
}{
	{"\x1f\x8b", object.NewGzipReader},
	{"\x28\xb5\x2f\xfd", object.NewZstdReader},
	{"\xfd7zXZ\x00", func(r io.Reader) (io.ReadCloser, error) {
		x, err := xz.NewReader(r)
		return io.NopCloser(x), err
	}},
	{"BZh", func(r io.Reader) (io.ReadCloser, error) { return io.NopCloser(bzip2.NewReader(r)), nil }},
}

// decompress returns the plain archive. The caller closes it; that does not close r.
// Errors: Corrupt, those of r.
func decompress(r io.Reader) (io.ReadCloser, error) {
	br := bufio.NewReaderSize(r, 1<<20)
	head, err := br.Peek(8)
	if err != nil && err != io.EOF {
		return nil, err
	}
	if len(head) == 0 { // a failed download, rather than the empty archive, which has an end marker
		return nil, namespace.E(namespace.Invalid, "decompress", "", errors.New("no data"))
	}
	for _, c := range compressions {
		if !bytes.HasPrefix(head, []byte(c.magic)) {
			continue
		}
		plain, err := c.open(br)
		if err != nil {
			return nil, namespace.E(archiveKind(err), "decompress", "", err)
		}
		return plain, nil
	}
	return io.NopCloser(br), nil
}

// endBytes is the marker at the end of a tar archive: two blocks of zeros.
const endBytes = 1024

// tailReader counts the zeros that the bytes read so far end with, up to endBytes.
type tailReader struct {
	r     io.Reader
	zeros int
}

// Read implements io.Reader.
func (t *tailReader) Read(b []byte) (int, error) {
	n, err := t.r.Read(b)
	run := 0
	for run < n && run < endBytes && b[n-1-run] == 0 {
		run++
	}
	if run == n {
		run += t.zeros
	}
	t.zeros = min(run, endBytes)
	return n, err
}
