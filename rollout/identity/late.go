package identity

import (
	"errors"
	"io"
	"net/http"
	"time"
)

// lateAfter is how long an answer may take until it is asked once more who it is for: a follower's
// request waits for a minute, and in that time its certificate may be revoked.
const lateAfter = 10 * time.Millisecond

// lateWriter looks again, before an answer begins that took long, whether it may be given.
type lateWriter struct {
	http.ResponseWriter
	from   time.Time
	check  func() error
	refuse func(error)

	begun, refused bool
}

var errRefused = errors.New("who asked may not have the answer any more")

// Unwrap is for http.ResponseController.
func (l *lateWriter) Unwrap() http.ResponseWriter { return l.ResponseWriter }

// WriteHeader implements http.ResponseWriter.
func (l *lateWriter) WriteHeader(status int) {
	if l.begun {
		if !l.refused {
			l.ResponseWriter.WriteHeader(status)
		}
		return
	}
	l.begun = true
	if time.Since(l.from) > lateAfter {
		if err := l.check(); err != nil {
			l.refused = true
			clear(l.Header())
			l.refuse(err)
			return
		}
	}
	l.ResponseWriter.WriteHeader(status)
}

// Write implements io.Writer.
func (l *lateWriter) Write(p []byte) (int, error) {
	if l.begin(); l.refused {
		return 0, errRefused
	}
	return l.ResponseWriter.Write(p)
}

// ReadFrom implements io.ReaderFrom: the kernel copies a file by itself.
func (l *lateWriter) ReadFrom(r io.Reader) (int64, error) {
	if l.begin(); l.refused {
		return 0, errRefused
	}
	return io.Copy(l.ResponseWriter, r)
}

func (l *lateWriter) begin() {
	if !l.begun && time.Since(l.from) > lateAfter {
		l.WriteHeader(http.StatusOK)
	}
	l.begun = true
}
