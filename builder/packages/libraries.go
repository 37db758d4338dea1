package packages

import (
	"cmp"
	"path"
	"regexp"
	"slices"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/catalog"
)

// libraryFile matches what shared libraries with a version in their name are called: libz.so.1.2.13,
// and the older libc-2.31.so. Only the name is looked at: reading the head of every library would
// cost more than the rest of the table.
var libraryFile = regexp.MustCompile(`^(?:(.+)\.so\.(\d+(?:\.\d+)*)|(lib.+)-(\d+(?:\.\d+)+)\.so)$`)

// cutLibrary cuts a library's file name into what all its versions share and its version.
func cutLibrary(name string) (stem, version string, ok bool) {
	m := libraryFile.FindStringSubmatch(name)
	if m == nil {
		return "", "", false
	}
	return m[1] + m[3], m[2] + m[4], true
}

// libraryStem is the part of a library's path that all its versions share.
func libraryStem(p string) string {
	dir, name := path.Split(p)
	if stem, _, ok := cutLibrary(name); ok {
		name = stem
	}
	return dir + name
}

// libraries collects the shared libraries of a tree during a walk.
type libraries struct {
	files map[string]string // path to version
	links map[string]string // path to the path it leads to, in the same directory
}

// see looks at an entry of the tree.
func (l *libraries) see(p string, c *catalog.Catalog, e catalog.Entry) {
	switch e.Type {
	case catalog.File:
		if _, version, ok := cutLibrary(string(e.Name)); ok && e.Size > 0 {
			l.files[p] = version
		}
	case catalog.Symlink:
		target := string(c.Target(e.Index))
		if path.Base(target) == target && libraryName(string(e.Name)) {
			l.links[p] = path.Join(path.Dir(p), target)
		}
	}
}

// libraryName reports whether a link of this name can lead to a library.
func libraryName(name string) bool {
	if path.Ext(name) == ".so" {
		return true
	}
	_, _, ok := cutLibrary(name)
	return ok
}

// table returns what was seen, in the form of a Table: at most LibrariesMax.
func (l *libraries) table() []Library {
	all := make([]Library, 0, len(l.files)+len(l.links))
	add := func(name, version string) {
		if name = cleaned(name, namespace.PathBytesMax); name != "" {
			all = append(all, Library{name, version})
		}
	}
	for name, version := range l.files {
		add(name, version)
	}
	for name := range l.links {
		end := name
		for range 4 { // libz.so → libz.so.1 → libz.so.1.2.13, and one to spare
			if next, ok := l.links[end]; ok {
				end = next
			}
		}
		if version, ok := l.files[end]; ok {
			add(name, version)
		}
	}
	slices.SortFunc(all, compareLibraries)
	all = slices.CompactFunc(all, func(a, b Library) bool { return a.Path == b.Path })
	return all[:min(len(all), LibrariesMax)]
}

func compareLibraries(a, b Library) int {
	return cmp.Or(cmp.Compare(a.Path, b.Path), cmp.Compare(a.Version, b.Version))
}
