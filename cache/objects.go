package cache

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"coppice.dev/coppice/internal/disk"
	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/catalog"
	"coppice.dev/coppice/namespace/object"
	"coppice.dev/coppice/namespace/object/delta"
)

// objects keeps small objects as files, plain, by digest; catalogs are mapped and checked once, and
// stay mapped until the cache is closed. Safe for concurrent use.
type objects struct {
	dir     string
	ops     disk.Ops
	written func(n int64) // told of bytes written

	number atomic.Uint64 // of the next temporary file

	mu       sync.Mutex
	catalogs map[namespace.Digest]*mapped
	orphans  []*mapped // in use, but their files are gone: the next one to ask has them fetched
	locators map[namespace.Digest]*object.Locator
	kept     int // chunks in locators
	unsynced map[string]struct{}
}

// mapped is an open catalog; bytes is its mapping, nil if it is in memory for want of a disk.
type mapped struct {
	catalog *catalog.Catalog
	bytes   []byte
}

const locatorSuffix = ".loc"

// locatorChunks bounds the locators kept decoded, in chunks: some 12 bytes each.
const locatorChunks = 1 << 18

// temporary begins the names of files that are being written.
const temporary = ".new-"

func newObjects(dir string, ops disk.Ops) *objects {
	return &objects{dir: dir, ops: ops, catalogs: map[namespace.Digest]*mapped{}, locators: map[namespace.Digest]*object.Locator{},
		unsynced: map[string]struct{}{}}
}

func (o *objects) path(d namespace.Digest, suffix string) string {
	h := d.Hex()
	return filepath.Join(o.dir, h[:2], h+suffix)
}

// close unmaps everything. Nobody may use a catalog any more.
func (o *objects) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, m := range append(slices.Collect(maps.Values(o.catalogs)), o.orphans...) {
		if m.bytes != nil {
			_ = unix.Munmap(m.bytes)
		}
	}
	o.catalogs, o.orphans = map[namespace.Digest]*mapped{}, nil
}

// open returns a catalog that was opened before, or maps and checks its file. NotExist: it is not
// here. Corrupt: it was damaged, and is gone now.
func (o *objects) open(d namespace.Digest) (*catalog.Catalog, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if m := o.catalogs[d]; m != nil {
		return m.catalog, nil
	}
	b, err := o.mapFile(d)
	if err != nil {
		return nil, err
	}
	c, err := catalog.Open(b)
	if err != nil { // its digest is right, so it was published like this
		_ = unix.Munmap(b)
		return nil, namespace.E(namespace.Corrupt, "open catalog", d.String(), err)
	}
	o.catalogs[d] = &mapped{c, b}
	return c, nil
}

// remove deletes the file of an object or locator. A catalog that is in use stays usable, and counts as
// not here.
func (o *objects) remove(path string) error {
	if err := o.ops.Remove(path); err != nil {
		return err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	name := filepath.Base(path)
	d, err := namespace.ParseHex(strings.TrimSuffix(name, locatorSuffix))
	if err != nil {
		return nil
	}
	if l := o.locators[d]; l != nil && strings.HasSuffix(name, locatorSuffix) {
		delete(o.locators, d)
		o.kept -= l.Len()
	}
	if m := o.catalogs[d]; m != nil && !strings.HasSuffix(name, locatorSuffix) {
		delete(o.catalogs, d)
		o.orphans = append(o.orphans, m)
	}
	return nil
}

// adopt keeps a catalog, whose digest was checked, in memory: the disk is full.
func (o *objects) adopt(d namespace.Digest, b []byte) error {
	c, err := catalog.Open(b)
	if err != nil {
		return namespace.E(namespace.Corrupt, "open catalog", d.String(), err)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.catalogs[d] == nil {
		o.catalogs[d] = &mapped{catalog: c}
	}
	return nil
}

// mapFile maps an object and holds it against its digest.
func (o *objects) mapFile(d namespace.Digest) ([]byte, error) {
	path := o.path(d, "")
	f, err := os.Open(path)
	if err != nil {
		return nil, disk.Error("open", path, err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err == nil && (info.Size() == 0 || info.Size() > namespace.CatalogBytesMax) {
		err = errors.New("of a size no object has")
	}
	var b []byte
	if err == nil {
		b, err = unix.Mmap(int(f.Fd()), 0, int(info.Size()), unix.PROT_READ, unix.MAP_SHARED)
	}
	if err == nil && namespace.Sum(b) != d {
		_ = unix.Munmap(b)
		err = errors.New("digest")
	}
	if err != nil {
		_ = os.Remove(path)
		return nil, namespace.E(namespace.Corrupt, "read", path, err)
	}
	return b, nil
}

// read returns a small object of at most limit bytes, checked. Kinds: those of open.
func (o *objects) read(d namespace.Digest, limit int64) ([]byte, error) {
	path := o.path(d, "")
	info, err := os.Stat(path)
	if err != nil {
		return nil, disk.Error("open", path, err)
	}
	if info.Size() > limit {
		return nil, namespace.E(namespace.Limit, "read", path, fmt.Errorf("%d bytes, at most %d", info.Size(), limit))
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, disk.Error("open", path, err)
	}
	if namespace.Sum(b) != d {
		_ = os.Remove(path)
		return nil, namespace.E(namespace.Corrupt, "read", path, errors.New("digest"))
	}
	return b, nil
}

// write keeps an object. It is not synced yet: a digest tells whether it is whole.
func (o *objects) write(d namespace.Digest, suffix string, b []byte) error {
	path := o.path(d, suffix)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return disk.Error("create", filepath.Dir(path), err)
	}
	// One process at a time writes here, and never the same name twice.
	f, err := o.ops.Create(filepath.Join(filepath.Dir(path), fmt.Sprintf("%s%d", temporary, o.number.Add(1))))
	if err != nil {
		return disk.Error("create in", filepath.Dir(path), err)
	}
	_, err = o.ops.WriteAt(f, b, 0)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = o.ops.Rename(f.Name(), path)
	}
	if err != nil {
		_ = o.ops.Remove(f.Name())
		return disk.Error("write", path, err)
	}
	o.written(int64(len(b)))
	o.mu.Lock()
	o.unsynced[path] = struct{}{}
	o.mu.Unlock()
	return nil
}

// stored reports whether an object has a file.
func (o *objects) stored(d namespace.Digest) bool {
	_, err := os.Stat(o.path(d, ""))
	return err == nil
}

// sync makes what was written survive a crash. When it fails, the next one tries all of it again.
func (o *objects) sync() error {
	o.mu.Lock()
	paths := o.unsynced
	o.unsynced = map[string]struct{}{}
	o.mu.Unlock()
	err := o.syncFiles(paths)
	if err != nil {
		o.mu.Lock()
		maps.Copy(o.unsynced, paths)
		o.mu.Unlock()
	}
	return err
}

func (o *objects) syncFiles(paths map[string]struct{}) error {
	if len(paths) == 0 {
		return nil
	}
	dirs := map[string]struct{}{o.dir: {}}
	for path := range paths {
		err := o.syncFile(path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // dropped meanwhile
			return disk.Error("sync", path, err)
		}
		dirs[filepath.Dir(path)] = struct{}{}
	}
	for dir := range dirs {
		if err := o.ops.SyncDir(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return disk.Error("sync", dir, err)
		}
	}
	return nil
}

func (o *objects) syncFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return o.ops.Sync(f)
}

// locator returns a locator that is here, decoded; nil if there is none.
func (o *objects) locator(d namespace.Digest) *object.Locator {
	o.mu.Lock()
	l := o.locators[d]
	o.mu.Unlock()
	if l != nil {
		return l
	}
	b, err := os.ReadFile(o.path(d, locatorSuffix))
	if err != nil {
		return nil
	}
	if l, err = object.OpenLocator(b); err != nil {
		_ = os.Remove(o.path(d, locatorSuffix))
		return nil
	}
	o.keep(d, l)
	return l
}

// keep remembers a decoded locator, dropping others if there are too many.
func (o *objects) keep(d namespace.Digest, l *object.Locator) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if old := o.locators[d]; old != nil {
		o.kept -= old.Len()
	}
	o.locators[d] = l
	o.kept += l.Len()
	for other, x := range o.locators { // in no order: they are quickly read again
		if o.kept <= locatorChunks {
			break
		}
		if other != d {
			delete(o.locators, other)
			o.kept -= x.Len()
		}
	}
}

// forgetLocator drops a locator that led nowhere.
func (o *objects) forgetLocator(d namespace.Digest) {
	o.mu.Lock()
	if l := o.locators[d]; l != nil {
		delete(o.locators, d)
		o.kept -= l.Len()
	}
	o.mu.Unlock()
	_ = os.Remove(o.path(d, locatorSuffix))
}

// each calls fn for every file of the store that is not being written.
func (o *objects) each(fn func(path string, info fs.FileInfo)) {
	_ = filepath.WalkDir(o.dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() || strings.HasPrefix(e.Name(), temporary) {
			return nil
		}
		if info, err := e.Info(); err == nil {
			fn(path, info)
		}
		return nil
	})
}

// bytes returns the size of all files.
func (o *objects) bytes() (n int64) {
	o.each(func(_ string, info fs.FileInfo) { n += info.Size() })
	return n
}

// verifyObjects reads every object and holds it against its name.
func (c *Cache) verifyObjects(ctx context.Context, repair bool, rep *VerifyReport) {
	c.objects.each(func(path string, info fs.FileInfo) {
		if ctx.Err() != nil {
			return
		}
		rep.Checked++
		b, err := os.ReadFile(path)
		if hex, isDelta := strings.CutSuffix(filepath.Base(path), deltaSuffix); err == nil && isDelta {
			d, perr := namespace.ParseHex(hex)
			if _, err = delta.Open(b, d); perr != nil {
				err = perr
			}
		} else if name, isLocator := strings.CutSuffix(filepath.Base(path), locatorSuffix); err == nil && isLocator {
			_, err = object.OpenLocator(b)
		} else if d, perr := namespace.ParseHex(name); err == nil && (perr != nil || namespace.Sum(b) != d) {
			err = errors.New("digest")
		}
		if err == nil || errors.Is(err, fs.ErrNotExist) {
			return
		}
		rep.Damaged++
		if repair && c.objects.remove(path) == nil {
			c.objectBytes.Add(-info.Size())
		}
	})
}
