package origin

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"mime"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"coppice.dev/coppice/namespace"
)

// ClientOptions tune a [Client]. The zero value is the default.
type ClientOptions struct {
	DialTimeout   time.Duration // of a connection and of its TLS handshake; 10 s
	HeaderTimeout time.Duration // from the request to the response's header; 30 s
	StallTimeout  time.Duration // without progress (dripBytes) while a body is read; 20 s
	// Wait is how long a WaitRef asks the server to hold an answer back; 50 s, at most 60 s.
	Wait time.Duration
	// Poll is the mean pause between two looks at a ref of a server that cannot wait; 30 s.
	Poll time.Duration
	// ConnsMax bounds the connections to the server; 32.
	ConnsMax int
	// TLS replaces the default configuration (system roots). It is not copied.
	TLS *tls.Config
	// Header is added to every request, for servers that want a token.
	Header http.Header
	// Authorize, if not nil, adds to each request the proof of who makes it. Its error ends the request,
	// with its Kind.
	Authorize func(*http.Request) error
	// Secure, if not nil, says for each location how its server is reached and proven, in place of TLS
	// and Authorize: several origins have a key each.
	Secure func(location string) (Secured, error)
	// UserAgent names the program; "coppice".
	UserAgent string
	// Proxies, if not nil, replace what the environment of this process says.
	Proxies *Proxies
}

// Secured is how the server of a location is reached.
type Secured struct {
	URL       string // http or https
	TLS       *tls.Config
	Authorize func(*http.Request) error
}

func (o ClientOptions) withDefaults() ClientOptions {
	setDefault(&o.DialTimeout, 10*time.Second)
	setDefault(&o.HeaderTimeout, 30*time.Second)
	setDefault(&o.StallTimeout, 20*time.Second)
	setDefault(&o.Wait, 50*time.Second)
	setDefault(&o.Poll, 30*time.Second)
	setDefault(&o.ConnsMax, 32)
	setDefault(&o.UserAgent, "coppice")
	o.Wait = min(o.Wait, waitMax)
	return o
}

func setDefault[T comparable](v *T, def T) {
	var zero T
	if *v == zero {
		*v = def
	}
}

// Client reads an origin from any HTTP server that shows its layout. It implements
// namespace.Source and RefWaiter, and Stat. It tries once: see [Retry]. Everything it reads is
// bounded. Safe for concurrent use.
type Client struct {
	base *url.URL
	opts ClientOptions

	mu     sync.Mutex
	conns  *connections
	remote netip.Addr
}

// connections are those that a client made since it was reset last.
type connections struct {
	http      *http.Client
	transport *http.Transport
	ctx       context.Context // ends with Reset, and what runs on them with it
	cancel    context.CancelCauseFunc
}

var (
	_ namespace.Source    = (*Client)(nil)
	_ namespace.RefWaiter = (*Client)(nil)
)

// keepAlive finds out within 15 seconds that nobody is at the other end any more: a follower's
// request may be silent for a minute, and a pulled cable says nothing.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: 5 * time.Second, Interval: 5 * time.Second, Count: 2}

// NewClient returns a client of the origin at an http or https URL, or at another location that
// ClientOptions.Secure knows. It does no I/O. Kinds: Invalid, and those of Secure.
func NewClient(base string, opts ClientOptions) (*Client, error) {
	if opts.Secure != nil {
		s, err := opts.Secure(base)
		if err != nil {
			return nil, err
		}
		base, opts.TLS, opts.Authorize = s.URL, s.TLS, s.Authorize
	}
	u, err := url.Parse(base)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, namespace.E(namespace.Invalid, "open origin", base, errors.Join(fmt.Errorf("want http://HOST/PATH or https://HOST/PATH"), err))
	}
	if u.RawQuery != "" || u.Fragment != "" {
		return nil, namespace.E(namespace.Invalid, "open origin", u.Redacted(), fmt.Errorf("a query or fragment has no meaning here"))
	}
	c := &Client{base: u, opts: opts.withDefaults()}
	c.conns = c.connect()
	return c, nil
}

// connect makes an empty pool of connections.
func (c *Client) connect() *connections {
	opts := c.opts
	proxies := EnvironmentProxies()
	if opts.Proxies != nil {
		proxies = *opts.Proxies
	}
	transport := &http.Transport{
		Proxy: proxies.choose(),
		// Dialer tries IPv4 300 ms after an IPv6 that does not answer (RFC 6555).
		DialContext:            (&net.Dialer{Timeout: opts.DialTimeout, KeepAliveConfig: keepAlive}).DialContext,
		TLSClientConfig:        opts.TLS,
		TLSHandshakeTimeout:    opts.DialTimeout,
		MaxConnsPerHost:        opts.ConnsMax,
		MaxIdleConns:           opts.ConnsMax,
		MaxIdleConnsPerHost:    opts.ConnsMax,
		IdleConnTimeout:        90 * time.Second,
		MaxResponseHeaderBytes: 64 << 10,
		DisableCompression:     true, // offsets address stored bytes
		ForceAttemptHTTP2:      true,
		ReadBufferSize:         64 << 10,
		HTTP2:                  &http.HTTP2Config{SendPingTimeout: 15 * time.Second, PingTimeout: 15 * time.Second},
	}
	conns := &connections{http: &http.Client{Transport: transport, CheckRedirect: checkRedirect}, transport: transport}
	conns.ctx, conns.cancel = context.WithCancelCause(context.Background())
	return conns
}

func (c *Client) current() *connections {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.conns
}

// Reset drops all connections, and breaks off what runs on them with Unavailable: the network is
// another one than when they were made, and they would only be waited for.
func (c *Client) Reset() {
	c.mu.Lock()
	old := c.conns
	c.conns = c.connect()
	c.mu.Unlock()
	old.cancel(errReset)
	old.transport.CloseIdleConnections()
}

// Remote returns the address that the newest connection went to, the origin's or a proxy's; not valid
// before there is one.
func (c *Client) Remote() netip.Addr {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.remote
}

// proxied reports whether requests go through a proxy, which is then what a network must lead to.
func (c *Client) proxied() bool {
	r := &http.Request{URL: c.base}
	u, err := c.current().transport.Proxy(r)
	return u != nil || err != nil
}

// noteRemote is told of the connection that a request got.
func (c *Client) noteRemote(info httptrace.GotConnInfo) {
	tcp, ok := info.Conn.RemoteAddr().(*net.TCPAddr)
	if !ok {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.remote = tcp.AddrPort().Addr().Unmap()
}

// errDirectory says that a server redirects to a directory, as static servers do: no such file.
var errDirectory = errors.New("the server has a directory there")

func checkRedirect(req *http.Request, via []*http.Request) error {
	switch first := via[0].URL; {
	case req.URL.Path == first.Path+"/" && req.URL.Hostname() == first.Hostname(): // whatever port it thinks it has
		return errDirectory
	case strings.HasSuffix(req.URL.Path, "/"): // no object and no ref is called so
		return fmt.Errorf("redirected to %s: a captive portal, or a proxy?", req.URL.Host)
	case len(via) > 5:
		return fmt.Errorf("%d redirects", len(via))
	case via[0].URL.Scheme == "https" && req.URL.Scheme != "https":
		return fmt.Errorf("redirected from https to %s", req.URL.Scheme)
	}
	return nil
}

// Close drops idle connections. Calls that are running go on.
func (c *Client) Close() error {
	c.current().transport.CloseIdleConnections()
	return nil
}

// URL returns the origin's URL without a password.
func (c *Client) URL() string { return c.base.Redacted() }

// Check fetches coppice.json, so that a wrong URL is told from an origin that lacks something.
// Kinds: NotExist, Invalid (a newer format), Corrupt (not an origin), and those of Get.
func (c *Client) Check(ctx context.Context) error {
	const op = "open origin"
	resp, err := c.do(ctx, request{op: op, subject: c.URL(), path: formatName, wait: c.opts.HeaderTimeout})
	if err != nil {
		return err
	}
	b, err := resp.readAll(formatLimit)
	if err != nil {
		return err
	}
	return checkMarker(op, c.URL(), b)
}

// Get implements namespace.Fetcher.
func (c *Client) Get(ctx context.Context, k namespace.Key, off, n int64) (io.ReadCloser, error) {
	const op = "get object"
	if off < 0 {
		return nil, namespace.E(namespace.Invalid, op, k.String(), fmt.Errorf("offset %d", off))
	}
	if n == 0 { // HTTP has no empty range
		size, err := c.Stat(ctx, k)
		if err == nil && off > 0 && off >= size && size >= 0 {
			err = namespace.E(namespace.Invalid, op, k.String(), fmt.Errorf("offset %d of %d bytes", off, size))
		}
		return http.NoBody, err
	}
	req := request{op: op, subject: k.String(), path: objectPath(k), wait: c.opts.HeaderTimeout}
	if off > 0 || n > 0 {
		req.rangeHeader = "bytes=" + strconv.FormatInt(off, 10) + "-"
		if n > 0 && n < 1<<62-off {
			req.rangeHeader += strconv.FormatInt(off+n-1, 10)
		}
	}
	resp, err := c.do(ctx, req)
	if err != nil {
		return nil, err
	}
	if err := resp.limit(k, off, n); err != nil {
		return nil, closing(err, resp)
	}
	return resp, nil
}

// Stat returns the stored size in bytes, or -1 if the server does not say.
// Kinds: NotExist, Unavailable, Denied, Invalid, Canceled.
func (c *Client) Stat(ctx context.Context, k namespace.Key) (int64, error) {
	resp, err := c.do(ctx, request{op: "stat object", subject: k.String(), path: objectPath(k), head: true,
		wait: c.opts.HeaderTimeout})
	if err != nil {
		return 0, err
	}
	return resp.http.ContentLength, resp.Close()
}

// Ref implements namespace.RefReader.
func (c *Client) Ref(ctx context.Context, n namespace.RefName) ([]byte, error) {
	if err := n.Check(); err != nil {
		return nil, err
	}
	resp, err := c.do(ctx, request{op: "read ref", subject: n.String(), path: refPath(n), wait: c.opts.HeaderTimeout})
	if err != nil {
		return nil, err
	}
	return resp.readAll(namespace.RefBytesMax)
}

// Refs implements namespace.RefReader.
func (c *Client) Refs(ctx context.Context, kind string) ([]string, error) {
	const op = "list refs"
	if err := checkKind(kind); err != nil {
		return nil, err
	}
	resp, err := c.do(ctx, request{op: op, subject: kind, path: refIndexPath(kind), wait: c.opts.HeaderTimeout})
	if namespace.IsKind(err, namespace.NotExist) {
		return nil, nil // no ref of that kind was ever written
	}
	if err != nil {
		return nil, err
	}
	b, err := resp.readAll(indexLimit)
	if err != nil {
		return nil, err
	}
	var index refIndex
	if err := json.Unmarshal(b, &index); err != nil || index.Format != format {
		return nil, namespace.E(namespace.Unavailable, op, kind, fmt.Errorf("%s does not parse", indexName))
	}
	for _, name := range index.Names {
		if err := namespace.CheckName(name); err != nil {
			return nil, namespace.E(namespace.Unavailable, op, kind, err)
		}
	}
	slices.Sort(index.Names)
	return slices.Compact(index.Names), nil
}

// WaitRef implements namespace.RefWaiter: the server waits if it can; if not, this is one look, a
// pause of about ClientOptions.Poll, and another look.
func (c *Client) WaitRef(ctx context.Context, n namespace.RefName, have []byte) ([]byte, error) {
	if err := n.Check(); err != nil {
		return nil, err
	}
	got, waited, err := c.lookRef(ctx, n, have)
	if err != nil || waited || string(got) != string(have) {
		return got, err
	}
	pause := c.opts.Poll/2 + rand.N(c.opts.Poll)
	if err := sleep(ctx, pause); err != nil {
		return have, contextError(ctx, "wait for ref", n.String())
	}
	got, _, err = c.lookRef(ctx, n, have)
	return got, err
}

// lookRef asks once; waited says that the server honoured the wish to wait.
func (c *Client) lookRef(ctx context.Context, n namespace.RefName, have []byte) (got []byte, waited bool, err error) {
	req := request{op: "wait for ref", subject: n.String(), path: refPath(n), prefer: c.opts.Wait}
	req.wait = c.opts.Wait + c.opts.HeaderTimeout
	if have != nil {
		req.noneMatch = contentTag(have)
	}
	resp, err := c.do(ctx, req)
	if resp != nil {
		waited = resp.http.Header.Get("Preference-Applied") != ""
	}
	if have == nil && namespace.IsKind(err, namespace.NotExist) {
		return nil, waited, nil
	}
	if err != nil {
		return nil, waited, err
	}
	if resp.http.StatusCode == http.StatusNotModified {
		return have, waited, resp.Close()
	}
	got, err = resp.readAll(namespace.RefBytesMax)
	return got, waited, err
}

// request is one GET or HEAD.
type request struct {
	op, subject, path string
	head              bool
	rangeHeader       string
	noneMatch         string
	prefer            time.Duration // 0: no wish to wait
	wait              time.Duration // for the response's header
}

// do sends req. On an error that the server itself gave, the (closed) response comes with it.
func (c *Client) do(ctx context.Context, req request) (*response, error) {
	if err := contextError(ctx, req.op, req.subject); err != nil {
		return nil, err
	}
	conns := c.current()
	inner, cancel := context.WithCancelCause(ctx)
	resp := &response{op: req.op, subject: req.subject, outer: ctx, inner: inner, cancel: cancel, stall: c.opts.StallTimeout}
	resp.timer = time.AfterFunc(req.wait, func() { cancel(errSlow) })
	resp.keep = context.AfterFunc(conns.ctx, func() { cancel(errReset) })
	hr, err := c.newRequest(httptrace.WithClientTrace(inner, &httptrace.ClientTrace{GotConn: c.noteRemote}), req)
	if err == nil && c.opts.Authorize != nil {
		if denied := c.opts.Authorize(hr); denied != nil {
			resp.timer.Stop()
			resp.keep()
			cancel(nil)
			return nil, namespace.E(namespace.KindOf(denied), req.op, req.subject, denied)
		}
	}
	if err == nil {
		resp.http, err = conns.http.Do(hr)
	}
	resp.timer.Stop()
	if err != nil {
		err = resp.error(err)
		cancel(nil)
		resp.keep()
		if errors.Is(err, errDirectory) {
			return nil, namespace.E(namespace.NotExist, req.op, req.subject, errDirectory)
		}
		return nil, err
	}
	if err := resp.check(req); err != nil {
		return resp, closing(err, resp)
	}
	return resp, nil
}

func (c *Client) newRequest(ctx context.Context, req request) (*http.Request, error) {
	method := http.MethodGet
	if req.head {
		method = http.MethodHead
	}
	hr, err := http.NewRequestWithContext(ctx, method, c.base.JoinPath(req.path).String(), nil)
	if err != nil {
		return nil, err
	}
	for name, values := range c.opts.Header {
		hr.Header[http.CanonicalHeaderKey(name)] = values
	}
	hr.Header.Set("User-Agent", c.opts.UserAgent)
	for name, value := range map[string]string{"Range": req.rangeHeader, "If-None-Match": req.noneMatch} {
		if value != "" {
			hr.Header.Set(name, value)
		}
	}
	if req.prefer > 0 {
		hr.Header.Set("Prefer", "wait="+strconv.Itoa(int(req.prefer/time.Second)))
	}
	return hr, nil
}

// isPage reports whether a response is a web page, which no origin serves: a captive portal, a
// proxy's complaint, or a wrong URL.
func isPage(h http.Header) bool {
	t, _, err := mime.ParseMediaType(h.Get("Content-Type"))
	return err == nil && t == "text/html"
}
