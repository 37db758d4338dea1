package builder

import (
	"bytes"
	"context"
	"maps"
	"runtime"
	"slices"

	"golang.org/x/sync/errgroup"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/object"
)

// movesMax bounds the chunks that are moved before the locators are rewritten: their old and new
// places are in memory, at about 150 bytes.
const movesMax = 512 << 10

// repack copies the live part of packs that are mostly dead. Order: new packs; the segment that
// covers them; the old packs are renewed, so that they stay for readers of old locators; locators.
// A crash in between leaves new packs that nothing names, or locators of which some name the old
// and some the new ones. Both are whole, and the next collection goes on from there.
//
// The age of a pack does not matter: imports renew those that they build on, so that the ones in use
// are always young. An import that is running may build on what looks dead here; it finds the old
// pack, which stays, and which the next collection sees in use.
func (c *collector) repack() error {
	var batch []namespace.Digest
	moves := 0
	flush := func() error {
		if len(batch) == 0 {
			return nil
		}
		err := c.repackAll(batch)
		batch, moves = nil, 0
		return err
	}
	for _, d := range slices.SortedFunc(maps.Keys(c.packs), func(a, b namespace.Digest) int { return bytes.Compare(a[:], b[:]) }) {
		u := c.packs[d]
		if u.whole || u.share() >= c.o.Repack {
			continue
		}
		if c.o.DryRun {
			c.report.Repacked.add(int64(u.size))
			c.report.Moved.Bytes += uint64(float64(u.size) * u.share())
			continue
		}
		batch, moves = append(batch, d), moves+u.count()
		if moves >= movesMax {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	return flush()
}

func (c *collector) repackAll(packs []namespace.Digest) error {
	m := &mover{c: c, w: object.NewPackWriter(), to: map[object.Place]object.Place{}}
	var moved []namespace.Digest
	for _, d := range packs {
		ok, err := m.pack(d, c.packs[d])
		if err != nil {
			return err
		}
		if ok {
			moved = append(moved, d)
		}
	}
	if err := m.close(); err != nil || len(moved) == 0 {
		return err
	}
	if _, err := putSegment(c.ctx, c.store, m.packs, m.recs); err != nil {
		return err
	}
	for _, d := range moved {
		if err := c.ager.Renew(c.ctx, namespace.Key{Class: namespace.Pack, Digest: d}); err != nil {
			return err
		}
	}
	if err := m.locators(moved); err != nil {
		return err
	}
	for _, d := range moved {
		c.emptied[d] = true
		c.report.Repacked.add(int64(c.packs[d].size))
	}
	return nil
}

// mover copies chunks into new packs and remembers where they went.
type mover struct {
	c     *collector
	w     *object.PackWriter
	from  [][]object.Place // of the frames in w
	plain []byte           // the frame being collected
	parts []object.FrameChunk
	olds  []object.Place
	buf   []byte

	to    map[object.Place]object.Place
	packs []namespace.Digest
	recs  []object.IndexRecord
}

// pack copies the live chunks of one pack. ok is false if it is damaged: then it stays as it is,
// and what was copied of it is of no use.
func (m *mover) pack(d namespace.Digest, u *packUse) (ok bool, err error) {
	k := namespace.Key{Class: namespace.Pack, Digest: d}
	b, err := getAll(m.c.ctx, m.c.store, k, namespace.PackBytesMax)
	if err != nil {
		return false, err
	}
	if err = checkDigest(k, b); err != nil {
		m.c.warn(k.String(), err.Error())
		return false, nil
	}
	frames, err := object.ReadPackDirectory(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		m.c.warn(k.String(), err.Error())
		return false, nil
	}
	n := 0
	for _, f := range frames {
		if err := m.frame(k, b, f, n, u); err != nil {
			if !namespace.IsKind(err, namespace.Corrupt) {
				return false, err
			}
			m.c.warn(k.String(), err.Error())
			return false, nil
		}
		n += len(f.Chunks)
	}
	return true, nil
}

// frame copies the live chunks of frame f of the pack b, whose first chunk has number n.
func (m *mover) frame(k namespace.Key, b []byte, f object.Frame, n int, u *packUse) (err error) {
	live := 0
	for i := range f.Chunks {
		if u.has(n + i) {
			live++
		}
	}
	if live == 0 {
		return nil
	}
	stored := b[f.Off : f.Off+int64(f.Len)]
	if m.buf, err = object.DecodeFrame(m.buf, stored, f.Codec, int(f.Plain)); err != nil {
		return err
	}
	var olds []object.Place
	for i, ch := range f.Chunks {
		if !u.has(n + i) {
			continue
		}
		data := m.buf[ch.Off : ch.Off+ch.Len]
		if namespace.Sum(data) != ch.Digest {
			return corrupt(k, "chunk %v at %d+%d", ch.Digest, f.Off, ch.Off)
		}
		old := placeOf(k.Digest, f, ch)
		if live == len(f.Chunks) {
			olds = append(olds, old)
			continue
		}
		if len(m.plain)+len(data) > frameBytesDefault || len(m.parts) == namespace.FrameChunksMax {
			if err := m.flush(); err != nil {
				return err
			}
		}
		m.parts = append(m.parts, object.FrameChunk{Digest: ch.Digest, Off: uint32(len(m.plain)), Len: ch.Len})
		m.plain, m.olds = append(m.plain, data...), append(m.olds, old)
	}
	if len(olds) == 0 {
		return nil
	}
	if err := m.flush(); err != nil { // the order of a tree stays
		return err
	}
	return m.add(stored, f.Codec, f.Plain, f.Chunks, olds)
}

// flush adds the frame that was collected.
func (m *mover) flush() error {
	if len(m.parts) == 0 {
		return nil
	}
	stored, codec := object.EncodeFrame(m.plain)
	err := m.add(stored, codec, uint32(len(m.plain)), m.parts, m.olds)
	m.plain, m.parts, m.olds = m.plain[:0], nil, nil
	return err
}

func (m *mover) add(stored []byte, codec object.Codec, plain uint32, chunks []object.FrameChunk, olds []object.Place) error {
	if err := m.w.Add(stored, codec, plain, chunks); err != nil {
		return err
	}
	m.from = append(m.from, olds)
	if m.w.Size() < namespace.PackBytesTarget {
		return nil
	}
	return m.put()
}

// put stores the pack that was collected.
func (m *mover) put() error {
	if len(m.from) == 0 {
		return nil
	}
	b, d, frames := m.w.Finish()
	if err := m.c.store.Put(m.c.ctx, namespace.Key{Class: namespace.Pack, Digest: d}, b); err != nil {
		return err
	}
	for i, f := range frames {
		for j, ch := range f.Chunks {
			p := placeOf(d, f, ch)
			m.to[m.from[i][j]] = p
			m.recs = append(m.recs, object.IndexRecord{Digest: ch.Digest, Place: p})
		}
	}
	m.packs, m.from = append(m.packs, d), nil
	m.c.report.Moved.add(int64(len(b)))
	m.c.use(d).whole = true // live from now on
	return nil
}

func (m *mover) close() error {
	if err := m.flush(); err != nil {
		return err
	}
	return m.put()
}

// locators rewrites those of all retained catalogs that name one of the packs.
func (m *mover) locators(packs []namespace.Digest) error {
	moved := map[namespace.Digest]bool{}
	for _, d := range packs {
		moved[d] = true
	}
	group, ctx := errgroup.WithContext(m.c.ctx)
	group.SetLimit(max(crawlersMin, runtime.GOMAXPROCS(0)))
	for d := range m.c.crawl.seen {
		group.Go(func() error { return m.locator(ctx, d, moved) })
	}
	return group.Wait()
}

// locator rewrites one locator. An importer that writes the same one at the same time does no harm:
// the places it knows are of packs that stay as well.
func (m *mover) locator(ctx context.Context, d namespace.Digest, moved map[namespace.Digest]bool) error {
	k := namespace.Key{Class: namespace.Locator, Digest: d}
	stored, err := getAll(ctx, m.c.store, k, namespace.LocatorBytesMax)
	if namespace.IsKind(err, namespace.NotExist) {
		return nil // of a version that was collected before
	}
	if err != nil {
		return err
	}
	l, err := object.OpenLocator(stored)
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(l.Packs(), func(p namespace.Digest) bool { return moved[p] }) {
		return nil
	}
	m.c.tick("rewriting locators")
	places := make([]object.Place, l.Len())
	for i := range places {
		places[i] = l.Place(i)
		if moved[places[i].Pack] {
			to, ok := m.to[places[i]]
			if !ok {
				return nil // an importer has replaced it, and renewed the pack: that stays
			}
			places[i] = to
		}
	}
	return m.c.store.Put(ctx, k, object.EncodeLocator(places))
}
