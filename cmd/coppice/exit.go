package main

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"coppice.dev/coppice/internal/sandbox"
	"coppice.dev/coppice/namespace"
)

// Exit codes: part of the command line's contract, listed in the help of the root command.
const (
	exitOK          = 0
	exitFailed      = 1
	exitPartial     = 3 // done, but with differences or warnings the caller asked to know of
	exitNotFound    = 10
	exitCorrupt     = 11
	exitUnavailable = 12
	exitStale       = 13
	exitDenied      = 14
	exitExists      = 15
	exitLimit       = 16
	exitUsage       = 64
	exitInterrupted = 130
)

const exitHelp = `Exit status:
  0    success
  1    failure not listed below
  3    the comparison or check found differences
  10   the thing named does not exist
  11   data does not match its digest or format
  12   the origin, or what is needed, cannot be reached now
  13   older than what was seen before: refused
  14   a signature, a permission or a policy says no
  15   it exists already, or another writer was faster
  16   a limit was reached: disk, quota, size
  64   wrong usage
  130  interrupted`

// exitCodes is the table from Kind to exit code.
var exitCodes = map[namespace.Kind]int{
	namespace.Internal:    exitFailed,
	namespace.NotExist:    exitNotFound,
	namespace.Exist:       exitExists,
	namespace.Corrupt:     exitCorrupt,
	namespace.Unavailable: exitUnavailable,
	namespace.Denied:      exitDenied,
	namespace.Invalid:     exitUsage,
	namespace.Limit:       exitLimit,
	namespace.Stale:       exitStale,
	namespace.Canceled:    exitInterrupted,
}

// errDiffers says that a comparison worked and found differences. It prints nothing.
var errDiffers = errors.New("differences were found")

// exitCode ends this process with the code of another, which has said why.
type exitCode int

// Error implements error.
func (e exitCode) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// report prints err as a person wants it (what, where, what next) and returns the exit code.
func report(w io.Writer, err error) int {
	var said exitCode
	var failed *sandbox.ExitError
	switch {
	case err == nil:
		return exitOK
	case errors.Is(err, errDiffers):
		return exitPartial
	case errors.As(err, &said):
		return int(said)
	}
	fmt.Fprintln(w, "coppice: "+strings.TrimSpace(err.Error()))
	if hint := namespace.HintOf(err); hint != "" {
		fmt.Fprintln(w, "  "+hint)
	}
	if errors.As(err, &failed) {
		return failed.Code
	}
	return exitCodes[namespace.KindOf(err)]
}

func usage(format string, args ...any) error {
	return namespace.E(namespace.Invalid, "", "", fmt.Errorf(format, args...))
}
