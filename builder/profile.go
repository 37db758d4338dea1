package builder

import (
	"context"
	"fmt"
	"slices"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/catalog"
	"coppice.dev/coppice/namespace/object"
)

// LayOutOptions of [LayOut].
type LayOutOptions struct {
	// Before are earlier layouts of the same profile, which the new one may replace, Others those of other
	// profiles. What lies well in any of them stays where it is.
	Before, Others []*object.Layout
	// Progress, if set, is told the chunks and plaintext bytes laid out, and of how many.
	Progress func(chunks, chunksAll, bytes, bytesAll uint64)
}

// LayOutReport says what [LayOut] did. Stored is what an endpoint fetches that has nothing: bytes of
// frames, in Ranges requests at least, besides Catalogs of Metadata stored bytes.
type LayOutReport struct {
	Catalogs int    `json:"catalogs"`
	Metadata uint64 `json:"catalog_bytes"`
	Chunks   int    `json:"chunks"`
	Bytes    uint64 `json:"bytes"` // plaintext
	Stored   uint64 `json:"stored_bytes"`
	Ranges   int    `json:"ranges"`
	Absent   int    `json:"absent"` // entries of the profile that the version has not
	Packs    Tally  `json:"written"`
	Locators int    `json:"locators"` // rewritten
}

// When content that earlier layouts hold is left there: a cold start needs few requests more, and does
// not fetch much for nothing. Beyond that all of the profile is laid out anew, which costs its size.
const (
	layoutRangesPerPack = 4   // besides one for each MiB
	layoutWaste         = 1.5 // stored bytes fetched for each that would do
)

// LayOut lays the content that the profile p, whose digest is id, names in the tree at root out in packs
// of its own, in its order, rewrites the locators of the tree's catalogs accordingly, and stores a layout,
// whose digest it returns. A profile that lies well already costs nothing; else at most its own size is
// written, and what changed only as long as the rest lies well. The old copies are dead as far as nothing
// else needs them. Root must be held, as by a ref or by [Hold]; the caller names the layout in a record.
// A crash leaves packs that nothing names, or locators that lead into new packs: both are whole.
// Memory: a pack, and about 200 bytes a chunk of the catalogs concerned. Kinds: those of the store and of
// [Stored], Limit.
func LayOut(ctx context.Context, store namespace.Store, root, id namespace.Digest, p *namespace.Profile, o LayOutOptions) (namespace.Digest, LayOutReport, error) {
	l := &layingOut{ctx: ctx, store: store, stored: NewStored(store), o: o, packs: newRenewer(store, namespace.Pack),
		w: object.NewPackWriter(), at: map[namespace.Digest]object.Place{}, good: map[namespace.Digest]bool{}}
	res, err := catalog.ResolveProfile(ctx, l.stored, root, p)
	if err != nil {
		return namespace.Digest{}, l.report, collected(err)
	}
	l.res = res
	l.report.Catalogs, l.report.Chunks, l.report.Absent = len(res.Catalogs), len(res.Chunks), res.Absent
	for _, c := range res.Chunks {
		l.report.Bytes += uint64(c.Size)
	}
	for _, step := range []func() error{l.reuse, l.write, l.locators} {
		if err := step(); err != nil {
			return namespace.Digest{}, l.report, err
		}
	}
	d, err := l.keep(root, id)
	return d, l.report, err
}

// layingOut is one run of [LayOut].
type layingOut struct {
	ctx    context.Context
	store  namespace.Store
	stored *Stored
	o      LayOutOptions
	packs  *renewer
	res    *catalog.Resolution
	report LayOutReport

	at   map[namespace.Digest]object.Place // of the profile's chunks
	good map[namespace.Digest]bool         // packs of layouts that stay

	w     *object.PackWriter
	parts []object.FrameChunk // the frame being collected
	plain []byte
	done  uint64 // bytes
	fresh []namespace.Digest
	recs  []object.IndexRecord
}

// reuse finds what earlier layouts hold, and decides whether that may stay.
func (l *layingOut) reuse() error {
	there := map[namespace.Digest]object.Place{}
	for i, lay := range slices.Concat(l.o.Before, l.o.Others) {
		for _, c := range lay.Chunks {
			ok, err := l.packs.has(l.ctx, c.Place.Pack)
			if err != nil {
				return err
			}
			if _, had := there[c.Digest]; ok && !had {
				there[c.Digest] = c.Place
			}
			if ok && i >= len(l.o.Before) {
				l.good[c.Place.Pack] = true
			}
		}
	}
	var all []object.LayoutChunk
	for _, c := range l.res.Chunks {
		if p, ok := there[c.Digest]; ok {
			all = append(all, object.LayoutChunk{Digest: c.Digest, Len: c.Size, Place: p})
		}
	}
	lies := measure(all)
	if lies.ranges > layoutRangesPerPack*max(1, lies.packs)+int(lies.stored>>20) || float64(lies.stored) > layoutWaste*float64(lies.wanted) {
		return nil // scattered, or mostly dead
	}
	for _, c := range all {
		l.at[c.Digest], l.good[c.Place.Pack] = c.Place, true
	}
	return nil
}

// lie is how chunks lie: in so many packs and runs of neighbouring frames, of so many stored bytes, of
// which the chunks' share is wanted.
type lie struct {
	packs, ranges  int
	stored, wanted uint64
}

// measure looks at chunks in the order in which they are fetched. A gap of less than a small frame is
// fetched rather than asked for anew.
func measure(chunks []object.LayoutChunk) (l lie) {
	const gap = 64 << 10
	packs, frames := map[namespace.Digest]bool{}, map[frameKey]bool{}
	var last object.Place
	for _, c := range chunks {
		p := c.Place
		l.wanted += uint64(c.Len) * uint64(p.FrameLen) / uint64(p.FramePlain)
		key := frameKey{p.Pack, p.FrameOff}
		if frames[key] {
			continue
		}
		frames[key], packs[p.Pack] = true, true
		l.stored += uint64(p.FrameLen)
		end := last.FrameOff + int64(last.FrameLen)
		if last.Pack != p.Pack || p.FrameOff < end || p.FrameOff-end > gap {
			l.ranges++
		}
		last = p
	}
	l.packs = len(packs)
	return l
}

// write copies the chunks that lie nowhere well into packs.
func (l *layingOut) write() error {
	for i, c := range l.res.Chunks {
		if l.o.Progress != nil {
			l.o.Progress(uint64(i), uint64(len(l.res.Chunks)), l.done, l.report.Bytes)
		}
		l.done += uint64(c.Size)
		if _, ok := l.at[c.Digest]; ok {
			continue
		}
		if err := l.chunk(c); err != nil {
			return err
		}
	}
	if err := l.flush(); err != nil {
		return err
	}
	if err := l.put(); err != nil || len(l.fresh) == 0 {
		return err
	}
	_, err := putSegment(l.ctx, l.store, l.fresh, l.recs)
	return err
}

// chunk copies one chunk: small ones share frames, as they do elsewhere.
func (l *layingOut) chunk(c namespace.ChunkRef) error {
	cat, err := l.stored.Catalog(l.ctx, c.Catalog)
	if err != nil {
		return err
	}
	data, err := l.stored.chunk(l.ctx, cat, int(c.Index), int(c.Size))
	if err != nil {
		return err
	}
	if len(data) >= frameBytesDefault {
		stored, codec := object.EncodeFrame(data)
		return l.add(stored, codec, uint32(len(data)), []object.FrameChunk{{Digest: c.Digest, Len: c.Size}})
	}
	if len(l.plain)+len(data) > 2*frameBytesDefault || len(l.parts) == namespace.FrameChunksMax {
		if err := l.flush(); err != nil {
			return err
		}
	}
	l.parts = append(l.parts, object.FrameChunk{Digest: c.Digest, Off: uint32(len(l.plain)), Len: c.Size})
	l.plain = append(l.plain, data...)
	if len(l.plain) >= frameBytesDefault {
		return l.flush()
	}
	return nil
}

// flush adds the frame that was collected.
func (l *layingOut) flush() error {
	if len(l.parts) == 0 {
		return nil
	}
	stored, codec := object.EncodeFrame(l.plain)
	err := l.add(stored, codec, uint32(len(l.plain)), l.parts)
	l.plain, l.parts = l.plain[:0], nil
	return err
}

func (l *layingOut) add(stored []byte, codec object.Codec, plain uint32, chunks []object.FrameChunk) error {
	if err := l.w.Add(stored, codec, plain, chunks); err != nil {
		return err
	}
	if l.w.Size() < namespace.PackBytesTarget {
		return nil
	}
	return l.put()
}

// put stores the pack that was collected.
func (l *layingOut) put() error {
	b, d, frames := l.w.Finish()
	if len(frames) == 0 {
		return nil
	}
	if err := l.store.Put(l.ctx, namespace.Key{Class: namespace.Pack, Digest: d}, b); err != nil {
		return err
	}
	for _, f := range frames {
		for _, c := range f.Chunks {
			l.at[c.Digest] = placeOf(d, f, c)
			l.recs = append(l.recs, object.IndexRecord{Digest: c.Digest, Place: l.at[c.Digest]})
		}
	}
	l.fresh, l.good[d] = append(l.fresh, d), true
	l.report.Packs.add(int64(len(b)))
	return nil
}

// locators has the locators of the tree lead into the packs of the profile, unless they lead into those
// of another one already: two that share files do not take turns.
func (l *layingOut) locators() error {
	chunks := map[namespace.Digest]bool{}
	for _, c := range l.res.Chunks {
		chunks[c.Catalog] = true
	}
	for _, d := range l.res.Catalogs {
		stored, err := l.store.Stat(l.ctx, namespace.Key{Class: namespace.Blob, Digest: d})
		if err != nil {
			return err
		}
		l.report.Metadata += uint64(stored)
		if !chunks[d] {
			continue
		}
		if err := l.locator(d); err != nil {
			return err
		}
	}
	return nil
}

func (l *layingOut) locator(d namespace.Digest) error {
	cat, err := l.stored.Catalog(l.ctx, d)
	if err != nil {
		return err
	}
	old, err := loadLocator(l.ctx, l.store, d, cat)
	if err != nil {
		return err
	}
	places, changed := make([]object.Place, old.Len()), false
	for i := range places {
		places[i] = old.Place(i)
		if at, ok := l.at[cat.Chunk(i).Digest]; ok && !l.good[places[i].Pack] {
			places[i], changed = at, true
		}
	}
	if !changed {
		return nil
	}
	l.report.Locators++
	return l.store.Put(l.ctx, namespace.Key{Class: namespace.Locator, Digest: d}, object.EncodeLocator(places))
}

// keep stores the layout.
func (l *layingOut) keep(root, id namespace.Digest) (namespace.Digest, error) {
	lay := &object.Layout{Root: root, Profile: id, Catalogs: l.res.Catalogs, Chunks: make([]object.LayoutChunk, 0, len(l.res.Chunks))}
	for _, c := range l.res.Chunks {
		p, ok := l.at[c.Digest]
		if !ok {
			return namespace.Digest{}, namespace.E(namespace.Internal, "lay out", "chunk "+c.Digest.String(), fmt.Errorf("it lies nowhere"))
		}
		lay.Chunks = append(lay.Chunks, object.LayoutChunk{Digest: c.Digest, Len: c.Size, Place: p})
	}
	lies := measure(lay.Chunks)
	l.report.Stored, l.report.Ranges = lies.stored, lies.ranges
	b, err := object.EncodeLayout(lay)
	if err != nil {
		return namespace.Digest{}, err
	}
	d := namespace.Sum(b)
	k := namespace.Key{Class: namespace.Blob, Digest: d}
	if err := renew(l.ctx, l.store, k); !namespace.IsKind(err, namespace.NotExist) {
		return d, err
	}
	return d, l.store.Put(l.ctx, k, object.EncodeBlob(b))
}

// LoadLayout reads a layout. Kinds: those of the store, Corrupt, Limit.
func LoadLayout(ctx context.Context, from namespace.Fetcher, d namespace.Digest) (*object.Layout, error) {
	b, err := blobReader{from}.GetBlob(ctx, d, namespace.LayoutBytesMax)
	if err != nil {
		return nil, err
	}
	l, err := object.OpenLayout(b)
	if err != nil {
		return nil, namespace.E(namespace.KindOf(err), "read", "layout "+d.String(), err)
	}
	return l, nil
}

// LoadProfile reads a profile. Kinds: those of the store, Corrupt, Limit, Invalid.
func LoadProfile(ctx context.Context, from namespace.Fetcher, d namespace.Digest) (*namespace.Profile, error) {
	b, err := blobReader{from}.GetBlob(ctx, d, namespace.ProfileBytesMax)
	if err != nil {
		return nil, err
	}
	return namespace.DecodeProfile(b, "profile "+d.String())
}

// KeepLayouts returns layouts with those for the versions of now first replaced or added, and of the
// others those whose root keep holds for, at most [namespace.LayoutsMax]. Pure.
func KeepLayouts(now, before []namespace.LayoutRef, keep func(root namespace.Digest) bool) []namespace.LayoutRef {
	all := slices.Clone(now)
	for _, l := range before {
		if keep(l.Root) && !slices.ContainsFunc(all, func(o namespace.LayoutRef) bool { return o.Root == l.Root }) {
			all = append(all, l)
		}
	}
	return all[:min(len(all), namespace.LayoutsMax)]
}
