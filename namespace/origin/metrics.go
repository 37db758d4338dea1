package origin

import (
	"context"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"coppice.dev/coppice/namespace"
)

// Metrics counts requests, of sources and of handlers. It is a prometheus.Collector; register it
// once. Safe for concurrent use.
type Metrics struct {
	requests *prometheus.CounterVec   // role, op, result
	seconds  *prometheus.HistogramVec // role, op
	bytes    *prometheus.CounterVec   // role, op
	running  *prometheus.GaugeVec     // role
}

// NewMetrics returns a Metrics with all counts zero.
func NewMetrics() *Metrics {
	return &Metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "coppice_origin_requests_total",
			Help: "Requests to or of an origin, by role, operation and result (ok, a Kind, or an HTTP status)."},
			[]string{"role", "op", "result"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "coppice_origin_request_seconds",
			Help: "Time until the first byte (client) or the last (server).", Buckets: prometheus.ExponentialBuckets(0.0005, 4, 9)},
			[]string{"role", "op"}),
		bytes: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "coppice_origin_body_bytes_total",
			Help: "Bytes of bodies, as stored."}, []string{"role", "op"}),
		running: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "coppice_origin_requests_running",
			Help: "Requests that are being answered."}, []string{"role"}),
	}
}

// Describe implements prometheus.Collector.
func (m *Metrics) Describe(ch chan<- *prometheus.Desc) {
	m.requests.Describe(ch)
	m.seconds.Describe(ch)
	m.bytes.Describe(ch)
	m.running.Describe(ch)
}

// Collect implements prometheus.Collector.
func (m *Metrics) Collect(ch chan<- prometheus.Metric) {
	m.requests.Collect(ch)
	m.seconds.Collect(ch)
	m.bytes.Collect(ch)
	m.running.Collect(ch)
}

// Source returns src with its calls counted under role. The result implements
// namespace.RefWaiter if src does.
func (m *Metrics) Source(src namespace.Source, role string) namespace.Source {
	s := &meteredSource{src: src, m: m, role: role}
	if w, ok := src.(namespace.RefWaiter); ok {
		return &meteredWaiter{meteredSource: s, waiter: w}
	}
	return s
}

// count records a call that has ended.
func (m *Metrics) count(role, op string, start time.Time, err error) {
	result := "ok"
	if err != nil {
		result = namespace.KindOf(err).String()
	}
	m.requests.WithLabelValues(role, op, result).Inc()
	m.seconds.WithLabelValues(role, op).Observe(time.Since(start).Seconds())
}

type meteredSource struct {
	src  namespace.Source
	m    *Metrics
	role string
}

type meteredWaiter struct {
	*meteredSource
	waiter namespace.RefWaiter
}

// Get implements namespace.Fetcher.
func (s *meteredSource) Get(ctx context.Context, k namespace.Key, off, n int64) (io.ReadCloser, error) {
	start := time.Now()
	body, err := s.src.Get(ctx, k, off, n)
	op := "get-" + k.Class.String()
	s.m.count(s.role, op, start, err)
	if err != nil {
		return nil, err
	}
	return &meteredBody{ReadCloser: body, bytes: s.m.bytes.WithLabelValues(s.role, op)}, nil
}

// Ref implements namespace.RefReader.
func (s *meteredSource) Ref(ctx context.Context, n namespace.RefName) ([]byte, error) {
	start := time.Now()
	b, err := s.src.Ref(ctx, n)
	s.m.count(s.role, "ref", start, err)
	return b, err
}

// Refs implements namespace.RefReader.
func (s *meteredSource) Refs(ctx context.Context, kind string) ([]string, error) {
	start := time.Now()
	names, err := s.src.Refs(ctx, kind)
	s.m.count(s.role, "refs", start, err)
	return names, err
}

// WaitRef implements namespace.RefWaiter.
func (s *meteredWaiter) WaitRef(ctx context.Context, n namespace.RefName, have []byte) ([]byte, error) {
	start := time.Now()
	b, err := s.waiter.WaitRef(ctx, n, have)
	s.m.count(s.role, "wait", start, err)
	return b, err
}

type meteredBody struct {
	io.ReadCloser
	bytes prometheus.Counter
}

func (b *meteredBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.bytes.Add(float64(n))
	return n, err
}

// Reject implements namespace.Rejecter.
func (b *meteredBody) Reject(err error) { namespace.Reject(b.ReadCloser, err) }

// Handler returns h with its requests counted under the role "server".
func (m *Metrics) Handler(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		const role = "server"
		start := time.Now()
		op := routeOf(r.URL.Path)
		running := m.running.WithLabelValues(role)
		running.Inc()
		mw := &meteredWriter{ResponseWriter: w, status: http.StatusOK}
		defer func() {
			running.Dec()
			m.requests.WithLabelValues(role, op, strconv.Itoa(mw.status)).Inc()
			m.seconds.WithLabelValues(role, op).Observe(time.Since(start).Seconds())
			m.bytes.WithLabelValues(role, op).Add(float64(mw.bytes))
		}()
		h.ServeHTTP(mw, r)
	})
}

// routeOf maps a path to one of few labels.
func routeOf(path string) string {
	first, _, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	for _, c := range namespace.Classes() {
		if first == c.String() {
			return "get-" + first
		}
	}
	if first == "ref" {
		return "ref"
	}
	return "other"
}

type meteredWriter struct {
	http.ResponseWriter
	status int
	bytes  int64
}

// WriteHeader implements http.ResponseWriter.
func (w *meteredWriter) WriteHeader(status int) {
	w.status = status
	w.ResponseWriter.WriteHeader(status)
}

// Write implements http.ResponseWriter.
func (w *meteredWriter) Write(p []byte) (int, error) {
	n, err := w.ResponseWriter.Write(p)
	w.bytes += int64(n)
	return n, err
}

// ReadFrom lets the kernel copy files through this wrapper too.
func (w *meteredWriter) ReadFrom(r io.Reader) (int64, error) {
	n, err := io.Copy(w.ResponseWriter, r)
	w.bytes += n
	return n, err
}

// Unwrap lets http.ResponseController reach the server's writer.
func (w *meteredWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
