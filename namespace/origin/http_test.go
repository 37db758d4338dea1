package origin_test

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/origin"
	"coppice.dev/coppice/namespace/storetest"
)

var packKey = namespace.Key{Class: namespace.Pack, Digest: namespace.Sum([]byte("p"))}

// lie serves one handler for everything, and returns a client of it.
func lie(t *testing.T, fn http.HandlerFunc) *origin.Client {
	t.Helper()
	srv := httptest.NewServer(fn)
	t.Cleanup(srv.Close)
	return newClient(t, srv.URL, origin.ClientOptions{HeaderTimeout: 300 * time.Millisecond, StallTimeout: 300 * time.Millisecond})
}

// Whatever a server answers, the client says it with the right Kind and in bounded time.
func TestClientOfBadServers(t *testing.T) {
	ctx := t.Context()
	stop := make(chan struct{})
	defer close(stop)
	header := func(kv ...string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			for i := 0; i+1 < len(kv); i += 2 {
				w.Header().Set(kv[i], kv[i+1])
			}
			w.WriteHeader(http.StatusPartialContent)
			_, _ = w.Write(make([]byte, 10))
		}
	}
	for name, c := range map[string]struct {
		fn   http.HandlerFunc
		want namespace.Kind
	}{
		"portal": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/html; charset=utf-8")
			_, _ = io.WriteString(w, "<html>log in</html>")
		}, namespace.Unavailable},
		"silence": {func(_ http.ResponseWriter, r *http.Request) { wait(r, stop) }, namespace.Unavailable},
		"stall": {func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "10")
			_, _ = w.Write([]byte("abc"))
			w.(http.Flusher).Flush()
			wait(r, stop)
		}, namespace.Unavailable},
		"short": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "10")
			_, _ = w.Write([]byte("abc"))
		}, namespace.Unavailable},
		"abort":            {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, namespace.Unavailable},
		"wrong range":      {header("Content-Range", "bytes 6-15/100"), namespace.Unavailable},
		"no range":         {header(), namespace.Unavailable},
		"garbled range":    {header("Content-Range", "bytes 5-x/100"), namespace.Unavailable},
		"long range":       {header("Content-Range", "bytes 5-104/1000", "Content-Length", "100"), namespace.Unavailable},
		"short range":      {header("Content-Range", "bytes 5-9/100", "Content-Length", "5"), namespace.Unavailable},
		"gzip":             {func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Content-Encoding", "gzip") }, namespace.Unavailable},
		"redirect loop":    {func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, r.URL.Path, 302) }, namespace.Unavailable},
		"directory":        {func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, r.URL.Path+"/", 301) }, namespace.NotExist},
		"too big":          {func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Content-Length", "99999999999") }, namespace.Limit},
		"teapot":           {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(418) }, namespace.Invalid},
		"bad gateway":      {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(502) }, namespace.Unavailable},
		"created":          {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(201) }, namespace.Unavailable},
		"unasked 304":      {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(304) }, namespace.Unavailable},
		"too many, please": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(429) }, namespace.Unavailable},
		"log in":           {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(401) }, namespace.Denied},
		"short of range": {func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write([]byte("abc"))
		}, namespace.Invalid},
	} {
		t.Run(name, func(t *testing.T) {
			start := time.Now()
			_, err := storetest.ReadAll(ctx, lie(t, c.fn), packKey, 5, 10)
			if !namespace.IsKind(err, c.want) {
				t.Errorf("got %v (%v), want %v", err, namespace.KindOf(err), c.want)
			}
			if d := time.Since(start); d > 5*time.Second {
				t.Errorf("took %v", d)
			}
		})
	}
}

func wait(r *http.Request, stop chan struct{}) {
	select {
	case <-r.Context().Done():
	case <-stop:
	}
}

// A server may ignore ranges; then the client skips.
func TestClientSkips(t *testing.T) {
	body := storetest.Bytes(1, 300_000)
	c := lie(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(body) })
	got, err := storetest.ReadAll(t.Context(), c, packKey, 100_000, 50_000)
	if err != nil || string(got) != string(body[100_000:150_000]) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

// What has no announced length is bounded nevertheless.
func TestClientBoundsStreams(t *testing.T) {
	c := lie(t, func(w http.ResponseWriter, r *http.Request) {
		for r.Context().Err() == nil {
			if _, err := w.Write(make([]byte, 1<<20)); err != nil {
				return
			}
		}
	})
	_, err := c.Ref(t.Context(), namespace.RefName{Kind: namespace.TreeRef, Name: "x"})
	if !namespace.IsKind(err, namespace.Limit) {
		t.Errorf("endless ref: %v", err)
	}
	body, err := c.Get(t.Context(), packKey, 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	if _, err = io.Copy(io.Discard, body); !namespace.IsKind(err, namespace.Limit) {
		t.Errorf("endless pack: %v", err)
	}
}

func TestClientUnreachable(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := ln.Addr().String()
	_ = ln.Close()
	c := newClient(t, "http://user:secret@"+addr, origin.ClientOptions{})
	_, err = c.Ref(t.Context(), namespace.RefName{Kind: namespace.TreeRef, Name: "x"})
	if !namespace.IsKind(err, namespace.Unavailable) || strings.Contains(err.Error(), "secret") {
		t.Errorf("nobody listens: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	stop := make(chan struct{})
	defer close(stop)
	slow := lie(t, func(_ http.ResponseWriter, r *http.Request) { wait(r, stop) })
	if _, err := slow.Get(ctx, packKey, 0, -1); !namespace.IsKind(err, namespace.Unavailable) {
		t.Errorf("deadline: %v", err)
	}
}

// Every Kind survives the wire, and has a status that caches and people understand.
func TestKindsCrossTheWire(t *testing.T) {
	for _, k := range namespace.Kinds() {
		m := &storetest.Faulty{Origin: storetest.NewMem(), Plan: func(storetest.Call) storetest.Fault {
			return storetest.Fault{Err: namespace.E(k, "plan", "", nil)}
		}}
		_, c := serve(t, m, false)
		if _, err := c.Refs(t.Context(), namespace.TreeRef); k != namespace.NotExist && !namespace.IsKind(err, k) {
			t.Errorf("%v arrived as %v", k, err)
		}
		if s := origin.HTTPStatus(k); s < 400 || k != namespace.Internal && s == 500 {
			t.Errorf("%v has status %d", k, s)
		}
		if got := origin.StatusKind(origin.HTTPStatus(k), http.Header{}); k != namespace.Internal && k != namespace.Corrupt &&
			k != namespace.Canceled && got != k {
			t.Errorf("%v, without the header, reads as %v", k, got)
		}
	}
}

func TestCheck(t *testing.T) {
	d := newDir(t)
	srv, c := serve(t, d, false)
	if err := c.Check(t.Context()); err != nil {
		t.Error(err)
	}
	if err := newClient(t, srv.URL+"/deeper", origin.ClientOptions{}).Check(t.Context()); !namespace.IsKind(err, namespace.NotExist) {
		t.Errorf("not an origin: %v", err)
	}
	if err := lie(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, `{"format":9}`) }).Check(t.Context()); !namespace.IsKind(err, namespace.Invalid) {
		t.Errorf("newer: %v", err)
	}
}

// A directory is an origin for any static server. This one is nginx.
func TestNginx(t *testing.T) {
	storetest.TestSource(t, func(t *testing.T) (namespace.Origin, namespace.Source) {
		d := newDir(t)
		return d, newClient(t, startNginx(t, d.Path()), origin.ClientOptions{})
	})
	storetest.TestWait(t, func(t *testing.T) (namespace.RefWriter, namespace.RefWaiter) {
		d := newDir(t)
		return d, newClient(t, startNginx(t, d.Path()), origin.ClientOptions{Poll: 10 * time.Millisecond})
	})
}

// startNginx serves dir and returns the URL.
func startNginx(t *testing.T, dir string) string {
	t.Helper()
	exe, err := exec.LookPath("nginx")
	if err != nil {
		if exe = "/usr/sbin/nginx"; !exists(exe) {
			t.Fatalf("this test needs nginx (Debian: nginx-light): %v", err)
		}
	}
	// In a directory of its own, readable for the unprivileged worker.
	work, err := os.MkdirTemp("", "coppice-nginx")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(work) })
	socket := filepath.Join(work, rand.Text()[:6])
	conf := fmt.Sprintf("user root;\ndaemon off;\nmaster_process off;\nworker_processes 1;\npid %[1]s/pid;\nerror_log %[1]s/error.log;\n"+
		"events {}\nhttp { keepalive_requests 1000000; \n access_log off;\n default_type application/octet-stream;\n client_body_temp_path %[1]s/a;\n proxy_temp_path %[1]s/b;\n"+
		" fastcgi_temp_path %[1]s/c;\n uwsgi_temp_path %[1]s/d;\n scgi_temp_path %[1]s/e;\n server { listen unix:%[2]s; root %[3]s; }\n}\n",
		work, socket, dir)
	confPath := filepath.Join(work, "nginx.conf")
	if err := os.WriteFile(confPath, []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, "-c", confPath, "-p", work, "-e", filepath.Join(work, "error.log"))
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return forward(t, socket)
}

// listens reports whether somebody accepts connections at a socket: it exists a moment before.
func listens(socket string) bool {
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return false
	}
	_ = conn.Close()
	return true
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// forward makes a unix socket reachable by TCP: nginx cannot listen on a port that nobody chose.
func forward(t *testing.T, socket string) string {
	t.Helper()
	for start := time.Now(); !listens(socket); time.Sleep(time.Millisecond) {
		if time.Since(start) > 10*time.Second {
			t.Fatal("nginx does not start")
		}
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	go func() {
		for {
			down, err := ln.Accept()
			if err != nil {
				return
			}
			go pipe(down, socket)
		}
	}()
	return "http://" + ln.Addr().String()
}

func pipe(down net.Conn, socket string) {
	up, err := net.Dial("unix", socket)
	if err != nil {
		_ = down.Close()
		return
	}
	go func() {
		_, _ = io.Copy(up, down)
		_ = up.Close()
	}()
	_, _ = io.Copy(down, up)
	_ = down.Close()
}
