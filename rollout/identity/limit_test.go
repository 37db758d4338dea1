package identity_test

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/rollout/identity"
)

// dial connects to a server of [serve].
func dial(t *testing.T, url string) net.Conn {
	c, err := net.Dial("tcp", strings.TrimPrefix(url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(15 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return c
}

var ok = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") })

func TestAttackSlowHeader(t *testing.T) {
	url := serve(t, ok, identity.Limits{HeaderTimeout: 100 * time.Millisecond}, nil)
	c := dial(t, url)
	if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n"); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	if _, err := io.ReadAll(c); err != nil || time.Since(start) > 10*time.Second {
		t.Fatalf("after %v: %v", time.Since(start), err)
	}
}

func TestAttackSlowHandshake(t *testing.T) {
	s := newSite(t)
	url := serve(t, ok, identity.Limits{HeaderTimeout: 100 * time.Millisecond}, s.pair)
	c := dial(t, strings.Replace(url, "https", "http", 1))
	if _, err := c.Write([]byte{0x16, 3, 1}); err != nil { // the beginning of a ClientHello
		t.Fatal(err)
	}
	if _, err := io.ReadAll(c); err != nil {
		t.Fatal(err)
	}
}

func TestAttackSlowBody(t *testing.T) {
	url := serve(t, identity.Body(1<<20, ok), identity.Limits{BodyTimeout: 100 * time.Millisecond}, nil)
	c := dial(t, url)
	if _, err := io.WriteString(c, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nslow"); err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(c)
	if err != nil || !strings.HasPrefix(string(b), "HTTP/1.1 408 ") {
		t.Fatalf("%q, %v", b, err)
	}
}

func TestAttackHeaderBomb(t *testing.T) {
	url := serve(t, ok, identity.Limits{}, nil)
	for name, header := range map[string]string{
		"many":  strings.Repeat("X-Y: z\r\n", 10000),
		"large": "X-Y: " + strings.Repeat("z", 64<<10) + "\r\n",
	} {
		c := dial(t, url)
		_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n"+header+"\r\n") // it may be cut off
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil || resp.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
			t.Fatalf("%s: %v, %v", name, resp, err)
		}
	}
}

func TestAttackBodyTooLarge(t *testing.T) {
	served := 0
	url := serve(t, identity.Body(1000, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		served++
		ok(w, r)
	})), identity.Limits{}, nil)
	c := http.Client{Timeout: 10 * time.Second}
	defer c.CloseIdleConnections()
	for name, body := range map[string]io.Reader{
		"announced": strings.NewReader(strings.Repeat("x", 1001)),
		"chunked":   struct{ io.Reader }{strings.NewReader(strings.Repeat("x", 100_000))},
	} {
		resp, err := c.Post(url, "text/plain", body)
		if err != nil || resp.StatusCode != http.StatusRequestEntityTooLarge {
			t.Fatalf("%s: %v, %v", name, resp, err)
		}
		resp.Body.Close()
	}
	resp, err := c.Post(url, "text/plain", strings.NewReader(strings.Repeat("x", 1000)))
	if err != nil || resp.StatusCode != 200 || served != 1 {
		t.Fatalf("%v, %v, served %d", resp, err, served)
	}
	resp.Body.Close()
}

// TestAttackBodyNobodyWants sends one to a handler that reads none, as an origin's are.
func TestAttackBodyNobodyWants(t *testing.T) {
	var read int64
	url := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		read, _ = io.Copy(io.Discard, r.Body)
		ok(w, r)
	}), identity.Limits{}, nil)
	c := http.Client{Timeout: 10 * time.Second}
	defer c.CloseIdleConnections()
	resp, err := c.Post(url, "text/plain", io.LimitReader(rand.Reader, 1<<20))
	if err == nil {
		resp.Body.Close()
	}
	if read > 8<<10 {
		t.Fatalf("%d bytes came to the handler", read)
	}
}

// TestAttackSlowReader takes nothing of a long answer, of a file and of memory.
func TestAttackSlowReader(t *testing.T) {
	file := filepath.Join(t.TempDir(), "large")
	if err := os.WriteFile(file, make([]byte, 64<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	url := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var err error
		if r.URL.Path == "/file" {
			var f *os.File
			if f, err = os.Open(file); err == nil {
				_, err = io.CopyN(w, f, 64<<20)
				f.Close()
			}
		} else {
			_, err = w.Write(make([]byte, 64<<20))
		}
		ended <- err
	}), identity.Limits{StallTimeout: 200 * time.Millisecond}, nil)
	for _, path := range []string{"/file", "/memory"} {
		c := dial(t, url)
		if _, err := io.WriteString(c, "GET "+path+" HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-ended:
			if err == nil {
				t.Fatalf("%s: it was all written", path)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("%s: the server still waits", path)
		}
	}
}

// TestSlowButSteadyReader takes longer than the time-out for the whole, but not for its parts.
func TestSlowButSteadyReader(t *testing.T) {
	file := filepath.Join(t.TempDir(), "large")
	want := make([]byte, 8<<20)
	if _, err := rand.Read(want); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, want, 0o600); err != nil {
		t.Fatal(err)
	}
	url := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { http.ServeFile(w, r, file) }),
		identity.Limits{StallTimeout: 400 * time.Millisecond}, nil)
	c := dial(t, url).(*net.TCPConn)
	if err := c.SetReadBuffer(64 << 10); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\nRange: bytes=1-\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for start := time.Now(); err == nil; _, err = io.CopyN(&got, resp.Body, 128<<10) {
		if time.Since(start) < 900*time.Millisecond {
			<-tick.C
		}
	}
	if err != io.EOF || !bytes.Equal(got.Bytes(), want[1:]) {
		t.Fatalf("%d bytes, %v", got.Len(), err)
	}
}

func TestAttackTooManyConnections(t *testing.T) {
	url := serve(t, ok, identity.Limits{ClientConns: 3}, nil)
	ask := func(c net.Conn) error {
		if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
			return err
		}
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, resp.Body)
		return err
	}
	var conns []net.Conn
	for range 3 {
		c := dial(t, url)
		if err := ask(c); err != nil {
			t.Fatal(err)
		}
		conns = append(conns, c)
	}
	if err := ask(dial(t, url)); err == nil {
		t.Fatal("a fourth connection is served")
	}
	conns[0].Close()
	for start := time.Now(); ; { // the server hears of it by itself
		if err := ask(dial(t, url)); err == nil {
			break
		} else if time.Since(start) > 10*time.Second {
			t.Fatal(err)
		}
	}
	if err := ask(conns[1]); err != nil {
		t.Fatal(err)
	}
}

func TestAttackTooManyRequests(t *testing.T) {
	url := serve(t, ok, identity.Limits{Rate: 0.001, Burst: 5}, nil)
	c := http.Client{Timeout: 10 * time.Second}
	defer c.CloseIdleConnections()
	var got []string
	for range 7 {
		resp, err := c.Get(url)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		got = append(got, fmt.Sprint(resp.StatusCode))
		if resp.StatusCode != 200 && (resp.Header.Get("Retry-After") == "" || resp.Header.Get("Coppice-Kind") != "unavailable") {
			t.Fatalf("%v", resp.Header)
		}
	}
	if strings.Join(got, " ") != "200 200 200 200 200 429 429" {
		t.Fatal(got)
	}
}

func TestRateTableIsBounded(t *testing.T) {
	r := identity.NewRate(0.001, 1)
	if !r.Allow("first") || r.Allow("first") {
		t.Fatal("the burst is not 1")
	}
	for i := range 100_000 {
		r.Allow(fmt.Sprint(i))
		if i%1000 == 0 && r.Allow("first") { // whoever keeps coming is not forgotten
			t.Fatal("the first client was forgotten")
		}
	}
	if n := identity.RateClientsForTest(r); n > 20_000 {
		t.Fatalf("%d clients are remembered", n)
	}
}

func TestClientsOfAddresses(t *testing.T) {
	for remote, want := range map[string]string{
		"192.0.2.7:1234":              "192.0.2.7",
		"[::ffff:192.0.2.7]:1234":     "192.0.2.7",
		"[2001:db8:1:2:3:4:5:6]:1234": "2001:db8:1:2::/64",
		"[fe80::1%eth0]:1":            "fe80::/64",
		"@":                           "@",
	} {
		if got := identity.ClientOfForTest(remote); got != want {
			t.Errorf("%s: %s, want %s", remote, got, want)
		}
	}
}

func TestAttackJSONAmbiguities(t *testing.T) {
	s := newSite(t)
	c, d, err := client(t, s.url, s.pinned(), nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, body := range map[string]string{
		"duplicate key":     `{"invitation":"a","invitation":"b","id":"x","request":""}`,
		"folded case":       `{"Invitation":"a","id":"x","request":""}`,
		"folded by Unicode": `{"invitation":"a","id":"x","reque` + "\u017f" + `t":""}`,
		"unknown key":       `{"invitation":"a","id":"x","request":"","admin":true}`,
		"trailing value":    `{"invitation":"a","id":"x","request":""}{}`,
		"trailing brace":    `{"invitation":"a","id":"x","request":""}}`,
		"NaN":               `{"invitation":NaN,"id":"x","request":""}`,
		"huge number":       `{"invitation":1e999999,"id":"x","request":""}`,
		"array":             `[]`,
		"null":              ``,
		"not UTF-8":         "{\"invitation\":\"\xff\",\"id\":\"x\",\"request\":\"\"}",
		"deep":              strings.Repeat(`[`, 8000) + strings.Repeat(`]`, 8000),
		"byte order mark":   "\ufeff{}",
	} {
		resp, err := c.Post(d.URL+"/identity/v1/enrol", "application/json", strings.NewReader(body))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusBadRequest || resp.Header.Get("Coppice-Kind") != "invalid" {
			t.Errorf("%s: %s", name, resp.Status)
		}
	}
	resp, err := c.Post(d.URL+"/identity/v1/enrol", "application/json", strings.NewReader(strings.Repeat(" ", 17<<10)))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusRequestEntityTooLarge {
		t.Errorf("large: %s", resp.Status)
	}
}

func TestEnrolmentNeedsTLS(t *testing.T) {
	s := newSite(t)
	url := serve(t, s.handler(), identity.Limits{}, nil)
	c := http.Client{Timeout: 10 * time.Second}
	defer c.CloseIdleConnections()
	resp, err := c.Post(url+"/identity/v1/enrol", "application/json", strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusForbidden {
		t.Fatal(resp.Status)
	}
	_, err = s.machine().Enrol(t.Context(), url, s.invite("x"), "x", false)
	expectKind(t, err, namespace.Denied, "http")
}
