package packages

import (
	"database/sql"
	"encoding/binary"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const dpkgStatus = `Package: libssl3
Status: install ok installed
Architecture: amd64
Multi-Arch: same
Source: openssl
Version: 3.0.16-1~deb12u1
Maintainer: Debian OpenSSL Team <x@example.org>
Description: Secure Sockets Layer toolkit
 Version: 9.9 is what a continued line may say

Package: libgcc-s1
Status: install ok installed
Architecture: amd64
Source: gcc-12 (12.2.0-15)
Version: 12.2.0-14

Package: gone
Status: deinstall ok config-files
Version: 1

Package: kept
Status: hold ok installed
Version: 2:1-1
`

func TestReadDpkg(t *testing.T) {
	table := readTree(t, map[string]string{
		"var/lib/dpkg/status":                     dpkgStatus,
		"var/lib/dpkg/status.d/tzdata":            "Package: tzdata\nVersion: 2024a-0+deb12u1\nArchitecture: all\n",
		"var/lib/dpkg/status.d/tzdata.md5sums":    "Package: no\nVersion: 1\n",
		"usr/lib/os-release":                      "ID=debian\nVERSION_ID=\"12\"\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n",
		"etc/os-release":                          "-> ../usr/lib/os-release",
		"usr/lib/x86_64-linux-gnu/libz.so.1":      "-> libz.so.1.2.13",
		"usr/lib/x86_64-linux-gnu/libz.so":        "-> libz.so.1",
		"usr/lib/x86_64-linux-gnu/libz.so.1.2.13": "\x7fELF",
		"usr/lib/x86_64-linux-gnu/libaway.so.1":   "-> /etc/alternatives/libaway.so.1",
		"usr/lib/x86_64-linux-gnu/loop.so.1":      "-> loop.so.1",
	})
	want := []string{
		"deb:kept 2:1-1", "deb:libgcc-s1 12.2.0-14 amd64 from gcc-12 12.2.0-15",
		"deb:libssl3 3.0.16-1~deb12u1 amd64 from openssl", "deb:tzdata 2024a-0+deb12u1 all",
	}
	if got := lines(table); !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	if table.Distro != (Distro{"debian", "12", "Debian GNU/Linux 12 (bookworm)"}) || len(table.Warnings) != 0 {
		t.Errorf("%+v, %q", table.Distro, table.Warnings)
	}
	dir := "usr/lib/x86_64-linux-gnu/"
	if want := []Library{{dir + "libz.so", "1.2.13"}, {dir + "libz.so.1", "1.2.13"}, {dir + "libz.so.1.2.13", "1.2.13"}}; !slices.Equal(table.Libraries, want) {
		t.Errorf("%v, want %v", table.Libraries, want)
	}
}

// TestReadFollowsLinks finds databases through links, and each of them once.
func TestReadFollowsLinks(t *testing.T) {
	table := readTree(t, map[string]string{
		"lib":                             "-> usr/lib",
		"usr/lib/apk/db/installed":        "C:Q1x\nP:musl\nV:1.2.5-r0\nA:x86_64\no:musl\nL:MIT\nF:lib\nR:ld-musl-x86_64.so.1\n\nP:libssl3\nV:3.3.2-r1\no:openssl\n",
		"var":                             "-> /system/../data/var",
		"data/var/lib/dpkg/status":        "-> /state/status",
		"state/status":                    "Package: a\nVersion: 1\n",
		"usr/share/x/var/lib/dpkg/status": "Package: not-here\nVersion: 1\n",
		"system/":                         "",
	})
	want := []string{"apk:libssl3 3.3.2-r1 from openssl", "apk:musl 1.2.5-r0 x86_64", "deb:a 1"}
	if got := lines(table); !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	if table.Packages[2].Path != "state/status" || table.Packages[1].Licence != "MIT" {
		t.Errorf("%+v", table.Packages)
	}
}

func TestReadProjects(t *testing.T) {
	table := readTree(t, map[string]string{
		"usr/lib/python3/dist-packages/scipy-1.10.1.dist-info/METADATA": "Metadata-Version: 2.1\nName: scipy\nVersion: 1.10.1\nLicense: BSD\nAuthor: UNKNOWN\n\nName: readme\n",
		"usr/lib/python3/dist-packages/six-1.16.0.egg-info":             "Name: six\nVersion: 1.16.0\n",
		"opt/venv/lib/python3.11/site-packages/x-2.egg-info/PKG-INFO":   "Name: x\nVersion: 2\nLicense-Expression: MIT\nLicense: long\n",
		"usr/share/doc/METADATA":                                        "Name: no\nVersion: 1\n",
		"usr/lib/python3/dist-packages/a/b.dist-info/METADATA":          "Name: no\nVersion: 1\n",
		"usr/lib/node_modules/npm/package.json":                         `{"name":"npm","version":"10.0.0","license":"Artistic-2.0","author":{"name":"GitHub"}}`,
		"usr/lib/node_modules/npm/node_modules/@npmcli/fs/package.json": `{"name":"@npmcli/fs","version":"3.1.0","license":{"type":"ISC"}}`,
		"usr/lib/node_modules/npm/test/package.json":                    `{"name":"no","version":"1.0.0"}`,
		"usr/lib/node_modules/npm/node_modules/esm/package.json":        `{"type":"module"}`,
		"usr/share/nodejs/acorn/package.json":                           `{"name":"acorn","version":"8.8.1"}`,
	})
	want := []string{"npm:@npmcli/fs 3.1.0", "npm:acorn 8.8.1", "npm:npm 10.0.0", "pypi:scipy 1.10.1", "pypi:six 1.16.0", "pypi:x 2"}
	if got := lines(table); !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	if p := table.Packages[2]; p.Maintainer != "GitHub" || p.Licence != "Artistic-2.0" || p.Path != "usr/lib/node_modules/npm" {
		t.Errorf("%+v", p)
	}
	if p := table.Packages[3]; p.Maintainer != "" || p.Licence != "BSD" || p.Path != "usr/lib/python3/dist-packages/scipy-1.10.1.dist-info" {
		t.Errorf("%+v", p)
	}
	if len(table.Warnings) != 0 {
		t.Errorf("%q", table.Warnings)
	}
}

// TestReadHostile reads trees that mean harm: each costs a warning that names the file, and nothing
// that another file says.
func TestReadHostile(t *testing.T) {
	good := map[string]string{"var/lib/dpkg/status": "Package: good\nVersion: 1\n"}
	for name, c := range map[string]struct {
		path, content, warning string
	}{
		"a loop of links":   {"lib/apk/db/installed", "-> installed", "lib/apk/db/installed: .*too many symlinks"},
		"no version":        {"var/lib/dpkg/status.d/x", "Package: x\n\nPackage: y\n", `status.d/x: name "x", version "" (and 1 more like it)`},
		"white space in it": {"var/lib/dpkg/status.d/x", "Package: a b\nVersion: 1\n", "status.d/x: "},
		"broken JSON":       {"node_modules/x/package.json", `{"name":`, "node_modules/x/package.json: "},
		"an array for JSON": {"node_modules/x/package.json", `[1]`, "node_modules/x/package.json: "},
		"JSON without end":  {"node_modules/x/package.json", strings.Repeat("[", 1<<20), "node_modules/x/package.json: "},
		"empty metadata":    {"usr/lib/python3/site-packages/x.dist-info/METADATA", "\n\n", "x.dist-info: says nothing"},
		"too large":         {"usr/lib/python3/site-packages/x.egg-info", strings.Repeat("x", metadataBytesMax+1), "x.egg-info: 4194305 bytes"},
		"no sqlite":         {"var/lib/rpm/rpmdb.sqlite", "SQLite format 3\x00 or so", "rpmdb.sqlite: "},
		"an empty sqlite":   {"var/lib/rpm/rpmdb.sqlite", "", "rpmdb.sqlite: "},
		"no ndb":            {"var/lib/rpm/Packages.db", "RpmP", "Packages.db: "},
		"no bdb":            {"var/lib/rpm/Packages", strings.Repeat("\x08", 600), "Packages: "},
	} {
		files := map[string]string{c.path: c.content}
		for p, content := range good {
			files[p] = content
		}
		table := readTree(t, files)
		if got := lines(table); !slices.Equal(got, []string{"deb:good 1"}) {
			t.Errorf("%s: %q", name, got)
		}
		first, _, _ := strings.Cut(c.warning, ".*")
		if len(table.Warnings) != 1 || !strings.Contains(table.Warnings[0], first) {
			t.Errorf("%s: warnings %q, want one with %q", name, table.Warnings, first)
		}
	}
}

func TestReadCleansWhatItKeeps(t *testing.T) {
	table := readTree(t, map[string]string{
		"var/lib/dpkg/status": "Package: a\nVersion: 1\nMaintainer: \x1b[31mred\xff\u202e " + strings.Repeat("x", 5000) + "\n",
		"lib/lib\xff.so.1":    "x",
	})
	m := table.Packages[0].Maintainer
	if strings.ContainsAny(m, "\x1b\u202e") || len(m) > fieldBytesMax || !strings.Contains(m, "red") {
		t.Errorf("%q", m)
	}
	if len(table.Libraries) != 1 || table.Libraries[0].Path != "lib/lib\uFFFD.so.1" {
		t.Errorf("%q", table.Libraries)
	}
}

// TestReadReadsLittle looks at the number of files that are read of a tree with many.
func TestReadReadsLittle(t *testing.T) {
	m := newMemory()
	files := map[string]string{"var/lib/dpkg/status": dpkgStatus, "etc/os-release": "ID=debian\n"}
	for i := range 2000 {
		files["usr/share/x/"+strings.Repeat("y", i%50)+string(rune('a'+i%26))+".so.1"] = "content"
		files["usr/lib/libx.so."+strings.Repeat("1", 1+i%9)] = "content"
	}
	if _, err := Read(t.Context(), m, m.put(t, tree{files: files})); err != nil || m.reads != 2 {
		t.Errorf("%d files read, %v", m.reads, err)
	}
}

// rpmBlob makes the header of an rpm.
func rpmBlob(name, version, release, source string, epoch uint32, paths ...string) []byte {
	var index, data []byte
	be := binary.BigEndian
	add := func(tag, typ, count uint32, value []byte) {
		for typ == rpmInt32 && len(data)%4 != 0 {
			data = append(data, 0)
		}
		for _, n := range []uint32{tag, typ, uint32(len(data)), count} {
			index = be.AppendUint32(index, n)
		}
		data = append(data, value...)
	}
	for tag, s := range map[uint32]string{rpmName: name, rpmVersion: version, rpmRelease: release, rpmSource: source, rpmArch: "x86_64", rpmLicense: "MIT"} {
		add(tag, rpmString, 1, []byte(s+"\x00"))
	}
	if epoch > 0 {
		add(rpmEpoch, rpmInt32, 1, be.AppendUint32(nil, epoch))
	}
	var dirs, bases, indexes []byte
	for i, p := range paths {
		dirs = append(dirs, filepath.Dir(p)+"/\x00"...)
		bases = append(bases, filepath.Base(p)+"\x00"...)
		indexes = be.AppendUint32(indexes, uint32(i))
	}
	n := uint32(len(paths))
	add(rpmDirNames, rpmStrings, n, dirs)
	add(rpmBaseNames, rpmStrings, n, bases)
	add(rpmDirIndexes, rpmInt32, n, indexes)
	b := be.AppendUint32(nil, uint32(len(index)/16))
	b = be.AppendUint32(b, uint32(len(data)))
	return append(append(b, index...), data...)
}

var rpmBlobs = [][]byte{
	rpmBlob("openssl-libs", "3.0.7", "24.el9", "openssl-3.0.7-24.el9.src.rpm", 1, "/usr/lib64/libssl.so.3", "/etc/pki/tls/openssl.cnf"),
	rpmBlob("bash", "5.1.8", "9.el9", "bash-5.1.8-9.el9.src.rpm", 0, "/bin/bash"),
	rpmBlob("gpg-pubkey", "fd431d51", "4ae0493b", "(none)", 0),
}

var rpmWant = []string{"rpm:bash 5.1.8-9.el9 x86_64", "rpm:openssl-libs 1:3.0.7-24.el9 x86_64 from openssl 1:3.0.7-24.el9"}

func sqliteDB(t testing.TB, blobs [][]byte) []byte {
	return sqliteMade(t, "CREATE TABLE 'Packages' (hnum INTEGER PRIMARY KEY AUTOINCREMENT,blob BLOB NOT NULL)", blobs...)
}

func sqliteMade(t testing.TB, schema string, blobs ...[]byte) []byte {
	t.Helper()
	name := filepath.Join(t.TempDir(), "rpmdb.sqlite")
	db, err := sql.Open("sqlite", name)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := db.Exec(schema); err != nil {
		t.Fatal(err)
	}
	for _, b := range blobs {
		if _, err := db.Exec("INSERT INTO Packages (blob) VALUES (?)", b); err != nil {
			t.Fatal(err)
		}
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func ndbDB(blobs [][]byte) []byte {
	le := binary.LittleEndian
	b := make([]byte, 4096)
	copy(b, "RpmP")
	le.PutUint32(b[12:], 1)
	for at := 32; at < len(b); at += 16 {
		copy(b[at:], "Slot")
	}
	for i, blob := range blobs {
		slot := b[32+16*(i+1):]
		le.PutUint32(slot[4:], uint32(i+1))
		le.PutUint32(slot[8:], uint32(len(b)/16))
		b = append(b, "BlbS"...)
		b = le.AppendUint32(b, uint32(i+1))
		b = le.AppendUint32(b, 0)
		b = le.AppendUint32(b, uint32(len(blob)))
		b = append(b, blob...)
		b = append(b, make([]byte, 16-len(b)%16)...)
	}
	return b
}

// bdbDB makes a database of pages of 512 bytes: the head, one page of keys, and pages of values.
func bdbDB(order binary.AppendByteOrder, blobs [][]byte) []byte {
	const page = 512
	put := order.(binary.ByteOrder)
	b := make([]byte, 2*page)
	put.PutUint32(b[12:], bdbMagic)
	put.PutUint32(b[20:], page)
	b[bdbType] = bdbHashMeta
	keys := b[page:][:page:page]
	keys[bdbType] = bdbHash
	put.PutUint16(keys[bdbEntries:], uint16(2*len(blobs)))
	keys = slices.Clone(keys)
	for i, blob := range blobs {
		off := page - 16*(i+1)
		put.PutUint16(keys[bdbHeader+4*i+2:], uint16(off))
		keys[off] = bdbOffPage
		put.PutUint32(keys[off+4:], uint32(len(b)/page))
		put.PutUint32(keys[off+8:], uint32(len(blob)))
		for rest := blob; len(rest) > 0; {
			p := make([]byte, page)
			p[bdbType] = bdbOverflow
			n := copy(p[bdbHeader:], rest)
			rest = rest[n:]
			if len(rest) > 0 {
				put.PutUint32(p[bdbNext:], uint32(len(b)/page+1))
			} else {
				put.PutUint16(p[bdbUsed:], uint16(n))
			}
			b = append(b, p...)
		}
	}
	copy(b[page:], keys)
	return b
}

func TestReadRPM(t *testing.T) {
	for path, content := range map[string][]byte{
		"var/lib/rpm/rpmdb.sqlite":         sqliteDB(t, rpmBlobs),
		"usr/lib/sysimage/rpm/Packages.db": ndbDB(rpmBlobs),
		"var/lib/rpm/Packages":             bdbDB(binary.LittleEndian, rpmBlobs),
		"usr/lib/sysimage/rpm/Packages":    bdbDB(binary.BigEndian, rpmBlobs),
	} {
		table := readTree(t, map[string]string{path: string(content)})
		if got := lines(table); !slices.Equal(got, rpmWant) || len(table.Warnings) > 0 {
			t.Errorf("%s: %q, want %q; warnings %q", path, got, rpmWant, table.Warnings)
		}
	}
	// A header that is damaged costs its package only.
	blobs := append(slices.Clone(rpmBlobs), []byte("garbage"), rpmBlobs[0][:100])
	table := readTree(t, map[string]string{"var/lib/rpm/rpmdb.sqlite": string(sqliteDB(t, blobs))})
	if got := lines(table); !slices.Equal(got, rpmWant) || len(table.Warnings) != 1 {
		t.Errorf("%q, warnings %q", got, table.Warnings)
	}
}

// TestReadRPMWithLog reads rows that SQLite had not yet moved from its write-ahead log.
func TestReadRPMWithLog(t *testing.T) {
	name := filepath.Join(t.TempDir(), "rpmdb.sqlite")
	db, err := sql.Open("sqlite", name)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	for _, q := range []string{"PRAGMA journal_mode = WAL", "CREATE TABLE 'Packages' (hnum INTEGER PRIMARY KEY AUTOINCREMENT,blob BLOB NOT NULL)"} {
		if _, err := db.Exec(q); err != nil {
			t.Fatal(err)
		}
	}
	for _, b := range rpmBlobs {
		if _, err := db.Exec("INSERT INTO Packages (blob) VALUES (?)", b); err != nil {
			t.Fatal(err)
		}
	}
	files := map[string]string{}
	for _, suffix := range []string{"", "-wal"} {
		b, err := os.ReadFile(name + suffix)
		if err != nil || len(b) == 0 {
			t.Fatalf("%d bytes of %s, %v", len(b), name+suffix, err)
		}
		files["usr/lib/sysimage/rpm/rpmdb.sqlite"+suffix] = string(b)
	}
	if table := readTree(t, files); !slices.Equal(lines(table), rpmWant) || len(table.Warnings) > 0 {
		t.Errorf("%q, warnings %q", lines(table), table.Warnings)
	}
}

// TestReadRPMThatComputes refuses databases whose table is not one of rows: they could give for ever.
func TestReadRPMThatComputes(t *testing.T) {
	for name, schema := range map[string]string{
		"a view that never ends": "CREATE VIEW Packages AS WITH RECURSIVE r(blob) AS (SELECT x'00' UNION ALL SELECT blob FROM r) SELECT blob FROM r",
		"a computed column":      "CREATE TABLE Packages (hnum INTEGER PRIMARY KEY, x, blob AS (zeroblob(100000000)))",
	} {
		table := readTree(t, map[string]string{"var/lib/rpm/rpmdb.sqlite": string(sqliteMade(t, schema))})
		if len(table.Packages) != 0 || len(table.Warnings) != 1 {
			t.Errorf("%s: %q, warnings %q", name, lines(table), table.Warnings)
		}
	}
}

func TestCutSourceRPM(t *testing.T) {
	for file, want := range map[string]string{
		"openssl-3.0.7-24.el9.src.rpm": "openssl 3.0.7-24.el9", "a-b-c-1-2.nosrc.rpm": "a-b-c 1-2",
		"(none)": "", "x.src.rpm": "", "x-1.src.rpm": "", "": "",
	} {
		name, version := cutSourceRPM(file)
		if got := strings.TrimSpace(name + " " + version); got != want {
			t.Errorf("%q is %q, want %q", file, got, want)
		}
	}
}

func FuzzBDB(f *testing.F) {
	f.Add(bdbDB(binary.LittleEndian, rpmBlobs))
	f.Add(bdbDB(binary.BigEndian, rpmBlobs[:1]))
	f.Fuzz(func(t *testing.T, b []byte) {
		total := 0
		_ = eachBDB(b, func(blob []byte) { total += len(blob) })
		if total > 2*len(b) {
			t.Errorf("%d bytes out of %d", total, len(b))
		}
	})
}

func FuzzNDB(f *testing.F) {
	f.Add(ndbDB(rpmBlobs))
	f.Fuzz(func(t *testing.T, b []byte) {
		_ = eachNDB(b, func(blob []byte) {
			if len(blob) > len(b) {
				t.Errorf("%d bytes out of %d", len(blob), len(b))
			}
		})
	})
}

func FuzzRPMHeader(f *testing.F) {
	for _, b := range rpmBlobs {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := parseRPMHeader(b)
		if err != nil {
			return
		}
		h.paths(func(p string) {
			if len(p) > 2*len(b) {
				t.Errorf("a path of %d bytes", len(p))
			}
		})
	})
}
