package builder

import (
	"context"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/catalog"
)

// VerifyDir compares the directory d with the tree whose root catalog is root, entry by entry,
// content by digest, and calls fn for every difference: Before is the tree's side, After the
// directory's. It reads every file of d and writes nothing; equal content is not compressed nor
// kept. Kinds: those of [Import], of the loader and of fn.
func VerifyDir(ctx context.Context, loader catalog.Loader, root namespace.Digest, d DirSource, o Options,
	fn func(catalog.Change) error) error {
	o.FrameBytes, o.Previous, o.Loader = frameBytesDefault, root, loader
	p := newPipeline(ctx, nil, &known{claimsNothing: true}, o)
	found, err := d.read(p.ctx, p)
	if err = p.finish(err); err != nil {
		return err
	}
	if err := found.link(ctx); err != nil {
		return err
	}
	made := map[namespace.Digest]*catalog.Catalog{}
	top, err := catalog.Split(found.root, func(b []byte, _ *catalog.Node) (namespace.Digest, error) {
		c, err := catalog.Open(b)
		d := namespace.Sum(b)
		made[d] = c
		return d, err
	})
	if err != nil {
		return err
	}
	p.report(true)
	both := catalog.LoaderFunc(func(ctx context.Context, d namespace.Digest) (*catalog.Catalog, error) {
		if c := made[d]; c != nil {
			return c, nil
		}
		return loader.Catalog(ctx, d)
	})
	return catalog.Diff(ctx, both, root, top, fn)
}
