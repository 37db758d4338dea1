package builder

import (
	"bytes"
	"context"
	"fmt"
	"runtime"
	"sync"

	"golang.org/x/sync/errgroup"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/catalog"
	"coppice.dev/coppice/namespace/object"
	"coppice.dev/coppice/namespace/object/delta"
)

// VerifyOptions of [VerifyStore]. The zero value is the default.
type VerifyOptions struct {
	// Progress, if set, is told the objects and stored bytes read so far. From one goroutine at
	// a time.
	Progress func(objects, bytes uint64)
	// Problem, if set, is told what is wrong with which object ("pack sha256:…"), or below which
	// root. From one goroutine at a time.
	Problem func(subject string, err error)
}

// VerifyReport says what [VerifyStore] found.
type VerifyReport struct {
	Objects, Bytes uint64 // read, stored size
	Catalogs       uint64 // reachable from the roots
	Chunks         uint64 // references to chunks that were followed
	Problems       uint64
}

// VerifyStore reads every object of store and follows every reference from roots: bytes are those
// that names promise, every frame decodes, every chunk has its digest, every catalog opens and
// every locator leads to every chunk, deltas are well-formed. Problems are reported, not returned; the error is for what
// prevented the check. Kinds: those of the store but NotExist, Canceled.
func VerifyStore(ctx context.Context, store namespace.Store, roots []namespace.Digest, o VerifyOptions) (VerifyReport, error) {
	v := &verifier{ctx: ctx, store: store, o: o, packs: map[namespace.Digest]*packChunks{}}
	for _, step := range []func() error{
		func() error { return v.each(namespace.Pack, v.pack) },
		func() error { return v.each(namespace.Index, v.index) },
		func() error { return v.each(namespace.Blob, v.blob) },
		func() error { return v.each(namespace.Delta, v.delta) },
		func() error { return v.trees(roots) },
	} {
		if err := step(); err != nil {
			return v.report, err
		}
	}
	return v.report, nil
}

type verifier struct {
	ctx   context.Context
	store namespace.Store
	o     VerifyOptions

	mu     sync.Mutex // guards what follows, and calls of o
	report VerifyReport
	packs  map[namespace.Digest]*packChunks
}

// packChunks is what a pack was found to hold: only chunks whose digest was checked.
type packChunks struct{ at map[spot]namespace.Digest }

// spot is a place without its pack.
type spot struct {
	frameOff, frameLen, plain, off uint32
	codec                          object.Codec
}

func spotOf(p object.Place) spot {
	return spot{uint32(p.FrameOff), p.FrameLen, p.FramePlain, p.Off, p.Codec}
}

func (v *verifier) problem(subject string, err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.report.Problems++
	if v.o.Problem != nil {
		v.o.Problem(subject, err)
	}
}

// each reads all objects of a class and has check look at them, some at a time.
func (v *verifier) each(class namespace.Class, check func(namespace.Key, []byte) error) error {
	group, ctx := errgroup.WithContext(v.ctx)
	group.SetLimit(runtime.GOMAXPROCS(0))
	err := v.store.List(ctx, class, func(k namespace.Key, size int64) error {
		group.Go(func() error {
			b, err := v.get(ctx, k)
			if err != nil || b == nil {
				return err
			}
			if err := check(k, b); err != nil {
				v.problem(k.String(), err)
			}
			return nil
		})
		return ctx.Err()
	})
	if failed := group.Wait(); failed != nil {
		return failed
	}
	return err
}

var objectBytesMax = map[namespace.Class]int64{
	namespace.Blob: namespace.CatalogBytesMax, namespace.Pack: namespace.PackBytesMax,
	namespace.Locator: namespace.LocatorBytesMax, namespace.Index: namespace.IndexBytesMax,
	namespace.Delta: namespace.DeltaBytesMax,
}

// get returns an object's bytes, or nil if that is a problem, which is then reported.
func (v *verifier) get(ctx context.Context, k namespace.Key) ([]byte, error) {
	b, err := getAll(ctx, v.store, k, objectBytesMax[k.Class])
	switch {
	case err == nil:
	case namespace.IsKind(err, namespace.NotExist), namespace.IsKind(err, namespace.Corrupt), namespace.IsKind(err, namespace.Limit):
		v.problem(k.String(), err)
		return nil, nil
	default:
		return nil, err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.report.Objects++
	v.report.Bytes += uint64(len(b))
	if v.o.Progress != nil {
		v.o.Progress(v.report.Objects, v.report.Bytes)
	}
	return b, nil
}

func checkDigest(k namespace.Key, b []byte) error {
	if got := namespace.Sum(b); got != k.Digest {
		return namespace.E(namespace.Corrupt, "verify", k.String(), fmt.Errorf("its digest is %v", got))
	}
	return nil
}

// pack checks a pack, every frame and every chunk in it.
func (v *verifier) pack(k namespace.Key, b []byte) error {
	err := checkDigest(k, b)
	frames, bad := object.ReadPackDirectory(bytes.NewReader(b), int64(len(b)))
	if err == nil {
		err = bad
	}
	held := &packChunks{at: map[spot]namespace.Digest{}}
	var plain []byte
	for _, f := range frames {
		var failed error
		if plain, failed = object.DecodeFrame(plain, b[f.Off:f.Off+int64(f.Len)], f.Codec, int(f.Plain)); failed != nil {
			err = fmt.Errorf("frame at %d: %w", f.Off, failed)
			continue
		}
		for _, c := range f.Chunks {
			if namespace.Sum(plain[c.Off:c.Off+c.Len]) != c.Digest {
				err = namespace.E(namespace.Corrupt, "verify", k.String(), fmt.Errorf("chunk %v at %d+%d", c.Digest, f.Off, c.Off))
				continue
			}
			held.at[spotOf(placeOf(k.Digest, f, c))] = c.Digest
		}
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.packs[k.Digest] = held
	return err
}

// holds returns an error unless place holds chunk d.
func (v *verifier) holds(p object.Place, d namespace.Digest) error {
	held := v.packs[p.Pack]
	if held == nil {
		return namespace.E(namespace.NotExist, "verify", "pack "+p.Pack.String(), fmt.Errorf("chunk %v is said to be in it", d))
	}
	if held.at[spotOf(p)] != d {
		return namespace.E(namespace.Corrupt, "verify", "pack "+p.Pack.String(),
			fmt.Errorf("chunk %v is not at %d+%d", d, p.FrameOff, p.Off))
	}
	return nil
}

// index checks a segment. Packs that are gone may still be in it.
func (v *verifier) index(k namespace.Key, b []byte) error {
	if err := checkDigest(k, b); err != nil {
		return err
	}
	x, err := object.OpenIndex(b)
	if err != nil {
		return err
	}
	for r := range x.Records() {
		if v.packs[r.Place.Pack] == nil {
			continue
		}
		if err := v.holds(r.Place, r.Digest); err != nil {
			return err
		}
	}
	return nil
}

func (v *verifier) blob(k namespace.Key, b []byte) error {
	_, err := object.DecodeBlob(b, k.Digest, namespace.CatalogBytesMax)
	return err
}

// delta checks that every frame of a delta object decodes and that nothing follows the last. What
// it makes is not tried: endpoints verify that, and do without it when it is wrong.
func (v *verifier) delta(k namespace.Key, b []byte) error {
	o, err := delta.Open(b, k.Digest)
	if err != nil {
		return err
	}
	end, err := delta.Need(b)
	if err != nil {
		return err
	}
	for i, f := range o.Frames {
		if end = f.Off + int64(f.Len); end > int64(len(b)) {
			return namespace.E(namespace.Corrupt, "verify", k.String(), fmt.Errorf("frame %d ends at %d of %d bytes", i, end, len(b)))
		}
		if _, err := delta.DecodeFrame(f, b[f.Off:end]); err != nil {
			return fmt.Errorf("frame %d: %w", i, err)
		}
	}
	if end != int64(len(b)) {
		return namespace.E(namespace.Corrupt, "verify", k.String(), fmt.Errorf("%d bytes after the last frame", int64(len(b))-end))
	}
	return nil
}

// trees follows everything from roots, each catalog once.
func (v *verifier) trees(roots []namespace.Digest) error {
	seen := map[namespace.Digest]bool{}
	for _, root := range roots {
		todo := []treeCatalog{{digest: root}}
		for len(todo) > 0 {
			if err := v.ctx.Err(); err != nil {
				return namespace.E(namespace.KindOf(err), "verify", root.String(), err)
			}
			next := todo[len(todo)-1]
			todo = todo[:len(todo)-1]
			if seen[next.digest] {
				continue
			}
			seen[next.digest] = true
			below, err := v.catalog(next)
			if err != nil {
				return err
			}
			todo = append(todo, below...)
		}
	}
	return nil
}

// treeCatalog is a catalog and where it was met.
type treeCatalog struct {
	digest namespace.Digest
	path   string
}

// catalog checks one catalog with its locator and returns those it refers to.
func (v *verifier) catalog(t treeCatalog) ([]treeCatalog, error) {
	subject := fmt.Sprintf("catalog %v at /%s", t.digest, t.path)
	c, err := v.load(v.ctx, t.digest)
	if err != nil {
		return nil, v.tell(subject, err)
	}
	v.mu.Lock()
	v.report.Catalogs++
	v.mu.Unlock()
	if err := v.locator(t.digest, c); err != nil {
		if err := v.tell(subject, err); err != nil {
			return nil, err
		}
	}
	var below []treeCatalog
	loader := catalog.LoaderFunc(v.load)
	paths := map[int]string{0: t.path}
	for i := range c.Len() {
		for lo, hi := c.Children(i); lo < hi; lo++ {
			if e := c.Entry(lo); e.Type == catalog.Dir {
				paths[lo] = catalog.Join(paths[i], e.Name)
			}
		}
		ref, ok := c.Nested(i)
		if !ok {
			continue
		}
		if _, err := c.Enter(v.ctx, loader, i); err != nil {
			if err := v.tell(fmt.Sprintf("catalog %v at /%s", ref.Digest, paths[i]), err); err != nil {
				return nil, err
			}
			continue
		}
		below = append(below, treeCatalog{ref.Digest, paths[i]})
	}
	return below, nil
}

// tell reports err as a problem if it is one of the stored data; else it returns it.
func (v *verifier) tell(subject string, err error) error {
	switch namespace.KindOf(err) {
	case namespace.NotExist, namespace.Corrupt, namespace.Limit, namespace.Invalid:
		v.problem(subject, err)
		return nil
	}
	return err
}

func (v *verifier) load(ctx context.Context, d namespace.Digest) (*catalog.Catalog, error) {
	stored, err := getAll(ctx, v.store, namespace.Key{Class: namespace.Blob, Digest: d}, namespace.CatalogBytesMax)
	if err != nil {
		return nil, err
	}
	b, err := object.DecodeBlob(stored, d, namespace.CatalogBytesMax)
	if err != nil {
		return nil, err
	}
	return catalog.Open(b)
}

// locator checks that every chunk of c is where its locator says.
func (v *verifier) locator(d namespace.Digest, c *catalog.Catalog) error {
	k := namespace.Key{Class: namespace.Locator, Digest: d}
	stored, err := getAll(v.ctx, v.store, k, namespace.LocatorBytesMax)
	if err != nil {
		return err
	}
	l, err := object.OpenLocator(stored)
	if err != nil {
		return err
	}
	if l.Len() != c.NumChunks() {
		return namespace.E(namespace.Corrupt, "verify", k.String(), fmt.Errorf("%d places for %d chunks", l.Len(), c.NumChunks()))
	}
	for i := range l.Len() {
		ch, p := c.Chunk(i), l.Place(i)
		if ch.Hole() && p.IsZero() {
			continue
		}
		if err := v.holds(p, ch.Digest); err != nil {
			return err
		}
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.report.Chunks += uint64(l.Len())
	return nil
}
