package trust

import (
	"context"
	"fmt"

	"coppice.dev/coppice/namespace"
)

// Refs reads the refs of an origin and believes only what Root says. Safe for concurrent use if
// Reader is.
type Refs struct {
	Reader namespace.RefReader
	Root   *Root
	// Blobs loads what refs lead to: needed for channels and vouching, not for trees and namespaces.
	Blobs Blobs
}

// FetchRoot reads an origin's root record. It is intact, but not trusted: see [OpenRoot]. The
// document is returned as well, for pinning. Kinds: those of the reader and of OpenRoot; NotExist
// comes with a hint.
func FetchRoot(ctx context.Context, r namespace.RefReader) (*Root, []byte, error) {
	b, err := r.Ref(ctx, RootName)
	if err != nil {
		if namespace.IsKind(err, namespace.NotExist) {
			err = namespace.WithHint(err, "is this an origin? `coppice origin init` makes one")
		}
		return nil, nil, err
	}
	root, err := OpenRoot(b)
	if err != nil {
		return nil, nil, err
	}
	for range RootsMax { // the ref lies behind where a publisher died between two steps
		b, err := r.Ref(ctx, RootVersion(int64(root.Version+1)))
		if namespace.IsKind(err, namespace.NotExist) {
			break
		}
		if err != nil {
			return nil, nil, err
		}
		next, err := root.Next(b)
		if err != nil {
			return nil, nil, err
		}
		root = next
	}
	return root, root.Bytes(), nil
}

// read fetches, verifies and decodes a ref. raw is nil if there is none, without an error.
func (r Refs) read(ctx context.Context, n namespace.RefName, record any) (raw []byte, err error) {
	if err := n.Check(); err != nil {
		return nil, err
	}
	raw, err = r.Reader.Ref(ctx, n)
	if namespace.IsKind(err, namespace.NotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return raw, r.Root.OpenRecord(n, raw, record)
}

// Tree returns the record of tree name. Kinds: NotExist, Denied, Corrupt, those of the reader.
func (r Refs) Tree(ctx context.Context, name string) (namespace.Tree, error) {
	var t namespace.Tree
	raw, err := r.read(ctx, namespace.RefName{Kind: namespace.TreeRef, Name: name}, &t)
	if err == nil && raw == nil {
		err = missing("tree", name, "`coppice tree list` shows those there are, `coppice tree import` makes one")
	}
	return t, err
}

// Namespace returns the record of namespace name. Kinds: those of Tree.
func (r Refs) Namespace(ctx context.Context, name string) (namespace.Namespace, error) {
	var ns namespace.Namespace
	raw, err := r.read(ctx, namespace.RefName{Kind: namespace.NamespaceRef, Name: name}, &ns)
	if err == nil && raw == nil {
		err = missing("namespace", name, "`coppice namespace list` shows those there are, `coppice namespace publish` makes one")
	}
	return ns, err
}

func missing(what, name, hint string) error {
	return namespace.WithHint(namespace.E(namespace.NotExist, "read", what+" "+name, fmt.Errorf("there is none of this name")), hint)
}

// ResolveTree returns version v of a tree, the newest if v.N is 0, and its full name.
// Kinds: those of Tree.
func (r Refs) ResolveTree(ctx context.Context, v namespace.Version) (namespace.TreeVersion, namespace.Version, error) {
	t, err := r.Tree(ctx, v.Name)
	if err != nil {
		return namespace.TreeVersion{}, v, err
	}
	i, err := pick("tree", v, len(t.Versions))
	if err != nil {
		return namespace.TreeVersion{}, v, err
	}
	v.N = uint64(i + 1)
	return t.Versions[i], v, nil
}

// ResolveNamespace returns version v of a namespace, the newest if v.N is 0, and its full name.
// Kinds: those of Namespace.
func (r Refs) ResolveNamespace(ctx context.Context, v namespace.Version) (namespace.NamespaceVersion, namespace.Version, error) {
	ns, err := r.Namespace(ctx, v.Name)
	if err != nil {
		return namespace.NamespaceVersion{}, v, err
	}
	i, err := pick("namespace", v, len(ns.Versions))
	if err != nil {
		return namespace.NamespaceVersion{}, v, err
	}
	v.N = uint64(i + 1)
	return ns.Versions[i], v, nil
}

// pick turns a version number into an index of count versions.
func pick(what string, v namespace.Version, count int) (int, error) {
	n := v.N
	if n == 0 {
		n = uint64(count)
	}
	if n == 0 || n > uint64(count) {
		return 0, namespace.E(namespace.NotExist, "read", what+" "+v.String(), fmt.Errorf("versions are 1 to %d", count))
	}
	return int(n - 1), nil
}
