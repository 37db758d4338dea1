package packages

import (
	"bytes"
	"encoding/json"
	"errors"
	"iter"
	"path"
	"strings"
)

// stanzas goes through paragraphs of "Key: value" lines with blank lines between. Lines that continue
// a value are left out, a key that comes twice keeps its first value.
func stanzas(b []byte) iter.Seq[map[string]string] {
	return func(yield func(map[string]string) bool) {
		fields := map[string]string{}
		for line := range bytes.Lines(b) {
			line = bytes.TrimRight(line, "\r\n")
			if len(line) == 0 {
				if len(fields) > 0 && !yield(fields) {
					return
				}
				fields = map[string]string{}
				continue
			}
			key, value, ok := bytes.Cut(line, []byte(":"))
			if !ok || line[0] == ' ' || line[0] == '\t' || len(key) > fieldBytesMax {
				continue
			}
			if _, dup := fields[string(key)]; !dup {
				fields[string(key)] = strings.TrimSpace(string(value[:min(len(value), 4*fieldBytesMax)]))
			}
		}
		if len(fields) > 0 {
			yield(fields)
		}
	}
}

// readDpkg reads dpkg's status, and the status.d of images that were made without dpkg.
func (s *scan) readDpkg() error {
	at, ok, err := s.open("var/lib/dpkg/status")
	if err != nil {
		return err
	}
	if ok {
		b, _, err := s.read(at, statusBytesMax)
		if err != nil {
			return err
		}
		s.addDpkg(at.path, b)
	}
	return s.each("var/lib/dpkg/status.d", func(name string) bool { return !strings.HasSuffix(name, ".md5sums") },
		func(at place, b []byte) error { s.addDpkg(at.path, b); return nil })
}

func (s *scan) addDpkg(from string, b []byte) {
	for f := range stanzas(b) {
		status := strings.Fields(f["Status"])
		if len(status) > 0 {
			switch status[len(status)-1] {
			case "not-installed", "config-files": // its files are gone
				continue
			}
		}
		source, version, _ := strings.Cut(f["Source"], " ")
		s.add(Package{
			Ecosystem: Deb, Name: f["Package"], Version: f["Version"], Arch: f["Architecture"],
			Source: source, SourceVersion: strings.Trim(version, " ()"), Maintainer: f["Maintainer"], Path: from,
		})
	}
}

// apkDatabases are where apk keeps what is installed, since version 3 in the second place.
var apkDatabases = []string{"lib/apk/db/installed", "usr/lib/apk/db/installed"}

func (s *scan) readAPK() error {
	return s.eachDatabase(apkDatabases, statusBytesMax, func(at place, b []byte) error {
		for f := range stanzas(b) {
			s.add(Package{
				Ecosystem: APK, Name: f["P"], Version: f["V"], Arch: f["A"], Source: f["o"],
				Maintainer: f["m"], Licence: f["L"], Path: at.path,
			})
		}
		return nil
	})
}

// eachDatabase calls fn with every file at one of the paths; with one that several paths lead to, once.
func (s *scan) eachDatabase(paths []string, limit uint64, fn func(at place, b []byte) error) error {
	seen := map[string]bool{}
	for _, p := range paths {
		at, ok, err := s.open(p)
		if err != nil {
			return err
		}
		if !ok || seen[at.path] {
			continue
		}
		seen[at.path] = true
		b, ok, err := s.read(at, limit)
		if err == nil && ok {
			err = fn(at, b)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// addPython adds the project that a METADATA or PKG-INFO file describes.
func (s *scan) addPython(from string, b []byte) {
	place := from
	if base := path.Base(from); base == "METADATA" || base == "PKG-INFO" {
		place = path.Dir(from)
	}
	for f := range stanzas(b) {
		licence := f["License-Expression"]
		if licence == "" {
			licence = f["License"]
		}
		maintainer := f["Maintainer"]
		for _, key := range []string{"Author", "Maintainer-email", "Author-email"} {
			if maintainer == "" {
				maintainer = f[key]
			}
		}
		s.add(Package{Ecosystem: PyPI, Name: f["Name"], Version: f["Version"], Maintainer: known(maintainer), Licence: known(licence), Path: place})
		return // what follows the first blank line is the README
	}
	s.blame(place, errors.New("says nothing"))
}

// known drops what means nothing.
func known(s string) string {
	if strings.EqualFold(s, "unknown") {
		return ""
	}
	return s
}

// addNPM adds the module that a package.json describes. One without name and version describes no
// module: npm itself allows that below other modules.
func (s *scan) addNPM(from string, b []byte) {
	var m struct {
		Name    any `json:"name"`
		Version any `json:"version"`
		License any `json:"license"`
		Author  any `json:"author"`
	}
	if err := json.Unmarshal(b, &m); err != nil {
		s.blame(from, err)
		return
	}
	name, version := text(m.Name), text(m.Version)
	if name == "" && version == "" {
		return
	}
	s.add(Package{Ecosystem: NPM, Name: name, Version: version, Licence: text(m.License), Maintainer: text(m.Author), Path: path.Dir(from)})
}

// text returns a string, or what stands for one in an object of npm's.
func text(v any) string {
	switch v := v.(type) {
	case string:
		return v
	case map[string]any:
		for _, key := range []string{"name", "type"} {
			if s, ok := v[key].(string); ok {
				return s
			}
		}
	}
	return ""
}
