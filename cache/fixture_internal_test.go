package cache

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"testing"
	"time"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/catalog"
	"coppice.dev/coppice/namespace/object"
	"coppice.dev/coppice/namespace/storetest"
)

// fixture is a published tree: directories, each a catalog of its own, in one root catalog.
type fixture struct {
	origin *storetest.Faulty
	root   namespace.Digest
	refs   []namespace.ChunkRef // every chunk, in tree order
	plain  map[namespace.Digest][]byte
	packs  []namespace.Digest
}

// layoutOf says how fixtures are packed: frames of so many chunks, packs of so many frames. pad
// bytes in front move every frame.
type layoutOf struct{ chunks, frames, pad int }

// newFixture publishes dirs directories of files files of size bytes.
func newFixture(t testing.TB, dirs, files, size int, lay layoutOf) *fixture {
	t.Helper()
	return newFixtureFrom(t, 0, dirs, files, size, lay)
}

// newFixtureFrom is newFixture with other content for each seed, far enough from another.
func newFixtureFrom(t testing.TB, seed, dirs, files, size int, lay layoutOf) *fixture {
	t.Helper()
	f := &fixture{origin: &storetest.Faulty{Origin: storetest.NewMem()}, plain: map[namespace.Digest][]byte{}}
	root := &catalog.Node{Attr: catalog.Attr{Type: catalog.Dir, Mode: 0o755}}
	for i := range dirs {
		dir := &catalog.Node{Attr: catalog.Attr{Type: catalog.Dir, Mode: 0o755}}
		for k := range files {
			b := content(uint64(seed+i*files+k), size)
			d := namespace.Sum(b)
			f.plain[d] = b
			dir.Children = append(dir.Children, &catalog.Node{Name: fmt.Sprintf("f%05d", k),
				Attr:   catalog.Attr{Type: catalog.File, Mode: 0o644, Size: uint64(size), Nlink: 1},
				Chunks: []catalog.Chunk{{Digest: d, End: uint64(size)}}})
		}
		b, err := catalog.Encode(dir)
		if err != nil {
			t.Fatal(err)
		}
		cat, err := catalog.Open(b)
		if err != nil {
			t.Fatal(err)
		}
		d := f.putBlob(t, b)
		f.publish(t, d, cat, lay)
		root.Children = append(root.Children, &catalog.Node{Name: fmt.Sprintf("d%05d", i), Attr: dir.Attr,
			Nested: &catalog.Nested{Digest: d, Entries: cat.Total(), Bytes: cat.Bytes()}})
	}
	b, err := catalog.Encode(root)
	if err != nil {
		t.Fatal(err)
	}
	f.root = f.putBlob(t, b)
	return f
}

// content is size bytes, half of which compress.
func content(seed uint64, size int) []byte {
	b := storetest.Bytes(seed, size)
	clear(b[size/2:])
	return b
}

func (f *fixture) put(t testing.TB, c namespace.Class, d namespace.Digest, b []byte) {
	t.Helper()
	if err := f.origin.Origin.Put(t.Context(), namespace.Key{Class: c, Digest: d}, b); err != nil {
		t.Fatal(err)
	}
}

func (f *fixture) putBlob(t testing.TB, b []byte) namespace.Digest {
	d := namespace.Sum(b)
	f.put(t, namespace.Blob, d, object.EncodeBlob(b))
	return d
}

// publish packs the chunks of a catalog and stores its locator.
func (f *fixture) publish(t testing.TB, d namespace.Digest, cat *catalog.Catalog, lay layoutOf) {
	t.Helper()
	places := make([]object.Place, cat.NumChunks())
	w := object.NewPackWriter()
	if lay.pad > 0 {
		b := storetest.Bytes(99, lay.pad)
		if err := w.Add(b, object.Raw, uint32(lay.pad), []object.FrameChunk{{Digest: namespace.Sum(b), Len: uint32(lay.pad)}}); err != nil {
			t.Fatal(err)
		}
	}
	begin := 0 // first chunk of the pack
	finish := func(end int) {
		pack, pd, frames := w.Finish()
		f.put(t, namespace.Pack, pd, pack)
		f.packs = append(f.packs, pd)
		at := map[namespace.Digest]object.Place{}
		for _, fr := range frames {
			for _, c := range fr.Chunks {
				at[c.Digest] = object.Place{Pack: pd, FrameOff: fr.Off, FrameLen: fr.Len, FramePlain: fr.Plain, Codec: fr.Codec, Off: c.Off}
			}
		}
		for k := begin; k < end; k++ {
			places[k] = at[cat.Chunk(k).Digest]
		}
		begin = end
	}
	for i := 0; i < cat.NumChunks(); i += lay.chunks {
		var plain []byte
		var chunks []object.FrameChunk
		for k := i; k < min(i+lay.chunks, cat.NumChunks()); k++ {
			b := f.plain[cat.Chunk(k).Digest]
			chunks = append(chunks, object.FrameChunk{Digest: cat.Chunk(k).Digest, Off: uint32(len(plain)), Len: uint32(len(b))})
			plain = append(plain, b...)
			f.refs = append(f.refs, namespace.ChunkRef{Catalog: d, Index: uint32(k), Digest: cat.Chunk(k).Digest, Size: uint32(len(b))})
		}
		stored, codec := object.EncodeFrame(plain)
		if err := w.Add(stored, codec, uint32(len(plain)), chunks); err != nil {
			t.Fatal(err)
		}
		if end := min(i+lay.chunks, cat.NumChunks()); (i/lay.chunks+1)%lay.frames == 0 || end == cat.NumChunks() {
			finish(end)
		}
	}
	f.put(t, namespace.Locator, d, object.EncodeLocator(places))
}

// openTest opens a cache that is closed at the test's end.
func openTest(t testing.TB, o Options) *Cache {
	t.Helper()
	if o.QuotaBytes == 0 {
		o.QuotaBytes = 1 << 30
	}
	if o.Logger == nil && testing.Verbose() {
		o.Logger = slog.New(slog.NewTextHandler(t.Output(), nil))
	}
	c, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// read reads a whole chunk and compares it.
func (f *fixture) read(ctx context.Context, r *Reader, ref namespace.ChunkRef) error {
	p := make([]byte, ref.Size+10)
	n, err := r.ReadChunk(ctx, ref, p, 0)
	if err == nil && !bytes.Equal(p[:n], f.plain[ref.Digest]) {
		err = fmt.Errorf("WRONG BYTES of chunk %s", ref.Digest)
	}
	return err
}

// readAll reads every chunk, in order.
func (f *fixture) readAll(t testing.TB, r *Reader) {
	t.Helper()
	for _, ref := range f.refs {
		if err := f.read(t.Context(), r, ref); err != nil {
			t.Fatal(err)
		}
	}
}

// eventually waits until ok.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for start := time.Now(); !ok(); <-time.After(time.Millisecond) {
		if time.Since(start) > 10*time.Second {
			t.Fatalf("%s: not within 10 s", what)
		}
	}
}

// crash drops a cache as a killed process would: nothing is flushed, the lock goes.
func (c *Cache) crash() {
	c.close.Do(func() {
		close(c.closing)
		c.flights.stop()
		c.work.Wait()
		c.release()
	})
}

// copyDir copies a cache's directory as a crash would leave it.
func copyDir(t testing.TB, from string) string {
	t.Helper()
	to := t.TempDir()
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	return to
}

// small is a full cache and the tree in it. It was closed, or crashed.
func small(t testing.TB, crash bool) (*fixture, string) {
	t.Helper()
	f := newFixture(t, 2, 12, 700, layoutOf{3, 2, 0})
	dir := t.TempDir()
	c := openTest(t, Options{Dir: dir})
	f.readAll(t, c.Reader(f.origin))
	if crash {
		c.crash()
	} else if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	return f, dir
}

// survives opens the cache in dir and reads everything, online.
func survives(t *testing.T, f *fixture, dir, what string) Stats {
	t.Helper()
	c, err := Open(Options{Dir: dir, QuotaBytes: 1 << 30})
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	defer func() {
		if err := c.Close(); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}()
	r := c.Reader(f.origin)
	for _, ref := range f.refs {
		if err := f.read(t.Context(), r, ref); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	return c.Stats()
}

func fileSize(t testing.TB, path string) int64 {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Size()
}

// flip inverts a byte of a file.
func flip(t testing.TB, path string, at int64) {
	t.Helper()
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	var b [1]byte
	if _, err := file.ReadAt(b[:], at); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 0xff
	if _, err := file.WriteAt(b[:], at); err != nil {
		t.Fatal(err)
	}
}
