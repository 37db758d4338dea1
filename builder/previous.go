package builder

import (
	"context"
	"sync"

	"golang.org/x/sys/unix"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/catalog"
)

// previous is the tree that an import follows. Where a large file has the size it had there, its
// content is first held against the chunks it had: if every digest is right the content is the same,
// and so are its cuts, and finding them anew, which costs as much as hashing, is saved. Nothing is
// believed but digests. Safe for concurrent use.
type previous struct {
	loader catalog.Loader
	root   namespace.Digest

	mu   sync.Mutex
	open map[namespace.Digest]*catalog.Catalog
}

func newPrevious(o Options) *previous {
	if o.Loader == nil || o.Previous.IsZero() {
		return nil
	}
	return &previous{loader: o.Loader, root: o.Previous, open: map[namespace.Digest]*catalog.Catalog{}}
}

// Catalog implements catalog.Loader, keeping what it loaded.
func (p *previous) Catalog(ctx context.Context, d namespace.Digest) (*catalog.Catalog, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if c := p.open[d]; c != nil {
		return c, nil
	}
	c, err := p.loader.Catalog(ctx, d)
	if err == nil {
		p.open[d] = c
	}
	return c, err
}

// chunks returns the chunks of the file at path if it has size bytes and no holes, else nil. That
// the tree cannot be read is no reason to fail: then the file is cut.
func (p *previous) chunks(ctx context.Context, path string, size uint64) []catalog.Chunk {
	if p == nil {
		return nil
	}
	c, e, err := catalog.Resolve(ctx, p, p.root, path)
	if err != nil || e.Type != catalog.File || e.Size != size {
		return nil
	}
	var all []catalog.Chunk
	for k, hi := c.Chunks(e.Index); k < hi; k++ {
		ch := c.Chunk(k)
		if ch.Hole() {
			return nil
		}
		all = append(all, ch)
	}
	return all
}

// streamLike emits the content of f as the chunks it had. It returns false at the first one that is
// another, having emitted those before.
func (s *dirScan) streamLike(f *foundFile, fd int, was []catalog.Chunk, emit func(parcel) error) (bool, error) {
	var start uint64
	for _, c := range was {
		buf := newBuffer(int(c.End - start))
		data := buf.b[:c.End-start]
		if !preadFull(fd, data, int64(start)) || namespace.Sum(data) != c.Digest {
			buf.release()
			return false, nil
		}
		if err := emit(parcel{extents: []extent{{node: f.node, data: data, digest: c.Digest}}, buf: buf}); err != nil {
			return false, err
		}
		start = c.End
	}
	return len(was) > 0, nil
}

// preadFull fills b from off on. It returns false if it cannot, for whatever reason: whoever reads
// the file again meets it.
func preadFull(fd int, b []byte, off int64) bool {
	for n := 0; n < len(b); {
		k, err := unix.Pread(fd, b[n:], off+int64(n))
		switch {
		case err == unix.EINTR:
		case err != nil || k == 0:
			return false
		default:
			n += k
		}
	}
	return true
}
