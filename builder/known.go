package builder

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"io"
	"maps"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/object"
)

const (
	// segmentsMax is where index segments are merged: each costs a lookup per chunk.
	segmentsMax = 16
	// loadsMax bounds the requests in flight while loading, against latency.
	loadsMax = 8
)

// known is what the origin's packs hold: its index segments, the packs that no segment covers and
// what this import adds.
type known struct {
	packs    map[namespace.Digest]bool // all packs there were when it was loaded; immutable
	renewed  *renewer                  // of packs: those that were asked for, and whether they still are there
	segments []segment
	// claimsNothing makes every chunk an old one: for reading a tree without storing it.
	claimsNothing bool

	mu sync.Mutex // guards what follows
	// claimed holds chunks that are in no segment: of packs that none covers, and of this import.
	// The place of the latter is zero until their pack is closed.
	claimed map[namespace.Digest]object.Place
	fresh   map[namespace.Digest]bool // packs that the next segment will cover
}

type segment struct {
	digest namespace.Digest
	index  *object.Index
	size   int64
}

// loadKnown reads every segment, and the directories of packs that none covers: a crash left
// them, or another builder that has not finished.
func loadKnown(ctx context.Context, store namespace.Store, warn func(path, reason string)) (*known, error) {
	k := &known{
		packs:   map[namespace.Digest]bool{},
		renewed: newRenewer(store, namespace.Pack),
		claimed: map[namespace.Digest]object.Place{},
		fresh:   map[namespace.Digest]bool{},
	}
	sizes := map[namespace.Digest]int64{}
	err := store.List(ctx, namespace.Pack, func(key namespace.Key, size int64) error {
		k.packs[key.Digest], sizes[key.Digest] = true, size
		return nil
	})
	if err != nil {
		return nil, err
	}
	if err := k.loadSegments(ctx, store); err != nil {
		return nil, err
	}
	for _, s := range k.segments {
		for _, d := range s.index.Packs() {
			delete(sizes, d)
		}
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(loadsMax)
	for d, size := range sizes {
		group.Go(func() error { return k.loadPack(ctx, store, d, size, warn) })
	}
	return k, group.Wait()
}

// loadPack learns what an uncovered pack holds. A damaged one is left out: its chunks are stored
// again.
func (k *known) loadPack(ctx context.Context, store namespace.Store, d namespace.Digest, size int64,
	warn func(path, reason string)) error {
	key := namespace.Key{Class: namespace.Pack, Digest: d}
	frames, err := object.ReadPackDirectory(&rangeReader{ctx, store, key}, size)
	if err == nil {
		k.learn(d, frames)
		return nil
	}
	switch namespace.KindOf(err) {
	case namespace.Corrupt, namespace.NotExist, namespace.Limit:
		if warn != nil {
			k.mu.Lock()
			defer k.mu.Unlock()
			warn(key.String(), "ignored: "+err.Error())
		}
		return nil
	}
	return err
}

func (k *known) loadSegments(ctx context.Context, store namespace.Store) error {
	var keys []segment
	err := store.List(ctx, namespace.Index, func(key namespace.Key, size int64) error {
		keys = append(keys, segment{digest: key.Digest, size: size})
		return nil
	})
	if err != nil {
		return err
	}
	// In a fixed order, so that of several places of a chunk the same one is found again.
	slices.SortFunc(keys, func(a, b segment) int {
		return cmp.Or(cmp.Compare(b.size, a.size), bytes.Compare(a.digest[:], b.digest[:]))
	})
	for _, s := range keys {
		b, err := getAll(ctx, store, namespace.Key{Class: namespace.Index, Digest: s.digest}, namespace.IndexBytesMax)
		if namespace.IsKind(err, namespace.NotExist) {
			continue // merged away meanwhile
		}
		if err != nil {
			return err
		}
		if namespace.Sum(b) != s.digest {
			continue // derived data: the packs it covered are read instead
		}
		if s.index, err = object.OpenIndex(b); err == nil {
			k.segments = append(k.segments, s)
		}
	}
	return nil
}

// claim reports whether chunk d is new, and makes it known. A chunk is old only if the pack that
// holds it could be renewed, so that no garbage collection takes it away before there is a ref.
func (k *known) claim(ctx context.Context, d namespace.Digest) (bool, error) {
	if k.claimsNothing {
		return false, nil
	}
	k.mu.Lock()
	p, ok := k.claimed[d]
	k.mu.Unlock()
	if ok && p.IsZero() {
		return false, nil // of this import
	}
	if ok {
		if there, err := k.renewed.has(ctx, p.Pack); err != nil || there {
			return false, err
		}
	}
	if _, ok, err := k.indexed(ctx, d); err != nil || ok {
		return false, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.claimed[d] = object.Place{}
	return true, nil
}

// indexed finds d in a pack that is there, and stays.
func (k *known) indexed(ctx context.Context, d namespace.Digest) (object.Place, bool, error) {
	for _, s := range k.segments {
		p, ok := s.index.Lookup(d)
		if !ok || !k.packs[p.Pack] {
			continue
		}
		if ok, err := k.renewed.has(ctx, p.Pack); err != nil || ok {
			return p, ok, err
		}
	}
	return object.Place{}, false, nil
}

// learn records where the chunks of a pack are.
func (k *known) learn(pack namespace.Digest, frames []object.Frame) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.fresh[pack] = true
	for _, f := range frames {
		for _, c := range f.Chunks {
			k.claimed[c.Digest] = placeOf(pack, f, c)
		}
	}
}

func placeOf(pack namespace.Digest, f object.Frame, c object.FrameChunk) object.Place {
	return object.Place{
		Pack: pack, FrameOff: f.Off, FrameLen: f.Len, FramePlain: f.Plain, Codec: f.Codec, Off: c.Off,
	}
}

// has reports whether a pack was there when it was looked for. Not to be called while the pipeline
// runs.
func (k *known) has(pack namespace.Digest) bool { return k.packs[pack] || k.fresh[pack] }

// place returns where chunk d is, in a pack that stays. Not to be called while the pipeline runs.
func (k *known) place(ctx context.Context, d namespace.Digest) (object.Place, bool, error) {
	if p, ok := k.claimed[d]; ok && !p.IsZero() {
		if ok, err := k.renewed.has(ctx, p.Pack); err != nil || ok {
			return p, ok, err
		}
	}
	return k.indexed(ctx, d)
}

// save writes a segment that covers the packs that none covers, and merges segments when they
// are many.
func (k *known) save(ctx context.Context, store namespace.Store) error {
	if len(k.fresh) == 0 {
		return nil
	}
	recs := make([]object.IndexRecord, 0, len(k.claimed))
	for d, p := range k.claimed {
		recs = append(recs, object.IndexRecord{Digest: d, Place: p})
	}
	s, err := putSegment(ctx, store, slices.Collect(maps.Keys(k.fresh)), recs)
	if err != nil {
		return err
	}
	k.segments = append(k.segments, s)
	if len(k.segments) > segmentsMax {
		return k.merge(ctx, store)
	}
	return nil
}

func putSegment(ctx context.Context, store namespace.Store, packs []namespace.Digest, recs []object.IndexRecord) (segment, error) {
	b := object.EncodeIndex(packs, recs)
	d := namespace.Sum(b)
	x, err := object.OpenIndex(b)
	if err != nil {
		return segment{}, err
	}
	err = store.Put(ctx, namespace.Key{Class: namespace.Index, Digest: d}, b)
	return segment{d, x, int64(len(b))}, err
}

// merge replaces the smallest segments by one, taking each next larger one while it is no more
// than twice what was taken before: so a record is rewritten a logarithmic number of times.
func (k *known) merge(ctx context.Context, store namespace.Store) error {
	slices.SortFunc(k.segments, func(a, b segment) int {
		return cmp.Or(cmp.Compare(a.size, b.size), bytes.Compare(a.digest[:], b.digest[:]))
	})
	n, total := 0, int64(0)
	for n < len(k.segments) && (n < len(k.segments)-segmentsMax/2 || k.segments[n].size <= 2*total) {
		if total += k.segments[n].size; total > namespace.IndexBytesMax/2 {
			break
		}
		n++
	}
	if n < 2 {
		return nil
	}
	var packs []namespace.Digest
	var recs []object.IndexRecord
	for _, s := range k.segments[:n] {
		for _, d := range s.index.Packs() {
			if k.has(d) {
				packs = append(packs, d)
			}
		}
		for r := range s.index.Records() {
			if k.has(r.Place.Pack) {
				recs = append(recs, r)
			}
		}
	}
	merged, err := putSegment(ctx, store, packs, recs)
	if err != nil {
		return err
	}
	for _, s := range k.segments[:n] {
		if s.digest == merged.digest {
			continue
		}
		if err := store.Delete(ctx, namespace.Key{Class: namespace.Index, Digest: s.digest}); err != nil {
			return err
		}
	}
	k.segments = append([]segment{merged}, k.segments[n:]...)
	return nil
}

// rangeReader reads an object at offsets.
type rangeReader struct {
	ctx   context.Context
	store namespace.Fetcher
	key   namespace.Key
}

// ReadAt implements io.ReaderAt.
func (r *rangeReader) ReadAt(b []byte, off int64) (int, error) {
	rc, err := r.store.Get(r.ctx, r.key, off, int64(len(b)))
	if err != nil {
		return 0, err
	}
	n, err := io.ReadFull(rc, b)
	return n, errors.Join(err, rc.Close())
}

// getAll returns an object's stored bytes. Errors: Limit, and those of the store.
func getAll(ctx context.Context, f namespace.Fetcher, key namespace.Key, limit int64) ([]byte, error) {
	rc, err := f.Get(ctx, key, 0, -1)
	if err != nil {
		return nil, err
	}
	defer rc.Close()
	b, err := io.ReadAll(io.LimitReader(rc, limit+1))
	switch {
	case err != nil:
		return nil, namespace.E(namespace.KindOf(err), "get", key.String(), err)
	case int64(len(b)) > limit:
		return nil, namespace.E(namespace.Limit, "get", key.String(), errTooLarge)
	}
	return b, nil
}

var errTooLarge = errors.New("larger than any such object may be")
