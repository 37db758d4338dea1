package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"coppice.dev/coppice/builder"
	"coppice.dev/coppice/builder/packages"
	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/catalog"
)

// diffTotal is a line of `tree diff --stat`: paths that changed in one way, and their bytes.
type diffTotal struct {
	Change string `json:"change"`
	Paths  uint64 `json:"paths"`
	Before uint64 `json:"bytes_before"`
	After  uint64 `json:"bytes_after"`
}

func (t *diffTotal) add(ch catalog.Change) {
	t.Paths++
	if ch.Before.Entry.Type == catalog.File {
		t.Before += ch.Before.Entry.Size
	}
	if ch.After.Entry.Type == catalog.File {
		t.After += ch.After.Entry.Size
	}
}

// diffStat is `tree diff --stat`: a path that changed in several ways is in several lines, and once
// in the total.
func diffStat(ctx context.Context, l catalog.Loader, before, after namespace.Digest) ([]diffTotal, error) {
	byKind := map[catalog.Difference]*diffTotal{}
	total := diffTotal{Change: "total"}
	err := catalog.Diff(ctx, l, before, after, func(ch catalog.Change) error {
		total.add(ch)
		for kind := catalog.DiffAdded; kind <= catalog.DiffLinks; kind <<= 1 {
			if ch.What&kind == 0 {
				continue
			}
			if byKind[kind] == nil {
				byKind[kind] = &diffTotal{Change: kind.String()}
			}
			byKind[kind].add(ch)
		}
		return nil
	})
	all := []diffTotal{}
	for kind := catalog.DiffAdded; kind <= catalog.DiffLinks; kind <<= 1 {
		if t := byKind[kind]; t != nil {
			all = append(all, *t)
		}
	}
	return append(all, total), err
}

func printDiffStat(w io.Writer, all []diffTotal) {
	var rows [][]string
	for _, t := range all {
		rows = append(rows, []string{t.Change, strconv.FormatUint(t.Paths, 10), size(t.Before), size(t.After)})
	}
	table(w, "CHANGE PATHS BEFORE AFTER", rows)
}

// packageDiff is what `tree diff --package` tells of one package: its versions, and the paths it owns
// that changed. Paths without an owner are in one with an empty name.
type packageDiff struct {
	Ecosystem packages.Ecosystem `json:"ecosystem,omitempty"`
	Name      string             `json:"name,omitempty"`
	Arch      string             `json:"arch,omitempty"`
	Old       string             `json:"old,omitempty"`
	New       string             `json:"new,omitempty"`
	diffTotal
	Changes []changed `json:"changes,omitempty"`
}

// packageKey is what makes a path's owner and a table's package the same one: dpkg names the
// architecture in only some of the places.
type packageKey struct {
	eco  packages.Ecosystem
	name string
}

// diffPackages is `tree diff --package`: the changed paths by owner, and packages whose version
// changed. paths says whether each path is told, too.
func (a *app) diffPackages(ctx context.Context, r *reader, before, after namespace.TreeVersion, paths bool) ([]packageDiff, error) {
	sides, err := readSides(ctx, r, before, after)
	if err != nil {
		return nil, err
	}
	groups := map[packageKey]*packageDiff{}
	group := func(k packageKey) *packageDiff {
		if groups[k] == nil {
			groups[k] = &packageDiff{Ecosystem: k.eco, Name: k.name}
			groups[k].Old, groups[k].New = sides.versions(k)
			groups[k].Change = packageChange(k.eco, groups[k].Old, groups[k].New)
		}
		return groups[k]
	}
	for _, ch := range packages.Compare(sides[0].table, sides[1].table) {
		group(packageKey{ch.Ecosystem, ch.Name})
	}
	err = catalog.Diff(ctx, r, before.Root, after.Root, func(ch catalog.Change) error {
		g := group(sides.owner(ch))
		g.add(ch)
		if paths {
			g.Changes = append(g.Changes, changeLine(ch))
		}
		return nil
	})
	all := []packageDiff{}
	for _, g := range groups {
		all = append(all, *g)
	}
	slices.SortFunc(all, func(a, b packageDiff) int {
		if (a.Name == "") != (b.Name == "") { // what has no owner comes last
			return strings.Compare(b.Name, a.Name)
		}
		return cmp.Or(cmp.Compare(a.Ecosystem, b.Ecosystem), cmp.Compare(a.Name, b.Name))
	})
	return all, err
}

// packageChange names what happened to a package of which some paths changed.
func packageChange(eco packages.Ecosystem, old, next string) string {
	switch {
	case old == next:
		return "same version"
	case old == "":
		return string(packages.Added)
	case next == "":
		return string(packages.Removed)
	case packages.CompareVersions(eco, old, next) > 0:
		return string(packages.Downgraded)
	}
	return string(packages.Upgraded)
}

// diffSide is what is known of one of the two trees.
type diffSide struct {
	table    *packages.Table
	owners   *packages.Owners
	versions map[packageKey]string
}

type diffSides [2]diffSide

func readSides(ctx context.Context, r *reader, versions ...namespace.TreeVersion) (sides diffSides, err error) {
	all, stored := newTables(r.source), builder.NewStored(r.source)
	for i, v := range versions {
		if sides[i].table, err = all.of(ctx, v); err != nil {
			return sides, err
		}
		if sides[i].owners, err = packages.ReadOwners(ctx, stored, v.Root); err != nil {
			return sides, err
		}
		sides[i].versions = map[packageKey]string{}
		for _, p := range sides[i].table.Packages {
			k := packageKey{p.Ecosystem, p.Name}
			switch have := sides[i].versions[k]; {
			case have == "":
				sides[i].versions[k] = p.Version
			case !slices.Contains(strings.Split(have, ", "), p.Version): // of two architectures, or kernels
				sides[i].versions[k] = have + ", " + p.Version
			}
		}
	}
	return sides, nil
}

func (s *diffSides) versions(k packageKey) (old, next string) {
	return s[0].versions[k], s[1].versions[k]
}

// owner returns whose the changed path is: in the newer tree, unless it is only in the older one.
func (s *diffSides) owner(ch catalog.Change) packageKey {
	order := []int{1, 0}
	if ch.What&catalog.DiffRemoved != 0 {
		order = []int{0, 1}
	}
	for _, i := range order {
		if by, ok := s[i].owners.Of(ch.Path); ok {
			return packageKey{by.Ecosystem, by.Name}
		}
	}
	return packageKey{}
}

func printPackageDiff(w io.Writer, all []packageDiff) {
	for _, g := range all {
		fmt.Fprintf(w, "%s  %d paths, %s\n", packageTitle(g), g.Paths, size(g.After))
		for _, c := range g.Changes {
			fmt.Fprint(w, "  ")
			printChanges(w, []changed{c})
		}
	}
}

func packageTitle(g packageDiff) string {
	switch {
	case g.Name == "":
		return "no package"
	case g.Old == g.New:
		return strings.TrimSpace(g.Name + " " + g.New)
	case g.Old == "":
		return g.Name + " " + g.New + " (added)"
	case g.New == "":
		return g.Name + " " + g.Old + " (removed)"
	case g.Change == string(packages.Downgraded):
		return g.Name + " " + g.Old + " -> " + g.New + " (DOWNGRADED)"
	}
	return g.Name + " " + g.Old + " -> " + g.New
}

func printPackageStat(w io.Writer, all []packageDiff) {
	var rows [][]string
	for _, g := range all {
		name := cmp.Or(g.Name, "(no package)")
		rows = append(rows, []string{name, cmp.Or(g.Old, "-"), cmp.Or(g.New, "-"), strconv.FormatUint(g.Paths, 10), size(g.Before), size(g.After)})
	}
	table(w, "PACKAGE OLD NEW PATHS BEFORE AFTER", rows)
}

// diffTotals answers `tree diff` with --stat, --package or both.
func (a *app) diffTotals(ctx context.Context, r *reader, versions [2]namespace.TreeVersion, stat, byPackage bool) error {
	differs := false
	var err error
	if byPackage {
		var all []packageDiff
		if all, err = a.diffPackages(ctx, r, versions[0], versions[1], !stat); err != nil {
			return err
		}
		differs = len(all) > 0
		err = a.result(all, func(w io.Writer) {
			if stat {
				printPackageStat(w, all)
			} else {
				printPackageDiff(w, all)
			}
		})
	} else {
		var all []diffTotal
		if all, err = diffStat(ctx, r, versions[0].Root, versions[1].Root); err != nil {
			return err
		}
		differs = len(all) > 1
		err = a.result(all, func(w io.Writer) { printDiffStat(w, all) })
	}
	if err == nil && differs {
		err = errDiffers
	}
	return err
}
