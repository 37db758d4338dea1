package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"coppice.dev/coppice/builder/packages"
	"coppice.dev/coppice/namespace"
)

func (a *app) whereCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "where QUERY",
		Short: "Find the versions and channels that contain a package",
		Long: `Finds every tree version that holds a package that answers QUERY, the namespace versions that are
made of those trees, and the channels that point at one of them now. QUERY is a package's name or
that of the source package it was built from, and, if wanted, a relation to a version:

  openssl            any version, of any kind of package
  'openssl<3.0.17'   older than 3.0.17; the relations are <, <=, =, !=, >= and >
  deb:libc6          only of deb; the kinds are deb, rpm, apk, pypi and npm

Versions are compared as the kind of package compares them. What QUERY leaves out does not count: to
'openssl=3.0.17' an epoch before and a distribution's revision after it, as in 1:3.0.17-4, do not matter;
to 'openssl<3.0.17-4' the revision does. Exit status 3 if nothing answers.`,
		Example: "  coppice where 'openssl<3.0.17'\n  coppice where deb:libc6 --json",
		Args:    exact(1),
		RunE: func(c *cobra.Command, args []string) error {
			q, err := packages.ParseQuery(args[0])
			if err != nil {
				return err
			}
			found, err := a.where(c.Context(), q)
			if err != nil {
				return err
			}
			err = a.result(map[string]any{"query": q.String(), "found": found}, func(w io.Writer) { printFound(w, found) })
			if err == nil && len(found) == 0 {
				err = errDiffers
			}
			return err
		},
	}
}

// foundTree is a line of `where`. Tree is NAME@N, or a root digest that only a namespace names.
type foundTree struct {
	Tree       string             `json:"tree"`
	Root       namespace.Digest   `json:"root"`
	Packages   []packages.Package `json:"packages"`
	Namespaces []string           `json:"namespaces"`
	Channels   []string           `json:"channels"`
}

// composed is a namespace version: the roots it is made of, and the channels that point at it.
type composed struct {
	name     string
	roots    []namespace.Digest
	channels []string
}

func (a *app) where(ctx context.Context, q packages.Query) ([]foundTree, error) {
	r, err := a.openReader(ctx)
	if err != nil {
		return nil, err
	}
	spaces, err := r.composed(ctx)
	if err != nil {
		return nil, err
	}
	found := []foundTree{}
	all, looked := newTables(r.source), map[namespace.Digest]bool{}
	look := func(name string, v namespace.TreeVersion) error {
		t, err := all.of(ctx, v)
		if err != nil {
			return err
		}
		hits := q.Find(t)
		all.forget(v.Root) // an origin may have thousands
		looked[v.Root] = true
		if len(hits) == 0 {
			return nil
		}
		f := foundTree{Tree: name, Root: v.Root, Packages: hits, Namespaces: []string{}, Channels: []string{}}
		for _, s := range spaces {
			if slices.Contains(s.roots, v.Root) {
				f.Namespaces, f.Channels = append(f.Namespaces, s.name), append(f.Channels, s.channels...)
			}
		}
		found = append(found, f)
		return nil
	}
	names, err := r.source.Refs(ctx, namespace.TreeRef)
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		t, err := r.refs.Tree(ctx, name)
		if err != nil {
			return nil, err
		}
		for _, v := range t.Versions {
			if err := look(fmt.Sprintf("%s@%d", name, v.N), v); err != nil {
				return nil, err
			}
		}
	}
	for _, s := range spaces { // a composition may name a tree that has no version, by its digest
		for _, root := range s.roots {
			if !looked[root] {
				if err := look(root.String(), namespace.TreeVersion{Root: root}); err != nil {
					return nil, err
				}
			}
		}
	}
	return found, nil
}

// composed lists all namespace versions.
func (r *reader) composed(ctx context.Context) ([]composed, error) {
	channels := map[string][]string{}
	names, err := r.source.Refs(ctx, namespace.ChannelRef)
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		p, err := r.refs.Pointer(ctx, name)
		if err != nil {
			return nil, err
		}
		channels[p.Version.String()] = append(channels[p.Version.String()], name)
	}
	if names, err = r.source.Refs(ctx, namespace.NamespaceRef); err != nil {
		return nil, err
	}
	var all []composed
	for _, name := range names {
		ns, err := r.refs.Namespace(ctx, name)
		if err != nil {
			return nil, err
		}
		for _, v := range ns.Versions {
			b, err := r.GetBlob(ctx, v.Manifest, namespace.ManifestBytesMax)
			if err != nil {
				return nil, err
			}
			m, err := readManifest(b, v.Manifest)
			if err != nil {
				return nil, err
			}
			c := composed{name: namespace.Version{Name: name, N: v.N}.String()}
			c.channels = channels[c.name]
			for _, mount := range m.Mounts {
				c.roots = append(c.roots, mount.Tree)
			}
			all = append(all, c)
		}
	}
	return all, nil
}

func printFound(w io.Writer, found []foundTree) {
	if len(found) == 0 {
		return
	}
	var rows [][]string
	for _, f := range found {
		var names []string
		for _, p := range f.Packages {
			names = append(names, p.Name+" "+p.Version)
		}
		rows = append(rows, []string{f.Tree, listWords(names, 3), listWords(f.Namespaces, 4), listWords(f.Channels, 8)})
	}
	table(w, "TREE PACKAGES NAMESPACES CHANNELS", rows)
}

// listWords joins words for a table's cell: the last n of them, and how many others there are.
func listWords(words []string, n int) string {
	words = slices.Compact(words)
	switch {
	case len(words) == 0:
		return "-"
	case len(words) > n:
		return fmt.Sprintf("%s and %d more", strings.Join(words[len(words)-n:], ", "), len(words)-n)
	}
	return strings.Join(words, ", ")
}
