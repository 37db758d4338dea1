package identity_test

import (
	"net/http"
	"testing"
	"time"

	"coppice.dev/coppice/rollout/identity"
)

// BenchmarkRequire is what it costs to know who asks, for each request of a connection.
func BenchmarkRequire(b *testing.B) {
	access, err := identity.OpenAccess(b.TempDir()+"/access", identity.AccessOptions{})
	if err != nil {
		b.Fatal(err)
	}
	text, _, err := access.CreateToken("bench", "ann", identity.Viewer, time.Hour)
	if err != nil {
		b.Fatal(err)
	}
	h := identity.NewGuard(access, nil).Require(identity.Viewer, ok)
	r, err := http.NewRequest(http.MethodGet, "/", nil)
	if err != nil {
		b.Fatal(err)
	}
	r.RemoteAddr = "127.0.0.1:9"
	r.Header.Set("Authorization", "Bearer "+text)
	for b.Loop() {
		w := &statusOnly{}
		if h.ServeHTTP(w, r); w.status != 200 {
			b.Fatal(w.status)
		}
	}
}
