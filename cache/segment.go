package cache

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cespare/xxhash/v2"

	"coppice.dev/coppice/internal/disk"
	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/object"
)

// A segment is a sequence of records, appended and never changed. A record, little endian:
//
//	0  magic "CXR1"          4  u32 stored bytes        8  u32 plain bytes
//	12 u8 codec, 3 B zero    16 u32 chunks              20 u32 zero
//	24 u64 xxhash of the stored bytes                   32 u64 xxhash of bytes 0-31 and the table
//	40 table: per chunk digest, u32 offset, u32 length in the plain bytes; then the stored bytes
//
// The table holds the chunks that were verified when the frame arrived, and no others.
const (
	recordMagic  = "CXR1"
	recordHeader = 40
	tableEntry   = 40
	segmentMax   = 64 << 20 // a segment is closed at this size at the latest
	segmentShare = 16       // or at one in so many bytes of the quota: the grain of eviction
)

var le = binary.LittleEndian

// extent is where a chunk is: a part of a frame in a segment.
type extent struct {
	seg           uint32
	at            uint32 // of the stored bytes in the segment
	stored, plain uint32
	sum           uint64
	codec         object.Codec
	off, size     uint32 // of the chunk in the plain bytes
}

// located is a chunk's digest and where it is.
type located struct {
	digest namespace.Digest
	extent extent
}

// record is a record's header and table.
type record struct {
	at            uint32 // of the record in the segment
	stored, plain uint32
	codec         object.Codec
	sum           uint64
	chunks        []object.FrameChunk
}

func (r record) payload() uint32 { return r.at + recordHeader + uint32(len(r.chunks))*tableEntry }
func (r record) end() uint32     { return r.payload() + r.stored }

func (r record) extents(seg uint32) []located {
	all := make([]located, len(r.chunks))
	for i, c := range r.chunks {
		all[i] = located{c.Digest, extent{seg, r.payload(), r.stored, r.plain, r.sum, r.codec, c.Off, c.Len}}
	}
	return all
}

// recordPrefix is how much room a record's header and table take.
func recordPrefix(chunks []object.FrameChunk) int { return recordHeader + len(chunks)*tableEntry }

// sealRecord fills in the header and table of the record b, whose stored bytes are in place, and
// returns their checksum.
func sealRecord(b []byte, codec object.Codec, plain uint32, chunks []object.FrameChunk) (sum uint64) {
	prefix := recordPrefix(chunks)
	stored := b[prefix:]
	sum = xxhash.Sum64(stored)
	head := append(b[:0], recordMagic...)
	head = le.AppendUint32(head, uint32(len(stored)))
	head = le.AppendUint32(head, plain)
	head = append(head, byte(codec), 0, 0, 0)
	head = le.AppendUint32(head, uint32(len(chunks)))
	head = le.AppendUint32(head, 0)
	head = le.AppendUint64(head, sum)
	head = le.AppendUint64(head, 0)
	for _, c := range chunks {
		head = append(head, c.Digest[:]...)
		head = le.AppendUint32(head, c.Off)
		head = le.AppendUint32(head, c.Len)
	}
	le.PutUint64(b[32:], headerSum(b[:prefix]))
	return sum
}

// headerSum checks a header, its own checksum left out, and the table.
func headerSum(b []byte) uint64 {
	d := xxhash.New()
	_, _ = d.Write(b[:32])
	_, _ = d.Write(b[recordHeader:])
	return d.Sum64()
}

// readRecord reads the header and table of the record at off. ErrUnexpectedEOF or Corrupt: there is
// no whole record.
func readRecord(r io.ReaderAt, at uint32) (record, error) {
	var h [recordHeader]byte
	if _, err := r.ReadAt(h[:], int64(at)); err != nil {
		return record{}, err
	}
	rec := record{at: at, stored: le.Uint32(h[4:]), plain: le.Uint32(h[8:]), codec: object.Codec(h[12]), sum: le.Uint64(h[24:])}
	n := le.Uint32(h[16:])
	if !bytes.Equal(h[:4], []byte(recordMagic)) || rec.plain > namespace.FrameBytesMax || rec.stored > rec.plain || n > namespace.FrameChunksMax {
		return record{}, namespace.E(namespace.Corrupt, "read", "segment record", nil)
	}
	b := make([]byte, recordHeader+int(n)*tableEntry)
	copy(b, h[:])
	if _, err := r.ReadAt(b[recordHeader:], int64(at)+recordHeader); err != nil && (err != io.EOF || n > 0) {
		return record{}, err
	}
	if headerSum(b) != le.Uint64(h[32:]) {
		return record{}, namespace.E(namespace.Corrupt, "read", "segment record", errors.New("checksum of the header"))
	}
	for t := b[recordHeader:]; len(t) > 0; t = t[tableEntry:] {
		c := object.FrameChunk{Digest: namespace.Digest(t[:32]), Off: le.Uint32(t[32:]), Len: le.Uint32(t[36:])}
		if uint64(c.Off)+uint64(c.Len) > uint64(rec.plain) {
			return record{}, namespace.E(namespace.Corrupt, "read", "segment record", errors.New("a chunk outside its frame"))
		}
		rec.chunks = append(rec.chunks, c)
	}
	return rec, nil
}

// segment is one file. size is its whole records; lastUse is seconds since 1970.
type segment struct {
	id      uint32
	file    *os.File
	size    atomic.Uint32
	lastUse atomic.Int64
	dirty   atomic.Bool // written since it was synced
}

// scan calls fn for every whole record from off on and returns where the first that is not begins.
func (s *segment) scan(off uint32, fn func(record) error) (uint32, error) {
	for {
		rec, err := readRecord(s.file, off)
		if err != nil || int64(rec.end()) > int64(s.size.Load()) {
			return off, nil
		}
		if err := fn(rec); err != nil {
			return off, err
		}
		off = rec.end()
	}
}

// truncate drops a torn tail. What cannot be cut off is overwritten.
func (s *segment) truncate(end uint32) {
	if end < s.size.Load() {
		_ = s.file.Truncate(int64(end))
		s.size.Store(end)
	}
}

func (s *segment) touch() { s.lastUse.Store(time.Now().Unix()) }

// segments is the set of them; the one with the highest id is appended to.
type segments struct {
	dir   string
	grain uint32 // the size at which a segment is closed

	appending sync.Mutex // one at a time; mu is not held while the disk is waited for

	mu   sync.RWMutex
	byID map[uint32]*segment
	last uint32
}

func openSegments(dir string, quota int64) (*segments, error) {
	ss := &segments{dir: dir, grain: grainOf(quota), byID: map[uint32]*segment{}}
	names, err := os.ReadDir(dir)
	if err != nil {
		return nil, disk.Error("list", dir, err)
	}
	for _, n := range names {
		id, err := strconv.ParseUint(strings.TrimSuffix(n.Name(), ".seg"), 10, 32)
		if err != nil || !strings.HasSuffix(n.Name(), ".seg") {
			continue
		}
		f, err := os.OpenFile(filepath.Join(dir, n.Name()), os.O_RDWR, 0)
		if err != nil {
			ss.close()
			return nil, disk.Error("open", n.Name(), err)
		}
		info, err := f.Stat()
		if err != nil || info.Size() > 2*segmentMax {
			f.Close()
			continue // not of our making
		}
		s := &segment{id: uint32(id), file: f}
		s.size.Store(uint32(info.Size()))
		s.lastUse.Store(info.ModTime().Unix())
		ss.byID[s.id] = s
		ss.last = max(ss.last, s.id)
	}
	return ss, nil
}

func (ss *segments) path(id uint32) string { return filepath.Join(ss.dir, fmt.Sprintf("%08d.seg", id)) }

// get returns a segment; nil if it was evicted.
func (ss *segments) get(id uint32) *segment {
	ss.mu.RLock()
	defer ss.mu.RUnlock()
	return ss.byID[id]
}

// holds reports whether an extent is within its segment.
func (ss *segments) holds(e extent) bool {
	s := ss.get(e.seg)
	return s != nil && uint64(e.at)+uint64(e.stored) <= uint64(s.size.Load())
}

// all returns the segments, oldest first.
func (ss *segments) all() []*segment {
	ss.mu.RLock()
	defer ss.mu.RUnlock()
	var all []*segment
	for _, s := range ss.byID {
		all = append(all, s)
	}
	sort.Slice(all, func(i, j int) bool { return all[i].id < all[j].id })
	return all
}

// bytes returns the size of all segments.
func (ss *segments) bytes() (n int64) {
	ss.mu.RLock()
	defer ss.mu.RUnlock()
	for _, s := range ss.byID {
		n += int64(s.size.Load())
	}
	return n
}

// append writes a record and returns where it is. Kinds: Limit (disk full), Internal.
func (ss *segments) append(b []byte) (seg, at uint32, err error) {
	ss.appending.Lock()
	defer ss.appending.Unlock()
	ss.mu.RLock()
	s := ss.byID[ss.last]
	ss.mu.RUnlock()
	if s == nil || s.size.Load() >= ss.grain {
		if s, err = ss.create(); err != nil {
			return 0, 0, err
		}
	}
	at = s.size.Load()
	s.dirty.Store(true)
	if _, err := s.file.WriteAt(b, int64(at)); err != nil {
		_ = s.file.Truncate(int64(at)) // what cannot be cut off is overwritten, or skipped by a scan
		return 0, 0, disk.Error("write", s.file.Name(), err)
	}
	s.size.Add(uint32(len(b)))
	s.touch()
	return s.id, at, nil
}

func (ss *segments) create() (*segment, error) {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	id := ss.last + 1
	f, err := os.OpenFile(ss.path(id), os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, disk.Error("create", ss.path(id), err)
	}
	s := &segment{id: id, file: f}
	s.touch()
	ss.byID[id], ss.last = s, id
	return s, nil
}

// sync makes what was appended survive a crash.
func (ss *segments) sync() error {
	synced := false
	for _, s := range ss.all() {
		if !s.dirty.Swap(false) {
			continue
		}
		synced = true
		if err := s.file.Sync(); err != nil && !errors.Is(err, os.ErrClosed) {
			s.dirty.Store(true)
			return disk.Error("sync", s.file.Name(), err)
		}
	}
	if synced {
		return syncDir(ss.dir)
	}
	return nil
}

// syncDir makes the names in a directory survive a crash.
func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return disk.Error("open", dir, err)
	}
	defer f.Close()
	if err := f.Sync(); err != nil {
		return disk.Error("sync", dir, err)
	}
	return nil
}

// oldest returns the least recently used segment but the one that is appended to, or nil.
func (ss *segments) oldest() *segment {
	ss.mu.RLock()
	defer ss.mu.RUnlock()
	var old *segment
	for _, s := range ss.byID {
		if s.id != ss.last && (old == nil || s.lastUse.Load() < old.lastUse.Load() ||
			s.lastUse.Load() == old.lastUse.Load() && s.id < old.id) {
			old = s
		}
	}
	return old
}

// remove forgets a segment and deletes its file. Reads that have begun end well: the descriptor is
// closed after the last of them.
func (ss *segments) remove(s *segment) error {
	ss.mu.Lock()
	delete(ss.byID, s.id)
	ss.mu.Unlock()
	s.file.Close()
	if err := os.Remove(ss.path(s.id)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return disk.Error("remove", ss.path(s.id), err)
	}
	return nil
}

// close closes the files and notes when each was last used, as its time of modification.
func (ss *segments) close() {
	for _, s := range ss.all() {
		t := time.Unix(s.lastUse.Load(), 0)
		_ = os.Chtimes(ss.path(s.id), t, t)
		s.file.Close()
	}
}

// read returns the stored bytes of an extent, checked, in buf's memory if it is large enough.
// Corrupt: they are not what was written.
func (ss *segments) read(e extent, buf []byte) ([]byte, error) {
	s := ss.get(e.seg)
	if s == nil {
		return nil, namespace.E(namespace.NotExist, "read", fmt.Sprintf("segment %d", e.seg), nil)
	}
	s.touch()
	if cap(buf) < int(e.stored) {
		buf = make([]byte, e.stored)
	}
	buf = buf[:e.stored]
	if _, err := s.file.ReadAt(buf, int64(e.at)); errors.Is(err, os.ErrClosed) {
		return nil, namespace.E(namespace.NotExist, "read", s.file.Name(), err) // evicted just now
	} else if err != nil {
		kind := namespace.Corrupt // cut short, or a dying disk: either way it is fetched again
		return nil, namespace.E(kind, "read", s.file.Name(), err)
	}
	if xxhash.Sum64(buf) != e.sum {
		return nil, namespace.E(namespace.Corrupt, "read", fmt.Sprintf("%s at %d", s.file.Name(), e.at), errors.New("checksum"))
	}
	return buf, nil
}
