package fusefs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/catalog"
)

// Server is a mount and the goroutines that answer for it. Safe for concurrent use.
type Server struct {
	o       Options
	raw     *rawFS
	table   *table
	metrics *metrics
	fuse    *fuse.Server
	done    chan struct{}  // closed when the kernel has let go of the superblock
	stop    chan struct{}  // closed when the mount is taken away
	once    sync.Once      // closes it
	work    sync.WaitGroup // goroutines that end when stop is closed

	// gens is what handlers need of the generations; its lock is never held while anything else
	// is done.
	gens struct {
		sync.RWMutex
		byName map[string]catalogAt
	}

	mu       sync.Mutex // serialises Activate, Unmount and sweeping
	mounter  mounter
	active   Generation
	draining []Generation
	leaving  map[namespace.Digest]Generation // drained, but the kernel still knows nodes of theirs
	gone     bool
}

// sweepEvery is how often it is looked at whether old generations are still in use.
const sweepEvery = 15 * time.Second

// Mount makes the superblock and starts to answer the kernel. Nothing is visible until the first
// Activate. The caller ends it with Unmount. Kinds: Invalid, NotExist, Exist, Denied, Unavailable.
func Mount(ctx context.Context, o Options) (*Server, error) {
	o.defaults()
	if err := checkDir(o); err != nil {
		return nil, err
	}
	m, err := newMounter(o)
	if err != nil {
		return nil, err
	}
	s := &Server{o: o, table: newTable(), mounter: m, done: make(chan struct{}), stop: make(chan struct{}),
		leaving: map[namespace.Digest]Generation{}}
	s.gens.byName = map[string]catalogAt{}
	s.raw = &rawFS{RawFileSystem: fuse.NewDefaultRawFileSystem(), src: o.Source, table: s.table, log: o.Logger,
		timeout: o.Timeout, generations: s.generation}
	s.raw.push, s.metrics = newPusher(s.raw), newMetrics(s.raw)
	s.raw.push.off = o.Exact
	s.fuse, err = m.serve(s.metrics, kernelOptions(o))
	if err != nil {
		return nil, errors.Join(err, m.close())
	}
	s.raw.push.store = s.fuse.InodeNotifyStoreCache
	s.work.Go(func() { s.raw.push.run(s.stop) })
	s.work.Go(s.sweep)
	s.work.Go(s.watch)
	go func() {
		defer close(s.done)
		s.fuse.Serve()
		s.end()
		s.work.Wait()
	}()
	return s, nil
}

// checkDir looks at the mount point, but not through it.
func checkDir(o Options) error {
	var st unix.Stat_t
	err := unix.Lstat(o.Dir, &st)
	switch {
	case errors.Is(err, unix.ENOENT) && os.Geteuid() != 0:
		return nil // a link can be made there
	case errors.Is(err, unix.ENOENT):
		return namespace.WithHint(namespace.E(namespace.NotExist, "mount", o.Dir, nil), "`mkdir "+o.Dir+"`")
	case err != nil:
		return namespace.E(mountKind(err), "mount", o.Dir, err)
	case st.Mode&unix.S_IFMT == unix.S_IFLNK && os.Geteuid() != 0:
		return namespace.E(namespace.Exist, "mount", o.Dir, errors.New("it is a symbolic link"))
	case st.Mode&unix.S_IFMT != unix.S_IFDIR:
		return namespace.E(namespace.Invalid, "mount", o.Dir, errors.New("not a directory"))
	}
	return nil
}

// generation finds a generation by its name below the super-root.
func (s *Server) generation(name string) (catalogAt, bool) {
	s.gens.RLock()
	defer s.gens.RUnlock()
	g, ok := s.gens.byName[name]
	return g, ok
}

// Activate makes Dir show the tree whose root catalog is root, atomically. The first call makes the
// mount appear. If it fails, Dir shows what it showed before. label is for people.
// Kinds: those of Source, Unavailable, Denied, Internal.
func (s *Server) Activate(ctx context.Context, root namespace.Digest, label string) (Generation, error) {
	cat, err := s.o.Source.Catalog(ctx, root) // before the lock: it may wait for a network
	if err != nil {
		return Generation{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gone {
		return Generation{}, namespace.E(namespace.Unavailable, "activate", s.o.Dir, errors.New("it was unmounted"))
	}
	if s.active.Root == root {
		s.active.Label = label
		return s.active, nil
	}
	if err := s.offer(root, cat); err != nil {
		return Generation{}, err
	}
	at, err := s.mounter.show(root.Hex())
	if err != nil {
		if !s.isDraining(root) {
			s.withdraw(root)
			s.leaving[root] = Generation{Root: root, Label: label}
		}
		return Generation{}, err
	}
	delete(s.leaving, root)
	now := time.Now()
	first := s.active.Root.IsZero()
	if !first {
		old := s.active
		old.Since = now
		s.draining = append(s.draining, old)
	}
	s.active = Generation{Root: root, Label: label, Since: now, at: at}
	if at.path == "" {
		s.active.MountID = at.mount
	}
	if first {
		s.readAhead(s.o.ReadAheadKB)
	}
	return s.active, nil
}

// offer makes a generation one that the kernel can look up, and holds its root catalog.
func (s *Server) offer(root namespace.Digest, cat *catalog.Catalog) error {
	if _, ok := s.generation(root.Hex()); ok {
		return nil // it is draining: somebody still uses it
	}
	inst, _, err := s.table.addInstance(instance{cat: cat, digest: root, gen: root}, pathID{})
	if err != nil {
		return err
	}
	s.gens.Lock()
	defer s.gens.Unlock()
	s.gens.byName[root.Hex()] = catalogAt{inst, root, cat}
	return nil
}

// withdraw undoes offer.
func (s *Server) withdraw(root namespace.Digest) {
	s.gens.Lock()
	g, ok := s.gens.byName[root.Hex()]
	delete(s.gens.byName, root.Hex())
	s.gens.Unlock()
	if ok {
		s.table.release(g.inst)
	}
}

func (s *Server) isDraining(root namespace.Digest) bool {
	return slices.ContainsFunc(s.draining, func(g Generation) bool { return g.Root == root })
}

// SetReadAhead lets the kernel read so far ahead from now on. Best effort: without privileges its
// default of 128 KiB stays.
func (s *Server) SetReadAhead(kb int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.gone && !s.active.Root.IsZero() {
		s.readAhead(kb)
	}
}

// readAhead sets the read-ahead. It needs the device number, which mountinfo tells without asking the
// file system.
func (s *Server) readAhead(kb int) {
	dev, ok := deviceOf(s.active.at.mount)
	if !ok {
		return
	}
	path := fmt.Sprintf("/sys/class/bdi/%s/read_ahead_kb", dev)
	if err := os.WriteFile(path, []byte(strconv.Itoa(kb)), 0); err != nil {
		s.o.Logger.Debug("read-ahead not raised", "error", err)
	}
}

// Collector returns the counts of the kernel's requests as metrics.
func (s *Server) Collector() prometheus.Collector { return s.metrics }

// Dir returns the mount point.
func (s *Server) Dir() string { return s.o.Dir }

// Status returns what is shown.
func (s *Server) Status() Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	return Status{Mode: s.mounter.mode(), Active: s.active, Draining: append([]Generation{}, s.draining...), Nodes: s.table.len()}
}

// Unmount takes Dir away. If it is in use, that fails with Unavailable, unless force is set: then
// Dir is free at once, and those who use it go on until they end. Wait waits for that.
func (s *Server) Unmount(force bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gone {
		return nil
	}
	if err := s.mounter.hide(force); err != nil {
		return err
	}
	s.gone = true
	s.once.Do(func() { close(s.stop) })
	if err := s.mounter.close(); err != nil {
		return namespace.E(namespace.KindOf(err), "unmount", s.o.Dir, err)
	}
	return nil
}

// Wait returns when the mount is over: unmounted, by us or by others, and used by nobody. Nothing
// runs on after it.
func (s *Server) Wait() { <-s.done }

// end cleans up after the kernel has let go, which it does also if somebody else unmounts Dir.
func (s *Server) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gone = true
	s.once.Do(func() { close(s.stop) })
	// Best effort, after the fact: nobody is there to be told.
	_ = s.mounter.hide(true)
	_ = s.mounter.close()
}

// Current reports whether the inode ino, a file's, shows in the active generation what it showed
// when the kernel learned of it: whether whoever holds it holds what a new open would get.
func (s *Server) Current(ino uint64) bool {
	in, entry, _, ok := s.table.get(ino)
	if !ok {
		return false
	}
	s.mu.Lock()
	active := s.active.Root
	s.mu.Unlock()
	if in.gen == active {
		return true
	}
	return s.resolves(in, entry, ino, active)
}
