package fusefs

import (
	"crypto/sha256"
	"encoding/binary"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/catalog"
)

// pathID stands for a directory's path in the mount: SHA-256(parent's id, name), cut to 16 bytes.
// The root's is zero.
type pathID [16]byte

// superRoot is the node id of the superblock's root, given by the protocol.
const superRoot = 1

// The domains keep hashes of different things apart.
const (
	domainPath = iota
	domainFile
	domainLink
	domainDirNode
	domainDirInode
)

// hash is the digest from which ids are cut. A variable, so that tests can make it collide.
var hash = sha256.Sum256

func (p pathID) child(name []byte) pathID {
	b := make([]byte, 0, 1+16+namespace.NameBytesMax)
	b = append(append(append(b, domainPath), p[:]...), name...)
	sum := hash(b)
	return pathID(sum[:16])
}

// id cuts an id from a hash. Small numbers are the protocol's own.
func id(b []byte) uint64 {
	sum := hash(b)
	n := binary.LittleEndian.Uint64(sum[:])
	if n <= 16 || n == 1<<64-1 {
		n ^= 1 << 40
	}
	return n
}

// dirNode returns the node id of the directory at p in the generation root.
func dirNode(root namespace.Digest, p pathID) uint64 {
	b := append(make([]byte, 0, 64), domainDirNode)
	return id(append(append(b, root[:]...), p[:]...))
}

// dirInode returns the inode number of the directory at p, in every generation.
func dirInode(p pathID) uint64 {
	return id(append(append(make([]byte, 0, 24), domainDirInode), p[:]...))
}

// fileNode returns the node id and inode number of entry i of c, no directory, whose parent is at
// p: from its path and everything it shows. The path of a hard link is that of its group in the
// tree whose root is at tree.
func fileNode(c *catalog.Catalog, i int, name []byte, p, tree pathID) uint64 {
	b := make([]byte, 0, 512)
	if link := c.Link(i); link != nil {
		b = append(append(append(b, domainLink), tree[:]...), link...)
	} else {
		b = append(append(append(b, domainFile), p[:]...), name...)
	}
	return id(c.AppendIdentity(append(b, 0), i))
}
