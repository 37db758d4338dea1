package origin

import (
	"context"
	"io"
	"sync"
	"time"

	"coppice.dev/coppice/namespace"
)

// When a second request is sent, with the reasons.
const (
	// hedgeMin and hedgeMax bound the patience with a first byte: less would hedge what is merely far
	// away, more would be no help.
	hedgeMin = 150 * time.Millisecond
	hedgeMax = 2 * time.Second
	// hedgeTimes is that patience in mean times to a first byte.
	hedgeTimes = 4
	// hedgeEvery is how many requests earn a second one: a source that is slow for everybody must not be
	// asked twice for everything. hedgeSaved bounds what is saved up.
	hedgeEvery = 20
	hedgeSaved = 8
)

// hedge sends a second request, to the next source (the same, if there is only one), when the first
// byte of a body takes much longer than it mostly does. Whichever brings a byte first is used, the
// other is dropped. It costs at most one request in hedgeEvery. Requests in the background are not
// hedged. Safe for concurrent use.
type hedge struct {
	*failover

	mu     sync.Mutex
	budget float64
}

func newHedge(f *failover) *hedge { return &hedge{failover: f, budget: hedgeSaved / 2} }

// earn notes a request; spend takes the right to a second one.
func (h *hedge) earn() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.budget = min(h.budget+1.0/hedgeEvery, hedgeSaved)
}

func (h *hedge) spend() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.budget < 1 {
		return false
	}
	h.budget--
	return true
}

// patience is how long the first byte of m may take before a second request is sent.
func (m *member) patience() time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.firstByte == 0 {
		return hedgeMax / 2
	}
	return min(max(hedgeTimes*m.firstByte, hedgeMin), hedgeMax)
}

// start is how a request began: with the first bytes of its body, or an error.
type start struct {
	body   io.ReadCloser
	from   *member
	prefix []byte
	end    error // of the body, met behind prefix
	err    error
	second bool
	cancel context.CancelFunc
}

// drop gives up a request that is not needed.
func (s *start) drop() {
	s.cancel()
	if s.body != nil {
		_ = s.body.Close() // nobody wants it
	}
}

// Get implements namespace.Fetcher.
func (h *hedge) Get(ctx context.Context, k namespace.Key, off, n int64) (io.ReadCloser, error) {
	order := h.order()
	if _, background := namespace.Background(ctx); background || len(order) == 0 {
		body, _, err := h.getFrom(ctx, order, k, off, n)
		return body, err
	}
	h.earn()
	starts := make(chan *start, 2)
	run := func(order []*member, second bool) {
		inner, cancel := context.WithCancel(ctx)
		s := &start{second: second, cancel: cancel}
		s.body, s.from, s.err = h.getFrom(inner, order, k, off, n)
		if s.err == nil {
			s.readFirst()
		}
		starts <- s
	}
	go run(order, false)
	t := time.NewTimer(order[0].patience())
	defer t.Stop()
	running := 1
	for {
		select {
		case s := <-starts:
			running--
			if s.err != nil && running > 0 && ctx.Err() == nil {
				s.cancel()
				continue // the other may do better
			}
			if running > 0 {
				go func() { (<-starts).drop() }()
			}
			return h.use(s)
		case <-t.C:
			if h.spend() {
				second := append(order[1:len(order):len(order)], order[0])
				second[0].hedged()
				running++
				go run(second, true)
			}
		}
	}
}

func (m *member) hedged() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.status.Hedged++
}

// use makes a body of the request that was faster.
func (h *hedge) use(s *start) (io.ReadCloser, error) {
	if s.err != nil {
		s.cancel()
		return nil, s.err
	}
	if s.second {
		s.from.mu.Lock()
		s.from.status.HedgesWon++
		s.from.mu.Unlock()
	}
	return &hedgedBody{start: s}, nil
}

// firstBytes is how much of a body is waited for; whatever comes first.
const firstBytes = 16 << 10

// readFirst reads until the first bytes came. A body that fails before them has not begun.
func (s *start) readFirst() {
	buf := make([]byte, firstBytes)
	for range 100 { // of nothing, without an error
		n, err := s.body.Read(buf)
		if n > 0 || err == io.EOF {
			s.prefix, s.end = buf[:n], err
			return
		}
		if err != nil {
			s.err = err
			_ = s.body.Close() // it has failed already
			s.body = nil
			return
		}
	}
	s.end = io.ErrNoProgress
}

// hedgedBody is the body of the request that was faster. Not safe for concurrent use.
type hedgedBody struct{ *start }

func (b *hedgedBody) Read(p []byte) (int, error) {
	if len(b.prefix) > 0 {
		n := copy(p, b.prefix)
		b.prefix = b.prefix[n:]
		return n, nil
	}
	if b.end != nil {
		return 0, b.end
	}
	return b.body.Read(p)
}

// Close implements io.Closer.
func (b *hedgedBody) Close() error {
	err := b.body.Close()
	b.cancel()
	return err
}

// Reject implements namespace.Rejecter.
func (b *hedgedBody) Reject(err error) { namespace.Reject(b.body, err) }
