package namespace_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"reflect"
	"strings"
	"testing"
	"time"

	"coppice.dev/coppice/namespace"
)

func TestDigestText(t *testing.T) {
	d := namespace.Sum([]byte("x"))
	got, err := namespace.ParseDigest(d.String())
	if err != nil || got != d {
		t.Fatalf("%v, %v", got, err)
	}
	for _, s := range []string{"", "sha256:", d.Hex(), strings.ToUpper(d.String()), d.String() + "0", "sha512:" + d.Hex(), "sha256:" + strings.ToUpper(d.Hex())} {
		if _, err := namespace.ParseDigest(s); !namespace.IsKind(err, namespace.Invalid) {
			t.Errorf("%q: %v", s, err)
		}
	}
}

func TestKindsAreDistinctAndParse(t *testing.T) {
	seen := map[string]bool{}
	for _, k := range namespace.Kinds() {
		if seen[k.String()] || namespace.ParseKind(k.String()) != k {
			t.Errorf("kind %d is called %q", k, k)
		}
		seen[k.String()] = true
	}
	if namespace.ParseKind("who knows") != namespace.Internal {
		t.Error("an unknown kind is not Internal")
	}
}

func TestKindOf(t *testing.T) {
	inner := namespace.E(namespace.NotExist, "get", "x", nil)
	for _, c := range []struct {
		err  error
		want namespace.Kind
	}{
		{inner, namespace.NotExist},
		{fmt.Errorf("while reading: %w", inner), namespace.NotExist},
		{namespace.E(namespace.Unavailable, "fetch", "y", inner), namespace.Unavailable},
		{namespace.WithHint(inner, "look elsewhere"), namespace.NotExist},
		{context.Canceled, namespace.Canceled},
		{context.DeadlineExceeded, namespace.Unavailable},
		{&fs.PathError{Op: "open", Path: "p", Err: fs.ErrPermission}, namespace.Denied},
		{errors.New("?"), namespace.Internal},
	} {
		if got := namespace.KindOf(c.err); got != c.want {
			t.Errorf("%v is %v, want %v", c.err, got, c.want)
		}
	}
	err := fmt.Errorf("outer: %w", namespace.WithHint(inner, "look elsewhere"))
	if got := namespace.HintOf(err); got != "look elsewhere" {
		t.Errorf("hint is %q", got)
	}
	if got := namespace.HintOf(errors.Join(errors.New("first"), err, io.EOF)); got != "look elsewhere" {
		t.Errorf("hint among joined errors is %q", got)
	}
	if got := err.Error(); got != "outer: get x: not-exist" {
		t.Errorf("message is %q", got)
	}
}

func TestNames(t *testing.T) {
	for s, ok := range map[string]bool{
		"debian": true, "desktop/stable": true, "go1.26": true, "libstdc++": true, "a_b-c.d": true,
		"": false, "/": false, "a//b": false, "a/": false, "../x": false, ".hidden": false, "A": false,
		"a b": false, "a@1": false, "é": false, strings.Repeat("a", 201): false, "-x": false,
	} {
		if err := namespace.CheckName(s); (err == nil) != ok {
			t.Errorf("%q: %v", s, err)
		}
	}
	for s, ok := range map[string]bool{"a@1": true, "a/b@20": true, "a": true, "a@": false, "a@0": false, "a@01": false, "a@-1": false, "a@1@2": false} {
		v, err := namespace.ParseVersion(s)
		if (err == nil) != ok || ok && v.String() != s {
			t.Errorf("%q: %v, %v", s, v, err)
		}
	}
}

func TestRecordsAreCanonical(t *testing.T) {
	want := namespace.Pointer{
		Format: 1, Channel: "desktop/stable", Seq: 7, Version: namespace.Version{Name: "desk", N: 3},
		Manifest: namespace.Sum([]byte("m")), Issued: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Reason: "<CVE>",
	}
	b, err := namespace.EncodeRecord(want)
	if err != nil {
		t.Fatal(err)
	}
	var got namespace.Pointer
	if err := namespace.DecodeRecord(b, 1000, "p", &got); err != nil || !reflect.DeepEqual(got, want) {
		t.Fatalf("%+v, %v", got, err)
	}
	for name, bad := range map[string]string{
		"space":   strings.Replace(string(b), ":", ": ", 1),
		"unknown": strings.Replace(string(b), "{", `{"x":1,`, 1),
		"twice":   strings.Replace(string(b), `"seq":7`, `"seq":6,"seq":7`, 1),
		"cut":     string(b[:len(b)-2]),
		"more":    string(b) + "{}",
		"case":    strings.Replace(string(b), `"seq"`, `"Seq"`, 1),
	} {
		var p namespace.Pointer
		if err := namespace.DecodeRecord([]byte(bad), 1000, "p", &p); !namespace.IsKind(err, namespace.Corrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := namespace.DecodeRecord(b, 10, "p", &got); !namespace.IsKind(err, namespace.Limit) {
		t.Errorf("too large: %v", err)
	}
}
