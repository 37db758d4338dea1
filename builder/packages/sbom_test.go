package packages

import (
	"bytes"
	"strings"
	"testing"
	"time"

	cdx "github.com/CycloneDX/cyclonedx-go"
	spdxjson "github.com/spdx/tools-golang/json"

	"coppice.dev/coppice/namespace"
)

func TestPURL(t *testing.T) {
	debian, rhel := Distro{ID: "debian", Version: "12"}, Distro{ID: "rhel", Version: "9.4"}
	for want, c := range map[string]struct {
		p Package
		d Distro
	}{
		"pkg:deb/debian/libssl3@3.0.16-1~deb12u1?arch=amd64&distro=debian-12":   {Package{Ecosystem: Deb, Name: "libssl3", Version: "3.0.16-1~deb12u1", Arch: "amd64"}, debian},
		"pkg:deb/debian/x@1:2%2Bdfsg-1?distro=debian-12":                        {Package{Ecosystem: Deb, Name: "x", Version: "1:2+dfsg-1"}, debian},
		"pkg:rpm/rhel/openssl@3.0.7-24.el9?arch=x86_64&distro=rhel-9.4&epoch=1": {Package{Ecosystem: RPM, Name: "openssl", Version: "1:3.0.7-24.el9", Arch: "x86_64"}, rhel},
		"pkg:apk/musl@1.2.5-r0":      {Package{Ecosystem: APK, Name: "musl", Version: "1.2.5-r0"}, Distro{}},
		"pkg:pypi/foo-bar@1.0":       {Package{Ecosystem: PyPI, Name: "Foo.Bar", Version: "1.0"}, debian},
		"pkg:npm/%40npmcli/fs@3.1.0": {Package{Ecosystem: NPM, Name: "@npmcli/fs", Version: "3.1.0"}, debian},
	} {
		if got := c.p.PURL(c.d); got != want {
			t.Errorf("%v is %s, want %s", c.p, got, want)
		}
	}
}

var billOf = Subject{Name: "debian", Version: "2", Root: namespace.Sum([]byte("root")), Created: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}

func billTable(t *testing.T) *Table {
	table := made(t, "deb:libssl3 3.0.16-1", "npm:@a/b 1.0.0 x", "npm:@a/b 1.0.0 y", "rpm:k 1:2-3")
	table.Distro = Distro{ID: "debian", Version: "12", Name: "Debian <12>"}
	table.Packages[0].Source, table.Packages[0].Licence, table.Packages[0].Maintainer = "openssl", "Apache-2.0 & more", "Some <x@example.org>"
	return table
}

func TestCycloneDX(t *testing.T) {
	var b, again bytes.Buffer
	for _, w := range []*bytes.Buffer{&b, &again} {
		if err := CycloneDX(w, billTable(t), billOf); err != nil {
			t.Fatal(err)
		}
	}
	if b.String() != again.String() {
		t.Error("two bills of one tree differ")
	}
	var bom cdx.BOM
	if err := cdx.NewBOMDecoder(&b, cdx.BOMFileFormatJSON).Decode(&bom); err != nil {
		t.Fatal(err)
	}
	if bom.Metadata.Component.Name != "debian" || bom.Metadata.Timestamp != "2026-01-02T03:04:05Z" || len(bom.SerialNumber) != len("urn:uuid:")+36 {
		t.Errorf("%+v, %s", bom.Metadata, bom.SerialNumber)
	}
	refs := map[string]bool{}
	for _, c := range *bom.Components {
		refs[c.BOMRef] = true
	}
	if len(refs) != 4 || !refs["pkg:npm/%40a/b@1.0.0#y"] {
		t.Errorf("references %v", refs)
	}
	if c := (*bom.Components)[0]; c.Publisher != "Some <x@example.org>" || (*c.Licenses)[0].License.Name != "Apache-2.0 & more" {
		t.Errorf("%+v", c)
	}
	other := billOf
	other.Version = "3"
	if other.id("cyclonedx") == billOf.id("cyclonedx") || billOf.id("spdx") == billOf.id("cyclonedx") {
		t.Error("two bills share a serial number")
	}
}

func TestSPDX(t *testing.T) {
	var b, again bytes.Buffer
	for _, w := range []*bytes.Buffer{&b, &again} {
		if err := SPDX(w, billTable(t), billOf); err != nil {
			t.Fatal(err)
		}
	}
	if b.String() != again.String() {
		t.Error("two bills of one tree differ")
	}
	if !strings.Contains(b.String(), `"licenseComments": "the package says: Apache-2.0 & more"`) {
		t.Errorf("no licence in %s", &b)
	}
	doc, err := spdxjson.Read(&b)
	if err != nil {
		t.Fatal(err)
	}
	if doc.DocumentName != "debian@2" || doc.CreationInfo.Created != "2026-01-02T03:04:05Z" || len(doc.Packages) != 5 || len(doc.Relationships) != 5 {
		t.Errorf("%+v", doc)
	}
	if p := doc.Packages[4]; p.PackageName != "k" || p.PackageExternalReferences[0].Locator != "pkg:rpm/debian/k@2-3?distro=debian-12&epoch=1" {
		t.Errorf("%+v", p)
	}
}
