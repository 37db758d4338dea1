package packages

import (
	"cmp"
	"slices"
	"strings"
)

// What is what happened to a package or a library between two tables.
type What string

// The kinds of change.
const (
	Added      What = "added"
	Removed    What = "removed"
	Upgraded   What = "upgraded"
	Downgraded What = "downgraded"
)

// Change is one difference between two tables. Ecosystem is "" for a shared library, whose Name is
// its path. Old or New is "" where the package was added or removed.
type Change struct {
	What      What      `json:"what"`
	Ecosystem Ecosystem `json:"ecosystem,omitempty"`
	Name      string    `json:"name"`
	Arch      string    `json:"arch,omitempty"`
	Source    string    `json:"source,omitempty"`
	Old       string    `json:"old,omitempty"`
	New       string    `json:"new,omitempty"`
}

// Compare returns how the packages of two tables differ, in the order of a table. Packages that are
// installed several times (two architectures, kernels, modules below other modules) are paired by what
// did not change, by place and by architecture, and what is left from the newest version on, so
// that one copy gone is not an upgrade of another.
func Compare(before, after *Table) []Change {
	var all []Change
	old, next := before.Packages, after.Packages
	for len(old) > 0 || len(next) > 0 {
		var key Package
		if len(next) == 0 || len(old) > 0 && compareKeys(old[0], next[0]) < 0 {
			key = old[0]
		} else {
			key = next[0]
		}
		var a, b []Package
		a, old = cutKey(old, key)
		b, next = cutKey(next, key)
		all = append(all, compareGroup(a, b)...)
	}
	return all
}

// compareKeys orders packages by what makes them the same one in two tables. The architecture does not:
// a package that was for all and is for one now can still be older.
func compareKeys(a, b Package) int {
	return cmp.Or(cmp.Compare(a.Ecosystem, b.Ecosystem), cmp.Compare(a.Name, b.Name))
}

func cutKey(list []Package, key Package) (group, rest []Package) {
	n := 0
	for n < len(list) && compareKeys(list[n], key) == 0 {
		n++
	}
	return list[:n], list[n:]
}

// compareGroup compares all installations of one package.
func compareGroup(old, next []Package) []Change {
	var changes []Change
	pair := func(key func(Package) string) {
		at := map[string][]Package{}
		for _, p := range next {
			at[key(p)] = append(at[key(p)], p)
		}
		var left []Package
		for _, p := range old {
			k := key(p)
			if same := at[k]; len(same) > 0 {
				changes = append(changes, changesOf(p, same[0])...)
				at[k] = same[1:]
			} else {
				left = append(left, p)
			}
		}
		old, next = left, nil
		for _, rest := range at {
			next = append(next, rest...)
		}
	}
	newestFirst := func(a, b Package) int {
		return cmp.Or(CompareVersions(a.Ecosystem, b.Version, a.Version), comparePackages(a, b))
	}
	pair(func(p Package) string { return p.Arch + " " + p.Version })
	if len(next) > 0 && (next[0].Ecosystem == PyPI || next[0].Ecosystem == NPM) {
		pair(func(p Package) string { return p.Path })
	}
	slices.SortFunc(old, newestFirst)
	slices.SortFunc(next, newestFirst)
	pair(func(p Package) string { return p.Arch })
	slices.SortFunc(next, newestFirst)
	for i := range max(len(old), len(next)) {
		switch {
		case i >= len(next):
			p := old[i]
			changes = append(changes, Change{Removed, p.Ecosystem, p.Name, p.Arch, p.Source, p.Version, ""})
		case i >= len(old):
			p := next[i]
			changes = append(changes, Change{Added, p.Ecosystem, p.Name, p.Arch, p.Source, "", p.Version})
		default:
			changes = append(changes, changesOf(old[i], next[i])...)
		}
	}
	return changes
}

// changesOf returns the change from a to b, if there is one.
func changesOf(a, b Package) []Change {
	what := Upgraded
	switch c := CompareVersions(a.Ecosystem, a.Version, b.Version); {
	case c == 0:
		return nil
	case c > 0:
		what = Downgraded
	}
	return []Change{{what, b.Ecosystem, b.Name, b.Arch, b.Source, a.Version, b.Version}}
}

// Downgrades returns the packages and shared libraries of after that are older than they were
// before; what was removed is no downgrade. A library is older if one of its names leads to an older
// file than before, or if its newest file was replaced by an older one.
func Downgrades(before, after *Table) []Change {
	all := Compare(before, after)
	all = slices.DeleteFunc(all, func(c Change) bool { return c.What != Downgraded })
	return append(all, libraryDowngrades(before.Libraries, after.Libraries)...)
}

func libraryDowngrades(before, after []Library) []Change {
	var found []Change
	told := map[string]bool{} // stems
	then := map[string]string{}
	for _, l := range before {
		then[mergedUsr(l.Path)] = l.Version
	}
	now := map[string]bool{}
	gone, came := map[string]string{}, map[string]string{} // stem to the newest version
	for _, l := range after {
		key := mergedUsr(l.Path)
		now[key] = true
		old, ok := then[key]
		switch {
		case !ok:
			newest(came, key, l.Version)
		case compareDotted(l.Version, old) < 0:
			found = append(found, Change{What: Downgraded, Name: l.Path, Old: old, New: l.Version})
			told[libraryStem(key)] = true
		}
	}
	for key, version := range then {
		if !now[key] {
			newest(gone, key, version)
		}
	}
	for stem, version := range came {
		if old, ok := gone[stem]; ok && !told[stem] && compareDotted(version, old) < 0 {
			found = append(found, Change{What: Downgraded, Name: stem + ".so", Old: old, New: version})
		}
	}
	slices.SortFunc(found, func(a, b Change) int { return cmp.Compare(a.Name, b.Name) })
	return found
}

// newest keeps the newest version of the library with the name path.
func newest(versions map[string]string, path, version string) {
	stem := libraryStem(path)
	if have, ok := versions[stem]; !ok || compareDotted(have, version) < 0 {
		versions[stem] = version
	}
}

// mergedUsr gives a library one name whether or not /lib is a link to /usr/lib.
func mergedUsr(path string) string {
	if strings.HasPrefix(path, "lib") {
		return "usr/" + path
	}
	return path
}
