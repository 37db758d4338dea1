package origin_test

import (
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"testing"
	"time"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/origin"
	"coppice.dev/coppice/namespace/storetest"
)

// A body that drips is given up like one that stalls.
func TestClientDrip(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "100000")
		for range 2000 {
			if _, err := w.Write([]byte("x")); err != nil {
				return
			}
			_ = http.NewResponseController(w).Flush()
			select {
			case <-r.Context().Done():
				return
			case <-time.After(5 * time.Millisecond):
			}
		}
	}))
	defer srv.Close()
	c := newClient(t, srv.URL, origin.ClientOptions{StallTimeout: 200 * time.Millisecond})
	start := time.Now()
	b, err := storetest.ReadAll(t.Context(), c, namespace.Key{Class: namespace.Pack}, 0, -1)
	if !namespace.IsKind(err, namespace.Unavailable) || len(b) == 0 || len(b) > 1000 || time.Since(start) > 5*time.Second {
		t.Errorf("%d bytes after %v: %v", len(b), time.Since(start), err)
	}
}

func TestParseProxy(t *testing.T) {
	t.Setenv("HTTP_PROXY", "http://env.example:3128")
	t.Setenv("HTTPS_PROXY", "")
	t.Setenv("NO_PROXY", "inside.example,10.0.0.0/8")
	for in, want := range map[string]origin.Proxies{
		"":                             {HTTP: "http://env.example:3128", No: "inside.example,10.0.0.0/8"},
		"none":                         {},
		"http://proxy.example:8080":    {HTTP: "http://proxy.example:8080", HTTPS: "http://proxy.example:8080", No: "inside.example,10.0.0.0/8"},
		"socks5://user:pw@127.0.0.1:1": {HTTP: "socks5://user:pw@127.0.0.1:1", HTTPS: "socks5://user:pw@127.0.0.1:1", No: "inside.example,10.0.0.0/8"},
	} {
		if got, err := origin.ParseProxy(in); err != nil || got != want {
			t.Errorf("%q: %+v, %v, want %+v", in, got, err, want)
		}
	}
	for _, in := range []string{"proxy:8080", "ftp://x", "http://", "http://user:secret@:bad port"} {
		_, err := origin.ParseProxy(in)
		if !namespace.IsKind(err, namespace.Invalid) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: %v", in, err)
		}
	}
}

// Requests go through the proxy that was named, but for the hosts that are excepted.
func TestClientProxy(t *testing.T) {
	m := newSite(t, "ours")
	target, err := url.Parse(m.srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	asked := make(chan string, 10)
	forward := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(target) }}
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked <- r.URL.Host
		forward.ServeHTTP(w, r)
	}))
	defer proxy.Close()
	c := newClient(t, "http://origin.example", origin.ClientOptions{Proxies: &origin.Proxies{HTTP: proxy.URL, No: "inside.example"}})
	if b, err := c.Ref(t.Context(), rootRef); err != nil || string(b) != "ours" {
		t.Errorf("through a proxy: %q, %v", b, err)
	}
	if host := <-asked; host != "origin.example" {
		t.Errorf("the proxy was asked for %q", host)
	}
	inside := newClient(t, "http://inside.example", origin.ClientOptions{DialTimeout: time.Second, HeaderTimeout: time.Second,
		Proxies: &origin.Proxies{HTTP: proxy.URL, No: "inside.example"}})
	if _, err := inside.Ref(t.Context(), rootRef); err == nil || len(asked) != 0 {
		t.Errorf("an excepted host: %v, the proxy was asked %d times", err, len(asked))
	}
}
