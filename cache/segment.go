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

// segment is one file. size is its whole records, covered those that are indexed; lastUse is by the
// segments' clock. One that is closed and synced is sealed: its mode says so, which tells after a crash
// of the machine that it is whole.
type segment struct {
	id      uint32
	file    *os.File
	size    atomic.Uint32
	covered atomic.Uint32
	lastUse atomic.Int64
	dirty   atomic.Bool // written since it was synced
	closed  atomic.Bool // not appended to any more, however small
	sealed  atomic.Bool
	torn    atomic.Bool // a record in it is whole but for its bytes: never sealed
	failed  atomic.Bool // the disk refused to sync it: what it says of the next time is worth nothing

	mu       sync.Mutex
	entering map[uint32]struct{} // records that were appended and are not indexed
}

// entered notes that the record at an offset is indexed, and returns up to where all are: records are
// indexed in any order.
func (s *segment) entered(at uint32) (covered uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.entering, at)
	end := s.size.Load()
	for other := range s.entering {
		end = min(end, other)
	}
	s.covered.Store(end)
	return end
}

// scan calls fn for every whole record from off on and returns where the last of them ends. Damaged
// headers are passed over: a record behind one counts if all its chunks are right, since stored bytes
// may look like a record, and say of it what they like.
func (s *segment) scan(off uint32, fn func(record) error) (end uint32, err error) {
	end = off
	for lost := false; ; {
		rec, err := readRecord(s.file, off)
		whole := err == nil && int64(rec.end()) <= int64(s.size.Load())
		if whole && lost {
			whole = s.verify(rec) == nil
		}
		if whole {
			if err := fn(rec); err != nil {
				return end, err
			}
			off, end = rec.end(), rec.end()
			continue
		}
		lost = true
		if off = s.seek(off + 1); off == 0 {
			return end, nil
		}
	}
}

// seek returns where, from off on, something begins that looks like a record; 0: nowhere.
func (s *segment) seek(off uint32) uint32 {
	buf := make([]byte, seekBytes)
	for {
		n := min(int64(len(buf)), int64(s.size.Load())-int64(off))
		if n < recordHeader {
			return 0
		}
		if n, _ := s.file.ReadAt(buf[:n], int64(off)); n < recordHeader {
			return 0
		}
		if i := bytes.Index(buf[:n], []byte(recordMagic)); i >= 0 {
			return off + uint32(i)
		}
		off += uint32(n) - uint32(len(recordMagic)) + 1
	}
}

// seekBytes is what seek reads at a time.
const seekBytes = 256 << 10

// check holds the stored bytes of a record against their checksum.
func (s *segment) check(rec record) error {
	_, err := s.stored(rec.payload(), rec.stored, rec.sum, nil)
	return err
}

// verify decodes a record and hashes its chunks.
func (s *segment) verify(rec record) error {
	stored, err := s.stored(rec.payload(), rec.stored, rec.sum, nil)
	if err != nil {
		return err
	}
	plain, err := object.DecodeFrame(nil, stored, rec.codec, int(rec.plain))
	if err != nil {
		return err
	}
	for _, c := range rec.chunks {
		if namespace.Sum(plain[c.Off:][:c.Len]) != c.Digest {
			return namespace.E(namespace.Corrupt, "verify", c.Digest.String(), nil)
		}
	}
	return nil
}

// stored returns n stored bytes, checked, in buf's memory if it is large enough. NotExist: the segment
// was evicted. Corrupt: they are not what was written.
func (s *segment) stored(at, n uint32, sum uint64, buf []byte) ([]byte, error) {
	if cap(buf) < int(n) {
		buf = make([]byte, n)
	}
	buf = buf[:n]
	if _, err := s.file.ReadAt(buf, int64(at)); errors.Is(err, os.ErrClosed) {
		return nil, namespace.E(namespace.NotExist, "read", s.file.Name(), err) // evicted just now
	} else if err != nil {
		// Cut short, or a dying disk: either way it is fetched again.
		return nil, namespace.E(namespace.Corrupt, "read", s.file.Name(), err)
	}
	if xxhash.Sum64(buf) != sum {
		return nil, namespace.E(namespace.Corrupt, "read", fmt.Sprintf("%s at %d", s.file.Name(), at), errors.New("checksum"))
	}
	return buf, nil
}

// truncate drops a torn tail. What cannot be cut off is overwritten.
func (s *segment) truncate(ops disk.Ops, end uint32) {
	if end < s.size.Load() {
		_ = ops.Truncate(s.file, int64(end))
		s.size.Store(end)
	}
}

// segments is the set of them; the one with the highest id is appended to.
type segments struct {
	dir   string
	ops   disk.Ops
	grain uint32 // the size at which a segment is closed

	lowers []*lower

	// The clock that orders uses. It goes on from the latest use that any segment remembers, whatever
	// the machine's clock says, which may be years off.
	start time.Time
	base  int64 // seconds, at start

	appending sync.Mutex // one at a time; mu is not held while the disk is waited for

	mu   sync.RWMutex
	byID map[uint32]*segment
	last uint32
}

// segmentIDMax bounds the ids of segments, which are never used twice: an exabyte was written by then.
// What is beyond it is another cache's.
const segmentIDMax = 1<<24 - 1

func openSegments(dir string, quota int64, ops disk.Ops) (*segments, error) {
	ss := &segments{dir: dir, ops: ops, grain: grainOf(quota), byID: map[uint32]*segment{},
		start: time.Now(), base: time.Now().Unix()}
	names, err := os.ReadDir(dir)
	if err != nil {
		return nil, disk.Error("list", dir, err)
	}
	for _, n := range names {
		s, err := openSegment(dir, n.Name(), os.O_RDWR)
		if err != nil {
			ss.close()
			return nil, err
		}
		if s != nil {
			ss.byID[s.id] = s
			ss.last = max(ss.last, s.id)
			ss.base = max(ss.base, s.lastUse.Load())
		}
	}
	return ss, nil
}

// openSegment opens a file of a cache's segments; nil: it is none, or not of our making.
func openSegment(dir, name string, flag int) (*segment, error) {
	id, err := strconv.ParseUint(strings.TrimSuffix(name, ".seg"), 10, 32)
	if err != nil || !strings.HasSuffix(name, ".seg") || id == 0 || id >= segmentIDMax {
		return nil, nil
	}
	path := filepath.Join(dir, name)
	sealed := false
	if info, err := os.Lstat(path); err == nil && info.Mode().Perm() == sealedMode {
		flag, sealed = os.O_RDONLY, true
	}
	f, err := os.OpenFile(path, flag, 0)
	if err != nil {
		return nil, disk.Error("open", name, err)
	}
	info, err := f.Stat()
	if err != nil || info.Size() > 2*segmentMax || !info.Mode().IsRegular() {
		f.Close()
		return nil, nil
	}
	s := newSegment(uint32(id), f)
	s.size.Store(uint32(info.Size()))
	s.lastUse.Store(info.ModTime().Unix())
	s.closed.Store(sealed)
	s.sealed.Store(sealed)
	s.dirty.Store(!sealed) // as far as we know
	return s, nil
}

// sealedMode is the mode of a sealed segment's file.
const sealedMode = 0o400

func newSegment(id uint32, f *os.File) *segment {
	return &segment{id: id, file: f, entering: map[uint32]struct{}{}}
}

// reserve keeps an id from being used for a new segment.
func (ss *segments) reserve(id uint32) { ss.last = max(ss.last, min(id, segmentIDMax-1)) }

// touch notes that a segment is used.
func (ss *segments) touch(s *segment) {
	s.lastUse.Store(ss.base + int64(time.Since(ss.start)/time.Second))
}

func segmentName(id uint32) string { return fmt.Sprintf("%08d.seg", id) }

func (ss *segments) path(id uint32) string { return filepath.Join(ss.dir, segmentName(id)) }

// get returns a segment; nil if it was evicted.
func (ss *segments) get(id uint32) *segment {
	if isLower(id) {
		return ss.lowers[id>>lowerBits-1].get(id & segmentIDMax)
	}
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
	if s == nil || s.closed.Load() || s.size.Load() >= ss.grain {
		if s, err = ss.create(); err != nil {
			return 0, 0, err
		}
	}
	at = s.size.Load()
	s.dirty.Store(true)
	if _, err := ss.ops.WriteAt(s.file, b, int64(at)); err != nil {
		_ = ss.ops.Truncate(s.file, int64(at)) // what cannot be cut off is overwritten, or skipped by a scan
		return 0, 0, disk.Error("write", s.file.Name(), err)
	}
	s.mu.Lock()
	s.entering[at] = struct{}{}
	s.size.Add(uint32(len(b)))
	s.mu.Unlock()
	ss.touch(s)
	return s.id, at, nil
}

// finish has nothing appended to a segment any more.
func (ss *segments) finish(s *segment) {
	ss.appending.Lock()
	defer ss.appending.Unlock()
	s.closed.Store(true)
}

func (ss *segments) create() (*segment, error) {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	id := ss.last + 1
	if id >= segmentIDMax {
		return nil, namespace.E(namespace.Limit, "create", ss.path(id), errors.New("the last segment there can be"))
	}
	f, err := ss.ops.Create(ss.path(id))
	if err != nil {
		return nil, disk.Error("create", ss.path(id), err)
	}
	s := newSegment(id, f)
	ss.touch(s)
	ss.byID[id], ss.last = s, id
	return s, nil
}

// sync makes what was appended survive a crash, all or what is in closed segments, and seals those. A
// segment that could not be synced is left out from then on.
func (ss *segments) sync(all bool) error {
	ss.mu.RLock()
	last := ss.last
	ss.mu.RUnlock()
	var done []*segment
	for _, s := range ss.all() {
		if s.failed.Load() || s.id == last && !all || !s.dirty.Swap(false) {
			continue
		}
		done = append(done, s)
		if err := ss.ops.Sync(s.file); err != nil && !errors.Is(err, os.ErrClosed) {
			s.failed.Store(true)
			return ss.unsynced(done, s.file.Name(), err)
		}
	}
	if len(done) == 0 {
		return nil
	}
	if err := ss.ops.SyncDir(ss.dir); err != nil {
		return ss.unsynced(done, ss.dir, err)
	}
	for _, s := range done {
		if s.id != last && !s.torn.Load() && ss.ops.Seal(s.file, sealedMode) == nil { // else it is read after a crash
			s.closed.Store(true)
			s.sealed.Store(true)
		}
	}
	return nil
}

// unsynced remembers that segments are to be synced again.
func (ss *segments) unsynced(done []*segment, path string, err error) error {
	for _, s := range done {
		s.dirty.Store(true)
	}
	return disk.Error("sync", path, err)
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
	if err := ss.ops.Remove(ss.path(s.id)); err != nil && !errors.Is(err, os.ErrNotExist) {
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
// NotExist: the segment was evicted. Corrupt: they are not what was written.
func (ss *segments) read(e extent, buf []byte) ([]byte, error) {
	s := ss.get(e.seg)
	if s == nil {
		return nil, namespace.E(namespace.NotExist, "read", fmt.Sprintf("segment %d", e.seg), nil)
	}
	ss.touch(s)
	return s.stored(e.at, e.stored, e.sum, buf)
}
