package main

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strings"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/trust"
)

// composition is a namespace file: which trees make a namespace, and where.
type composition struct {
	Mounts []struct {
		Path    string `yaml:"path"`
		Tree    string `yaml:"tree"`
		Replace bool   `yaml:"replace"`
	} `yaml:"mounts"`
}

// compositionFile is a parsed namespace file that can say where in it a mount stands.
type compositionFile struct {
	yamlFile
	composition
}

// parseComposition reads a namespace file. Unknown keys are errors. Kinds: Invalid, with line and
// column.
func parseComposition(name string, b []byte) (*compositionFile, error) {
	f := &compositionFile{yamlFile: yamlFile{name: name}}
	if err := f.decode(b, &f.composition); err != nil {
		return nil, err
	}
	if len(f.Mounts) == 0 {
		return nil, namespace.WithHint(namespace.E(namespace.Invalid, "read", name, errors.New("no mounts")),
			"for example:  mounts: [{path: /, tree: debian@2}]")
	}
	if len(f.Mounts) > namespace.MountsMax {
		return nil, namespace.E(namespace.Limit, "read", name, fmt.Errorf("%d mounts, at most %d", len(f.Mounts), namespace.MountsMax))
	}
	return f, nil
}

// at puts file and line of mount i in front of an error.
func (f *compositionFile) at(i int, err error) error {
	return f.yamlFile.at(fmt.Sprintf("$.mounts[%d]", i), err)
}

// resolve turns the file's mounts into a manifest's: names become digests.
func (f *compositionFile) resolve(ctx context.Context, refs trust.Refs) ([]namespace.ManifestMount, error) {
	var mounts []namespace.ManifestMount
	seen := map[string]int{}
	for i, m := range f.Mounts {
		clean, err := cleanMountPath(m.Path)
		if err != nil {
			return nil, f.at(i, err)
		}
		if first, dup := seen[clean]; dup {
			return nil, f.at(i, namespace.E(namespace.Exist, "mount", clean, fmt.Errorf("mounts %d and %d have the same path", first+1, i+1)))
		}
		seen[clean] = i
		if m.Tree == "" {
			return nil, f.at(i, usage("mount %s names no tree", clean))
		}
		root, v, err := treeRoot(ctx, refs, m.Tree)
		if err != nil {
			return nil, f.at(i, err)
		}
		mounts = append(mounts, namespace.ManifestMount{Path: clean, Tree: root, Version: v, Replace: m.Replace})
	}
	return mounts, nil
}

// cleanMountPath accepts an absolute path without "..", and drops a trailing slash.
func cleanMountPath(p string) (string, error) {
	if !strings.HasPrefix(p, "/") || strings.ContainsRune(p, 0) || len(p) >= namespace.PathBytesMax {
		return "", usage("path %q: want an absolute path", p)
	}
	for part := range strings.SplitSeq(p, "/") {
		if part == ".." || part == "." {
			return "", usage("path %q: no . and .. please", p)
		}
		if len(part) > namespace.NameBytesMax {
			return "", usage("path %q: a name has at most %d bytes", p, namespace.NameBytesMax)
		}
	}
	return path.Clean(p), nil
}
