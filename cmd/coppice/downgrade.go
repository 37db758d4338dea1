package main

import (
	"context"
	"fmt"
	"path"
	"slices"
	"strings"

	"coppice.dev/coppice/builder/packages"
	"coppice.dev/coppice/namespace"
)

// allowedDowngrade is a package or library that is older than in the namespace's last version, and
// was let pass.
type allowedDowngrade struct {
	Mount string `json:"mount"`
	packages.Change
}

// packageChanges sums up how the packages of a new namespace version differ from the last one's.
type packageChanges struct {
	Since             namespace.Version  `json:"since"`
	Upgraded          int                `json:"upgraded"`
	Downgraded        int                `json:"downgraded"`
	Added             int                `json:"added"`
	Removed           int                `json:"removed"`
	AllowedDowngrades []allowedDowngrade `json:"allowed_downgrades"`
}

// String tells the counts that are not 0.
func (c *packageChanges) String() string {
	var words []string
	for _, n := range []struct {
		count int
		what  packages.What
	}{{c.Upgraded, packages.Upgraded}, {c.Downgraded, packages.Downgraded}, {c.Added, packages.Added}, {c.Removed, packages.Removed}} {
		if n.count > 0 {
			words = append(words, fmt.Sprintf("%d %s", n.count, n.what))
		}
	}
	return strings.Join(words, ", ")
}

// mountChange is a path at which a new namespace version has another tree than the last one.
type mountChange struct{ before, after namespace.ManifestMount }

// mountChanges compares mounts, path by path, with those of the newest version of the namespace name,
// since. There are none if there is no version yet: since is zero then.
func (w *workshop) mountChanges(ctx context.Context, name string, mounts []namespace.ManifestMount) (since namespace.Version, changed []mountChange, err error) {
	last, since, err := w.refs.ResolveNamespace(ctx, namespace.Version{Name: name})
	if namespace.IsKind(err, namespace.NotExist) {
		return namespace.Version{}, nil, nil
	}
	if err != nil {
		return since, nil, err
	}
	m, err := w.manifest(ctx, last.Manifest)
	if err != nil {
		return since, nil, err
	}
	for _, mount := range mounts {
		i := slices.IndexFunc(m.Mounts, func(old namespace.ManifestMount) bool { return old.Path == mount.Path })
		if i >= 0 && m.Mounts[i].Tree != mount.Tree {
			changed = append(changed, mountChange{m.Mounts[i], mount})
		}
	}
	return since, changed, nil
}

// comparePackages compares the packages of the trees that changed since the last version of the
// namespace name, and refuses what is older than there and not allowed. It returns nil if there was no
// version. Kinds: Denied (something is older), Invalid (a pattern of allow), those of the origin.
func (w *workshop) comparePackages(ctx context.Context, name string, since namespace.Version, changed []mountChange, allow []string) (*packageChanges, error) {
	for _, pattern := range allow {
		if _, err := path.Match(pattern, ""); err != nil {
			return nil, usage("--allow-downgrade %q: %v", pattern, err)
		}
	}
	if since == (namespace.Version{}) {
		return nil, nil
	}
	sum := &packageChanges{Since: since, AllowedDowngrades: []allowedDowngrade{}}
	var refused []packages.Change
	all := newTables(w.origin)
	for _, c := range changed {
		before, err := w.mountTable(ctx, all, c.before)
		if err != nil {
			return nil, err
		}
		after, err := w.mountTable(ctx, all, c.after)
		if err != nil {
			return nil, err
		}
		sum.count(packages.Compare(before, after))
		for _, d := range packages.Downgrades(before, after) {
			if downgradeAllowed(d, allow) {
				sum.AllowedDowngrades = append(sum.AllowedDowngrades, allowedDowngrade{c.after.Path, d})
			} else {
				refused = append(refused, d)
			}
		}
	}
	if len(refused) > 0 {
		return nil, refuseDowngrades(name, since, refused)
	}
	return sum, nil
}

// mountTable returns the table of the tree at a mount.
func (w *workshop) mountTable(ctx context.Context, all *tables, m namespace.ManifestMount) (*packages.Table, error) {
	v := namespace.TreeVersion{Root: m.Tree}
	if m.Version.Name != "" {
		got, _, err := w.refs.ResolveTree(ctx, m.Version)
		if err != nil && !namespace.IsKind(err, namespace.NotExist) {
			return nil, err
		}
		if err == nil && got.Root == m.Tree {
			v = got
		}
	}
	return all.of(ctx, v)
}

func (c *packageChanges) count(changes []packages.Change) {
	for _, ch := range changes {
		switch ch.What {
		case packages.Added:
			c.Added++
		case packages.Removed:
			c.Removed++
		case packages.Upgraded:
			c.Upgraded++
		case packages.Downgraded:
			c.Downgraded++
		}
	}
}

// downgradeAllowed reports whether one of the patterns names d: a package, its source package, or a
// library's file name.
func downgradeAllowed(d packages.Change, allow []string) bool {
	names := []string{d.Name, d.Source}
	if d.Ecosystem == "" {
		names = []string{d.Name, path.Base(d.Name)}
	}
	return slices.ContainsFunc(allow, func(pattern string) bool {
		return slices.ContainsFunc(names, func(name string) bool {
			ok, _ := path.Match(pattern, name)
			return name != "" && (ok || name == pattern)
		})
	})
}

// refusedMax is how many refused packages an error names.
const refusedMax = 20

func refuseDowngrades(name string, since namespace.Version, refused []packages.Change) error {
	var lines, flags []string
	for _, d := range refused {
		what := strings.TrimPrefix(string(d.Ecosystem)+":"+d.Name, ":")
		lines = append(lines, fmt.Sprintf("\n  %s %s is older than %s", what, d.New, d.Old))
		flag := "--allow-downgrade=" + d.Name
		if d.Ecosystem == "" {
			flag = "--allow-downgrade=" + path.Base(d.Name)
		}
		if !slices.Contains(flags, flag) {
			flags = append(flags, flag)
		}
	}
	if n := len(lines) - refusedMax; n > 0 {
		lines = append(lines[:refusedMax], fmt.Sprintf("\n  and %d more", n))
	}
	if len(flags) > refusedMax {
		flags = []string{"--allow-downgrade='*'"}
	}
	return namespace.WithHint(
		namespace.E(namespace.Denied, "publish", name, fmt.Errorf("%d packages or libraries are older than in %v:%s", len(refused), since, strings.Join(lines, ""))),
		"if that is meant: "+strings.Join(flags, " "))
}
