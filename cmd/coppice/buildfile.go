package main

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"coppice.dev/coppice/builder"
	"coppice.dev/coppice/namespace"
)

// recipe is how a tree is built.
type recipe struct {
	Name   string            `yaml:"name"`
	Base   string            `yaml:"base"`
	Import string            `yaml:"import"`
	Epoch  string            `yaml:"epoch"`
	Labels map[string]string `yaml:"labels"`
	Steps  []step            `yaml:"steps"`
}

// step is one step of a recipe. One of Run, Copy, Drop and Normalise is set.
type step struct {
	Run     string            `yaml:"run" json:"run,omitempty"`
	Network *bool             `yaml:"network" json:"network,omitempty"`
	Env     map[string]string `yaml:"env" json:"env,omitempty"`
	User    string            `yaml:"user" json:"user,omitempty"`
	Workdir string            `yaml:"workdir" json:"workdir,omitempty"`

	Copy  string `yaml:"copy" json:"-"`
	To    string `yaml:"to" json:"-"`
	Owner string `yaml:"owner" json:"-"`
	Mode  string `yaml:"mode" json:"-"`

	Drop      []string `yaml:"drop" json:"-"`
	Normalise []string `yaml:"normalise" json:"-"`
}

// labelsMax and labelBytesMax bound what a version carries of labels: records are read by everybody.
const (
	labelsMax     = 64
	labelBytesMax = 256
)

// recipeFile is a parsed recipe that can say where in it a step stands.
type recipeFile struct {
	yamlFile
	recipe
	latest time.Time // from Epoch or SOURCE_DATE_EPOCH; zero: none
}

// parseRecipe reads and checks a recipe. Kinds: Invalid, with file and line.
func parseRecipe(name string, b []byte) (*recipeFile, error) {
	f := &recipeFile{yamlFile: yamlFile{name: name}}
	if err := f.decode(b, &f.recipe); err != nil {
		return nil, err
	}
	if err := namespace.CheckName(f.Name); err != nil {
		return nil, namespace.WithHint(f.at("$.name", err), "name: the tree that is built, as debian")
	}
	if (f.Base != "") && (f.Import != "") {
		return nil, f.at("$.import", usage("a tree has a base or is imported, not both"))
	}
	if len(f.Labels) > labelsMax {
		return nil, f.at("$.labels", usage("%d labels, at most %d", len(f.Labels), labelsMax))
	}
	for k, v := range f.Labels {
		if k == "" || len(k)+len(v) > labelBytesMax {
			return nil, f.at("$.labels", usage("label %q: want a name, and at most %d bytes with its value", k, labelBytesMax))
		}
	}
	if err := f.clock(); err != nil {
		return nil, err
	}
	for i := range f.Steps {
		if err := f.Steps[i].check(); err != nil {
			return nil, f.atStep(i, err)
		}
	}
	return f, nil
}

func (f *recipeFile) atStep(i int, err error) error { return f.at(fmt.Sprintf("$.steps[%d]", i), err) }

// clock takes the latest time from the recipe or from the environment.
func (f *recipeFile) clock() error {
	if s := os.Getenv("SOURCE_DATE_EPOCH"); s != "" {
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			return usage("SOURCE_DATE_EPOCH=%s: want seconds since 1970", s)
		}
		f.latest = time.Unix(n, 0)
	}
	if f.Epoch == "" {
		return nil
	}
	var err error
	if f.latest, err = time.Parse(time.RFC3339, f.Epoch); err != nil {
		if f.latest, err = time.Parse(time.DateOnly, f.Epoch); err != nil {
			return f.at("$.epoch", usage("%q: want a day or a time, as 2026-11-23 or 2026-11-23T10:00:00Z", f.Epoch))
		}
	}
	return nil
}

func (s *step) check() error {
	n := 0
	for _, set := range []bool{s.Run != "", s.Copy != "", len(s.Drop) > 0, len(s.Normalise) > 0} {
		if set {
			n++
		}
	}
	if n != 1 {
		return namespace.WithHint(usage("a step does one thing, this one %d", n), "one of run, copy, drop and normalise")
	}
	if s.Run == "" && (s.Network != nil || s.Env != nil || s.User != "" || s.Workdir != "") {
		return usage("network, env, user and workdir belong to run")
	}
	if s.Copy == "" && (s.To != "" || s.Owner != "" || s.Mode != "") {
		return usage("to, owner and mode belong to copy")
	}
	if s.Copy != "" && !strings.HasPrefix(s.To, "/") {
		return usage("copy wants to: an absolute path in the tree")
	}
	if _, err := s.edits("."); err != nil && s.Copy == "" {
		return err
	}
	_, err := s.copyAttributes()
	return err
}

// normalisations are what makes two builds differ, or what should not be shared by machines, by name.
var normalisations = map[string][]builder.Edit{
	"caches": {{DropFiles: "/var/cache/**"}, {DropFiles: "/var/lib/apt/lists/**"}, {DropFiles: "/root/.cache/**"},
		{DropFiles: "/var/lib/dpkg/*-old"}, {DropFiles: "/var/lib/dnf/**"}},
	"logs":          {{DropFiles: "/var/log/**"}},
	"machine-id":    {{Empty: "/etc/machine-id"}, {Drop: "/var/lib/dbus/machine-id"}, {Drop: "/var/lib/systemd/random-seed"}},
	"ssh-host-keys": {{Drop: "/etc/ssh/ssh_host_*"}},
	"temporary":     {{Drop: "/tmp/*"}, {Drop: "/var/tmp/*"}, {Drop: "/run/*"}},
	"clock":         {{Drop: "/var/lib/systemd/timesync/clock"}, {Drop: "/etc/adjtime"}},
}

// edits returns what a step that runs nothing does to a tree. dir is where relative paths begin.
func (s *step) edits(dir string) ([]builder.Edit, error) {
	var all []builder.Edit
	for _, pattern := range s.Drop {
		if err := builder.CheckPattern(pattern); err != nil {
			return nil, err
		}
		all = append(all, builder.Edit{Drop: pattern})
	}
	for _, name := range s.Normalise {
		found, ok := normalisations[name]
		if !ok && name != "all" {
			return nil, namespace.WithHint(usage("normalise knows no %q", name), "all, "+strings.Join(slices.Sorted(maps.Keys(normalisations)), ", "))
		}
		if name == "all" {
			for _, each := range slices.Sorted(maps.Keys(normalisations)) {
				found = append(found, normalisations[each]...)
			}
		}
		all = append(all, found...)
	}
	if s.Copy == "" {
		return all, nil
	}
	edit, err := s.copyAttributes()
	if err != nil {
		return nil, err
	}
	edit.Copy, edit.To = s.Copy, s.To
	if !filepath.IsAbs(edit.Copy) {
		edit.Copy = filepath.Join(dir, edit.Copy)
	}
	return append(all, edit), nil
}

// copyAttributes reads owner and mode.
func (s *step) copyAttributes() (edit builder.Edit, err error) {
	if s.Owner != "" {
		uid, gid, _ := strings.Cut(s.Owner, ":")
		u, uerr := strconv.ParseUint(uid, 10, 32)
		g, gerr := strconv.ParseUint(gid, 10, 32)
		if uerr != nil || gerr != nil {
			return edit, usage("owner %q: want UID:GID", s.Owner)
		}
		edit.Owner = &[2]uint32{uint32(u), uint32(g)}
	}
	if s.Mode != "" {
		m, err := strconv.ParseUint(s.Mode, 8, 12)
		if err != nil {
			return edit, usage("mode %q: want octal digits, as \"0755\"", s.Mode)
		}
		mode := uint16(m)
		edit.Mode = &mode
	}
	return edit, nil
}
