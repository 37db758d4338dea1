// Package audit keeps a trail of who did what that shows when it was tampered with: a file of JSON
// lines, each of which names the digest of the line before.
//
// # What is detected
//
// [Verify] finds a line that was changed, left out, put in, moved, or cut off. For the end of the file
// there is FILE.head, which names the last line; whoever can write both can cut both, and so the head
// is worth something only where it was also written down elsewhere: that is an [Anchor], and `coppice
// audit verify` prints one. Nothing here is secret: what must not be known is not recorded.
//
// # Form
//
//	{"seq":7,"time":"…","actor":"…","action":"…","subject":"…","outcome":"…","detail":{…},"prev":"sha256:…"}
//
// prev is the SHA-256 of the line before with its newline; of line 1, zero. A file that grew too large
// is renamed to FILE.SEQ, after its first line, and a new one goes on with the chain.
//
// # Durability
//
// [Log.Record] returns when the line is on disk. What a crash left unfinished at the end was never
// reported as done; the next writer takes it off and records that it did.
package audit

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"coppice.dev/coppice/internal/disk"
	"coppice.dev/coppice/namespace"
)

// Entry is a line of the trail.
type Entry struct {
	Seq     uint64            `json:"seq"`
	Time    time.Time         `json:"time"`
	Actor   string            `json:"actor"`
	Action  string            `json:"action"`
	Subject string            `json:"subject"`
	Outcome string            `json:"outcome"`
	Detail  map[string]string `json:"detail,omitempty"`
	Prev    string            `json:"prev"`
}

const (
	// lineBytesMax bounds a line, and so the memory that reading one costs.
	lineBytesMax = 64 << 10
	// fileBytesMax is where a file is put aside: some 200,000 lines, verified in a second or two.
	fileBytesMax = 64 << 20
)

// Anchor names a line: its number and its digest. Its text is SEQ:sha256:HEX. The zero Anchor, before
// line 1, has the digest of nothing written: 64 zeros.
type Anchor struct {
	Seq    uint64
	Digest string // "sha256:" and 64 hex digits
}

var zeroDigest = "sha256:" + strings.Repeat("0", 2*sha256.Size)

// String returns the text form.
func (a Anchor) String() string { return strconv.FormatUint(a.Seq, 10) + ":" + a.Digest }

// ParseAnchor is the inverse of String. Kinds: Invalid.
func ParseAnchor(s string) (Anchor, error) {
	number, digest, ok := strings.Cut(s, ":")
	seq, err := strconv.ParseUint(number, 10, 63)
	a := Anchor{seq, digest}
	digits, prefixed := strings.CutPrefix(digest, "sha256:")
	b, herr := hex.DecodeString(digits)
	if !ok || err != nil || herr != nil || !prefixed || len(b) != sha256.Size || hex.EncodeToString(b) != digits || a.String() != s {
		return Anchor{}, namespace.E(namespace.Invalid, "parse anchor", strconv.Quote(s), errors.New("want SEQ:sha256:HEX"))
	}
	return a, nil
}

func digestOf(line []byte) string {
	sum := sha256.Sum256(line)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// Options tune [Open]. The zero value is the default.
type Options struct {
	Now       func() time.Time // default time.Now
	FileBytes int64            // where a file is put aside; default 64 MiB
}

// Log appends to a trail. Safe for concurrent use, also by several processes.
type Log struct {
	path string
	o    Options

	mu   sync.Mutex
	file *os.File
	size int64  // of the file when head was its last line
	head Anchor // what the next line follows
}

// Open opens the trail at path for appending; it is made at the first entry. Kinds: Denied, Limit.
func Open(path string, o Options) (*Log, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.FileBytes == 0 {
		o.FileBytes = fileBytesMax
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, disk.Error("create", filepath.Dir(path), err)
	}
	return &Log{path: path, o: o}, nil
}

// Close closes the file. An entry after it opens it again.
func (l *Log) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.close()
}

func (l *Log) close() error {
	if l.file == nil {
		return nil
	}
	err := l.file.Close()
	l.file = nil
	if err != nil {
		return disk.Error("close", l.path, err)
	}
	return nil
}

// Record appends an entry and returns when it is on disk. Kinds: Limit (disk full, or the entry is too
// long), Corrupt (the end of the file makes no sense: nothing is appended to it), Denied.
func (l *Log) Record(actor, action, subject, outcome string, detail map[string]string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.locked(func() error {
		return l.append(Entry{Actor: actor, Action: action, Subject: subject, Outcome: outcome, Detail: detail})
	})
}

// Head returns the anchor of the last entry. Kinds: those of Record.
func (l *Log) Head() (Anchor, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var head Anchor
	err := l.locked(func() error { head = l.head; return nil })
	return head, err
}

// locked runs fn with the file open, locked and its end known. The caller holds mu.
func (l *Log) locked(fn func() error) error {
	lock, err := os.OpenFile(l.path+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return disk.Error("lock", l.path, err)
	}
	defer lock.Close() // which unlocks
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return disk.Error("lock", l.path, err)
	}
	if err := l.catchUp(); err != nil {
		return errors.Join(err, l.close())
	}
	if err := fn(); err != nil {
		return errors.Join(err, l.close()) // what is at the end now is looked at anew
	}
	return nil
}

// catchUp makes file, size and head those of the file on disk, to which others may have appended, or
// which they may have put aside.
func (l *Log) catchUp() error {
	if l.file != nil {
		have, err := l.file.Stat()
		now, err2 := os.Stat(l.path)
		if err == nil && err2 == nil && os.SameFile(have, now) && now.Size() == l.size {
			return nil
		}
		if err := l.close(); err != nil {
			return err
		}
	}
	_, err := os.Stat(l.path)
	made := errors.Is(err, fs.ErrNotExist)
	f, err := os.OpenFile(l.path, os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600)
	if err != nil {
		return disk.Error("open", l.path, err)
	}
	l.file = f
	if made {
		return l.begin()
	}
	return l.findEnd()
}

// begin takes up the chain in a new file: where the last file that was put aside ends.
func (l *Log) begin() error {
	l.size, l.head = 0, Anchor{0, zeroDigest}
	kept, err := readHead(l.path)
	if err == nil && kept.Seq > 0 {
		l.head = kept
	}
	return err
}

// findEnd reads the last line. One that a crash left unfinished is taken off, and that is recorded.
func (l *Log) findEnd() error {
	info, err := l.file.Stat()
	if err != nil {
		return disk.Error("read", l.path, err)
	}
	if info.Size() == 0 {
		return l.begin()
	}
	from := max(0, info.Size()-2*lineBytesMax)
	tail := make([]byte, info.Size()-from)
	if _, err := io.ReadFull(io.NewSectionReader(l.file, from, int64(len(tail))), tail); err != nil {
		return disk.Error("read", l.path, err)
	}
	end := bytes.LastIndexByte(tail, '\n') + 1
	torn := len(tail) - end
	if end == 0 && from > 0 || torn > lineBytesMax {
		return namespace.E(namespace.Corrupt, "append to", l.path, errors.New("it does not end with a line of a trail"))
	}
	l.size = from + int64(end)
	if torn > 0 {
		if err := l.file.Truncate(l.size); err != nil {
			return disk.Error("repair", l.path, err)
		}
	}
	if end == 0 {
		err = l.begin()
	} else {
		line := tail[bytes.LastIndexByte(tail[:end-1], '\n')+1 : end]
		var e Entry
		if err = decode(line, l.path, &e); err == nil {
			l.head = Anchor{e.Seq, digestOf(line)}
			err = l.checkHead()
		}
	}
	if err != nil || torn == 0 {
		return err
	}
	return l.append(Entry{Actor: "audit", Action: "audit.repair", Subject: filepath.Base(l.path), Outcome: "done",
		Detail: map[string]string{"unfinished_bytes": strconv.Itoa(torn)}})
}

// checkHead refuses to go on where lines are missing at the end.
func (l *Log) checkHead() error {
	kept, err := readHead(l.path)
	if err == nil && (kept.Seq > l.head.Seq || kept.Seq == l.head.Seq && kept != l.head) {
		err = namespace.WithHint(namespace.E(namespace.Corrupt, "append to", l.path, fmt.Errorf("it ends with line %d, its head names line %d", l.head.Seq, kept.Seq)),
			"somebody cut or changed it: keep it as evidence, move it and its .head away, and find out who")
	}
	return err
}

// append writes one line behind the last.
func (l *Log) append(e Entry) error {
	if l.size >= l.o.FileBytes {
		if err := l.rotate(); err != nil {
			return err
		}
	}
	e.Seq, e.Time, e.Prev = l.head.Seq+1, l.o.Now().UTC(), l.head.Digest
	for _, s := range []*string{&e.Actor, &e.Action, &e.Subject, &e.Outcome} {
		*s = strings.ToValidUTF8(*s, "?")
	}
	var detail map[string]string
	for k, v := range e.Detail {
		if detail == nil {
			detail = make(map[string]string, len(e.Detail))
		}
		detail[strings.ToValidUTF8(k, "?")] = strings.ToValidUTF8(v, "?")
	}
	e.Detail = detail
	line, err := namespace.EncodeRecord(e)
	if err != nil {
		return err
	}
	if len(line) > lineBytesMax {
		return namespace.E(namespace.Limit, "append to", l.path, fmt.Errorf("an entry of %d bytes, at most %d", len(line), lineBytesMax))
	}
	if err := decode(line, l.path, &Entry{}); err != nil {
		return err // what cannot be read back is not written
	}
	if _, err := l.file.Write(line); err != nil {
		return disk.Error("append to", l.path, err)
	}
	if err := l.file.Sync(); err != nil {
		return disk.Error("append to", l.path, err)
	}
	if l.size == 0 { // its name must last too
		if err := syncDir(filepath.Dir(l.path)); err != nil {
			return err
		}
	}
	l.size += int64(len(line))
	l.head = Anchor{e.Seq, digestOf(line)}
	return writeHead(l.path, l.head)
}

// rotate puts the file aside under the number of its first line.
func (l *Log) rotate() error {
	first, err := firstLine(l.path)
	if err != nil {
		return err
	}
	aside := l.path + "." + fmt.Sprintf("%012d", first.Seq)
	if _, err := os.Lstat(aside); err == nil {
		return namespace.E(namespace.Exist, "put aside", l.path, fmt.Errorf("%s is there already", aside))
	}
	if err := os.Rename(l.path, aside); err != nil {
		return disk.Error("put aside", l.path, err)
	}
	if err := l.close(); err != nil {
		return err
	}
	return l.catchUp()
}

// firstLine reads the first line of a file.
func firstLine(path string) (Entry, error) {
	var e Entry
	f, err := os.Open(path)
	if err != nil {
		return e, disk.Error("read", path, err)
	}
	defer f.Close()
	b := make([]byte, lineBytesMax)
	n, err := io.ReadFull(f, b)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		return e, disk.Error("read", path, err)
	}
	line, _, _ := bytes.Cut(b[:n], []byte{'\n'})
	return e, decode(append(line, '\n'), path, &e)
}

// decode reads a line with its newline: canonical bytes, and nothing else.
func decode(line []byte, path string, e *Entry) error {
	return namespace.DecodeRecord(line, lineBytesMax, "line of "+path, e)
}

// readHead reads FILE.head; that there is none is line 0.
func readHead(path string) (Anchor, error) {
	b, err := os.ReadFile(path + ".head")
	if errors.Is(err, fs.ErrNotExist) {
		return Anchor{0, zeroDigest}, nil
	}
	if err != nil {
		return Anchor{}, disk.Error("read", path+".head", err)
	}
	a, err := ParseAnchor(strings.TrimSuffix(string(b), "\n"))
	if err != nil {
		return Anchor{}, namespace.E(namespace.Corrupt, "read", path+".head", err)
	}
	return a, nil
}

// writeHead replaces FILE.head. After a crash it may be one line behind, never ahead.
func writeHead(path string, a Anchor) error {
	return disk.Replace(path+".head", []byte(a.String()+"\n"), 0o600)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return disk.Error("sync", dir, err)
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return disk.Error("sync", dir, err)
	}
	return nil
}
