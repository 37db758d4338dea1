package origin

import (
	"net/http"

	"coppice.dev/coppice/namespace"
)

// kindHeader carries an error's Kind across the wire, so that no text is ever matched.
const kindHeader = "Coppice-Kind"

// statusCanceled is what nginx logs for a client that went away; nobody reads it.
const statusCanceled = 499

// HTTPStatus is the status that says k to an HTTP client. Together with the header Coppice-Kind
// it is lossless.
func HTTPStatus(k namespace.Kind) int {
	switch k {
	case namespace.NotExist:
		return http.StatusNotFound
	case namespace.Exist:
		return http.StatusConflict
	case namespace.Corrupt:
		return http.StatusBadGateway
	case namespace.Unavailable:
		return http.StatusServiceUnavailable
	case namespace.Denied:
		return http.StatusForbidden
	case namespace.Invalid:
		return http.StatusBadRequest
	case namespace.Limit:
		return http.StatusInsufficientStorage
	case namespace.Stale:
		return http.StatusPreconditionFailed
	case namespace.Canceled:
		return statusCanceled
	}
	return http.StatusInternalServerError
}

// StatusKind is the Kind of a failed response: the header's, or, from a server that is not ours,
// what its status is best read as.
func StatusKind(status int, h http.Header) namespace.Kind {
	if s := h.Get(kindHeader); s != "" {
		return namespace.ParseKind(s)
	}
	switch status {
	case http.StatusNotFound, http.StatusGone:
		return namespace.NotExist
	case http.StatusConflict:
		return namespace.Exist
	case http.StatusUnauthorized, http.StatusPaymentRequired, http.StatusForbidden,
		http.StatusProxyAuthRequired, http.StatusUnavailableForLegalReasons:
		return namespace.Denied
	case http.StatusRequestEntityTooLarge, http.StatusInsufficientStorage:
		return namespace.Limit
	case http.StatusPreconditionFailed:
		return namespace.Stale
	case http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusTooEarly, http.StatusMisdirectedRequest:
		return namespace.Unavailable
	}
	if status >= 400 && status < 500 {
		return namespace.Invalid
	}
	// 5xx, and what should not be an answer at all: a proxy or a portal in between.
	return namespace.Unavailable
}

// Retryable reports whether the same request may succeed if it is only sent again.
func Retryable(k namespace.Kind) bool {
	switch k {
	case namespace.Unavailable:
		return true
	case namespace.Internal, namespace.NotExist, namespace.Exist, namespace.Corrupt, namespace.Denied,
		namespace.Invalid, namespace.Limit, namespace.Stale, namespace.Canceled:
		return false
	}
	return false
}
