package packages

import (
	"fmt"
	"testing"
)

func TestOwners(t *testing.T) {
	m := newMemory()
	root := m.put(t, tree{files: map[string]string{
		"lib": "-> usr/lib", "bin": "-> usr/bin",
		"usr/bin/bash": "x", "usr/lib/libz.so.1": "x", "usr/share/doc/bash/README": "x",
		"var/lib/dpkg/info/bash.list":                            "/.\n/bin\n/bin/bash\n/usr\n/usr/share/doc/bash\n/usr/share/doc/bash/README\n",
		"var/lib/dpkg/info/bash.postinst":                        "x",
		"var/lib/dpkg/info/zlib1g:amd64.list":                    "/.\n/usr\n/lib/libz.so.1\n",
		"var/lib/dpkg/info/format":                               "1",
		"var/lib/dpkg/status.d/tz":                               "Package: tz\nVersion: 1\n",
		"var/lib/dpkg/status.d/tz.md5sums":                       "0123  usr/share/zoneinfo/UTC\n",
		"usr/lib/apk/db/installed":                               "P:musl\nV:1\nA:x86_64\nF:lib\nR:ld.so\n\nP:busybox\nV:1\nF:bin\nR:sh\n",
		"usr/lib/python3/dist-packages/six-1.dist-info/METADATA": "Name: six\nVersion: 1\n",
		"usr/lib/python3/dist-packages/six-1.dist-info/RECORD":   "six.py,sha256=x,1\n../../../bin/six,,\n\"broken",
		"usr/lib/node_modules/npm/package.json":                  `{"name":"npm","version":"1.0.0"}`,
		"usr/lib/sysimage/rpm/Packages.db":                       string(ndbDB(rpmBlobs)),
	}})
	o, err := ReadOwners(t.Context(), m, root)
	if err != nil {
		t.Fatal(err)
	}
	for p, want := range map[string]string{
		"usr/bin/bash":      "", // dpkg's and rpm's: a file that two packages own has no owner
		"usr/lib/libz.so.1": "deb:zlib1g:amd64", "usr/share/doc/bash": "deb:bash:", "usr": "", "etc/passwd": "",
		"var/lib/dpkg/info/bash.postinst": "deb:bash:", "var/lib/dpkg/info/zlib1g:amd64.list": "deb:zlib1g:amd64", "var/lib/dpkg/info/format": "",
		"usr/share/zoneinfo/UTC": "deb:tz:", "usr/lib/ld.so": "apk:musl:x86_64", "usr/bin/sh": "apk:busybox:",
		"usr/lib/python3/dist-packages/six.py": "pypi:six:", "usr/bin/six": "pypi:six:",
		"usr/lib/python3/dist-packages/__pycache__/six.cpython-311.pyc": "pypi:six:", "usr/lib/python3/dist-packages/__pycache__/seven.pyc": "", "usr/lib/node_modules/npm/lib/x.js": "npm:npm:",
		"usr/lib64/libssl.so.3": "rpm:openssl-libs:x86_64", "etc/pki/tls/openssl.cnf": "rpm:openssl-libs:x86_64",
	} {
		by, ok := o.Of(p)
		got := ""
		if ok {
			got = fmt.Sprintf("%s:%s:%s", by.Ecosystem, by.Name, by.Arch)
		}
		if got != want {
			t.Errorf("%s is of %q, want %q", p, got, want)
		}
	}
}
