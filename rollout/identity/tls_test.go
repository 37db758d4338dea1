package identity_test

import (
	"crypto/tls"
	"encoding/pem"
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/rollout/identity"
)

func TestPinnedServer(t *testing.T) {
	s := newSite(t)
	s.expectStatus("/open", s.pinned(), 200, "")
	located := strings.Replace(s.url, "https://", "https+pin://"+s.pair.Pin().String()+"@", 1)
	if status, _, err := get(t, located, "/open", identity.Transport{}, nil); err != nil || status != 200 {
		t.Fatal(status, err)
	}
	_, _, err := get(t, located, "/open", identity.Transport{Pin: identity.Pin{1}}, nil)
	expectKind(t, err, namespace.Invalid, "different pins")
}

func TestAttackSelfSignedImpostor(t *testing.T) {
	s := newSite(t)
	_, _, err := get(t, s.url, "/open", identity.Transport{}, nil)
	var v *tls.CertificateVerificationError
	if !errors.As(err, &v) {
		t.Fatalf("got %v", err)
	}
}

func TestAttackWrongPin(t *testing.T) {
	s, impostor := newSite(t), newSite(t)
	_, _, err := get(t, impostor.url, "/open", s.pinned(), nil)
	var v *tls.CertificateVerificationError
	if !errors.As(err, &v) || !strings.Contains(err.Error(), impostor.pair.Pin().String()) || !strings.Contains(namespace.HintOf(err), "--tls-pin") {
		t.Fatalf("got %v, hint %q", err, namespace.HintOf(err))
	}
	m := &identity.Credentials{Path: filepath.Join(t.TempDir(), "x.pem"), Transport: s.pinned()}
	_, err = m.Enrol(t.Context(), impostor.url, s.invite("desk-1"), "desk-1", false)
	expectKind(t, err, namespace.Denied, "pinned is")
}

func TestFirstContactIsPinned(t *testing.T) {
	s, impostor := newSite(t), newSite(t)
	var told []string
	known := &identity.Known{Dir: filepath.Join(t.TempDir(), "known"), Notify: func(host string, p identity.Pin) { told = append(told, host+" "+p.String()) }}
	byKey := strings.Replace(s.url, "https://", "https+pin://", 1)
	host := strings.TrimPrefix(s.url, "https://")
	for _, location := range []string{byKey, byKey, s.url} { // once pinned, also without saying so
		if status, _, err := get(t, location, "/open", identity.Transport{}, known); err != nil || status != 200 {
			t.Fatal(status, err)
		}
	}
	if len(told) != 1 || told[0] != host+" "+s.pair.Pin().String() {
		t.Fatalf("told %v", told)
	}

	// Another server comes to its address.
	c, d, err := client(t, s.url, identity.Transport{}, known)
	if err != nil {
		t.Fatal(err)
	}
	c.Transport.(*http.Transport).Dial = func(string, string) (net.Conn, error) {
		return net.Dial("tcp", strings.TrimPrefix(impostor.url, "https://"))
	}
	if _, err := c.Get(d.URL + "/open"); err == nil || !strings.Contains(err.Error(), "pinned is "+s.pair.Pin().String()) {
		t.Fatalf("got %v", err)
	}

	// Nor does http do any more.
	_, _, err = get(t, "http://"+host, "/open", identity.Transport{}, known)
	expectKind(t, err, namespace.Denied, "downgrade")

	// What is remembered cannot be forgotten by damaging it.
	names, err := filepath.Glob(filepath.Join(known.Dir, "*.json"))
	if err != nil || len(names) != 1 {
		t.Fatal(names, err)
	}
	if err := os.WriteFile(names[0], []byte("{}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, location := range []string{byKey, s.url, "http://" + host} {
		if _, _, err := get(t, location, "/open", identity.Transport{}, known); err == nil {
			t.Fatalf("%s: a damaged memory counts for nothing", location)
		}
	}
}

func TestAttackDowngradeOnOtherPort(t *testing.T) {
	known := &identity.Known{Dir: filepath.Join(t.TempDir(), "known")}
	pin := strings.Repeat("ab", 32)
	if err := identity.NoteForTest(known, "origin.example:443", pin); err != nil {
		t.Fatal(err)
	}
	for _, location := range []string{"http://origin.example", "http://origin.example:8080/x", "http://origin.example:443"} {
		_, err := identity.Transport{}.Prepare(location, known)
		expectKind(t, err, namespace.Denied, "downgrade")
	}
	if _, err := (identity.Transport{}).Prepare("http://elsewhere.example", known); err != nil {
		t.Fatal(err)
	}
}

func TestAttackTokenInTheClear(t *testing.T) {
	s := newSite(t)
	file, _ := s.token(identity.Viewer, 1<<40)
	known := &identity.Known{Dir: t.TempDir()}
	d, err := identity.Transport{TokenFile: file}.Prepare("http://origin.example", known)
	if err != nil {
		t.Fatal(err)
	}
	r, err := http.NewRequest(http.MethodGet, "http://origin.example/x", nil)
	if err != nil {
		t.Fatal(err)
	}
	expectKind(t, d.Authorize(r), namespace.Denied, "over http")
	if r.Header.Get("Authorization") != "" {
		t.Fatal("it was added")
	}
	// Nor does whoever answers a first contact get one.
	_, err = identity.Transport{TokenFile: file}.Prepare("https+pin://origin.example", known)
	expectKind(t, err, namespace.Denied, "whoever answers first")
	for _, tr := range []identity.Transport{{Pin: s.pair.Pin()}, {ClientCert: file}, {Authority: file}} {
		_, err := tr.Prepare("http://origin.example", known)
		expectKind(t, err, namespace.Denied, "http proves nothing")
	}
}

func TestAttackOldTLS(t *testing.T) {
	s := newSite(t)
	cfg := &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12}
	conn, err := tls.Dial("tcp", strings.TrimPrefix(s.url, "https://"), cfg)
	if err == nil {
		conn.Close()
		t.Fatal("TLS 1.2 was accepted")
	}
	// And the other way round: a client of ours refuses a server that speaks nothing newer.
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		conn, err := ln.Accept()
		if err == nil {
			c := tls.Server(conn, &tls.Config{MaxVersion: tls.VersionTLS12, Certificates: []tls.Certificate{*s.pair.Certificate()}})
			_ = c.Handshake() // fails, as it must
			c.Close()
		}
	}()
	if _, _, err := get(t, "https://"+ln.Addr().String(), "/open", s.pinned(), nil); err == nil {
		t.Fatal("it spoke TLS 1.2")
	}
}

func TestCertificateIsReloaded(t *testing.T) {
	dir := t.TempDir()
	s := newSite(t)
	cert, key := filepath.Join(dir, "c.pem"), filepath.Join(dir, "k.pem")
	copyPair := func(from string) {
		for to, name := range map[string]string{cert: "tls.crt", key: "tls.key"} {
			b, err := os.ReadFile(filepath.Join(from, name))
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(to+".tmp", b, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Rename(to+".tmp", to); err != nil {
				t.Fatal(err)
			}
		}
	}
	copyPair(s.dir)
	pair, err := identity.LoadKeyPair(cert, key, nil)
	if err != nil || pair.Pin() != s.pair.Pin() {
		t.Fatal(err)
	}
	if err := os.WriteFile(cert, []byte("half of it"), 0o600); err != nil {
		t.Fatal(err)
	}
	identity.LookAgainForTest(pair)
	if pair.Pin() != s.pair.Pin() {
		t.Fatal("a broken file took the certificate away")
	}
	other := newSite(t)
	copyPair(other.dir)
	identity.LookAgainForTest(pair)
	if pair.Pin() != other.pair.Pin() {
		t.Fatal("not reloaded")
	}
	if err := os.Chmod(key, 0o644); err != nil {
		t.Fatal(err)
	}
	_, err = identity.LoadKeyPair(cert, key, nil)
	expectKind(t, err, namespace.Denied, "others can read")
}

func TestSelfSignedKeepsItsKey(t *testing.T) {
	s := newSite(t)
	again, err := identity.SelfSigned(s.dir, nil, nil)
	if err != nil || again.Pin() != s.pair.Pin() {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(s.dir, "tls.crt")); err != nil {
		t.Fatal(err)
	}
	again, err = identity.SelfSigned(s.dir, []string{"origin.example", "192.0.2.1"}, nil)
	if err != nil || again.Pin() != s.pair.Pin() {
		t.Fatal("the pin changed", err)
	}
	leaf := again.Certificate().Leaf
	if leaf.VerifyHostname("origin.example") != nil || leaf.VerifyHostname("192.0.2.1") != nil {
		t.Fatal("hosts are missing")
	}
}

func TestAuthorityFile(t *testing.T) {
	s := newSite(t)
	file := filepath.Join(t.TempDir(), "ca.pem")
	b := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.pair.Certificate().Leaf.Raw})
	if err := os.WriteFile(file, b, 0o644); err != nil {
		t.Fatal(err)
	}
	if status, _, err := get(t, s.url, "/open", identity.Transport{Authority: file}, nil); err != nil || status != 200 {
		t.Fatal(status, err)
	}
	_, err := identity.Transport{Authority: filepath.Join(t.TempDir(), "none")}.Prepare("https://x", nil)
	expectKind(t, err, namespace.NotExist, "")
}

func TestPins(t *testing.T) {
	digits := strings.Repeat("0f", 32)
	if p, err := identity.ParsePin("sha256:" + digits); err != nil || p.String() != "sha256:"+digits {
		t.Fatal(p, err)
	}
	for _, s := range []string{"", "sha256:", digits, "sha256:" + digits[2:], "sha256:" + digits + "00", "sha1:" + digits,
		"sha256:" + strings.ToUpper(digits), "sha256:" + strings.Repeat("0", 64), "sha256:" + strings.Repeat("g", 64)} {
		if _, err := identity.ParsePin(s); !namespace.IsKind(err, namespace.Invalid) {
			t.Errorf("%q: %v", s, err)
		}
	}
	for s, want := range map[string]string{
		"https+pin://sha256:" + digits + "@h/x": "https://h/x",
		"https+pin://h:8443":                    "https://h:8443",
		"https://h":                             "https://h",
		"/srv/origin":                           "/srv/origin",
	} {
		if l, err := identity.ParseLocation(s); err != nil || l.URL != want {
			t.Errorf("%q: %+v, %v", s, l, err)
		}
	}
	for _, s := range []string{"https+pin://", "https+pin://user:pass@h", "https+pin://sha256@h", "https+pin://sha256:00@h", "https+pin://%zz"} {
		if l, err := identity.ParseLocation(s); !namespace.IsKind(err, namespace.Invalid) {
			t.Errorf("%q: %+v, %v", s, l, err)
		}
	}
}
