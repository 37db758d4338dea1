package packages

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/catalog"
)

// Bounds on the files that are read, in bytes: each some ten times the largest seen.
const (
	statusBytesMax   = 64 << 20  // all stanzas of dpkg or apk, or what one package owns; a desktop's status has 8 MiB
	metadataBytesMax = 4 << 20   // one project's metadata, a README included
	rpmBytesMax      = 512 << 20 // an rpm database; it is held in memory while it is read
)

// Read returns the table of the tree whose root catalog is root. Kinds: those of files, Canceled; what
// the tree itself has wrong are warnings in the table.
func Read(ctx context.Context, files Files, root namespace.Digest) (*Table, error) {
	s, err := newScan(ctx, files, root)
	if err != nil {
		return nil, err
	}
	s.libs = libraries{files: map[string]string{}, links: map[string]string{}}
	if err := catalog.Walk(ctx, files, root, s.see); err != nil {
		return nil, err
	}
	for _, step := range []func() error{s.readDistro, s.readDpkg, s.readAPK, s.readRPM, s.readProjects} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	return s.table(), nil
}

// scan reads one tree.
type scan struct {
	ctx   context.Context
	files Files
	top   place

	distro   Distro
	packages []Package
	libs     libraries
	projects []place // python and npm metadata, found by the walk
	faults   []fault
	dirs     map[string]string // resolved directories, for owners
}

// fault is what is wrong with one file: the first reason, and how often.
type fault struct {
	path  string
	first error
	count int
}

// place is an entry of the tree, and its path there without symlinks.
type place struct {
	path string
	c    *catalog.Catalog
	e    catalog.Entry
}

func newScan(ctx context.Context, files Files, root namespace.Digest) (*scan, error) {
	c, err := files.Catalog(ctx, root)
	if err != nil {
		return nil, err
	}
	return &scan{ctx: ctx, files: files, top: place{"", c, c.Entry(0)}, dirs: map[string]string{}}, nil
}

// see takes note of what the walk meets.
func (s *scan) see(p string, c *catalog.Catalog, e catalog.Entry) error {
	if e.Type != catalog.File && e.Type != catalog.Symlink {
		return nil
	}
	s.libs.see(p, c, e)
	s.seeProject(p, c, e)
	return nil
}

// seeProject keeps the files that describe a project.
func (s *scan) seeProject(p string, c *catalog.Catalog, e catalog.Entry) {
	switch {
	case e.Type != catalog.File || !isProject(p, string(e.Name)):
	case len(s.projects) < PackagesMax:
		s.projects = append(s.projects, place{p, c, e})
	default:
		s.blame(path.Dir(path.Dir(p)), fmt.Errorf("more than %d projects", PackagesMax))
	}
}

// blame notes that something at path could not be used.
func (s *scan) blame(path string, err error) {
	if n := len(s.faults); n > 0 && s.faults[n-1].path == path {
		s.faults[n-1].count++
		return
	}
	if len(s.faults) < WarningsMax {
		s.faults = append(s.faults, fault{path, err, 1})
	}
}

// add adds a package, or blames the file that told of it.
func (s *scan) add(p Package) {
	p, err := cleanPackage(p)
	if err == nil && len(s.packages) >= PackagesMax {
		err = fmt.Errorf("more than %d packages", PackagesMax)
	}
	if err != nil {
		s.blame(p.Path, err)
		return
	}
	s.packages = append(s.packages, p)
}

func (s *scan) table() *Table {
	t := &Table{Format: TableFormat, Distro: s.distro, Packages: s.packages, Libraries: s.libs.table()}
	if t.Packages == nil {
		t.Packages = []Package{}
	}
	slices.SortFunc(t.Packages, comparePackages)
	t.Packages = slices.CompactFunc(t.Packages, func(a, b Package) bool { return comparePackages(a, b) == 0 })
	for _, f := range s.faults {
		text := f.path + ": " + f.first.Error()
		if f.count > 1 {
			text += fmt.Sprintf(" (and %d more like it)", f.count-1)
		}
		t.Warnings = append(t.Warnings, cleaned(text, fieldBytesMax))
	}
	return t
}

// linksMax bounds the symlinks followed on one path, as the kernel does.
const linksMax = 40

// follow finds the entry at p, relative to the tree's root, following symlinks within the tree as a
// process would whose root it is. Kinds: NotExist, Limit (too many links), those of files.
func (s *scan) follow(p string) (place, error) {
	const op = "resolve"
	stack := []place{s.top}
	links := 0
	for rest := strings.Split(p, "/"); len(rest) > 0; {
		name := rest[0]
		rest = rest[1:]
		if name == "" || name == "." {
			continue
		}
		if name == ".." {
			stack = stack[:max(1, len(stack)-1)]
			continue
		}
		dir := stack[len(stack)-1]
		i, ok := dir.c.Lookup(dir.e.Index, []byte(name))
		if dir.e.Type != catalog.Dir || !ok {
			return place{}, namespace.E(namespace.NotExist, op, p, nil)
		}
		next := place{catalog.Join(dir.path, []byte(name)), dir.c, dir.c.Entry(i)}
		if next.e.Type == catalog.Symlink {
			if links++; links > linksMax || len(rest) > namespace.DepthMax {
				return place{}, namespace.E(namespace.Limit, op, p, errors.New("too many symlinks"))
			}
			target := string(next.c.Target(i))
			if strings.HasPrefix(target, "/") {
				stack = stack[:1]
			}
			rest = append(strings.Split(target, "/"), rest...)
			continue
		}
		if next.e.IsNested() {
			sub, err := next.c.Enter(s.ctx, s.files, i)
			if err != nil {
				return place{}, err
			}
			next.c, next.e = sub, sub.Entry(0)
		}
		stack = append(stack, next)
	}
	return stack[len(stack)-1], nil
}

// open finds the file at p, if there is one and nothing is wrong with the way to it.
func (s *scan) open(p string) (place, bool, error) {
	at, err := s.follow(p)
	switch {
	case namespace.IsKind(err, namespace.NotExist):
		return at, false, nil
	case namespace.IsKind(err, namespace.Limit):
		s.blame(p, err)
		return at, false, nil
	case err != nil:
		return at, false, err
	}
	return at, at.e.Type == catalog.File, nil
}

// read returns the content of a file; ok is false if it is too large, which is its fault.
func (s *scan) read(at place, limit uint64) (b []byte, ok bool, err error) {
	if err := s.ctx.Err(); err != nil {
		return nil, false, namespace.E(namespace.KindOf(err), "read", at.path, err)
	}
	b, err = s.files.ReadFile(s.ctx, at.c, at.e.Index, limit)
	if namespace.IsKind(err, namespace.Limit) {
		s.blame(at.path, fmt.Errorf("%d bytes, at most %d are read", at.e.Size, limit))
		return nil, false, nil
	}
	return b, err == nil, err
}

// each calls fn with the content of every file of the directory dir whose name want accepts.
func (s *scan) each(dir string, want func(name string) bool, fn func(at place, b []byte) error) error {
	d, ok, err := s.dir(dir)
	if err != nil || !ok {
		return err
	}
	for lo, hi := d.c.Children(d.e.Index); lo < hi; lo++ {
		e := d.c.Entry(lo)
		if e.Type != catalog.File || !want(string(e.Name)) {
			continue
		}
		at := place{catalog.Join(d.path, e.Name), d.c, e}
		b, ok, err := s.read(at, statusBytesMax)
		if err == nil && ok {
			err = fn(at, b)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// dir finds the directory at p, if there is one.
func (s *scan) dir(p string) (place, bool, error) {
	at, err := s.follow(p)
	if namespace.IsKind(err, namespace.NotExist) || namespace.IsKind(err, namespace.Limit) {
		return at, false, nil
	}
	return at, err == nil && at.e.Type == catalog.Dir, err
}

// readDistro reads os-release.
func (s *scan) readDistro() error {
	for _, p := range []string{"etc/os-release", "usr/lib/os-release"} {
		at, ok, err := s.open(p)
		if err != nil {
			return err
		}
		if !ok {
			continue
		}
		b, ok, err := s.read(at, metadataBytesMax)
		if err != nil || !ok {
			return err
		}
		for line := range strings.Lines(string(b)) {
			key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
			value = cleaned(strings.Trim(value, `"'`), fieldBytesMax)
			switch key {
			case "ID":
				s.distro.ID = value
			case "VERSION_ID":
				s.distro.Version = value
			case "PRETTY_NAME":
				s.distro.Name = value
			}
		}
		return nil
	}
	return nil
}

// isProject reports whether the file at p, called name, describes a python or an npm package.
func isProject(p, name string) bool {
	dir := path.Dir(p)
	switch {
	case name == "METADATA":
		return strings.HasSuffix(dir, ".dist-info") && isSitePackages(path.Dir(dir))
	case name == "PKG-INFO":
		return strings.HasSuffix(dir, ".egg-info") && isSitePackages(path.Dir(dir))
	case strings.HasSuffix(name, ".egg-info"):
		return isSitePackages(dir)
	case name == "package.json":
		above := path.Dir(dir)
		if strings.HasPrefix(path.Base(above), "@") {
			above = path.Dir(above)
		}
		return path.Base(above) == "node_modules" || above == "usr/share/nodejs" // Debian's global modules
	}
	return false
}

func isSitePackages(dir string) bool {
	base := path.Base(dir)
	return base == "site-packages" || base == "dist-packages"
}

// readProjects reads what the walk found.
func (s *scan) readProjects() error {
	for _, at := range s.projects {
		b, ok, err := s.read(at, metadataBytesMax)
		if err != nil {
			return err
		}
		switch {
		case !ok:
		case path.Base(at.path) == "package.json":
			s.addNPM(at.path, b)
		default:
			s.addPython(at.path, b)
		}
	}
	return nil
}
