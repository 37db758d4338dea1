package builder

import (
	"bytes"
	"container/list"
	"context"
	"fmt"
	"runtime"
	"slices"
	"sort"
	"sync"

	"golang.org/x/sync/errgroup"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/catalog"
	"coppice.dev/coppice/namespace/object"
)

// crawlersMin is how many catalogs are looked at together at least: what a crawl waits for is
// mostly a disk or a network.
const crawlersMin = 4

// catalogAt is a catalog and where it was met first. root says which of the roots that was.
type catalogAt struct {
	digest namespace.Digest
	path   string
	root   namespace.Digest
}

// crawl visits catalogs, each once, several at a time. What it remembers is a digest for each.
type crawl struct {
	mu   sync.Mutex // guards what follows
	wake *sync.Cond // something was added, or the last one ended
	seen map[namespace.Digest]bool
	todo []catalogAt
	busy int
	fail error
}

func newCrawl() *crawl {
	c := &crawl{seen: map[namespace.Digest]bool{}}
	c.wake = sync.NewCond(&c.mu)
	return c
}

// run calls visit for starts and what visits return, unless a run before has. It ends with the
// first error.
func (c *crawl) run(ctx context.Context, starts []catalogAt, visit func(context.Context, catalogAt) ([]catalogAt, error)) error {
	c.add(starts)
	group, ctx := errgroup.WithContext(ctx)
	for range max(crawlersMin, 2*runtime.GOMAXPROCS(0)) {
		group.Go(func() error { return c.worker(ctx, visit) })
	}
	return group.Wait()
}

func (c *crawl) add(found []catalogAt) {
	for _, f := range slices.Backward(found) {
		if !c.seen[f.digest] {
			c.seen[f.digest] = true
			if f.root.IsZero() {
				f.root = f.digest
			}
			c.todo = append(c.todo, f)
		}
	}
}

func (c *crawl) worker(ctx context.Context, visit func(context.Context, catalogAt) ([]catalogAt, error)) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		for len(c.todo) == 0 && c.busy > 0 && c.fail == nil {
			c.wake.Wait()
		}
		if len(c.todo) == 0 || c.fail != nil {
			return c.fail
		}
		next := c.todo[len(c.todo)-1]
		c.todo = c.todo[:len(c.todo)-1]
		c.busy++
		c.mu.Unlock()
		err := ctx.Err()
		var found []catalogAt
		if err == nil {
			found, err = visit(ctx, next)
		}
		c.mu.Lock()
		c.busy--
		if err != nil && c.fail == nil {
			c.fail = namespace.E(namespace.KindOf(err), "catalog", fmt.Sprintf("%v at /%s", next.digest, next.path), err)
		}
		c.add(found)
		c.wake.Broadcast()
	}
}

// nestedAt returns the catalogs that c, met at a place, refers to, with their paths.
func nestedAt(c *catalog.Catalog, at catalogAt) []catalogAt {
	var below []catalogAt
	for i := range c.Len() {
		if ref, ok := c.Nested(i); ok {
			below = append(below, catalogAt{ref.Digest, catalog.Join(at.path, pathIn(c, i)), at.root})
		}
	}
	return below
}

// pathIn returns the path of entry i in its catalog.
func pathIn(c *catalog.Catalog, i int) []byte {
	var names [][]byte
	for ; i > 0; i = c.Parent(i) {
		names = append(names, c.Entry(i).Name)
	}
	slices.Reverse(names)
	return bytes.Join(names, []byte("/"))
}

func corrupt(k namespace.Key, format string, args ...any) error {
	return namespace.E(namespace.Corrupt, "check", k.String(), fmt.Errorf(format, args...))
}

// dirsChunks bounds the chunks that packDirs keeps, at about 50 bytes each: 100 MB, the directories
// of some 1,500 packs of small files.
const dirsChunks = 2 << 20

// packDirs reads packs' directories and keeps those used last. What a directory says is not
// verified. Safe for concurrent use.
type packDirs struct {
	from  namespace.Store
	limit int // chunks

	mu     sync.Mutex // guards what follows; not held while from is asked
	held   map[namespace.Digest]*list.Element
	recent *list.List // of *packDir, most recent first
	chunks int
}

// packDir is a pack's directory. first[i] is the number of frame i's first chunk.
type packDir struct {
	pack   namespace.Digest
	size   int64
	frames []object.Frame
	first  []int
	chunks int
}

func newPackDirs(from namespace.Store) *packDirs {
	return &packDirs{from: from, limit: dirsChunks, held: map[namespace.Digest]*list.Element{}, recent: list.New()}
}

// get returns the directory of a pack. Kinds: NotExist, Corrupt, Limit, those of the store.
func (p *packDirs) get(ctx context.Context, d namespace.Digest) (*packDir, error) {
	p.mu.Lock()
	if e, ok := p.held[d]; ok {
		p.recent.MoveToFront(e)
		p.mu.Unlock()
		return e.Value.(*packDir), nil
	}
	p.mu.Unlock()
	k := namespace.Key{Class: namespace.Pack, Digest: d}
	size, err := p.from.Stat(ctx, k)
	if err != nil {
		return nil, err
	}
	frames, err := object.ReadPackDirectory(&rangeReader{ctx, p.from, k}, size)
	if err != nil {
		return nil, namespace.E(namespace.KindOf(err), "read", k.String(), err)
	}
	dir := newPackDir(d, size, frames)
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, ok := p.held[d]; !ok {
		p.held[d] = p.recent.PushFront(dir)
		p.chunks += dir.chunks
	}
	for p.chunks > p.limit && p.recent.Len() > 1 {
		last := p.recent.Remove(p.recent.Back()).(*packDir)
		delete(p.held, last.pack)
		p.chunks -= last.chunks
	}
	return dir, nil
}

func newPackDir(d namespace.Digest, size int64, frames []object.Frame) *packDir {
	dir := &packDir{pack: d, size: size, frames: frames, first: make([]int, len(frames))}
	for i, f := range frames {
		dir.first[i] = dir.chunks
		dir.chunks += len(f.Chunks)
	}
	return dir
}

// find returns the number of the chunk at p, and the chunk, if there is one.
func (d *packDir) find(p object.Place) (int, object.FrameChunk, bool) {
	i, ok := sort.Find(len(d.frames), func(i int) int {
		return int(min(1, max(-1, p.FrameOff-d.frames[i].Off)))
	})
	if !ok {
		return 0, object.FrameChunk{}, false
	}
	f := d.frames[i]
	if f.Len != p.FrameLen || f.Plain != p.FramePlain || f.Codec != p.Codec {
		return 0, object.FrameChunk{}, false
	}
	k, ok := sort.Find(len(f.Chunks), func(k int) int { return int(p.Off) - int(f.Chunks[k].Off) })
	if !ok {
		return 0, object.FrameChunk{}, false
	}
	return d.first[i] + k, f.Chunks[k], true
}
