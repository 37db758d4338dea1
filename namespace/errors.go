package namespace

import (
	"context"
	"errors"
	"io/fs"
	"strings"
)

// Kind classifies an error by what the receiver can do about it. The set is closed and its
// numbers never change: a Kind crosses the wire. Four tables translate it, each tested to be
// exhaustive: errno (fusefs), exit code (cmd/coppice), HTTP status and retry (origin).
type Kind uint8

// The kinds.
const (
	Internal    Kind = iota // a defect of ours; the zero Kind, so that a forgotten one is seen
	NotExist                // the thing named is not there
	Exist                   // it is there already, or a compare-and-swap lost
	Corrupt                 // bytes do not match their digest, checksum or format
	Unavailable             // nobody can answer now; trying later may help
	Denied                  // a signature, a permission or a policy says no
	Invalid                 // the request itself is wrong
	Limit                   // a bound was reached: size, depth, quota, disk
	Stale                   // older than what was seen before; a rollback attack looks like this
	Canceled                // the caller gave up
	kindCount
)

var kindNames = [kindCount]string{
	"internal", "not-exist", "exist", "corrupt", "unavailable",
	"denied", "invalid", "limit", "stale", "canceled",
}

// Kinds lists every Kind, for tests of exhaustiveness.
func Kinds() []Kind {
	all := make([]Kind, kindCount)
	for i := range all {
		all[i] = Kind(i)
	}
	return all
}

// String returns the stable name, which is also its form on the wire.
func (k Kind) String() string {
	if k < kindCount {
		return kindNames[k]
	}
	return kindNames[Internal]
}

// ParseKind is the inverse of String; unknown names are Internal.
func ParseKind(s string) Kind {
	for i, n := range kindNames {
		if n == s {
			return Kind(i)
		}
	}
	return Internal
}

// Error is the one error type that crosses package borders. Op says what was tried, Subject
// what it was tried on (a path, a digest, a ref), Err why it failed. Hint, if any, is the
// next step for a person.
type Error struct {
	Kind    Kind
	Op      string
	Subject string
	Hint    string
	Err     error
}

// E returns an *Error. err may be nil; then the Kind's name is the reason.
func E(kind Kind, op, subject string, err error) error {
	return &Error{Kind: kind, Op: op, Subject: subject, Err: err}
}

// WithHint returns err with a next step for a person attached.
func WithHint(err error, hint string) error {
	if err == nil {
		return nil
	}
	return &Error{Kind: KindOf(err), Hint: hint, Err: err}
}

// Error implements error: "op subject: why".
func (e *Error) Error() string {
	var parts []string
	if head := strings.TrimSpace(e.Op + " " + e.Subject); head != "" {
		parts = append(parts, head)
	}
	if e.Err != nil {
		parts = append(parts, e.Err.Error())
	} else {
		parts = append(parts, e.Kind.String())
	}
	return strings.Join(parts, ": ")
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// KindOf returns the outermost Kind in err's chain. Errors of the standard library that have
// an obvious Kind get it; anything else is Internal. KindOf(nil) is Internal: do not ask.
func KindOf(err error) Kind {
	var e *Error
	switch {
	case errors.As(err, &e):
		return e.Kind
	case errors.Is(err, context.Canceled):
		return Canceled
	case errors.Is(err, context.DeadlineExceeded):
		return Unavailable
	case errors.Is(err, fs.ErrNotExist):
		return NotExist
	case errors.Is(err, fs.ErrExist):
		return Exist
	case errors.Is(err, fs.ErrPermission):
		return Denied
	}
	return Internal
}

// IsKind reports whether err is an error of Kind k.
func IsKind(err error, k Kind) bool { return err != nil && KindOf(err) == k }

// HintOf returns the innermost hint in err's tree, the first of several joined errors', or "".
func HintOf(err error) string {
	switch e := err.(type) {
	case nil:
		return ""
	case *Error:
		if inner := HintOf(e.Err); inner != "" {
			return inner
		}
		return e.Hint
	case interface{ Unwrap() []error }:
		for _, one := range e.Unwrap() {
			if hint := HintOf(one); hint != "" {
				return hint
			}
		}
		return ""
	}
	return HintOf(errors.Unwrap(err))
}
