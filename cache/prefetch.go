package cache

import (
	"context"
	"errors"
	"sync"

	"golang.org/x/sync/errgroup"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/catalog"
	"coppice.dev/coppice/namespace/object"
)

// What a profile names is fetched before it is asked for, in the profile's order, in pieces: small enough
// that who waits for one waits not long, so many at a time that the link does not idle between them.
const (
	pieceBytes    = 512 << 10
	piecesAtOnce  = 4
	pieceAttempts = 3
	// prefetchShare is the part of the quota that one prefetch may fill, one in so many bytes: it is a
	// guess, and must not push out what somebody uses.
	prefetchShare = 2
)

// piece is some frames that follow each other in a pack and are fetched in one request.
type piece struct{ frames []planned }

// expected holds what is to be prefetched, by chunk, so that a read which misses finds it and is
// served first. Safe for concurrent use; the zero value is empty.
type expected struct {
	mu sync.Mutex
	in map[namespace.Digest]expectedAt
}

type expectedAt struct {
	p     *piece
	frame int
}

func (x *expected) add(p *piece) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.in == nil {
		x.in = map[namespace.Digest]expectedAt{}
	}
	for i, f := range p.frames {
		for _, ch := range f.chunks {
			x.in[ch.Digest] = expectedAt{p, i}
		}
	}
}

func (x *expected) remove(p *piece) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, f := range p.frames {
		for _, ch := range f.chunks {
			if x.in[ch.Digest].p == p {
				delete(x.in, ch.Digest)
			}
		}
	}
}

func (x *expected) find(d namespace.Digest) (expectedAt, bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	at, ok := x.in[d]
	return at, ok
}

// promote brings a chunk that is to be prefetched now, with what follows it in its piece, and waits for
// it. It returns false if none is coming: then it has to be asked for in the ordinary way.
func (r *Reader) promote(ctx context.Context, d namespace.Digest) bool {
	at, ok := r.expected.find(d)
	if !ok {
		return false
	}
	frames := at.p.frames[at.frame:]
	fl := r.launch(window{frames: frames}, nil, nil, true)
	return fl.wait(ctx, frames[0].key()) == nil
}

// Prefetch fetches what a layout names that is not here: its catalogs, and its chunks in their order. Reads
// go before it; one that waits for what is to be fetched moves it to the front. It stops when it would
// fill more than half of the quota. What was fetched when it fails stays. It has no bound but ctx.
// Kinds: those of Catalog and ReadChunk; NotExist and Corrupt say that the layout is out of date, after
// which [Reader.PrefetchProfile] may know better.
func (r *Reader) Prefetch(ctx context.Context, l *object.Layout) error {
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return r.prefetchCatalogs(gctx, l.Catalogs) })
	g.Go(func() error { return r.prefetchChunks(gctx, l.Chunks) })
	return g.Wait()
}

// PrefetchProfile is Prefetch of a profile for which there is no layout: of what it names in the tree
// whose root catalog is root, as the locators say. Kinds: those of Catalog and ReadChunk.
func (r *Reader) PrefetchProfile(ctx context.Context, root namespace.Digest, p *namespace.Profile) error {
	res, err := catalog.ResolveProfile(ctx, catalog.LoaderFunc(r.catalog), root, p)
	if err != nil {
		return err
	}
	locators := map[namespace.Digest]*object.Locator{}
	chunks := make([]object.LayoutChunk, 0, len(res.Chunks))
	for _, c := range res.Chunks {
		if r.c.holds(c.Digest) {
			continue
		}
		l := locators[c.Catalog]
		if l == nil {
			if l, err = r.locator(ctx, c.Catalog, nil); err != nil {
				return err
			}
			locators[c.Catalog] = l
		}
		if int(c.Index) >= l.Len() || l.Place(int(c.Index)).IsZero() {
			continue // a locator of something else: reads find out
		}
		chunks = append(chunks, object.LayoutChunk{Digest: c.Digest, Len: c.Size, Place: l.Place(int(c.Index))})
	}
	return r.prefetchChunks(ctx, chunks)
}

// prefetchCatalogs fetches catalogs, a few at a time.
func (r *Reader) prefetchCatalogs(ctx context.Context, all []namespace.Digest) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(piecesAtOnce)
	for _, d := range all {
		g.Go(func() error {
			_, err := r.catalog(ctx, d)
			return err
		})
	}
	return g.Wait()
}

// prefetchChunks fetches the frames of chunks that are not here.
func (r *Reader) prefetchChunks(ctx context.Context, chunks []object.LayoutChunk) error {
	pieces := cutPieces(r.c.missingFrames(chunks), r.c.o.QuotaBytes/prefetchShare)
	for _, p := range pieces {
		r.expected.add(p)
	}
	defer func() {
		for _, p := range pieces {
			r.expected.remove(p)
		}
	}()
	g, inner := errgroup.WithContext(ctx)
	g.SetLimit(piecesAtOnce)
	for _, p := range pieces {
		if inner.Err() != nil {
			break
		}
		g.Go(func() error {
			defer r.expected.remove(p)
			return r.fetchPiece(inner, p)
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return namespace.E(namespace.KindOf(err), "prefetch", "chunks", err)
	}
	return nil
}

// Whole reports whether all of the tree whose root catalog is root is here, as far as can be told without
// reading its content. It asks nobody.
func (r *Reader) Whole(root namespace.Digest) bool {
	return r.eachHere(root, r.c.holdsAll)
}

// holdsAll reports whether all chunks of a catalog are here.
func (c *Cache) holdsAll(cat *catalog.Catalog) bool {
	for i := range cat.NumChunks() {
		if ch := cat.Chunk(i); !ch.Hole() && !c.holds(ch.Digest) {
			return false
		}
	}
	return true
}

// Local reports whether a chunk is here, as far as can be told without reading it.
func (r *Reader) Local(chunk namespace.Digest) bool { return r.c.holds(chunk) }

// HasMetadata reports whether all catalogs of the tree whose root catalog is root are here.
func (r *Reader) HasMetadata(root namespace.Digest) bool {
	return r.eachHere(root, func(*catalog.Catalog) bool { return true })
}

// eachHere reports whether all catalogs of a tree are here, and ok of all of them.
func (r *Reader) eachHere(root namespace.Digest, ok func(*catalog.Catalog) bool) bool {
	seen := map[namespace.Digest]bool{root: true}
	for todo := []namespace.Digest{root}; len(todo) > 0; {
		d := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		cat, err := r.c.objects.open(d)
		if err != nil || !ok(cat) {
			return false
		}
		for _, below := range cat.AllNested() {
			if !seen[below] {
				seen[below], todo = true, append(todo, below)
			}
		}
	}
	return true
}

// missingFrames returns the frames of the chunks that are not here, each with all chunks that are known
// to be in it, in the order of their first chunk.
func (c *Cache) missingFrames(chunks []object.LayoutChunk) []planned {
	var all []planned
	at := map[flightKey]int{}
	missing := map[int]bool{}
	for _, ch := range chunks {
		key := flightKey{ch.Place.Pack, ch.Place.FrameOff}
		i, ok := at[key]
		if !ok {
			i = len(all)
			at[key], all = i, append(all, planned{Place: ch.Place})
		}
		all[i].chunks = append(all[i].chunks, object.FrameChunk{Digest: ch.Digest, Off: ch.Place.Off, Len: ch.Len})
		if !missing[i] && !c.holds(ch.Digest) {
			missing[i] = true
		}
	}
	kept := all[:0]
	for i, f := range all {
		if missing[i] {
			f.chunks = distinct(f.chunks)
			kept = append(kept, f)
		}
	}
	return kept
}

// cutPieces groups frames that follow each other, at most bound stored bytes of them.
func cutPieces(frames []planned, bound int64) (pieces []*piece) {
	var p *piece
	for _, f := range frames {
		if bound -= int64(f.FrameLen); bound < 0 {
			break
		}
		if p != nil {
			first, last := p.frames[0], p.frames[len(p.frames)-1]
			gap := f.FrameOff - last.end()
			if first.Pack == f.Pack && gap >= 0 && gap <= gapMax && f.end()-first.FrameOff <= pieceBytes {
				p.frames = append(p.frames, f)
				continue
			}
		}
		p = &piece{frames: []planned{f}}
		pieces = append(pieces, p)
	}
	return pieces
}

// fetchPiece fetches what of a piece is neither here nor on its way, and waits for all of it.
func (r *Reader) fetchPiece(ctx context.Context, p *piece) error {
	var err error
	for range pieceAttempts {
		var missing []planned
		for _, f := range p.frames {
			if !r.here(f) {
				missing = append(missing, f)
			}
		}
		if len(missing) == 0 {
			return nil
		}
		err = nil
		for _, run := range cutPieces(missing, 1<<62) {
			// A frame that somebody else fetches ends the request; the next attempt goes on behind it.
			r.launch(window{frames: run.frames}, nil, nil, false)
		}
		for _, f := range missing {
			if fl := r.c.flights.find(f.key()); fl != nil {
				if werr := fl.wait(ctx, f.key()); werr != nil {
					err = werr
				}
			}
		}
		if err != nil {
			return err
		}
		if r.c.through.Load() {
			return namespace.E(namespace.Limit, "prefetch", "pack "+p.frames[0].Pack.String(), errNotKept)
		}
	}
	return nil
}

// errNotKept says that what was fetched could not be kept.
var errNotKept = errors.New("the cache keeps nothing now")
