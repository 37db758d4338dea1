package origin

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"coppice.dev/coppice/namespace"
)

// errSlow is the cause of a request that its server let wait, errReset of one whose connection was
// dropped by [Client.Reset].
var (
	errSlow  = errors.New("the server sent nothing for too long")
	errReset = errors.New("the network changed meanwhile")
)

// dripBytes is what a body must bring in each StallTimeout: who sends a byte a second never ends, and
// is no better than who sends none.
const dripBytes = 1 << 10

// response is a checked response, read as the body of what was asked for. Not safe for
// concurrent use.
type response struct {
	op, subject  string
	http         *http.Response
	outer, inner context.Context // the caller's, and ours beneath it
	cancel       context.CancelCauseFunc
	timer        *time.Timer // cancels inner; runs only while this side waits for the server
	stall        time.Duration
	keep         func() bool // lets go of the client's connections

	waited  time.Duration // for the last dripBytes, so far
	dripped int           // of them

	skip  int64 // bytes to discard first: the server ignored the range
	left  int64 // bytes still wanted; -1 is all there are, up to bound
	bound int64 // bytes accepted at most
}

// check turns anything but the answer to req into an error.
func (r *response) check(req request) error {
	h := r.http
	status := h.StatusCode
	switch {
	case status == http.StatusNotModified && req.noneMatch != "":
		return nil
	case status == http.StatusPartialContent && req.rangeHeader != "":
	case status == http.StatusOK && isPage(h.Header):
		err := namespace.E(namespace.Unavailable, r.op, r.subject, fmt.Errorf("%s answered with a web page", h.Request.URL.Host))
		return namespace.WithHint(err, "is a captive portal or a proxy in between, or is the origin's URL wrong?")
	case status == http.StatusOK:
	case status == http.StatusUnauthorized:
		err := namespace.E(namespace.Denied, r.op, r.subject, fmt.Errorf("%s wants to know who reads", h.Request.URL.Host))
		return namespace.WithHint(err, "prove it with --token-file or --client-cert; what was proven may have expired or been revoked")
	default:
		return namespace.E(StatusKind(status, h.Header), r.op, r.subject, fmt.Errorf("%s answered %s", h.Request.URL.Host, h.Status))
	}
	if enc := h.Header.Get("Content-Encoding"); enc != "" && enc != "identity" {
		return namespace.E(namespace.Unavailable, r.op, r.subject, fmt.Errorf("%s sent the encoding %q unasked", h.Request.URL.Host, enc))
	}
	r.left, r.bound = -1, 1<<62
	return nil
}

// limit tells the body what is wanted of k: n bytes from off, or all if n < 0.
func (r *response) limit(k namespace.Key, off, n int64) error {
	length := r.http.ContentLength
	if r.http.StatusCode == http.StatusPartialContent {
		first, last, size, err := parseContentRange(r.http.Header.Get("Content-Range"))
		wrong := err != nil || first != off || n > 0 && last-first+1 > n ||
			size >= 0 && last != lastOf(off, n, size) || length >= 0 && length != last-first+1
		if wrong {
			return namespace.E(namespace.Unavailable, r.op, r.subject,
				fmt.Errorf("asked for %d bytes at %d, got the range %q of length %d", n, off, r.http.Header.Get("Content-Range"), length))
		}
		length = last - first + 1
	} else {
		if length >= 0 && off > 0 && off >= length {
			return namespace.E(namespace.Invalid, r.op, r.subject, fmt.Errorf("offset %d of %d bytes", off, length))
		}
		r.skip = off
	}
	r.bound = classLimit(k.Class)
	if length > r.bound {
		return limitError(r.op, r.subject, r.bound)
	}
	if n > 0 {
		r.left = n
	}
	return nil
}

// lastOf is the last byte of the range of n bytes (all if n < 0) at off of size bytes.
func lastOf(off, n, size int64) int64 {
	if n < 0 || n > size-off {
		return size - 1
	}
	return off + n - 1
}

// Read implements io.Reader.
func (r *response) Read(p []byte) (int, error) {
	if r.left == 0 {
		return 0, io.EOF
	}
	if r.left > 0 && int64(len(p)) > r.left {
		p = p[:r.left]
	}
	skipped := r.skip > 0
	if err := r.discard(); err != nil {
		return 0, err
	}
	n, err := r.read(p)
	if n == 0 && err == io.EOF && skipped {
		return 0, r.errPastEnd()
	}
	if r.left > 0 {
		r.left -= int64(n)
	}
	return n, err
}

// discard drops what comes before the range that was asked for.
func (r *response) discard() error {
	if r.skip == 0 {
		return nil
	}
	scratch := make([]byte, min(r.skip, 64<<10))
	for r.skip > 0 {
		n, err := r.read(scratch[:min(r.skip, int64(len(scratch)))])
		r.skip -= int64(n)
		if err == io.EOF {
			err = r.errPastEnd()
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (r *response) errPastEnd() error {
	return namespace.E(namespace.Invalid, r.op, r.subject, fmt.Errorf("the range starts past the end"))
}

// read reads from the server, for as long as it sends something.
func (r *response) read(p []byte) (int, error) {
	start := time.Now()
	r.timer.Reset(max(r.stall-r.waited, 1))
	n, err := r.http.Body.Read(p)
	r.timer.Stop()
	r.waited += time.Since(start)
	if r.dripped += n; r.dripped >= dripBytes {
		r.dripped, r.waited = 0, 0
	}
	r.bound -= int64(n)
	if r.bound < 0 {
		return 0, namespace.E(namespace.Limit, r.op, r.subject, fmt.Errorf("the server sends more than was announced or is allowed"))
	}
	if err != nil && err != io.EOF {
		err = r.error(err)
	}
	return n, err
}

// readAll reads a body of at most limit bytes and closes it.
func (r *response) readAll(limit int64) ([]byte, error) {
	r.left, r.bound = -1, limit
	if r.http.ContentLength > limit {
		return nil, closing(limitError(r.op, r.subject, limit), r)
	}
	b, err := io.ReadAll(r)
	return b, closing(err, r)
}

// Close implements io.Closer. What is left of the body is drained if it is next to nothing, so
// that the connection can be used again.
func (r *response) Close() error {
	if r.inner.Err() == nil && r.http.ContentLength >= 0 && r.http.ContentLength < 4<<10 {
		r.timer.Reset(r.stall)
		_, _ = io.CopyN(io.Discard, r.http.Body, 4<<10) // only a courtesy
	}
	r.timer.Stop()
	err := r.http.Body.Close()
	r.cancel(nil)
	r.keep()
	if err != nil && r.outer.Err() == nil {
		return r.error(err)
	}
	return nil
}

// error gives an error of the transport its Kind: the caller gave up, or nobody answers.
func (r *response) error(err error) error {
	if outer := r.outer.Err(); outer != nil {
		return namespace.E(namespace.KindOf(outer), r.op, r.subject, outer)
	}
	if cause := context.Cause(r.inner); errors.Is(cause, errSlow) || errors.Is(cause, errReset) {
		err = cause
	}
	var ue *url.Error
	if errors.As(err, &ue) {
		err = ue.Err // the URL may hold a password
	}
	if errors.Is(err, io.ErrUnexpectedEOF) {
		err = fmt.Errorf("the body is shorter than announced")
	}
	err = namespace.E(namespace.Unavailable, r.op, r.subject, err)
	if isImpostor(err) {
		err = namespace.WithHint(err, "name its authority with --tls-ca, or its key with --tls-pin, if it is who it should be")
	}
	return err
}

// isImpostor reports whether a server could not prove who it is. For whoever has the content already
// that is the same as no server, and so Unavailable; but to ask again would be of no use.
func isImpostor(err error) bool {
	var v *tls.CertificateVerificationError
	return errors.As(err, &v)
}

// parseContentRange reads "bytes 0-9/100"; size is -1 for "*".
func parseContentRange(s string) (first, last, size int64, err error) {
	bad := fmt.Errorf("malformed content range %q", s)
	unit, rest, _ := strings.Cut(s, " ")
	span, total, ok := strings.Cut(rest, "/")
	from, to, ok2 := strings.Cut(span, "-")
	if unit != "bytes" || !ok || !ok2 {
		return 0, 0, 0, bad
	}
	a, err1 := strconv.ParseUint(from, 10, 62)
	b, err2 := strconv.ParseUint(to, 10, 62)
	size = -1
	if total != "*" {
		n, err := strconv.ParseUint(total, 10, 62)
		if err != nil || n <= b {
			return 0, 0, 0, bad
		}
		size = int64(n)
	}
	if err1 != nil || err2 != nil || b < a {
		return 0, 0, 0, bad
	}
	return int64(a), int64(b), size, nil
}
