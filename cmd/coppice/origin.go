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

	"coppice.dev/coppice/builder"
	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/origin"
	"coppice.dev/coppice/namespace/trust"
)

func (a *app) originCommand() *cobra.Command {
	return group("origin", "Make, serve and check an origin", a.originInit(), a.originServe(), a.originVerify(), a.originGC())
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

func (a *app) originVerify() *cobra.Command {
	return &cobra.Command{
		Use:   "verify",
		Short: "Check every object and reference of an origin",
		Long: `Reads every object of the origin and checks digests, formats, signatures, and that everything a
version refers to is there. Prints what is wrong, an object a line; exit status 11 if anything is.`,
		Example: "  coppice origin verify --origin /srv/origin",
		Args:    exact(0),
		RunE:    func(c *cobra.Command, _ []string) error { return a.verifyOrigin(c.Context()) },
	}
}

func (a *app) verifyOrigin(ctx context.Context) error {
	w, err := a.openWorkshop(ctx)
	if err != nil {
		return err
	}
	roots, bad, err := w.roots(ctx)
	if err != nil {
		return err
	}
	bar := a.progress("verifying", "objects")
	rep, err := builder.VerifyStore(ctx, w.origin, roots, builder.VerifyOptions{
		Progress: func(objects, bytes uint64) { bar.Set(objects, 0, bytes, 0) },
		Problem:  func(subject string, err error) { bad = append(bad, subject+": "+err.Error()) },
	})
	bar.Close()
	if err != nil {
		return err
	}
	err = a.result(map[string]any{"objects": rep.Objects, "bytes": rep.Bytes, "problems": bad}, func(out io.Writer) {
		for _, p := range bad {
			fmt.Fprintln(out, p)
		}
		fmt.Fprintf(out, "%d objects, %s, %d problems\n", rep.Objects, size(rep.Bytes), len(bad))
	})
	if err == nil && len(bad) > 0 {
		err = namespace.E(namespace.Corrupt, "verify", w.dir, fmt.Errorf("%d problems", len(bad)))
	}
	return err
}

// roots returns the root catalogs that the origin's signed refs name, and what is wrong with the
// refs and manifests themselves.
func (w *workshop) roots(ctx context.Context) (roots []namespace.Digest, bad []string, err error) {
	bad = []string{}
	note := func(err error) {
		if err != nil {
			bad = append(bad, err.Error())
		}
	}
	trees, err := w.origin.Refs(ctx, namespace.TreeRef)
	if err != nil {
		return nil, nil, err
	}
	for _, name := range trees {
		t, err := w.refs.Tree(ctx, name)
		note(err)
		for _, v := range t.Versions {
			roots = append(roots, v.Root)
		}
	}
	spaces, err := w.origin.Refs(ctx, namespace.NamespaceRef)
	if err != nil {
		return nil, nil, err
	}
	for _, name := range spaces {
		ns, err := w.refs.Namespace(ctx, name)
		note(err)
		for _, v := range ns.Versions {
			m, err := w.manifest(ctx, v.Manifest)
			if note(err); err == nil {
				roots = append(roots, m.Root)
			}
		}
	}
	channels, err := w.origin.Refs(ctx, namespace.ChannelRef)
	if err != nil {
		return nil, nil, err
	}
	p := trust.Publisher{Refs: w.refs, Blobs: w}
	for _, name := range channels {
		note(p.History(ctx, name, func(ptr namespace.Pointer) bool {
			_, err := w.manifest(ctx, ptr.Manifest)
			note(err)
			return true
		}))
	}
	return roots, bad, nil
}

// manifest loads a manifest.
func (w *workshop) manifest(ctx context.Context, d namespace.Digest) (namespace.Manifest, error) {
	b, err := w.GetBlob(ctx, d, namespace.ManifestBytesMax)
	if err != nil {
		return namespace.Manifest{}, err
	}
	return readManifest(b, d)
}
