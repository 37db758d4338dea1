package identity

import (
	"bytes"
	"encoding/json"
	"net/url"
	"strings"
	"testing"
)

// FuzzDecodeJSON holds that what is accepted means the same to a parser that folds case and takes the
// last of two keys as to one that takes the first.
func FuzzDecodeJSON(f *testing.F) {
	for _, s := range []string{`{"invitation":"a","id":"x","request":"p"}`, `{"id":"a","id":"b"}`, `{"ID":"a"}`, `{"id":1e9}`, `{}`, `[]`, `null`,
		"{\"reque\u017ft\":\"a\"}", `{"id":"a"} `, `{"id":"a"}{}`, `{"id":"\ud800"}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var got enrolRequest
		if DecodeJSON(b, requestBytesMax, "fuzz", &got) != nil {
			return
		}
		var all map[string]any
		if err := json.Unmarshal(b, &all); err != nil {
			t.Fatalf("accepted what is no JSON: %v", err)
		}
		text := func(key string) string { s, _ := all[key].(string); return s }
		if text("id") != got.ID || text("invitation") != got.Invitation || text("request") != got.Request || len(all) > 3 {
			t.Fatalf("%q means %+v and %v", b, got, all)
		}
	})
}

// FuzzSecrets holds that a secret's id can only be a file name of ours.
func FuzzSecrets(f *testing.F) {
	f.Add("copt_0011223344556677_" + strings.Repeat("00", 32))
	f.Add("copt_../../../../etc/p_" + strings.Repeat("00", 32))
	f.Add("copt__")
	f.Fuzz(func(t *testing.T, s string) {
		id, secret, ok := splitSecret(tokenPrefix, s)
		if ok && (strings.Trim(id, "0123456789abcdef") != "" || len(id) != 16 || tokenPrefix+"_"+id+"_"+secret != s) {
			t.Fatalf("%q: id %q", s, id)
		}
	})
}

// FuzzIdentityURL holds that one endpoint has one name.
func FuzzIdentityURL(f *testing.F) {
	for _, s := range []string{"coppice://endpoint/desk-1?enrolment=1", "coppice://endpoint/../x?enrolment=1", "coppice://endpoint/a?enrolment=01",
		"coppice://endpoint/a%2fb?enrolment=1", "coppice://endpoint/a?enrolment=1&enrolment=2", "coppice://u@endpoint/a?enrolment=1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		u, err := url.Parse(s)
		if err != nil {
			return
		}
		id, n, err := parseIdentityURL(u)
		if err == nil && (CheckID(id) != nil || identityURL(id, n).String() != u.String()) {
			t.Fatalf("%q: %q %d", s, id, n)
		}
	})
}

// FuzzLocation holds that a pin in a location is exact or refused.
func FuzzLocation(f *testing.F) {
	f.Add("https+pin://sha256:" + strings.Repeat("0f", 32) + "@origin.example/x")
	f.Add("https+pin://origin.example")
	f.Add("https+pin://a@b@c")
	f.Fuzz(func(t *testing.T, s string) {
		l, err := ParseLocation(s)
		if err != nil || !l.ByKey {
			return
		}
		u, err := url.Parse(l.URL)
		if err != nil || u.Scheme != "https" || u.User != nil || u.Hostname() == "" {
			t.Fatalf("%q: %+v", s, l)
		}
		if !l.Pin.IsZero() && !strings.Contains(s, strings.TrimPrefix(l.Pin.String(), pinPrefix)) && !strings.Contains(s, "%") {
			t.Fatalf("%q: pin %s", s, l.Pin)
		}
	})
}

// FuzzRequest holds that only requests that prove their key are accepted, whatever is in them.
func FuzzRequest(f *testing.F) {
	key, _, err := newKey()
	if err != nil {
		f.Fatal(err)
	}
	csr, err := signingRequest(key)
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(csr))
	f.Add([]byte(csr + csr))
	f.Add(bytes.ReplaceAll([]byte(csr), []byte("REQUEST"), []byte("")))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := parseRequest(b)
		if err == nil && r.CheckSignature() != nil {
			t.Fatal("no proof of its key")
		}
	})
}
