package cache_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"testing"
	"time"

	"coppice.dev/coppice/cache"
	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/catalog"
	"coppice.dev/coppice/namespace/object"
	"coppice.dev/coppice/namespace/storetest"
)

const (
	quota     = 256 << 20
	frameFull = 128 << 10 // a frame of small chunks is closed at this size
	chunkFull = 1 << 20
)

// tree is a tree in an origin in memory, and what its chunks must read as.
type tree struct {
	mem    *storetest.Mem
	from   *storetest.Faulty // mem, with requests counted and faults
	root   namespace.Digest
	dirs   []namespace.Digest // catalogs of the directories
	chunks []chunk            // in tree order
	places map[namespace.Digest]object.Place
	packs  []namespace.Digest
	stored int64 // bytes of all frames
	frames int
}

// chunk is a chunk and its bytes.
type chunk struct {
	ref   namespace.ChunkRef
	plain []byte
}

// newTree makes a tree of directories, each a catalog of its own, with files of the given contents.
func newTree(t testing.TB, dirs ...[][]byte) *tree {
	t.Helper()
	mem := storetest.NewMem()
	tr := &tree{mem: mem, from: &storetest.Faulty{Origin: mem}, places: map[namespace.Digest]object.Place{}}
	tr.pack(t, dirs, false)
	root := dirNode("")
	plain := map[namespace.Digest][]byte{}
	for i, files := range dirs {
		ref := tr.split(t, dirNode("", fileNodes(files, plain)...))
		tr.dirs = append(tr.dirs, ref.Digest)
		d := dirNode(fmt.Sprintf("d%03d", i))
		d.Nested, d.Nlink = &ref, 2 // no directories in it
		root.Children = append(root.Children, d)
	}
	tr.root = tr.split(t, root).Digest
	for i := range tr.chunks {
		tr.chunks[i].plain = plain[tr.chunks[i].ref.Digest]
	}
	return tr
}

func dirNode(name string, children ...*catalog.Node) *catalog.Node {
	return &catalog.Node{Name: name, Attr: catalog.Attr{Type: catalog.Dir, Mode: 0o755}, Children: children}
}

// fileNodes makes files of contents, noting what their chunks read as.
func fileNodes(files [][]byte, plain map[namespace.Digest][]byte) []*catalog.Node {
	var nodes []*catalog.Node
	for i, b := range files {
		n := &catalog.Node{Name: fmt.Sprintf("f%06d", i), Attr: catalog.Attr{Type: catalog.File, Mode: 0o644, Size: uint64(len(b)), Nlink: 1}}
		var end uint64
		for _, part := range pieces(b) {
			end += uint64(len(part))
			d := namespace.Sum(part)
			plain[d] = part
			n.Chunks = append(n.Chunks, catalog.Chunk{Digest: d, End: end})
		}
		nodes = append(nodes, n)
	}
	return nodes
}

// pieces cuts a file into chunks.
func pieces(b []byte) (parts [][]byte) {
	for len(b) > 0 {
		n := min(len(b), chunkFull)
		parts, b = append(parts, b[:n]), b[n:]
	}
	return parts
}

// pack puts the frames of all files into packs. shifted puts other bytes first, so that the frames,
// though the same, are elsewhere, in another pack.
func (tr *tree) pack(t testing.TB, dirs [][][]byte, shifted bool) {
	t.Helper()
	p := packer{t: t, tr: tr, w: object.NewPackWriter(), seen: map[namespace.Digest]bool{}}
	if shifted {
		p.add(storetest.Bytes(999, 12345))
		p.flush()
	}
	for _, files := range dirs {
		for _, b := range files {
			for _, part := range pieces(b) {
				p.add(part)
			}
		}
		p.flush()
	}
	p.finish()
}

// packer collects chunks into frames and frames into packs.
type packer struct {
	t     testing.TB
	tr    *tree
	w     *object.PackWriter
	frame []byte
	in    []object.FrameChunk
	seen  map[namespace.Digest]bool
}

func (p *packer) add(part []byte) {
	d := namespace.Sum(part)
	if p.seen[d] {
		return
	}
	p.seen[d] = true
	if len(p.frame)+len(part) > frameFull {
		p.flush()
	}
	p.in = append(p.in, object.FrameChunk{Digest: d, Off: uint32(len(p.frame)), Len: uint32(len(part))})
	p.frame = append(p.frame, part...)
}

func (p *packer) flush() {
	if len(p.in) == 0 {
		return
	}
	stored, codec := object.EncodeFrame(p.frame)
	if err := p.w.Add(stored, codec, uint32(len(p.frame)), p.in); err != nil {
		p.t.Fatal(err)
	}
	p.frame, p.in = nil, nil
	if p.w.Size() >= namespace.PackBytesTarget {
		p.finish()
	}
}

func (p *packer) finish() {
	b, d, frames := p.w.Finish()
	p.tr.packs = append(p.tr.packs, d)
	put(p.t, p.tr.mem, namespace.Pack, d, b)
	for _, f := range frames {
		p.tr.frames++
		p.tr.stored += int64(f.Len)
		for _, c := range f.Chunks {
			p.tr.places[c.Digest] = object.Place{Pack: d, FrameOff: f.Off, FrameLen: f.Len, FramePlain: f.Plain, Codec: f.Codec, Off: c.Off}
		}
	}
}

// split stores the catalogs of a tree, with their locators.
func (tr *tree) split(t testing.TB, root *catalog.Node) catalog.Nested {
	t.Helper()
	var top catalog.Nested
	d, err := catalog.Split(root, func(b []byte, _ *catalog.Node) (namespace.Digest, error) {
		d := namespace.Sum(b)
		cat, err := catalog.Open(b)
		if err != nil {
			return d, err
		}
		top = catalog.Nested{Digest: d, Entries: cat.Total(), Bytes: cat.Bytes()}
		put(t, tr.mem, namespace.Blob, d, object.EncodeBlob(b))
		for i := range cat.NumChunks() {
			ref := namespace.ChunkRef{Catalog: d, Index: uint32(i), Digest: cat.Chunk(i).Digest, Size: uint32(cat.ChunkLen(i))}
			tr.chunks = append(tr.chunks, chunk{ref: ref})
		}
		tr.locate(t, d, tr.placesOf(d))
		return d, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	top.Digest = d
	return top
}

// placesOf returns where the chunks of a catalog are, in its order.
func (tr *tree) placesOf(cat namespace.Digest) (places []object.Place) {
	for _, c := range tr.chunks {
		if c.ref.Catalog == cat {
			places = append(places, tr.places[c.ref.Digest])
		}
	}
	return places
}

// locate stores a catalog's locator.
func (tr *tree) locate(t testing.TB, cat namespace.Digest, places []object.Place) {
	t.Helper()
	put(t, tr.mem, namespace.Locator, cat, object.EncodeLocator(places))
}

func put(t testing.TB, m *storetest.Mem, class namespace.Class, d namespace.Digest, b []byte) {
	t.Helper()
	if err := m.Put(context.Background(), namespace.Key{Class: class, Digest: d}, b); err != nil {
		t.Fatal(err)
	}
}

// replace changes what the origin has under an immutable name, as only a bad one would.
func (tr *tree) replace(t testing.TB, class namespace.Class, d namespace.Digest, change func([]byte) []byte) {
	t.Helper()
	k := namespace.Key{Class: class, Digest: d}
	b, err := storetest.ReadAll(t.Context(), tr.mem, k, 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	b = change(b)
	if err := tr.mem.Delete(t.Context(), k); err != nil {
		t.Fatal(err)
	}
	if b != nil {
		put(t, tr.mem, class, d, b)
	}
}

// smallFiles returns n files of some KiB each that do not compress, or half of each if compressible.
func smallFiles(seed uint64, n int, compressible bool) [][]byte {
	files := make([][]byte, n)
	for i := range files {
		files[i] = storetest.Bytes(seed<<32+uint64(i), 500+(i*7919)%9000)
		if compressible {
			clear(files[i][len(files[i])/2:])
		}
	}
	return files
}

// fetcher is a Fetcher made of a function.
type fetcher func(ctx context.Context, k namespace.Key, off, n int64) (io.ReadCloser, error)

func (f fetcher) Get(ctx context.Context, k namespace.Key, off, n int64) (io.ReadCloser, error) {
	return f(ctx, k, off, n)
}

// offline is an origin that nobody can reach.
var offline = fetcher(func(_ context.Context, k namespace.Key, _, _ int64) (io.ReadCloser, error) {
	return nil, namespace.E(namespace.Unavailable, "get object", k.String(), errors.New("no route to host"))
})

// open opens a cache; it is closed with the test unless that was done before.
func open(t testing.TB, o cache.Options) *cache.Cache {
	t.Helper()
	if o.QuotaBytes == 0 {
		o.QuotaBytes = quota
	}
	if o.Timeout == 0 {
		o.Timeout = 20 * time.Second
	}
	c, err := cache.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func shut(t testing.TB, c *cache.Cache) {
	t.Helper()
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
}

// errWrong is the one error that no damage excuses.
var errWrong = errors.New("wrong bytes")

// read reads a chunk and compares it.
func read(ctx context.Context, r *cache.Reader, c chunk) error {
	p := make([]byte, c.ref.Size)
	n, err := r.ReadChunk(ctx, c.ref, p, 0)
	if err != nil {
		return err
	}
	if n != len(c.plain) || !bytes.Equal(p, c.plain) {
		return fmt.Errorf("chunk %s: %w: %d of %d", c.ref.Digest, errWrong, n, len(c.plain))
	}
	return nil
}

// readAll reads chunks in order; each must be right.
func readAll(t testing.TB, r *cache.Reader, chunks []chunk) {
	t.Helper()
	for i, c := range chunks {
		if err := read(context.Background(), r, c); err != nil {
			t.Fatalf("chunk %d of %d: %v", i, len(chunks), err)
		}
	}
}

// readSome reads chunks and returns how many could be read; none may be wrong.
func readSome(t testing.TB, r *cache.Reader, chunks []chunk) (good int) {
	t.Helper()
	for _, c := range chunks {
		switch err := read(context.Background(), r, c); {
		case err == nil:
			good++
		case errors.Is(err, errWrong):
			t.Fatal(err)
		case namespace.IsKind(err, namespace.Internal):
			t.Errorf("an error of no kind: %v", err)
		}
	}
	return good
}

func putBlob(t testing.TB, tr *tree, b []byte) {
	t.Helper()
	put(t, tr.mem, namespace.Blob, namespace.Sum(b), object.EncodeBlob(b))
}
