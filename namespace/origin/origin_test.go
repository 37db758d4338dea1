package origin_test

import (
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/origin"
	"coppice.dev/coppice/namespace/storetest"
)

func newDir(t testing.TB) *origin.Dir {
	t.Helper()
	d, err := origin.CreateDir(filepath.Join(t.TempDir(), "origin"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

// again opens d's directory as another process would.
func again(t testing.TB, d *origin.Dir) *origin.Dir {
	t.Helper()
	d2, err := origin.OpenDir(d.Path())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d2.Close() })
	return d2
}

func newClient(t testing.TB, url string, opts origin.ClientOptions) *origin.Client {
	t.Helper()
	c, err := origin.NewClient(url, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func serve(t testing.TB, src namespace.Source, tls bool) (*httptest.Server, *origin.Client) {
	t.Helper()
	srv := httptest.NewUnstartedServer(origin.NewHandler(src))
	opts := origin.ClientOptions{Wait: 2 * time.Second, Poll: 20 * time.Millisecond}
	if tls {
		srv.EnableHTTP2 = true
		srv.StartTLS()
		opts.TLS = srv.Client().Transport.(*http.Transport).TLSClientConfig
	} else {
		srv.Start()
	}
	t.Cleanup(srv.Close)
	c := newClient(t, srv.URL, opts)
	t.Cleanup(func() { _ = c.Close() })
	return srv, c
}

func TestDir(t *testing.T) {
	storetest.TestSource(t, func(t *testing.T) (namespace.Origin, namespace.Source) {
		d := newDir(t)
		return d, again(t, d)
	})
	storetest.TestStore(t, func(t *testing.T) namespace.Store { return newDir(t) })
	storetest.TestAger(t, func(t *testing.T) namespace.Store { return newDir(t) })
	storetest.TestRefs(t, func(t *testing.T) [2]storetest.RefStore {
		d := newDir(t)
		return [2]storetest.RefStore{d, again(t, d)}
	})
	storetest.TestWait(t, func(t *testing.T) (namespace.RefWriter, namespace.RefWaiter) {
		d := newDir(t)
		return d, again(t, d)
	})
}

func TestClient(t *testing.T) {
	sources := map[string]func(t *testing.T) (namespace.Origin, namespace.Source, bool){
		"Dir":   func(t *testing.T) (namespace.Origin, namespace.Source, bool) { d := newDir(t); return d, d, false },
		"DirH2": func(t *testing.T) (namespace.Origin, namespace.Source, bool) { d := newDir(t); return d, d, true },
		"Mem": func(*testing.T) (namespace.Origin, namespace.Source, bool) {
			m := storetest.NewMem()
			return m, m, false
		},
		// A source that can only do what a Source must.
		"Plain": func(*testing.T) (namespace.Origin, namespace.Source, bool) {
			m := storetest.NewMem()
			return m, struct{ namespace.Source }{m}, false
		},
	}
	for name, open := range sources {
		t.Run(name, func(t *testing.T) {
			storetest.TestSource(t, func(t *testing.T) (namespace.Origin, namespace.Source) {
				w, src, tls := open(t)
				_, c := serve(t, src, tls)
				return w, c
			})
			storetest.TestWait(t, func(t *testing.T) (namespace.RefWriter, namespace.RefWaiter) {
				w, src, tls := open(t)
				_, c := serve(t, src, tls)
				return w, c
			})
		})
	}
}

func TestDecorators(t *testing.T) {
	opts := origin.RetryOptions{First: time.Millisecond, Max: 5 * time.Millisecond}
	t.Run("Retry", func(t *testing.T) {
		storetest.TestSource(t, func(*testing.T) (namespace.Origin, namespace.Source) {
			m := storetest.NewMem()
			return m, origin.Retry(m, opts)
		})
		storetest.TestWait(t, func(*testing.T) (namespace.RefWriter, namespace.RefWaiter) {
			m := storetest.NewMem()
			return m, origin.Retry(m, opts).(namespace.RefWaiter)
		})
	})
	t.Run("RetryOfFaulty", func(t *testing.T) {
		storetest.TestSource(t, func(*testing.T) (namespace.Origin, namespace.Source) {
			m := storetest.NewMem()
			f := &storetest.Faulty{Origin: m, Plan: everyOther()}
			return m, origin.Retry(f, opts)
		})
	})
	t.Run("Metrics", func(t *testing.T) {
		storetest.TestSource(t, func(*testing.T) (namespace.Origin, namespace.Source) {
			m := storetest.NewMem()
			return m, origin.NewMetrics().Source(m, "client")
		})
	})
}

func TestOpen(t *testing.T) {
	d := newDir(t)
	srv, _ := serve(t, d, false)
	n := namespace.RefName{Kind: namespace.TreeRef, Name: "debian"}
	if err := d.SwapRef(t.Context(), n, nil, []byte("record")); err != nil {
		t.Fatal(err)
	}
	for _, location := range []string{d.Path(), "file://" + d.Path(), srv.URL, srv.URL + "/"} {
		c, err := origin.Open(t.Context(), location, origin.Options{Metrics: origin.NewMetrics()})
		if err != nil {
			t.Fatal(err)
		}
		if got, err := c.Ref(t.Context(), n); err != nil || string(got) != "record" {
			t.Errorf("%s: %q, %v", location, got, err)
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
	w, err := origin.OpenWritable(t.Context(), d.Path())
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Error(err)
	}
}

func TestOpenErrors(t *testing.T) {
	newer := newDir(t)
	if err := os.WriteFile(filepath.Join(newer.Path(), "coppice.json"), []byte(`{"format":2}`), 0o644); err != nil {
		t.Fatal(err)
	}
	garbage := newDir(t)
	if err := os.WriteFile(filepath.Join(garbage.Path(), "coppice.json"), []byte(`<html>`), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		location string
		want     namespace.Kind
		hint     string
	}{
		{"", namespace.Invalid, "--origin"},
		{t.TempDir(), namespace.NotExist, "origin init"},
		{filepath.Join(t.TempDir(), "no"), namespace.NotExist, "origin init"},
		{newer.Path(), namespace.Invalid, "newer coppice"},
		{garbage.Path(), namespace.Corrupt, ""},
		{"s3://bucket/prefix", namespace.Invalid, ""},
		{"ftp://host/", namespace.Invalid, "http"},
		{"http://", namespace.Invalid, ""},
		{"http://host/?q=1", namespace.Invalid, ""},
	} {
		_, err := origin.Open(t.Context(), c.location, origin.Options{})
		if !namespace.IsKind(err, c.want) || !strings.Contains(namespace.HintOf(err), c.hint) {
			t.Errorf("open %q: %v (%v, hint %q), want %v, hint with %q",
				c.location, err, namespace.KindOf(err), namespace.HintOf(err), c.want, c.hint)
		}
	}
	if _, err := origin.OpenWritable(t.Context(), "http://host/"); !namespace.IsKind(err, namespace.Invalid) {
		t.Errorf("open an URL for writing: %v", err)
	}
	if _, err := origin.CreateDir(newer.Path()); !namespace.IsKind(err, namespace.Exist) {
		t.Errorf("create over something: %v", err)
	}
}
