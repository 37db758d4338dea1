package builder

import (
	"context"

	"golang.org/x/sync/errgroup"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/object"
)

// putsMax bounds the packs that are being stored at a time, hence their memory, and lets a slow
// store's latency overlap with work.
const putsMax = 3

// layout groups new chunks into frames, has them compressed in parallel and writes them to packs
// in the order in which they came.
type layout struct {
	p     *pipeline
	open  *frame      // collects small chunks; owned by the sequencer
	todo  chan *frame // to the compressors
	order chan *frame // to the packer
	packs *object.PackWriter
	puts  *errgroup.Group
}

// frame is a frame on its way. ready is closed when stored and codec are set.
type frame struct {
	plain  *buffer
	used   int
	chunks []object.FrameChunk
	stored []byte
	codec  object.Codec
	ready  chan struct{}
}

func newLayout(p *pipeline, workers int) *layout {
	l := &layout{
		p:    p,
		todo: make(chan *frame, 2*workers), order: make(chan *frame, 4*workers),
		packs: object.NewPackWriter(),
	}
	for range workers {
		p.group.Go(l.compress)
	}
	p.group.Go(l.pack)
	return l
}

// add puts a chunk into a frame; data is copied. A large chunk is a frame of its own and does not
// close the one that collects small chunks: neighbours stay together around it.
func (l *layout) add(d namespace.Digest, data []byte) error {
	if len(data) >= l.p.o.FrameBytes {
		f := &frame{plain: newBuffer(len(data))}
		f.append(d, data)
		return l.send(f)
	}
	if l.open == nil {
		l.open = &frame{plain: newBuffer(2 * l.p.o.FrameBytes)}
	}
	l.open.append(d, data)
	if l.open.used >= l.p.o.FrameBytes || len(l.open.chunks) == namespace.FrameChunksMax {
		return l.flush()
	}
	return nil
}

func (f *frame) append(d namespace.Digest, data []byte) {
	f.chunks = append(f.chunks, object.FrameChunk{Digest: d, Off: uint32(f.used), Len: uint32(len(data))})
	f.used += copy(f.plain.b[f.used:], data)
}

// flush sends the frame that collects small chunks on.
func (l *layout) flush() error {
	f := l.open
	if f == nil {
		return nil
	}
	l.open = nil
	return l.send(f)
}

func (l *layout) send(f *frame) error {
	f.ready = make(chan struct{})
	for _, queue := range []chan *frame{l.order, l.todo} {
		select {
		case queue <- f:
		case <-l.p.ctx.Done():
			return context.Cause(l.p.ctx)
		}
	}
	return nil
}

// close says that no more frames come.
func (l *layout) close() {
	close(l.todo)
	close(l.order)
}

func (l *layout) compress() error {
	for f := range l.todo {
		f.stored, f.codec = object.EncodeFrame(f.plain.b[:f.used])
		close(f.ready)
	}
	return nil
}

// pack appends frames to packs, in order, and stores each pack that is full.
func (l *layout) pack() error {
	puts, ctx := errgroup.WithContext(l.p.ctx)
	puts.SetLimit(putsMax)
	l.puts = puts
	err := l.packAll(ctx)
	if failed := puts.Wait(); failed != nil {
		return failed
	}
	return err
}

func (l *layout) packAll(ctx context.Context) error {
	for {
		select {
		case f, ok := <-l.order:
			if !ok {
				return l.store(ctx)
			}
			if err := l.take(ctx, f); err != nil {
				return err
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (l *layout) take(ctx context.Context, f *frame) error {
	select {
	case <-f.ready:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if err := l.packs.Add(f.stored, f.codec, uint32(f.used), f.chunks); err != nil {
		return err
	}
	f.plain.release() // stored may alias it, and has been copied now
	if l.packs.Size() >= l.p.o.PackBytes {
		return l.store(ctx)
	}
	return nil
}

// store closes the current pack and stores it. The sequencer's queue is closed before the last
// one, so a canceled import never stores a pack that holds part of what was claimed as whole:
// a pack is whole by itself, and the index is written after all of them.
func (l *layout) store(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	b, d, frames := l.packs.Finish()
	if len(frames) == 0 {
		return nil
	}
	l.p.known.learn(d, frames)
	l.puts.Go(func() error {
		if err := l.p.store.Put(ctx, namespace.Key{Class: namespace.Pack, Digest: d}, b); err != nil {
			return err
		}
		l.p.stored(len(b))
		return nil
	})
	return nil
}
