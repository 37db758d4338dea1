package builder

import (
	"context"
	"encoding/binary"
	"hash/crc32"
	"time"

	"golang.org/x/sys/unix"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/catalog"
)

// Memory is what an import of a directory saw of its files: with it, the next import of the same directory
// takes those over whose inode, size and times are what they were, as git's index does, and reads the
// others. A change of a file changes its ctime, which nobody can set but root with the clock; a file whose
// ctime was younger than racy when the import began is not remembered, since a change in the same tick of
// the clock would not show. Not safe for concurrent use.
type Memory struct {
	root  namespace.Digest // of the tree that was made
	files map[string]fileState
}

// racy is how coarse a file system's times may be.
const racy = 2 * time.Second

// memoryMagic begins the encoding of a Memory, which is private to one machine and may be lost.
const memoryMagic = "COPMEM1\n"

// NewMemory returns a Memory of nothing.
func NewMemory() *Memory { return &Memory{files: map[string]fileState{}} }

// OpenMemory returns what b, the result of Encode, says; a Memory of nothing if it is damaged.
func OpenMemory(b []byte) *Memory {
	m := NewMemory()
	n := len(b) - 4
	if n < len(memoryMagic)+namespace.DigestSize || string(b[:len(memoryMagic)]) != memoryMagic ||
		crc32.ChecksumIEEE(b[:n]) != binary.LittleEndian.Uint32(b[n:]) {
		return m
	}
	b = b[len(memoryMagic):n]
	copy(m.root[:], b)
	b = b[namespace.DigestSize:]
	const state = 5*8 + 2*4
	for len(b) > 0 {
		size, k := binary.Uvarint(b)
		if k <= 0 || size > namespace.PathBytesMax || len(b)-k < int(size)+state {
			return NewMemory()
		}
		path := string(b[k:][:size])
		b = b[k+int(size):]
		word := func(i int) uint64 { return binary.LittleEndian.Uint64(b[8*i:]) }
		m.files[path] = fileState{inode: inode{word(0), word(1)}, size: word(2),
			mtime: unix.StatxTimestamp{Sec: int64(word(3)), Nsec: binary.LittleEndian.Uint32(b[40:])},
			ctime: unix.StatxTimestamp{Sec: int64(word(4)), Nsec: binary.LittleEndian.Uint32(b[44:])}}
		b = b[state:]
	}
	return m
}

// Encode returns the bytes of m, for OpenMemory.
func (m *Memory) Encode() []byte {
	le := binary.LittleEndian
	b := append(append(make([]byte, 0, 128*len(m.files)+64), memoryMagic...), m.root[:]...)
	for path, s := range m.files {
		b = append(binary.AppendUvarint(b, uint64(len(path))), path...)
		for _, v := range []uint64{s.dev, s.ino, s.size, uint64(s.mtime.Sec), uint64(s.ctime.Sec)} {
			b = le.AppendUint64(b, v)
		}
		b = le.AppendUint32(le.AppendUint32(b, s.mtime.Nsec), s.ctime.Nsec)
	}
	return le.AppendUint32(b, crc32.ChecksumIEEE(b))
}

// takeOver completes the nodes of those files that did not change since the Memory of the options was
// filled, from the tree that was made then, and returns the others. The origin must still have their
// content. The Memory is filled anew, for the tree that is being made.
func (s *dirScan) takeOver(order []*foundFile, started time.Time) ([]*foundFile, error) {
	m := s.p.o.Memory
	if m == nil {
		return order, nil
	}
	was := m.files
	m.files = make(map[string]fileState, len(order))
	for _, f := range order {
		if at := time.Unix(f.state.ctime.Sec, int64(f.state.ctime.Nsec)); started.Sub(at) > racy {
			m.files[f.path()] = f.state
		}
	}
	if len(was) == 0 || s.p.o.Loader == nil {
		return order, nil
	}
	before, err := filesOf(s.p.ctx, s.p.o.Loader, m.root)
	if err != nil {
		return order, nil // collected, or damaged: then everything is read
	}
	var rest []*foundFile
	for _, f := range order {
		path := f.path()
		old, ok := before[path]
		if state, known := was[path]; !ok || !known || state != f.state {
			rest = append(rest, f)
			continue
		}
		n := old.Catalog.Node(old.Entry.Index)
		there, err := s.p.holds(n)
		if err != nil {
			return nil, err
		}
		if !there || n.Size != f.node.Size {
			rest = append(rest, f)
			continue
		}
		f.node.Chunks, f.node.Xattrs = n.Chunks, n.Xattrs
	}
	return rest, nil
}

// filesOf returns the files of a tree by path.
func filesOf(ctx context.Context, l catalog.Loader, root namespace.Digest) (map[string]catalog.Side, error) {
	all := map[string]catalog.Side{}
	err := catalog.Walk(ctx, l, root, func(path string, c *catalog.Catalog, e catalog.Entry) error {
		if e.Type == catalog.File {
			all[path] = catalog.Side{Catalog: c, Entry: e}
		}
		return nil
	})
	return all, err
}

// holds reports whether the origin has all chunks of n. To be called before anything is submitted.
func (p *pipeline) holds(n *catalog.Node) (bool, error) {
	for _, c := range n.Chunks {
		if c.Hole() {
			continue
		}
		if _, ok, err := p.known.place(p.ctx, c.Digest); err != nil || !ok {
			return false, err
		}
	}
	return true, nil
}
