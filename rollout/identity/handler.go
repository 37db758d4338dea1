package identity

import (
	"errors"
	"io"
	"net/http"

	"coppice.dev/coppice/namespace"
)

// The paths of [Guard.EnrolHandler].
const (
	enrolPath = "/identity/v1/enrol"
	renewPath = "/identity/v1/renew"
	// HandlerPrefix is what all of them begin with.
	HandlerPrefix = "/identity/v1/"
)

// enrolRequest is the body of POST /identity/v1/enrol.
type enrolRequest struct {
	Invitation string `json:"invitation"`
	ID         string `json:"id"`
	Request    string `json:"request"` // PKCS #10, PEM
}

// renewRequest is the body of POST /identity/v1/renew, sent with the certificate to renew.
type renewRequest struct {
	Request string `json:"request"`
}

const (
	// requestBytesMax bounds a body: a signing request has under 1 KiB.
	requestBytesMax = 16 << 10
	// Enrolments that one client may try: a hall of machines behind one address, not a search.
	enrolsPerSecond = 5
	enrolsBurst     = 100
)

// EnrolHandler serves enrolment and renewal below [HandlerPrefix], over TLS only:
//
//	POST /identity/v1/enrol  {"invitation": …, "id": …, "request": PEM}  anybody with an invitation
//	POST /identity/v1/renew  {"request": PEM}                             an endpoint, by its certificate
//
// Both answer with an [Issued], or with {"kind", "message", "hint"}. Requests are those of [DecodeJSON].
func (g *Guard) EnrolHandler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("POST "+enrolPath, g.overTLS(Body(requestBytesMax, http.HandlerFunc(g.enrol))))
	mux.Handle("POST "+renewPath, g.overTLS(g.Require(Endpoint, Body(requestBytesMax, http.HandlerFunc(g.renew)))))
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		answerError(w, http.StatusNotFound, namespace.E(namespace.NotExist, "serve", clean(r.URL.Path), nil))
	})
	return NewRate(enrolsPerSecond, enrolsBurst).Handler(mux)
}

func (g *Guard) overTLS(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.TLS == nil {
			answerError(w, http.StatusForbidden, namespace.WithHint(namespace.E(namespace.Denied, "serve", r.URL.Path, errors.New("secrets do not travel in the clear")), "use https"))
			return
		}
		next.ServeHTTP(w, r)
	})
}

func (g *Guard) enrol(w http.ResponseWriter, r *http.Request) {
	var req enrolRequest
	if !decodeBody(w, r, &req) {
		return
	}
	issued, err := g.access.Enrol(req.Invitation, req.ID, []byte(req.Request))
	g.answer(w, r, issued, err, clean(req.ID))
}

func (g *Guard) renew(w http.ResponseWriter, r *http.Request) {
	var req renewRequest
	if !decodeBody(w, r, &req) {
		return
	}
	p, _ := FromContext(r.Context())
	if p.Via != "certificate" { // people may do what endpoints may, but they have nothing to renew
		answerError(w, http.StatusForbidden, namespace.E(namespace.Denied, "renew", p.Name, errors.New("only an endpoint's certificate is renewed")))
		return
	}
	issued, err := g.access.Renew(p, r.TLS.PeerCertificates[0], []byte(req.Request))
	g.answer(w, r, issued, err, p.Name)
}

// decodeBody decodes a body that [Body] has read.
func decodeBody(w http.ResponseWriter, r *http.Request, v any) bool {
	b, err := io.ReadAll(r.Body)
	if err == nil {
		err = DecodeJSON(b, requestBytesMax, r.URL.Path, v)
	}
	if err != nil {
		answerError(w, statusOf(namespace.KindOf(err)), err)
	}
	return err == nil
}

// answer answers with what was issued, or why not.
func (g *Guard) answer(w http.ResponseWriter, r *http.Request, issued Issued, err error, who string) {
	kind := namespace.KindOf(err)
	switch {
	case err == nil:
		g.log.Info("certificate issued", "endpoint", issued.ID, "path", r.URL.Path, "not_after", issued.NotAfter)
		answerJSON(w, http.StatusOK, issued)
	case kind == namespace.Denied || kind == namespace.Exist:
		g.deny(w, r, statusOf(kind), Principal{Name: who, Role: Endpoint}, namespace.WithHint(namespace.E(namespace.Denied, "", "", err), namespace.HintOf(err)))
	case kind == namespace.Invalid || kind == namespace.NotExist:
		answerError(w, statusOf(kind), err)
	default: // of this machine: it may name files
		g.log.Error("certificate not issued", "who", who, "error", err)
		answerError(w, statusOf(kind), namespace.E(kind, "serve", r.URL.Path, errors.New("the server failed; its log says why")))
	}
}

// statusOf is the HTTP status of an error of these handlers.
func statusOf(k namespace.Kind) int {
	switch k {
	case namespace.Denied:
		return http.StatusForbidden
	case namespace.Exist:
		return http.StatusConflict
	case namespace.Invalid:
		return http.StatusBadRequest
	case namespace.NotExist:
		return http.StatusNotFound
	case namespace.Limit:
		return http.StatusInsufficientStorage
	case namespace.Unavailable:
		return http.StatusServiceUnavailable
	}
	return http.StatusInternalServerError
}
