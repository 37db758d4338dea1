package fusefs

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/catalog"
)

// forever is the time-out, in seconds, of what cannot change: 31 years, which no kernel overflows.
const forever = 1_000_000_000

// rawFS answers the kernel. Everything not defined here is ENOSYS, from the embedded default; the
// superblock is read-only, so the kernel never asks to write.
type rawFS struct {
	fuse.RawFileSystem
	src     Source
	table   *table
	log     *slog.Logger
	timeout time.Duration
	// generations finds the root catalog of a generation by its name below the super-root.
	generations func(name string) (catalogAt, bool)
	fails       failures
	push        *pusher
}

// catalogAt is an instance's number and its catalog.
type catalogAt struct {
	inst uint32
	root namespace.Digest
	cat  *catalog.Catalog
}

var _ fuse.RawFileSystem = (*rawFS)(nil)

// String implements fuse.RawFileSystem.
func (r *rawFS) String() string { return "coppice" }

// Open answers ENOSYS: the kernel opens files by itself from then on, and keeps their pages.
func (r *rawFS) Open(<-chan struct{}, *fuse.OpenIn, *fuse.OpenOut) fuse.Status { return fuse.ENOSYS }

// OpenDir answers ENOSYS: the kernel caches directory pages from then on.
func (r *rawFS) OpenDir(<-chan struct{}, *fuse.OpenIn, *fuse.OpenOut) fuse.Status {
	return fuse.ENOSYS
}

// Access answers ENOSYS: the kernel checks permissions itself.
func (r *rawFS) Access(<-chan struct{}, *fuse.AccessIn) fuse.Status { return fuse.ENOSYS }

// Flush answers ENOSYS: there is nothing to flush.
func (r *rawFS) Flush(<-chan struct{}, *fuse.FlushIn) fuse.Status { return fuse.ENOSYS }

// request returns a context that ends with the bound of a request. An interrupt does not end it:
// programs in Go interrupt their own system calls all the time, and would see EINTR where a local
// file system never gives one. What they wait for is bounded anyway.
func (r *rawFS) request() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), r.timeout)
}

// fail logs an error, not more often than failures allows, and returns its errno.
func (r *rawFS) fail(op string, node uint64, err error) fuse.Status {
	if n, ok := r.fails.note(); ok {
		r.log.Error("request failed", "op", op, "path", r.where(node), "error", err, "failures", n)
	}
	return status(err)
}

// where names a node for people: by its path in its generation.
func (r *rawFS) where(node uint64) string {
	in, entry, _, ok := r.table.get(node)
	if !ok {
		return fmt.Sprintf("node %#x", node)
	}
	path, _ := r.table.pathOf(in, entry)
	return "/" + strings.Join(path, "/")
}

// Lookup implements fuse.RawFileSystem.
func (r *rawFS) Lookup(_ <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	if h.NodeId == superRoot {
		return r.lookupGeneration(name, out)
	}
	ctx, cancel := r.request()
	defer cancel()
	d, st := r.directory(ctx, h.NodeId)
	if st != fuse.OK {
		return st
	}
	defer r.table.release(d.inst)
	i, ok := d.in.cat.Lookup(d.entry, []byte(name))
	if !ok {
		out.NodeId, out.EntryValid = 0, forever // a negative entry, kept as long as others
		return fuse.OK
	}
	if err := r.enter(d, d.in.cat.Entry(i), out); err != nil {
		return r.fail("lookup", h.NodeId, err)
	}
	return fuse.OK
}

func (r *rawFS) lookupGeneration(name string, out *fuse.EntryOut) fuse.Status {
	g, ok := r.generations(name)
	if !ok {
		return fuse.ENOENT
	}
	dir := dirInfo{gen: g.root}
	node := dirNode(g.root, pathID{})
	if err := r.table.enter(node, g.inst, 0, &dir); err != nil {
		return r.fail("lookup", superRoot, err)
	}
	fill(out, node, dirInode(pathID{}), g.cat, g.cat.Entry(0))
	return fuse.OK
}

// place is a directory that is about to be read: its entry in the catalog that holds its children.
// The instance is held until release.
type place struct {
	dirInfo
	node  uint64
	inst  uint32
	in    *instance
	entry int
}

// directory finds the node of a directory, loading its own catalog if it is a nested one. If it
// succeeds, the caller releases the place's instance.
func (r *rawFS) directory(ctx context.Context, node uint64) (place, fuse.Status) {
	in, inst, entry, info, ok := r.table.hold(node)
	if !ok {
		return place{}, fuse.Status(syscall.ESTALE)
	}
	p := place{dirInfo: info, node: node, in: in, entry: entry, inst: inst}
	e := in.cat.Entry(entry)
	if e.Type == catalog.Dir && !e.IsNested() {
		return p, fuse.OK
	}
	defer r.table.release(inst)
	if e.Type != catalog.Dir {
		return place{}, fuse.ENOTDIR
	}
	sub, err := in.cat.Enter(ctx, r.src, entry)
	if err != nil {
		return place{}, r.fail("load catalog", node, err)
	}
	ref, _ := in.cat.Nested(entry)
	tree := in.tree
	if ref.TreeRoot {
		tree = info.path
	}
	p.inst, p.in, err = r.table.addInstance(instance{cat: sub, digest: ref.Digest, gen: in.gen, tree: tree, parent: in, parentEntry: entry}, info.path)
	if err != nil {
		return place{}, r.fail("load catalog", node, err)
	}
	p.entry = 0
	r.table.resolve(node, p.inst)
	return p, fuse.OK
}

// enter makes entry e of directory d known to the kernel and fills in the answer.
func (r *rawFS) enter(d place, e catalog.Entry, out *fuse.EntryOut) error {
	if e.Type == catalog.Dir {
		info := dirInfo{path: d.path.child(e.Name), gen: d.gen}
		node := dirNode(d.gen, info.path)
		if err := r.table.enter(node, d.inst, e.Index, &info); err != nil {
			return err
		}
		fill(out, node, dirInode(info.path), d.in.cat, e)
		return nil
	}
	node := fileNode(d.in.cat, e.Index, e.Name, d.path, d.in.tree)
	if err := r.table.enter(node, d.inst, e.Index, nil); err != nil {
		return err
	}
	fill(out, node, node, d.in.cat, e)
	return nil
}

func fill(out *fuse.EntryOut, node, ino uint64, c *catalog.Catalog, e catalog.Entry) {
	out.NodeId, out.Generation = node, 1
	out.EntryValid, out.AttrValid = forever, forever
	fillAttr(&out.Attr, ino, c, e)
}

var formats = [...]uint32{
	catalog.Dir: syscall.S_IFDIR, catalog.File: syscall.S_IFREG, catalog.Symlink: syscall.S_IFLNK,
	catalog.CharDevice: syscall.S_IFCHR, catalog.BlockDevice: syscall.S_IFBLK, catalog.Fifo: syscall.S_IFIFO,
}

// dirSize is the size shown for a directory: what ext4 shows for a small one.
const dirSize = 4096

func fillAttr(a *fuse.Attr, ino uint64, c *catalog.Catalog, e catalog.Entry) {
	a.Ino = ino
	a.Mode = formats[e.Type] | uint32(e.Mode)
	a.Nlink = e.Nlink
	a.Uid, a.Gid = e.UID, e.GID
	a.Mtime, a.Mtimensec = uint64(e.MtimeSec), e.MtimeNsec
	a.Atime, a.Atimensec = a.Mtime, a.Mtimensec
	a.Ctime, a.Ctimensec = a.Mtime, a.Mtimensec
	a.Blksize = 4096
	switch e.Type {
	case catalog.Dir:
		a.Size, a.Blocks = dirSize, dirSize/512
	case catalog.CharDevice, catalog.BlockDevice:
		major, minor := e.Rdev()
		a.Rdev = minor&0xff | major<<8 | (minor&^0xff)<<12 // as the kernel encodes a 32-bit dev_t
	default:
		a.Size = e.Size
		a.Blocks = blocks(c, e)
	}
}

// GetAttr implements fuse.RawFileSystem.
func (r *rawFS) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	out.AttrValid = forever
	if in.NodeId == superRoot {
		out.Attr = fuse.Attr{Ino: superRoot, Mode: syscall.S_IFDIR | 0o755, Nlink: 2}
		return fuse.OK
	}
	inst, entry, info, ok := r.table.get(in.NodeId)
	if !ok {
		return fuse.Status(syscall.ESTALE)
	}
	e, ino := inst.cat.Entry(entry), in.NodeId
	if e.Type == catalog.Dir {
		ino = dirInode(info.path)
	}
	fillAttr(&out.Attr, ino, inst.cat, e)
	return fuse.OK
}

// blocks returns how many 512-byte blocks hold data: a file's holes take none.
func blocks(c *catalog.Catalog, e catalog.Entry) uint64 {
	n := (e.Size + 511) / 512
	for k, hi := c.Chunks(e.Index); k < hi; k++ {
		if c.Chunk(k).Hole() {
			n -= c.ChunkLen(k) / 512
		}
	}
	return n
}

// Forget implements fuse.RawFileSystem.
func (r *rawFS) Forget(node, n uint64) { r.table.forget(node, n) }

// Readlink implements fuse.RawFileSystem.
func (r *rawFS) Readlink(_ <-chan struct{}, h *fuse.InHeader) ([]byte, fuse.Status) {
	in, entry, _, ok := r.table.get(h.NodeId)
	if !ok {
		return nil, fuse.Status(syscall.ESTALE)
	}
	if target := in.cat.Target(entry); target != nil {
		return target, fuse.OK
	}
	return nil, fuse.EINVAL
}

// GetXAttr implements fuse.RawFileSystem.
func (r *rawFS) GetXAttr(_ <-chan struct{}, h *fuse.InHeader, name string, dest []byte) (uint32, fuse.Status) {
	in, entry, _, ok := r.table.get(h.NodeId)
	if !ok {
		return 0, fuse.ENODATA
	}
	v, ok := in.cat.Xattr(entry, name)
	if !ok {
		return 0, fuse.ENODATA
	}
	return answer(dest, v)
}

// ListXAttr implements fuse.RawFileSystem.
func (r *rawFS) ListXAttr(_ <-chan struct{}, h *fuse.InHeader, dest []byte) (uint32, fuse.Status) {
	in, entry, _, ok := r.table.get(h.NodeId)
	if !ok {
		return 0, fuse.OK
	}
	var names []byte
	for _, x := range in.cat.Xattrs(entry) {
		names = append(append(names, x.Name...), 0)
	}
	return answer(dest, names)
}

// answer copies v, or only says how long it is if nothing was offered to copy it to.
func answer(dest, v []byte) (uint32, fuse.Status) {
	if len(dest) > 0 && len(dest) < len(v) {
		return uint32(len(v)), fuse.ERANGE
	}
	copy(dest, v)
	return uint32(len(v)), fuse.OK
}

// StatFs implements fuse.RawFileSystem: a full file system of the size of the tree.
func (r *rawFS) StatFs(_ <-chan struct{}, h *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	out.Bsize, out.Frsize, out.NameLen = 4096, 4096, namespace.NameBytesMax
	if in, _, _, ok := r.table.get(h.NodeId); ok {
		if g, ok := r.generations(in.gen.Hex()); ok {
			out.Blocks, out.Files = (g.cat.Bytes()+4095)/4096, g.cat.Total()
		}
	}
	return fuse.OK
}
