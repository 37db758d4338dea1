package catalog

import "encoding/binary"

// The byte layout of version 1. docs/FORMAT.md repeats these tables for other implementers;
// TestLayoutDocumented holds the two together.
const (
	magic       = "COPCAT1\n"
	headerSize  = 64
	entrySize   = 56
	chunkSize   = 40
	nestedSize  = 56
	stringSize  = 8 // offset and length
	flagNested  = 1 // entry: the subtree is another catalog
	flagLast    = 2 // one above the highest entry flag
	flagSubtree = 1 // nested: another tree's root
)

// Header fields, as offsets.
const (
	hdrMagic   = 0  // 8 B
	hdrEntries = 8  // u32 count
	hdrChunks  = 12 // u32 count
	hdrNested  = 16 // u32 count
	hdrLinks   = 20 // u32 count
	hdrXattrs  = 24 // u32 count
	hdrZero    = 28 // u32 zero
	hdrStrings = 32 // u64 bytes
	hdrTotal   = 40 // u64 entries in and below this catalog
	hdrBytes   = 48 // u64 plaintext bytes of files in and below, hard links once per catalog
	hdrZero2   = 56 // u64 zero
)

// Entry fields, as offsets.
const (
	entName    = 0  // u32 offset in strings
	entNameLen = 4  // u8
	entType    = 5  // u8
	entMode    = 6  // u16
	entUID     = 8  // u32
	entGID     = 12 // u32
	entSec     = 16 // i64
	entNsec    = 24 // u32
	entXattr   = 28 // u32, 1-based index of a set, 0 none
	entSize    = 32 // u64
	entFirst   = 40 // u32: first child | chunk | nested index | target offset
	entCount   = 44 // u32: children | chunks | 0 | target length
	entLink    = 48 // u32, low 28 bits: 1-based index of a link, 0 none; high 4: flags
	entNlink   = 52 // u32
)

// extentFirst marks, in the end offset of an extent, the first one of a file, so that the chunk
// table alone tells every extent's length. File sizes leave the bit free.
const extentFirst = 1 << 63

const (
	linkBits = 28
	linkMask = 1<<linkBits - 1
)

var le = binary.LittleEndian
