package main

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/origin"
	"coppice.dev/coppice/namespace/trust"
)

func (a *app) originCommand() *cobra.Command {
	return group("origin", "Make, serve and check an origin", a.originInit(), a.originServe(), a.originVerify(), a.originGC(), a.originSync(), a.originRefresh(), a.originPolicy())
}

func (a *app) originInit() *cobra.Command {
	return &cobra.Command{
		Use:   "init DIR",
		Short: "Make an empty origin and its signing keys",
		Long: `Makes an empty origin in DIR, which must not exist or be empty, and the ed25519 keys that sign what
is published there. Keys are never inside DIR, which is served to everyone: they go to --keys, or to
DIR.keys. A key that is there already is used, never overwritten.

  publisher          trees and namespaces
  pointer            what channels name
  online             snapshot and timestamp, which a cron job or the server renews
  offline/root       whose keys count
  offline/vouching   which namespace versions a channel may name at all

The two in offline decide over the others: move them to another machine, and sign there what
` + "`request create`" + ` asks for. They are encrypted if a passphrase is given (--passphrase-file,
COPPICE_PASSPHRASE, or at the terminal).`,
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
	made, anyMade, err := a.makeKeys(keys)
	if err != nil {
		return err
	}
	id := make([]byte, 16)
	if _, err := rand.Read(id); err != nil {
		return namespace.E(namespace.Internal, "make", "origin id", err)
	}
	start := trust.Start{ID: hex.EncodeToString(id), Keys: map[trust.Role][]ed25519.PublicKey{}, Names: map[string]string{}}
	p := trust.Publisher{Refs: trust.Refs{Reader: o, Blobs: originBlobs{o}}, Writer: o, By: signerName(), Now: time.Now}
	for i, k := range made {
		for _, role := range initKeys[i].roles {
			start.Keys[role] = append(start.Keys[role], k.Public())
		}
		start.Names[k.KeyID()] = p.By
		p.Signers = append(p.Signers, k)
	}
	root, err := p.Init(ctx, start)
	if err != nil {
		return err
	}
	if made[len(made)-1].locked == nil && !a.quiet {
		a.note("the keys in %s are not encrypted: with --passphrase-file they would be, and on another machine nobody here could use them",
			filepath.Join(keys, offlineDir))
	}
	publisher := made[0]
	return a.result(map[string]any{"origin": dir, "id": root.ID, "keys": keys, "key_id": publisher.KeyID(), "key_made": anyMade}, func(w io.Writer) {
		fmt.Fprintf(w, "origin  %s\nkey     %s (%s)\noffline %s\n", dir, publisher.path, publisher.KeyID()[:16], filepath.Join(keys, offlineDir))
	})
}

// makeKeys returns the keys of a new origin, in the order of initKeys, and whether any was made.
func (a *app) makeKeys(dir string) (all []*keyRing, any bool, err error) {
	pass, err := a.newPassphrase()
	if err != nil {
		return nil, false, err
	}
	for _, want := range initKeys {
		use := pass
		if !strings.HasPrefix(want.name, offlineDir) {
			use = nil // used by machines, with nobody at hand
		}
		k, made, err := a.makeKey(filepath.Join(dir, want.name+keySuffix), use)
		if err != nil {
			return nil, false, err
		}
		all, any = append(all, k), any || made
	}
	return all, any, nil
}

// manifest loads a manifest.
func (w *workshop) manifest(ctx context.Context, d namespace.Digest) (namespace.Manifest, error) {
	b, err := w.GetBlob(ctx, d, namespace.ManifestBytesMax)
	if err != nil {
		return namespace.Manifest{}, err
	}
	return readManifest(b, d)
}
