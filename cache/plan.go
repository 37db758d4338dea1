package cache

import (
	"cmp"
	"slices"
	"sync"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/catalog"
	"coppice.dev/coppice/namespace/object"
)

// A miss fetches more than the frame it needs: the frames behind it in the pack, up to a window of
// stored bytes, since packs are laid out in the order in which trees are read. The window grows
// while misses go on where the last one ended.
const (
	windowMin = 1 << 20
	windowMax = 8 << 20
	// windowRated is the least window of a hydration that has a rate: smaller requests cost more than they
	// smooth.
	windowRated = 256 << 10
	// gapMax is how much of a pack is fetched for nothing rather than in two requests that somebody
	// waits for; gapHydrate the same when nobody does, and bytes count.
	gapMax     = 64 << 10
	gapHydrate = 4 << 10
	// lookMax bounds the chunks looked at to plan a window: some of them may be in other packs.
	lookMax = 64 << 10
)

// planned is a frame to fetch and the chunks that are known to be in it.
type planned struct {
	object.Place
	chunks []object.FrameChunk
}

func (p planned) end() int64     { return p.FrameOff + int64(p.FrameLen) }
func (p planned) key() flightKey { return flightKey{p.Pack, p.FrameOff} }

// window is a plan: consecutive frames of one pack, and the chunk after the last of them.
type window struct {
	frames []planned
	next   int
	due    [][]due // of a hydration: the chunks to wait for in each of the frames
}

// bytes returns how many bytes a request for the window brings.
func (w window) bytes() int64 { return w.frames[len(w.frames)-1].end() - w.frames[0].FrameOff }

// source is a catalog and the locator of its chunks; what the latter says is not trusted.
type source struct {
	id  namespace.Digest
	cat *catalog.Catalog
	loc *object.Locator
}

// plan collects the frames to fetch for chunk i: its own, and those behind it in its pack that are
// not here, until limit stored bytes or a gap of more than gap.
func (c *Cache) plan(src source, i int, limit, gap int64) window {
	first := src.loc.Place(i)
	for i > 0 && src.loc.Place(i-1).Pack == first.Pack && src.loc.Place(i-1).FrameOff == first.FrameOff {
		i-- // chunks of the same frame that come before
	}
	w := window{frames: []planned{{Place: first}}}
	cur := &w.frames[0]
	for end := min(i+lookMax, src.loc.Len()); i < end; i++ {
		p := src.loc.Place(i)
		if p.IsZero() || p.Pack != first.Pack || p.FrameOff < cur.FrameOff {
			continue // a hole, or a duplicate of what is elsewhere
		}
		chunk := src.cat.Chunk(i)
		if p.FrameOff != cur.FrameOff {
			if c.holds(chunk.Digest) || p.FrameOff < cur.end() || p.FrameOff-cur.end() > gap || p.FrameOff+int64(p.FrameLen)-first.FrameOff > limit {
				break
			}
			w.frames = append(w.frames, planned{Place: p})
			cur = &w.frames[len(w.frames)-1]
		}
		cur.chunks = append(cur.chunks, object.FrameChunk{Digest: chunk.Digest, Off: p.Off, Len: uint32(src.cat.ChunkLen(i))})
	}
	w.next = i
	for k := range w.frames {
		w.frames[k].chunks = distinct(w.frames[k].chunks)
	}
	return w
}

// job is what is missing of a catalog, and where that is.
type job struct {
	source
	lack *lack
}

// due is a chunk that somebody waits for.
type due struct {
	job   *job
	chunk int
}

// cover plans the requests for all that jobs miss: frames in the order of their packs, which catalogs
// share, neighbours together, until limit stored bytes or a gap of more than gap. What else the catalogs
// have in those frames comes along.
func cover(jobs []*job, limit, gap int64) []window {
	type wanted struct {
		planned
		due []due
	}
	at := map[flightKey]*wanted{}
	var order []*wanted
	packs := map[namespace.Digest]int{} // by first use
	for _, j := range jobs {
		for i := range j.loc.Len() {
			p := j.loc.Place(i)
			if p.IsZero() || !j.lack.has(i) {
				continue
			}
			w := at[flightKey{p.Pack, p.FrameOff}]
			if w == nil {
				w = &wanted{planned: planned{Place: p}}
				at[w.key()], order = w, append(order, w)
				if _, known := packs[p.Pack]; !known {
					packs[p.Pack] = len(packs)
				}
			}
			w.due = append(w.due, due{j, i})
		}
	}
	for _, j := range jobs {
		for i := range j.loc.Len() {
			p := j.loc.Place(i)
			if w := at[flightKey{p.Pack, p.FrameOff}]; w != nil && !p.IsZero() {
				w.chunks = append(w.chunks, object.FrameChunk{Digest: j.cat.Chunk(i).Digest, Off: p.Off, Len: uint32(j.cat.ChunkLen(i))})
			}
		}
	}
	slices.SortFunc(order, func(a, b *wanted) int {
		return cmp.Or(cmp.Compare(packs[a.Pack], packs[b.Pack]), cmp.Compare(a.FrameOff, b.FrameOff))
	})
	var all []window
	for _, f := range order {
		f.chunks = distinct(f.chunks)
		if n := len(all); n > 0 && all[n-1].takes(f.planned, limit, gap) {
			all[n-1].frames, all[n-1].due = append(all[n-1].frames, f.planned), append(all[n-1].due, f.due)
			continue
		}
		all = append(all, window{frames: []planned{f.planned}, due: [][]due{f.due}})
	}
	return all
}

// takes reports whether a frame may be the next one of the window.
func (w window) takes(f planned, limit, gap int64) bool {
	last := w.frames[len(w.frames)-1]
	return f.Pack == last.Pack && f.FrameOff >= last.end() && f.FrameOff-last.end() <= gap && f.end()-w.frames[0].FrameOff <= limit
}

// distinct sorts the chunks of a frame and drops what is said twice, as equal files do; what is more
// than a frame can hold is left out.
func distinct(chunks []object.FrameChunk) []object.FrameChunk {
	slices.SortStableFunc(chunks, func(a, b object.FrameChunk) int { return cmp.Compare(a.Off, b.Off) })
	chunks = slices.Compact(chunks)
	return chunks[:min(len(chunks), namespace.FrameChunksMax)]
}

// runs tells a sequence of misses from a random one.
type runs struct {
	mu    sync.Mutex
	pack  namespace.Digest
	end   int64
	width int64
}

// limit returns the width of the window for a miss at p, and whether it goes on where the last
// window ended. A new pack that begins at its beginning goes on as well.
func (r *runs) limit(p object.Place) (int64, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	near := r.pack == p.Pack && p.FrameOff >= r.end && p.FrameOff-r.end <= gapMax
	turned := r.pack != p.Pack && p.FrameOff < 64 && r.width > 0
	if near || turned {
		r.width = min(2*r.width, windowMax)
		return r.width, true
	}
	r.width = windowMin
	return r.width, false
}

// planned notes where the newest window ends.
func (r *runs) planned(last planned) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.pack, r.end = last.Pack, last.end()
}
