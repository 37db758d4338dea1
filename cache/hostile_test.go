package cache_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"regexp"
	"strings"
	"testing"

	"coppice.dev/coppice/cache"
	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/object"
	"coppice.dev/coppice/namespace/storetest"
)

func contextCanceled(t *testing.T) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	return ctx, cancel
}

// body wraps what an honest origin answers for a class.
func body(honest namespace.Fetcher, class namespace.Class, wrap func(io.Reader) io.Reader) fetcher {
	return func(ctx context.Context, k namespace.Key, off, n int64) (io.ReadCloser, error) {
		b, err := honest.Get(ctx, k, off, n)
		if err != nil || k.Class != class {
			return b, err
		}
		return struct {
			io.Reader
			io.Closer
		}{wrap(b), b}, nil
	}
}

// flipped inverts every bit of every byte.
type flipped struct{ io.Reader }

func (f flipped) Read(p []byte) (int, error) {
	n, err := f.Reader.Read(p)
	for i := range p[:n] {
		p[i] = ^p[i]
	}
	return n, err
}

// endless repeats a byte for ever.
type endless byte

func (e endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = byte(e)
	}
	return len(p), nil
}

// broken fails in the middle.
func broken(r io.Reader, after int64) io.Reader {
	return io.MultiReader(io.LimitReader(r, after), failing{})
}

type failing struct{}

func (failing) Read([]byte) (int, error) {
	return 0, namespace.E(namespace.Unavailable, "read body", "", errors.New("connection reset"))
}

// An origin that lies about bytes is refused, with the right kind, naming what it lied about; nothing
// of it is kept, and an honest one serves afterwards.
func TestHostileBodies(t *testing.T) {
	for name, tc := range map[string]struct {
		class namespace.Class
		wrap  func(io.Reader) io.Reader
		want  namespace.Kind
	}{
		"pack flipped":      {namespace.Pack, func(r io.Reader) io.Reader { return flipped{r} }, namespace.Corrupt},
		"pack truncated":    {namespace.Pack, func(r io.Reader) io.Reader { return io.LimitReader(r, 1000) }, namespace.Unavailable},
		"pack empty":        {namespace.Pack, func(r io.Reader) io.Reader { return strings.NewReader("") }, namespace.Unavailable},
		"pack reset":        {namespace.Pack, func(r io.Reader) io.Reader { return broken(r, 1000) }, namespace.Unavailable},
		"pack endless":      {namespace.Pack, func(r io.Reader) io.Reader { return endless(0) }, namespace.Corrupt},
		"pack of an error":  {namespace.Pack, func(r io.Reader) io.Reader { return io.MultiReader(strings.NewReader("<html>"), endless(' ')) }, namespace.Corrupt},
		"catalog flipped":   {namespace.Blob, func(r io.Reader) io.Reader { return flipped{r} }, namespace.Corrupt},
		"catalog truncated": {namespace.Blob, func(r io.Reader) io.Reader { return io.LimitReader(r, 100) }, namespace.Corrupt},
		"catalog empty":     {namespace.Blob, func(r io.Reader) io.Reader { return strings.NewReader("") }, namespace.Corrupt},
		"catalog reset":     {namespace.Blob, func(r io.Reader) io.Reader { return broken(r, 10) }, namespace.Unavailable},
		"catalog appended":  {namespace.Blob, func(r io.Reader) io.Reader { return io.MultiReader(r, strings.NewReader("more")) }, namespace.Corrupt},
		"locator flipped":   {namespace.Locator, func(r io.Reader) io.Reader { return flipped{r} }, namespace.Corrupt},
		"locator truncated": {namespace.Locator, func(r io.Reader) io.Reader { return io.LimitReader(r, 20) }, namespace.Corrupt},
		"locator reset":     {namespace.Locator, func(r io.Reader) io.Reader { return broken(r, 10) }, namespace.Unavailable},
	} {
		t.Run(name, func(t *testing.T) {
			tr := newTree(t, smallFiles(1, 40, false))
			refused(t, tr, body(tr.mem, tc.class, tc.wrap), tr.mem, tc.want)
		})
	}
}

// refused reads from a hostile origin, then without one, then from an honest one.
func refused(t *testing.T, tr *tree, hostile, honest namespace.Fetcher, want ...namespace.Kind) {
	t.Helper()
	dir := t.TempDir()
	c := open(t, cache.Options{Dir: dir})
	ch := tr.chunks[len(tr.chunks)/2]
	err := read(t.Context(), c.Reader(hostile), ch)
	isOne := false
	for _, k := range want {
		isOne = isOne || namespace.IsKind(err, k)
	}
	if err == nil || !isOne {
		t.Errorf("read: %v, want one of %v", err, want)
	} else if !names(err) {
		t.Errorf("the error names no object: %v", err)
	}
	readSome(t, c.Reader(hostile), tr.chunks)
	good := 0
	for range 2 {
		good = readSome(t, c.Reader(offline), tr.chunks)
		if rep, err := c.Verify(t.Context(), false); err != nil || rep.Damaged != 0 {
			t.Errorf("it was kept: %+v, %v", rep, err)
		}
		shut(t, c)
		c = open(t, cache.Options{Dir: dir})
	}
	if good == len(tr.chunks) {
		t.Error("everything was kept: the test tests nothing")
	}
	readAll(t, c.Reader(honest), tr.chunks)
}

// names reports whether an error says what it is about: an object, by its digest.
func names(err error) bool { return digestName.MatchString(err.Error()) }

var digestName = regexp.MustCompile(`sha256:[0-9a-f]{64}`)

// A blob that is larger than it may be is not read to its end.
func TestEndlessBlob(t *testing.T) {
	tr := newTree(t, smallFiles(1, 3, false))
	r := open(t, cache.Options{Dir: t.TempDir()}).Reader(body(tr.mem, namespace.Blob, func(io.Reader) io.Reader { return endless(7) }))
	if _, err := r.Blob(t.Context(), tr.root, 1<<20); !namespace.IsKind(err, namespace.Limit) {
		t.Errorf("an endless blob: %v, want limit", err)
	}
}

// A catalog that is another's, both well-formed.
func TestOtherCatalog(t *testing.T) {
	tr, other := newTree(t, smallFiles(1, 40, false)), newTree(t, smallFiles(2, 40, false))
	b, err := storetest.ReadAll(t.Context(), other.mem, namespace.Key{Class: namespace.Blob, Digest: other.dirs[0]}, 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	hostile := body(tr.mem, namespace.Blob, func(io.Reader) io.Reader { return bytes.NewReader(b) })
	refused(t, tr, hostile, tr.mem, namespace.Corrupt)
}

// A locator is not trusted: wherever it leads, the bytes are right or there are none.
func TestHostileLocators(t *testing.T) {
	for name, change := range map[string]func(tr *tree, p []object.Place) []object.Place{
		"short":    func(_ *tree, p []object.Place) []object.Place { return p[:len(p)/2] },
		"long":     func(_ *tree, p []object.Place) []object.Place { return append(p, p[0]) },
		"empty":    func(*tree, []object.Place) []object.Place { return nil },
		"holes":    func(_ *tree, p []object.Place) []object.Place { clear(p); return p },
		"rotated":  func(_ *tree, p []object.Place) []object.Place { return append(p[1:], p[0]) },
		"reversed": reversed,
		"shifted":  each(func(p *object.Place) { p.FrameOff++ }),
		"no pack":  each(func(p *object.Place) { p.Pack[0]++ }),
		"behind":   each(func(p *object.Place) { p.FrameOff += 32 << 20 }),
		"short frame": each(func(p *object.Place) {
			p.FrameLen, p.FramePlain, p.Codec, p.Off = p.FrameLen/2, p.FrameLen/2, object.Raw, p.Off/4
		}),
		"large frame": each(func(p *object.Place) { p.FramePlain, p.Codec = namespace.FrameBytesMax, object.Zstd }),
		"offsets":     each(func(p *object.Place) { p.Off /= 2 }),
		"same":        each(func(p *object.Place) { p.Off = 0 }),
		"overlapping": func(_ *tree, p []object.Place) []object.Place {
			for i := range p {
				p[i].FrameOff += int64(i)
			}
			return p
		},
	} {
		t.Run(name, func(t *testing.T) {
			tr := newTree(t, smallFiles(1, 60, false))
			places := change(tr, tr.placesOf(tr.dirs[0]))
			bad := object.EncodeLocator(places)
			hostile := body(tr.mem, namespace.Locator, func(io.Reader) io.Reader { return bytes.NewReader(bad) })
			refused(t, tr, hostile, tr.mem, namespace.Corrupt, namespace.NotExist, namespace.Unavailable)
		})
	}
}

func each(fn func(p *object.Place)) func(*tree, []object.Place) []object.Place {
	return func(_ *tree, places []object.Place) []object.Place {
		for i := range places {
			fn(&places[i])
		}
		return places
	}
}

func reversed(_ *tree, p []object.Place) []object.Place {
	r := make([]object.Place, 0, len(p))
	for i := range p {
		r = append(r, p[len(p)-1-i])
	}
	return r
}

// An origin whose errors say anything: the reader passes on what they mean.
func TestOriginErrors(t *testing.T) {
	tr := newTree(t, smallFiles(1, 10, false))
	for _, k := range []namespace.Kind{namespace.NotExist, namespace.Unavailable, namespace.Denied, namespace.Limit} {
		for _, class := range []namespace.Class{namespace.Blob, namespace.Locator, namespace.Pack} {
			c := open(t, cache.Options{Dir: t.TempDir()})
			bad := fetcher(func(ctx context.Context, key namespace.Key, off, n int64) (io.ReadCloser, error) {
				if key.Class == class {
					return nil, namespace.E(k, "get object", key.String(), nil)
				}
				return tr.mem.Get(ctx, key, off, n)
			})
			if err := read(t.Context(), c.Reader(bad), tr.chunks[0]); !namespace.IsKind(err, k) || !names(err) {
				t.Errorf("%v for a %v: %v", k, class, err)
			}
			shut(t, c)
		}
	}
}

// A locator that was right once: its pack is gone, another one holds the same frames, and a new
// locator says where. Reads heal themselves.
func TestStaleLocator(t *testing.T) {
	files := smallFiles(1, 60, false)
	tr := newTree(t, files)
	dir := t.TempDir()
	c := open(t, cache.Options{Dir: dir})
	if err := read(t.Context(), c.Reader(tr.from), tr.chunks[0]); err != nil { // the locator is here now
		t.Fatal(err)
	}
	shut(t, c)
	for _, p := range glob(t, dir, "segments/*.seg", "index.db") {
		edit(t, p, func([]byte) []byte { return nil })
	}
	tr.replace(t, namespace.Pack, tr.packs[0], func([]byte) []byte { return nil })
	tr.pack(t, [][][]byte{files}, true)
	tr.locate(t, tr.dirs[0], tr.placesOf(tr.dirs[0]))
	c = open(t, cache.Options{Dir: dir})
	readAll(t, c.Reader(tr.from), tr.chunks)
}

// The same within one life of a cache, and for hydration.
func TestStaleLocatorHydrate(t *testing.T) {
	files := [][][]byte{smallFiles(1, 300, false), smallFiles(2, 300, false)}
	tr := newTree(t, files...)
	c := open(t, cache.Options{Dir: t.TempDir()})
	r := c.Reader(tr.from)
	for _, i := range []int{0, len(tr.chunks) - 1} {
		if err := read(t.Context(), r, tr.chunks[i]); err != nil {
			t.Fatal(err)
		}
	}
	tr.replace(t, namespace.Pack, tr.packs[0], func([]byte) []byte { return nil })
	tr.pack(t, files, true)
	for _, d := range tr.dirs {
		tr.locate(t, d, tr.placesOf(d))
	}
	if err := r.Hydrate(t.Context(), tr.root, nil); err != nil {
		t.Error(err)
	}
	readAll(t, c.Reader(offline), tr.chunks)
}
