package identity

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"
)

// Limits bound what clients may take from a server. The zero value is the default, with the figures
// below; a negative rate or number means none.
type Limits struct {
	HeaderBytes   int           // of a request; 16 KiB: ours have under one, browsers' cookies a few
	HeaderTimeout time.Duration // for a TLS handshake, and for a request's header; 10 s
	BodyTimeout   time.Duration // for a request's body; 30 s
	IdleTimeout   time.Duration // between two requests; 2 min, more than a follower's pause
	StallTimeout  time.Duration // for a client to take the next 256 KiB of an answer; 60 s: 4 KiB/s
	Conns         int           // of all clients; 16384, half of the usual limit of descriptors
	ClientConns   int           // of one client; 1024: an office behind one address
	Rate          float64       // requests of one client in a second; 5000: a LAN at its best
	Burst         int           // that may come at once; twice the rate
}

func (l Limits) withDefaults() Limits {
	setDefault(&l.HeaderBytes, 16<<10)
	setDefault(&l.HeaderTimeout, 10*time.Second)
	setDefault(&l.BodyTimeout, 30*time.Second)
	setDefault(&l.IdleTimeout, 2*time.Minute)
	setDefault(&l.StallTimeout, time.Minute)
	setDefault(&l.Conns, 16<<10)
	setDefault(&l.ClientConns, 1<<10)
	setDefault(&l.Rate, 5000)
	setDefault(&l.Burst, int(2*l.Rate))
	return l
}

func setDefault[T comparable](v *T, def T) {
	var zero T
	if *v == zero {
		*v = def
	}
}

// NewServer returns a server of h within the limits: slow, endless and oversized headers end the
// connection, each client's requests are counted, and bodies are those that h's handlers allow with
// [Body]. It speaks HTTP/1.1 only. Serve it on a listener of [Limits.Listener]. log may be nil.
func NewServer(h http.Handler, l Limits, log *slog.Logger) *http.Server {
	l = l.withDefaults()
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	if l.Rate > 0 {
		h = NewRate(l.Rate, l.Burst).Handler(h)
	}
	return &http.Server{
		Handler:           boundBody(h, l.BodyTimeout),
		ReadHeaderTimeout: l.HeaderTimeout,
		IdleTimeout:       l.IdleTimeout,
		MaxHeaderBytes:    l.HeaderBytes,
		Protocols:         &protocols,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug), // of clients' mistakes
		ConnContext:       func(ctx context.Context, _ net.Conn) context.Context { return withConn(ctx) },
	}
}

// Listener bounds the connections that ln accepts: those of all clients and of each, and how long an
// answer may stall. One too many is closed at once, so that the others are served.
func (l Limits) Listener(ln net.Listener) net.Listener {
	l = l.withDefaults()
	return &boundListener{Listener: ln, limits: l, clients: map[string]int{}}
}

type boundListener struct {
	net.Listener
	limits Limits

	mu      sync.Mutex
	all     int
	clients map[string]int // connections of each client that has one
}

// Accept implements net.Listener.
func (b *boundListener) Accept() (net.Conn, error) {
	for {
		c, err := b.Listener.Accept()
		if err != nil {
			return nil, err
		}
		client := clientOf(c.RemoteAddr().String())
		if b.enter(client) {
			return &boundConn{Conn: c, stall: b.limits.StallTimeout, leave: func() { b.leave(client) }}, nil
		}
		_ = c.Close() // nothing was said yet
	}
}

func (b *boundListener) enter(client string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.limits.Conns > 0 && b.all >= b.limits.Conns || b.limits.ClientConns > 0 && b.clients[client] >= b.limits.ClientConns {
		return false
	}
	b.all++
	b.clients[client]++
	return true
}

func (b *boundListener) leave(client string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.all--
	if b.clients[client]--; b.clients[client] == 0 {
		delete(b.clients, client)
	}
}

// stallBytes is how much is written under one deadline.
const stallBytes = 256 << 10

// boundConn ends a connection whose client does not take what it asked for. A deadline that the
// server sets itself wins.
type boundConn struct {
	net.Conn
	stall time.Duration
	once  sync.Once
	leave func()

	mu    sync.Mutex
	fixed bool // somebody above has set a deadline
}

// Write implements io.Writer.
func (c *boundConn) Write(p []byte) (n int, err error) {
	for {
		part := p[n:min(len(p), n+stallBytes)]
		c.extend()
		m, err := c.Conn.Write(part)
		n += m
		if err != nil || n == len(p) {
			return n, err
		}
	}
}

// ReadFrom implements io.ReaderFrom: the kernel copies a file by itself, piece by piece.
func (c *boundConn) ReadFrom(r io.Reader) (n int64, err error) {
	to, ok := c.Conn.(io.ReaderFrom)
	if !ok {
		return io.Copy(struct{ io.Writer }{c}, r)
	}
	limited, bounded := r.(*io.LimitedReader) // what net/http passes; nested, the kernel would not copy
	for {
		want := int64(stallBytes)
		piece := &io.LimitedReader{R: r, N: want}
		if bounded {
			if want = min(want, limited.N); want == 0 {
				return n, nil
			}
			piece = &io.LimitedReader{R: limited.R, N: want}
		}
		c.extend()
		m, err := to.ReadFrom(piece)
		n += m
		if bounded {
			limited.N -= m
		}
		if err != nil || m < want {
			return n, err
		}
	}
}

func (c *boundConn) extend() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.fixed {
		_ = c.Conn.SetWriteDeadline(time.Now().Add(c.stall)) // one that cannot be set fails the write
	}
}

// SetWriteDeadline implements net.Conn.
func (c *boundConn) SetWriteDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fixed = !t.IsZero()
	return c.Conn.SetWriteDeadline(t)
}

// SetDeadline implements net.Conn.
func (c *boundConn) SetDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fixed = !t.IsZero()
	return c.Conn.SetDeadline(t)
}

// CloseWrite shuts down the writing half, as net/http does before it closes on a bad request.
func (c *boundConn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}

// Close implements io.Closer.
func (c *boundConn) Close() error {
	c.once.Do(c.leave)
	return c.Conn.Close()
}

// clientOf returns what counts as one client of a remote address HOST:PORT: an IPv4 address, or the
// first 64 bits of an IPv6 one, since whoever has one of these has all of them.
func clientOf(remote string) string {
	ap, err := netip.ParseAddrPort(remote)
	if err != nil {
		return remote // a UNIX socket's peer
	}
	addr := ap.Addr().Unmap().WithZone("")
	if addr.Is6() {
		if p, err := addr.Prefix(64); err == nil {
			return p.String()
		}
	}
	return addr.String()
}
