package catalog

import (
	"bytes"
	"fmt"

	"coppice.dev/coppice/namespace"
)

// Catalog is a checked catalog. It keeps no copy of the bytes it was opened on and no memory
// per entry. Immutable, safe for concurrent use.
type Catalog struct {
	entries, chunks, nested []byte
	links, xattrs, strings  []byte
	total, plain            uint64
}

// Open checks b in one pass (bounds, order, uniqueness, canonical form) and returns a view of it.
// b must stay unchanged for as long as the Catalog is used; it may be mapped memory. Open does not
// know b's digest: the caller has verified it. Kinds: Corrupt.
func Open(b []byte) (*Catalog, error) {
	c, err := slice(b)
	if err == nil {
		err = (&checker{c: c, prevSet: map[string]bool{}, prevLink: map[string]bool{}}).run()
	}
	if err != nil {
		return nil, namespace.E(namespace.Corrupt, "open catalog", "", err)
	}
	return c, nil
}

// slice cuts b into its sections.
func slice(b []byte) (*Catalog, error) {
	if len(b) < headerSize || string(b[:len(magic)]) != magic {
		return nil, fmt.Errorf("not a catalog, or of a version this build does not know")
	}
	if len(b) > namespace.CatalogBytesMax {
		return nil, fmt.Errorf("%d bytes, at most %d", len(b), namespace.CatalogBytesMax)
	}
	if le.Uint32(b[hdrZero:]) != 0 || le.Uint64(b[hdrZero2:]) != 0 {
		return nil, fmt.Errorf("reserved header fields are not zero")
	}
	c := &Catalog{total: le.Uint64(b[hdrTotal:]), plain: le.Uint64(b[hdrBytes:])}
	rest := b[headerSize:]
	for _, s := range []struct {
		to   *[]byte
		n    uint64
		size uint64
	}{
		{&c.entries, uint64(le.Uint32(b[hdrEntries:])), entrySize},
		{&c.chunks, uint64(le.Uint32(b[hdrChunks:])), chunkSize},
		{&c.nested, uint64(le.Uint32(b[hdrNested:])), nestedSize},
		{&c.links, uint64(le.Uint32(b[hdrLinks:])), stringSize},
		{&c.xattrs, uint64(le.Uint32(b[hdrXattrs:])), stringSize},
		{&c.strings, le.Uint64(b[hdrStrings:]), 1},
	} {
		if s.n > uint64(len(rest))/s.size {
			return nil, fmt.Errorf("truncated: a section of %d × %d bytes in %d", s.n, s.size, len(rest))
		}
		*s.to, rest = rest[:s.n*s.size:s.n*s.size], rest[s.n*s.size:]
	}
	if len(rest) != 0 {
		return nil, fmt.Errorf("%d bytes after the end", len(rest))
	}
	return c, nil
}

// checker walks a catalog in entry order and holds every field against the only value it may
// have. next* are where the next name, child range, chunk, … must begin.
type checker struct {
	c                     *Catalog
	nextName, nextChild   uint64
	nextChunk, nextNested uint64
	nextTarget            uint64
	targetBase            uint64
	links, sets           uint32 // used so far
	nextRest              uint64
	total, plain          uint64
	prevSet, prevLink     map[string]bool
	childEnd              uint64 // of the directory whose children are being read
	dir                   uint64 // that directory
}

func (k *checker) run() error {
	n := uint64(k.c.Len())
	if n == 0 || n > 1<<linkBits {
		return fmt.Errorf("%d entries", n)
	}
	for i := uint64(0); i < n; i++ {
		k.targetBase += uint64(k.c.entries[i*entrySize+entNameLen])
	}
	k.nextTarget, k.nextChild = k.targetBase, 1
	for i := range int(n) {
		if e := k.c.Entry(i); e.Type == Symlink {
			k.nextRest += uint64(e.count)
		}
	}
	k.nextRest += k.targetBase
	for i := range int(n) {
		if err := k.entry(i); err != nil {
			return fmt.Errorf("entry %d: %w", i, err)
		}
	}
	return k.finish(n)
}

func (k *checker) finish(n uint64) error {
	c := k.c
	switch {
	case k.nextChild != n:
		return fmt.Errorf("%d of %d entries have a parent", k.nextChild, n)
	case k.nextChunk != uint64(c.NumChunks()), k.nextNested != uint64(len(c.nested)/nestedSize),
		k.links != uint32(len(c.links)/stringSize), k.sets != uint32(len(c.xattrs)/stringSize),
		k.nextRest != uint64(len(c.strings)):
		return fmt.Errorf("a section holds more than the entries use")
	case k.total != c.total || k.plain != c.plain:
		return fmt.Errorf("totals are %d entries, %d bytes; header says %d, %d", k.total, k.plain, c.total, c.plain)
	}
	return nil
}

func (k *checker) entry(i int) error {
	b := k.c.entries[i*entrySize:][:entrySize]
	nameLen := uint64(b[entNameLen])
	if uint64(le.Uint32(b[entName:])) != k.nextName || k.nextName+nameLen > uint64(len(k.c.strings)) {
		return fmt.Errorf("name out of place")
	}
	k.nextName += nameLen
	if le.Uint32(b[entLink:])>>linkBits >= flagLast {
		return fmt.Errorf("unknown flags")
	}
	e := k.c.Entry(i)
	if err := k.name(i, e); err != nil {
		return err
	}
	if err := k.attr(e); err != nil {
		return err
	}
	// Before the body: whether a file's bytes count depends on the group being new.
	fresh, err := k.link(e)
	if err != nil {
		return err
	}
	k.total++
	if err := k.body(i, e, fresh); err != nil {
		return err
	}
	return k.xattr(e)
}

// name checks that the entry is a legal name, above its elder sibling.
func (k *checker) name(i int, e Entry) error {
	if i == 0 {
		if len(e.Name) != 0 || e.Type != Dir || e.nested {
			return fmt.Errorf("the root is a directory without a name")
		}
		return nil
	}
	if bytes.Equal(e.Name, []byte(".")) || bytes.Equal(e.Name, []byte("..")) || len(e.Name) == 0 ||
		bytes.IndexByte(e.Name, '/') >= 0 || bytes.IndexByte(e.Name, 0) >= 0 {
		return fmt.Errorf("%q cannot name an entry", e.Name)
	}
	first := k.advance(uint64(i))
	if !first && bytes.Compare(k.c.Entry(i-1).Name, e.Name) >= 0 {
		return fmt.Errorf("%q is out of order", e.Name)
	}
	return nil
}

// advance moves to the directory that entry i is a child of; it reports whether i is its first.
// Breadth-first order means that child ranges follow one another.
func (k *checker) advance(i uint64) bool {
	first := false
	for k.childEnd <= i && k.dir < i {
		d := k.c.Entry(int(k.dir))
		if d.Type == Dir && !d.nested && d.count > 0 {
			first = uint64(d.first) == i
			k.childEnd = uint64(d.first) + uint64(d.count)
		}
		k.dir++
	}
	return first
}

func (k *checker) attr(e Entry) error {
	switch {
	case e.Type == 0 || e.Type >= typeEnd:
		return fmt.Errorf("type %d", e.Type)
	case e.Mode&^0o7777 != 0 || e.MtimeNsec >= 1e9:
		return fmt.Errorf("mode %#o, %d ns", e.Mode, e.MtimeNsec)
	case e.nested && e.Type != Dir:
		return fmt.Errorf("a nested reference at a %v", e.Type)
	case e.link == 0 && e.Type != Dir && e.Nlink != 1, e.link != 0 && (e.Type == Dir || e.Nlink < 2):
		return fmt.Errorf("a %v with %d names", e.Type, e.Nlink)
	case (e.Type == Dir || e.Type == Fifo) && e.Size != 0:
		return fmt.Errorf("a %v of size %d", e.Type, e.Size)
	}
	return nil
}

func (k *checker) link(e Entry) (fresh bool, err error) {
	if e.link == 0 {
		return true, nil
	}
	fresh, err = k.use(e.link, &k.links, k.c.links, k.prevLink, "link")
	if err != nil || !fresh {
		return fresh, err
	}
	if p := k.c.str(k.c.links, e.link); len(p) == 0 || len(p) > namespace.PathBytesMax {
		return fresh, fmt.Errorf("link path of %d bytes", len(p))
	}
	return fresh, nil
}

func (k *checker) xattr(e Entry) error {
	if e.xattr == 0 {
		return nil
	}
	fresh, err := k.use(e.xattr, &k.sets, k.c.xattrs, k.prevSet, "xattr set")
	if err != nil || !fresh {
		return err
	}
	return checkXattrs(k.c.str(k.c.xattrs, e.xattr))
}

// use checks a 1-based reference into a table that is filled by first use, without repeats.
func (k *checker) use(ref uint32, used *uint32, table []byte, seen map[string]bool, what string) (fresh bool, err error) {
	if ref <= *used {
		return false, nil
	}
	if ref != *used+1 || uint64(ref) > uint64(len(table)/stringSize) {
		return false, fmt.Errorf("%s %d out of order", what, ref)
	}
	*used = ref
	t := table[(ref-1)*stringSize:]
	off, n := uint64(le.Uint32(t)), uint64(le.Uint32(t[4:]))
	if off != k.nextRest || off+n > uint64(len(k.c.strings)) {
		return false, fmt.Errorf("%s %d out of place", what, ref)
	}
	k.nextRest += n
	s := string(k.c.strings[off : off+n])
	if seen[s] {
		return false, fmt.Errorf("%s %d repeats an earlier one", what, ref)
	}
	seen[s] = true
	return true, nil
}

func (k *checker) body(i int, e Entry, fresh bool) error {
	switch {
	case e.nested:
		return k.nestedRef(e)
	case e.Type == Dir:
		return k.dirBody(i, e)
	case e.Type == File:
		return k.fileBody(e, fresh)
	case e.Type == Symlink:
		return k.target(e)
	case e.first != 0 || e.count != 0:
		return fmt.Errorf("a %v with content", e.Type)
	}
	return nil
}

func (k *checker) target(e Entry) error {
	if uint64(e.first) != k.nextTarget || e.count == 0 || e.count > namespace.TargetBytesMax ||
		uint64(e.count) != e.Size || k.nextTarget+uint64(e.count) > uint64(len(k.c.strings)) {
		return fmt.Errorf("symlink target out of place")
	}
	k.nextTarget += uint64(e.count)
	if bytes.IndexByte(k.c.strings[e.first:][:e.count], 0) >= 0 {
		return fmt.Errorf("symlink target holds a NUL")
	}
	return nil
}

func (k *checker) nestedRef(e Entry) error {
	if uint64(e.first) != k.nextNested || e.count != 0 || k.nextNested >= uint64(len(k.c.nested)/nestedSize) {
		return fmt.Errorf("nested reference out of place")
	}
	b := k.c.nested[k.nextNested*nestedSize:][:nestedSize]
	n := k.c.nestedAt(int(k.nextNested))
	if n.Digest.IsZero() || n.Entries == 0 || e.Nlink < 2 || b[48]&^flagSubtree != 0 ||
		!bytes.Equal(b[49:], make([]byte, nestedSize-49)) {
		return fmt.Errorf("nested reference malformed")
	}
	if k.total+n.Entries < k.total || k.plain+n.Bytes < k.plain {
		return fmt.Errorf("totals overflow")
	}
	k.total += n.Entries - 1
	k.plain += n.Bytes
	k.nextNested++
	return nil
}

func (k *checker) dirBody(i int, e Entry) error {
	if e.count == 0 {
		if e.first != 0 || e.Nlink != 2 {
			return fmt.Errorf("an empty directory with %d names", e.Nlink)
		}
		return nil
	}
	end := k.nextChild + uint64(e.count)
	if uint64(e.first) != k.nextChild || e.first <= uint32(i) || end > uint64(k.c.Len()) {
		return fmt.Errorf("children out of place")
	}
	nlink := uint32(2)
	for j := k.nextChild; j < end; j++ {
		if Type(k.c.entries[j*entrySize+entType]) == Dir {
			nlink++
		}
	}
	if e.Nlink != nlink {
		return fmt.Errorf("%d subdirectories, %d names", nlink-2, e.Nlink)
	}
	k.nextChild = end
	return nil
}

func (k *checker) fileBody(e Entry, fresh bool) error {
	if e.count == 0 {
		if e.first != 0 || e.Size != 0 {
			return fmt.Errorf("%d bytes without extents", e.Size)
		}
		return nil
	}
	end := k.nextChunk + uint64(e.count)
	if uint64(e.first) != k.nextChunk || end > uint64(k.c.NumChunks()) {
		return fmt.Errorf("extents out of place")
	}
	var start uint64
	hole := false
	for j := int(k.nextChunk); j < int(end); j++ {
		c := k.c.Chunk(j)
		h := c.Hole()
		marked := le.Uint64(k.c.chunks[j*chunkSize+32:])&extentFirst != 0
		if marked != (j == int(k.nextChunk)) || c.End <= start || h && hole || !h && c.End-start > namespace.ChunkBytesMax {
			return fmt.Errorf("extent %d malformed", j)
		}
		if !h && fresh {
			k.plain += c.End - start
		}
		start, hole = c.End, h
	}
	if start != e.Size || e.Size > namespace.FileBytesMax {
		return fmt.Errorf("extents end at %d, size is %d", start, e.Size)
	}
	k.nextChunk = end
	return nil
}
