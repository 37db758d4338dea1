package cache

import (
	"io"
	"sync"
	"time"

	"coppice.dev/coppice/namespace"
)

// meterSpan is over how much time of fetching a rate is measured: older counts half, and half again.
const meterSpan = 20 * time.Second

// meter measures the rate at which an origin delivers: bytes over the time in which at least one request
// was under way, its latency included. Safe for concurrent use; the zero value has measured nothing.
type meter struct {
	mu     sync.Mutex
	active int
	since  time.Time // when active rose from 0, or was accounted for last
	busy   time.Duration
	bytes  int64
}

// begin notes that a request begins.
func (m *meter) begin() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.active == 0 {
		m.since = time.Now()
	}
	m.active++
}

// end notes that a request ends.
func (m *meter) end() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.account()
	m.active--
}

func (m *meter) add(n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.bytes += int64(n)
}

// account adds the time since it was last called; with mu held.
func (m *meter) account() {
	if m.active == 0 {
		return
	}
	now := time.Now()
	m.busy += now.Sub(m.since)
	m.since = now
	for m.busy > meterSpan {
		m.busy /= 2
		m.bytes /= 2
	}
}

// meterLeast is how many bytes tell something about a link.
const meterLeast = 64 << 10

// rate returns bytes a second, 0 if too little was fetched to tell.
func (m *meter) rate() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.account()
	if m.bytes < meterLeast || m.busy <= 0 {
		return 0
	}
	return int64(float64(m.bytes) / m.busy.Seconds())
}

// watch counts what is read of a request's body, whose end is that of the request.
func (m *meter) watch(body io.ReadCloser) io.ReadCloser { return &metered{ReadCloser: body, m: m} }

type metered struct {
	io.ReadCloser
	m    *meter
	once sync.Once
}

// Read implements io.Reader.
func (b *metered) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.m.add(n)
	return n, err
}

// Close implements io.Closer.
func (b *metered) Close() error {
	b.once.Do(b.m.end)
	return b.ReadCloser.Close()
}

// Reject implements namespace.Rejecter.
func (b *metered) Reject(err error) { namespace.Reject(b.ReadCloser, err) }

// Rate returns the bytes a second that the origin delivered of late, 0 if nothing is known.
func (r *Reader) Rate() int64 { return r.meter.rate() }
