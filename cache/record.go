package cache

import (
	"context"
	"encoding/binary"
	"os"
	"sync"

	"github.com/cespare/xxhash/v2"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/catalog"
)

// waits remembers what reads had to wait for, the first time each, in their order, so that a profile can
// be made better by what it lacks. It is a hint: whatever of its file is damaged is dropped, and it is
// never synced. The file is a magic and records of 40 bytes: a catalog's digest, the number of a chunk in
// its table, little endian, all ones for the catalog itself, and 4 bytes of checksum.
// Safe for concurrent use; the zero value, before open, remembers nothing.
type waits struct {
	mu   sync.Mutex
	path string
	file *os.File // nil: nothing is kept on disk
	all  []catalog.Access
	seen map[catalog.Access]bool
}

const (
	waitsMagic = "COPWAIT1"
	waitRecord = namespace.DigestSize + 8
	// waitsMax bounds them, at 40 bytes each on disk and some 120 in memory: the older half goes when
	// there are more.
	waitsMax = 16 << 10
)

// open reads what was remembered. What cannot be read is forgotten.
func (m *waits) open(path string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.path, m.seen = path, map[catalog.Access]bool{}
	b, _ := os.ReadFile(path)
	clean := len(b) >= len(waitsMagic) && string(b[:len(waitsMagic)]) == waitsMagic && len(b) <= len(waitsMagic)+waitsMax*waitRecord
	if clean {
		for b = b[len(waitsMagic):]; len(b) >= waitRecord; b = b[waitRecord:] {
			a, ok := decodeWait(b)
			if clean = ok && !m.seen[a]; !clean {
				break
			}
			m.all, m.seen[a] = append(m.all, a), true
		}
		clean = clean && len(b) == 0
	}
	if clean {
		m.file, _ = os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0o600)
		return
	}
	m.rewrite()
}

// note remembers an access, unless it is known.
func (m *waits) note(a catalog.Access) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.seen == nil || m.seen[a] {
		return
	}
	if len(m.all) == waitsMax {
		for _, old := range m.all[:waitsMax/2] {
			delete(m.seen, old)
		}
		m.all = append([]catalog.Access{}, m.all[waitsMax/2:]...)
		m.rewrite()
	}
	m.all, m.seen[a] = append(m.all, a), true
	if m.file != nil {
		if _, err := m.file.Write(encodeWait(nil, a)); err != nil { // a full disk
			m.shut()
		}
	}
}

// rewrite makes the file anew; with mu held.
func (m *waits) rewrite() {
	m.shut()
	b := []byte(waitsMagic)
	for _, a := range m.all {
		b = encodeWait(b, a)
	}
	f, err := os.OpenFile(m.path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|os.O_APPEND, 0o600)
	if err != nil {
		return
	}
	if _, err := f.Write(b); err != nil {
		f.Close()
		return
	}
	m.file = f
}

func (m *waits) shut() {
	if m.file != nil {
		m.file.Close()
		m.file = nil
	}
}

// close forgets nothing, but notes nothing more.
func (m *waits) close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.shut()
	m.seen = nil
}

func encodeWait(b []byte, a catalog.Access) []byte {
	start := len(b)
	b = append(b, a.Catalog[:]...)
	b = binary.LittleEndian.AppendUint32(b, a.Index)
	return binary.LittleEndian.AppendUint32(b, uint32(xxhash.Sum64(b[start:])))
}

// decodeWait reads the record that b begins with; ok is false if it is damaged.
func decodeWait(b []byte) (a catalog.Access, ok bool) {
	const body = namespace.DigestSize + 4
	a = catalog.Access{Catalog: namespace.Digest(b[:namespace.DigestSize]), Index: binary.LittleEndian.Uint32(b[namespace.DigestSize:])}
	return a, binary.LittleEndian.Uint32(b[body:]) == uint32(xxhash.Sum64(b[:body])) && !a.Catalog.IsZero()
}

// Waits returns what reads had to wait for since it was last forgotten, first accesses in their order,
// whatever mount they were for.
func (c *Cache) Waits() []catalog.Access {
	c.waits.mu.Lock()
	defer c.waits.mu.Unlock()
	return append([]catalog.Access{}, c.waits.all...)
}

// ForgetWaits forgets those among all, which have been made part of a profile.
func (c *Cache) ForgetWaits(all []catalog.Access) {
	c.waits.mu.Lock()
	defer c.waits.mu.Unlock()
	gone := map[catalog.Access]bool{}
	for _, a := range all {
		gone[a] = true
		delete(c.waits.seen, a)
	}
	kept := c.waits.all[:0]
	for _, a := range c.waits.all {
		if !gone[a] {
			kept = append(kept, a)
		}
	}
	c.waits.all = kept
	if c.waits.seen != nil {
		c.waits.rewrite()
	}
}

// Recorder is a Reader that notes the order in which things are first read through it. Safe for
// concurrent use.
type Recorder struct {
	*Reader

	mu   sync.Mutex
	all  []catalog.Access
	seen map[catalog.Access]bool
}

// Record returns a Recorder that reads as r does.
func (r *Reader) Record() *Recorder { return &Recorder{Reader: r, seen: map[catalog.Access]bool{}} }

// recordMax bounds a recording: a profile holds no more entries than that, and few accesses are one.
const recordMax = 4 * namespace.ProfileEntriesMax

func (r *Recorder) note(a catalog.Access) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.seen[a] && len(r.all) < recordMax {
		r.all, r.seen[a] = append(r.all, a), true
	}
}

// Catalog implements catalog.Loader, as Reader.Catalog.
func (r *Recorder) Catalog(ctx context.Context, d namespace.Digest) (*catalog.Catalog, error) {
	r.note(catalog.Access{Catalog: d, Index: catalog.AccessCatalog})
	return r.Reader.Catalog(ctx, d)
}

// ReadChunk is Reader.ReadChunk.
func (r *Recorder) ReadChunk(ctx context.Context, ref namespace.ChunkRef, p []byte, off int64) (int, error) {
	r.note(catalog.Access{Catalog: ref.Catalog, Index: ref.Index})
	return r.Reader.ReadChunk(ctx, ref, p, off)
}

// Accesses returns what was read so far.
func (r *Recorder) Accesses() []catalog.Access {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]catalog.Access{}, r.all...)
}
