package identity

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"net/http"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"coppice.dev/coppice/internal/disk"
	"coppice.dev/coppice/namespace"
)

// inode returns a file's inode number.
func inode(info fs.FileInfo) uint64 {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return st.Ino
	}
	return 0
}

// removeIfThere removes a file, if there is one.
func removeIfThere(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return disk.Error("remove", path, err)
	}
	return nil
}

type peerKey struct{}

// peer is who connected to a UNIX socket, as the kernel knows it.
type peer struct {
	uid uint32
	err error
}

// PeerContext is an http.Server's ConnContext for UNIX sockets: [RequirePeer] needs it.
func PeerContext(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, peerKey{}, peerOf(c))
}

func peerOf(c net.Conn) peer {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return peer{err: errors.New("not a UNIX socket")}
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return peer{err: err}
	}
	var cred *unix.Ucred
	if cerr := raw.Control(func(fd uintptr) {
		cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); cerr != nil || err != nil {
		return peer{err: errors.Join(cerr, err)}
	}
	return peer{uid: cred.Uid}
}

// RequirePeer lets through to next the processes of the user uid, and of root. Whoever could open the
// socket's file because its mode was loosened is refused.
func RequirePeer(uid int, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p, ok := r.Context().Value(peerKey{}).(peer)
		if !ok || p.err != nil || p.uid != 0 && int(p.uid) != uid {
			answerError(w, http.StatusForbidden, namespace.E(namespace.Denied, "ask", "daemon", errors.New("it serves its owner only")))
			return
		}
		next.ServeHTTP(w, r)
	})
}
