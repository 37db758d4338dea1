package fusefs

import (
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/catalog"
)

// Whoever reads the small files of a directory one after the other (tar, cp, grep, a compiler) pays
// a round trip for each, of which most is waking up. So once two neighbours were read in order, the
// ones behind them, which are in the same frame as a rule, are put into the kernel's page cache
// before they are asked for: one system call each, on another processor, while the reader is busy.
// docs/PERFORMANCE.md has what it brings.
const (
	pushFileMax  = 64 << 10  // larger files are worth a request
	pushBytes    = 512 << 10 // ahead of the reader
	pushFiles    = 128
	pushNearness = 8 // entries between neighbours: empty files, links and directories lie between
)

// pusher notices sequences and pushes. A queue of one: while it is busy, nothing is pushed.
type pusher struct {
	raw   *rawFS
	store func(node uint64, off int64, data []byte) fuse.Status
	queue chan pushTask
	off   bool

	mu   sync.Mutex
	in   *instance // of the last small file read, at entry
	last int
	upTo int // entries up to here were pushed
}

type pushTask struct {
	in   *instance
	from int // the first entry to push
}

func newPusher(r *rawFS) *pusher { return &pusher{raw: r, queue: make(chan pushTask, 1)} }

// note is told that a small file was read from its beginning.
func (p *pusher) note(in *instance, entry int) {
	if p.off {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	sequential := in == p.in && entry > p.last && entry <= max(p.last, p.upTo)+pushNearness
	p.in, p.last = in, entry
	if !sequential {
		p.upTo = entry
		return
	}
	select {
	case p.queue <- pushTask{in, max(entry, p.upTo) + 1}:
	default:
	}
}

// run pushes until stop is closed.
func (p *pusher) run(stop <-chan struct{}) {
	buf := make([]byte, pushFileMax)
	for {
		select {
		case <-stop:
			return
		case t := <-p.queue:
			end := p.push(t, buf)
			p.mu.Lock()
			if p.in == t.in {
				p.upTo = max(p.upTo, end)
			}
			p.mu.Unlock()
		}
	}
}

// push puts the small files from t.from on, of the same directory, into the page cache, and returns
// the last entry it looked at.
func (p *pusher) push(t pushTask, buf []byte) int {
	ctx, cancel := p.raw.request()
	defer cancel()
	c := t.in.cat
	dir := c.Parent(t.from - 1)
	_, end := c.Children(dir)
	path := t.in.pathOf(dir)
	files, budget, i := 0, pushBytes, t.from
	for ; i < end && files < pushFiles && budget > 0; i++ {
		e := c.Entry(i)
		if e.Type != catalog.File || e.Size == 0 || e.Size > pushFileMax {
			continue
		}
		node := fileNode(c, i, e.Name, path, t.in.tree)
		if !p.raw.table.known(node) {
			continue
		}
		if !p.local(c, i) {
			return i - 1 // a guess is not worth a wait, nor the link of who waits
		}
		n, err := p.raw.readAt(ctx, t.in, i, buf[:e.Size], 0)
		if err != nil || p.store(node, 0, buf[:n]) == fuse.ENOSYS {
			return end // whoever asks for it meets the error
		}
		files++
		budget -= n
	}
	return i - 1
}

// local reports whether all of file i is to be had at once.
func (p *pusher) local(c *catalog.Catalog, i int) bool {
	src, ok := p.raw.src.(LocalSource)
	for lo, hi := c.Chunks(i); ok && lo < hi; lo++ {
		if ch := c.Chunk(lo); !ch.Hole() && !src.Local(ch.Digest) {
			return false
		}
	}
	return true
}

// known reports whether the kernel knows a node.
func (t *table) known(id uint64) bool {
	s := t.shard(id)
	s.mu.RLock()
	defer s.mu.RUnlock()
	_, ok := s.nodes[id]
	return ok
}

// pathOf returns the path id of directory dir of an instance.
func (in *instance) pathOf(dir int) pathID {
	var up []int
	for ; dir > 0 && len(up) < namespace.DepthMax; dir = in.cat.Parent(dir) {
		up = append(up, dir)
	}
	p := in.path
	for i := len(up) - 1; i >= 0; i-- {
		p = p.child(in.cat.Entry(up[i]).Name)
	}
	return p
}
