package packages

import (
	"cmp"
	"context"
	"encoding/csv"
	"path"
	"strings"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/catalog"
)

// Owner names a package that owns a path. Arch is "" where the package manager does not say.
type Owner struct {
	Ecosystem Ecosystem `json:"ecosystem"`
	Name      string    `json:"name"`
	Arch      string    `json:"arch,omitempty"`
}

// Owners knows which package of a tree owns which path. Immutable, safe for concurrent use.
type Owners struct {
	files map[string]Owner // exact paths; the zero Owner where several packages own one
	below map[string]Owner // directories of projects: all that is in them
}

// Of returns the owner of a path relative to the tree's root. A path that several packages own, as
// most directories, has none. What python compiled belongs to its source's owner.
func (o *Owners) Of(p string) (Owner, bool) {
	if own, ok := o.files[p]; ok {
		return own, own.Name != ""
	}
	if dir, name := path.Split(p); strings.HasSuffix(dir, "/__pycache__/") && strings.HasSuffix(name, ".pyc") {
		stem, _, _ := strings.Cut(name, ".")
		return o.Of(strings.TrimSuffix(dir, "__pycache__/") + stem + ".py")
	}
	for dir := p; dir != "." && dir != "/"; dir = path.Dir(dir) {
		if own, ok := o.below[dir]; ok {
			return own, true
		}
	}
	return Owner{}, false
}

// ReadOwners reads who owns what in the tree whose root catalog is root: dpkg's lists, the headers of
// rpm, apk's database, and what python and npm projects have in their directories. It costs
// more than Read, so it is done when it is asked for. Kinds: those of files, Canceled.
func ReadOwners(ctx context.Context, files Files, root namespace.Digest) (*Owners, error) {
	s, err := newScan(ctx, files, root)
	if err != nil {
		return nil, err
	}
	o := &Owners{map[string]Owner{}, map[string]Owner{}}
	err = catalog.Walk(ctx, files, root, func(p string, c *catalog.Catalog, e catalog.Entry) error {
		s.seeProject(p, c, e)
		return nil
	})
	if err != nil {
		return nil, err
	}
	for _, step := range []func(*Owners) error{s.ownDpkg, s.ownAPK, s.ownRPM, s.ownProjects} {
		if err := step(o); err != nil {
			return nil, err
		}
	}
	return o, nil
}

// ownedMax bounds the paths of one tree whose owner is kept; ten times those of a large desktop. What
// is beyond it has no owner.
const ownedMax = 10_000_000

// own notes that a package owns the path p, as its package manager writes it.
func (s *scan) own(o *Owners, p string, by Owner) error {
	p = strings.Trim(path.Clean("/"+p), "/")
	if p == "" || len(p) >= namespace.PathBytesMax || len(o.files) >= ownedMax {
		return nil
	}
	dir, name := path.Split(p)
	dir, err := s.realDir(strings.TrimSuffix(dir, "/"))
	if err != nil {
		return err
	}
	p = catalog.Join(dir, []byte(name))
	if have, ok := o.files[p]; ok && have != by {
		by = Owner{}
	}
	o.files[p] = by
	return nil
}

// realDir returns dir without symlinks; what is not there stays as it is.
func (s *scan) realDir(dir string) (string, error) {
	if known, ok := s.dirs[dir]; ok {
		return known, nil
	}
	at, err := s.follow(dir)
	switch {
	case namespace.IsKind(err, namespace.NotExist), namespace.IsKind(err, namespace.Limit):
		at.path = dir
	case err != nil:
		return "", err
	}
	s.dirs[dir] = at.path
	return at.path, nil
}

// ownLines owns the path that path finds in each line of b.
func (s *scan) ownLines(o *Owners, b []byte, by Owner, path func(line string) string) error {
	for line := range strings.Lines(string(b)) {
		if err := s.own(o, path(strings.TrimRight(line, "\n")), by); err != nil {
			return err
		}
	}
	return nil
}

func (s *scan) ownDpkg(o *Owners) error {
	const info = "var/lib/dpkg/info"
	named := map[string]Owner{} // libc6:amd64
	err := s.each(info, func(name string) bool { return strings.HasSuffix(name, ".list") }, func(at place, b []byte) error {
		file := strings.TrimSuffix(path.Base(at.path), ".list")
		name, arch, _ := strings.Cut(file, ":")
		named[file] = Owner{Deb, name, arch}
		return s.ownLines(o, b, named[file], func(line string) string { return line })
	})
	if err != nil {
		return err
	}
	// The scripts and lists of a package are named for it: libc6:amd64.postinst.
	if at, ok, err := s.dir(info); err != nil {
		return err
	} else if ok {
		for lo, hi := at.c.Children(at.e.Index); lo < hi; lo++ {
			name := string(at.c.Entry(lo).Name)
			if by, ok := named[strings.TrimSuffix(name, path.Ext(name))]; ok {
				o.files[at.path+"/"+name] = by
			}
		}
	}
	return s.each("var/lib/dpkg/status.d", func(name string) bool { return strings.HasSuffix(name, ".md5sums") }, func(at place, b []byte) error {
		stanza := strings.TrimSuffix(at.path, ".md5sums")
		by := Owner{Ecosystem: Deb, Name: path.Base(stanza)}
		o.files[at.path], o.files[stanza] = by, by
		return s.ownLines(o, b, by, func(line string) string { _, p, _ := strings.Cut(line, "  "); return p })
	})
}

func (s *scan) ownAPK(o *Owners) error {
	return s.eachDatabase(apkDatabases, statusBytesMax, func(_ place, b []byte) error {
		var by Owner
		dir := ""
		for line := range strings.Lines(string(b)) {
			key, value, _ := strings.Cut(strings.TrimRight(line, "\n"), ":")
			p := ""
			switch key {
			case "P":
				by = Owner{Ecosystem: APK, Name: value}
			case "A":
				by.Arch = value
			case "F":
				dir, p = value, value
			case "R":
				p = dir + "/" + value
			}
			if err := s.own(o, p, by); err != nil {
				return err
			}
		}
		return nil
	})
}

func (s *scan) ownRPM(o *Owners) error {
	var failed error
	err := s.eachRPM(func(_ string, h rpmHeader) {
		by := Owner{RPM, h.strings[rpmName], h.strings[rpmArch]}
		h.paths(func(p string) {
			if failed == nil {
				failed = s.own(o, p, by)
			}
		})
	})
	return cmp.Or(err, failed)
}

// ownProjects owns what python's RECORD files list, and the directories of projects. What a
// distribution's package owns stays its own.
func (s *scan) ownProjects(o *Owners) error {
	for _, at := range s.projects {
		b, ok, err := s.read(at, metadataBytesMax)
		if err != nil {
			return err
		}
		if !ok {
			continue
		}
		one := scan{}
		if path.Base(at.path) == "package.json" {
			one.addNPM(at.path, b)
		} else {
			one.addPython(at.path, b)
		}
		for _, p := range one.packages {
			by := Owner{Ecosystem: p.Ecosystem, Name: p.Name}
			o.below[p.Path] = by
			if p.Ecosystem == PyPI {
				if err := s.ownRecord(o, p.Path, by); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// ownRecord reads the RECORD of a python project: CSV, paths relative to the directory that holds it.
func (s *scan) ownRecord(o *Owners, dir string, by Owner) error {
	at, ok, err := s.open(dir + "/RECORD")
	if err != nil || !ok {
		return err
	}
	b, _, err := s.read(at, metadataBytesMax)
	if err != nil {
		return err
	}
	rows := csv.NewReader(strings.NewReader(string(b)))
	rows.FieldsPerRecord = -1
	for {
		row, err := rows.Read()
		if err != nil { // its end, or damage: what follows has no owner
			return nil
		}
		p := path.Join(path.Dir(dir), row[0])
		if _, taken := o.files[p]; !taken {
			o.files[p] = by
		}
	}
}
