package audit

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"coppice.dev/coppice/internal/disk"
	"coppice.dev/coppice/namespace"
)

// Report is what [Verify] found.
type Report struct {
	Files []string // in order
	First uint64   // number of the first line; 0 if there is none
	Head  Anchor   // of the last
}

// Verify reads the trail at path with all files that were put aside, and checks that each line
// follows the one before, that the last is the one that the head names (one line more is what a
// crash may leave), and that each anchor is in it. Files that were taken elsewhere are allowed if an
// anchor names the line before the first that is here. show, if not nil, gets each line that was
// checked. Kinds: Corrupt (it was tampered with; the error names the line), NotExist, Denied.
func Verify(path string, anchors []Anchor, show func(Entry) error) (Report, error) {
	v, err := look(path)
	if err != nil {
		return Report{}, err
	}
	defer v.last.Close() // it was only read
	r := Report{Files: append(v.aside, path)}
	w := &walker{at: Anchor{0, zeroDigest}, given: anchors, left: append(slices.Clone(anchors), v.head), show: show}
	for _, name := range v.aside {
		f, err := os.Open(name)
		if err != nil {
			return r, disk.Error("read", name, err)
		}
		err = w.file(name, f, false)
		f.Close() // the same
		if err != nil {
			return r, err
		}
	}
	if err := w.file(path, io.LimitReader(v.last, v.size), true); err != nil {
		return r, err
	}
	r.First, r.Head = w.first, w.at
	return r, w.finish(path, v.head)
}

// view is a trail as it was at one moment: writers go on meanwhile.
type view struct {
	aside []string // the files that were put aside, the oldest first
	last  *os.File
	size  int64 // of last, at that moment
	head  Anchor
}

// look takes a view while no writer is at work. A copy that was taken elsewhere has no lock, and needs
// none.
func look(path string) (v view, err error) {
	lock, err := os.Open(path + ".lock")
	if err == nil {
		defer lock.Close() // which unlocks
		err = unix.Flock(int(lock.Fd()), unix.LOCK_SH)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return v, disk.Error("lock", path, err)
	}
	if v.aside, err = putAside(path); err != nil {
		return v, err
	}
	if v.head, err = readHead(path); err != nil {
		return v, err
	}
	if v.last, err = os.Open(path); err != nil {
		return v, disk.Error("read", path, err)
	}
	info, err := v.last.Stat()
	if err != nil {
		v.last.Close()
		return v, disk.Error("read", path, err)
	}
	v.size = info.Size()
	return v, nil
}

// putAside returns the files of a trail that were put aside, the oldest first.
func putAside(path string) ([]string, error) {
	aside, err := filepath.Glob(strings.NewReplacer("[", `\[`, "*", `\*`, "?", `\?`, `\`, `\\`).Replace(path) + ".*")
	if err != nil {
		return nil, namespace.E(namespace.Invalid, "list", path, err)
	}
	var all []string
	for _, name := range aside {
		if n := strings.TrimPrefix(name, path+"."); len(n) >= 12 && strings.Trim(n, "0123456789") == "" {
			all = append(all, name)
		}
	}
	slices.SortFunc(all, func(a, b string) int { return cmp.Or(len(a)-len(b), strings.Compare(a, b)) })
	return all, nil
}

// walker goes from line to line.
type walker struct {
	at    Anchor // the line before
	first uint64
	given []Anchor // by whoever verifies
	left  []Anchor // of these, and the head: those not met yet
	show  func(Entry) error
}

func tampered(path string, line uint64, why string) error {
	return namespace.E(namespace.Corrupt, "verify", path+" line "+strconv.FormatUint(line, 10), errors.New(why))
}

// file checks one file.
func (w *walker) file(path string, f io.Reader, last bool) error {
	in := bufio.NewReaderSize(f, lineBytesMax)
	for n := uint64(1); ; n++ {
		line, err := in.ReadSlice('\n')
		switch {
		case err == io.EOF && len(line) == 0:
			if n == 1 && !last {
				return tampered(path, n, "the file is empty")
			}
			return nil
		case err == io.EOF:
			return tampered(path, n, "it has no end: a write that a crash cut short, or somebody else's cut")
		case errors.Is(err, bufio.ErrBufferFull):
			return tampered(path, n, fmt.Sprintf("it is longer than %d bytes", lineBytesMax))
		case err != nil:
			return disk.Error("read", path, err)
		}
		if err := w.line(path, n, line); err != nil {
			return err
		}
	}
}

// line checks one line.
func (w *walker) line(path string, n uint64, line []byte) error {
	var e Entry
	if err := decode(line, path, &e); err != nil {
		return tampered(path, n, "it is no line of a trail: "+err.Error())
	}
	if w.first == 0 {
		w.at = Anchor{e.Seq - 1, e.Prev}
		if e.Seq == 0 || e.Seq == 1 && e.Prev != zeroDigest {
			return tampered(path, n, "it is not the beginning that it says it is")
		}
		if e.Seq > 1 && !slices.Contains(w.given, w.at) {
			return namespace.WithHint(tampered(path, n, fmt.Sprintf("the trail begins with line %d: the lines before are missing", e.Seq)),
				"if they were archived, name the last of them: --anchor "+w.at.String())
		}
		w.first = e.Seq
		w.meet()
	}
	switch {
	case e.Seq != w.at.Seq+1:
		return tampered(path, n, fmt.Sprintf("entry %d follows entry %d: entries were taken out, put in or moved", e.Seq, w.at.Seq))
	case e.Prev != w.at.Digest:
		return tampered(path, n, fmt.Sprintf("entry %d does not follow from entry %d: one of them was changed", e.Seq, w.at.Seq))
	}
	w.at = Anchor{e.Seq, digestOf(line)}
	w.meet()
	if w.show != nil {
		return w.show(e)
	}
	return nil
}

// meet strikes off the anchors of the line it is at.
func (w *walker) meet() {
	w.left = slices.DeleteFunc(w.left, func(a Anchor) bool { return a == w.at })
}

// finish checks the end.
func (w *walker) finish(path string, head Anchor) error {
	w.meet()
	for _, a := range w.left {
		if a.Seq > w.at.Seq {
			return namespace.E(namespace.Corrupt, "verify", path, fmt.Errorf("it ends with entry %d, but there was an entry %d: its end was cut off", w.at.Seq, a.Seq))
		}
		if a.Seq+1 >= w.first && a.Seq > 0 {
			return namespace.E(namespace.Corrupt, "verify", path, fmt.Errorf("entry %d is not the one that was anchored: it, or one before it, was changed", a.Seq))
		}
		if a != head {
			return namespace.E(namespace.Corrupt, "verify", path, fmt.Errorf("entry %d, which was anchored, is not here", a.Seq))
		}
	}
	if head.Seq+1 < w.at.Seq { // a crash leaves it one behind, at most
		return namespace.E(namespace.Corrupt, "verify", path, fmt.Errorf("it ends with entry %d, but its head names entry %d: one of the two was put back", w.at.Seq, head.Seq))
	}
	return nil
}
