package packages

import (
	"crypto/sha256"
	"fmt"
	"io"
	"strings"
	"time"

	cdx "github.com/CycloneDX/cyclonedx-go"
	"github.com/package-url/packageurl-go"
	spdxjson "github.com/spdx/tools-golang/json"
	"github.com/spdx/tools-golang/spdx/v2/common"
	spdx "github.com/spdx/tools-golang/spdx/v2/v2_3"

	"coppice.dev/coppice/namespace"
)

// Subject is the tree version that a bill of materials is of. The bill depends on it and on the table
// alone: no clock, nothing random, so that it can be made again and compared.
type Subject struct {
	Name    string // of the tree
	Version string // "" if it has none
	Root    namespace.Digest
	Created time.Time
}

// PURL returns the package URL of p in a tree of the distribution d.
func (p Package) PURL(d Distro) string {
	url := packageurl.PackageURL{Type: string(p.Ecosystem), Name: p.Name, Version: p.Version}
	qualifiers := map[string]string{}
	switch p.Ecosystem {
	case Deb, RPM, APK:
		url.Namespace = d.ID
		if p.Arch != "" {
			qualifiers["arch"] = p.Arch
		}
		if d.ID != "" && d.Version != "" {
			qualifiers["distro"] = d.ID + "-" + d.Version
		}
		if epoch, rest, ok := strings.Cut(p.Version, ":"); ok && p.Ecosystem == RPM {
			url.Version, qualifiers["epoch"] = rest, epoch
		}
	case PyPI:
		url.Name = normalPython(p.Name)
	case NPM:
		if scope, name, ok := strings.Cut(p.Name, "/"); ok {
			url.Namespace, url.Name = scope, name
		}
	}
	url.Qualifiers = packageurl.QualifiersFromMap(qualifiers)
	return url.ToString()
}

// id returns 128 bits that stand for the subject in one format, as a UUID of the version for one's
// own use (RFC 9562, 8).
func (s Subject) id(format string) string {
	sum := sha256.Sum256([]byte("coppice " + format + "\n" + s.Name + "@" + s.Version + "\n" + s.Root.String()))
	sum[6], sum[8] = sum[6]&0x0f|0x80, sum[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", sum[:4], sum[4:6], sum[6:8], sum[8:10], sum[10:16])
}

func (s Subject) created() string { return s.Created.UTC().Format(time.RFC3339) }

// CycloneDX writes the bill of materials of t in CycloneDX 1.6's JSON. Kinds: those of w.
func CycloneDX(w io.Writer, t *Table, of Subject) error {
	bom := cdx.NewBOM()
	bom.SerialNumber = "urn:uuid:" + of.id("cyclonedx")
	bom.Metadata = &cdx.Metadata{
		Timestamp: of.created(),
		Tools:     &cdx.ToolsChoice{Components: &[]cdx.Component{{Type: cdx.ComponentTypeApplication, Name: "coppice"}}},
		Component: &cdx.Component{
			BOMRef: of.Root.String(), Type: cdx.ComponentTypeOS, Name: of.Name, Version: of.Version, Description: t.Distro.Name,
			Properties: &[]cdx.Property{{Name: "coppice:root", Value: of.Root.String()}},
		},
	}
	components := make([]cdx.Component, 0, len(t.Packages))
	refs := map[string]bool{}
	for _, p := range t.Packages {
		c := cdx.Component{Type: cdx.ComponentTypeLibrary, Name: p.Name, Version: p.Version, PackageURL: p.PURL(t.Distro), Publisher: p.Maintainer}
		c.BOMRef = c.PackageURL
		if refs[c.BOMRef] { // the same once more, in another place
			c.BOMRef += "#" + p.Path
		}
		refs[c.BOMRef] = true
		if p.Licence != "" {
			c.Licenses = &cdx.Licenses{{License: &cdx.License{Name: p.Licence}}}
		}
		properties := []cdx.Property{{Name: "coppice:path", Value: "/" + p.Path}}
		if p.Source != "" {
			properties = append(properties, cdx.Property{Name: "coppice:source", Value: strings.TrimSpace(p.Source + " " + p.SourceVersion)})
		}
		c.Properties = &properties
		components = append(components, c)
	}
	bom.Components = &components
	enc := cdx.NewBOMEncoder(w, cdx.BOMFileFormatJSON).SetPretty(true).SetEscapeHTML(false)
	if err := enc.EncodeVersion(bom, cdx.SpecVersion1_6); err != nil {
		return namespace.E(namespace.KindOf(err), "write", "bill of materials", err)
	}
	return nil
}

const noAssertion = "NOASSERTION"

// SPDX writes the bill of materials of t in SPDX 2.3's JSON. A licence is told as the package tells
// it, in a comment: few are written in SPDX's own terms. Kinds: those of w.
func SPDX(w io.Writer, t *Table, of Subject) error {
	name := of.Name
	if of.Version != "" {
		name += "@" + of.Version
	}
	const tree = common.ElementID("Tree")
	doc := spdx.Document{
		SPDXVersion: spdx.Version, DataLicense: spdx.DataLicense, SPDXIdentifier: "DOCUMENT", DocumentName: name,
		DocumentNamespace: "https://coppice.dev/spdx/" + of.id("spdx"),
		CreationInfo:      &spdx.CreationInfo{Creators: []common.Creator{{CreatorType: "Tool", Creator: "coppice"}}, Created: of.created()},
		Packages: []*spdx.Package{{
			PackageName: of.Name, PackageSPDXIdentifier: tree, PackageVersion: of.Version, PackageDownloadLocation: noAssertion,
			PackageLicenseConcluded: noAssertion, PackageLicenseDeclared: noAssertion, PackageCopyrightText: noAssertion,
			PackageSummary: t.Distro.Name, PackageComment: "root " + of.Root.String(),
		}},
		Relationships: []*spdx.Relationship{relation("DOCUMENT", "DESCRIBES", tree)},
	}
	for i, p := range t.Packages {
		id := common.ElementID(fmt.Sprintf("Package-%d", i+1))
		pkg := &spdx.Package{
			PackageName: p.Name, PackageSPDXIdentifier: id, PackageVersion: p.Version, PackageDownloadLocation: noAssertion,
			PackageLicenseConcluded: noAssertion, PackageLicenseDeclared: noAssertion, PackageCopyrightText: noAssertion,
			PackageSourceInfo: "found in /" + p.Path,
			PackageExternalReferences: []*spdx.PackageExternalReference{{
				Category: common.CategoryPackageManager, RefType: common.TypePackageManagerPURL, Locator: p.PURL(t.Distro),
			}},
		}
		if p.Source != "" {
			pkg.PackageSourceInfo += ", built from " + strings.TrimSpace(p.Source+" "+p.SourceVersion)
		}
		if p.Licence != "" {
			pkg.PackageLicenseComments = "the package says: " + p.Licence
		}
		if p.Maintainer != "" {
			pkg.PackageSupplier = &common.Supplier{Supplier: p.Maintainer, SupplierType: "Organization"}
		}
		doc.Packages = append(doc.Packages, pkg)
		doc.Relationships = append(doc.Relationships, relation(tree, "CONTAINS", id))
	}
	if err := spdxjson.Write(&doc, w, spdxjson.Indent("  "), spdxjson.EscapeHTML(false)); err != nil {
		return namespace.E(namespace.KindOf(err), "write", "bill of materials", err)
	}
	return nil
}

func relation(a common.ElementID, kind string, b common.ElementID) *spdx.Relationship {
	return &spdx.Relationship{RefA: common.MakeDocElementID("", string(a)), RefB: common.MakeDocElementID("", string(b)), Relationship: kind}
}
