// Package catalog is the metadata format: names, modes, owners, times, xattrs, links and chunk
// lists of one subtree, as flat bytes that are checked once and then looked up in place.
//
// # Layout (version 1, little endian)
//
//	header    64 B   magic, counts and the sizes of the sections that follow
//	entries   56 B each, breadth first: entry 0 is the subtree's root; the children of one
//	          directory are consecutive and sorted by name (bytes)
//	chunks    40 B each: digest, end offset in the file; in entry order
//	nested    56 B each: digest, entries, bytes, flags of a child catalog; in entry order
//	links      8 B each: offset and length in strings; by first use
//	xattrs     8 B each: offset and length in strings of an encoded set; by first use
//	strings   names in entry order, then targets in entry order, link paths, xattr sets
//
// Every field has exactly one legal value for a given tree, so equal subtrees have equal bytes
// (invariant N1), and [Open] rejects everything else (N5). docs/FORMAT.md has the field tables.
//
// # Nesting
//
// A directory entry may carry a [Nested] reference instead of children: its subtree is another
// catalog whose entry 0 repeats the directory's own attributes. [Split] cuts a tree by a
// deterministic rule; composing a namespace is nothing but such references.
package catalog

import (
	"context"

	"coppice.dev/coppice/namespace"
)

// Type is the file type of an entry.
type Type uint8

// The types. Sockets are not kept: they mean nothing without the process that bound them.
const (
	Dir Type = 1 + iota
	File
	Symlink
	CharDevice
	BlockDevice
	Fifo
	typeEnd
)

var typeNames = [typeEnd]string{"", "directory", "file", "symlink", "char device", "block device", "fifo"}

// String returns the type's name for people.
func (t Type) String() string {
	if t < typeEnd {
		return typeNames[t]
	}
	return "unknown"
}

// Attr is what stat shows of an entry, less what the mount decides (device, inode number).
type Attr struct {
	Type      Type
	Mode      uint16 // permission bits, setuid, setgid, sticky: 07777
	UID, GID  uint32
	MtimeSec  int64 // seconds since 1970, may be negative
	MtimeNsec uint32
	// Size is the length in bytes of a file or of a symlink's target, major<<32|minor of a
	// device, and 0 for anything else.
	Size uint64
	// Nlink is the number of names: 2 + subdirectories for a directory, the size of the
	// hard-link group in the tree for other types.
	Nlink uint32
}

// Rdev returns the device numbers of a CharDevice or BlockDevice.
func (a Attr) Rdev() (major, minor uint32) { return uint32(a.Size >> 32), uint32(a.Size) }

// Chunk is one extent of a file: bytes [end of the extent before, End) are the chunk Digest, or
// zeros if Digest is zero (a hole).
type Chunk struct {
	Digest namespace.Digest
	End    uint64
}

// Hole reports whether the extent holds no data.
func (c Chunk) Hole() bool { return c.Digest.IsZero() }

// Nested refers to the catalog that holds a directory's subtree. Entries and Bytes total what
// is in it and below it (names, itself included; plaintext bytes of files). TreeRoot says that
// another tree begins here: hard-link paths below are relative to this directory.
type Nested struct {
	Digest   namespace.Digest
	Entries  uint64
	Bytes    uint64
	TreeRoot bool
}

// Xattr is one extended attribute; Name with its prefix ("user.", "security.").
type Xattr struct {
	Name  string
	Value []byte
}

// Node is an entry in its writable form. A tree of them is what builders make; endpoints never
// do. Names, targets and link paths are bytes, not necessarily UTF-8.
type Node struct {
	Name string // no "/" or NUL, not "." or ".."; "" for a catalog's root
	Attr        // Nlink of directories is computed by Encode
	// Children of a directory, in any order: Encode sorts. Nil if Nested is set.
	Children []*Node
	Chunks   []Chunk // of a File: consecutive, ending at Size
	Target   string  // of a Symlink
	Xattrs   []Xattr // in any order: Encode sorts
	// Link is "" or the path of the first name of the hard-link group (in the order of a
	// depth-first walk, names sorted), relative to the tree's root, without leading "/".
	// All names of a group carry the same attributes and content.
	Link   string
	Nested *Nested
}

// Loader loads catalogs by digest. The catalog stays valid until the loader's owner closes it.
// Kinds: NotExist, Corrupt, Limit, Unavailable, Denied, Canceled.
type Loader interface {
	Catalog(ctx context.Context, d namespace.Digest) (*Catalog, error)
}

// LoaderFunc makes a Loader of a function.
type LoaderFunc func(ctx context.Context, d namespace.Digest) (*Catalog, error)

// Catalog implements Loader.
func (f LoaderFunc) Catalog(ctx context.Context, d namespace.Digest) (*Catalog, error) {
	return f(ctx, d)
}

// Entry is one entry in its readable form: a few words, copied out of the catalog's bytes.
// Name aliases them. Index is its position, with which the catalog answers for the rest.
type Entry struct {
	Attr
	Name  []byte
	Index int

	first, count uint32 // children, chunks, target or nested reference, by Type
	xattr, link  uint32 // 1-based; 0 is none
	nested       bool
}

// HasXattrs reports whether the entry has extended attributes.
func (e Entry) HasXattrs() bool { return e.xattr != 0 }

// IsNested reports whether the entry is a directory whose subtree is another catalog.
func (e Entry) IsNested() bool { return e.nested }
