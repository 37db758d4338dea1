package catalog

import (
	"bytes"
	"sort"

	"coppice.dev/coppice/namespace"
)

// Len returns the number of entries; valid indices are [0, Len()). Entry 0 is the root.
func (c *Catalog) Len() int { return len(c.entries) / entrySize }

// Total returns the entries in this catalog and all below it, the root included.
func (c *Catalog) Total() uint64 { return c.total }

// Bytes returns the plaintext bytes of the files in this catalog and all below it: holes not
// counted, a hard-link group once in each catalog.
func (c *Catalog) Bytes() uint64 { return c.plain }

// Entry returns entry i. It costs no allocation.
func (c *Catalog) Entry(i int) Entry {
	b := c.entries[i*entrySize:][:entrySize:entrySize]
	off, n := le.Uint32(b[entName:]), uint32(b[entNameLen])
	link := le.Uint32(b[entLink:])
	var name []byte
	if uint64(off)+uint64(n) <= uint64(len(c.strings)) { // only Open meets anything else
		name = c.strings[off : off+n : off+n]
	}
	return Entry{
		Attr: Attr{
			Type:      Type(b[entType]),
			Mode:      le.Uint16(b[entMode:]),
			UID:       le.Uint32(b[entUID:]),
			GID:       le.Uint32(b[entGID:]),
			MtimeSec:  int64(le.Uint64(b[entSec:])),
			MtimeNsec: le.Uint32(b[entNsec:]),
			Size:      le.Uint64(b[entSize:]),
			Nlink:     le.Uint32(b[entNlink:]),
		},
		Name:   name,
		Index:  i,
		first:  le.Uint32(b[entFirst:]),
		count:  le.Uint32(b[entCount:]),
		xattr:  le.Uint32(b[entXattr:]),
		link:   link & linkMask,
		nested: link>>linkBits&flagNested != 0,
	}
}

// Children returns the half-open range of the children of directory dir, sorted by name. It is
// empty for anything else, and for a nested directory: ask its own catalog.
func (c *Catalog) Children(dir int) (lo, hi int) {
	e := c.Entry(dir)
	if e.Type != Dir || e.nested {
		return 0, 0
	}
	return int(e.first), int(e.first) + int(e.count)
}

// Lookup finds the child of directory dir called name.
func (c *Catalog) Lookup(dir int, name []byte) (int, bool) {
	lo, hi := c.Children(dir)
	i := lo + sort.Search(hi-lo, func(k int) bool { return bytes.Compare(c.name(lo+k), name) >= 0 })
	return i, i < hi && bytes.Equal(c.name(i), name)
}

func (c *Catalog) name(i int) []byte {
	b := c.entries[i*entrySize:]
	off := le.Uint32(b[entName:])
	return c.strings[off : off+uint32(b[entNameLen])]
}

// Parent returns the directory that holds entry i, or -1 for the root. It searches, in O(log²n).
func (c *Catalog) Parent(i int) int {
	if i == 0 {
		return -1
	}
	// Child ranges rise with their directories' indices, so the parent is the last directory
	// whose first child is not after i. Entries without children are skipped backwards.
	k := sort.Search(i, func(d int) bool {
		for ; d >= 0; d-- {
			if lo, hi := c.Children(d); hi > lo {
				return lo > i
			}
		}
		return false
	})
	for d := k - 1; d >= 0; d-- {
		if lo, hi := c.Children(d); lo <= i && i < hi {
			return d
		}
	}
	return -1
}

// Target returns the target of symlink i. It aliases the catalog's bytes.
func (c *Catalog) Target(i int) []byte {
	e := c.Entry(i)
	if e.Type != Symlink {
		return nil
	}
	return c.strings[e.first : e.first+e.count : e.first+e.count]
}

// Link returns the path, relative to the tree's root, of the first name of entry i's hard-link
// group, or nil if it has one name only. It aliases the catalog's bytes.
func (c *Catalog) Link(i int) []byte {
	return c.str(c.links, c.Entry(i).link)
}

// str returns string number ref (1-based) of a table, nil for 0.
func (c *Catalog) str(table []byte, ref uint32) []byte {
	if ref == 0 {
		return nil
	}
	t := table[(ref-1)*stringSize:]
	off, n := le.Uint32(t), le.Uint32(t[4:])
	return c.strings[off : off+n : off+n]
}

// Nested returns the reference at directory i, if it has one.
func (c *Catalog) Nested(i int) (Nested, bool) {
	e := c.Entry(i)
	if !e.nested {
		return Nested{}, false
	}
	return c.nestedAt(int(e.first)), true
}

func (c *Catalog) nestedAt(k int) Nested {
	b := c.nested[k*nestedSize:][:nestedSize]
	return Nested{
		Digest:   namespace.Digest(b[:32]),
		Entries:  le.Uint64(b[32:]),
		Bytes:    le.Uint64(b[40:]),
		TreeRoot: b[48]&flagSubtree != 0,
	}
}

// NumChunks returns the length of the chunk table; holes are in it too.
func (c *Catalog) NumChunks() int { return len(c.chunks) / chunkSize }

// Chunk returns extent k of the chunk table.
func (c *Catalog) Chunk(k int) Chunk {
	b := c.chunks[k*chunkSize:][:chunkSize]
	return Chunk{Digest: namespace.Digest(b[:32]), End: le.Uint64(b[32:]) &^ extentFirst}
}

// Chunks returns the half-open range of file i's extents in the chunk table.
func (c *Catalog) Chunks(i int) (lo, hi int) {
	e := c.Entry(i)
	if e.Type != File {
		return 0, 0
	}
	return int(e.first), int(e.first) + int(e.count)
}

// ChunkLen returns the length in bytes of extent k of the chunk table.
func (c *Catalog) ChunkLen(k int) uint64 {
	end := le.Uint64(c.chunks[k*chunkSize+32:])
	if end&extentFirst != 0 {
		return end &^ extentFirst
	}
	return end - le.Uint64(c.chunks[(k-1)*chunkSize+32:])&^extentFirst
}

// FindChunk returns the extent of file i that holds byte off, and the offset at which it starts.
// ok is false at and after the end of the file.
func (c *Catalog) FindChunk(i int, off uint64) (k int, start uint64, ok bool) {
	lo, hi := c.Chunks(i)
	k = lo + sort.Search(hi-lo, func(j int) bool { return c.Chunk(lo+j).End > off })
	if k >= hi {
		return 0, 0, false
	}
	if k > lo {
		start = c.Chunk(k - 1).End
	}
	return k, start, true
}

// Xattrs returns the extended attributes of entry i, sorted by name. Values alias the catalog.
func (c *Catalog) Xattrs(i int) []Xattr {
	var set []Xattr
	for b := c.str(c.xattrs, c.Entry(i).xattr); len(b) > 0; {
		name, value, rest, ok := nextXattr(b)
		if !ok {
			break
		}
		set = append(set, Xattr{Name: string(name), Value: value})
		b = rest
	}
	return set
}

// Xattr returns one extended attribute of entry i. The value aliases the catalog's bytes.
func (c *Catalog) Xattr(i int, name string) ([]byte, bool) {
	for b := c.str(c.xattrs, c.Entry(i).xattr); len(b) > 0; {
		n, value, rest, ok := nextXattr(b)
		if !ok {
			break
		}
		if string(n) == name {
			return value, true
		}
		b = rest
	}
	return nil, false
}

// AppendIdentity appends bytes that are equal for two entries (of any catalogs) if and only if
// everything that stat, readlink, xattrs and reading can show of them is equal, their names,
// places and hard-link paths aside. For a directory that is its own attributes only.
func (c *Catalog) AppendIdentity(dst []byte, i int) []byte {
	b := c.entries[i*entrySize:][:entrySize]
	e := c.Entry(i)
	dst = append(dst, b[entType:entXattr]...)
	dst = append(dst, b[entSize:entFirst]...)
	dst = append(dst, b[entNlink:]...)
	switch e.Type {
	case File:
		lo, hi := c.Chunks(i)
		dst = append(dst, c.chunks[lo*chunkSize:hi*chunkSize]...)
	case Symlink:
		dst = append(dst, c.Target(i)...)
	}
	return append(dst, c.str(c.xattrs, e.xattr)...)
}

// Nodes returns the catalog in writable form: a tree whose nested references stay references.
// It shares no memory with the catalog.
func (c *Catalog) Nodes() *Node {
	nodes := make([]Node, c.Len())
	for i := range nodes {
		nodes[i] = c.node(i)
	}
	for i := range nodes {
		for lo, hi := c.Children(i); lo < hi; lo++ {
			nodes[i].Children = append(nodes[i].Children, &nodes[lo])
		}
	}
	return &nodes[0]
}

// Node returns entry i in writable form, without children: of a nested directory with its reference.
// It shares no memory with the catalog.
func (c *Catalog) Node(i int) *Node {
	n := c.node(i)
	return &n
}

func (c *Catalog) node(i int) Node {
	e := c.Entry(i)
	n := Node{Attr: e.Attr, Name: string(e.Name), Link: string(c.Link(i)), Target: string(c.Target(i))}
	for _, x := range c.Xattrs(i) {
		n.Xattrs = append(n.Xattrs, Xattr{Name: x.Name, Value: bytes.Clone(x.Value)})
	}
	for lo, hi := c.Chunks(i); lo < hi; lo++ {
		n.Chunks = append(n.Chunks, c.Chunk(lo))
	}
	if ref, ok := c.Nested(i); ok {
		n.Nested = &ref
	}
	return n
}

// AllNested returns the digests of all nested catalogs that this one refers to, in entry order.
func (c *Catalog) AllNested() []namespace.Digest {
	all := make([]namespace.Digest, len(c.nested)/nestedSize)
	for k := range all {
		all[k] = c.nestedAt(k).Digest
	}
	return all
}
