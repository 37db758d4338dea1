// Package origin is where objects and refs live: a directory of static files ([Dir]), the HTTP
// server that shows it ([NewHandler]), the client of any server that does ([Client]), and
// decorators ([Retry], [Metrics]). [Open] chooses and stacks them; [OpenSources] makes one of several,
// with failover, second requests for slow ones, and probes.
//
// # Layout
//
// The same in a directory and in URLs, so that any static server, CDN or rsync'ed disk will do:
//
//	coppice.json                    {"format":1}; written last when an origin is made
//	blob|pack|locator|…/ab/HEX      objects: 64 hex digits, in a directory of the first two
//	ref/KIND/NAME                   records; NAME may have several components
//	ref/KIND/_index.json            the names of that kind, for clients of static servers; derived
//	tmp/                            files being written; swept when older than a day
//	lock                            taken (flock) by whoever swaps a ref
//
// Because a ref is a file, its name cannot also be a directory of other refs: with "a" present,
// "a/b" is refused, as in git.
//
// # Durability
//
// An object's time is its file's mtime. Renewing, replacing and collecting an object take the lock
// (flock) of its file, for as long as one of those takes; a crash releases it.
//
// A file is written under tmp, synced, renamed, and its directory synced, in that order. What
// Put and SwapRef reported as done survives a crash; what they did not is invisible, or whole.
package origin

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"coppice.dev/coppice/namespace"
)

// Conn is an open origin for reading.
type Conn interface {
	namespace.Source
	namespace.RefWaiter
	io.Closer
}

// WritableConn is an open origin for reading and writing.
type WritableConn interface {
	namespace.Origin
	namespace.RefWaiter
	io.Closer
}

// Options tune [Open]. The zero value is the default.
type Options struct {
	// HTTP tunes the client of http and https locations.
	HTTP ClientOptions
	// Retry tunes the decorator around it.
	Retry RetryOptions
	// Metrics, if not nil, counts requests (each attempt) under the role "client".
	Metrics *Metrics
}

// Open opens the origin at location, a directory's path, file:///PATH, or an http or https URL,
// for reading. A directory must exist and be an origin; a URL is not contacted, so that an endpoint can start
// offline. Kinds: NotExist, Invalid, Denied, Unavailable.
func Open(_ context.Context, location string, opts Options) (Conn, error) {
	scheme, path, err := parseLocation(location)
	if err != nil {
		return nil, err
	}
	if scheme == "" {
		return OpenDir(path)
	}
	client, err := NewClient(path, opts.HTTP)
	if err != nil {
		return nil, err
	}
	var src namespace.Source = client
	if opts.Metrics != nil {
		src = opts.Metrics.Source(src, "client")
	}
	src = Retry(src, opts.Retry)
	return &conn{Source: src, RefWaiter: src.(namespace.RefWaiter), close: client.Close}, nil
}

// OpenWritable opens the origin at location for reading and writing; only directories can be
// written. Kinds: NotExist, Invalid, Denied, Unavailable.
func OpenWritable(_ context.Context, location string) (WritableConn, error) {
	scheme, path, err := parseLocation(location)
	if err != nil {
		return nil, err
	}
	if scheme != "" {
		err := namespace.E(namespace.Invalid, "open origin", location, fmt.Errorf("an HTTP origin is read-only"))
		return nil, namespace.WithHint(err, "run this where the origin's directory is, and name the directory")
	}
	return OpenDir(path)
}

// parseLocation returns the scheme ("" for a directory) and the path, or the URL.
func parseLocation(location string) (scheme, path string, err error) {
	scheme, rest, found := strings.Cut(location, "://")
	switch {
	case location == "":
		err := namespace.E(namespace.Invalid, "open origin", "", fmt.Errorf("no origin was named"))
		return "", "", namespace.WithHint(err, "name it with --origin or COPPICE_ORIGIN")
	case !found:
		return "", location, nil
	case scheme == "file" && strings.HasPrefix(rest, "/"):
		return "", rest, nil
	case scheme == "http", scheme == "https", scheme == "https+pin": // the last is for ClientOptions.Secure
		return scheme, location, nil
	}
	reason := fmt.Errorf("unknown scheme %q", scheme)
	if scheme == "s3" {
		reason = fmt.Errorf("s3 is not supported yet")
	}
	return "", "", namespace.WithHint(namespace.E(namespace.Invalid, "open origin", location, reason),
		"name a directory, or an http:// or https:// URL")
}

// conn is a decorated client with the client's Close.
type conn struct {
	namespace.Source
	namespace.RefWaiter
	close func() error
}

func (c *conn) Close() error { return c.close() }

const (
	formatName  = "coppice.json"
	indexName   = "_index.json" // "_" cannot begin a ref's component
	formatLimit = 4 << 10
	// indexLimit bounds a list of refs: a million names of the longest kind.
	indexLimit = 256 << 20
	format     = 1
)

// marker is the content of coppice.json.
type marker struct {
	Format int `json:"format"`
}

// refIndex is the content of ref/KIND/_index.json; Names is sorted.
type refIndex struct {
	Format int      `json:"format"`
	Names  []string `json:"names"`
}

// objectPath is k's path in the layout.
func objectPath(k namespace.Key) string {
	h := k.Digest.Hex()
	return k.Class.String() + "/" + h[:2] + "/" + h
}

func refPath(n namespace.RefName) string { return "ref/" + n.String() }
func refIndexPath(kind string) string    { return "ref/" + kind + "/" + indexName }
func checkKind(kind string) error        { return namespace.RefName{Kind: kind, Name: "x"}.Check() }
func limitError(op, s string, n int64) error {
	return namespace.E(namespace.Limit, op, s, fmt.Errorf("more than %d bytes", n))
}

// classLimit bounds a stored object: no reader accepts a longer one.
func classLimit(c namespace.Class) int64 {
	switch c {
	case namespace.Pack:
		return namespace.PackBytesMax
	case namespace.Locator:
		return namespace.LocatorBytesMax
	case namespace.Index:
		return namespace.IndexBytesMax
	}
	return namespace.CatalogBytesMax
}

// contentTag is the entity tag of a mutable thing: equal bytes, equal tag, on every server.
func contentTag(b []byte) string { return `"` + namespace.Sum(b).Hex()[:32] + `"` }

// sleep waits for d or until ctx ends.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

var _ http.Handler = (*handler)(nil)
