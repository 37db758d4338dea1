package identity_test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/rollout/identity"
)

func TestRoles(t *testing.T) {
	s := newSite(t)
	may := map[identity.Role]string{
		identity.Viewer:    "endpoint viewer",
		identity.Operator:  "endpoint viewer operator",
		identity.Publisher: "endpoint viewer publisher",
		identity.Admin:     "endpoint viewer operator publisher admin",
	}
	for role, all := range may {
		tr := s.pinned()
		tr.TokenFile, _ = s.token(role, time.Hour)
		for _, need := range strings.Fields(may[identity.Admin]) {
			want := 403
			if strings.Contains(" "+all+" ", " "+need+" ") {
				want = 200
			}
			s.expectStatus("/"+need, tr, want, string(role))
		}
	}
	s.expectStatus("/viewer", s.pinned(), 401, "--token-file")
	if identity.Role("root").Allows(identity.Endpoint) || identity.Role("").Allows("") {
		t.Fatal("a role that is none allows something")
	}
}

func TestAttackExpiredToken(t *testing.T) {
	s := newSite(t)
	tr := s.pinned()
	tr.TokenFile, _ = s.token(identity.Admin, time.Hour)
	s.expectStatus("/admin", tr, 200, "")
	s.clock.pass(time.Hour)
	s.expectStatus("/admin", tr, 401, "it is expired")
}

func TestAttackRevokedToken(t *testing.T) {
	s := newSite(t)
	tr := s.pinned()
	file, kept := s.token(identity.Admin, time.Hour)
	tr.TokenFile = file
	s.expectStatus("/admin", tr, 200, "")
	if err := s.access.RevokeToken("test", kept.ID); err != nil {
		t.Fatal(err)
	}
	s.expectStatus("/admin", tr, 401, "it is revoked")
	if err := s.access.RevokeToken("test", kept.ID); err != nil { // again is no error
		t.Fatal(err)
	}
	expectKind(t, s.access.RevokeToken("test", "0011223344556677"), namespace.NotExist, "")
	if !s.trail.has("test token.revoke ann done") || !s.trail.has("anonymous access GET /admin denied") {
		t.Fatal(s.trail.lines)
	}
}

func TestAttackForgedToken(t *testing.T) {
	s := newSite(t)
	text, kept, err := s.access.CreateToken("test", "ann", identity.Admin, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	parts := strings.Split(text, "_")
	for name, forged := range map[string]string{
		"other secret":   "copt_" + kept.ID + "_" + strings.Repeat("0", 64),
		"the hash":       "copt_" + kept.ID + "_" + kept.Hash,
		"shortened":      text[:len(text)-2],
		"lengthened":     text + "00",
		"other prefix":   "copi_" + parts[1] + "_" + parts[2],
		"an invitation":  s.invite("desk-1"),
		"traversal":      "copt_../tokens/" + kept.ID + "_" + parts[2],
		"upper-case id":  "copt_" + strings.ToUpper(parts[1]) + "_" + parts[2],
		"empty":          "",
		"nothing secret": "copt_" + kept.ID + "_",
	} {
		if _, err := s.access.Authenticate(forged); !namespace.IsKind(err, namespace.Denied) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if p, err := s.access.Authenticate(text); err != nil || p.Name != "ann" || p.Role != identity.Admin {
		t.Fatal(p, err)
	}

	// What is on disk is of no use to whoever reads it, nor when it is moved to another's place.
	b, err := os.ReadFile(oneFile(t, filepath.Join(s.dir, "tokens")))
	if err != nil || strings.Contains(string(b), parts[2]) {
		t.Fatal("the secret is on disk", err)
	}
	if err := os.WriteFile(filepath.Join(s.dir, "tokens", "0011223344556677.json"), b, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.access.Authenticate("copt_0011223344556677_" + parts[2]); !namespace.IsKind(err, namespace.Denied) {
		t.Fatal(err)
	}
}

func TestTokensMustExpire(t *testing.T) {
	s := newSite(t)
	for _, life := range []time.Duration{0, -1, 400 * 24 * time.Hour} {
		_, _, err := s.access.CreateToken("test", "ann", identity.Viewer, life)
		expectKind(t, err, namespace.Invalid, "expire")
	}
	for _, role := range []identity.Role{identity.Endpoint, "root", ""} {
		_, _, err := s.access.CreateToken("test", "ann", role, time.Hour)
		expectKind(t, err, namespace.Invalid, "cannot be")
	}
}

// TestAttackFloodOfDenials must not fill the disk with the trail of it, nor keep a person's out.
func TestAttackFloodOfDenials(t *testing.T) {
	s := newSite(t)
	h := s.handler()
	for i := range 3000 {
		r, err := http.NewRequest(http.MethodGet, "/admin", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.RemoteAddr = fmt.Sprintf("10.0.%d.%d:99", i/250%100, i%250)
		r.Header.Set("Authorization", "Basic xyz")
		h.ServeHTTP(&statusOnly{}, r)
	}
	if n := len(s.trail.lines); n < 50 || n > 200 {
		t.Fatalf("%d entries of 3000 denials", n)
	}
}

func TestAttackTwoProofsAtOnce(t *testing.T) {
	s := newSite(t)
	m := s.enrolled("desk-1")
	tr := s.as(m)
	tr.TokenFile, _ = s.token(identity.Admin, time.Hour)
	s.expectStatus("/endpoint", tr, 401, "more than one proof")
}

func TestTokenOverClearTextIsRefused(t *testing.T) {
	s := newSite(t)
	text, _, err := s.access.CreateToken("test", "ann", identity.Admin, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	ask := func(remote string) int {
		r, err := http.NewRequest(http.MethodGet, "/admin", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.RemoteAddr = remote
		r.Header.Set("Authorization", "Bearer "+text)
		w := &statusOnly{}
		s.handler().ServeHTTP(w, r)
		return w.status
	}
	if got := ask("192.0.2.1:99"); got != 401 {
		t.Fatal(got)
	}
	if got := ask("127.0.0.1:99"); got != 200 {
		t.Fatal(got)
	}
}

type statusOnly struct {
	header http.Header
	status int
}

func (s *statusOnly) Header() http.Header {
	if s.header == nil {
		s.header = http.Header{}
	}
	return s.header
}
func (s *statusOnly) Write(b []byte) (int, error) { s.status = max(s.status, 200); return len(b), nil }
func (s *statusOnly) WriteHeader(status int)      { s.status = status }

func TestAccessDirectoryIsPrivate(t *testing.T) {
	s := newSite(t)
	err := filepath.Walk(s.dir, func(path string, info os.FileInfo, err error) error {
		private := info.Mode().Perm()&0o077 == 0 || strings.HasSuffix(path, ".crt")
		if err == nil && !private {
			t.Errorf("%s: %v", path, info.Mode())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(s.dir, 0o750); err != nil {
		t.Fatal(err)
	}
	_, err = identity.OpenAccess(s.dir, identity.AccessOptions{})
	expectKind(t, err, namespace.Denied, "others can enter")
}

// TestAttackForeignUserOnSocket asks a socket whose mode was loosened as another user.
func TestAttackForeignUserOnSocket(t *testing.T) {
	dir, err := os.MkdirTemp("", "peer")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "s")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o666); err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: identity.RequirePeer(os.Getuid(), ok), ConnContext: identity.PeerContext}
	go func() { _ = srv.Serve(ln) }()
	defer srv.Close()
	status := func(dial func(context.Context, string, string) (net.Conn, error)) int {
		c := http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}, Timeout: 10 * time.Second}
		resp, err := c.Get("http://daemon/")
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp.StatusCode
	}
	own := func(context.Context, string, string) (net.Conn, error) { return net.Dial("unix", path) }
	if got := status(own); got != 200 {
		t.Fatal(got)
	}
	if got := status(func(context.Context, string, string) (net.Conn, error) { return dialAs(path, 65534) }); got != 403 {
		t.Fatalf("another user got %d", got)
	}
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = srv.Serve(tcp) }()
	if got := status(func(context.Context, string, string) (net.Conn, error) { return net.Dial("tcp", tcp.Addr().String()) }); got != 403 {
		t.Fatalf("a network's peer got %d", got)
	}
}

// dialAs connects on a thread that is another user's for that moment: the kernel notes who connects.
func dialAs(path string, uid int) (net.Conn, error) {
	type result struct {
		fd  int
		err error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
		if err == nil {
			if _, _, errno := syscall.RawSyscall(syscall.SYS_SETRESUID, ^uintptr(0), uintptr(uid), ^uintptr(0)); errno != 0 {
				err = errno
			}
		}
		if err == nil {
			err = syscall.Connect(fd, &syscall.SockaddrUnix{Name: path})
		}
		done <- result{fd, err}
	}()
	r := <-done
	if r.err != nil {
		return nil, r.err
	}
	f := os.NewFile(uintptr(r.fd), "socket")
	defer f.Close()
	return net.FileConn(f)
}
