package namespace

import (
	"context"
	"io"
	"time"
)

// Class says what an object is, and so where a store keeps it and how long HTTP may cache it.
type Class uint8

// The classes.
const (
	// Blob is a catalog or a manifest, stored as one compressed frame, named by the digest of
	// its plaintext. Immutable.
	Blob Class = iota
	// Pack is a container of compressed chunks, named by the digest of its own bytes. Immutable.
	Pack
	// Locator says where the chunks of one catalog are. It is named by the catalog's digest and
	// may be rewritten: a reader revalidates it, and trusts nothing in it.
	Locator
	// Index is a segment of the origin's chunk index, named by the digest of its bytes. Derived:
	// losing all of them costs a scan of the packs' directories.
	Index
	// Delta holds the binary differences with which the chunks of one catalog are made from chunks
	// of older ones. It is named by the catalog's digest and may be rewritten, as a locator; a
	// reader verifies what it makes, and does without when there is none.
	Delta
	classCount
)

var classNames = [classCount]string{"blob", "pack", "locator", "index", "delta"}

// String returns the class's stable name, which is also its directory in an origin.
func (c Class) String() string {
	if c < classCount {
		return classNames[c]
	}
	return "unknown"
}

// Classes lists every Class.
func Classes() []Class { return []Class{Blob, Pack, Locator, Index, Delta} }

// Immutable reports whether an object of this class can never change under its name.
func (c Class) Immutable() bool { return c != Locator && c != Delta }

// Key names one stored object.
type Key struct {
	Class  Class
	Digest Digest
}

// String returns "class sha256:…", for errors and logs.
func (k Key) String() string { return k.Class.String() + " " + k.Digest.String() }

// A Fetcher hands out stored bytes. They are not trusted: the caller verifies.
//
// Get returns the bytes of k from offset off (bytes, ≥ 0) on, n of them, or all that remain if
// n < 0. A range that reaches past the end gives what there is; one that starts past it gives
// Invalid. The caller closes the reader, and may stop early. Get may block on the network until
// ctx ends; reading may fail later with any of the Kinds below.
// Kinds: NotExist, Unavailable, Denied, Invalid, Limit, Canceled, Corrupt.
// Safe for concurrent use. Idempotent.
type Fetcher interface {
	Get(ctx context.Context, k Key, off, n int64) (io.ReadCloser, error)
}

// A Store is a Fetcher that can also be written.
type Store interface {
	Fetcher
	// Put stores b under k, whole or not at all; when it returns nil the object survives a crash.
	// Putting an immutable object that is there already is a cheap success and writes nothing;
	// putting a locator or a delta replaces it atomically. The store does not keep b. The store does not
	// check b against k: names of blobs are digests of their plaintext, which it cannot see.
	// Kinds: Limit (disk full), Denied, Unavailable, Canceled. Safe for concurrent use.
	Put(ctx context.Context, k Key, b []byte) error
	// Stat returns the stored size in bytes. Kinds: NotExist, Unavailable, Denied, Canceled.
	Stat(ctx context.Context, k Key) (int64, error)
	// List calls fn for every object of class c, in no order, until fn fails. Objects put or
	// deleted meanwhile may or may not be seen. Kinds: those of fn, Unavailable, Denied, Canceled.
	List(ctx context.Context, c Class, fn func(k Key, size int64) error) error
	// Delete removes k; deleting what is not there is a success. For garbage collection only.
	Delete(ctx context.Context, k Key) error
}

// An Ager is a Store that knows the time of each object: when it was last put, also if it was there
// already, or renewed. With it garbage collection runs beside builders: what a builder renewed is
// left alone for the grace period, and what was collected it learns to be missing.
// Capability: find it by type assertion on the outermost store.
//
// Put of an immutable object that is there renews it. Renew, DeleteOlder and Put of one object
// exclude each other, also among processes and for whatever moment one of them dies: either a
// renewal is seen by DeleteOlder, or the renewal says NotExist. Safe for concurrent use.
type Ager interface {
	// Renew gives k the time of now. Kinds: NotExist, Denied, Unavailable, Limit, Canceled.
	Renew(ctx context.Context, k Key) error
	// Time returns k's time. Kinds: NotExist, Denied, Unavailable, Canceled.
	Time(ctx context.Context, k Key) (time.Time, error)
	// DeleteOlder removes k if its time is before t, and says whether it did. That k is not there is
	// no error. Kinds: Denied, Unavailable, Canceled.
	DeleteOlder(ctx context.Context, k Key, t time.Time) (bool, error)
}

// RefName names a ref: its kind ("tree", "namespace", "channel", "profile", "trust") and a name that
// [CheckName] accepts.
type RefName struct {
	Kind string
	Name string
}

// The kinds of ref.
const (
	TreeRef      = "tree"
	NamespaceRef = "namespace"
	ChannelRef   = "channel"
	ProfileRef   = "profile" // of a namespace, whose name it has
	TrustRef     = "trust"
)

// String returns "kind/name", which is also its path in an origin.
func (n RefName) String() string { return n.Kind + "/" + n.Name }

// Check returns an Invalid error unless n is well-formed.
func (n RefName) Check() error {
	switch n.Kind {
	case TreeRef, NamespaceRef, ChannelRef, ProfileRef, TrustRef:
		return CheckName(n.Name)
	}
	return E(Invalid, "check ref", n.String(), nil)
}

// A RefReader reads refs. What it returns is not trusted: signatures decide (package trust).
type RefReader interface {
	// Ref returns the current record, at most RefBytesMax bytes, owned by the caller.
	// Kinds: NotExist, Unavailable, Denied, Limit, Canceled. Safe for concurrent use.
	Ref(ctx context.Context, n RefName) ([]byte, error)
	// Refs returns the names of all refs of a kind, sorted. Kinds: Unavailable, Denied, Canceled.
	Refs(ctx context.Context, kind string) ([]string, error)
}

// A RefWaiter is a RefReader that can tell of a change sooner than a poll would.
// Capability: find it by type assertion on the outermost store.
//
// WaitRef returns the record as soon as it differs from have (nil: as soon as it exists), or
// have itself when the wait has been as long as the source allows; it may return early. The
// caller loops. Kinds: those of Ref.
type RefWaiter interface {
	WaitRef(ctx context.Context, n RefName, have []byte) ([]byte, error)
}

// A RefWriter replaces refs by compare-and-swap, the only mutation there is.
//
// SwapRef stores next under n if the current record equals prev byte for byte; prev == nil
// means that there must be none. It is atomic and durable: when it returns nil, a crash keeps
// next; on an error, readers still see the old record. When the compare fails the Kind is Exist:
// another writer won, read again.
// Kinds: Exist, Limit, Denied, Unavailable, Invalid, Canceled. Safe for concurrent use, also by
// several processes.
type RefWriter interface {
	SwapRef(ctx context.Context, n RefName, prev, next []byte) error
}

// An Origin is what builders write and endpoints read. Local directories implement all of it,
// HTTP clients the reading half.
type Origin interface {
	Store
	RefReader
	RefWriter
}

// A Source is the reading half of an Origin: all that an endpoint needs.
type Source interface {
	Fetcher
	RefReader
}

// ChunkRef names a chunk in the context that makes it findable: chunk Index of the chunk table
// of the catalog Catalog. Digest and Size (bytes of plaintext) are those the catalog records.
type ChunkRef struct {
	Catalog Digest
	Index   uint32
	Digest  Digest
	Size    uint32
}
