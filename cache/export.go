package cache

import (
	"context"
	"errors"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/catalog"
	"coppice.dev/coppice/namespace/object"
)

// ExportReport says what [Reader.Export] wrote.
type ExportReport struct {
	Catalogs int    `json:"catalogs"`
	Packs    int    `json:"packs"`
	Bytes    uint64 `json:"bytes"` // of packs, as stored
}

const (
	// exportFrame is the plaintext at which small chunks of an export share a frame; see decision 0001.
	exportFrame = 128 << 10
	// exportPlaces bounds the chunks remembered to be written once only, about 100 bytes each. What is
	// beyond it and in two places is written twice.
	exportPlaces = 1 << 18
)

// Export writes the tree whose root catalog is root, with put, as a static origin has it: catalogs, packs
// and locators that fit those. Every chunk is held against its digest on the way. What is not in the
// cache is fetched. The same tree gives the same objects, so an export into a store that skips what it
// holds goes on where an earlier one ended. put gets memory that it must not keep. progress, if set, is
// told the plaintext bytes done and in total. Memory: a pack, and a bounded number of places.
// Kinds: those of ReadChunk and of put.
func (r *Reader) Export(ctx context.Context, root namespace.Digest, put func(context.Context, namespace.Key, []byte) error,
	progress func(done, total int64)) (ExportReport, error) {
	top, err := r.Catalog(ctx, root)
	if err != nil {
		return ExportReport{}, err
	}
	x := &exporter{r: r, put: put, w: object.NewPackWriter(), seen: map[namespace.Digest]exportPlace{}, total: int64(top.Bytes()), progress: progress}
	if err := x.tree(ctx, root, map[namespace.Digest]bool{}); err != nil {
		return x.report, err
	}
	if err := x.finishPack(ctx); err != nil {
		return x.report, err
	}
	return x.report, nil
}

// exporter is one run of Export. One goroutine.
type exporter struct {
	r        *Reader
	put      func(context.Context, namespace.Key, []byte) error
	w        *object.PackWriter
	frame    []byte // plaintext of the frame being filled
	chunks   []object.FrameChunk
	packs    []namespace.Digest // finished
	seen     map[namespace.Digest]exportPlace
	waiting  []exportCatalog // for their last pack
	frames   int             // in the pack being filled, before the one in frame
	plain    []byte          // of a chunk
	done     int64
	total    int64
	progress func(done, total int64)
	report   ExportReport
	inPack   map[int][]object.Place // frames of finished packs that waiting catalogs refer to
}

// exportPlace is where a chunk will be: the pack's number, the frame's in it, and the offset.
type exportPlace struct {
	pack, frame int
	off         uint32
	known       bool
}

// exportCatalog is a catalog whose locator is not written yet.
type exportCatalog struct {
	id     namespace.Digest
	places []exportPlace // of a hole: not known
}

// tree exports a catalog and those below it, depth first, which is the order of reading.
func (x *exporter) tree(ctx context.Context, d namespace.Digest, seen map[namespace.Digest]bool) error {
	if seen[d] {
		return nil
	}
	seen[d] = true
	cat, err := x.r.Catalog(ctx, d)
	if err != nil {
		return err
	}
	b, err := x.r.Blob(ctx, d, namespace.CatalogBytesMax)
	if err != nil {
		return err
	}
	if err := x.put(ctx, namespace.Key{Class: namespace.Blob, Digest: d}, object.EncodeBlob(b)); err != nil {
		return err
	}
	if err := x.catalog(ctx, d, cat); err != nil {
		return err
	}
	x.report.Catalogs++
	for _, below := range cat.AllNested() {
		if err := x.tree(ctx, below, seen); err != nil {
			return err
		}
	}
	return nil
}

func (x *exporter) catalog(ctx context.Context, d namespace.Digest, cat *catalog.Catalog) error {
	c := exportCatalog{d, make([]exportPlace, cat.NumChunks())}
	for i := range c.places {
		ch := cat.Chunk(i)
		if ch.Hole() {
			continue
		}
		place, ok := x.seen[ch.Digest]
		if !ok {
			var err error
			ref := namespace.ChunkRef{Catalog: d, Index: uint32(i), Digest: ch.Digest, Size: uint32(cat.ChunkLen(i))}
			if place, err = x.chunk(ctx, ref); err != nil {
				return err
			}
			if len(x.seen) < exportPlaces {
				x.seen[ch.Digest] = place
			}
		}
		c.places[i] = place
		if x.done = min(x.done+int64(cat.ChunkLen(i)), x.total); x.progress != nil {
			x.progress(x.done, x.total)
		}
	}
	if len(c.places) > 0 {
		x.waiting = append(x.waiting, c)
	}
	return nil
}

// chunk reads a chunk and puts it into the frame being filled.
func (x *exporter) chunk(ctx context.Context, ref namespace.ChunkRef) (exportPlace, error) {
	if cap(x.plain) < int(ref.Size) {
		x.plain = make([]byte, ref.Size)
	}
	p := x.plain[:ref.Size]
	n, err := x.r.ReadChunk(ctx, ref, p, 0)
	if err != nil {
		return exportPlace{}, err
	}
	if n != len(p) || namespace.Sum(p) != ref.Digest {
		return exportPlace{}, namespace.WithHint(namespace.E(namespace.Corrupt, "export", "chunk "+ref.Digest.String(), errors.New("its bytes are others")),
			"`coppice cache verify --repair` drops what is damaged")
	}
	if len(x.frame)+len(p) > exportFrame && len(x.chunks) > 0 || len(x.chunks) == namespace.FrameChunksMax {
		if err := x.finishFrame(ctx); err != nil {
			return exportPlace{}, err
		}
	}
	place := exportPlace{pack: len(x.packs), frame: x.frames, off: uint32(len(x.frame)), known: true}
	x.chunks = append(x.chunks, object.FrameChunk{Digest: ref.Digest, Off: place.off, Len: ref.Size})
	x.frame = append(x.frame, p...)
	return place, nil
}

func (x *exporter) finishFrame(ctx context.Context) error {
	if len(x.chunks) == 0 {
		return nil
	}
	stored, codec := object.EncodeFrame(x.frame)
	if err := x.w.Add(stored, codec, uint32(len(x.frame)), x.chunks); err != nil {
		return err
	}
	x.frame, x.chunks = x.frame[:0], nil
	x.frames++
	if x.w.Size() >= namespace.PackBytesTarget {
		return x.finishPack(ctx)
	}
	return nil
}

// finishPack writes the pack and the locators of the catalogs all of whose chunks are written.
func (x *exporter) finishPack(ctx context.Context) error {
	if len(x.chunks) > 0 {
		stored, codec := object.EncodeFrame(x.frame)
		if err := x.w.Add(stored, codec, uint32(len(x.frame)), x.chunks); err != nil {
			return err
		}
		x.frame, x.chunks = x.frame[:0], nil
		x.frames++
	}
	if x.frames > 0 {
		pack, d, frames := x.w.Finish()
		if err := x.put(ctx, namespace.Key{Class: namespace.Pack, Digest: d}, pack); err != nil {
			return err
		}
		if x.inPack == nil {
			x.inPack = map[int][]object.Place{}
		}
		for _, f := range frames {
			x.inPack[len(x.packs)] = append(x.inPack[len(x.packs)],
				object.Place{Pack: d, FrameOff: f.Off, FrameLen: f.Len, FramePlain: f.Plain, Codec: f.Codec})
		}
		x.packs = append(x.packs, d)
		x.frames = 0
		x.report.Packs++
		x.report.Bytes += uint64(len(pack))
	}
	return x.locate(ctx)
}

// locate writes the locators of waiting catalogs. One that is still being read is not among them.
func (x *exporter) locate(ctx context.Context) error {
	for _, c := range x.waiting {
		places := make([]object.Place, len(c.places))
		for i, p := range c.places {
			if p.known {
				places[i] = x.inPack[p.pack][p.frame]
				places[i].Off = p.off
			}
		}
		if err := x.put(ctx, namespace.Key{Class: namespace.Locator, Digest: c.id}, object.EncodeLocator(places)); err != nil {
			return err
		}
	}
	x.waiting = x.waiting[:0]
	return nil
}
