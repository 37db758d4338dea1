package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"coppice.dev/coppice/internal/disk"
	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/trust"
)

// The plain client of The Update Framework: the updater and the keeper of an endpoint, on any repository
// that is files behind HTTP. Its command line is the one that the framework's conformance suite drives.

func (a *app) trustCommand() *cobra.Command {
	return group("trust", "Look at what is trusted, and test how", a.trustClient())
}

// tufFlags are those of the client.
type tufFlags struct {
	dir, url, target, targetURL, targetDir string
	now                                    func() time.Time
}

func (a *app) trustClient() *cobra.Command {
	f := tufFlags{now: time.Now}
	// The suite tells success from failure by 0 and 1.
	one := func(run func(context.Context, []string) error) func(*cobra.Command, []string) error {
		return func(c *cobra.Command, args []string) error {
			if err := run(c.Context(), args); err != nil {
				report(a.stderr, err)
				return exitCode(1)
			}
			return nil
		}
	}
	initialise := &cobra.Command{
		Use: "init ROOT", Short: "Trust the root in a file", Example: "  coppice trust client --metadata-dir D init root.json",
		Long: "Makes the root in the file ROOT the one that the metadata directory trusts. Asks no repository.",
		Args: exact(1), RunE: one(func(_ context.Context, args []string) error { return f.init(args[0]) }),
	}
	refresh := &cobra.Command{
		Use: "refresh", Short: "Bring the metadata up to date", Example: "  coppice trust client --metadata-dir D --metadata-url U refresh",
		Long: "Fetches and verifies root, timestamp, snapshot and targets. What was accepted is kept, whatever comes after.",
		Args: exact(0), RunE: one(func(ctx context.Context, _ []string) error {
			_, _, err := f.refresh(ctx)
			return err
		}),
	}
	download := &cobra.Command{
		Use: "download", Short: "Fetch a target, verified",
		Example: "  coppice trust client --metadata-dir D --metadata-url U --target-name N --target-base-url T --target-dir O download",
		Long:    "Refreshes, finds the target, and fetches it unless it is there already and right.",
		Args:    exact(0), RunE: one(func(ctx context.Context, _ []string) error { return f.download(ctx) }),
	}
	c := group("client", "A client of The Update Framework for any repository", initialise, refresh, download)
	c.Long = `Runs the endpoint's updater on any repository of The Update Framework that is files behind HTTP, with
the command line of the framework's conformance suite. It exits with 0 or 1, and keeps what it trusts in
--metadata-dir as root.json, timestamp.json, snapshot.json, targets.json and a file for each delegated
role.`
	fl := c.PersistentFlags()
	fl.StringVar(&f.dir, "metadata-dir", "", "`DIR` of the trusted metadata")
	fl.StringVar(&f.url, "metadata-url", "", "`URL` of the repository's metadata")
	fl.StringVar(&f.target, "target-name", "", "`PATH` of the target")
	fl.StringVar(&f.targetURL, "target-base-url", "", "`URL` of the repository's targets")
	fl.StringVar(&f.targetDir, "target-dir", "", "`DIR` that downloads go to")
	return c
}

func (f *tufFlags) need(values map[string]string) error {
	for name, v := range values {
		if v == "" {
			return usage("--%s is missing", name)
		}
	}
	return nil
}

func (f *tufFlags) init(file string) error {
	if err := f.need(map[string]string{"metadata-dir": f.dir}); err != nil {
		return err
	}
	r, err := os.Open(file)
	if err != nil {
		return disk.Error("read", file, err)
	}
	defer r.Close() // it was only read
	b, err := io.ReadAll(io.LimitReader(r, trust.RootBytesMax+1))
	if err != nil {
		return disk.Error("read", file, err)
	}
	if len(b) > trust.RootBytesMax {
		return namespace.E(namespace.Limit, "read", file, fmt.Errorf("more than %d bytes", trust.RootBytesMax))
	}
	return fileKeeper(f.dir).Save(trust.DocRoot, b)
}

func (f *tufFlags) refresh(ctx context.Context) (*trust.Updater, *trust.Trusted, error) {
	if err := f.need(map[string]string{"metadata-dir": f.dir, "metadata-url": f.url}); err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, trustTimeout)
	defer cancel()
	keep := fileKeeper(f.dir)
	clock, err := trust.LoadClock(keep)
	if err != nil {
		return nil, nil, err
	}
	now, _ := clock.Now(f.now())
	u := &trust.Updater{From: tufRepository{strings.TrimRight(f.url, "/")}, Keep: keep}
	t, err := u.Refresh(ctx, now)
	return u, t, err
}

// targetTimeout bounds the download of a target: a gigabyte at the speed of a bad link.
const targetTimeout = 30 * time.Minute

func (f *tufFlags) download(ctx context.Context) error {
	err := f.need(map[string]string{"target-name": f.target, "target-base-url": f.targetURL, "target-dir": f.targetDir})
	if err != nil {
		return err
	}
	name := url.PathEscape(f.target)
	if strings.Trim(name, ".") == "" || len(name) > namespace.NameBytesMax {
		return namespace.E(namespace.Invalid, "download", f.target, errors.New("no file can be called so"))
	}
	u, t, err := f.refresh(ctx)
	if err != nil {
		return err
	}
	found, err := u.Target(ctx, t, f.target)
	if err != nil {
		return err
	}
	path := filepath.Join(f.targetDir, name)
	if have, err := os.Open(path); err == nil {
		err = found.Verify(have)
		have.Close()
		if err == nil {
			return nil
		}
	}
	ctx, cancel := context.WithTimeout(ctx, targetTimeout)
	defer cancel()
	body, err := httpGet(ctx, strings.TrimRight(f.targetURL, "/")+"/"+escapePath(found.Name()))
	if err != nil {
		return err
	}
	defer body.Close() // it is read to its end, or an error says why not
	return saveTarget(path, found, body)
}

// saveTarget writes a target to path, whole and verified or not at all.
func saveTarget(path string, found trust.Target, body io.Reader) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return disk.Error("create", filepath.Dir(path), err)
	}
	part := path + ".part"
	if err := os.Remove(part); err != nil && !errors.Is(err, os.ErrNotExist) {
		return disk.Error("download", part, err)
	}
	p, err := disk.NewFile("download", part, 0o644)
	if err != nil {
		return err
	}
	defer p.Discard()
	if err := found.Verify(io.TeeReader(body, p)); err != nil {
		return err
	}
	if err := p.Commit(); err != nil {
		return err
	}
	if err := os.Rename(part, path); err != nil {
		return disk.Error("download", path, err)
	}
	return nil
}

// escapePath escapes what is no part of a path in a URL, but not the slashes.
func escapePath(p string) string { return (&url.URL{Path: p}).EscapedPath() }

// tufRepository is a trust.Documents behind HTTP, in the layout of the specification.
type tufRepository struct{ base string }

// Root implements trust.Documents.
func (r tufRepository) Root(ctx context.Context, n int64, limit int) ([]byte, error) {
	return r.get(ctx, fmt.Sprintf("%d.root.json", n), limit)
}

// Timestamp implements trust.Documents.
func (r tufRepository) Timestamp(ctx context.Context, limit int) ([]byte, error) {
	return r.get(ctx, "timestamp.json", limit)
}

// Document implements trust.Documents.
func (r tufRepository) Document(ctx context.Context, role string, m trust.Meta, limit int) ([]byte, error) {
	name := url.PathEscape(role) + ".json"
	if m.Consistent {
		name = fmt.Sprintf("%d.%s", m.Version, name)
	}
	return r.get(ctx, name, limit)
}

func (r tufRepository) get(ctx context.Context, name string, limit int) ([]byte, error) {
	body, err := httpGet(ctx, r.base+"/"+name)
	if err != nil {
		return nil, err
	}
	defer body.Close() // all of it was read
	b, err := io.ReadAll(io.LimitReader(body, int64(limit)+1))
	if err != nil {
		return nil, namespace.E(namespace.Unavailable, "get", name, err)
	}
	if len(b) > limit {
		return nil, namespace.E(namespace.Limit, "get", name, fmt.Errorf("more than %d bytes", limit))
	}
	return b, nil
}

// tufHTTP asks for every document anew: what is cached on the way is what the framework is about.
var tufHTTP = &http.Client{Transport: &http.Transport{Proxy: http.ProxyFromEnvironment, ResponseHeaderTimeout: 30 * time.Second, DisableCompression: true}}

func httpGet(ctx context.Context, address string) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, namespace.E(namespace.Invalid, "get", address, err)
	}
	resp, err := tufHTTP.Do(req)
	if err != nil {
		return nil, namespace.E(namespace.Unavailable, "get", address, err)
	}
	if resp.StatusCode == http.StatusOK {
		return resp.Body, nil
	}
	resp.Body.Close()
	kind := namespace.Unavailable
	if resp.StatusCode == http.StatusNotFound || resp.StatusCode == http.StatusForbidden { // what S3 says of what is not there
		kind = namespace.NotExist
	}
	return nil, namespace.E(kind, "get", address, errors.New(resp.Status))
}
