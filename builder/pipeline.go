package builder

import (
	"context"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/catalog"
	"coppice.dev/coppice/namespace/object"
)

// pipeline carries content from a source to packs. Its goroutines end when finish returns.
//
//	source ─submit─► work ─► readers (hash) ─┐
//	            └──► order ─────────────────►sequencer ─► frames ─► compressors ─► packer ─► Put
type pipeline struct {
	ctx   context.Context
	group *errgroup.Group
	store namespace.Store
	known *known
	o     Options

	previous *previous // nil: none

	work  chan *job
	order chan *job
	lay   *layout

	errs     failures
	cleanups []func()

	mu     sync.Mutex // guards what follows
	told   time.Time
	done   Progress
	warned sync.Mutex
	result Result
}

// job is a piece of content between submit and the sequencer. A reader runs it; the parcels it
// makes are taken in the order of submission.
type job struct {
	run func(r *reader, emit func(parcel) error) error
	out chan parcel
}

// parcel is some consecutive extents and the buffer that their data lies in.
type parcel struct {
	extents []extent
	buf     *buffer
	files   uint64 // files that end in this parcel
}

// extent is one extent of a node's content: data with its digest, or a hole.
type extent struct {
	node   *catalog.Node
	data   []byte
	digest namespace.Digest
	hole   uint64
	reset  bool // the node's content starts anew: it changed while it was read, or is not what it was
}

// buffer is pooled memory of one of two sizes.
type buffer struct {
	b    []byte
	pool *sync.Pool
}

const (
	batchBytes = 256 << 10 // small files read together; also where a file counts as small
	batchFiles = 128
)

var (
	batchPool = &sync.Pool{New: func() any { return new(buffer{b: make([]byte, batchBytes)}) }}
	chunkPool = &sync.Pool{New: func() any { return new(buffer{b: make([]byte, namespace.ChunkBytesMax)}) }}
)

// newBuffer returns a buffer of at least n ≤ ChunkBytesMax bytes.
func newBuffer(n int) *buffer {
	pool := chunkPool
	if n <= batchBytes {
		pool = batchPool
	}
	b := pool.Get().(*buffer)
	b.pool = pool
	return b
}

func (b *buffer) release() {
	if b != nil {
		b.pool.Put(b)
	}
}

func newPipeline(ctx context.Context, store namespace.Store, k *known, o Options) *pipeline {
	group, ctx := errgroup.WithContext(ctx)
	workers := runtime.GOMAXPROCS(0)
	p := &pipeline{
		ctx: ctx, group: group, store: store, known: k, o: o, previous: newPrevious(o),
		work:  make(chan *job, 4*workers),
		order: make(chan *job, 4*workers),
	}
	p.lay = newLayout(p, workers)
	for range workers + 2 { // two more, so that waiting for a disk leaves no processor idle
		group.Go(p.reader)
	}
	group.Go(p.sequence)
	return p
}

// submit queues a job; it blocks while the queues are full. It must be called by one goroutine
// at a time. A job taken from work is always earlier in order than those that wait, hence the
// sequencer never waits for a job that no reader can reach.
func (p *pipeline) submit(run func(*reader, func(parcel) error) error) error {
	j := &job{run: run, out: make(chan parcel, 2)}
	for _, queue := range []chan *job{p.order, p.work} {
		select {
		case queue <- j:
		case <-p.ctx.Done():
			return context.Cause(p.ctx)
		}
	}
	return nil
}

// cleanup has f called when the last job has ended. Only sources call it, from read.
func (p *pipeline) cleanup(f func()) { p.cleanups = append(p.cleanups, f) }

// finish waits for all that was submitted and returns the first error. err is the source's own.
func (p *pipeline) finish(err error) error {
	if err != nil {
		p.errs.fatal(err)
		p.group.Go(func() error { return err }) // cancels the others
	}
	close(p.work)
	close(p.order)
	failed := p.group.Wait()
	for _, f := range p.cleanups {
		f()
	}
	if all := p.errs.join(); all != nil {
		return all
	}
	if failed != nil {
		return namespace.E(namespace.KindOf(failed), "import", "", failed)
	}
	return nil
}

// reader is the state of one reading goroutine.
type reader struct {
	p   *pipeline
	cut *object.Cutter
}

func newReader(p *pipeline) *reader { return &reader{p: p, cut: object.NewCutter()} }

func (p *pipeline) reader() error {
	r := newReader(p)
	for {
		select {
		case j, ok := <-p.work:
			if !ok {
				return nil
			}
			if err := r.run(j); err != nil {
				return err
			}
		case <-p.ctx.Done():
			return context.Cause(p.ctx)
		}
	}
}

func (r *reader) run(j *job) error {
	defer close(j.out)
	return j.run(r, func(pc parcel) error {
		for i := range pc.extents {
			if e := &pc.extents[i]; len(e.data) > 0 && e.digest.IsZero() {
				e.digest = namespace.Sum(e.data)
			}
		}
		select {
		case j.out <- pc:
			return nil
		case <-r.p.ctx.Done():
			return context.Cause(r.p.ctx)
		}
	})
}

// sequence takes parcels in order, completes the nodes' chunk lists and hands new chunks on.
func (p *pipeline) sequence() error {
	defer p.lay.close()
	for {
		select {
		case j, ok := <-p.order:
			if !ok {
				return p.lay.flush()
			}
			if err := p.takeAll(j); err != nil {
				return err
			}
		case <-p.ctx.Done():
			return context.Cause(p.ctx)
		}
	}
}

func (p *pipeline) takeAll(j *job) error {
	for {
		select {
		case pc, ok := <-j.out:
			if !ok {
				return nil
			}
			if err := p.take(pc); err != nil {
				return err
			}
		case <-p.ctx.Done():
			return context.Cause(p.ctx)
		}
	}
}

func (p *pipeline) take(pc parcel) error {
	defer pc.buf.release()
	var bytes uint64
	for i := range pc.extents {
		e := &pc.extents[i]
		if e.reset {
			e.node.Chunks = nil
			continue
		}
		var end uint64
		if n := len(e.node.Chunks); n > 0 {
			end = e.node.Chunks[n-1].End
		}
		end += e.hole + uint64(len(e.data))
		e.node.Chunks = append(e.node.Chunks, catalog.Chunk{Digest: e.digest, End: end})
		bytes += e.hole + uint64(len(e.data))
		if len(e.data) == 0 {
			continue
		}
		fresh, err := p.known.claim(p.ctx, e.digest)
		if err != nil {
			return err
		}
		if fresh {
			p.result.NewChunks++
			p.result.NewBytes += uint64(len(e.data))
			if err := p.lay.add(e.digest, e.data); err != nil {
				return err
			}
		}
	}
	p.mu.Lock()
	p.done.Files += pc.files
	p.done.Bytes += bytes
	p.mu.Unlock()
	p.report(false)
	return nil
}

// expect tells the totals, once a source knows them.
func (p *pipeline) expect(files, bytes uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.done.FilesTotal, p.done.BytesTotal = files, bytes
}

// stored counts a written pack.
func (p *pipeline) stored(bytes int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.result.Packs++
	p.result.Stored += uint64(bytes)
	p.done.Stored = p.result.Stored
}

// report calls Options.Progress, unless it has just been called.
func (p *pipeline) report(always bool) {
	if p.o.Progress == nil {
		return
	}
	p.mu.Lock()
	now, done := time.Now(), p.done
	due := always || now.Sub(p.told) >= progressEvery
	if due {
		p.told = now
	}
	p.mu.Unlock()
	if due {
		p.o.Progress(done)
	}
}

func (p *pipeline) warn(path, reason string) {
	if p.o.Warn == nil {
		return
	}
	p.warned.Lock()
	defer p.warned.Unlock()
	p.o.Warn(path, reason)
}
