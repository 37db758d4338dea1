package identity

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"coppice.dev/coppice/namespace"
)

// Guard lets requests through to those who may make them.
type Guard struct {
	access *Access
	log    *slog.Logger

	denials, allDenials *Rate // that get into the trail and the log: of a client, and of all
	suppressed          atomic.Int64
}

// Denials that are recorded: a person's mistakes are, of a flood a part is, and the rest is counted.
// Each costs a few writes to the disk.
const (
	denialsPerSecond    = 0.2
	denialsBurst        = 10
	allDenialsPerSecond = 5
	allDenialsBurst     = 100
)

// NewGuard returns a guard that asks access who is who. log may be nil.
func NewGuard(access *Access, log *slog.Logger) *Guard {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Guard{access: access, log: log, denials: NewRate(denialsPerSecond, denialsBurst),
		allDenials: NewRate(allDenialsPerSecond, allDenialsBurst)}
}

// Require lets through to next who has, or has more than, the role need: an endpoint by its
// certificate, a person by a token. Others get 401 (who are you?) or 403 (not you), with a reason, and
// an entry in the trail. next finds out who it is with [FromContext].
func (g *Guard) Require(need Role, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p, err := g.identify(r)
		status := http.StatusUnauthorized
		if err == nil && !p.Role.Allows(need) {
			status = http.StatusForbidden
			err = namespace.E(namespace.Denied, "serve", r.URL.Path, fmt.Errorf("it wants the role %s, %s has %s", need, p.Name, p.Role))
		}
		if err != nil {
			g.deny(w, r, status, p, err)
			return
		}
		late := &lateWriter{ResponseWriter: w, from: time.Now(),
			check:  func() error { _, err := g.identify(r); return err },
			refuse: func(err error) { g.deny(w, r, http.StatusUnauthorized, p, err) }}
		next.ServeHTTP(late, r.WithContext(context.WithValue(r.Context(), principalKey{}, p)))
	})
}

// errAnonymous says that a request proves nothing.
var errAnonymous = errors.New("this server wants to know who asks")

// identify finds out who makes a request. Two proofs at once are refused: it would not be clear whose
// rights count.
func (g *Guard) identify(r *http.Request) (Principal, error) {
	headers := r.Header.Values("Authorization")
	cert := r.TLS != nil && len(r.TLS.PeerCertificates) > 0
	switch {
	case len(headers) > 1 || len(headers) == 1 && cert:
		return Principal{}, namespace.E(namespace.Denied, "authenticate", "request", errors.New("it has more than one proof of who makes it"))
	case cert:
		return g.verify(r, r.TLS.PeerCertificates[0])
	case len(headers) == 1:
		scheme, token, _ := strings.Cut(headers[0], " ")
		if !strings.EqualFold(scheme, "Bearer") {
			return Principal{}, namespace.E(namespace.Denied, "authenticate", "request", errors.New("only bearer tokens are known here"))
		}
		if r.TLS == nil && !fromLoopback(r) {
			return Principal{}, namespace.WithHint(namespace.E(namespace.Denied, "authenticate", "token", errors.New("it came in the clear")),
				"everybody on the way may have it now: revoke it, and use https")
		}
		return g.access.Authenticate(token)
	}
	return Principal{}, namespace.WithHint(namespace.E(namespace.Denied, "authenticate", "request", errAnonymous),
		"prove it with --token-file or --client-cert")
}

func fromLoopback(r *http.Request) bool {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	return err == nil && isLoopback(host)
}

// deny answers and records.
func (g *Guard) deny(w http.ResponseWriter, r *http.Request, status int, p Principal, err error) {
	if !namespace.IsKind(err, namespace.Denied) {
		g.log.Error("identity not verified", "error", err)
		status, err = http.StatusInternalServerError, namespace.E(namespace.Internal, "authenticate", "request", errors.New("the server cannot tell now"))
	}
	client := clientOf(r.RemoteAddr)
	if errors.Is(err, errAnonymous) || status == http.StatusInternalServerError {
		g.suppressed.Add(1)
	} else if g.denials.Allow(client) && g.allDenials.Allow("all") {
		g.log.Info("denied", "client", client, "path", r.URL.Path, "who", p.Name, "error", err)
		detail := map[string]string{"client": client, "reason": clean(err.Error())}
		if n := g.suppressed.Swap(0); n > 0 {
			detail["not_recorded"] = fmt.Sprint(n)
		}
		if err := g.access.record.Record(nameOr(p, "anonymous"), "access", clean(r.Method+" "+r.URL.Path), Denial, detail); err != nil {
			g.log.Error("denial not recorded", "error", err)
		}
	} else {
		g.suppressed.Add(1)
	}
	if status == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", `Bearer realm="coppice"`)
	}
	answerError(w, status, err)
}

func nameOr(p Principal, other string) string {
	if p.Name == "" {
		return other
	}
	return p.String()
}

// cleanMax bounds what a stranger may write into the trail.
const cleanMax = 200

// clean makes a stranger's text fit for the trail.
func clean(s string) string {
	if len(s) > cleanMax {
		s = s[:cleanMax] + "…"
	}
	return strings.ToValidUTF8(s, "?")
}

// verified is what a connection's certificate has proven: looked at once, for all its requests.
type verified struct {
	once      sync.Once
	principal Principal
	err       error
	id        string
	enrolment uint64
}

type connKey struct{}

// withConn gives a connection's context a place for it.
func withConn(ctx context.Context) context.Context {
	return context.WithValue(ctx, connKey{}, &verified{})
}

// verify says whose certificate leaf is. Its signature is checked once a connection, whether it is
// still good at each request.
func (g *Guard) verify(r *http.Request, leaf *x509.Certificate) (Principal, error) {
	v, ok := r.Context().Value(connKey{}).(*verified)
	if !ok {
		return g.access.VerifyCertificate(leaf)
	}
	v.once.Do(func() {
		if v.principal, v.err = g.access.VerifyCertificate(leaf); v.err == nil {
			v.id, v.enrolment, v.err = parseIdentityURL(leaf.URIs[0])
		}
	})
	if v.err != nil {
		return v.principal, v.err
	}
	return v.principal, g.access.stillGood(v.id, v.enrolment, leaf)
}
