package identity_test

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/rollout/identity"
)

func TestEnrolRenewUse(t *testing.T) {
	s := newSite(t)
	text, _, err := s.access.Invite("test", "", map[string]string{"site": "London", "ring": "1"}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	m := s.machine()
	e, err := m.Enrol(t.Context(), s.url, text, "desk-1", false)
	if err != nil || e.ID != "desk-1" || e.NotAfter.Sub(s.clock.Now()) < 29*24*time.Hour {
		t.Fatalf("%+v, %v", e, err)
	}
	s.expectStatus("/endpoint", s.as(m), 200, "endpoint desk-1")
	s.expectStatus("/viewer", s.as(m), 403, "wants the role viewer")
	before, err := os.ReadFile(m.Path)
	if err != nil {
		t.Fatal(err)
	}

	s.clock.pass(21 * 24 * time.Hour)
	renewed, err := m.Renew(t.Context(), s.url)
	if err != nil || !renewed.NotAfter.After(e.NotAfter.Add(20*24*time.Hour)) {
		t.Fatalf("%+v, %v", renewed, err)
	}
	s.expectStatus("/endpoint", s.as(m), 200, "endpoint desk-1")
	// The answer to a renewal may be lost: the certificate before is good until it ends.
	lost := s.pinned()
	lost.ClientCert = secretFile(t, string(before))
	s.expectStatus("/endpoint", lost, 200, "endpoint desk-1")
	s.clock.pass(10 * 24 * time.Hour)
	s.expectStatus("/endpoint", lost, 401, "expired")
	s.expectStatus("/endpoint", s.as(m), 200, "endpoint desk-1")

	all, err := s.access.Endpoints()
	if err != nil || len(all) != 1 || all[0].Labels["site"] != "London" || all[0].Renewed.IsZero() {
		t.Fatalf("%+v, %v", all, err)
	}
	for _, want := range []string{"endpoint.invite", "endpoint.enrol desk-1 done", "endpoint desk-1 endpoint.renew desk-1 done", "endpoint desk-1 access GET /viewer denied"} {
		if !s.trail.has(want) {
			t.Errorf("not in the trail: %s", want)
		}
	}
}

func TestAttackReplayedInvitation(t *testing.T) {
	s := newSite(t)
	invitation := s.invite("desk-1")
	first := s.machine()
	if _, err := first.Enrol(t.Context(), s.url, invitation, "desk-1", false); err != nil {
		t.Fatal(err)
	}
	thief := s.machine()
	_, err := thief.Enrol(t.Context(), s.url, invitation, "desk-1", false)
	expectKind(t, err, namespace.Denied, "used before")
	s.reopen() // the server was started anew
	_, err = s.access.Enrol(invitation, "desk-1", request(t))
	expectKind(t, err, namespace.Denied, "used before")
	if _, err := os.Stat(thief.Path); !errors.Is(err, os.ErrNotExist) {
		t.Fatal("the thief has a file")
	}
	s.expectStatus("/endpoint", s.as(first), 200, "desk-1")
}

// TestAttackReplayAfterCrash stops an enrolment at each of its writes, as a power cut would, and
// replays the invitation with another key.
func TestAttackReplayAfterCrash(t *testing.T) {
	for _, lost := range []string{"endpoints", "invitations"} { // what a crash kept from being done
		t.Run(lost, func(t *testing.T) {
			s := newSite(t)
			invitation, csr := s.invite("desk-1"), request(t)
			open := oneFile(t, filepath.Join(s.dir, "invitations"))
			kept, err := os.ReadFile(open)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := s.access.Enrol(invitation, "desk-1", csr); err != nil {
				t.Fatal(err)
			}
			if lost == "endpoints" {
				err = os.Remove(filepath.Join(s.dir, "endpoints", "desk-1.json"))
			} else {
				err = os.WriteFile(open, kept, 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
			s.reopen()
			_, err = s.access.Enrol(invitation, "desk-1", request(t))
			expectKind(t, err, namespace.Denied, "used before")
			// Who lost the answer has the key, and may ask again.
			if _, err := s.access.Enrol(invitation, "desk-1", csr); err != nil {
				t.Fatal(err)
			}
			_, err = s.access.Enrol(invitation, "desk-2", csr)
			expectKind(t, err, namespace.Denied, "another id")
			if open, err := s.access.Invitations(); err != nil || len(open) != 0 {
				t.Fatalf("open: %v, %v", open, err)
			}
		})
	}
}

func oneFile(t *testing.T, dir string) string {
	names, err := filepath.Glob(filepath.Join(dir, "*.json"))
	if err != nil || len(names) != 1 {
		t.Fatal(names, err)
	}
	return names[0]
}

func TestAttackReplacedMachineComesBack(t *testing.T) {
	s := newSite(t)
	first, csr := s.invite("desk-1"), request(t)
	if _, err := s.access.Enrol(first, "desk-1", csr); err != nil {
		t.Fatal(err)
	}
	old := s.enrolled("desk-1") // another machine takes its place
	s.expectStatus("/endpoint", s.as(old), 200, "desk-1")
	_, err := s.access.Enrol(first, "desk-1", csr)
	expectKind(t, err, namespace.Denied, "enrolled anew")
	fresh := s.enrolled("desk-1")
	s.expectStatus("/endpoint", s.as(old), 401, "enrolled anew")
	_, err = old.Renew(t.Context(), s.url)
	expectKind(t, err, namespace.Denied, "enrolled anew")
	s.expectStatus("/endpoint", s.as(fresh), 200, "desk-1")
}

func TestAttackInvitationRace(t *testing.T) {
	s := newSite(t)
	invitation := s.invite("")
	var wg sync.WaitGroup
	var mu sync.Mutex
	won := 0
	for range 16 {
		csr := request(t)
		wg.Go(func() {
			if _, err := s.access.Enrol(invitation, "desk-1", csr); err == nil {
				mu.Lock()
				won++
				mu.Unlock()
			} else if !namespace.IsKind(err, namespace.Denied) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if won != 1 {
		t.Fatalf("%d machines were enrolled", won)
	}
}

func TestAttackExpiredInvitation(t *testing.T) {
	s := newSite(t)
	invitation := s.invite("desk-1")
	s.clock.pass(time.Hour)
	_, err := s.machine().Enrol(t.Context(), s.url, invitation, "desk-1", false)
	expectKind(t, err, namespace.Denied, "expired")
	if open, err := s.access.Invitations(); err != nil || len(open) != 0 {
		t.Fatalf("open: %v, %v", open, err)
	}
	_, err = s.machine().Enrol(t.Context(), s.url, invitation, "desk-1", false)
	expectKind(t, err, namespace.Denied, "not known")
}

func TestAttackInvitationForAnotherID(t *testing.T) {
	s := newSite(t)
	invitation := s.invite("desk-1")
	_, err := s.machine().Enrol(t.Context(), s.url, invitation, "desk-2", false)
	expectKind(t, err, namespace.Denied, "another id")
	// It was not used up by that.
	if _, err := s.machine().Enrol(t.Context(), s.url, invitation, "desk-1", false); err != nil {
		t.Fatal(err)
	}
	// An invitation for a new machine does not take an id away from one that has it.
	_, err = s.machine().Enrol(t.Context(), s.url, s.invite(""), "desk-1", false)
	expectKind(t, err, namespace.Denied, "is enrolled")
}

func TestAttackGuessedInvitation(t *testing.T) {
	s := newSite(t)
	invitation := s.invite("desk-1")
	token, _, err := s.access.CreateToken("test", "ann", identity.Admin, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	parts := strings.Split(invitation, "_")
	for name, text := range map[string]string{
		"empty":         "",
		"other secret":  parts[0] + "_" + parts[1] + "_" + strings.Repeat("0", 64),
		"no secret":     parts[0] + "_" + parts[1] + "_",
		"other id":      parts[0] + "_0011223344556677_" + parts[2],
		"a token":       token,
		"token's place": "copi" + strings.TrimPrefix(token, "copt"),
		"traversal":     parts[0] + "_../../../../etc/passwd_" + parts[2],
		"upper case":    strings.ToUpper(invitation),
		"newline":       invitation + "\n",
	} {
		_, err := s.access.Enrol(text, "desk-1", request(t))
		if !namespace.IsKind(err, namespace.Denied) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAttackPathTraversalInIDs(t *testing.T) {
	s := newSite(t)
	invitation := s.invite("")
	for _, id := range []string{"", ".", "..", "../tokens/x", "a/b", "/etc/passwd", "a\x00b", "A", "a b", "a%2fb", ".json", "-rf",
		"ｄesk", "desk-1?enrolment=2", "desk-1#", strings.Repeat("a", 64)} {
		if _, err := s.access.Enrol(invitation, id, request(t)); !namespace.IsKind(err, namespace.Invalid) {
			t.Errorf("enrol %q: %v", id, err)
		}
		if err := s.access.Revoke("test", id, ""); !namespace.IsKind(err, namespace.Invalid) {
			t.Errorf("revoke %q: %v", id, err)
		}
		if _, _, err := s.access.CreateToken("test", id, identity.Viewer, time.Hour); !namespace.IsKind(err, namespace.Invalid) {
			t.Errorf("token %q: %v", id, err)
		}
		if err := s.access.RevokeToken("test", id); !namespace.IsKind(err, namespace.Invalid) {
			t.Errorf("revoke token %q: %v", id, err)
		}
		if id != "" {
			if _, _, err := s.access.Invite("test", id, nil, time.Hour); !namespace.IsKind(err, namespace.Invalid) {
				t.Errorf("invite %q: %v", id, err)
			}
		}
	}
	for _, labels := range []map[string]string{{"": "x"}, {"a b": "x"}, {"a": "x\ny"}, {"a": "\x1b[2J"}, {"a": strings.Repeat("x", 257)}, {"A": "x"}} {
		if _, _, err := s.access.Invite("test", "x", labels, time.Hour); !namespace.IsKind(err, namespace.Invalid) {
			t.Errorf("labels %q: %v", labels, err)
		}
	}
}

func TestAttackForeignCertificates(t *testing.T) {
	s, other := newSite(t), newSite(t)
	s.enrolled("desk-1")
	stolen := other.enrolled("desk-1") // a relay's, or another company's
	server := filepath.Join(s.dir, "tls.pem")
	key, err := os.ReadFile(filepath.Join(s.dir, "tls.key"))
	if err != nil {
		t.Fatal(err)
	}
	cert, err := os.ReadFile(filepath.Join(s.dir, "tls.crt"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(server, append(key, cert...), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, file := range map[string]string{
		"another authority's": stolen.Path,
		"self-signed":         forged(t, nil),
		"the server's own":    server,
	} {
		t.Run(name, func(t *testing.T) {
			tr := s.pinned()
			tr.ClientCert = file
			s.expectStatus("/endpoint", tr, 401, "verify certificate")
			s.expectStatus("/open", tr, 200, "")
		})
	}
}

func TestAttackRevokedCertificate(t *testing.T) {
	s := newSite(t)
	m := s.enrolled("desk-1")
	c, d, err := client(t, s.url, s.as(m), nil)
	if err != nil {
		t.Fatal(err)
	}
	ask := func() int { // on one connection
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, d.URL+"/endpoint", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := c.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp.StatusCode
	}
	if got := ask(); got != 200 {
		t.Fatal(got)
	}
	other, err := identity.OpenAccess(s.dir, identity.AccessOptions{}) // a command beside the server
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Revoke("admin", "desk-1", "stolen"); err != nil {
		t.Fatal(err)
	}
	if got := ask(); got != 401 {
		t.Fatalf("status %d on the open connection", got)
	}
	_, err = m.Renew(t.Context(), s.url)
	expectKind(t, err, namespace.Denied, "revoked")
	_, err = m.Enrol(t.Context(), s.url, s.invite(""), "desk-1", true)
	expectKind(t, err, namespace.Denied, "is enrolled")
	if _, err := m.Enrol(t.Context(), s.url, s.invite("desk-1"), "desk-1", true); err != nil { // an administrator wants it back
		t.Fatal(err)
	}
	s.expectStatus("/endpoint", s.as(m), 200, "desk-1")
}

// TestAttackRevokedWhileWaiting asks for what comes later only, and is revoked before that.
func TestAttackRevokedWhileWaiting(t *testing.T) {
	s := newSite(t)
	for _, revoked := range []bool{false, true} {
		m := s.enrolled("desk-1")
		c, d, err := client(t, s.url, s.as(m), nil)
		if err != nil {
			t.Fatal(err)
		}
		answer := make(chan *http.Response, 1)
		go func() {
			resp, err := c.Get(d.URL + "/wait")
			if err != nil {
				t.Error(err)
			}
			answer <- resp
		}()
		<-s.arrived
		if revoked {
			if err := s.access.Revoke("test", "desk-1", ""); err != nil {
				t.Fatal(err)
			}
		}
		time.AfterFunc(400*time.Millisecond, func() { s.leave <- struct{}{} })
		resp := <-answer
		if resp == nil {
			t.FailNow()
		}
		b, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		if got := string(b); revoked != (resp.StatusCode == 401) || revoked == strings.Contains(got, "secret") || revoked != (resp.Header.Get("Etag") == "") {
			t.Fatalf("revoked %v: %s %q", revoked, resp.Status, got)
		}
	}
}

func TestAttackExpiredCertificate(t *testing.T) {
	s := newSite(t)
	m := s.enrolled("desk-1")
	s.clock.pass(identity.CertificateLife + time.Minute)
	s.expectStatus("/endpoint", s.as(m), 401, "expired")
	_, err := m.Renew(t.Context(), s.url)
	expectKind(t, err, namespace.Denied, "expired")
	m.Now = time.Now // an endpoint whose clock was wound back
	_, err = m.Renew(t.Context(), s.url)
	expectKind(t, err, namespace.Denied, "expired")
}

func TestWhatCannotBeRecordedIsNotDone(t *testing.T) {
	s := newSite(t)
	invitation, csr := s.invite("desk-1"), request(t)
	s.trail.broken = namespace.E(namespace.Limit, "append to", "trail", errors.New("no room"))
	_, err := s.access.Enrol(invitation, "desk-1", csr)
	expectKind(t, err, namespace.Limit, "no room")
	if _, _, err := s.access.CreateToken("test", "ann", identity.Viewer, time.Hour); err == nil {
		t.Fatal("a token without a trail")
	}
	s.trail.broken = nil
	if all, err := s.access.Endpoints(); err != nil || len(all) != 0 {
		t.Fatalf("%v, %v", all, err)
	}
	if _, err := s.access.Enrol(invitation, "desk-1", csr); err != nil {
		t.Fatal(err)
	}
}

func TestEnrolAgainAfterALostAnswer(t *testing.T) {
	s := newSite(t)
	invitation := s.invite("desk-1")
	var broken atomic.Bool
	broken.Store(true)
	url := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if broken.Load() { // the work is done, nobody hears of it
			s.handler().ServeHTTP(httptest.NewRecorder(), r)
			panic(http.ErrAbortHandler)
		}
		s.handler().ServeHTTP(w, r)
	}), identity.Limits{}, s.pair)
	m := s.machine()
	_, err := m.Enrol(t.Context(), url, invitation, "desk-1", false)
	expectKind(t, err, namespace.Unavailable, "")
	if all, err := s.access.Endpoints(); err != nil || len(all) != 1 {
		t.Fatal(all, err)
	}
	broken.Store(false)
	if _, err := m.Enrol(t.Context(), url, invitation, "desk-1", false); err != nil {
		t.Fatal(err)
	}
	s.expectStatus("/endpoint", s.as(m), 200, "desk-1")
	_, err = m.Enrol(t.Context(), url, invitation, "desk-1", false)
	expectKind(t, err, namespace.Exist, "enrolled already")
}
