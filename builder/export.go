package builder

import (
	"context"
	"runtime"
	"time"

	"golang.org/x/sync/errgroup"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/catalog"
)

// ExportOptions of [ExportTar] and [ExportDir]. The zero value is the default.
type ExportOptions struct {
	// Progress, if set, is told how far the export is, at most every 50 ms and once at the end, by
	// the goroutine that called. BytesTotal is what the tree records: a hard link across catalogs
	// counts more than once there.
	Progress func(Progress)
}

// sink is what an export writes to.
type sink interface {
	// entry begins an entry, parents before children, names sorted. link is "", or the path of the
	// first name of its hard-link group, which came earlier; then no content follows.
	entry(path, link string, c *catalog.Catalog, e catalog.Entry) error
	// extent appends to the content of the entry begun last: data, or a hole of that many bytes.
	extent(data []byte, hole uint64) error
}

// exportWaits is how many requests may wait for a distant origin beside the processors' work; what is
// ahead, at most a chunk of ChunkBytesMax for each of twice as many jobs, stays below 64 MiB on two
// processors.
const exportWaits = 6

// exporter reads a tree in order. Content is read ahead by several goroutines, in batches that
// keep the frames shared by small neighbours together, so that neither the processor nor a distant
// origin is waited for; what is ahead is bounded by the queues.
type exporter struct {
	from  *Stored
	group *errgroup.Group
	ctx   context.Context

	work  chan *exportJob
	order chan *exportJob
	batch *exportJob // that is being collected
}

// exportJob is some consecutive parts of the tree; ready is closed when their content is there.
type exportJob struct {
	parts []exportPart
	bytes uint64
	ready chan struct{}
}

// exportPart is an entry, or more of a file: extents [lo, hi) of its catalog.
type exportPart struct {
	path, link string
	c          *catalog.Catalog
	entry      catalog.Entry
	more       bool // of the entry before
	lo, hi     int
	data       [][]byte // of each extent; nil for a hole
}

// export hands the tree to out.
func export(ctx context.Context, s *Stored, root namespace.Digest, out sink, o ExportOptions) error {
	top, err := s.Catalog(ctx, root)
	if err != nil {
		return err
	}
	group, gctx := errgroup.WithContext(ctx)
	workers := runtime.GOMAXPROCS(0) + exportWaits
	x := &exporter{from: s, group: group, ctx: gctx, batch: &exportJob{},
		work: make(chan *exportJob, 2*workers), order: make(chan *exportJob, 2*workers)}
	group.Go(func() error {
		defer close(x.work)
		defer close(x.order)
		if err := x.walk(exportAt{c: top}, top.Entry(0), 0); err != nil {
			return err
		}
		return x.flush()
	})
	for range workers {
		group.Go(x.read)
	}
	group.Go(func() error { return x.write(out, top.Bytes(), o) })
	if err := group.Wait(); err != nil {
		return namespace.E(namespace.KindOf(err), "export", root.Short(), err)
	}
	return nil
}

// exportAt is a place in the tree: what is at path, in c. Hard-link paths are relative to base.
type exportAt struct {
	c          *catalog.Catalog
	path, base string
}

// walk collects the entry e at the place at, and all below it.
func (x *exporter) walk(at exportAt, e catalog.Entry, depth int) error {
	if depth > namespace.DepthMax {
		return namespace.E(namespace.Limit, "walk", at.path, nil)
	}
	if ref, ok := at.c.Nested(e.Index); ok {
		sub, err := at.c.Enter(x.ctx, x.from, e.Index)
		if err != nil {
			return err
		}
		if ref.TreeRoot {
			at.base = at.path
		}
		at.c, e = sub, sub.Entry(0)
	}
	if err := x.add(at, e); err != nil {
		return err
	}
	for lo, hi := at.c.Children(e.Index); lo < hi; lo++ {
		child := at.c.Entry(lo)
		below := at
		below.path = catalog.Join(at.path, child.Name)
		if err := x.walk(below, child, depth+1); err != nil {
			return err
		}
	}
	return nil
}

// add collects one entry.
func (x *exporter) add(at exportAt, e catalog.Entry) error {
	part := exportPart{path: at.path, c: at.c, entry: e}
	if first := at.c.Link(e.Index); first != nil {
		if part.link = catalog.Join(at.base, first); part.link == at.path {
			part.link = ""
		}
	}
	if part.link != "" || e.Type != catalog.File {
		return x.put(part, 0)
	}
	lo, hi := at.c.Chunks(e.Index)
	for {
		part.lo, part.hi = lo, lo
		var bytes uint64
		for part.hi < hi && bytes < batchBytes && part.hi-part.lo < batchFiles {
			if !at.c.Chunk(part.hi).Hole() {
				bytes += at.c.ChunkLen(part.hi)
			}
			part.hi++
		}
		if err := x.put(part, bytes); err != nil {
			return err
		}
		if lo, part.more = part.hi, true; lo == hi {
			return nil
		}
	}
}

func (x *exporter) put(part exportPart, bytes uint64) error {
	if x.batch.bytes+bytes > batchBytes || len(x.batch.parts) >= batchFiles {
		if err := x.flush(); err != nil {
			return err
		}
	}
	x.batch.parts = append(x.batch.parts, part)
	x.batch.bytes += bytes
	return nil
}

// flush queues what was collected. A job taken from work is earlier in order than those that wait.
func (x *exporter) flush() error {
	j := x.batch
	x.batch = &exportJob{}
	j.ready = make(chan struct{})
	for _, queue := range []chan *exportJob{x.order, x.work} {
		select {
		case queue <- j:
		case <-x.ctx.Done():
			return context.Cause(x.ctx)
		}
	}
	return nil
}

// read fills jobs with content.
func (x *exporter) read() error {
	for j := range x.work {
		for i := range j.parts {
			if err := x.fill(&j.parts[i]); err != nil {
				return err
			}
		}
		close(j.ready)
	}
	return nil
}

func (x *exporter) fill(p *exportPart) error {
	for k := p.lo; k < p.hi; k++ {
		var b []byte
		if !p.c.Chunk(k).Hole() {
			var err error
			if b, err = x.from.chunk(x.ctx, p.c, k, int(p.c.ChunkLen(k))); err != nil {
				return namespace.E(namespace.KindOf(err), "read", p.path, err)
			}
		}
		p.data = append(p.data, b)
	}
	return nil
}

// write hands jobs to out, in order.
func (x *exporter) write(out sink, total uint64, o ExportOptions) error {
	var told time.Time
	done := Progress{BytesTotal: total}
	for {
		var j *exportJob
		select {
		case j = <-x.order:
		case <-x.ctx.Done():
			return context.Cause(x.ctx)
		}
		if j == nil {
			if o.Progress != nil {
				o.Progress(done)
			}
			return nil
		}
		select {
		case <-j.ready:
		case <-x.ctx.Done():
			return context.Cause(x.ctx)
		}
		for i := range j.parts {
			if err := x.writePart(out, &j.parts[i], &done); err != nil {
				return err
			}
		}
		if now := time.Now(); o.Progress != nil && now.Sub(told) >= progressEvery {
			told = now
			o.Progress(done)
		}
	}
}

func (x *exporter) writePart(out sink, p *exportPart, done *Progress) error {
	if !p.more {
		if err := out.entry(p.path, p.link, p.c, p.entry); err != nil {
			return namespace.E(namespace.KindOf(err), "export", "/"+p.path, err)
		}
		if p.entry.Type == catalog.File && p.link == "" {
			done.Files++
		}
	}
	for i, b := range p.data {
		hole := uint64(0)
		if b == nil {
			hole = p.c.ChunkLen(p.lo + i)
		}
		if x.ctx.Err() != nil { // a hole may be longer than anyone waits for
			return context.Cause(x.ctx)
		}
		if err := out.extent(b, hole); err != nil {
			return namespace.E(namespace.KindOf(err), "export", "/"+p.path, err)
		}
		done.Bytes += uint64(len(b))
	}
	return nil
}
