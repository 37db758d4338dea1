// Package builder turns trees into objects: it imports directories and tar archives, composes
// namespaces, verifies what an origin or a directory holds, collects garbage and mirrors origins.
//
// # From tree to objects
//
//	source ──nodes, content──► chunks ──new ones──► frames ──► packs ──► index segment
//	nodes with chunk lists ──Split──► catalogs, each with its locator
//
// Content is laid out in tree order: of each directory first what is no directory, sorted by
// name, then its subdirectories, so that neighbours in the tree share frames and packs.
// Everything runs in parallel and nothing in the order of completion: parcels of work are queued
// in tree order and taken from the queue in that order, so memory is bounded by the queues.
//
// # Crashes
//
// Packs are stored first, then the index segment that covers them, then locators and catalogs,
// children before parents. The caller writes the ref last (invariant N2). A crash at any point
// leaves packs that no index covers; the next import reads their directories and uses them.
//
// # Garbage
//
// [Collect] may run at any time. Whoever builds on an object that it did not write renews it first:
// importers the packs of known chunks, and catalogs and locators that are there; [Compose] and
// whoever points at an old version all of its tree, by [Hold]. Collect deletes what the refs did not name
// when it last looked and what is older than the grace period, and a renewal and a deletion of one
// object exclude each other. So an object that a later ref names was either renewed in time, or its
// builder was told that it is missing, and wrote it again. docs/decisions/0005 has the whole argument.
package builder

import (
	"context"
	"time"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/catalog"
)

// A Source is a tree to import: a [DirSource], a [TarSource] or a [LayersSource].
type Source interface {
	// read submits the content of every file to p, in the order of its layout, and returns the
	// nodes. Chunk lists of the nodes are complete when the pipeline has drained.
	read(ctx context.Context, p *pipeline) (*scan, error)
}

// scan is what a source found. Nodes of one group are names of one file: the first of them gets
// the content, and the others' attributes, content and xattrs are ignored.
type scan struct {
	root   *catalog.Node
	groups [][]*catalog.Node
	// finish, if set, makes the tree of what was found, once the pipeline has completed all nodes.
	finish func(context.Context) error
}

// Options of Import. The zero value is the default.
type Options struct {
	// FrameBytes is the plaintext at which a frame of small chunks is closed; 0 is 128 KiB. Larger
	// frames store a little less and cost more per random read.
	FrameBytes int
	// PackBytes is the size at which a pack is closed; 0 is namespace.PackBytesTarget, which is also
	// the maximum.
	PackBytes int64
	// Previous is the root of the tree that this one follows, and Loader loads its catalogs. With
	// both set, large files that did not change are recognised by the digests of their chunks.
	Previous namespace.Digest
	Loader   catalog.Loader
	// Memory, if set, is what the last import of the same directory saw; it is filled with what this one
	// sees. Loader must be set. Only for a [DirSource].
	Memory *Memory
	// Progress, if set, is told how far the import is, at most every 50 ms and once at the end,
	// from one goroutine at a time.
	Progress func(Progress)
	// Warn, if set, is told of what was left out or read again, with its path relative to the
	// source. From several goroutines, one at a time.
	Warn func(path, reason string)
}

// Progress says how far an import is. Totals are 0 while they are unknown, as of an archive.
type Progress struct {
	Files, FilesTotal uint64 // regular files with content, hard links once
	Bytes, BytesTotal uint64 // plaintext
	Stored            uint64 // bytes of packs written
}

// Result says what an import made.
type Result struct {
	Root      namespace.Digest
	Entries   uint64 // names, the root included
	Bytes     uint64 // plaintext of files: holes not counted, hard links once in each catalog
	NewChunks uint64 // chunks the origin did not have
	NewBytes  uint64 // their plaintext bytes
	Packs     uint64 // packs written
	Stored    uint64 // their bytes
	Catalogs  uint64 // catalogs written
}

const (
	frameBytesDefault = 128 << 10
	progressEvery     = 50 * time.Millisecond
)

// Import stores the tree src in store and returns its root digest. It writes no ref: the caller
// does, when Import has returned. What the store holds already is not written again; a tree that
// is there entirely costs no write at all. Kinds: those of the store; NotExist and Denied (the
// source cannot be read; up to ten paths are named), Invalid and Limit (it holds what a tree
// cannot), Unavailable (a file kept changing), Corrupt (a damaged archive), Canceled.
func Import(ctx context.Context, store namespace.Store, src Source, o Options) (Result, error) {
	if o.FrameBytes <= 0 {
		o.FrameBytes = frameBytesDefault
	}
	if o.PackBytes <= 0 || o.PackBytes > namespace.PackBytesTarget {
		o.PackBytes = namespace.PackBytesTarget
	}
	o.FrameBytes = min(o.FrameBytes, namespace.FrameBytesMax/2) // a frame may exceed it by one chunk
	known, err := loadKnown(ctx, store, o.Warn)
	if err != nil {
		return Result{}, err
	}
	p := newPipeline(ctx, store, known, o)
	tree, err := src.read(p.ctx, p)
	if err = p.finish(err); err != nil {
		return Result{}, err
	}
	if err := known.save(ctx, store); err != nil {
		return Result{}, err
	}
	if err := tree.link(ctx); err != nil {
		return Result{}, err
	}
	known.renewed = newRenewer(store, namespace.Pack) // reading may have taken longer than a grace period
	s := sealer{ctx: ctx, store: store, known: known}
	if err := s.seal(tree.root); err != nil {
		return Result{}, err
	}
	r := p.result
	if o.Memory != nil {
		o.Memory.root = s.root
	}
	r.Root, r.Entries, r.Bytes, r.Catalogs = s.root, s.entries, s.bytes, s.written
	p.report(true)
	return r, nil
}
