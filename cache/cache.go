// Package cache keeps an endpoint's verified local copy of objects: content-addressed, shared by all
// mounts and origins of a host, bounded, crash-safe. Whatever is lost in it is fetched again.
//
// # On disk
//
//	lock                   held by the one process that uses the cache; names it, and the machine's run
//	objects/ab/<hex>       catalogs and manifests, plain, mapped by those who read them
//	objects/ab/<hex>.loc   locators, as stored by the origin
//	holds/ID.json          what is never evicted, and why (hold.go)
//	quota                  the bound in bytes, if one was set (quota.go)
//	segments/NNNNNNNN.seg  append-only records of frames as they were fetched (segment.go); mode 0400:
//	                       closed, and synced
//	misses.json            what reads needed and did not get (misses.go)
//	waits                  what reads had to wait for, first accesses only (record.go); a hint
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
//     After a crash of the machine, what was not synced is read and checked before the index is
//     believed about it (recover.go), so that what is said to be here can be read.
//   - C4: concurrent misses of one frame are one request, and a request that was sent is finished
//     whoever gives up waiting.
//   - C5: the bound is kept, before anything is written, by dropping whole segments, least recently used
//     first; what is held of one is copied to the newest first. Readers that have one open are not
//     disturbed. A full disk, or a quota full of what is held, means reading through, not failing.
//   - C6: a lower cache is only read, without a lock, and nothing in it is believed (lower.go).
//
// # Locks
//
// Each concept has its own: segments.mu, index.mu, frames.mu, flights.mu. None is held while another
// is taken, but room, the outermost, which one holds to make room or to collect a segment; and none
// while the network is waited for. A lower cache's is held while its index is read.
package cache

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"coppice.dev/coppice/internal/disk"
	"coppice.dev/coppice/namespace"
)

// Options configure a Cache. Dir is required.
type Options struct {
	Dir string
	// QuotaBytes bounds what is on disk; default what SetQuota was told last, or else a tenth of the file
	// system, at least 2 GiB.
	QuotaBytes int64
	Timeout    time.Duration // bound of a read that waits for the network; default 10 s
	Silence    time.Duration // the same while the origin is not heard of, by a Reader with a Watch; default 2 s
	// FrameBytes bounds decoded frames kept in memory; default 16 MiB.
	FrameBytes int
	Logger     *slog.Logger // default: discard
	// Lower are directories of other caches that are read, and never written, before an origin is asked.
	Lower []string

	ops disk.Ops // of tests; default: the system's
}

const (
	quotaMin       = 64 << 20 // smaller would evict what it just fetched
	quotaDefault   = 2 << 30
	frameBytes     = 16 << 20
	timeoutDefault = 10 * time.Second
	silenceDefault = 2 * time.Second
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
	misses   *misses
	waits    waits

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
	lock, end, err := acquire(o.Dir, o.ops)
	if err != nil {
		return nil, err
	}
	c := &Cache{o: o, lock: lock, log: o.Logger, closing: make(chan struct{})}
	c.misses = openMisses(o.Dir)
	c.quota.Store(o.QuotaBytes)
	c.guard.sets, c.guard.kept = map[*hydration]*Set{}, map[uint32]keptBytes{}
	c.frames = newFrames(o.FrameBytes)
	c.flights = newFlights()
	c.objects = newObjects(filepath.Join(o.Dir, "objects"), o.ops)
	c.objects.written = func(n int64) { c.objectBytes.Add(n) }
	c.ahead.queue = make(chan frameKey, aheadQueue)
	c.sweepTemporary()
	c.waits.open(filepath.Join(o.Dir, "waits"))
	c.objectBytes.Store(c.objects.bytes())
	if c.holding, err = openHolds(filepath.Join(o.Dir, "holds"), c.log); err != nil {
		c.release()
		return nil, err
	}
	c.countHolds()
	if c.segments, err = openSegments(filepath.Join(o.Dir, "segments"), o.QuotaBytes, o.ops); err == nil {
		if c.segments.lowers, err = openLowers(o.Lower, c.log); err != nil {
			c.release()
			return nil, err
		}
		c.index, err = openIndex(filepath.Join(o.Dir, "index.db"), o.ops, c.log)
	}
	if err == nil {
		err = c.settle(end == crashed)
	}
	if err != nil {
		c.release()
		return nil, err
	}
	c.work.Go(c.flushLoop)
	if end != closed { // meanwhile, what is read of the index checks itself
		c.work.Go(func() {
			_ = c.index.purge(c.closing, func(seg, _ uint32) bool { return c.segments.get(seg) == nil }) // a flush tells, and heals
		})
	}
	c.work.Go(c.aheadLoop)
	c.work.Go(c.missesLoop)
	return c, nil
}

func (o *Options) defaults() error {
	if o.ops == nil {
		o.ops = disk.System{}
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Timeout == 0 {
		o.Timeout = timeoutDefault
	}
	if o.Silence == 0 {
		o.Silence = silenceDefault
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

// ending is how the last user of a cache ended.
type ending uint8

const (
	closed  ending = iota
	killed         // it died, and what it wrote is there
	crashed        // the machine may have died with it, or this is a copy
)

// acquire takes the lock of a cache and writes our process id into it, and which machine's run this is.
func acquire(dir string, ops disk.Ops) (lock *os.File, end ending, err error) {
	path := filepath.Join(dir, "lock")
	_, absent := os.Lstat(path)
	f, err := ops.Open(path)
	if err != nil {
		return nil, 0, disk.Error("lock", path, err)
	}
	held, _ := os.ReadFile(path)
	holder, run, _ := strings.Cut(strings.TrimSpace(string(held)), "\n")
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, 0, namespace.WithHint(
			namespace.E(namespace.Exist, "open cache", dir, errors.New("another process has it")),
			"process "+holder+" does; use the mount's commands, or another --cache")
	}
	this := machineRun(f)
	switch {
	case absent == nil && len(held) == 0:
		end = closed
	case run == this && this != "":
		end = killed
	default:
		end = crashed
	}
	if err := f.Truncate(0); err == nil {
		_, _ = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"+this+"\n"), 0)
	}
	// A crash must not bring back the mark of a clean end. That it could not be written or synced is no
	// reason to fail: what is read checks itself.
	_ = ops.Sync(f)
	return f, end, nil
}

// machineRun names the time since the machine was started, and the file, which a copy is not.
func machineRun(f *os.File) string {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	var st unix.Stat_t
	if err != nil || unix.Fstat(int(f.Fd()), &st) != nil {
		return ""
	}
	return fmt.Sprintf("%s %d:%d", strings.TrimSpace(string(boot)), st.Dev, st.Ino)
}

// sync makes everything that the cache holds survive a crash. Kinds: Limit, Internal.
func (c *Cache) sync() error {
	err := errors.Join(c.syncSegments(true), c.objects.sync(), c.flushIndex())
	if err == nil {
		err = c.index.sync()
	}
	if err == nil {
		if err = c.o.ops.SyncDir(c.o.Dir); err != nil { // what is new in it
			err = disk.Error("sync", c.o.Dir, err)
		}
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
			_ = c.lock.Truncate(0) // a clean end; if not, the next Open checks more
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
		for _, l := range c.segments.lowers {
			l.close()
		}
	}
	c.objects.close()
	c.waits.close()
	c.lock.Close()
}
