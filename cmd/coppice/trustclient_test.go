package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/origin"
	"coppice.dev/coppice/namespace/trust"
)

// coppice runs a command line in this process.
func coppice(t *testing.T, args ...string) {
	t.Helper()
	var out, errs strings.Builder
	if code := run(t.Context(), args, &out, &errs); code != 0 {
		t.Fatalf("coppice %s: exit %d\n%s", strings.Join(args, " "), code, errs.String())
	}
}

// plainOrigin makes an origin with one channel at dev@1 and returns it open.
func plainOrigin(t *testing.T) (dir string, o *origin.Dir) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "origin")
	src, file := filepath.Join(t.TempDir(), "src"), filepath.Join(t.TempDir(), "dev.yaml")
	if err := os.MkdirAll(src, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte("mounts: [{path: /, tree: go}]\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	coppice(t, "-q", "origin", "init", dir)
	coppice(t, "-q", "--origin", dir, "tree", "import", "go", src)
	coppice(t, "-q", "--origin", dir, "namespace", "publish", "dev", "-f", file)
	coppice(t, "-q", "--origin", dir, "channel", "set", "stable", "dev@1")
	o, err := origin.OpenDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { o.Close() })
	return dir, o
}

// repositoryOf shows an origin in the layout that the specification of The Update Framework describes, so
// that any client of it can audit an origin.
func repositoryOf(t *testing.T, o *origin.Dir) http.Handler {
	docs, blobs := trust.OriginDocuments(o, sourceBlobs{o}), sourceBlobs{o}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name := strings.TrimPrefix(r.URL.Path, "/")
		var n int64
		var b []byte
		var err error
		switch {
		case name == "timestamp.json":
			b, err = docs.Timestamp(r.Context(), trust.TimestampBytesMax)
		case strings.HasSuffix(name, ".root.json"):
			fmt.Sscanf(name, "%d.", &n)
			b, err = docs.Root(r.Context(), n, trust.RootBytesMax)
		case strings.Contains(name, ".dev@"):
			var d namespace.Digest
			d, err = namespace.ParseHex(strings.SplitN(name, ".", 2)[0])
			if err == nil {
				b, err = blobs.GetBlob(r.Context(), d, namespace.ManifestBytesMax)
			}
		default:
			b, err = namedBy(r, docs, strings.SplitN(name, ".", 2)[1])
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusNotFound)
			return
		}
		_, _ = w.Write(b)
	})
}

// namedBy returns the document of that name which the timestamp, or its snapshot, names.
func namedBy(r *http.Request, docs trust.Documents, name string) ([]byte, error) {
	b, err := docs.Timestamp(r.Context(), trust.TimestampBytesMax)
	for _, role := range []string{"snapshot.json", name} {
		var d struct {
			Signed struct {
				Meta map[string]struct {
					Hashes map[string]string `json:"hashes"`
				} `json:"meta"`
			} `json:"signed"`
		}
		if err == nil {
			err = json.Unmarshal(b, &d)
		}
		if err != nil {
			return nil, err
		}
		m := trust.Meta{}
		if m.Digest, err = namespace.ParseHex(d.Signed.Meta[role].Hashes["sha256"]); err == nil {
			b, err = docs.Document(r.Context(), role, m, trust.SnapshotBytesMax)
		}
		if err != nil || role == name {
			return b, err
		}
	}
	return b, err
}

func TestTrustClientAuditsAnOrigin(t *testing.T) {
	dir, o := plainOrigin(t)
	good := repositoryOf(t, o)
	spoil := func(string, []byte) []byte { return nil }
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rec := httptest.NewRecorder()
		good.ServeHTTP(rec, r)
		b := rec.Body.Bytes()
		if bad := spoil(r.URL.Path, b); bad != nil {
			b = bad
		}
		w.WriteHeader(rec.Code)
		_, _ = w.Write(b)
	}))
	defer srv.Close()
	f := &tufFlags{dir: t.TempDir(), url: srv.URL + "/", target: "dev@1", targetURL: srv.URL, targetDir: t.TempDir(), now: time.Now}
	if err := f.init(filepath.Join(dir, "ref/trust/1.root")); err != nil {
		t.Fatal(err)
	}
	spoil = func(path string, b []byte) []byte {
		if strings.Contains(path, ".dev@") {
			return append([]byte("x"), b[1:]...)
		}
		return nil
	}
	if err := f.download(t.Context()); !namespace.IsKind(err, namespace.Corrupt) {
		t.Errorf("another target under its name: %v", err)
	}
	if left, _ := os.ReadDir(f.targetDir); len(left) != 0 {
		t.Errorf("it left %v behind", left)
	}
	spoil = func(path string, b []byte) []byte {
		if strings.Contains(path, ".dev@") {
			return append(b, make([]byte, 1<<20)...)
		}
		return nil
	}
	if err := f.download(t.Context()); !namespace.IsKind(err, namespace.Limit) {
		t.Errorf("an endless target: %v", err)
	}
	spoil = func(string, []byte) []byte { return nil }
	for range 2 { // the second time it is there
		if err := f.download(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(filepath.Join(f.targetDir, "dev@1"))
	if err != nil || !strings.Contains(string(b), `"name":"dev"`) {
		t.Errorf("%s, %v", b, err)
	}
	f.target = "stable"
	if err := f.download(t.Context()); err == nil {
		t.Error("a pointer is stored nowhere, and yet was fetched")
	}
	for _, name := range []string{"..", ".", "nothing"} {
		f.target = name
		if err := f.download(t.Context()); err == nil {
			t.Errorf("target %q was fetched", name)
		}
	}
	f.now = func() time.Time { return time.Now().Add(30 * 24 * time.Hour) }
	if _, _, err := f.refresh(t.Context()); !trust.IsExpired(err) {
		t.Errorf("a month later: %v", err)
	}
}

// The suite wants 1, whatever went wrong, and files under their plain names.
func TestTrustClientCommandLine(t *testing.T) {
	dir, o := plainOrigin(t)
	srv := httptest.NewServer(repositoryOf(t, o))
	defer srv.Close()
	meta := t.TempDir()
	try := func(args ...string) int {
		return run(t.Context(), append([]string{"trust", "client", "--metadata-dir", meta, "--metadata-url", srv.URL}, args...), io.Discard, io.Discard)
	}
	if code := try("refresh"); code != 1 {
		t.Errorf("without a root: exit %d", code)
	}
	if code := try("init", filepath.Join(dir, "ref/trust/root")); code != 0 {
		t.Errorf("init: exit %d", code)
	}
	if code := try("refresh"); code != 0 {
		t.Errorf("refresh: exit %d", code)
	}
	for _, name := range []string{"root.json", "timestamp.json", "snapshot.json", "targets.json"} {
		if _, err := os.Stat(filepath.Join(meta, name)); err != nil {
			t.Error(err)
		}
	}
}
