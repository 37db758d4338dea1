package origin_test

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/origin"
	"coppice.dev/coppice/namespace/storetest"
)

// ask sends one request and returns the response with its body read.
func ask(t testing.TB, method, url string, header ...string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(context.Background(), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(b)
}

func TestHandlerHeaders(t *testing.T) {
	ctx := t.Context()
	for name, src := range map[string]namespace.Origin{"dir": newDir(t), "mem": storetest.NewMem()} {
		t.Run(name, func(t *testing.T) {
			srv := httptest.NewServer(origin.NewHandler(src))
			defer srv.Close()
			hex := packKey.Digest.Hex()
			object := hex[:2] + "/" + hex
			for _, c := range namespace.Classes() {
				if err := src.Put(ctx, namespace.Key{Class: c, Digest: packKey.Digest}, []byte("0123456789")); err != nil {
					t.Fatal(err)
				}
				if err := src.SwapRef(ctx, namespace.RefName{Kind: namespace.TreeRef, Name: "a/" + c.String()}, nil, []byte("r")); err != nil {
					t.Fatal(err)
				}
			}
			for _, c := range []struct{ method, path, header, status, body, cache string }{
				{"GET", "/pack/" + object, "", "200", "0123456789", "immutable"},
				{"HEAD", "/blob/" + object, "", "200", "", "immutable"},
				{"GET", "/pack/" + object, "Range: bytes=2-4", "206", "234", "immutable"},
				{"GET", "/index/" + object, "Range: bytes=8-", "206", "89", "immutable"},
				{"GET", "/pack/" + object, "Range: bytes=-3", "206", "789", "immutable"},
				{"GET", "/pack/" + object, "Range: bytes=10-", "416", "", ""},
				{"GET", "/pack/" + object, `If-None-Match: "` + hex + `"`, "304", "", "immutable"},
				{"GET", "/locator/" + object, "", "200", "0123456789", "no-cache"},
				{"GET", "/ref/tree/a/pack", "", "200", "r", "no-store"},
				{"GET", "/ref/tree/_index.json", "", "200", "", "no-store"},
				{"GET", "/healthz", "", "200", "ok\n", "no-store"},
				{"GET", "/coppice.json", "", "200", "{\"format\":1}\n", "no-store"},
				{"GET", "/", "", "404", "", "no-store"},
				{"GET", "/ref/tree/a", "", "404", "", "no-store"},
				{"GET", "/ref/tree/../tree/a/pack", "", "404", "", "no-store"},
				{"GET", "/ref/nonsense/x", "", "404", "", "no-store"},
				{"GET", "/pack/00/" + hex, "", "404", "", "no-store"},
				{"GET", "/pack/" + strings.ToUpper(object), "", "404", "", "no-store"},
				{"GET", "/lock", "", "404", "", "no-store"},
				{"POST", "/ref/tree/a/pack", "", "405", "", ""},
				{"PUT", "/pack/" + object, "", "405", "", ""},
			} {
				key, value, _ := strings.Cut(c.header, ": ")
				resp, body := ask(t, c.method, srv.URL+c.path, key+"X"[:b2i(key == "")], value)
				if !strings.HasPrefix(resp.Status, c.status) || c.body != "" && body != c.body ||
					!strings.Contains(resp.Header.Get("Cache-Control"), c.cache) {
					t.Errorf("%s %s %s: %s %q %v, want %s %q %q", c.method, c.path, c.header, resp.Status, body, resp.Header, c.status, c.body, c.cache)
				}
			}
		})
	}
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

func TestHandlerLongPoll(t *testing.T) {
	ctx := t.Context()
	d := newDir(t)
	srv := httptest.NewServer(origin.NewHandler(again(t, d)))
	defer srv.Close()
	n := namespace.RefName{Kind: namespace.ChannelRef, Name: "stable"}
	if err := d.SwapRef(ctx, n, nil, []byte("one")); err != nil {
		t.Fatal(err)
	}
	url := srv.URL + "/ref/channel/stable"
	first, _ := ask(t, "GET", url, "Prefer", "wait=30")
	if first.StatusCode != 200 || first.Header.Get("Preference-Applied") != "" {
		t.Errorf("without a tag: %v", first)
	}
	tag := first.Header.Get("Etag")
	start := time.Now()
	same, _ := ask(t, "GET", url, "Prefer", "respond-async, wait=1", "If-None-Match", tag)
	if d := time.Since(start); same.StatusCode != 304 || same.Header.Get("Preference-Applied") != "wait=1" || d < 900*time.Millisecond || d > 3*time.Second {
		t.Errorf("unchanged: %v after %v", same, d)
	}
	go func() {
		time.Sleep(50 * time.Millisecond)
		if err := d.SwapRef(context.Background(), n, []byte("one"), []byte("two")); err != nil {
			t.Error(err)
		}
	}()
	start = time.Now()
	next, body := ask(t, "GET", url, "Prefer", "wait=30", "If-None-Match", tag)
	if d := time.Since(start); next.StatusCode != 200 || body != "two" || d > 5*time.Second {
		t.Errorf("changed: %v %q after %v", next, body, d)
	}
	start = time.Now()
	gone, _ := ask(t, "GET", srv.URL+"/ref/channel/none", "Prefer", "wait=1")
	if d := time.Since(start); gone.StatusCode != 404 || d < 900*time.Millisecond {
		t.Errorf("absent: %v after %v", gone, d)
	}
}

// A source that breaks in the middle is a broken body for the client, of whatever source.
func TestHandlerBreaks(t *testing.T) {
	for name, hide := range map[string]func(namespace.Source) namespace.Source{
		"store": func(s namespace.Source) namespace.Source { return s },
		"plain": func(s namespace.Source) namespace.Source { return struct{ namespace.Source }{s} },
	} {
		for _, tls := range []bool{false, true} {
			m := storetest.NewMem()
			if err := m.Put(t.Context(), packKey, storetest.Bytes(1, 1<<20)); err != nil {
				t.Fatal(err)
			}
			f := &storetest.Faulty{Origin: m, Plan: func(storetest.Call) storetest.Fault { return storetest.Fault{Cut: 500_001} }}
			_, c := serve(t, hide(f), tls)
			if got, err := storetest.ReadAll(t.Context(), c, packKey, 0, -1); !namespace.IsKind(err, namespace.Unavailable) {
				t.Errorf("%s, h2 %v: %d bytes, %v", name, tls, len(got), err)
			}
		}
	}
}

func TestMetrics(t *testing.T) {
	ctx := t.Context()
	m := origin.NewMetrics()
	reg := prometheus.NewPedanticRegistry()
	if err := reg.Register(m); err != nil {
		t.Fatal(err)
	}
	d := newDir(t)
	if err := d.Put(ctx, packKey, []byte("0123456789")); err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(m.Handler(origin.NewHandler(d)))
	src := m.Source(newClient(t, srv.URL, origin.ClientOptions{}), "client")
	if _, err := storetest.ReadAll(ctx, src, packKey, 2, 5); err != nil {
		t.Error(err)
	}
	if _, err := src.Ref(ctx, namespace.RefName{Kind: namespace.TreeRef, Name: "x"}); !namespace.IsKind(err, namespace.NotExist) {
		t.Error(err)
	}
	srv.Close() // waits for the requests to be counted
	got, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	values := map[string]float64{}
	for _, f := range got {
		for _, v := range f.GetMetric() {
			key := f.GetName()
			for _, l := range v.GetLabel() {
				key += " " + l.GetValue()
			}
			values[key] = v.GetCounter().GetValue()
		}
	}
	for key, want := range map[string]float64{
		"coppice_origin_requests_total get-pack ok client":   1,
		"coppice_origin_requests_total get-pack 206 server":  1,
		"coppice_origin_requests_total ref not-exist client": 1,
		"coppice_origin_requests_total ref 404 server":       1,
		"coppice_origin_body_bytes_total get-pack client":    5,
		"coppice_origin_body_bytes_total get-pack server":    5,
	} {
		if values[key] != want {
			t.Errorf("%s = %v, want %v (have %v)", key, values[key], want, values)
		}
	}
}

// BenchmarkGet moves packs over loopback.
func BenchmarkGet(b *testing.B) {
	d := newDir(b)
	body := storetest.Bytes(1, 16<<20)
	if err := d.Put(b.Context(), packKey, body); err != nil {
		b.Fatal(err)
	}
	_, c := serve(b, d, false)
	b.SetBytes(int64(len(body)))
	for b.Loop() {
		r, err := c.Get(b.Context(), packKey, 0, -1)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, r); err != nil {
			b.Fatal(err)
		}
		_ = r.Close()
	}
}
