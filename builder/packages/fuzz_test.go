package packages

import (
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"testing"
)

// FuzzMetadata puts bytes where a package manager has its metadata. Whatever they are, the table can be
// stored and read again, and what another file says is in it.
func FuzzMetadata(f *testing.F) {
	places := []string{
		"var/lib/dpkg/status.d/x", "lib/apk/db/installed", "usr/lib/python3/dist-packages/x.dist-info/METADATA",
		"node_modules/x/package.json", "etc/os-release", "var/lib/rpm/Packages", "var/lib/rpm/Packages.db",
		"var/lib/dpkg/info/x.list", "var/lib/dpkg/status.d/x.md5sums", "usr/lib/python3/dist-packages/good.dist-info/RECORD",
	}
	for i, seed := range []string{
		dpkgStatus, "P:musl\nV:1.2.5-r0\nF:lib\nR:x\n", "Name: x\nVersion: 1\n\nreadme", `{"name":"x","version":"1.0.0"}`, "ID=\"x\"\n",
		"", "RpmP", "/.\n/usr/../../x\n//\n", "00  x\n", "a,b,c\n\"d\n",
	} {
		f.Add(uint8(i), []byte(seed))
	}
	f.Fuzz(func(t *testing.T, place uint8, b []byte) {
		m := newMemory()
		root := m.put(t, tree{files: map[string]string{
			places[int(place)%len(places)]:                           string(b),
			"var/lib/dpkg/status":                                    "Package: good\nVersion: 1\n",
			"usr/lib/python3/dist-packages/good.dist-info/METADATA":  "Name: good\nVersion: 1\n",
			"usr/lib/python3/dist-packages/good.dist-info/REQUESTED": "x",
		}})
		table, err := Read(t.Context(), m, root)
		if err != nil {
			t.Fatal(err)
		}
		encoded, err := table.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Decode(encoded, "fuzz"); err != nil {
			t.Fatal(err)
		}
		if q := (Query{Name: "good"}); len(q.Find(table)) < 2 {
			t.Errorf("what is good is gone: %q", lines(table))
		}
		if _, err := ReadOwners(t.Context(), m, root); err != nil {
			t.Fatal(err)
		}
	})
}

// TestDamagedDatabases reads copies of rpm's databases with some bytes wrong, in page heads above all. It
// takes the place of a fuzzer for SQLite's: the library is too large to be instrumented.
func TestDamagedDatabases(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for path, seed := range map[string][]byte{
		"var/lib/rpm/rpmdb.sqlite": sqliteDB(t, rpmBlobs),
		"var/lib/rpm/Packages.db":  ndbDB(rpmBlobs),
		"var/lib/rpm/Packages":     bdbDB(binary.LittleEndian, rpmBlobs),
	} {
		refused := 0
		for range 300 {
			b := slices.Clone(seed)
			for range 1 + random.IntN(20) {
				at := random.IntN(len(b))
				if random.IntN(2) == 0 {
					at = at/512*512 + random.IntN(64)
				}
				b[at] = byte(random.Uint32())
			}
			total := 0
			table := readTree(t, map[string]string{path: string(b)})
			for _, p := range table.Packages {
				total += len(p.Name) + len(p.Version)
			}
			if total > len(b) {
				t.Errorf("%s: %d bytes out of %d", path, total, len(b))
			}
			refused += len(table.Warnings)
		}
		if refused == 0 {
			t.Errorf("%s: no damage was seen", path)
		}
	}
}
