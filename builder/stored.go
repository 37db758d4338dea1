package builder

import (
	"bytes"
	"container/list"
	"context"
	"fmt"
	"io"
	"sync"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/catalog"
	"coppice.dev/coppice/namespace/object"
)

// storedFrames bounds the plaintext of frames that a Stored keeps, in bytes: some files of a
// directory share a frame, and readers go through a tree in order.
const storedFrames = 32 << 20

// Stored reads the trees that an origin holds, without an endpoint's cache: for tools that look
// into files, compare or export them. It implements catalog.Loader and keeps every catalog it
// loaded. Whatever it returns has been verified. Safe for concurrent use.
type Stored struct {
	from namespace.Fetcher

	mu       sync.Mutex // guards what follows; not held while from is asked
	catalogs map[namespace.Digest]*catalog.Catalog
	names    map[*catalog.Catalog]namespace.Digest
	locators map[namespace.Digest]*object.Locator
	frames   map[frameKey]*list.Element // of storedFrame
	recent   *list.List                 // most recent first
	held     int                        // bytes
}

type frameKey struct {
	pack namespace.Digest
	off  int64
}

type storedFrame struct {
	key      frameKey
	plain    []byte
	verified map[storedChunk]bool // guarded by Stored.mu
}

// storedChunk is a chunk that was found at an offset of a frame, as long as it should be.
type storedChunk struct {
	off, size uint32
	digest    namespace.Digest
}

// NewStored returns a reader of the trees in from.
func NewStored(from namespace.Fetcher) *Stored {
	return &Stored{
		from:     from,
		catalogs: map[namespace.Digest]*catalog.Catalog{},
		names:    map[*catalog.Catalog]namespace.Digest{},
		locators: map[namespace.Digest]*object.Locator{},
		frames:   map[frameKey]*list.Element{},
		recent:   list.New(),
	}
}

// Catalog implements catalog.Loader.
func (s *Stored) Catalog(ctx context.Context, d namespace.Digest) (*catalog.Catalog, error) {
	s.mu.Lock()
	c, ok := s.catalogs[d]
	s.mu.Unlock()
	if ok {
		return c, nil
	}
	stored, err := getAll(ctx, s.from, namespace.Key{Class: namespace.Blob, Digest: d}, namespace.CatalogBytesMax)
	if err != nil {
		return nil, err
	}
	b, err := object.DecodeBlob(stored, d, namespace.CatalogBytesMax)
	if err != nil {
		return nil, err
	}
	if c, err = catalog.Open(b); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if first, ok := s.catalogs[d]; ok {
		return first, nil
	}
	s.catalogs[d], s.names[c] = c, d
	return c, nil
}

// Digest returns the digest of a catalog that s loaded.
func (s *Stored) Digest(c *catalog.Catalog) namespace.Digest {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.names[c]
}

// Open returns the content of file i of the catalog c, which s loaded, from its beginning. The
// reader asks the origin as it goes; its errors are those of ReadFile.
func (s *Stored) Open(ctx context.Context, c *catalog.Catalog, i int) *StoredFile {
	return &StoredFile{s: s, ctx: ctx, c: c, entry: c.Entry(i)}
}

// ReadFile returns the content of file i of the catalog c, which s loaded, at most limit bytes.
// Kinds: Limit (it is larger), NotExist, Corrupt, Unavailable, Denied, Canceled.
func (s *Stored) ReadFile(ctx context.Context, c *catalog.Catalog, i int, limit uint64) ([]byte, error) {
	e := c.Entry(i)
	if e.Size > limit {
		return nil, namespace.E(namespace.Limit, "read", string(e.Name), fmt.Errorf("%d bytes, at most %d", e.Size, limit))
	}
	b := make([]byte, e.Size)
	if _, err := io.ReadFull(s.Open(ctx, c, i), b); err != nil && e.Size > 0 {
		return nil, err
	}
	return b, nil
}

// StoredFile is a file being read. It implements io.ReadSeeker; holes read as zeros. Not safe for
// concurrent use.
type StoredFile struct {
	s     *Stored
	ctx   context.Context
	c     *catalog.Catalog
	entry catalog.Entry
	off   uint64
	chunk []byte // verified plaintext of [start, end); nil for a hole
	start uint64
	end   uint64
}

// Size returns the file's size in bytes.
func (f *StoredFile) Size() int64 { return int64(f.entry.Size) }

// Seek implements io.Seeker.
func (f *StoredFile) Seek(off int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		off += int64(f.off)
	case io.SeekEnd:
		off += f.Size()
	}
	if off < 0 {
		return 0, namespace.E(namespace.Invalid, "seek", string(f.entry.Name), nil)
	}
	f.off = uint64(off)
	return off, nil
}

// Read implements io.Reader.
func (f *StoredFile) Read(p []byte) (int, error) {
	if f.off >= f.entry.Size {
		return 0, io.EOF
	}
	if f.off < f.start || f.off >= f.end {
		if err := f.load(); err != nil {
			return 0, err
		}
	}
	n := int(min(uint64(len(p)), f.end-f.off))
	if f.chunk == nil {
		clear(p[:n])
	} else {
		copy(p[:n], f.chunk[f.off-f.start:])
	}
	f.off += uint64(n)
	return n, nil
}

// load fetches the extent that holds f.off.
func (f *StoredFile) load() error {
	k, start, ok := f.c.FindChunk(f.entry.Index, f.off)
	if !ok {
		return namespace.E(namespace.Corrupt, "read", string(f.entry.Name), fmt.Errorf("no chunk at %d", f.off))
	}
	ch := f.c.Chunk(k)
	f.start, f.end, f.chunk = start, ch.End, nil
	if ch.Hole() {
		return nil
	}
	b, err := f.s.chunk(f.ctx, f.c, k, int(ch.End-start))
	if err != nil {
		f.end = f.start
		return err
	}
	f.chunk = b
	return nil
}

// ReadChunk copies bytes [off, off+len(p)) of a chunk, fewer at its end, into p, so that a mount can be
// made of what is stored. Kinds: those of ReadFile, Invalid (ref is not a chunk of its catalog).
func (s *Stored) ReadChunk(ctx context.Context, ref namespace.ChunkRef, p []byte, off int64) (int, error) {
	c, err := s.Catalog(ctx, ref.Catalog)
	if err != nil {
		return 0, err
	}
	if int(ref.Index) >= c.NumChunks() || c.Chunk(int(ref.Index)).Digest != ref.Digest || off < 0 || off > int64(ref.Size) {
		return 0, namespace.E(namespace.Invalid, "read", "chunk "+ref.Digest.String(), fmt.Errorf("not chunk %d of catalog %v", ref.Index, ref.Catalog))
	}
	b, err := s.chunk(ctx, c, int(ref.Index), int(ref.Size))
	if err != nil {
		return 0, err
	}
	return copy(p, b[off:]), nil
}

// chunk returns chunk k of the catalog c, of size bytes, verified.
func (s *Stored) chunk(ctx context.Context, c *catalog.Catalog, k, size int) ([]byte, error) {
	want := c.Chunk(k).Digest
	l, err := s.locator(ctx, s.Digest(c))
	if err != nil {
		return nil, err
	}
	if k >= l.Len() {
		return nil, namespace.E(namespace.Corrupt, "read chunk", want.String(), fmt.Errorf("its locator lacks it"))
	}
	p := l.Place(k)
	f, err := s.frame(ctx, p)
	if err != nil {
		return nil, err
	}
	if uint64(p.Off)+uint64(size) > uint64(len(f.plain)) {
		return nil, namespace.E(namespace.Corrupt, "read chunk", want.String(), fmt.Errorf("not within its frame"))
	}
	b := f.plain[p.Off:][:size:size]
	s.mu.Lock()
	at := storedChunk{p.Off, uint32(size), want}
	known := f.verified[at]
	s.mu.Unlock()
	if known {
		return b, nil
	}
	if namespace.Sum(b) != want {
		return nil, namespace.E(namespace.Corrupt, "read chunk", want.String(), fmt.Errorf("pack %v holds something else there", p.Pack))
	}
	s.mu.Lock()
	f.verified[at] = true
	s.mu.Unlock()
	return b, nil
}

func (s *Stored) locator(ctx context.Context, d namespace.Digest) (*object.Locator, error) {
	s.mu.Lock()
	l, ok := s.locators[d]
	s.mu.Unlock()
	if ok {
		return l, nil
	}
	stored, err := getAll(ctx, s.from, namespace.Key{Class: namespace.Locator, Digest: d}, namespace.LocatorBytesMax)
	if err != nil {
		return nil, err
	}
	if l, err = object.OpenLocator(stored); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.locators[d] = l
	return l, nil
}

// frame returns the frame at p, whose plaintext nobody may change.
func (s *Stored) frame(ctx context.Context, p object.Place) (*storedFrame, error) {
	key := frameKey{p.Pack, p.FrameOff}
	s.mu.Lock()
	if e, ok := s.frames[key]; ok {
		s.recent.MoveToFront(e)
		s.mu.Unlock()
		return e.Value.(*storedFrame), nil
	}
	s.mu.Unlock()
	pack := namespace.Key{Class: namespace.Pack, Digest: p.Pack}
	rc, err := s.from.Get(ctx, pack, p.FrameOff, int64(p.FrameLen))
	if err != nil {
		return nil, err
	}
	defer rc.Close()
	var stored bytes.Buffer
	stored.Grow(int(p.FrameLen) + bytes.MinRead)
	if _, err := stored.ReadFrom(io.LimitReader(rc, int64(p.FrameLen))); err != nil {
		return nil, namespace.E(namespace.KindOf(err), "read", pack.String(), err)
	}
	plain, err := object.DecodeFrame(nil, stored.Bytes(), p.Codec, int(p.FramePlain))
	if err != nil {
		return nil, namespace.E(namespace.KindOf(err), "read", pack.String(), err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if e, ok := s.frames[key]; ok { // somebody was faster
		return e.Value.(*storedFrame), nil
	}
	f := &storedFrame{key, plain, map[storedChunk]bool{}}
	s.frames[key] = s.recent.PushFront(f)
	s.held += len(plain)
	for s.held > storedFrames {
		last := s.recent.Remove(s.recent.Back()).(*storedFrame)
		delete(s.frames, last.key)
		s.held -= len(last.plain)
	}
	return f, nil
}
