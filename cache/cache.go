// Package cache keeps an endpoint's verified local copy of objects: content-addressed, shared by all
// mounts and origins of a host, bounded, crash-safe. Whatever is lost in it is fetched again.
//
// # On disk
//
//	lock                   held by the one process that uses the cache; names it
//	objects/ab/<hex>       catalogs and manifests, plain, mapped by those who read them
//	objects/ab/<hex>.loc   locators, as stored by the origin
//	holds/ID.json          what is never evicted, and why (hold.go)
//	quota                  the bound in bytes, if one was set (quota.go)
//	segments/NNNNNNNN.seg  append-only records of frames as they were fetched (segment.go)
//	index.db               bbolt: chunk digest → where in which segment (index.go); derived
//
// # Invariants
//
//   - C1: a byte is served only if its chunk's SHA-256 was right when it arrived and the checksum of
//     its frame is right now. A wrong checksum drops the entry; the chunk is fetched again.
//   - C2: an index entry is written after the record it points at, and checks itself, so no crash
//     and no flipped bit makes it lead to other content.
//   - C3: deleting the index, or everything, loses nothing: the index is rebuilt from segments,
//     segments are fetched again.
//   - C4: concurrent misses of one frame are one request, and a request that was sent is finished
//     whoever gives up waiting.
//   - C5: the bound is kept, before anything is written, by dropping whole segments, least recently used
//     first; what is held of one is copied to the newest first. Readers that have one open are not
//     disturbed. A full disk, or a quota full of what is held, means reading through, not failing.
//
// # Locks
//
// Each concept has its own: segments.mu, index.mu, frames.mu, flights.mu. None is held while another
// is taken, but room, the outermost, which one holds to make room; and none while the network is
// waited for.
package cache

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"coppice.dev/coppice/namespace"
)

// Options configure a Cache. Dir is required.
type Options struct {
	Dir string
	// QuotaBytes bounds what is on disk; default what SetQuota was told last, or else a tenth of the file
	// system, at least 2 GiB.
	QuotaBytes int64
	Timeout    time.Duration // bound of a read that waits for the network; default 10 s
	// FrameBytes bounds decoded frames kept in memory; default 16 MiB.
	FrameBytes int
	Logger     *slog.Logger // default: discard
}

const (
	quotaMin       = 64 << 20 // smaller would evict what it just fetched
	quotaDefault   = 2 << 30
	frameBytes     = 16 << 20
	timeoutDefault = 10 * time.Second
)

// Cache is an open cache. Safe for concurrent use.
type Cache struct {
	o        Options
	lock     *os.File
	log      *slog.Logger
	count    counters
	segments *segments
	index    *index
	frames   *frames
	flights  *flights
	objects  *objects
	ahead    ahead
	scratch  scratch

	triggers    triggers
	room        sync.Mutex   // one makes room at a time; guards guard's tables, objectsLeft
	objectsLeft int64        // of objects/, when some were dropped last
	reserved    atomic.Int64 // bytes that are about to be written
	quota       atomic.Int64 // bound of what is on disk, bytes
	holding     *holds
	guard       warden
	objectBytes atomic.Int64 // of objects/, roughly: overwriting counts twice until the next start
	degradedAt  atomic.Int64 // seconds since 1970 of the last complaint
	through     atomic.Bool  // the last write failed

	recovering sync.Mutex // held while the index is held against the segments; guards searched
	searched   time.Time

	work    sync.WaitGroup // goroutines that Close waits for
	closing chan struct{}
	close   sync.Once
}

// Open opens the cache in o.Dir, creating it if need be. One process at a time may: Exist says that
// another does. What a crash left unfinished is repaired. Kinds: Exist, Denied, Limit, Internal.
func Open(o Options) (*Cache, error) {
	if err := o.defaults(); err != nil {
		return nil, err
	}
	lock, clean, err := acquire(o.Dir)
	if err != nil {
		return nil, err
	}
	c := &Cache{o: o, lock: lock, log: o.Logger, closing: make(chan struct{})}
	c.quota.Store(o.QuotaBytes)
	c.guard.sets, c.guard.kept = map[*hydration]*Set{}, map[uint32]keptBytes{}
	c.frames = newFrames(o.FrameBytes)
	c.flights = newFlights()
	c.objects = newObjects(filepath.Join(o.Dir, "objects"))
	c.objects.written = func(n int64) { c.objectBytes.Add(n) }
	c.ahead.queue = make(chan frameKey, aheadQueue)
	c.sweepTemporary()
	c.objectBytes.Store(c.objects.bytes())
	if c.holding, err = openHolds(filepath.Join(o.Dir, "holds"), c.log); err != nil {
		c.release()
		return nil, err
	}
	c.countHolds()
	if c.segments, err = openSegments(filepath.Join(o.Dir, "segments"), o.QuotaBytes); err == nil {
		c.index, err = openIndex(filepath.Join(o.Dir, "index.db"), c.log)
	}
	if err == nil {
		err = c.cutTails()
	}
	if err != nil {
		c.release()
		return nil, err
	}
	c.work.Go(c.flushLoop)
	if !clean { // meanwhile, what is read of the index checks itself
		c.work.Go(func() { c.index.check(c.closing) })
	}
	c.work.Go(c.aheadLoop)
	return c, nil
}

func (o *Options) defaults() error {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Timeout == 0 {
		o.Timeout = timeoutDefault
	}
	if o.FrameBytes == 0 {
		o.FrameBytes = frameBytes
	}
	for _, d := range []string{o.Dir, filepath.Join(o.Dir, "objects"), filepath.Join(o.Dir, "segments")} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return namespace.E(namespace.KindOf(err), "create cache", d, err)
		}
	}
	return o.quota()
}

// acquire takes the lock of a cache and writes our process id into it. clean says that whoever had it
// before closed it: then no id is in it.
func acquire(dir string) (lock *os.File, clean bool, err error) {
	path := filepath.Join(dir, "lock")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, false, namespace.E(namespace.KindOf(err), "lock", path, err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		holder, _ := os.ReadFile(path)
		f.Close()
		return nil, false, namespace.WithHint(
			namespace.E(namespace.Exist, "open cache", dir, errors.New("another process has it")),
			"process "+strings.TrimSpace(string(holder))+" does; use the mount's commands, or another --cache")
	}
	if info, err := f.Stat(); err == nil {
		clean = info.Size() == 0
	}
	if err := f.Truncate(0); err == nil {
		_, err = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	return f, clean, nil // the id in it is for people: that it could not be written is no reason to fail
}

// cutTails indexes what was appended after the last commit of the index, or everything if the index
// had to be made anew, and cuts off what a crash left half-written.
func (c *Cache) cutTails() error {
	if c.index.leads(c.segments) {
		c.log.Warn("segments of the cache are lost or cut; its index is made anew")
		if err := c.index.replace(); err != nil {
			return err
		}
	}
	for _, s := range c.segments.all() {
		end, err := c.indexFrom(s, min(c.index.covered(s.id), s.size.Load()))
		if err != nil {
			return err
		}
		s.truncate(end)
	}
	return c.index.flush()
}

// catchUp indexes all segments, while the cache is in use.
func (c *Cache) catchUp() error {
	for _, s := range c.segments.all() {
		if _, err := c.indexFrom(s, 0); err != nil {
			return err
		}
	}
	return nil
}

// indexFrom indexes the records of a segment from off on and returns where they end.
func (c *Cache) indexFrom(s *segment, off uint32) (uint32, error) {
	end, err := s.scan(off, func(rec record) error {
		for _, e := range rec.extents(s.id) {
			c.index.put(e.digest, e.extent)
		}
		if c.index.waiting() >= flushEntries {
			return c.index.flush()
		}
		return nil
	})
	if err == nil && end != off {
		c.index.cover(s.id, end)
	}
	return end, err
}

// sync makes everything that the cache holds survive a crash. Kinds: Limit, Internal.
func (c *Cache) sync() error {
	err := errors.Join(c.segments.sync(), c.objects.sync(), c.flushIndex())
	if err == nil {
		err = c.index.sync()
	}
	return err
}

// Close finishes what is under way, but for fetches, which it breaks off, and closes the cache. What
// is in it stays. Nobody may use a catalog of the cache any more. Idempotent.
func (c *Cache) Close() error {
	var err error
	c.close.Do(func() {
		close(c.closing)
		c.flights.stop()
		c.work.Wait()
		if err = c.sync(); err == nil {
			_ = c.lock.Truncate(0) // clean; if not, the next Open checks more
		}
		c.release()
	})
	return err
}

func (c *Cache) release() {
	if c.index != nil {
		c.index.close()
	}
	if c.segments != nil {
		c.segments.close()
	}
	c.objects.close()
	c.lock.Close()
}
