// Package packages says what software a tree holds: a table of packages and shared libraries, read
// from what package managers leave in the tree; how two tables differ and what is older than before;
// which table answers a question such as "openssl<3.0.17"; and what in a tree gives privileges away.
//
// Nothing here trusts the tree. A metadata file that cannot be read, or that says nonsense, costs
// its own packages and is named in the table's warnings; it never fails the version. The work
// follows the metadata: catalogs are walked, and of the content only the files that describe
// packages are read.
package packages

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/catalog"
)

// Files reads trees: their catalogs, and the content of small files in them.
//
// ReadFile returns the content of file i of the catalog c, which Catalog returned, at most limit
// bytes. Kinds: Limit (it is larger), those of the loader.
type Files interface {
	catalog.Loader
	ReadFile(ctx context.Context, c *catalog.Catalog, i int, limit uint64) ([]byte, error)
}

// Ecosystem names the kind of a package: whose rules order its versions.
type Ecosystem string

// The ecosystems, by the names that package URLs use.
const (
	Deb  Ecosystem = "deb"
	RPM  Ecosystem = "rpm"
	APK  Ecosystem = "apk"
	PyPI Ecosystem = "pypi"
	NPM  Ecosystem = "npm"
)

// Ecosystems lists every Ecosystem.
func Ecosystems() []Ecosystem { return []Ecosystem{Deb, RPM, APK, PyPI, NPM} }

// Package is one installed package. Name and Version are as the package manager writes them (an
// rpm's version is [epoch:]version-release). Source and SourceVersion are the package it was built
// from, where that differs. Path is the file or directory, relative to the tree, that says so.
type Package struct {
	Ecosystem     Ecosystem `json:"ecosystem"`
	Name          string    `json:"name"`
	Version       string    `json:"version"`
	Arch          string    `json:"arch,omitempty"`
	Source        string    `json:"source,omitempty"`
	SourceVersion string    `json:"source_version,omitempty"`
	Maintainer    string    `json:"maintainer,omitempty"`
	Licence       string    `json:"licence,omitempty"`
	Path          string    `json:"path"`
}

// String returns "ecosystem:name version".
func (p Package) String() string { return string(p.Ecosystem) + ":" + p.Name + " " + p.Version }

// Library is a name by which programs may load a shared library, and the version, taken from file
// names, of what it leads to: usr/lib/libz.so.1, a link to libz.so.1.2.13, has version 1.2.13.
type Library struct {
	Path    string `json:"path"`
	Version string `json:"version"`
}

// Distro is what os-release says of the tree; it qualifies package URLs.
type Distro struct {
	ID      string `json:"id,omitempty"`
	Version string `json:"version,omitempty"`
	Name    string `json:"name,omitempty"`
}

// Table lists what a tree holds: packages sorted by ecosystem, name, architecture, version and path;
// libraries sorted by path; neither with duplicates. Warnings name the files that could not be used.
type Table struct {
	Format    int       `json:"format"`
	Distro    Distro    `json:"distro,omitzero"`
	Packages  []Package `json:"packages"`
	Libraries []Library `json:"libraries"`
	Warnings  []string  `json:"warnings,omitempty"`
}

// TableFormat is the version of the encoding of a Table.
const TableFormat = 1

// Bounds on what a tree may make us keep.
const (
	// TableBytesMax bounds an encoded table: PackagesMax packages of usual size.
	TableBytesMax = 64 << 20
	// PackagesMax bounds the packages of one tree: some ten times of what all of a
	// distribution's desktop and a large node_modules have together.
	PackagesMax = 200_000
	// LibrariesMax bounds the names of shared libraries of one tree.
	LibrariesMax = 200_000
	// WarningsMax bounds the warnings of one tree; who reads more of them?
	WarningsMax = 100
	// fieldBytesMax bounds a field of a package: real ones have some tens of bytes, a list of
	// licences some hundred.
	fieldBytesMax = 1024
)

// Encode returns the canonical bytes of t. Kinds: Limit, Invalid (t is not sorted, or a field is
// not clean).
func (t *Table) Encode() ([]byte, error) {
	if err := t.check(); err != nil {
		return nil, namespace.E(namespace.Invalid, "encode", "package table", err)
	}
	b, err := namespace.EncodeRecord(t)
	if err == nil && len(b) > TableBytesMax {
		err = namespace.E(namespace.Limit, "encode", "package table", fmt.Errorf("%d bytes, at most %d", len(b), TableBytesMax))
	}
	return b, err
}

// Decode reads what Encode wrote, and nothing else; subject names the source in errors.
// Kinds: Limit, Corrupt, Invalid (a newer format).
func Decode(b []byte, subject string) (*Table, error) {
	var t Table
	if err := namespace.DecodeRecord(b, TableBytesMax, subject, &t); err != nil {
		return nil, err
	}
	if t.Format != TableFormat {
		return nil, namespace.WithHint(namespace.E(namespace.Invalid, "decode", subject, fmt.Errorf("format %d", t.Format)),
			"a newer coppice wrote it: update this one")
	}
	if err := t.check(); err != nil {
		return nil, namespace.E(namespace.Corrupt, "decode", subject, err)
	}
	return &t, nil
}

// check reports what keeps t from being canonical.
func (t *Table) check() error {
	switch {
	case t.Packages == nil || t.Libraries == nil:
		return fmt.Errorf("a list is missing")
	case len(t.Packages) > PackagesMax || len(t.Libraries) > LibrariesMax || len(t.Warnings) > WarningsMax:
		return fmt.Errorf("a list is too long")
	}
	for i, p := range t.Packages {
		if err := p.check(); err != nil {
			return fmt.Errorf("package %d: %w", i, err)
		}
		if i > 0 && comparePackages(t.Packages[i-1], p) >= 0 {
			return fmt.Errorf("package %d is out of order", i)
		}
	}
	for i, l := range t.Libraries {
		if l.Path != cleaned(l.Path, namespace.PathBytesMax) || l.Path == "" || !isDotted(l.Version) {
			return fmt.Errorf("library %d: %q", i, l.Path)
		}
		if i > 0 && t.Libraries[i-1].Path >= l.Path {
			return fmt.Errorf("library %d is out of order", i)
		}
	}
	for _, w := range append([]string{t.Distro.ID, t.Distro.Version, t.Distro.Name}, t.Warnings...) {
		if w != cleaned(w, 2*namespace.PathBytesMax) {
			return fmt.Errorf("%q is not clean", w)
		}
	}
	return nil
}

func (p Package) check() error {
	if !slices.Contains(Ecosystems(), p.Ecosystem) {
		return fmt.Errorf("unknown ecosystem %q", p.Ecosystem)
	}
	for _, s := range []string{p.Name, p.Version} {
		if s == "" || strings.ContainsFunc(s, unicode.IsSpace) {
			return fmt.Errorf("name %q, version %q", p.Name, p.Version)
		}
	}
	for _, s := range []string{p.Name, p.Version, p.Arch, p.Source, p.SourceVersion, p.Maintainer, p.Licence} {
		if s != cleaned(s, fieldBytesMax) {
			return fmt.Errorf("%s: %q is not clean", p.Name, s)
		}
	}
	if p.Path != cleaned(p.Path, namespace.PathBytesMax) {
		return fmt.Errorf("%s: path %q is not clean", p.Name, p.Path)
	}
	return nil
}

func comparePackages(a, b Package) int {
	return cmp.Or(cmp.Compare(a.Ecosystem, b.Ecosystem), cmp.Compare(a.Name, b.Name), cmp.Compare(a.Arch, b.Arch),
		cmp.Compare(a.Version, b.Version), cmp.Compare(a.Path, b.Path))
}

// cleaned makes s fit for a terminal and for JSON: UTF-8, no control characters, no space around it,
// at most limit bytes.
func cleaned(s string, limit int) string {
	s = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) { // control, format and private-use characters; bytes that are not UTF-8 come as U+FFFD
			return utf8.RuneError
		}
		return r
	}, s)
	s = strings.TrimSpace(s)
	for len(s) > limit {
		_, n := utf8.DecodeLastRuneInString(s)
		s = strings.TrimSpace(s[:len(s)-n])
	}
	return s
}

// cleanPackage cleans all fields of p; it fails if no package remains.
func cleanPackage(p Package) (Package, error) {
	for _, s := range []*string{&p.Name, &p.Version, &p.Arch, &p.Source, &p.SourceVersion, &p.Maintainer, &p.Licence} {
		*s = cleaned(*s, fieldBytesMax)
	}
	p.Path = cleaned(p.Path, namespace.PathBytesMax)
	if p.Source == p.Name && (p.SourceVersion == "" || p.SourceVersion == p.Version) {
		p.Source, p.SourceVersion = "", ""
	}
	return p, p.check()
}
