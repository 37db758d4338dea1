package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
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

func (a *app) originServe() *cobra.Command {
	var listen string
	c := &cobra.Command{
		Use:   "serve DIR",
		Short: "Serve an origin over HTTP",
		Long: `Serves the origin in DIR, read-only, over HTTP. An origin is static files, so any web server
can do this; this one also tells followers of a new pointer within milliseconds, and has
/healthz and /metrics. Signatures protect the content, not this connection: put a TLS proxy in
front where the reader's privacy matters.`,
		Example: "  coppice origin serve /srv/origin --listen :8080",
		Args:    exact(1),
		RunE: func(c *cobra.Command, args []string) error {
			return a.serveOrigin(c.Context(), args[0], listen)
		},
	}
	c.Flags().StringVar(&listen, "listen", "127.0.0.1:8080", "`ADDR` to listen on; port 0 chooses one")
	return c
}

func (a *app) serveOrigin(ctx context.Context, dir, listen string) error {
	o, err := origin.OpenDir(dir)
	if err != nil {
		return err
	}
	ln, err := net.Listen("tcp", listen)
	if err != nil {
		return namespace.E(namespace.Unavailable, "listen on", listen, err)
	}
	metrics := origin.NewMetrics()
	registry := prometheus.NewRegistry()
	registry.MustRegister(metrics)
	mux := http.NewServeMux()
	mux.Handle("/metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	mux.Handle("/", metrics.Handler(origin.NewHandler(o)))
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute,
		BaseContext: func(net.Listener) context.Context { return ctx }}
	a.note("serving %s on http://%s", dir, ln.Addr())
	stop := context.AfterFunc(ctx, func() {
		grace, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_ = srv.Shutdown(grace)
	})
	defer stop()
	if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		return namespace.E(namespace.Internal, "serve", dir, err)
	}
	return nil
}

// manifest loads a manifest.
func (w *workshop) manifest(ctx context.Context, d namespace.Digest) (namespace.Manifest, error) {
	b, err := w.GetBlob(ctx, d, namespace.ManifestBytesMax)
	if err != nil {
		return namespace.Manifest{}, err
	}
	return readManifest(b, d)
}
