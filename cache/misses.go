package cache

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"coppice.dev/coppice/internal/disk"
	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/catalog"
)

const (
	// missesMax bounds the misses that are remembered: what somebody would look through, and more than a
	// session away from the network asks for. The oldest are forgotten, those that came since first.
	missesMax = 4096
	// missesEvery is how often the list is written, if it changed: a crash may lose that much of it.
	missesEvery = 5 * time.Second
	missesName  = "misses.json"
	// missFileMax bounds the files that are fetched whole because a read of a part failed: whoever read it
	// wanted the rest. Of larger ones, as images of disks, the part is fetched.
	missFileMax = 64 << 20
	// missesBytesMax bounds the file: missesMax of the longest paths.
	missesBytesMax = 64 << 20
)

// Miss is an object that a read needed and did not get. The zero Catalog says that it is a catalog or a
// manifest itself, not a chunk.
type Miss struct {
	Object  namespace.Digest `json:"object"`
	Catalog namespace.Digest `json:"catalog,omitzero"` // whose chunk it is
	Index   uint32           `json:"index,omitempty"`  // of the chunk in its catalog
	Size    uint32           `json:"size,omitempty"`   // of the chunk
	// File is the name of the first file that has the chunk, below its catalog's directory.
	File string `json:"file,omitempty"`
	// Path is where that is in a mount, once somebody has found out; see [Cache.NameMiss].
	Path    string    `json:"path,omitempty"`
	First   time.Time `json:"first"`
	Last    time.Time `json:"last"`
	Count   uint64    `json:"count"`
	Reason  string    `json:"reason"`           // of the last time
	Fetched time.Time `json:"fetched,omitzero"` // when it came after all
}

// misses remembers what reads needed and did not get. Safe for concurrent use.
type misses struct {
	path string

	mu    sync.Mutex
	by    map[namespace.Digest]*Miss
	dirty bool
}

// openMisses reads the list that is kept in dir. One that does not parse is begun anew: it is of use,
// not of value.
func openMisses(dir string) *misses {
	m := &misses{path: filepath.Join(dir, missesName), by: map[namespace.Digest]*Miss{}}
	info, err := os.Stat(m.path)
	if err != nil || info.Size() > missesBytesMax {
		return m
	}
	var all []Miss
	if b, err := os.ReadFile(m.path); err != nil || json.Unmarshal(b, &all) != nil {
		return m
	}
	for _, one := range all[:min(len(all), missesMax)] {
		m.by[one.Object] = &one
	}
	return m
}

// note remembers a miss and reports whether it is the first one of its object.
func (m *misses) note(one Miss, err error, now time.Time) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.dirty = true
	old := m.by[one.Object]
	if old == nil {
		if len(m.by) >= missesMax {
			m.forgetOne()
		}
		one.First = now
		old = &one
		m.by[one.Object] = old
	}
	old.Last, old.Reason, old.Fetched = now, reason(err), time.Time{}
	old.Count++
	return old.Count == 1
}

// reason is an error without what the list says anyway.
func reason(err error) string {
	_, why, found := strings.Cut(err.Error(), notHere+": ")
	if !found {
		return err.Error()
	}
	return why
}

// forgetOne makes room; with mu held.
func (m *misses) forgetOne() {
	var worst *Miss
	for _, one := range m.by {
		if worst == nil || one.Fetched.IsZero() == worst.Fetched.IsZero() && one.Last.Before(worst.Last) ||
			!one.Fetched.IsZero() && worst.Fetched.IsZero() {
			worst = one
		}
	}
	delete(m.by, worst.Object)
}

// all returns the list, the newest first.
func (m *misses) all() []Miss {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := make([]Miss, 0, len(m.by))
	for _, one := range m.by {
		all = append(all, *one)
	}
	slices.SortFunc(all, func(a, b Miss) int {
		return cmp.Or(b.Last.Compare(a.Last), strings.Compare(a.Object.Hex(), b.Object.Hex()))
	})
	return all
}

// change changes an entry, if it is still there.
func (m *misses) change(d namespace.Digest, fn func(*Miss)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if one := m.by[d]; one != nil {
		fn(one)
		m.dirty = true
	}
}

// save writes the list if it changed. Kinds: Limit, Denied, Internal.
func (m *misses) save() error {
	m.mu.Lock()
	dirty := m.dirty
	m.dirty = false
	m.mu.Unlock()
	if !dirty {
		return nil
	}
	b, err := json.Marshal(m.all())
	if err == nil {
		err = disk.Replace(m.path, b, 0o600)
	}
	if err != nil {
		m.mu.Lock()
		m.dirty = true
		m.mu.Unlock()
	}
	return err
}

// missesLoop saves the list until the cache is closed, and then once more.
func (c *Cache) missesLoop() {
	tick := time.NewTicker(missesEvery)
	defer tick.Stop()
	for open := true; open; {
		select {
		case <-tick.C:
		case <-c.closing:
			open = false
		}
		if err := c.misses.save(); err != nil {
			c.log.Warn("the list of misses is not kept", "error", err)
		}
	}
}

// missed notes that a read failed, unless it was given up, or was none that anybody waited for.
func (r *Reader) missed(ctx context.Context, m Miss, err error) {
	switch namespace.KindOf(err) {
	case namespace.Canceled, namespace.Invalid:
		return
	}
	if _, background := namespace.Background(ctx); background {
		return
	}
	r.c.count.failed.Add(1)
	if !m.Catalog.IsZero() && !r.c.misses.knows(m.Object) {
		if cat, cerr := r.c.objects.open(m.Catalog); cerr == nil {
			if i := fileOf(cat, m.Index); i >= 0 {
				m.File = PathIn(cat, i)
			}
		}
	}
	if r.c.misses.note(m, err, time.Now()) {
		r.c.log.Warn("not here, and not to be had", "object", m.Object.String(), "file", m.File, "error", err)
	}
}

// knows reports whether an object is on the list.
func (m *misses) knows(d namespace.Digest) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.by[d] != nil
}

// fileOf returns the first file that has a chunk, -1 if none does.
func fileOf(cat *catalog.Catalog, index uint32) int {
	for i := range cat.Len() {
		if lo, hi := cat.Chunks(i); lo <= int(index) && int(index) < hi {
			return i
		}
	}
	return -1
}

// LocalCatalog returns a catalog if it is here, without asking anybody. Kinds: NotExist, Corrupt.
func (c *Cache) LocalCatalog(d namespace.Digest) (*catalog.Catalog, error) { return c.objects.open(d) }

// PathIn returns an entry's path below its catalog's directory.
func PathIn(cat *catalog.Catalog, i int) string {
	var names []string
	for i > 0 && len(names) < namespace.DepthMax {
		names = append(names, string(cat.Entry(i).Name))
		i = cat.Parent(i)
	}
	slices.Reverse(names)
	return strings.Join(names, "/")
}

// Misses returns what reads needed and did not get, the newest first: at most 4096 objects, with those
// that came since. It survives restarts.
func (c *Cache) Misses() []Miss { return c.misses.all() }

// NameMiss says where in a mount a missed object is.
func (c *Cache) NameMiss(object namespace.Digest, path string) {
	c.misses.change(object, func(m *Miss) { m.Path = path })
}

// ClearMisses forgets all misses and returns how many there were. Kinds: Limit, Denied, Internal.
func (c *Cache) ClearMisses() (int, error) {
	c.misses.mu.Lock()
	n := len(c.misses.by)
	clear(c.misses.by)
	c.misses.dirty = true
	c.misses.mu.Unlock()
	return n, c.misses.save()
}

// FetchMisses fetches what reads needed and did not get, in the background, one after the other, each
// with the rest of its file, and returns how many objects came. What the origin does not have stays on the list. It has no bound but
// ctx. Kinds: Unavailable, Canceled: the rest is for another time; Limit.
func (r *Reader) FetchMisses(ctx context.Context) (int, error) {
	ctx = namespace.InBackground(ctx, nil)
	n := 0
	for _, m := range r.c.Misses() {
		if !m.Fetched.IsZero() {
			continue
		}
		err := r.fetchMiss(ctx, m)
		switch namespace.KindOf(err) {
		case namespace.Unavailable, namespace.Canceled, namespace.Limit:
			if err != nil {
				return n, err
			}
		}
		r.c.misses.change(m.Object, func(now *Miss) {
			switch {
			case err != nil:
				now.Reason = reason(err)
			case now.Count == m.Count: // it did not fail again meanwhile
				now.Fetched = time.Now()
				n++
			}
		})
	}
	if n == 0 {
		return 0, nil
	}
	return n, r.c.sync()
}

// fetchMiss fetches one object.
func (r *Reader) fetchMiss(ctx context.Context, m Miss) error {
	if m.Catalog.IsZero() {
		if _, err := r.c.objects.read(m.Object, namespace.CatalogBytesMax); err == nil {
			return nil
		}
		b, err := r.fetchBlob(ctx, m.Object, namespace.CatalogBytesMax)
		if err == nil && !r.keepObject(m.Object, "", b) {
			err = namespace.E(namespace.Limit, "keep", m.Object.String(), fmt.Errorf("the cache cannot be written"))
		}
		return err
	}
	cat, err := r.catalog(ctx, m.Catalog)
	if err != nil {
		return err
	}
	lo, hi := int(m.Index), int(m.Index)+1
	if i := fileOf(cat, m.Index); i >= 0 && cat.Entry(i).Size <= missFileMax {
		lo, hi = cat.Chunks(i)
	}
	for i := lo; i < min(hi, cat.NumChunks()); i++ {
		if err := r.fetchQuietly(ctx, m.Catalog, cat, i); err != nil {
			return err
		}
	}
	return nil
}

// fetchQuietly fetches a chunk, and what lies behind it, as nobody waits for it.
func (r *Reader) fetchQuietly(ctx context.Context, id namespace.Digest, cat *catalog.Catalog, i int) error {
	ch := cat.Chunk(i)
	if ch.Hole() || r.c.holds(ch.Digest) {
		return nil
	}
	if ctx.Err() != nil {
		return namespace.E(namespace.Canceled, "fetch", ch.Digest.String(), ctx.Err())
	}
	loc, err := r.locator(ctx, id, nil)
	if err != nil {
		return err
	}
	if loc.Len() == cat.NumChunks() && !loc.Place(i).IsZero() {
		w := r.c.plan(source{id, cat, loc}, i, windowMin, gapHydrate)
		if err := r.launch(w, nil, nil, false).wait(ctx, w.frames[0].key()); err == nil && r.c.holds(ch.Digest) {
			return nil
		}
	}
	// Whatever went wrong, a read would know better: it takes another locator, for one.
	_, err = r.fetchChunk(ctx, namespace.ChunkRef{Catalog: id, Index: uint32(i), Digest: ch.Digest, Size: uint32(cat.ChunkLen(i))})
	return err
}
