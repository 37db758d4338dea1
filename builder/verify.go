package builder

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"runtime"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/catalog"
	"coppice.dev/coppice/namespace/object"
	"coppice.dev/coppice/namespace/object/delta"
)

// VerifyOptions of [VerifyStore]. The zero value is the default.
type VerifyOptions struct {
	// Quick follows references and checks sizes, and reads catalogs, locators and the directories of
	// packs, but no content.
	Quick bool
	// Names are what people call the roots. With them faults say which versions need what is
	// damaged, and a version that a collection dropped is no fault.
	Names []NamedRoot
	// Layouts are those that records of profiles name: everything is where they say. That one is missing
	// is no fault if its version was dropped.
	Layouts []namespace.LayoutRef
	// Total, if set, is told how many objects and stored bytes there are to read, once, beforehand;
	// with Quick these are at most so many catalogs, and no bytes are counted.
	Total func(objects, bytes uint64)
	// Progress, if set, is told the objects and stored bytes read so far. From one goroutine at
	// a time.
	Progress func(objects, bytes uint64)
	// Problem, if set, is told what is wrong with which object ("pack sha256:…"), or below which
	// root. From one goroutine at a time.
	Problem func(subject string, err error)
}

// Fault is an object that is damaged or missing. Path is where in a tree it was met, "" for a root
// or for an object that was looked at by itself. Needs are the names of versions that need it, from
// VerifyOptions.Names; nobody does if it is empty and names were given.
type Fault struct {
	Class  string           `json:"class"`
	Digest namespace.Digest `json:"digest,omitzero"`
	Path   string           `json:"path,omitempty"`
	Kind   string           `json:"kind"`
	Reason string           `json:"reason"`
	Needs  []string         `json:"needs"`
}

// VerifyReport says what [VerifyStore] found.
type VerifyReport struct {
	Objects, Bytes uint64 // read, stored size
	Catalogs       uint64 // reachable from the roots
	Chunks         uint64 // references to chunks that were followed
	Problems       uint64
	Faults         []Fault  // the first 10,000 problems
	Dropped        []string // versions whose root is missing, and that are not the newest of their name
}

// faultsMax bounds the faults that are kept: whoever has more needs a back-up, not a list.
const faultsMax = 10_000

// VerifyStore reads every object of store and follows every reference from roots: bytes are those
// that names promise, every frame decodes, every chunk has its digest, every catalog opens and
// every locator leads to every chunk, deltas are well-formed. Problems are reported, not returned; the
// error is for what prevented the check. Memory: a digest for each catalog and each of its references,
// the largest segment of the index, and bounded caches. Kinds: those of the store but NotExist, Canceled.
func VerifyStore(ctx context.Context, store namespace.Store, roots []namespace.Digest, o VerifyOptions) (VerifyReport, error) {
	v := &verifier{ctx: ctx, store: store, o: o, dirs: newPackDirs(store), bad: map[namespace.Digest]*badChunks{},
		faults: map[namespace.Key]int{}, hits: map[namespace.Digest][]int{}, below: map[namespace.Digest][]namespace.Digest{}}
	content := func(class namespace.Class, check func(namespace.Key, []byte) error) func() error {
		return func() error {
			if o.Quick {
				return nil
			}
			return v.each(class, check)
		}
	}
	for _, step := range []func() error{
		v.total,
		content(namespace.Pack, v.pack),
		content(namespace.Index, v.index),
		content(namespace.Blob, v.blob),
		content(namespace.Delta, v.delta),
		func() error { return v.trees(roots) },
		v.layouts,
		v.blame,
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
	dirs  *packDirs

	mu     sync.Mutex // guards what follows, and calls of o
	report VerifyReport
	bad    map[namespace.Digest]*badChunks         // of packs
	faults map[namespace.Key]int                   // index in report.Faults
	hits   map[namespace.Digest][]int              // faults that a catalog needs to be without
	below  map[namespace.Digest][]namespace.Digest // catalogs that one refers to
}

// badChunks are the chunks of a pack that are not what its directory says; whole: so many that they
// are not told apart.
type badChunks struct {
	at    map[object.Place]bool
	whole bool
}

// badMax bounds the damaged chunks that are remembered of one pack.
const badMax = 4096

// fault reports that k is damaged, once for each object.
func (v *verifier) fault(k namespace.Key, path, subject string, err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.faultLocked(k, path, subject, err)
}

func (v *verifier) faultLocked(k namespace.Key, path, subject string, err error) int {
	if i, ok := v.faults[k]; ok {
		return i
	}
	i := len(v.report.Faults)
	v.report.Problems++
	if i < faultsMax {
		v.faults[k] = i
		v.report.Faults = append(v.report.Faults, Fault{Class: k.Class.String(), Digest: k.Digest, Path: path,
			Kind: namespace.KindOf(err).String(), Reason: err.Error(), Needs: []string{}})
	}
	if v.o.Problem != nil {
		v.o.Problem(subject, err)
	}
	return i
}

// total counts what is to be read.
func (v *verifier) total() error {
	if v.o.Total == nil {
		return nil
	}
	classes := []namespace.Class{namespace.Pack, namespace.Index, namespace.Blob, namespace.Delta}
	if v.o.Quick {
		classes = []namespace.Class{namespace.Blob}
	}
	var objects, bytes uint64
	for _, class := range classes {
		err := v.store.List(v.ctx, class, func(_ namespace.Key, size int64) error {
			if objects++; !v.o.Quick {
				bytes += uint64(size)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	v.o.Total(objects, bytes)
	return nil
}

// each reads all objects of a class and has check look at them, some at a time.
func (v *verifier) each(class namespace.Class, check func(namespace.Key, []byte) error) error {
	group, ctx := errgroup.WithContext(v.ctx)
	group.SetLimit(runtime.GOMAXPROCS(0))
	err := v.store.List(ctx, class, func(k namespace.Key, size int64) error {
		group.Go(func() error {
			b, err := getAll(ctx, v.store, k, objectBytesMax[k.Class])
			if err == nil {
				v.read(len(b))
				err = check(k, b)
			}
			if namespace.IsKind(err, namespace.NotExist) {
				return nil // collected meanwhile; if not, who needs it says so
			}
			return v.tell(k, "", k.String(), err)
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

// read counts an object.
func (v *verifier) read(size int) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.report.Objects++
	v.report.Bytes += uint64(size)
	if v.o.Progress != nil {
		v.o.Progress(v.report.Objects, v.report.Bytes)
	}
}

// tell reports err as a fault of k if it is one of the stored data; else it returns it.
func (v *verifier) tell(k namespace.Key, path, subject string, err error) error {
	if err == nil || !damaged(err) {
		return err
	}
	v.fault(k, path, subject, err)
	return nil
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
	frames, failed := object.ReadPackDirectory(bytes.NewReader(b), int64(len(b)))
	if err == nil {
		err = failed
	}
	bad := &badChunks{at: map[object.Place]bool{}}
	var plain []byte
	for _, f := range frames {
		var failed error
		plain, failed = object.DecodeFrame(plain, b[f.Off:f.Off+int64(f.Len)], f.Codec, int(f.Plain))
		if failed != nil {
			err = namespace.E(namespace.Corrupt, "verify", k.String(), fmt.Errorf("frame at %d: %w", f.Off, failed))
		}
		for _, c := range f.Chunks {
			if failed == nil && namespace.Sum(plain[c.Off:c.Off+c.Len]) == c.Digest {
				continue
			}
			if failed == nil {
				err = namespace.E(namespace.Corrupt, "verify", k.String(), fmt.Errorf("chunk %v at %d+%d", c.Digest, f.Off, c.Off))
			}
			if bad.at[placeOf(k.Digest, f, c)] = true; len(bad.at) > badMax {
				bad.whole, bad.at = true, map[object.Place]bool{}
			}
		}
	}
	if len(bad.at) > 0 || bad.whole {
		v.mu.Lock()
		defer v.mu.Unlock()
		v.bad[k.Digest] = bad
	}
	return err
}

// index checks a segment: every record leads to its chunk. Packs that are gone may still be in it.
// Records are looked up in the order of packs, or each would read a directory.
func (v *verifier) index(k namespace.Key, b []byte) error {
	if err := checkDigest(k, b); err != nil {
		return err
	}
	x, err := object.OpenIndex(b)
	if err != nil {
		return err
	}
	order := make([]uint32, x.Len())
	for i := range order {
		order[i] = uint32(i)
	}
	slices.SortFunc(order, func(i, j uint32) int {
		a, b := x.Record(int(i)).Place, x.Record(int(j)).Place
		return cmp.Or(bytes.Compare(a.Pack[:], b.Pack[:]), cmp.Compare(a.FrameOff, b.FrameOff), cmp.Compare(a.Off, b.Off))
	})
	var pack namespace.Digest
	var dir *packDir
	for _, i := range order {
		r := x.Record(int(i))
		if r.Place.Pack != pack {
			pack = r.Place.Pack
			if dir, err = v.dirs.get(v.ctx, pack); err != nil && !damaged(err) {
				return err
			}
		}
		if dir == nil {
			continue // gone, or damaged: that is the pack's fault
		}
		if _, c, ok := dir.find(r.Place); !ok || c.Digest != r.Digest {
			return corrupt(k, "chunk %v is not at %d+%d of pack %v", r.Digest, r.Place.FrameOff, r.Place.Off, pack)
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
	var starts []catalogAt
	dropped := map[namespace.Digest]bool{}
	for _, n := range v.o.Names {
		was, ok := dropped[n.Root]
		dropped[n.Root] = (was || !ok) && !n.Newest
	}
	for _, root := range roots {
		if dropped[root] {
			_, err := v.store.Stat(v.ctx, namespace.Key{Class: namespace.Blob, Digest: root})
			if dropped[root] = namespace.IsKind(err, namespace.NotExist); dropped[root] {
				continue
			}
		}
		starts = append(starts, catalogAt{digest: root})
	}
	for _, n := range v.o.Names {
		if dropped[n.Root] {
			v.report.Dropped = append(v.report.Dropped, n.Name)
		}
	}
	slices.Sort(v.report.Dropped)
	v.report.Dropped = slices.Compact(v.report.Dropped)
	if err := v.tables(dropped); err != nil {
		return err
	}
	return newCrawl().run(v.ctx, starts, v.catalog)
}

// tables checks that the package tables of the versions that were not dropped are there; those that
// are were read as the blobs they are.
func (v *verifier) tables(dropped map[namespace.Digest]bool) error {
	for _, n := range v.o.Names {
		if n.Packages.IsZero() || dropped[n.Root] {
			continue
		}
		k := namespace.Key{Class: namespace.Blob, Digest: n.Packages}
		_, err := v.store.Stat(v.ctx, k)
		if err := v.hit(catalogAt{digest: n.Root}, k, "package table of "+n.Name, err); err != nil {
			return err
		}
	}
	return nil
}

// catalog checks one catalog with its locator and returns those it refers to.
func (v *verifier) catalog(ctx context.Context, at catalogAt) ([]catalogAt, error) {
	subject := fmt.Sprintf("catalog %v at /%s", at.digest, at.path)
	k := namespace.Key{Class: namespace.Blob, Digest: at.digest}
	c, err := loadCatalog(ctx, v.store, at.digest)
	if err != nil {
		return nil, v.hit(at, k, subject, err)
	}
	if v.o.Quick {
		v.read(0)
	}
	if err := v.locator(ctx, at, c); err != nil {
		return nil, err
	}
	below := nestedAt(c, at)
	v.mu.Lock()
	v.report.Catalogs++
	for _, b := range below {
		v.below[at.digest] = append(v.below[at.digest], b.digest)
	}
	v.mu.Unlock()
	loader := catalog.LoaderFunc(func(ctx context.Context, d namespace.Digest) (*catalog.Catalog, error) {
		return loadCatalog(ctx, v.store, d)
	})
	for i := range c.Len() {
		ref, ok := c.Nested(i)
		if !ok {
			continue
		}
		if _, err := c.Enter(ctx, loader, i); err != nil {
			path := catalog.Join(at.path, pathIn(c, i))
			k := namespace.Key{Class: namespace.Blob, Digest: ref.Digest}
			err := v.hit(catalogAt{at.digest, path, at.root}, k, fmt.Sprintf("catalog %v at /%s", ref.Digest, path), err)
			if err != nil {
				return nil, err
			}
		}
	}
	return below, nil
}

// hit reports err as a fault of k that the catalog at a place suffers from, or returns it.
func (v *verifier) hit(at catalogAt, k namespace.Key, subject string, err error) error {
	if err == nil || !damaged(err) {
		return err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	i := v.faultLocked(k, at.path, subject, err)
	if !slices.Contains(v.hits[at.digest], i) {
		v.hits[at.digest] = append(v.hits[at.digest], i)
	}
	return nil
}

// locator checks that every chunk of c is where its locator says.
func (v *verifier) locator(ctx context.Context, at catalogAt, c *catalog.Catalog) error {
	k := namespace.Key{Class: namespace.Locator, Digest: at.digest}
	subject := fmt.Sprintf("catalog %v at /%s", at.digest, at.path)
	l, err := loadLocator(ctx, v.store, at.digest, c)
	if err != nil {
		return v.hit(at, k, subject, err)
	}
	var dir *packDir
	failed := map[namespace.Digest]bool{}
	for i := range l.Len() {
		p := l.Place(i)
		if p.IsZero() || failed[p.Pack] {
			continue
		}
		pack := namespace.Key{Class: namespace.Pack, Digest: p.Pack}
		if dir == nil || dir.pack != p.Pack {
			if dir, err = v.dirs.get(ctx, p.Pack); err != nil {
				dir, failed[p.Pack] = nil, true
				if err := v.hit(at, pack, pack.String(), err); err != nil {
					return err
				}
				continue
			}
		}
		d := c.Chunk(i).Digest
		if _, found, ok := dir.find(p); !ok || found.Digest != d || uint64(found.Len) != c.ChunkLen(i) {
			return v.hit(at, k, subject, corrupt(k, "chunk %v is not at %d+%d of pack %v", d, p.FrameOff, p.Off, p.Pack))
		}
		if v.rotten(p) {
			err := v.hit(at, pack, pack.String(), corrupt(pack, "chunk %v at %d+%d", d, p.FrameOff, p.Off))
			if failed[p.Pack] = true; err != nil {
				return err
			}
		}
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.report.Chunks += uint64(l.Len())
	return nil
}

// rotten reports whether the chunk at p was found to be another. Only trees asks, when packs are done.
func (v *verifier) rotten(p object.Place) bool {
	bad := v.bad[p.Pack]
	return bad != nil && (bad.whole || bad.at[p])
}

// blame says of each fault which versions need what is damaged.
func (v *verifier) blame() error {
	if len(v.report.Faults) == 0 {
		return nil
	}
	for _, n := range v.o.Names {
		seen := map[namespace.Digest]bool{n.Root: true}
		for todo := []namespace.Digest{n.Root}; len(todo) > 0; {
			d := todo[len(todo)-1]
			todo = todo[:len(todo)-1]
			for _, i := range v.hits[d] {
				if i < len(v.report.Faults) && !slices.Contains(v.report.Faults[i].Needs, n.Name) {
					v.report.Faults[i].Needs = append(v.report.Faults[i].Needs, n.Name)
				}
			}
			for _, b := range v.below[d] {
				if !seen[b] {
					seen[b], todo = true, append(todo, b)
				}
			}
		}
	}
	return nil
}
