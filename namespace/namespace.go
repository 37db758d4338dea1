// Package namespace is the vocabulary of Coppice and the contracts its parts agree on.
//
// It is pure: no I/O, no goroutine, no clock. Read store.go next; with this page it is
// enough to know the system.
//
// # Two kinds of thing
//
// An object is immutable and named by the digest of its bytes (or, for a locator, by the
// digest of the catalog it serves). It may come from anyone, since its name proves it.
// Objects are chunks (the unit of verification), packs (containers of compressed chunks),
// catalogs (metadata of a subtree) and manifests (namespace versions).
//
// A ref is the only mutable thing: a name and a small signed record. A tree ref and a
// namespace ref list versions (NAME@N); a channel ref is the pointer that endpoints follow.
//
// # From pointer to byte
//
//	channel ref ──signature, seq──► Pointer ──digest──► Manifest ──digest──► root catalog
//	root catalog ──digest──► nested catalogs ──digest──► chunk ──offset──► byte
//
// Every arrow is a digest, so whoever trusts the pointer's signature need trust nothing else.
// Where a chunk's bytes are (which pack, which offset) is not in this chain: locators say it,
// are not trusted, and may be rewritten by repacking without any digest changing.
//
// # Invariants
//
//   - N1: the same tree has the same root digest whatever the machine, the clock, the pack
//     layout, the compression or the history.
//   - N2: everything reachable from a ref was stored before the ref was written.
//   - N3: a channel's seq only rises; rollback is a higher seq that names an older version.
//   - N4: no byte leaves a cache before its digest was checked.
//   - N5: decoders are strict: what they accept re-encodes to the same bytes.
package namespace
