package builder

import (
	"context"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/catalog"
)

// DirSource imports the directory at Path, as it is: modes, owners, times, xattrs, hard links,
// devices, fifos. It reads relative to the directory it opened and never through a symlink, so
// nothing outside can get in, even while others rename things below. Sockets are left out with a
// warning. Paths are at most PathBytesMax bytes long below it.
type DirSource struct {
	Path string
	// CrossDevices imports what is mounted below Path as well. By default a directory on which
	// something is mounted is imported empty, with the attributes of what is mounted there, and a
	// warning; a file on which another is mounted (as containers do for hosts and resolv.conf) is
	// imported as it reads.
	CrossDevices bool
}

// scansMax bounds the directories that are read at a time, hence open descriptors; more than
// processors, since a cold disk answers requests in parallel.
const scansMax = 8

// dirScan is the state of one import of a directory.
type dirScan struct {
	root  int // descriptor
	cross bool
	p     *pipeline
	ctx   context.Context
	group *errgroup.Group
}

// foundDir is a directory's content: what is no directory, and subdirectories.
type foundDir struct {
	node  *catalog.Node
	path  string // relative to the root, "" for it
	files []*foundFile
	dirs  []*foundDir
}

// foundFile is what is no directory, with what tells whether it changed since.
type foundFile struct {
	node   *catalog.Node
	dir    *foundDir
	state  fileState
	names  uint32 // on the file system
	sparse bool
}

type inode struct{ dev, ino uint64 }

// fileState changes whenever a file's content does.
type fileState struct {
	inode
	size         uint64
	mtime, ctime unix.StatxTimestamp
}

func (f *foundFile) path() string { return join(f.dir.path, f.node.Name) }

func join(dir, name string) string {
	if dir == "" {
		return name
	}
	return dir + "/" + name
}

// read implements Source.
func (d DirSource) read(ctx context.Context, p *pipeline) (*scan, error) {
	started := time.Now()
	s, top, err := d.find(ctx, p)
	if err != nil {
		return nil, err
	}
	order, out := top.layout()
	if order, err = s.takeOver(order, started); err != nil {
		return nil, err
	}
	return out, s.submit(order)
}

// find reads all there is but content.
func (d DirSource) find(ctx context.Context, p *pipeline) (*dirScan, *foundDir, error) {
	root, err := os.OpenFile(d.Path, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, nil, namespace.E(sourceKind(err), "import", d.Path, err)
	}
	p.cleanup(func() { root.Close() })
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(scansMax)
	s := &dirScan{root: int(root.Fd()), cross: d.CrossDevices, p: p, ctx: ctx, group: group}
	top := &foundDir{}
	var st unix.Statx_t
	err = statx(s.root, ".", &st)
	if err == nil {
		top.node, err = s.node(s.root, ".", &st)
	}
	if err != nil {
		return nil, nil, namespace.E(sourceKind(err), "import", d.Path, err)
	}
	top.node.Name = ""
	err = s.scan(top)
	if failed := group.Wait(); err == nil {
		err = failed
	}
	return s, top, err
}

// scan reads a directory and then its subdirectories, in other goroutines while there is room.
func (s *dirScan) scan(d *foundDir) error {
	if s.ctx.Err() != nil {
		return context.Cause(s.ctx)
	}
	if err := s.list(d); err != nil {
		return err
	}
	for _, sub := range d.dirs {
		if s.group.TryGo(func() error { return s.scan(sub) }) {
			continue
		}
		if err := s.scan(sub); err != nil {
			return err
		}
	}
	return nil
}

// list fills d with what the directory holds.
func (s *dirScan) list(d *foundDir) error {
	fd, err := s.open(d.path, unix.O_DIRECTORY)
	if err != nil {
		return s.fail(d.path, err)
	}
	defer unix.Close(fd)
	if d.node.Xattrs, err = fdXattrs(fd); err != nil {
		return s.fail(d.path, err)
	}
	names, err := readNames(fd)
	if err != nil {
		return s.fail(d.path, err)
	}
	slices.Sort(names)
	d.node.Children = make([]*catalog.Node, 0, len(names))
	for _, name := range names {
		if err := s.add(d, fd, name); err != nil {
			return err
		}
	}
	return nil
}

var direntBuffers = sync.Pool{New: func() any { b := make([]byte, 256<<10); return &b }}

func readNames(fd int) ([]string, error) {
	buf := direntBuffers.Get().(*[]byte)
	defer direntBuffers.Put(buf)
	var names []string
	for {
		n, err := unix.ReadDirent(fd, *buf)
		if err == unix.EINTR {
			continue
		}
		if err != nil || n == 0 {
			return names, err
		}
		_, _, names = unix.ParseDirent((*buf)[:n], -1, names)
	}
}

// add records one name of d.
func (s *dirScan) add(d *foundDir, fd int, name string) error {
	path := join(d.path, name)
	if len(path) >= namespace.PathBytesMax {
		return s.p.errs.add(namespace.E(namespace.Limit, "import", path[:64]+"…",
			fmt.Errorf("a path of %d bytes, at most %d", len(path), namespace.PathBytesMax-1)))
	}
	var st unix.Statx_t
	if err := statx(fd, name, &st); err != nil {
		return s.fail(path, err)
	}
	if st.Mode&unix.S_IFMT == unix.S_IFSOCK {
		s.p.warn(path, "a socket; left out")
		return nil
	}
	node, err := s.node(fd, name, &st)
	if err != nil {
		return s.fail(path, err)
	}
	mounted := st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0
	scanned := node.Type == catalog.Dir && (s.cross || !mounted)
	if !scanned && !(node.Type == catalog.File && node.Size > 0) { // these are opened later
		if node.Xattrs, err = nameXattrs(fd, name); err != nil {
			return s.fail(path, err)
		}
	}
	d.node.Children = append(d.node.Children, node)
	if node.Type != catalog.Dir {
		if mounted {
			s.p.warn(path, "something is mounted here; imported as it reads")
		}
		d.files = append(d.files, &foundFile{
			node: node, dir: d, state: stateOf(&st), names: st.Nlink, sparse: st.Blocks*512 < st.Size,
		})
		return nil
	}
	if !scanned {
		s.p.warn(path, "something is mounted here; imported empty")
		return nil
	}
	d.dirs = append(d.dirs, &foundDir{node: node, path: path})
	return nil
}

// fail records that path cannot be imported.
func (s *dirScan) fail(path string, err error) error {
	if path == "" {
		path = "."
	}
	return s.p.errs.add(namespace.E(sourceKind(err), "import", path, err))
}

// sourceKind is the Kind of a system call's error on the source.
func sourceKind(err error) namespace.Kind {
	if k := namespace.KindOf(err); k != namespace.Internal {
		return k
	}
	return namespace.Unavailable
}

// open opens path below the root, which must not lead through a symlink. It does not wait for
// the writer of a fifo that has just taken a file's place.
func (s *dirScan) open(path string, flags uint64) (int, error) {
	how := unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_NOATIME | flags,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
	}
	if path == "" {
		path = "."
	}
	for {
		fd, err := unix.Openat2(s.root, path, &how)
		switch {
		case err == unix.EINTR:
		case err == unix.EPERM && how.Flags&unix.O_NOATIME != 0: // not the owner
			how.Flags &^= unix.O_NOATIME
		default:
			return fd, err
		}
	}
}

// layout returns the files with content in the order of their layout, and the tree.
func (d *foundDir) layout() ([]*foundFile, *scan) {
	out := &scan{root: d.node}
	var order []*foundFile
	groups := map[inode]int{}
	var visit func(d *foundDir)
	visit = func(d *foundDir) {
		for _, f := range d.files {
			if f.names > 1 {
				i, ok := groups[f.state.inode]
				if ok {
					out.groups[i] = append(out.groups[i], f.node)
					continue
				}
				groups[f.state.inode] = len(out.groups)
				out.groups = append(out.groups, []*catalog.Node{f.node})
			}
			if f.node.Type == catalog.File && f.node.Size > 0 {
				order = append(order, f)
			}
		}
		for _, sub := range d.dirs {
			visit(sub)
		}
	}
	visit(d)
	return order, out
}

// submit queues the content of files: small neighbours together.
func (s *dirScan) submit(order []*foundFile) error {
	var bytes uint64
	for _, f := range order {
		bytes += f.state.size
	}
	s.p.expect(uint64(len(order)), bytes)
	for len(order) > 0 {
		n, size := 0, uint64(0)
		for n < len(order) && n < batchFiles && size+order[n].state.size <= batchBytes {
			size += order[n].state.size
			n++
		}
		batch := order[:max(n, 1)]
		run := func(r *reader, emit func(parcel) error) error { return s.readBatch(r, batch, emit) }
		if n == 0 {
			run = func(r *reader, emit func(parcel) error) error { return s.readLarge(r, batch[0], emit) }
		}
		if err := s.p.submit(run); err != nil {
			return err
		}
		order = order[len(batch):]
	}
	return nil
}
