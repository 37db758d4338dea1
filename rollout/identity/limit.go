package identity

import (
	"bytes"
	"container/list"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"coppice.dev/coppice/namespace"
)

// Rate bounds the requests of each client with a token bucket. It remembers a bounded number of
// clients, those that came last: whoever is forgotten starts with a full bucket. Safe for concurrent
// use.
type Rate struct {
	limit rate.Limit
	burst int
	now   func() time.Time

	mu      sync.Mutex
	clients map[string]*list.Element // of recent
	recent  *list.List               // of *clientRate, the latest first
}

type clientRate struct {
	client string
	bucket *rate.Limiter
}

// rateClientsMax bounds the table: 16384 clients cost about 4 MiB.
const rateClientsMax = 16 << 10

// NewRate returns a limit of perSecond requests of a client, burst of them at once.
func NewRate(perSecond float64, burst int) *Rate {
	return &Rate{limit: rate.Limit(perSecond), burst: burst, now: time.Now, clients: map[string]*list.Element{}, recent: list.New()}
}

// Allow reports whether client may do one more thing now, and counts it.
func (r *Rate) Allow(client string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	e, ok := r.clients[client]
	if ok {
		r.recent.MoveToFront(e)
	} else {
		if r.recent.Len() >= rateClientsMax {
			oldest := r.recent.Back()
			delete(r.clients, oldest.Value.(*clientRate).client)
			r.recent.Remove(oldest)
		}
		e = r.recent.PushFront(&clientRate{client, rate.NewLimiter(r.limit, r.burst)})
		r.clients[client] = e
	}
	return e.Value.(*clientRate).bucket.AllowN(r.now(), 1)
}

// Handler refuses with 429 what is too much.
func (r *Rate) Handler(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		if !r.Allow(clientOf(q.RemoteAddr)) {
			w.Header().Set("Retry-After", "1")
			answerError(w, http.StatusTooManyRequests, namespace.E(namespace.Unavailable, "serve", q.URL.Path, errors.New("too many requests of one client")))
			return
		}
		next.ServeHTTP(w, q)
	})
}

// unboundBodyMax is what a request may bring to a handler that wants none: nothing worth mentioning.
const unboundBodyMax = 4 << 10

// boundBody sees to it that no body takes longer than timeout or, unless the handler is one of [Body],
// is longer than next to nothing.
func boundBody(next http.Handler, timeout time.Duration) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ContentLength != 0 {
			// The connection's own deadline is for headers, and it must not end a long answer.
			rc := http.NewResponseController(w)
			if err := rc.SetReadDeadline(time.Now().Add(timeout)); err != nil {
				answerError(w, http.StatusInternalServerError, namespace.E(namespace.Internal, "serve", r.URL.Path, err))
				return
			}
			r.Body = &boundedBody{ReadCloser: r.Body, control: rc, left: unboundBodyMax}
		}
		next.ServeHTTP(w, r)
	})
}

// boundedBody ends after left bytes, with an error, and lifts the deadline when it was read.
type boundedBody struct {
	io.ReadCloser
	control *http.ResponseController
	left    int64
}

var errBodyTooLarge = errors.New("the request's body is too large")

// Read implements io.Reader.
func (b *boundedBody) Read(p []byte) (int, error) {
	if b.left < 0 {
		return 0, errBodyTooLarge
	}
	if int64(len(p)) > b.left+1 {
		p = p[:b.left+1]
	}
	n, err := b.ReadCloser.Read(p)
	b.left -= int64(n)
	if b.left < 0 {
		return 0, errBodyTooLarge
	}
	if err == io.EOF {
		_ = b.control.SetReadDeadline(time.Time{}) // at worst the connection ends early
	}
	return n, err
}

// Body reads the whole body of each request, at most limit bytes, before next runs, and refuses a
// longer one with 413: what a handler decodes is in memory, and complete.
func Body(limit int64, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		tooLarge := func() {
			w.Header().Set("Connection", "close")
			answerError(w, http.StatusRequestEntityTooLarge, namespace.E(namespace.Limit, "read request", r.URL.Path, fmt.Errorf("more than %d bytes", limit)))
		}
		if r.ContentLength > limit {
			tooLarge()
			return
		}
		if bounded, ok := r.Body.(*boundedBody); ok {
			bounded.left = limit
		}
		b, err := io.ReadAll(io.LimitReader(r.Body, limit+1))
		switch {
		case errors.Is(err, errBodyTooLarge) || int64(len(b)) > limit:
			tooLarge()
		case err != nil:
			w.Header().Set("Connection", "close")
			answerError(w, http.StatusRequestTimeout, namespace.E(namespace.Unavailable, "read request", r.URL.Path, errors.New("its body did not arrive")))
		default:
			r.Body = io.NopCloser(bytes.NewReader(b))
			next.ServeHTTP(w, r)
		}
	})
}
