package fusefs

import (
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"

	"coppice.dev/coppice/namespace"
)

// errnos is the table from Kind to errno. What a reader can do nothing about is EIO: the log and
// `coppice status` say more.
var errnos = map[namespace.Kind]syscall.Errno{
	namespace.Internal:    syscall.EIO,
	namespace.NotExist:    syscall.EIO, // an object is missing, not a file
	namespace.Exist:       syscall.EIO,
	namespace.Corrupt:     syscall.EIO,
	namespace.Unavailable: syscall.EIO,
	namespace.Denied:      syscall.EACCES,
	namespace.Invalid:     syscall.EIO,
	namespace.Limit:       syscall.EIO,
	namespace.Stale:       syscall.EIO,
	namespace.Canceled:    syscall.EINTR,
}

func status(err error) fuse.Status {
	if err == nil {
		return fuse.OK
	}
	return fuse.Status(errnos[namespace.KindOf(err)])
}
