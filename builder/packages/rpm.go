package packages

import (
	"context"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	_ "modernc.org/sqlite" // the driver "sqlite"

	"coppice.dev/coppice/internal/disk"
)

// rpmDatabases are where rpm keeps what is installed, in its three formats.
var rpmDatabases = []string{
	"var/lib/rpm/rpmdb.sqlite", "usr/lib/sysimage/rpm/rpmdb.sqlite", "usr/share/rpm/rpmdb.sqlite",
	"var/lib/rpm/Packages.db", "usr/lib/sysimage/rpm/Packages.db",
	"var/lib/rpm/Packages", "usr/lib/sysimage/rpm/Packages",
}

func (s *scan) readRPM() error {
	return s.eachRPM(func(from string, h rpmHeader) { s.addRPM(from, h) })
}

// eachRPM calls fn with every header of every rpm database of the tree.
func (s *scan) eachRPM(fn func(from string, h rpmHeader)) error {
	return s.eachDatabase(rpmDatabases, rpmBytesMax, func(at place, b []byte) error {
		each := func(blob []byte) {
			h, err := parseRPMHeader(blob)
			if err != nil {
				s.blame(at.path, err)
				return
			}
			fn(at.path, h)
		}
		var err error
		switch path.Base(at.path) {
		case "rpmdb.sqlite":
			var wal []byte // what was not yet moved into the database when the image was made
			if w, ok, werr := s.open(at.path + "-wal"); werr != nil {
				return werr
			} else if ok {
				if wal, _, werr = s.read(w, rpmBytesMax); werr != nil {
					return werr
				}
			}
			err = eachSQLite(s.ctx, b, wal, each)
		case "Packages.db":
			err = eachNDB(b, each)
		default:
			err = eachBDB(b, each)
		}
		if s.ctx.Err() != nil || errors.As(err, new(*os.PathError)) {
			return err // ours: the disk, the caller
		}
		if err != nil {
			s.blame(at.path, err)
		}
		return nil
	})
}

// rpmSchema is how rpm makes its table. Any other definition could compute, for as long as it likes, what
// it seems to hold.
var rpmSchema = regexp.MustCompile(`(?i)^\s*CREATE TABLE\s+['"]?Packages['"]?\s*\(\s*hnum\s+INTEGER\s+PRIMARY KEY(\s+AUTOINCREMENT)?\s*,\s*blob\s+BLOB(\s+NOT NULL)?\s*\)\s*$`)

// sqliteTime bounds the reading of one database. The largest take a second; one whose pages are
// wired in circles would never end.
const sqliteTime = 30 * time.Second

// eachSQLite calls fn with every blob of an rpmdb.sqlite. SQLite reads files, so it gets one.
func eachSQLite(ctx context.Context, b, wal []byte, fn func(blob []byte)) error {
	dir, err := os.MkdirTemp("", "coppice-rpmdb-")
	if err != nil {
		return disk.Error("create", os.TempDir(), err)
	}
	defer os.RemoveAll(dir)
	name := filepath.Join(dir, "rpmdb.sqlite")
	for suffix, content := range map[string][]byte{"": b, "-wal": wal} {
		if suffix == "" || len(content) > 0 {
			if err := os.WriteFile(name+suffix, content, 0o600); err != nil {
				return disk.Error("write", name+suffix, err)
			}
		}
	}
	db, err := sql.Open("sqlite", (&url.URL{Scheme: "file", Path: name}).String())
	if err != nil {
		return err
	}
	defer db.Close()
	ctx, cancel := context.WithTimeout(ctx, sqliteTime)
	defer cancel()
	var schema string
	if err := db.QueryRowContext(ctx, "SELECT sql FROM sqlite_master WHERE type = 'table' AND name = 'Packages'").Scan(&schema); err != nil {
		return err
	}
	if !rpmSchema.MatchString(schema) {
		return errors.New("a table of packages that rpm did not make")
	}
	rows, err := db.QueryContext(ctx, "SELECT blob FROM Packages")
	if err != nil {
		return err
	}
	defer rows.Close()
	budget := len(b) + len(wal) // a database that repeats no page has no more to give
	for rows.Next() {
		var blob sql.RawBytes
		if err := rows.Scan(&blob); err != nil {
			return err
		}
		if budget -= len(blob) + 1; budget < 0 {
			return errors.New("a database whose rows share pages")
		}
		fn(blob)
	}
	return rows.Err()
}

// eachNDB calls fn with every blob of a Packages.db, the format of SUSE: a header of 32 bytes that is
// in place of the first two slots, slots of 16 bytes, and blobs in blocks of 16.
func eachNDB(b []byte, fn func(blob []byte)) error {
	const page, slot = 4096, 16
	le := binary.LittleEndian
	if len(b) < 2*slot || string(b[:4]) != "RpmP" || le.Uint32(b[4:]) != 0 {
		return errors.New("no ndb database")
	}
	end := uint64(le.Uint32(b[12:])) * page
	if end > uint64(len(b)) {
		return errors.New("an ndb database that ends within its slots")
	}
	budget := uint64(len(b)) // a database that repeats no blob has no more to give
	for at := uint64(2 * slot); at+slot <= end; at += slot {
		s := b[at:]
		if string(s[:4]) != "Slot" {
			return fmt.Errorf("no slot at %d", at)
		}
		if le.Uint32(s[4:]) == 0 {
			continue // free
		}
		off := uint64(le.Uint32(s[8:])) * slot
		if off+slot > uint64(len(b)) || string(b[off:off+4]) != "BlbS" {
			return fmt.Errorf("no blob at %d", off)
		}
		n := uint64(le.Uint32(b[off+12:]))
		if off+slot+n > uint64(len(b)) {
			return fmt.Errorf("the blob at %d ends outside", off)
		}
		if n > budget {
			return errors.New("an ndb database whose slots share blobs")
		}
		budget -= n
		fn(b[off+slot : off+slot+n])
	}
	return nil
}

// rpmHeader is what one header of an rpm database tells of a package.
type rpmHeader struct {
	strings map[uint32]string
	epoch   string
	dirs    []string
	bases   []string
	indexes []byte // of bases in dirs, four bytes each
}

// The tags and types of rpm headers that are used here.
const (
	rpmName, rpmVersion, rpmRelease, rpmEpoch = 1000, 1001, 1002, 1003
	rpmVendor, rpmLicense, rpmPackager        = 1011, 1014, 1015
	rpmArch, rpmSource                        = 1022, 1044
	rpmDirIndexes, rpmBaseNames, rpmDirNames  = 1116, 1117, 1118

	rpmInt32, rpmString, rpmStrings = 4, 6, 8
)

// parseRPMHeader reads a header: the number of index entries, the bytes of data, the entries (tag, type,
// offset, count), the data; big endian.
func parseRPMHeader(b []byte) (rpmHeader, error) {
	const entry = 16
	h := rpmHeader{strings: map[uint32]string{}}
	be := binary.BigEndian
	if len(b) < 8 {
		return h, errors.New("an rpm header without a beginning")
	}
	entries, size := uint64(be.Uint32(b)), uint64(be.Uint32(b[4:]))
	if 8+entries*entry+size > uint64(len(b)) {
		return h, errors.New("an rpm header without its end")
	}
	data := b[8+entries*entry:][:size]
	for i := range entries {
		e := b[8+i*entry:][:entry]
		tag, typ, off, count := be.Uint32(e), be.Uint32(e[4:]), uint64(be.Uint32(e[8:])), uint64(be.Uint32(e[12:]))
		if off >= size {
			continue // a region, or damage; if the latter, of a tag that is missed below
		}
		value := data[off:]
		switch typ {
		case rpmString:
			switch tag {
			case rpmName, rpmVersion, rpmRelease, rpmVendor, rpmLicense, rpmPackager, rpmArch, rpmSource:
				s, _, _ := strings.Cut(string(value[:min(len(value), fieldBytesMax)]), "\x00")
				h.strings[tag] = s
			}
		case rpmInt32:
			switch {
			case count*4 > uint64(len(value)):
			case tag == rpmEpoch && count == 1:
				h.epoch = strconv.FormatUint(uint64(be.Uint32(value)), 10)
			case tag == rpmDirIndexes:
				h.indexes = value[:count*4]
			}
		case rpmStrings:
			switch { // the first of each only: a header that repeats them costs nothing
			case tag == rpmBaseNames && h.bases == nil:
				h.bases = cutStrings(value, count)
			case tag == rpmDirNames && h.dirs == nil:
				h.dirs = cutStrings(value, count)
			}
		}
	}
	return h, nil
}

// cutStrings returns the first count strings of b, each with a NUL at its end, or as many as there are.
func cutStrings(b []byte, count uint64) []string {
	var all []string
	for s := range strings.SplitSeq(string(b), "\x00") {
		if uint64(len(all)) >= count {
			break
		}
		all = append(all, s)
	}
	return all
}

// paths calls fn with every path the package owns.
func (h rpmHeader) paths(fn func(path string)) {
	for i, base := range h.bases {
		if len(h.indexes) < 4*(i+1) {
			return
		}
		if d := binary.BigEndian.Uint32(h.indexes[4*i:]); uint64(d) < uint64(len(h.dirs)) {
			fn(h.dirs[d] + base)
		}
	}
}

// version returns [epoch:]version-release, or "" if there is none.
func (h rpmHeader) version() string {
	if h.strings[rpmVersion] == "" {
		return ""
	}
	v := h.strings[rpmVersion] + "-" + h.strings[rpmRelease]
	if h.epoch != "" && h.epoch != "0" {
		v = h.epoch + ":" + v
	}
	return v
}

func (s *scan) addRPM(from string, h rpmHeader) {
	if h.strings[rpmName] == "gpg-pubkey" {
		return // a key of rpm's, no software
	}
	maintainer := h.strings[rpmVendor]
	if maintainer == "" {
		maintainer = h.strings[rpmPackager]
	}
	source, version := cutSourceRPM(h.strings[rpmSource])
	if version != "" && h.epoch != "" && h.epoch != "0" {
		version = h.epoch + ":" + version
	}
	s.add(Package{
		Ecosystem: RPM, Name: h.strings[rpmName], Version: h.version(), Arch: h.strings[rpmArch],
		Source: source, SourceVersion: version, Maintainer: maintainer, Licence: h.strings[rpmLicense], Path: from,
	})
}

// cutSourceRPM cuts openssl-3.0.7-24.el9.src.rpm into name and version-release.
func cutSourceRPM(file string) (name, version string) {
	file, ok := strings.CutSuffix(file, ".src.rpm")
	if !ok {
		if file, ok = strings.CutSuffix(file, ".nosrc.rpm"); !ok {
			return "", ""
		}
	}
	for i, dashes := len(file)-1, 0; i > 0; i-- {
		if file[i] == '-' {
			if dashes++; dashes == 2 {
				return file[:i], file[i+1:]
			}
		}
	}
	return "", ""
}
