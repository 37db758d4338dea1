package origin_test

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/origin"
)

var anyRef = namespace.RefName{Kind: namespace.ChannelRef, Name: "a"}

// TestAttackImpostor asks a server that nobody vouches for: that is known at once, with no retries,
// and counts as no server, so that who has the content goes on with it.
func TestAttackImpostor(t *testing.T) {
	asked := 0
	srv := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked++ }))
	defer srv.Close()
	src, err := origin.Open(t.Context(), srv.URL, origin.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	start := time.Now()
	_, err = src.Ref(t.Context(), anyRef)
	if !namespace.IsKind(err, namespace.Unavailable) || !strings.Contains(namespace.HintOf(err), "--tls-pin") || asked > 0 {
		t.Fatalf("%v, hint %q, asked %d times", err, namespace.HintOf(err), asked)
	}
	if took := time.Since(start); took > 3*time.Second { // Retry goes on for 5 s
		t.Fatalf("it took %v", took)
	}
}

func TestAuthorize(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer x" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		_, _ = w.Write([]byte("record"))
	}))
	defer srv.Close()
	open := func(authorize func(*http.Request) error) (string, error) {
		src, err := origin.Open(t.Context(), srv.URL, origin.Options{HTTP: origin.ClientOptions{Authorize: authorize}})
		if err != nil {
			t.Fatal(err)
		}
		defer src.Close()
		b, err := src.Ref(t.Context(), anyRef)
		return string(b), err
	}
	if got, err := open(func(r *http.Request) error { r.Header.Set("Authorization", "Bearer x"); return nil }); err != nil || got != "record" {
		t.Fatal(got, err)
	}
	if _, err := open(nil); !namespace.IsKind(err, namespace.Denied) || !strings.Contains(namespace.HintOf(err), "--token-file") {
		t.Fatal(err)
	}
	refused := namespace.E(namespace.NotExist, "read", "token", errors.New("none"))
	if _, err := open(func(*http.Request) error { return refused }); !errors.Is(err, refused) || !namespace.IsKind(err, namespace.NotExist) {
		t.Fatal(err)
	}
}

// TestAttackRedirectForTheToken redirects to another host, which must not get what proves the reader.
func TestAttackRedirectForTheToken(t *testing.T) {
	got := make(chan string, 1)
	thief := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { got <- r.Header.Get("Authorization") }))
	defer thief.Close()
	elsewhere := strings.Replace(thief.URL, "127.0.0.1", "localhost", 1)
	srv := httptest.NewServer(http.RedirectHandler(elsewhere+"/x", http.StatusFound))
	defer srv.Close()
	c, err := origin.NewClient(srv.URL, origin.ClientOptions{Authorize: func(r *http.Request) error { r.Header.Set("Authorization", "Bearer x"); return nil }})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, _ = c.Ref(t.Context(), anyRef) // whatever it makes of the answer
	select {
	case token := <-got:
		if token != "" {
			t.Fatalf("another host got %q", token)
		}
	default: // it did not even go there
	}
}
