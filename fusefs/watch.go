package fusefs

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// watch ends the server when somebody else unmounts Dir. The kernel does not tell: the superblock
// lives on, since we hold it. It does tell that the table of mounts changed.
func (s *Server) watch() {
	// Not os.Open: Go's own poller would be told of the changes in our place.
	table, err := unix.Open("/proc/self/mountinfo", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		s.o.Logger.Warn("an unmount by others will not be noticed", "error", err)
		return
	}
	defer unix.Close(table)
	stop, wake, err := os.Pipe()
	if err != nil {
		s.o.Logger.Warn("an unmount by others will not be noticed", "error", err)
		return
	}
	defer stop.Close()
	s.work.Go(func() { <-s.stop; wake.Close() })
	fds := []unix.PollFd{{Fd: int32(table), Events: unix.POLLPRI}, {Fd: int32(stop.Fd()), Events: unix.POLLIN}}
	for !s.lost() {
		if _, err := unix.Poll(fds, -1); err != nil && !errors.Is(err, unix.EINTR) {
			s.o.Logger.Warn("an unmount by others will not be noticed", "error", err)
			return
		}
		if fds[1].Revents != 0 {
			return
		}
	}
}

// lost reports whether the mount at Dir is gone, and gives up the superblock if so.
func (s *Server) lost() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gone || s.active.at.mount == 0 {
		return false
	}
	if lines, err := mountLines(); err != nil || byID(lines, s.active.at.mount) != nil {
		return false
	}
	s.o.Logger.Warn("somebody else unmounted it")
	s.gone = true
	s.once.Do(func() { close(s.stop) })
	if err := errors.Join(s.mounter.hide(true), s.mounter.close()); err != nil {
		s.o.Logger.Warn("not all of the mount could be taken away", "error", err)
	}
	return true
}
