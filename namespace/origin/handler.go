package origin

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"coppice.dev/coppice/namespace"
)

// NewHandler returns a handler that shows src in the layout of this package, for GET and HEAD.
// Of a [Dir] it serves files, which the kernel can copy by itself; of a source that can Stat it
// honours single byte ranges; of any other it answers a range with the whole object.
//
// Refs are never cached and carry a content tag; with If-None-Match and "Prefer: wait=N" (at
// most 60 seconds) the answer is held back until the ref changes, and then says
// "Preference-Applied: wait=N". The context of a request ends a wait; whoever shuts a server down
// therefore cancels its base context. /healthz answers 200 while the handler runs.
func NewHandler(src namespace.Source) http.Handler { return &handler{src: src} }

type handler struct{ src namespace.Source }

// statter and opener are what a source may offer beyond a Source.
type (
	statter interface {
		Stat(ctx context.Context, k namespace.Key) (int64, error)
	}
	opener interface {
		OpenObject(ctx context.Context, k namespace.Key) (*os.File, int64, error)
	}
)

const (
	cacheForEver   = "public, max-age=31536000, immutable"
	cacheCheck     = "no-cache"
	cacheNever     = "no-store"
	waitMax        = 60 * time.Second
	waitPollSource = 200 * time.Millisecond // of a source that cannot tell of changes
	octetStream    = "application/octet-stream"
)

// ServeHTTP implements http.Handler.
func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "an origin is read with GET and HEAD", http.StatusMethodNotAllowed)
		return
	}
	w.Header().Set("X-Content-Type-Options", "nosniff")
	path := strings.TrimPrefix(r.URL.Path, "/")
	first, rest, _ := strings.Cut(path, "/")
	var err error
	switch {
	case path == "healthz":
		serveBytes(w, r, "text/plain; charset=utf-8", cacheNever, []byte("ok\n"))
	case path == formatName:
		err = serveJSON(w, r, marker{Format: format})
	case first == "ref":
		err = h.serveRef(w, r, rest)
	default:
		err = h.serveObject(w, r, first, rest)
	}
	if err != nil {
		fail(w, err)
	}
}

// fail answers with err. Its text stays here: it may name paths of this machine.
func fail(w http.ResponseWriter, err error) {
	kind := namespace.KindOf(err)
	w.Header().Set(kindHeader, kind.String())
	w.Header().Set("Cache-Control", cacheNever)
	w.Header().Del("Etag")
	http.Error(w, kind.String(), HTTPStatus(kind))
}

func notHere(path string) error { return namespace.E(namespace.NotExist, "serve", path, nil) }

// serveObject answers for CLASS/ab/HEX.
func (h *handler) serveObject(w http.ResponseWriter, r *http.Request, class, rest string) error {
	shard, name, _ := strings.Cut(rest, "/")
	digest, err := namespace.ParseHex(name)
	if err != nil || shard != name[:2] {
		return notHere(r.URL.Path)
	}
	for _, c := range namespace.Classes() {
		if c.String() == class {
			return h.serveKey(w, r, namespace.Key{Class: c, Digest: digest})
		}
	}
	return notHere(r.URL.Path)
}

func (h *handler) serveKey(w http.ResponseWriter, r *http.Request, k namespace.Key) error {
	w.Header().Set("Content-Type", octetStream)
	if !k.Class.Immutable() {
		return h.serveMutable(w, r, k)
	}
	tag := `"` + k.Digest.Hex() + `"`
	if o, ok := h.src.(opener); ok {
		f, _, err := o.OpenObject(r.Context(), k)
		if err != nil {
			return err
		}
		defer f.Close() // of a file that was only read: nothing can be lost
		w.Header().Set("Etag", tag)
		w.Header().Set("Cache-Control", cacheForEver)
		http.ServeContent(w, r, "", time.Time{}, f)
		return nil
	}
	if s, ok := h.src.(statter); ok {
		size, err := s.Stat(r.Context(), k)
		if err != nil {
			return err
		}
		content := &lazyObject{ctx: r.Context(), src: h.src, key: k, size: size}
		defer content.Close() // the same
		w.Header().Set("Etag", tag)
		w.Header().Set("Cache-Control", cacheForEver)
		http.ServeContent(w, r, "", time.Time{}, content)
		return nil
	}
	body, err := h.src.Get(r.Context(), k, 0, -1)
	if err != nil {
		return err
	}
	defer body.Close() // the same
	w.Header().Set("Etag", tag)
	w.Header().Set("Cache-Control", cacheForEver)
	if r.Method == http.MethodHead {
		return nil
	}
	if _, err := io.Copy(w, body); err != nil {
		abort(w)
	}
	return nil
}

// abort makes the client see a broken body, not a short one: what was not written yet, the end of
// the body among it, will not be.
func abort(w http.ResponseWriter) {
	_ = http.NewResponseController(w).SetWriteDeadline(time.Unix(1, 0)) // every server's writer can
}

// serveMutable answers for a locator: what is read is what is tagged, never a mix of two.
func (h *handler) serveMutable(w http.ResponseWriter, r *http.Request, k namespace.Key) error {
	body, err := h.src.Get(r.Context(), k, 0, -1)
	if err != nil {
		return err
	}
	b, err := io.ReadAll(io.LimitReader(body, classLimit(k.Class)+1))
	if err := closing(err, body); err != nil {
		return err
	}
	if int64(len(b)) > classLimit(k.Class) {
		return limitError("serve", k.String(), classLimit(k.Class))
	}
	serveBytes(w, r, octetStream, cacheCheck, b)
	return nil
}

func serveBytes(w http.ResponseWriter, r *http.Request, contentType, cacheControl string, b []byte) {
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("Etag", contentTag(b))
	w.Header().Set("Cache-Control", cacheControl)
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b))
}

func serveJSON(w http.ResponseWriter, r *http.Request, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return namespace.E(namespace.Internal, "serve", r.URL.Path, err)
	}
	serveBytes(w, r, "application/json", cacheNever, append(b, '\n'))
	return nil
}

// serveRef answers for KIND/NAME and KIND/_index.json.
func (h *handler) serveRef(w http.ResponseWriter, r *http.Request, path string) error {
	kind, name, _ := strings.Cut(path, "/")
	if name == indexName && checkKind(kind) == nil {
		names, err := h.src.Refs(r.Context(), kind)
		if err != nil {
			return err
		}
		if names == nil {
			names = []string{}
		}
		return serveJSON(w, r, refIndex{Format: format, Names: names})
	}
	n := namespace.RefName{Kind: kind, Name: name}
	if n.Check() != nil {
		return notHere(r.URL.Path)
	}
	wait := waitPreference(r.Header)
	b, err := h.src.Ref(r.Context(), n)
	if wait > 0 && h.unchanged(r, b, err) {
		w.Header().Set("Preference-Applied", "wait="+strconv.Itoa(int(wait/time.Second)))
		b, err = h.awaitRef(r, n, b, wait)
	}
	if err != nil {
		return err
	}
	serveBytes(w, r, octetStream, cacheNever, b)
	return nil
}

// unchanged reports whether b, err is what the client has already: the record it names, or none.
func (h *handler) unchanged(r *http.Request, b []byte, err error) bool {
	tag := r.Header.Get("If-None-Match")
	if err != nil {
		return tag == "" && namespace.IsKind(err, namespace.NotExist)
	}
	return tag == contentTag(b)
}

// awaitRef waits until the record of n is not have any more (nil: until there is one).
func (h *handler) awaitRef(r *http.Request, n namespace.RefName, have []byte, wait time.Duration) ([]byte, error) {
	ctx, cancel := context.WithTimeout(r.Context(), wait)
	defer cancel()
	got := have
	var err error
	for ctx.Err() == nil && err == nil && bytes.Equal(got, have) {
		if waiter, ok := h.src.(namespace.RefWaiter); ok {
			got, err = waiter.WaitRef(ctx, n, have)
			continue
		}
		_ = sleep(ctx, waitPollSource) // the loop's head looks at ctx
		got, err = h.src.Ref(ctx, n)
		if have == nil && namespace.IsKind(err, namespace.NotExist) {
			err = nil
		}
	}
	if ctx.Err() != nil && (err != nil || bytes.Equal(got, have)) { // the time is over, nothing happened
		got, err = have, nil
	}
	if err == nil && got == nil {
		err = notHere(n.String())
	}
	return got, err
}

// waitPreference reads N of "Prefer: wait=N" (RFC 7240), bounded; 0 if there is none.
func waitPreference(h http.Header) time.Duration {
	for _, line := range h.Values("Prefer") {
		for p := range strings.SplitSeq(line, ",") {
			key, value, _ := strings.Cut(strings.TrimSpace(p), "=")
			if n, err := strconv.ParseUint(value, 10, 31); err == nil && strings.EqualFold(key, "wait") {
				return min(time.Duration(n)*time.Second, waitMax)
			}
		}
	}
	return 0
}

// lazyObject shows an object of a source as an io.ReadSeeker: a Seek only remembers, the first Read
// gets. Not safe for concurrent use.
type lazyObject struct {
	ctx       context.Context // of the one request that this lives for
	src       namespace.Fetcher
	key       namespace.Key
	size, pos int64
	body      io.ReadCloser
}

func (o *lazyObject) Read(p []byte) (int, error) {
	if o.pos >= o.size {
		return 0, io.EOF
	}
	if o.body == nil {
		body, err := o.src.Get(o.ctx, o.key, o.pos, -1)
		if err != nil {
			return 0, err
		}
		o.body = body
	}
	n, err := o.body.Read(p)
	o.pos += int64(n)
	return n, err
}

func (o *lazyObject) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += o.pos
	case io.SeekEnd:
		offset += o.size
	}
	if offset < 0 {
		return 0, fmt.Errorf("offset %d", offset)
	}
	if offset != o.pos {
		if err := o.Close(); err != nil {
			return 0, err
		}
		o.pos = offset
	}
	return offset, nil
}

func (o *lazyObject) Close() error {
	if o.body == nil {
		return nil
	}
	err := o.body.Close()
	o.body = nil
	return err
}
