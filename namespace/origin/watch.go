package origin

import (
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// watcher tells of changes in directories of refs: one inotify descriptor and one goroutine,
// both from the first add to close. It tells everybody of every change; the waiters look.
type watcher struct {
	path string // of the origin

	mu      sync.Mutex
	changed chan struct{} // closed and replaced at a change
	closed  chan struct{}
	file    *os.File // of inotify; nil if the kernel gave none
	loop    sync.WaitGroup
	started bool
}

const (
	// pollWatched is for changes that inotify cannot see: those of another host.
	pollWatched = 500 * time.Millisecond
	// pollBlind is for a kernel that gives no watches.
	pollBlind = 20 * time.Millisecond
)

// add watches the directory dir (of the layout) and those above it, as far as they exist, and
// returns a channel that is closed at the next change.
func (w *watcher) add(dir string) <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.start()
	if w.file != nil {
		for ; dir != "."; dir = parent(dir) {
			w.addWatch(dir)
		}
	}
	return w.changed
}

// addWatch is idempotent: the kernel knows one watch an inode.
func (w *watcher) addWatch(dir string) {
	conn, err := w.file.SyscallConn()
	if err != nil {
		return
	}
	_ = conn.Control(func(fd uintptr) {
		_, _ = unix.InotifyAddWatch(int(fd), filepath.Join(w.path, dir),
			unix.IN_MOVED_TO|unix.IN_CREATE|unix.IN_DELETE|unix.IN_CLOSE_WRITE|unix.IN_ONLYDIR)
	})
}

// start makes the channels and the goroutine. The caller holds mu.
func (w *watcher) start() {
	if w.changed == nil {
		w.changed = make(chan struct{})
	}
	if w.closed == nil {
		w.closed = make(chan struct{})
	}
	if w.started {
		return
	}
	w.started = true
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return
	}
	file := os.NewFile(uintptr(fd), "inotify") // not w.file, which close clears
	w.file = file
	w.loop.Go(func() { w.read(file) })
}

// read turns events into notifications until the descriptor is closed.
func (w *watcher) read(f *os.File) {
	buf := make([]byte, 64<<10)
	for {
		if _, err := f.Read(buf); err != nil {
			return
		}
		w.notify()
	}
}

func (w *watcher) notify() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.changed != nil {
		close(w.changed)
		w.changed = make(chan struct{})
	}
}

// done returns a channel that close closes.
func (w *watcher) done() <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.closed
}

// poll is how long a waiter trusts silence.
func (w *watcher) poll() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.file == nil {
		return pollBlind
	}
	return pollWatched
}

func (w *watcher) close() error {
	w.mu.Lock()
	w.started = true // and so never again
	if w.closed == nil {
		w.closed = make(chan struct{})
	}
	select {
	case <-w.closed:
	default:
		close(w.closed)
	}
	f := w.file
	w.file = nil
	w.mu.Unlock()
	var err error
	if f != nil {
		err = f.Close()
	}
	w.loop.Wait()
	return err
}
