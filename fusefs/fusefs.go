// Package fusefs shows a namespace version to the kernel: a root catalog becomes a mount.
//
// # What the kernel caches
//
// Content is immutable, so the kernel keeps everything for ever and is never told to forget:
//
//	entries, negative entries, attributes   time-out of 31 years
//	directory pages                         OPENDIR answers ENOSYS: cached by the kernel
//	file pages                              OPEN answers ENOSYS: kept across opens
//	symlink targets                         CAP_CACHE_SYMLINKS
//
// OPEN and OPENDIR answer ENOSYS once; after that the kernel opens files without asking. A hot
// path never enters this process.
//
// # Identity
//
// Node ids and inode numbers derive from the path in the mount and from what is there (identity.go),
// never from a counter: an unchanged file keeps its inode and its pages when the version changes, a
// changed one cannot hide behind an old inode, and a restarted daemon gives the same answers.
// Directories share an inode number across generations but not a node id: Linux allows a directory
// inode one dentry only, so a shared one would be moved from the old tree into the new, and take a
// process' working directory along (docs/decisions/0002).
//
// # Generations
//
// One superblock serves every generation of a mount. Its root is invisible; below it each root
// catalog is a directory named by its digest. What is mounted is a clone of such a subtree. A swap
// puts the clone of the new one beneath the mounted one and detaches the top: whoever walks a path
// sees the old tree or the new one, and open files and working directories stay where they are.
//
// # Concurrency
//
// Handlers run on many goroutines. Server.mu guards the list of generations and the mounting; it is
// never held while the kernel could ask a question that needs it: handlers take only the locks of
// the node table (table.go), for a few instructions. Notifications go out from goroutines of their
// own, never from a handler.
package fusefs

import (
	"context"
	"log/slog"
	"time"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/catalog"
)

// Source provides what a mount shows. Both methods may block on a network; both return verified
// content only. Safe for concurrent use.
type Source interface {
	catalog.Loader
	// ReadChunk copies bytes [off, off+len(p)) of a chunk, fewer at its end, into p.
	// Kinds: Unavailable, Corrupt, NotExist, Denied, Limit, Canceled.
	ReadChunk(ctx context.Context, ref namespace.ChunkRef, p []byte, off int64) (int, error)
}

// A LocalSource is a Source that can tell whether a chunk is to be had without waiting for a network.
// What is put into the page cache before it is asked for is only what is.
// Capability: found by type assertion on the Source.
type LocalSource interface {
	Local(chunk namespace.Digest) bool
}

// Options configure a mount. Dir and Source are required.
type Options struct {
	Dir    string // absolute; an existing directory, or, without privileges, absent, empty or ours
	Source Source
	// RunDir is where the superblock is mounted if it cannot stay detached: without privileges, and
	// before Linux 6.15. Made if need be. Servers may share one.
	RunDir string
	Name   string // shown as the mount's source; default "coppice"
	// AllowSuid lets setuid bits and file capabilities have effect, AllowDev devices.
	AllowSuid, AllowDev bool
	// DenyExec keeps programs of the tree from being executed.
	DenyExec bool
	// Exact puts nothing into the page cache that nobody asked for, so that every first access is seen.
	Exact       bool
	ReadAheadKB int           // of the mount's backing device, see SetReadAhead; default 4096
	Timeout     time.Duration // bound of one request; default 60 s
	Logger      *slog.Logger  // default: discard
}

func (o *Options) defaults() {
	if o.Name == "" {
		o.Name = "coppice"
	}
	if o.ReadAheadKB == 0 {
		o.ReadAheadKB = 4096
	}
	if o.Timeout == 0 {
		o.Timeout = time.Minute
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
}

// The modes of a mount.
const (
	// ModeBeneath: Dir is a mount point, and swaps are atomic (Linux 6.5).
	ModeBeneath = "beneath"
	// ModeSymlink: Dir is a symbolic link, replaced atomically; the mount is elsewhere. For those
	// who may not mount.
	ModeSymlink = "symlink"
)

// Generation is a root catalog that is, or was, shown.
type Generation struct {
	Root    namespace.Digest `json:"root"`
	Label   string           `json:"label"`    // for people: NAME@N
	MountID uint64           `json:"mount_id"` // of the mount that shows it, as in mountinfo; 0 in symlink mode
	Since   time.Time        `json:"since"`    // of activation, or, when draining, of the end of it

	at spot
}

// Status says what a mount shows.
type Status struct {
	Mode     string
	Active   Generation   // zero before the first activation
	Draining []Generation // oldest first: replaced, but still in use when last looked at
	Nodes    int          // that the kernel knows
}
