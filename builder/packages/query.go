package packages

import (
	"fmt"
	"slices"
	"strings"
	"unicode"

	"coppice.dev/coppice/namespace"
)

// Query asks for packages: those called Name, or built from a source package called Name, whose
// version is in the relation Op to Version. An empty Ecosystem means any, an empty Op any version.
type Query struct {
	Ecosystem Ecosystem
	Name      string
	Op        string // "", <, <=, =, !=, >=, >
	Version   string
}

// ParseQuery reads "openssl", "openssl<3.0.17" or "deb:openssl>=3.0.17-1"; "==" is "=". Kinds: Invalid.
func ParseQuery(s string) (Query, error) {
	fail := func(format string, args ...any) (Query, error) {
		return Query{}, namespace.WithHint(namespace.E(namespace.Invalid, "read query", s, fmt.Errorf(format, args...)),
			`for example: "openssl", "openssl<3.0.17", "deb:libc6>=2.36"; quote it, < and > mean something to the shell`)
	}
	q := Query{Name: strings.TrimSpace(s)}
	if i := strings.IndexAny(s, "<>=!"); i >= 0 {
		q.Name = strings.TrimSpace(s[:i])
		rest := strings.TrimLeft(s[i:], "<>=!")
		q.Op, q.Version = s[i:len(s)-len(rest)], strings.TrimSpace(rest)
		if q.Op == "==" {
			q.Op = "="
		}
		if !slices.Contains([]string{"<", "<=", "=", "!=", ">=", ">"}, q.Op) {
			return fail("no relation is called %q", q.Op)
		}
		if q.Version == "" {
			return fail("no version after %q", q.Op)
		}
	}
	if eco, name, ok := strings.Cut(q.Name, ":"); ok {
		q.Ecosystem, q.Name = Ecosystem(eco), name
		if !slices.Contains(Ecosystems(), q.Ecosystem) {
			return fail("no ecosystem is called %q; there are %v", eco, Ecosystems())
		}
	}
	if q.Name == "" {
		return fail("no package's name")
	}
	if strings.ContainsFunc(q.Name+q.Version, func(r rune) bool { return unicode.IsSpace(r) || !unicode.IsPrint(r) }) {
		return fail("white space within a name or a version")
	}
	return q, nil
}

// String returns the query in the form that ParseQuery reads.
func (q Query) String() string {
	s := q.Name + q.Op + q.Version
	if q.Ecosystem != "" {
		s = string(q.Ecosystem) + ":" + s
	}
	return s
}

// Match reports whether p answers the query. Versions are compared by p's ecosystem. What the query
// leaves out of its version does not count: 1:3.0.17-4 of deb or rpm is 3.0.17 to "=3.0.17", and
// older to "<3.0.18", though its epoch alone would make it newer: who asks for a version with a hole
// must not miss one.
func (q Query) Match(p Package) bool {
	if q.Ecosystem != "" && q.Ecosystem != p.Ecosystem {
		return false
	}
	if sameName(p.Ecosystem, q.Name, p.Name) && q.holds(p.Ecosystem, p.Version) {
		return true
	}
	if p.Source == "" || !sameName(p.Ecosystem, q.Name, p.Source) {
		return false
	}
	version := p.SourceVersion
	if version == "" {
		version = p.Version
	}
	return q.holds(p.Ecosystem, version)
}

// sameName compares names as the ecosystem does: to pypi, Foo.Bar and foo-bar are one.
func sameName(eco Ecosystem, a, b string) bool {
	if eco == PyPI {
		return normalPython(a) == normalPython(b)
	}
	return a == b
}

// normalPython is the normal form of a project's name (PEP 503).
func normalPython(name string) string {
	fields := strings.FieldsFunc(strings.ToLower(name), func(r rune) bool { return r == '-' || r == '_' || r == '.' })
	return strings.Join(fields, "-")
}

func (q Query) holds(eco Ecosystem, version string) bool {
	if q.Op == "" {
		return true
	}
	c := CompareVersions(eco, asPrecise(eco, version, q.Version), q.Version)
	switch q.Op {
	case "<":
		return c < 0
	case "<=":
		return c <= 0
	case "=":
		return c == 0
	case "!=":
		return c != 0
	case ">=":
		return c >= 0
	}
	return c > 0
}

// asPrecise drops from a version the epoch and the distribution's revision that asked does not have.
func asPrecise(eco Ecosystem, version, asked string) string {
	if eco == Deb || eco == RPM {
		if _, rest, ok := strings.Cut(version, ":"); ok && !strings.Contains(asked, ":") {
			version = rest
		}
		if i := strings.LastIndexByte(version, '-'); i >= 0 && !strings.Contains(asked, "-") {
			version = version[:i]
		}
	}
	if i := strings.LastIndex(version, "-r"); eco == APK && i >= 0 && !strings.Contains(asked, "-r") {
		version = version[:i]
	}
	return version
}

// Find returns the packages of t that answer the query.
func (q Query) Find(t *Table) []Package {
	var found []Package
	for _, p := range t.Packages {
		if q.Match(p) {
			found = append(found, p)
		}
	}
	return found
}
