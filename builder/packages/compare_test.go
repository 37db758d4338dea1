package packages

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// made makes a table of "eco:name version [path]" and "path version" lines.
func made(t *testing.T, lines ...string) *Table {
	t.Helper()
	table := &Table{Format: TableFormat, Packages: []Package{}, Libraries: []Library{}}
	for _, line := range lines {
		f := strings.Fields(line)
		eco, name, ok := strings.Cut(f[0], ":")
		if !ok {
			table.Libraries = append(table.Libraries, Library{f[0], f[1]})
			continue
		}
		p := Package{Ecosystem: Ecosystem(eco), Name: name, Version: f[1], Path: "db"}
		if len(f) > 2 {
			p.Path = f[2]
		}
		p.Name, p.Arch, _ = strings.Cut(name, "/arch=")
		table.Packages = append(table.Packages, p)
	}
	slices.SortFunc(table.Packages, comparePackages)
	slices.SortFunc(table.Libraries, compareLibraries)
	if _, err := table.Encode(); err != nil {
		t.Fatal(err)
	}
	return table
}

func told(changes []Change) []string {
	var lines []string
	for _, c := range changes {
		lines = append(lines, fmt.Sprintf("%s %s %s→%s", c.What, c.Name, c.Old, c.New))
	}
	return lines
}

func TestCompare(t *testing.T) {
	for name, c := range map[string]struct{ before, after, want []string }{
		"nothing":                         {[]string{"deb:a 1"}, []string{"deb:a 1"}, nil},
		"added, removed":                  {[]string{"deb:a 1"}, []string{"deb:b 1"}, []string{"removed a 1→", "added b →1"}},
		"upgraded":                        {[]string{"deb:a 1.9", "deb:z 1"}, []string{"deb:a 1.10", "deb:z 1"}, []string{"upgraded a 1.9→1.10"}},
		"downgraded":                      {[]string{"deb:a 1.0"}, []string{"deb:a 1.0~rc1"}, []string{"downgraded a 1.0→1.0~rc1"}},
		"spelled otherwise":               {[]string{"deb:a 1.0"}, []string{"deb:a 0:1.0"}, nil},
		"another ecosystem":               {[]string{"deb:a 2"}, []string{"pypi:a 1"}, []string{"removed a 2→", "added a →1"}},
		"a kernel more":                   {[]string{"rpm:k 1-1", "rpm:k 2-1"}, []string{"rpm:k 1-1", "rpm:k 2-1", "rpm:k 3-1"}, []string{"added k →3-1"}},
		"the oldest kernel went":          {[]string{"rpm:k 1-1", "rpm:k 2-1"}, []string{"rpm:k 2-1", "rpm:k 3-1"}, []string{"upgraded k 1-1→3-1"}},
		"two kernels became one":          {[]string{"rpm:k 1-1", "rpm:k 2-1"}, []string{"rpm:k 3-1"}, []string{"upgraded k 2-1→3-1", "removed k 1-1→"}},
		"a copy went, no downgrade":       {[]string{"npm:m 2.0.0 a", "npm:m 1.0.0 b"}, []string{"npm:m 1.0.0 b"}, []string{"removed m 2.0.0→"}},
		"moved to another place":          {[]string{"npm:m 2.0.0 a", "npm:m 1.0.0 b"}, []string{"npm:m 1.0.0 a", "npm:m 2.0.0 b"}, nil},
		"each in its place, one is older": {[]string{"npm:m 2.0.0 a", "npm:m 1.0.0 b"}, []string{"npm:m 1.5.0 a", "npm:m 3.0.0 b"}, []string{"downgraded m 2.0.0→1.5.0", "upgraded m 1.0.0→3.0.0"}},
		"of two architectures":            {[]string{"deb:a/arch=amd64 1", "deb:a/arch=i386 2"}, []string{"deb:a/arch=amd64 2", "deb:a/arch=i386 1"}, []string{"upgraded a 1→2", "downgraded a 2→1"}},
		"one architecture went":           {[]string{"deb:a/arch=amd64 1", "deb:a/arch=i386 1"}, []string{"deb:a/arch=amd64 2"}, []string{"upgraded a 1→2", "removed a 1→"}},
		"for all, then for one":           {[]string{"deb:a/arch=all 2"}, []string{"deb:a/arch=amd64 1"}, []string{"downgraded a 2→1"}},
		"for all, the same version":       {[]string{"deb:a/arch=all 2"}, []string{"deb:a/arch=amd64 2"}, nil},
		"from nothing":                    {nil, []string{"deb:a 1"}, []string{"added a →1"}},
	} {
		got := told(Compare(made(t, c.before...), made(t, c.after...)))
		slices.Sort(got)
		slices.Sort(c.want)
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

func TestDowngrades(t *testing.T) {
	for name, c := range map[string]struct{ before, after, want []string }{
		"a package":                    {[]string{"deb:a 2", "deb:b 1"}, []string{"deb:a 1", "deb:b 2"}, []string{"downgraded a 2→1"}},
		"removed":                      {[]string{"deb:a 2", "lib/libz.so.1 1.2"}, nil, nil},
		"the name leads elsewhere":     {[]string{"usr/lib/libz.so.1 1.2.13", "usr/lib/libz.so.1.2.13 1.2.13"}, []string{"usr/lib/libz.so.1 1.2.9", "usr/lib/libz.so.1.2.9 1.2.9"}, []string{"downgraded usr/lib/libz.so.1 1.2.13→1.2.9"}},
		"without links":                {[]string{"lib/libz.so.1.2.13 1.2.13"}, []string{"lib/libz.so.1.2.9 1.2.9"}, []string{"downgraded usr/lib/libz.so 1.2.13→1.2.9"}},
		"another major version":        {[]string{"lib/libssl.so.3 3"}, []string{"lib/libssl.so.1.1 1.1"}, []string{"downgraded usr/lib/libssl.so 3→1.1"}},
		"an old one beside":            {[]string{"lib/libssl.so.3 3"}, []string{"lib/libssl.so.3 3", "lib/libssl.so.1.1 1.1"}, nil},
		"the newer of two went":        {[]string{"lib/b.so.1.83 1.83", "lib/b.so.1.74 1.74"}, []string{"lib/b.so.1.74 1.74"}, nil},
		"newer":                        {[]string{"lib/libz.so.1 1.2.9"}, []string{"lib/libz.so.1 1.2.13"}, nil},
		"usr was merged":               {[]string{"lib/libz.so.1 1.2.9"}, []string{"usr/lib/libz.so.1 1.2.8"}, []string{"downgraded usr/lib/libz.so.1 1.2.9→1.2.8"}},
		"libc's own way":               {[]string{"lib/libc.so.6 2.31", "lib/libc-2.31.so 2.31"}, []string{"lib/libc.so.6 2.28", "lib/libc-2.28.so 2.28"}, []string{"downgraded lib/libc.so.6 2.31→2.28"}},
		"another directory, same name": {[]string{"opt/a/libz.so.2 2"}, []string{"opt/b/libz.so.1 1"}, nil},
	} {
		if got := told(Downgrades(made(t, c.before...), made(t, c.after...))); !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

func TestCutLibrary(t *testing.T) {
	for name, want := range map[string]string{
		"libz.so.1.2.13": "libz 1.2.13", "libcrypto.so.3": "libcrypto 3", "libpython3.11.so.1.0": "libpython3.11 1.0",
		"libc-2.31.so": "libc 2.31", "ld-linux-x86-64.so.2": "ld-linux-x86-64 2",
		"libz.so": "", "x.so.conf": "", "a.so.1.gz": "", "x.so.": "", "libfoo-2.so": "", ".so.1": "",
	} {
		stem, version, ok := cutLibrary(name)
		if got := strings.TrimSpace(stem + " " + version); got != want || ok != (want != "") {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
}

func TestTableEncoding(t *testing.T) {
	table := made(t, "deb:a 1", "deb:b 2", "rpm:a 1-1", "lib/libz.so.1 1.2")
	table.Distro = Distro{ID: "debian", Version: "12"}
	table.Warnings = []string{"var/lib/rpm/rpmdb.sqlite: no"}
	b, err := table.Encode()
	if err != nil {
		t.Fatal(err)
	}
	again, err := Decode(b, "test")
	if err != nil {
		t.Fatal(err)
	}
	if c, err := again.Encode(); err != nil || string(c) != string(b) {
		t.Errorf("decoded and encoded again it is %s, %v", c, err)
	}
	text := string(b)
	for name, bad := range map[string]string{
		"truncated":           text[:len(text)/2],
		"unknown field":       strings.Replace(text, `"format"`, `"formt"`, 1),
		"another format":      strings.Replace(text, `"format":1`, `"format":2`, 1),
		"out of order":        strings.Replace(text, `"name":"b"`, `"name":"A"`, 1),
		"twice":               strings.Replace(text, `"name":"b","version":"2"`, `"name":"a","version":"1"`, 1),
		"unknown ecosystem":   strings.Replace(text, `"deb"`, `"dib"`, 1),
		"no version":          strings.Replace(text, `"version":"2"`, `"version":""`, 1),
		"a control byte":      strings.Replace(text, `"name":"b"`, `"name":"\u001b"`, 1),
		"white space":         strings.Replace(text, `"name":"b"`, `"name": "b"`, 1),
		"a library's version": strings.Replace(text, `"1.2"`, `"1.x"`, 1),
		"no list":             `{"format":1,"packages":null,"libraries":[]}` + "\n",
	} {
		if bad == text {
			t.Fatalf("%s: the test changes nothing", name)
		}
		if _, err := Decode([]byte(bad), "test"); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"format":1,"packages":[{"ecosystem":"deb","name":"a","version":"1","path":"x"}],"libraries":[{"path":"l.so.1","version":"1"}]}` + "\n"))
	f.Add([]byte(`{"format":1,"packages":[],"libraries":[],"warnings":["x"]}` + "\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		table, err := Decode(b, "fuzz")
		if err != nil {
			return
		}
		if again, err := table.Encode(); err != nil || string(again) != string(b) {
			t.Errorf("%q became %q, %v", b, again, err)
		}
	})
}

func TestQuery(t *testing.T) {
	p := Package{Ecosystem: Deb, Name: "libssl3", Version: "3.0.16-1~deb12u1", Source: "openssl"}
	bin := Package{Ecosystem: Deb, Name: "libgcc-s1", Version: "12.2.0-14", Source: "gcc-12", SourceVersion: "12.2.0-15"}
	epoch := Package{Ecosystem: RPM, Name: "k", Version: "1:1.5-3"}
	alpine := Package{Ecosystem: APK, Name: "musl", Version: "1.2.5-r0"}
	py := Package{Ecosystem: PyPI, Name: "Foo.Bar_baz", Version: "1.0"}
	for _, c := range []struct {
		q    string
		p    Package
		want bool
	}{
		{"openssl", p, true}, {"libssl3", p, true}, {"deb:openssl", p, true}, {"rpm:openssl", p, false}, {"ssl", p, false},
		{"openssl<3.0.17", p, true}, {"openssl < 3.0.17", p, true}, {"openssl<3.0.16", p, false}, {"openssl>=3.0.16", p, true},
		{"openssl=3.0.16-1~deb12u1", p, true}, {"openssl==3.0.16-1~deb12u1", p, true}, {"openssl!=3.0.16-1~deb12u1", p, false},
		{"openssl>1:0.1", p, false}, {"openssl<=3.0.16-1", p, true},
		{"openssl=3.0.16", p, true}, {"openssl<=3.0.16", p, true}, {"openssl>3.0.16", p, false}, {"openssl<3.0.16-1", p, true},
		{"k<2", epoch, true}, {"k=1.5", epoch, true}, {"k<0:2", epoch, false}, {"k=1:1.5", epoch, true}, {"k<1.5-4", epoch, true}, {"k<1.5-3", epoch, false},
		{"musl=1.2.5", alpine, true}, {"musl<1.2.5-r1", alpine, true}, {"musl>1.2.5", alpine, false},
		{"gcc-12=12.2.0-15", bin, true}, {"gcc-12=12.2.0-14", bin, false}, {"libgcc-s1=12.2.0-14", bin, true},
		{"foo-bar-baz", py, true}, {"pypi:FOO_bar.baz>0.9", py, true}, {"foo-bar", py, false},
		{"npm:@scope/x>1", Package{Ecosystem: NPM, Name: "@scope/x", Version: "1.0.1"}, true},
	} {
		q, err := ParseQuery(c.q)
		if err != nil {
			t.Errorf("%q: %v", c.q, err)
			continue
		}
		if got := q.Match(c.p); got != c.want {
			t.Errorf("%q of %v is %v", c.q, c.p, got)
		}
		if again, err := ParseQuery(q.String()); err != nil || again != q {
			t.Errorf("%q is read again as %v, %v", q.String(), again, err)
		}
	}
	for _, bad := range []string{"", "<1", "openssl<", "openssl<>1", "openssl=<1", "debian:openssl", "a b", "a<1 2", "deb:", "a\x1b<1", "openssl=>=1"} {
		if q, err := ParseQuery(bad); err == nil {
			t.Errorf("%q is read as %+v", bad, q)
		}
	}
}

func FuzzParseQuery(f *testing.F) {
	f.Add("openssl<3.0.17")
	f.Add("deb:a!=1")
	f.Fuzz(func(t *testing.T, s string) {
		q, err := ParseQuery(s)
		if err != nil {
			return
		}
		if again, err := ParseQuery(q.String()); err != nil || again != q {
			t.Errorf("%q: %+v became %+v, %v", s, q, again, err)
		}
	})
}
