package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"io"
	"path/filepath"

	"github.com/spf13/cobra"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/origin"
	"coppice.dev/coppice/namespace/trust"
)

func (a *app) originCommand() *cobra.Command {
	return group("origin", "Make, serve and check an origin", a.originInit(), a.originServe(), a.originVerify(), a.originGC(), a.originSync())
}

func (a *app) originInit() *cobra.Command {
	return &cobra.Command{
		Use:   "init DIR",
		Short: "Make an empty origin and its signing key",
		Long: `Makes an empty origin in DIR, which must not exist or be empty, and an ed25519 key that signs
what is published there. The key is never inside DIR, which is served to everyone: it goes to
--keys, or to DIR.keys. A key that is there already is used, never overwritten.`,
		Example: "  coppice origin init /srv/origin\n  coppice origin init /srv/origin --keys /root/keys",
		Args:    exact(1),
		RunE: func(c *cobra.Command, args []string) error {
			dir, err := filepath.Abs(args[0])
			if err != nil {
				return namespace.E(namespace.Invalid, "find", args[0], err)
			}
			return a.initOrigin(c.Context(), dir)
		},
	}
}

func (a *app) initOrigin(ctx context.Context, dir string) error {
	keys, err := filepath.Abs(a.keysDir(dir)) // relative, it would compare with nothing
	if err != nil {
		return namespace.E(namespace.Invalid, "find", a.keys, err)
	}
	if inside, err := filepath.Rel(dir, keys); err == nil && filepath.IsLocal(inside) {
		return usage("the keys would be in %s, inside the origin, and served to everyone", keys)
	}
	o, err := origin.CreateDir(dir)
	if err != nil {
		return err
	}
	key, made, err := makeKey(keys)
	if err != nil {
		return err
	}
	id := make([]byte, 16)
	if _, err := rand.Read(id); err != nil {
		return namespace.E(namespace.Internal, "make", "origin id", err)
	}
	root := trust.NewRoot(hex.EncodeToString(id), key.Public())
	b, err := trust.Seal(trust.RootName, root, key)
	if err != nil {
		return err
	}
	if err := o.SwapRef(ctx, trust.RootName, nil, b); err != nil {
		return err
	}
	return a.result(map[string]any{"origin": dir, "id": root.ID, "keys": keys, "key_id": key.KeyID(), "key_made": made}, func(w io.Writer) {
		fmt.Fprintf(w, "origin  %s\nkey     %s (%s)\n", dir, filepath.Join(keys, keyFile), key.KeyID())
	})
}

// manifest loads a manifest.
func (w *workshop) manifest(ctx context.Context, d namespace.Digest) (namespace.Manifest, error) {
	b, err := w.GetBlob(ctx, d, namespace.ManifestBytesMax)
	if err != nil {
		return namespace.Manifest{}, err
	}
	return readManifest(b, d)
}
