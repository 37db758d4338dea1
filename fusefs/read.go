package fusefs

import (
	"context"
	"io"
	"sync"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/catalog"
)

// Read implements fuse.RawFileSystem.
func (r *rawFS) Read(_ <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	inst, entry, _, ok := r.table.get(in.NodeId)
	if !ok {
		return nil, fuse.Status(syscall.ESTALE)
	}
	ctx, cancel := r.request()
	defer cancel()
	if int(in.Size) < len(buf) {
		buf = buf[:in.Size]
	}
	n, err := r.readAt(ctx, inst, entry, buf, in.Offset)
	if err != nil {
		return nil, r.fail("read", in.NodeId, err)
	}
	if in.Offset == 0 && n <= pushFileMax && n < len(buf) {
		r.push.note(inst, entry)
	}
	return fuse.ReadResultData(buf[:n]), fuse.OK
}

// readAt fills buf from byte off of a file on; it returns less only at the file's end.
func (r *rawFS) readAt(ctx context.Context, in *instance, entry int, buf []byte, off uint64) (int, error) {
	c := in.cat
	done := 0
	for done < len(buf) {
		k, start, ok := c.FindChunk(entry, off+uint64(done))
		if !ok {
			break
		}
		chunk, skip := c.Chunk(k), off+uint64(done)-start
		want := min(uint64(len(buf)-done), chunk.End-start-skip)
		part := buf[done : done+int(want)]
		if chunk.Hole() {
			clear(part)
			done += len(part)
			continue
		}
		ref := namespace.ChunkRef{Catalog: in.digest, Index: uint32(k), Digest: chunk.Digest, Size: uint32(chunk.End - start)}
		n, err := r.src.ReadChunk(ctx, ref, part, int64(skip))
		if err == nil && n < len(part) {
			err = namespace.E(namespace.Corrupt, "read", "chunk "+chunk.Digest.String(), io.ErrUnexpectedEOF)
		}
		if err != nil {
			return 0, err
		}
		done += n
	}
	return done, nil
}

// Lseek implements fuse.RawFileSystem for SEEK_DATA and SEEK_HOLE; the kernel does the others.
func (r *rawFS) Lseek(_ <-chan struct{}, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	const seekData, seekHole = 3, 4
	inst, entry, _, ok := r.table.get(in.NodeId)
	if !ok {
		return fuse.Status(syscall.ESTALE)
	}
	e := inst.cat.Entry(entry)
	if e.Type != catalog.File || in.Whence != seekData && in.Whence != seekHole {
		return fuse.EINVAL
	}
	off, found := seek(inst.cat, e, in.Offset, in.Whence == seekHole)
	if !found {
		return fuse.Status(syscall.ENXIO)
	}
	out.Offset = off
	return fuse.OK
}

// seek returns the first byte from off on that is in a hole, or in data. The end of a file is a hole.
func seek(c *catalog.Catalog, e catalog.Entry, off uint64, hole bool) (uint64, bool) {
	if off >= e.Size {
		return 0, false
	}
	k, start, _ := c.FindChunk(e.Index, off)
	for _, hi := c.Chunks(e.Index); k < hi; k++ {
		if c.Chunk(k).Hole() == hole {
			return max(off, start), true
		}
		start = c.Chunk(k).End
	}
	return e.Size, hole
}

// failures bounds how often failing requests are logged: a program that retries should not fill
// the disk.
type failures struct {
	mu    sync.Mutex
	total uint64
	since time.Time
	burst int
}

const (
	burstMax    = 20
	burstWindow = 10 * time.Second
)

// note counts a failure; ok says whether to log it. n is the total so far.
func (f *failures) note() (n uint64, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.total++
	if now := time.Now(); now.Sub(f.since) > burstWindow {
		f.since, f.burst = now, 0
	}
	f.burst++
	return f.total, f.burst <= burstMax
}
