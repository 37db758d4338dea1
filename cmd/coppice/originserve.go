package main

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/spf13/cobra"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/origin"
	"coppice.dev/coppice/rollout/audit"
	"coppice.dev/coppice/rollout/identity"
)

// serveFlags are the flags of origin serve.
type serveFlags struct {
	listen, cert, key, require string
	tls, enrol, refresh        bool
	rate                       float64
}

func (a *app) originServe() *cobra.Command {
	var f serveFlags
	c := &cobra.Command{
		Use:   "serve DIR",
		Short: "Serve an origin over HTTP or HTTPS",
		Long: `Serves the origin in DIR, read-only. An origin is static files, so any web server can do this;
this one also tells followers of a new pointer within milliseconds, and has /healthz and /metrics.
Signatures protect the content, whoever serves it; TLS keeps to itself who reads what, and proves
who reads.

With --tls a key is made once, in the keys directory, and shown when the server starts; clients name
it with --tls-pin, or in the location as https+pin://sha256:…@HOST. With --tls-cert and --tls-key the
certificate is another authority's; both files are read again when they change. TLS 1.3 is spoken.

With --require only those are served who prove who they are: "endpoint" lets in endpoints, by the
certificate that they were enrolled with, and people with any token; "viewer" people only. /healthz
stays open. With --enrol endpoints with an invitation are enrolled here. Both need TLS, except on a
loopback address. Who is let in is in the directory "access" of the keys directory (see "coppice
access"), and so is the trail of who was let in and who was not, audit.log.

With --refresh it also signs the timestamp anew, four times in its life, with the online key in
--keys; else ` + "`origin refresh`" + ` does that from cron.

Every client is bounded: requests in a second, connections, size and time of headers, and the time
it takes to read an answer.`,
		Example: `  coppice origin serve /srv/origin --listen :8080
  coppice origin serve /srv/origin --listen :8443 --tls --require endpoint --enrol
  coppice origin serve /srv/origin --listen :443 --tls-cert /etc/tls/origin.crt --tls-key /etc/tls/origin.key
  coppice origin serve /srv/origin --refresh --keys /etc/coppice/online`,
		Args: exact(1),
		RunE: func(c *cobra.Command, args []string) error {
			return a.serveOrigin(c.Context(), args[0], f)
		},
	}
	fl := c.Flags()
	fl.StringVar(&f.listen, "listen", "127.0.0.1:8080", "`ADDR` to listen on; port 0 chooses one")
	fl.BoolVar(&f.tls, "tls", false, "serve HTTPS with a key of its own, for clients that pin it")
	fl.StringVar(&f.cert, "tls-cert", "", "serve HTTPS with the certificate (and chain) in `FILE`")
	fl.StringVar(&f.key, "tls-key", "", "the certificate's key is in `FILE`")
	fl.StringVar(&f.require, "require", "", "serve those only who prove that they are at least `ROLE`: endpoint or viewer")
	fl.BoolVar(&f.enrol, "enrol", false, "enrol endpoints that have an invitation, and renew their certificates")
	fl.BoolVar(&f.refresh, "refresh", false, "sign the timestamp anew before it expires")
	fl.Float64Var(&f.rate, "rate", 5000, "requests that a client may make in a second, `N`; 0 is no bound")
	return c
}

// check refuses flags that contradict each other.
func (f serveFlags) check() error {
	switch {
	case f.tls && f.cert != "":
		return usage("--tls makes a key, --tls-cert names one: choose")
	case (f.cert == "") != (f.key == ""):
		return usage("--tls-cert and --tls-key go together")
	case f.require != "" && f.require != string(identity.Endpoint) && f.require != string(identity.Viewer):
		return usage("--require wants endpoint or viewer, not %q", f.require)
	case f.rate < 0:
		return usage("--rate wants 0 or more")
	}
	secure := f.tls || f.cert != ""
	host, _, err := net.SplitHostPort(f.listen)
	if err != nil {
		return usage("--listen %s: want HOST:PORT", f.listen)
	}
	ip := net.ParseIP(host)
	if !secure && (f.enrol || f.require != "" && host != "localhost" && (ip == nil || !ip.IsLoopback())) {
		return namespace.WithHint(usage("--require and --enrol need TLS: secrets do not travel in the clear"), "add --tls, or --tls-cert and --tls-key")
	}
	return nil
}

func (a *app) serveOrigin(ctx context.Context, dir string, f serveFlags) error {
	if err := f.check(); err != nil {
		return err
	}
	if f.refresh {
		stop, err := a.keepFresh(ctx, dir)
		if err != nil {
			return err
		}
		defer stop()
	}
	o, err := origin.OpenDir(dir)
	if err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(a.stderr, nil))
	pair, err := a.serverKey(dir, f, log)
	if err != nil {
		return err
	}
	handler, done, err := a.originHandler(dir, o, f, log)
	if err != nil {
		return err
	}
	defer done()
	ln, err := net.Listen("tcp", f.listen)
	if err != nil {
		return namespace.E(namespace.Unavailable, "listen on", f.listen, err)
	}
	limits := identity.Limits{Rate: f.rate}
	if f.rate == 0 {
		limits.Rate = -1
	}
	scheme, address := "http", ln.Addr()
	ln = limits.Listener(ln)
	if pair != nil {
		scheme, ln = "https", tls.NewListener(ln, identity.ServerTLS(pair))
	}
	srv := identity.NewServer(handler, limits, log)
	srv.BaseContext = func(net.Listener) context.Context { return ctx }
	a.note("serving %s on %s://%s", dir, scheme, address)
	if f.tls {
		a.note("its key is %s: name it with --tls-pin, or as https+pin://%s@%s", pair.Pin(), pair.Pin(), address)
	}
	stop := context.AfterFunc(ctx, func() {
		grace, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_ = srv.Shutdown(grace)
	})
	defer stop()
	if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		return namespace.E(namespace.Internal, "serve", dir, err)
	}
	return nil
}

// serverKey returns the server's certificate and key, or nil for plain HTTP.
func (a *app) serverKey(dir string, f serveFlags, log *slog.Logger) (*identity.KeyPair, error) {
	if f.cert != "" {
		return identity.LoadKeyPair(f.cert, f.key, log)
	}
	if !f.tls {
		return nil, nil
	}
	hosts := []string{"localhost", "127.0.0.1", "::1"}
	if host, _, err := net.SplitHostPort(f.listen); err == nil && host != "" {
		hosts = append(hosts, host)
	}
	if name, err := os.Hostname(); err == nil {
		hosts = append(hosts, name)
	}
	return identity.SelfSigned(accessDir(a.keysDir(dir)), hosts, log)
}

// originHandler is what a server of the origin in dir answers with. done ends what it needs.
func (a *app) originHandler(dir string, o *origin.Dir, f serveFlags, log *slog.Logger) (h http.Handler, done func(), err error) {
	metrics := origin.NewMetrics()
	registry := prometheus.NewRegistry()
	registry.MustRegister(metrics)
	content := origin.NewHandler(o)
	figures := promhttp.HandlerFor(registry, promhttp.HandlerOpts{})
	mux := http.NewServeMux()
	mux.Handle("/healthz", content)
	if f.require == "" && !f.enrol {
		mux.Handle("/metrics", figures)
		mux.Handle("/", metrics.Handler(content))
		return mux, func() {}, nil
	}
	access, trail, err := openAccess(a.keysDir(dir))
	if err != nil {
		return nil, nil, err
	}
	guard := identity.NewGuard(access, log)
	if f.enrol {
		if err := access.MakeAuthority(); err != nil {
			return nil, nil, errors.Join(err, trail.Close())
		}
		mux.Handle(identity.HandlerPrefix, guard.EnrolHandler())
	}
	if f.require != "" {
		role := identity.Role(f.require)
		content, figures = guard.Require(role, content), guard.Require(identity.Viewer, figures)
	}
	mux.Handle("/metrics", figures)
	mux.Handle("/", metrics.Handler(content))
	return mux, func() { _ = trail.Close() }, nil // each entry was synced
}

// accessDir is where a keys directory keeps who may do what.
func accessDir(keys string) string { return filepath.Join(keys, "access") }

// trailName is the trail's file in the access directory.
const trailName = "audit.log"

// openAccess opens the access directory of a keys directory, and the trail that it writes.
func openAccess(keys string) (*identity.Access, *audit.Log, error) {
	dir := accessDir(keys)
	trail, err := audit.Open(filepath.Join(dir, trailName), audit.Options{})
	if err != nil {
		return nil, nil, err
	}
	access, err := identity.OpenAccess(dir, identity.AccessOptions{Recorder: trail})
	return access, trail, err
}
