package catalog

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"coppice.dev/coppice/namespace"
)

// Encode returns the canonical bytes of the catalog whose root is root. Directories with Nested
// set become references; all else is written out. It sorts children and xattrs in place and sets
// the Nlink of directories. Kinds: Invalid (a name, an attribute or a chunk list that cannot be),
// Limit.
func Encode(root *Node) ([]byte, error) {
	b, _, err := encode(root)
	return b, err
}

// encode is Encode; it also returns the reference by which a parent names the catalog, its
// digest missing.
func encode(root *Node) ([]byte, Nested, error) {
	if root.Type != Dir || root.Nested != nil || root.Name != "" {
		return nil, Nested{}, invalid("", "the root of a catalog is a directory without a name or a nested reference")
	}
	e := &encoder{links: map[string]uint32{}, sets: map[string]uint32{}}
	if err := e.collect(root); err != nil {
		return nil, Nested{}, err
	}
	if err := e.layoutNames(); err != nil {
		return nil, Nested{}, err
	}
	for i := range e.nodes {
		if err := e.entry(i); err != nil {
			return nil, Nested{}, err
		}
	}
	b, err := e.bytes()
	return b, Nested{Entries: e.total, Bytes: e.plain}, err
}

func invalid(path, format string, args ...any) error {
	return namespace.E(namespace.Invalid, "encode catalog", path, fmt.Errorf(format, args...))
}

// encoder lays the sections out. nodes is the breadth-first order; firstChild is parallel to it.
type encoder struct {
	nodes      []*Node
	firstChild []uint32
	nameOff    []uint32

	entries, chunks, nested   []byte
	linkTable, xattrTable     []byte
	names, targets, rest      []byte // rest: link paths and xattr sets, in order of first use
	links, sets               map[string]uint32
	total, plain              uint64
	targetBase, targetsLength uint64
}

// collect fills nodes breadth first and checks names and structure.
func (e *encoder) collect(root *Node) error {
	e.nodes = append(e.nodes, root)
	for i := 0; i < len(e.nodes); i++ {
		n := e.nodes[i]
		e.firstChild = append(e.firstChild, uint32(len(e.nodes)))
		if n.Type != Dir && (len(n.Children) > 0 || n.Nested != nil) {
			return invalid(n.Name, "a %v has no children", n.Type)
		}
		if n.Nested != nil && len(n.Children) > 0 {
			return invalid(n.Name, "both children and a nested reference")
		}
		slices.SortFunc(n.Children, func(a, b *Node) int { return cmp.Compare(a.Name, b.Name) })
		for k, c := range n.Children {
			if err := checkName(c.Name); err != nil {
				return err
			}
			if k > 0 && c.Name == n.Children[k-1].Name {
				return namespace.E(namespace.Exist, "encode catalog", c.Name, fmt.Errorf("two entries of one name"))
			}
		}
		e.nodes = append(e.nodes, n.Children...)
	}
	if uint64(len(e.nodes)) > 1<<linkBits {
		return namespace.E(namespace.Limit, "encode catalog", "", fmt.Errorf("%d entries", len(e.nodes)))
	}
	return nil
}

// checkName returns an error unless name can be a directory entry.
func checkName(name string) error {
	if name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") {
		return invalid(name, "%q cannot name an entry", name)
	}
	if len(name) > namespace.NameBytesMax {
		return namespace.E(namespace.Limit, "encode catalog", name,
			fmt.Errorf("a name of %d bytes, at most %d", len(name), namespace.NameBytesMax))
	}
	return nil
}

// layoutNames fixes where names end and targets begin, so that entries can point at both.
func (e *encoder) layoutNames() error {
	for _, n := range e.nodes {
		e.nameOff = append(e.nameOff, uint32(len(e.names)))
		e.names = append(e.names, n.Name...)
		if n.Type == Symlink {
			e.targetsLength += uint64(len(n.Target))
		}
	}
	e.targetBase = uint64(len(e.names))
	if e.targetBase+e.targetsLength > 1<<32-1 {
		return namespace.E(namespace.Limit, "encode catalog", "", fmt.Errorf("names and targets exceed 4 GiB"))
	}
	return nil
}

func (e *encoder) entry(i int) error {
	n := e.nodes[i]
	if err := e.checkAttr(n); err != nil {
		return err
	}
	e.total++
	var b [entrySize]byte
	var flags, link uint32
	first, count, err := e.body(i, n, &flags)
	if err != nil {
		return err
	}
	if n.Link != "" {
		link = e.intern(e.links, n.Link, &e.linkTable)
	}
	set, err := e.xattrSet(n)
	if err != nil {
		return err
	}
	le.PutUint32(b[entName:], e.nameOff[i])
	b[entNameLen] = byte(len(n.Name))
	b[entType] = byte(n.Type)
	le.PutUint16(b[entMode:], n.Mode)
	le.PutUint32(b[entUID:], n.UID)
	le.PutUint32(b[entGID:], n.GID)
	le.PutUint64(b[entSec:], uint64(n.MtimeSec))
	le.PutUint32(b[entNsec:], n.MtimeNsec)
	le.PutUint32(b[entXattr:], set)
	le.PutUint64(b[entSize:], n.Size)
	le.PutUint32(b[entFirst:], first)
	le.PutUint32(b[entCount:], count)
	le.PutUint32(b[entLink:], link|flags<<linkBits)
	le.PutUint32(b[entNlink:], n.Nlink)
	e.entries = append(e.entries, b[:]...)
	return nil
}

func (e *encoder) checkAttr(n *Node) error {
	switch {
	case n.Type == 0 || n.Type >= typeEnd:
		return invalid(n.Name, "type %d", n.Type)
	case n.Mode&^0o7777 != 0:
		return invalid(n.Name, "mode %#o", n.Mode)
	case n.MtimeNsec >= 1e9:
		return invalid(n.Name, "%d nanoseconds", n.MtimeNsec)
	case n.Link != "" && (n.Type == Dir || n.Nlink < 2 || len(n.Link) > namespace.PathBytesMax):
		return invalid(n.Name, "hard link %q of a %v with %d names", n.Link, n.Type, n.Nlink)
	case n.Link == "" && n.Type != Dir && n.Nlink != 1:
		return invalid(n.Name, "%d names but no hard-link group", n.Nlink)
	case n.Type != File && len(n.Chunks) > 0, n.Type != Symlink && n.Target != "":
		return invalid(n.Name, "content that a %v cannot have", n.Type)
	}
	return nil
}

// body writes what an entry of n's type points at and returns the two words that say where.
func (e *encoder) body(i int, n *Node, flags *uint32) (first, count uint32, err error) {
	switch n.Type {
	case Dir:
		return e.dir(i, n, flags)
	case File:
		return e.file(n)
	case Symlink:
		if len(n.Target) == 0 || len(n.Target) > namespace.TargetBytesMax || uint64(len(n.Target)) != n.Size ||
			strings.ContainsRune(n.Target, 0) {
			return 0, 0, invalid(n.Name, "symlink target of %d bytes, size %d", len(n.Target), n.Size)
		}
		first = uint32(e.targetBase) + uint32(len(e.targets))
		e.targets = append(e.targets, n.Target...)
		return first, uint32(len(n.Target)), nil
	case Fifo:
		if n.Size != 0 {
			return 0, 0, invalid(n.Name, "a fifo of size %d", n.Size)
		}
	}
	return 0, 0, nil
}

func (e *encoder) dir(i int, n *Node, flags *uint32) (first, count uint32, err error) {
	if n.Size != 0 {
		return 0, 0, invalid(n.Name, "a directory of size %d", n.Size)
	}
	if n.Nested == nil {
		n.Nlink = 2
		for _, c := range n.Children {
			if c.Type == Dir {
				n.Nlink++
			}
		}
		if len(n.Children) == 0 {
			return 0, 0, nil
		}
		return e.firstChild[i], uint32(len(n.Children)), nil
	}
	if n.Nested.Digest.IsZero() || n.Nested.Entries == 0 || n.Nlink < 2 {
		return 0, 0, invalid(n.Name, "an empty nested reference")
	}
	*flags |= flagNested
	var b [nestedSize]byte
	copy(b[:], n.Nested.Digest[:])
	le.PutUint64(b[32:], n.Nested.Entries)
	le.PutUint64(b[40:], n.Nested.Bytes)
	if n.Nested.TreeRoot {
		b[48] = flagSubtree
	}
	e.total += n.Nested.Entries - 1 // the directory itself is counted here
	e.plain += n.Nested.Bytes
	e.nested = append(e.nested, b[:]...)
	return uint32(len(e.nested)/nestedSize - 1), 0, nil
}

func (e *encoder) file(n *Node) (first, count uint32, err error) {
	first = uint32(len(e.chunks) / chunkSize)
	if err := checkChunks(n.Chunks, n.Size); err != nil {
		return 0, 0, invalid(n.Name, "%w", err)
	}
	for i, c := range n.Chunks {
		e.chunks = append(e.chunks, c.Digest[:]...)
		end := c.End
		if i == 0 {
			end |= extentFirst
		}
		e.chunks = le.AppendUint64(e.chunks, end)
	}
	if uint64(len(e.chunks)/chunkSize) > 1<<32-1 {
		return 0, 0, namespace.E(namespace.Limit, "encode catalog", n.Name, fmt.Errorf("too many chunks"))
	}
	e.plain += dataBytes(n.Chunks, n.Link == "" || e.links[n.Link] == 0)
	if len(n.Chunks) == 0 {
		first = 0
	}
	return first, uint32(len(n.Chunks)), nil
}

// dataBytes totals the extents that hold data, or 0 if the content was counted before.
func dataBytes(chunks []Chunk, count bool) (n uint64) {
	var start uint64
	for _, c := range chunks {
		if count && !c.Hole() {
			n += c.End - start
		}
		start = c.End
	}
	return n
}

// checkChunks holds the rules of a chunk list: consecutive, non-empty, data within
// ChunkBytesMax, no two holes in a row, ending at size.
func checkChunks(chunks []Chunk, size uint64) error {
	var start uint64
	hole := false
	for i, c := range chunks {
		switch {
		case c.End <= start:
			return fmt.Errorf("extent %d is empty or out of order", i)
		case !c.Hole() && c.End-start > namespace.ChunkBytesMax:
			return fmt.Errorf("extent %d has %d bytes, at most %d", i, c.End-start, namespace.ChunkBytesMax)
		case c.Hole() && hole:
			return fmt.Errorf("extents %d and %d are both holes", i-1, i)
		}
		start, hole = c.End, c.Hole()
	}
	if start != size || size > namespace.FileBytesMax {
		return fmt.Errorf("extents end at %d, size is %d", start, size)
	}
	return nil
}

// intern returns the 1-based index of s in a table, adding it at the first use.
func (e *encoder) intern(seen map[string]uint32, s string, table *[]byte) uint32 {
	if i := seen[s]; i != 0 {
		return i
	}
	*table = le.AppendUint32(*table, uint32(len(e.rest))) // made absolute in bytes()
	*table = le.AppendUint32(*table, uint32(len(s)))
	e.rest = append(e.rest, s...)
	i := uint32(len(*table) / stringSize)
	seen[s] = i
	return i
}

func (e *encoder) xattrSet(n *Node) (uint32, error) {
	if len(n.Xattrs) == 0 {
		return 0, nil
	}
	slices.SortFunc(n.Xattrs, func(a, b Xattr) int { return cmp.Compare(a.Name, b.Name) })
	set, err := encodeXattrs(n.Xattrs)
	if err != nil {
		return 0, invalid(n.Name, "%w", err)
	}
	return e.intern(e.sets, string(set), &e.xattrTable), nil
}

func (e *encoder) bytes() ([]byte, error) {
	base := uint64(len(e.names) + len(e.targets))
	strs := base + uint64(len(e.rest))
	size := uint64(headerSize+len(e.entries)+len(e.chunks)+len(e.nested)+len(e.linkTable)+len(e.xattrTable)) + strs
	if size > namespace.CatalogBytesMax || strs > 1<<32-1 {
		return nil, namespace.E(namespace.Limit, "encode catalog", "",
			fmt.Errorf("%d bytes, at most %d", size, namespace.CatalogBytesMax))
	}
	for _, table := range [][]byte{e.linkTable, e.xattrTable} {
		for o := 0; o < len(table); o += stringSize {
			le.PutUint32(table[o:], le.Uint32(table[o:])+uint32(base))
		}
	}
	b := make([]byte, headerSize, size)
	copy(b, magic)
	le.PutUint32(b[hdrEntries:], uint32(len(e.entries)/entrySize))
	le.PutUint32(b[hdrChunks:], uint32(len(e.chunks)/chunkSize))
	le.PutUint32(b[hdrNested:], uint32(len(e.nested)/nestedSize))
	le.PutUint32(b[hdrLinks:], uint32(len(e.linkTable)/stringSize))
	le.PutUint32(b[hdrXattrs:], uint32(len(e.xattrTable)/stringSize))
	le.PutUint64(b[hdrStrings:], strs)
	le.PutUint64(b[hdrTotal:], e.total)
	le.PutUint64(b[hdrBytes:], e.plain)
	for _, s := range [][]byte{e.entries, e.chunks, e.nested, e.linkTable, e.xattrTable, e.names, e.targets, e.rest} {
		b = append(b, s...)
	}
	return b, nil
}
