package builder

import (
	"bytes"
	"cmp"
	"context"
	"path"
	"runtime"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/catalog"
	"coppice.dev/coppice/namespace/object"
	"coppice.dev/coppice/namespace/object/delta"
)

const (
	// deltaMemory bounds what differences under way take together, in bytes; with payloads and the
	// compressor it stays below 1 GB. One that needs more on its own runs alone.
	deltaMemory = 640 << 20
	// deltaFrame is where a frame of patches is closed: as large as still compresses better, since
	// whoever wants one patch of a frame fetches all of it.
	deltaFrame = 4 << 20
	// deltaPayloads bounds the patches of one catalog, which are in memory until they are stored.
	deltaPayloads = 192 << 20
)

// DeltaOptions of [Deltas]. The zero value is the default.
type DeltaOptions struct {
	// Progress, if set, is told how far it is, in files and their bytes. From one goroutine at a time.
	Progress func(files, filesTotal, bytes, bytesTotal uint64)
	// Warn, if set, is told of files and catalogs that get no delta because of an error. From one
	// goroutine at a time.
	Warn func(path, reason string)
}

// DeltaReport says what [Deltas] made. Bytes are stored ones but for Bytes.
type DeltaReport struct {
	Files      uint64 `json:"files"`       // that hold content the old tree has not; equal ones of a catalog once
	Bytes      uint64 `json:"bytes"`       // their plaintext
	Covered    uint64 `json:"covered"`     // files that a delta makes
	Objects    uint64 `json:"objects"`     // delta objects written
	DeltaBytes uint64 `json:"delta_bytes"` // their size
	PlainBytes uint64 `json:"plain_bytes"` // what all the files cost without deltas
	RestBytes  uint64 `json:"rest_bytes"`  // what those that no delta makes cost
	// Catalogs and locators that the old tree has not, without and with deltas.
	MetadataBytes uint64 `json:"metadata_bytes"`
	MetadataRest  uint64 `json:"metadata_rest"`
}

// Deltas writes a delta object for each catalog of the tree new that has files the tree old has
// not, where that is smaller than the chunks: each new file is made from the one of the same path or,
// if there is none, of a similar name. Equal trees give equal objects. A delta is an optimisation: what
// cannot be compared is left out, with a warning. An object that a catalog had before is replaced.
// Memory: about 1 GB, with two processors. Kinds: those of the store and of [Stored]; Canceled.
func Deltas(ctx context.Context, store namespace.Store, old, new namespace.Digest, o DeltaOptions) (DeltaReport, error) {
	d := &deltas{ctx: ctx, store: store, stored: NewStored(store), old: old, o: o, has: map[namespace.Digest]bool{}, catalogs: map[*catalog.Catalog]*deltaCatalog{}}
	if err := d.compare(new); err != nil {
		return d.report, err
	}
	for _, c := range d.order {
		if err := d.catalog(c); err != nil {
			return d.report, err
		}
	}
	return d.report, nil
}

// deltas is one run of [Deltas].
type deltas struct {
	ctx      context.Context
	store    namespace.Store
	stored   *Stored
	old      namespace.Digest
	o        DeltaOptions
	has      map[namespace.Digest]bool // chunks of old files that changed or went
	catalogs map[*catalog.Catalog]*deltaCatalog
	order    []*deltaCatalog
	gone     map[string][]catalog.Side // files that went, by path without digits

	mu         sync.Mutex // guards what follows, and calls of o
	report     DeltaReport
	files      uint64 // done
	bytes      uint64
	filesTotal uint64
	bytesTotal uint64
}

// deltaCatalog is a catalog of the new tree with the files that may get a delta.
type deltaCatalog struct {
	catalog *catalog.Catalog
	before  map[*catalog.Catalog]int // where its entries were, and how many of them
	path    string                   // where it was met first, for warnings
	files   []*deltaFile
	seen    map[string]bool // content, so that equal files are there once
}

// deltaFile is a new file and where it may come from.
type deltaFile struct {
	path   string
	lo, hi int
	entry  catalog.Entry
	bases  []catalog.Side // the best one first
	plain  uint64         // stored bytes of its chunks that the old tree has not

	base    catalog.Side // of the payload; none if it is the file itself
	payload []byte       // nil: no delta
}

// compare finds the files and their bases.
func (d *deltas) compare(new namespace.Digest) error {
	var changes []catalog.Change
	d.gone = map[string][]catalog.Side{}
	err := catalog.Diff(d.ctx, d.stored, d.old, new, func(ch catalog.Change) error {
		if c := ch.Before.Catalog; c != nil && ch.Before.Entry.Type == catalog.File {
			for lo, hi := c.Chunks(ch.Before.Entry.Index); lo < hi; lo++ {
				d.has[c.Chunk(lo).Digest] = true
			}
			if ch.After.Catalog == nil {
				key := withoutDigits(ch.Path)
				d.gone[key] = append(d.gone[key], ch.Before)
			}
		}
		if ch.After.Catalog != nil {
			changes = append(changes, ch)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, ch := range changes {
		if err := d.add(ch); err != nil {
			return err
		}
	}
	return nil
}

// add notes a changed or added entry.
func (d *deltas) add(ch catalog.Change) error {
	c := d.catalogs[ch.After.Catalog]
	if c == nil {
		c = &deltaCatalog{catalog: ch.After.Catalog, path: ch.Path, before: map[*catalog.Catalog]int{}, seen: map[string]bool{}}
		d.catalogs[ch.After.Catalog], d.order = c, append(d.order, c)
	}
	if ch.Before.Catalog != nil {
		c.before[ch.Before.Catalog]++
	}
	e := ch.After.Entry
	if e.Type != catalog.File || e.Size == 0 {
		return nil
	}
	f := &deltaFile{path: ch.Path, entry: e}
	f.lo, f.hi = c.catalog.Chunks(e.Index)
	var content []byte
	for k := f.lo; k < f.hi; k++ {
		x := c.catalog.Chunk(k)
		content = append(content, x.Digest[:]...)
		if x.Hole() || d.has[x.Digest] {
			continue
		}
		cost, err := d.cost(c.catalog, k)
		if err != nil {
			return err
		}
		f.plain += cost
	}
	if f.plain == 0 || c.seen[string(content)] {
		return nil
	}
	c.seen[string(content)] = true
	c.files = append(c.files, f)
	d.filesTotal, d.bytesTotal = d.filesTotal+1, d.bytesTotal+e.Size
	d.report.Files, d.report.Bytes, d.report.PlainBytes = d.report.Files+1, d.report.Bytes+e.Size, d.report.PlainBytes+f.plain
	return d.pair(f, ch)
}

// cost returns the stored bytes of a chunk: its share of the frame it is in.
func (d *deltas) cost(c *catalog.Catalog, k int) (uint64, error) {
	l, err := d.stored.locator(d.ctx, d.stored.Digest(c))
	if err != nil {
		return 0, err
	}
	if k >= l.Len() || l.Place(k).FramePlain == 0 {
		return 0, namespace.E(namespace.Corrupt, "read locator", d.stored.Digest(c).String(), nil)
	}
	p := l.Place(k)
	return (uint64(p.FrameLen)*c.ChunkLen(k) + uint64(p.FramePlain) - 1) / uint64(p.FramePlain), nil
}

// pair finds what f may be made from.
func (d *deltas) pair(f *deltaFile, ch catalog.Change) error {
	if ch.Before.Catalog != nil && ch.Before.Entry.Type == catalog.File {
		f.bases = append(f.bases, ch.Before)
		return nil
	}
	f.bases = append(f.bases, d.gone[withoutDigits(f.path)]...)
	dir, name := path.Split(f.path)
	c, e, err := catalog.Resolve(d.ctx, d.stored, d.old, path.Clean("/" + dir)[1:])
	switch {
	case namespace.IsKind(err, namespace.NotExist) || namespace.IsKind(err, namespace.Invalid):
	case err != nil:
		return err
	case e.Type == catalog.Dir:
		if near, ok := nearest(c, e.Index, name); ok {
			f.bases = append(f.bases, near)
		}
	}
	f.bases = f.bases[:min(len(f.bases), 2)]
	return nil
}

// nearest returns the file of a directory whose name is most like name, if one is like it at all:
// what they begin and end with counts.
func nearest(c *catalog.Catalog, dir int, name string) (catalog.Side, bool) {
	best, found := catalog.Side{}, 0
	for lo, hi := c.Children(dir); lo < hi; lo++ {
		e := c.Entry(lo)
		if e.Type != catalog.File || e.Size == 0 {
			continue
		}
		if n := likeness(string(e.Name), name); n > found {
			best, found = catalog.Side{Catalog: c, Entry: e}, n
		}
	}
	return best, found > 0
}

// likeness returns how many bytes two names have in common at their ends, 0 if that is less than
// half of the longer one.
func likeness(a, b string) int {
	n, head, tail := min(len(a), len(b)), 0, 0
	for head < n && a[head] == b[head] {
		head++
	}
	for tail < n-head && a[len(a)-1-tail] == b[len(b)-1-tail] {
		tail++
	}
	if 2*(head+tail) < max(len(a), len(b)) {
		return 0
	}
	return head + tail
}

func withoutDigits(p string) string {
	b := make([]byte, 0, len(p))
	for i := range len(p) {
		if p[i] < '0' || p[i] > '9' {
			b = append(b, p[i])
		}
	}
	return string(b)
}

// catalog makes and stores the delta object of one catalog.
func (d *deltas) catalog(c *deltaCatalog) error {
	if err := d.differences(c); err != nil {
		return err
	}
	x := &delta.Object{Catalog: d.stored.Digest(c.catalog)}
	patch, err := d.ofCatalog(c, x)
	if err != nil {
		return err
	}
	payloads := d.collect(c, x)
	var b []byte
	if len(payloads) > 0 || x.CatalogBytes > 0 {
		if b, err = delta.Encode(x, payloads, patch); err != nil {
			d.warn(c.path, "no delta for its catalog: "+err.Error())
			x.CatalogBytes = 0
		}
	}
	var rest uint64
	for _, f := range c.files {
		if f.payload == nil || b == nil {
			rest += f.plain
		}
	}
	d.report.RestBytes += rest
	if err := d.metadata(x, rest); err != nil || b == nil {
		return err
	}
	d.report.Covered += uint64(len(payloads))
	d.report.Objects++
	d.report.DeltaBytes += uint64(len(b))
	return d.store.Put(d.ctx, namespace.Key{Class: namespace.Delta, Digest: x.Catalog}, b)
}

// metadata counts what of a catalog and its locator is fetched without deltas, and beside the delta
// x: the catalog if x does not make it, the locator if rest bytes of chunks are not made either.
func (d *deltas) metadata(x *delta.Object, rest uint64) error {
	blob, err := d.store.Stat(d.ctx, namespace.Key{Class: namespace.Blob, Digest: x.Catalog})
	if err != nil {
		return err
	}
	locator, err := d.store.Stat(d.ctx, namespace.Key{Class: namespace.Locator, Digest: x.Catalog})
	if err != nil {
		return err
	}
	d.report.MetadataBytes += uint64(blob + locator)
	if x.CatalogBytes == 0 {
		d.report.MetadataRest += uint64(blob)
	}
	if rest > 0 {
		d.report.MetadataRest += uint64(locator)
	}
	return nil
}

// ofCatalog sets in x how the catalog itself is made, if that saves something, and returns the patch.
func (d *deltas) ofCatalog(c *deltaCatalog, x *delta.Object) ([]byte, error) {
	before, most := namespace.Digest{}, 0
	for b, n := range c.before {
		if digest := d.stored.Digest(b); n > most || n == most && bytes.Compare(digest[:], before[:]) < 0 {
			before, most = digest, n
		}
	}
	if most == 0 || before == x.Catalog {
		return nil, nil
	}
	old, err := d.blob(before)
	if err != nil {
		return nil, err
	}
	new, err := d.blob(x.Catalog)
	if err != nil {
		return nil, err
	}
	patch, err := delta.Diff(delta.Bytes, old, new)
	if err != nil || len(patch) > delta.FrameBytesMax {
		return nil, nil // too large: it is fetched whole
	}
	whole, err := d.store.Stat(d.ctx, namespace.Key{Class: namespace.Blob, Digest: x.Catalog})
	if err != nil || estimate(patch) >= uint64(whole) {
		return nil, err
	}
	x.CatalogBytes, x.Predecessors = uint64(len(new)), []namespace.Digest{before}
	return patch, nil
}

// blob returns the plaintext of a catalog.
func (d *deltas) blob(c namespace.Digest) ([]byte, error) {
	b, err := getAll(d.ctx, d.store, namespace.Key{Class: namespace.Blob, Digest: c}, namespace.CatalogBytesMax)
	if err != nil {
		return nil, err
	}
	return object.DecodeBlob(b, c, namespace.CatalogBytesMax)
}

// collect fills x with the entries of c, whose frames hold files of one kind each, as far as their
// names say, and returns the payloads.
func (d *deltas) collect(c *deltaCatalog, x *delta.Object) (payloads [][]byte) {
	slices.SortFunc(c.files, func(a, b *deltaFile) int { return cmp.Compare(a.lo, b.lo) })
	var files []*deltaFile
	for _, f := range c.files {
		if f.payload == nil {
			continue
		}
		files = append(files, f)
		e := delta.Entry{Lo: uint32(f.lo), Hi: uint32(f.hi), Size: f.entry.Size}
		if f.base.Catalog != nil {
			e.Method, e.Base = delta.Difference, extentsOf(f.base)
			if from := d.stored.Digest(f.base.Catalog); !slices.Contains(x.Predecessors, from) {
				x.Predecessors = append(x.Predecessors, from)
			}
		}
		x.Entries, payloads = append(x.Entries, e), append(payloads, f.payload)
	}
	byKind := make([]int, len(files))
	for i := range byKind {
		byKind[i] = i
	}
	slices.SortStableFunc(byKind, func(a, b int) int {
		return cmp.Compare(path.Ext(withoutDigits(files[a].path)), path.Ext(withoutDigits(files[b].path)))
	})
	frame, filled := uint32(0), 0
	if x.CatalogBytes > 0 {
		frame = 1
	}
	for _, i := range byKind {
		if filled > 0 && filled+len(payloads[i]) > deltaFrame {
			frame, filled = frame+1, 0
		}
		x.Entries[i].Frame = frame
		filled += len(payloads[i])
	}
	return payloads
}

func extentsOf(s catalog.Side) []delta.Extent {
	var all []delta.Extent
	for lo, hi := s.Catalog.Chunks(s.Entry.Index); lo < hi; lo++ {
		all = append(all, delta.Extent{Digest: s.Catalog.Chunk(lo).Digest, Size: s.Catalog.ChunkLen(lo)})
	}
	return all
}

// differences makes the payloads of c's files, the largest first, as many at a time as memory allows.
func (d *deltas) differences(c *deltaCatalog) error {
	slices.SortStableFunc(c.files, func(a, b *deltaFile) int { return cmp.Compare(b.entry.Size, a.entry.Size) })
	group, ctx := errgroup.WithContext(d.ctx)
	group.SetLimit(runtime.GOMAXPROCS(0))
	memory := semaphore.NewWeighted(deltaMemory)
	for _, f := range c.files {
		need := f.memory()
		if err := memory.Acquire(ctx, need); err != nil {
			break // the group has failed, or the caller gave up
		}
		group.Go(func() error {
			defer memory.Release(need)
			err := d.difference(ctx, c, f)
			if namespace.IsKind(err, namespace.Corrupt) || namespace.IsKind(err, namespace.NotExist) || namespace.IsKind(err, namespace.Limit) {
				d.warn(f.path, "no delta: "+err.Error())
				err = nil
			}
			d.done(f)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	if err := d.ctx.Err(); err != nil {
		return namespace.E(namespace.KindOf(err), "make deltas", c.path, err)
	}
	kept := 0
	for _, f := range c.files {
		if kept += len(f.payload); kept > deltaPayloads {
			kept, f.payload = kept-len(f.payload), nil
		}
	}
	return nil
}

func (d *deltas) warn(path, reason string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.o.Warn != nil {
		d.o.Warn(path, reason)
	}
}

func (d *deltas) done(f *deltaFile) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.files, d.bytes = d.files+1, d.bytes+f.entry.Size
	if d.o.Progress != nil {
		d.o.Progress(d.files, d.filesTotal, d.bytes, d.bytesTotal)
	}
}

// memory returns what making f's difference takes, at most all there is.
func (f *deltaFile) memory() int64 {
	need := int64(3 * min(f.entry.Size, delta.FileBytesMax))
	for _, b := range f.bases {
		if old := b.Entry.Size; old <= delta.FileBytesMax {
			kind := delta.Bytes // as far as a name says
			switch path.Ext(f.path) {
			case ".bc":
				kind = delta.Bits
			case ".gz":
				kind = delta.Gzip
			}
			need = max(need, delta.Memory(kind, int(old), int(f.entry.Size)))
		}
	}
	return min(need, deltaMemory)
}

// difference sets f's payload to the smallest of its forms: a patch on one of its bases, or itself,
// compressed together with others. It stays nil if the plain chunks are no larger.
func (d *deltas) difference(ctx context.Context, c *deltaCatalog, f *deltaFile) error {
	if f.entry.Size > delta.FileBytesMax {
		return nil
	}
	new, err := d.stored.ReadFile(ctx, c.catalog, f.entry.Index, delta.FileBytesMax)
	if err != nil {
		return err
	}
	// Together and by a better compressor they take a tenth less than alone.
	smallest := f.plain * 10 / 9
	offer := func(payload []byte, base catalog.Side) {
		if len(payload) > delta.FrameBytesMax {
			return
		}
		if n := estimate(payload); n < smallest {
			smallest, f.payload, f.base = n, payload, base
		}
	}
	offer(new, catalog.Side{})
	for _, base := range f.bases {
		if base.Entry.Size > delta.FileBytesMax || base.Entry.Size == 0 {
			continue
		}
		old, err := d.stored.ReadFile(ctx, base.Catalog, base.Entry.Index, delta.FileBytesMax)
		if err != nil {
			return err
		}
		patch, err := bestDiff(old, new)
		if err != nil {
			return err
		}
		offer(patch, base)
	}
	return nil
}

// bestDiff makes a patch of the kind that suits the files.
func bestDiff(old, new []byte) ([]byte, error) {
	patch, err := delta.Diff(delta.ForFile(old, new), old, new)
	if namespace.IsKind(err, namespace.Invalid) { // not compressed as it seems to be
		patch, err = delta.Diff(delta.Bytes, old, new)
	}
	return patch, err
}

// estimate returns about how many bytes a payload takes compressed on its own.
func estimate(payload []byte) uint64 {
	var sum uint64
	for part := range slices.Chunk(payload, namespace.FrameBytesMax) {
		stored, _ := object.EncodeFrame(part)
		sum += uint64(len(stored))
	}
	return sum
}
