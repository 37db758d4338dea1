package oci_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"coppice.dev/coppice/builder"
	"coppice.dev/coppice/builder/oci"
	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/catalog"
	"coppice.dev/coppice/namespace/storetest"
)

func must(t testing.TB, errs ...error) {
	t.Helper()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
}

func wantKind(t testing.TB, what string, err error, k namespace.Kind, parts ...string) {
	t.Helper()
	if !namespace.IsKind(err, k) {
		t.Errorf("%s: error %v, want Kind %v", what, err, k)
		return
	}
	for _, p := range parts {
		if !strings.Contains(err.Error()+namespace.HintOf(err), p) {
			t.Errorf("%s: error %q (%s) does not say %q", what, err, namespace.HintOf(err), p)
		}
	}
}

// archive returns a tar archive of files, name then content; a name that ends with "/" is a directory.
func archive(t testing.TB, pairs ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for i := 0; i < len(pairs); i += 2 {
		h := &tar.Header{Name: pairs[i], Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(pairs[i+1]))}
		if strings.HasSuffix(h.Name, "/") {
			h.Typeflag, h.Mode = tar.TypeDir, 0o755
		}
		must(t, w.WriteHeader(h))
		_, err := io.WriteString(w, pairs[i+1])
		must(t, err)
	}
	must(t, w.Close())
	return b.Bytes()
}

// image returns an image of layers for a platform.
func image(t testing.TB, arch string, layers ...[]byte) v1.Image {
	t.Helper()
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	for _, b := range layers {
		l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil })
		must(t, err)
		img, err = mutate.AppendLayers(img, l)
		must(t, err)
	}
	c, err := img.ConfigFile()
	must(t, err)
	c = c.DeepCopy()
	c.OS, c.Architecture = "linux", arch
	c.Config.Env, c.Config.Entrypoint = []string{"A=" + arch}, []string{"/bin/" + arch}
	c.Config.Labels = map[string]string{"for": arch}
	img, err = mutate.ConfigFile(img, c)
	must(t, err)
	return img
}

// twoLayers is an image of arch whose second layer removes a file of the first.
func twoLayers(t testing.TB, arch string) v1.Image {
	return image(t, arch, archive(t, "etc/", "", "etc/arch", arch, "etc/gone", "x"), archive(t, "etc/.wh.gone", "", "etc/new", "n"))
}

// manyPlatforms is an index as build tools write it: an image a platform, and an attestation.
func manyPlatforms(t testing.TB) v1.ImageIndex {
	idx := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for _, arch := range []string{"amd64", "arm64"} {
		idx = mutate.AppendManifests(idx, mutate.IndexAddendum{Add: twoLayers(t, arch),
			Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: arch}}})
	}
	return mutate.AppendManifests(idx, mutate.IndexAddendum{Add: image(t, "x", archive(t, "attestation", "a")),
		Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "unknown", Architecture: "unknown"}}})
}

// importImage imports and lists "path=content" of what is a file.
func importImage(t testing.TB, src string, o oci.Options) (*oci.Image, string, error) {
	t.Helper()
	img, err := oci.Open(t.Context(), src, o)
	if err != nil {
		return nil, "", err
	}
	defer func() { must(t, img.Close()) }()
	store := storetest.NewMem()
	r, err := builder.Import(t.Context(), store, img.Source(), builder.Options{})
	if err != nil {
		return img, "", err
	}
	var files []string
	s := builder.NewStored(store)
	must(t, catalog.Walk(t.Context(), s, r.Root, func(path string, c *catalog.Catalog, e catalog.Entry) error {
		if e.Type != catalog.File {
			return nil
		}
		b, err := s.ReadFile(t.Context(), c, e.Index, 1<<20)
		files = append(files, path+"="+string(b))
		return err
	}))
	return img, strings.Join(files, " "), nil
}

const wantARM = "etc/arch=arm64 etc/new=n"

func writeLayout(t testing.TB, idx v1.ImageIndex) string {
	t.Helper()
	dir := t.TempDir()
	_, err := layout.Write(dir, idx)
	must(t, err)
	return dir
}

func TestOpenPicksThePlatform(t *testing.T) {
	nested := mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: manyPlatforms(t),
		Descriptor: v1.Descriptor{Annotations: map[string]string{"org.opencontainers.image.ref.name": "v1"}}})
	for what, dir := range map[string]string{"an index": writeLayout(t, manyPlatforms(t)), "an index in an index": writeLayout(t, nested)} {
		if !oci.Is(dir) {
			t.Errorf("%s: not recognised", what)
		}
		img, got, err := importImage(t, dir, oci.Options{Platform: "linux/arm64"})
		must(t, err)
		if got != wantARM || img.Platform != "linux/arm64" || img.Env[0] != "A=arm64" || img.Labels["for"] != "arm64" || img.Digest == "" {
			t.Errorf("%s: %q of %+v", what, got, img)
		}
		img, _, err = importImage(t, dir, oci.Options{})
		must(t, err)
		if img.Platform != "linux/"+runtime.GOARCH {
			t.Errorf("%s: the default is %s", what, img.Platform)
		}
		_, _, err = importImage(t, dir, oci.Options{Platform: "linux/s390x"})
		wantKind(t, what+", another platform", err, namespace.NotExist, "s390x", "linux/amd64, linux/arm64")
		_, _, err = importImage(t, dir, oci.Options{Platform: "arm64"})
		wantKind(t, what+", no platform", err, namespace.Invalid, "linux/arm64")
	}
	// An image that is the only one is taken as it is, unless another platform was asked for.
	only := writeLayout(t, mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: twoLayers(t, "riscv64")}))
	if img, _, err := importImage(t, only, oci.Options{}); err != nil || img.Platform != "linux/riscv64" {
		t.Errorf("the only image: %+v, %v", img, err)
	}
	_, _, err := importImage(t, only, oci.Options{Platform: "linux/arm64"})
	wantKind(t, "the only image is another", err, namespace.NotExist, "riscv64")
}

func TestOpenPicksTheName(t *testing.T) {
	idx := v1.ImageIndex(empty.Index)
	for _, arch := range []string{"amd64", "arm64"} {
		idx = mutate.AppendManifests(idx, mutate.IndexAddendum{Add: twoLayers(t, arch),
			Descriptor: v1.Descriptor{Annotations: map[string]string{"org.opencontainers.image.ref.name": "for-" + arch}}})
	}
	dir := writeLayout(t, idx)
	_, got, err := importImage(t, dir, oci.Options{Name: "for-arm64"})
	if err != nil || got != wantARM {
		t.Errorf("%q, %v", got, err)
	}
	_, _, err = importImage(t, dir, oci.Options{})
	wantKind(t, "several images", err, namespace.Invalid, "for-amd64, for-arm64")
	_, _, err = importImage(t, dir, oci.Options{Name: "none"})
	wantKind(t, "a name that is not there", err, namespace.NotExist, "for-amd64, for-arm64")
}

// packLayout makes the archive of a layout's directory.
func packLayout(t testing.TB, dir string) string {
	var pairs []string
	must(t, filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			b, err := os.ReadFile(path)
			pairs = append(pairs, "./"+path[len(dir)+1:], string(b))
			return err
		}
		return err
	}))
	file := filepath.Join(t.TempDir(), "layout.tar")
	must(t, os.WriteFile(file, archive(t, pairs...), 0o644))
	return file
}

func TestOpenArchives(t *testing.T) {
	layoutFile := packLayout(t, writeLayout(t, manyPlatforms(t)))
	docker := filepath.Join(t.TempDir(), "docker.tar")
	tags := map[name.Reference]v1.Image{}
	for _, arch := range []string{"amd64", "arm64"} {
		tag, err := name.NewTag("example.com/app:" + arch)
		must(t, err)
		tags[tag] = twoLayers(t, arch)
	}
	must(t, tarball.MultiRefWriteToFile(docker, tags))
	for file, o := range map[string]oci.Options{
		layoutFile: {Platform: "linux/arm64"}, docker: {Name: "example.com/app:arm64"}, gzipped(t, docker): {Name: "example.com/app:arm64"},
	} {
		if !oci.Is(file) {
			t.Errorf("%s is not recognised", file)
		}
		o.Dir = t.TempDir()
		img, got, err := importImage(t, file, o)
		must(t, err)
		if got != wantARM || img.Platform != "linux/arm64" {
			t.Errorf("%s: %q of %+v", file, got, img)
		}
		if names, _ := os.ReadDir(o.Dir); len(names) > 0 {
			t.Errorf("%s: left %v", file, names)
		}
	}
	_, _, err := importImage(t, docker, oci.Options{})
	wantKind(t, "several images of docker", err, namespace.Invalid, "example.com/app:amd64")
	_, _, err = importImage(t, docker, oci.Options{Name: "none"})
	wantKind(t, "no such image of docker", err, namespace.NotExist, "example.com/app:arm64")
}

func gzipped(t testing.TB, file string) string {
	b, err := os.ReadFile(file)
	must(t, err)
	img := static.NewLayer(b, types.OCILayer)
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return img.Uncompressed() })
	must(t, err)
	r, err := l.Compressed()
	must(t, err)
	defer r.Close()
	out, err := os.Create(file + ".gz")
	must(t, err)
	_, err = io.Copy(out, r)
	must(t, err, out.Close())
	return out.Name()
}

// Archives of other things hold such names too.
func TestIsNoImage(t *testing.T) {
	dir := t.TempDir()
	for what, b := range map[string][]byte{
		"root":     archive(t, "./", "", "bin/", "", "bin/sh", "x"),
		"web":      archive(t, "manifest.json", `{"name":"app"}`, "index.json", "[]"),
		"index":    archive(t, "index.json", `{"pages":1}`),
		"nothing":  nil,
		"no tar":   bytes.Repeat([]byte("text "), 1000),
		"bad gzip": []byte("\x1f\x8b\x08nothing"),
	} {
		file := filepath.Join(dir, what)
		must(t, os.WriteFile(file, b, 0o644))
		if oci.Is(file) {
			t.Errorf("%s is taken for an image", what)
		}
	}
	if oci.Is(dir) || oci.Is(dir+"/none") || !oci.Is("docker://example.com/a") {
		t.Error("a directory, nothing, or a reference is taken for something else")
	}
	file := filepath.Join(dir, "root")
	_, _, err := importImage(t, file, oci.Options{})
	wantKind(t, "an archive that is no image", err, namespace.Invalid, "docker save")
}

// serve starts a registry and returns its address; break may spoil answers.
func serve(t testing.TB, spoil func(w http.ResponseWriter, r *http.Request, next http.Handler)) string {
	handler := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if spoil == nil {
			handler.ServeHTTP(w, r)
			return
		}
		spoil(w, r, handler)
	}))
	t.Cleanup(server.Close)
	return strings.TrimPrefix(server.URL, "http://")
}

func push(t testing.TB, ref string, what any) {
	t.Helper()
	at, err := name.ParseReference(ref)
	must(t, err)
	switch x := what.(type) {
	case v1.Image:
		must(t, remote.Write(at, x))
	case v1.ImageIndex:
		must(t, remote.WriteIndex(at, x))
	}
}

func TestOpenRegistry(t *testing.T) {
	host := serve(t, nil)
	push(t, host+"/team/app:v1", manyPlatforms(t))
	push(t, host+"/team/one:latest", twoLayers(t, runtime.GOARCH))
	one := twoLayers(t, runtime.GOARCH)
	digest, err := one.Digest()
	must(t, err)
	var done builder.Progress
	o := oci.Options{Platform: "linux/arm64", Dir: t.TempDir(), Progress: func(p builder.Progress) { done = p }}
	img, got, err := importImage(t, "docker://"+host+"/team/app:v1", o)
	must(t, err)
	if got != wantARM || img.Platform != "linux/arm64" || done.Bytes == 0 || done.Bytes != done.BytesTotal || done.Files != 2 || done.FilesTotal != 2 {
		t.Errorf("%q of %+v, %+v", got, img, done)
	}
	if names, _ := os.ReadDir(o.Dir); len(names) > 0 {
		t.Errorf("left %v", names)
	}
	for _, ref := range []string{"oci://" + host + "/team/one", "docker://" + host + "/team/one@" + digest.String()} {
		if img, _, err := importImage(t, ref, oci.Options{Dir: t.TempDir()}); err != nil || img.Digest != digest.String() {
			t.Errorf("%s: %+v, %v", ref, img, err)
		}
	}
	_, err = oci.Open(t.Context(), "docker://"+host+"/team/app:v2", oci.Options{})
	wantKind(t, "no such tag", err, namespace.NotExist, "team/app:v2")
	_, err = oci.Open(t.Context(), "docker://not a reference", oci.Options{})
	wantKind(t, "no reference", err, namespace.Invalid, "docker://host/name:tag")
	_, err = oci.Open(t.Context(), "docker://"+host+"/team/app@sha256:"+strings.Repeat("0", 64), oci.Options{})
	wantKind(t, "no such digest", err, namespace.NotExist)
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(namespace.E(namespace.Canceled, "", "", errors.New("given up")))
	_, err = oci.Open(ctx, "docker://"+host+"/team/one", oci.Options{})
	wantKind(t, "given up", err, namespace.Canceled)
}

func TestRegistryThatFails(t *testing.T) {
	var mode string
	var broken int
	host := serve(t, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		blob := r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/")
		answer := httptest.NewRecorder()
		switch {
		case mode == "denied" && r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/manifests/"):
			w.WriteHeader(http.StatusForbidden)
		case mode == "" || !blob:
			next.ServeHTTP(w, r)
		case mode == "breaks once" && broken > 0:
			next.ServeHTTP(w, r)
		default:
			next.ServeHTTP(answer, r)
			b := answer.Body.Bytes()
			if len(b) < 4096 { // leave the configuration alone
				_, _ = w.Write(b)
				return
			}
			broken++
			if mode == "lies" {
				b[len(b)/2] ^= 1
				_, _ = w.Write(b)
				return
			}
			w.Header().Set("Content-Length", "1000000")
			_, _ = w.Write(b[:len(b)/2])
		}
	})
	noise := string(storetest.Bytes(3, 64<<10))
	push(t, host+"/app", image(t, "amd64", archive(t, "noise", noise)))
	o := oci.Options{Dir: t.TempDir()}
	mode = "lies"
	_, err := oci.Open(t.Context(), "docker://"+host+"/app", o)
	wantKind(t, "other bytes", err, namespace.Corrupt, "sha256:")
	mode, broken = "breaks", 0
	_, err = oci.Open(t.Context(), "docker://"+host+"/app", o)
	wantKind(t, "a transfer that always breaks", err, namespace.Unavailable)
	if broken != 3 {
		t.Errorf("tried %d times", broken)
	}
	mode, broken = "breaks once", 0
	if _, got, err := importImage(t, "docker://"+host+"/app", o); err != nil || got != "noise="+noise {
		t.Errorf("a transfer that breaks once: %v", err)
	}
	mode = "denied"
	_, err = oci.Open(t.Context(), "docker://"+host+"/app", o)
	wantKind(t, "no permission", err, namespace.Denied, "docker login")
	if names, _ := os.ReadDir(o.Dir); len(names) > 0 {
		t.Errorf("left %v", names)
	}
}

// Every blob of a layout is what its digest says, or the image is refused.
func TestOpenRefusesDamage(t *testing.T) {
	make := func() string {
		return writeLayout(t, mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: twoLayers(t, "amd64")}))
	}
	blobs, err := filepath.Glob(make() + "/blobs/sha256/*")
	must(t, err)
	if len(blobs) != 4 {
		t.Fatalf("%d blobs", len(blobs))
	}
	for what, damage := range map[string]func([]byte) []byte{
		"flipped":  func(b []byte) []byte { b[len(b)/2] ^= 4; return b },
		"cut":      func(b []byte) []byte { return b[:len(b)-1] },
		"extended": func(b []byte) []byte { return append(b, "x"...) },
		"emptied":  func(b []byte) []byte { return nil },
	} {
		for _, blob := range blobs {
			dir := make()
			path := filepath.Join(dir, "blobs/sha256", filepath.Base(blob))
			b, err := os.ReadFile(path)
			must(t, err, os.WriteFile(path, damage(b), 0o644))
			_, _, err = importImage(t, dir, oci.Options{})
			wantKind(t, what+" "+filepath.Base(blob), err, namespace.Corrupt)
		}
	}
	dir := make()
	must(t, os.Remove(filepath.Join(dir, "blobs/sha256", filepath.Base(blobs[0]))))
	_, _, err = importImage(t, dir, oci.Options{})
	wantKind(t, "a blob that is not there", err, namespace.NotExist)
	must(t, os.WriteFile(dir+"/index.json", []byte("{"), 0o644))
	_, _, err = importImage(t, dir, oci.Options{})
	wantKind(t, "no JSON", err, namespace.Invalid, "index.json")
	must(t, os.WriteFile(dir+"/index.json", bytes.Repeat([]byte(" "), 5<<20), 0o644))
	_, _, err = importImage(t, dir, oci.Options{})
	wantKind(t, "an endless index", err, namespace.Limit, "index.json")
}

// Layers whose archive is not the one that the configuration promised.
func TestOpenRefusesOtherArchives(t *testing.T) {
	img := twoLayers(t, "amd64")
	c, err := img.ConfigFile()
	must(t, err)
	for what, change := range map[string]func(*v1.ConfigFile){
		"another archive":  func(c *v1.ConfigFile) { c.RootFS.DiffIDs[0] = c.RootFS.DiffIDs[1] },
		"too few archives": func(c *v1.ConfigFile) { c.RootFS.DiffIDs = c.RootFS.DiffIDs[:1] },
	} {
		c := c.DeepCopy()
		change(c)
		other, err := mutate.ConfigFile(img, c)
		must(t, err)
		dir := writeLayout(t, mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: other}))
		_, _, err = importImage(t, dir, oci.Options{})
		wantKind(t, what, err, namespace.Corrupt)
	}
	c = c.DeepCopy()
	c.OS = "windows"
	other, err := mutate.ConfigFile(img, c)
	must(t, err)
	_, _, err = importImage(t, writeLayout(t, mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: other})), oci.Options{})
	wantKind(t, "another system", err, namespace.Invalid, "windows")
}

// stored is a tree with some of what images hold.
func stored(t testing.TB) (*builder.Stored, namespace.Digest) {
	store, dir := storetest.NewMem(), t.TempDir()
	for path, text := range map[string]string{"bin/sh": "#!", "etc/empty": "", "noise": string(storetest.Bytes(5, 3<<20)), "zeros": strings.Repeat("\x00", 2<<20)} {
		file := filepath.Join(dir, path)
		must(t, os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(text), 0o755))
	}
	must(t, os.Link(dir+"/bin/sh", dir+"/bin/bash"), os.Symlink("bin", dir+"/usr"), os.Chmod(dir+"/bin/sh", 0o755|os.ModeSetuid))
	r, err := builder.Import(t.Context(), store, builder.DirSource{Path: dir}, builder.Options{})
	must(t, err)
	return builder.NewStored(store), r.Root
}

func TestWriteGivesTheRootAgain(t *testing.T) {
	s, root := stored(t)
	made := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	for _, compression := range []string{"gzip", "zstd", "none"} {
		for _, packed := range []bool{false, true} {
			o := oci.WriteOptions{Compression: compression, Archive: packed, Tag: "v1", Image: oci.Image{
				Platform: "linux/arm64", Created: made, Entrypoint: []string{"/bin/sh", "-c"}, Env: []string{"A=B"}}}
			dest := filepath.Join(t.TempDir(), "out")
			w, err := oci.Write(t.Context(), s, root, dest, o)
			must(t, err)
			img, err := oci.Open(t.Context(), dest, oci.Options{Name: "v1", Platform: "linux/arm64"})
			must(t, err)
			r, err := builder.Import(t.Context(), storetest.NewMem(), img.Source(), builder.Options{
				Warn: func(p, s string) { t.Errorf("warned of %s: %s", p, s) }})
			must(t, err, img.Close())
			if r.Root != root || img.Digest != w.Manifest.String() || !slices.Equal(img.Entrypoint, o.Image.Entrypoint) || !img.Created.Equal(made.Truncate(time.Second)) {
				t.Errorf("%s: root %v, want %v; image %+v", compression, r.Root, root, img)
			}
			again := filepath.Join(t.TempDir(), "again")
			threads := runtime.GOMAXPROCS(1)
			second, err := oci.Write(t.Context(), s, root, again, o)
			runtime.GOMAXPROCS(threads)
			must(t, err)
			if second != w {
				t.Errorf("%s: %+v, and again %+v", compression, w, second)
			}
			if names, _ := os.ReadDir(filepath.Dir(dest)); len(names) != 1 {
				t.Errorf("%s: left %v", compression, names)
			}
			_, err = oci.Write(t.Context(), s, root, dest, o)
			wantKind(t, "over another", err, namespace.Exist, dest)
		}
	}
	_, err := oci.Write(t.Context(), s, root, t.TempDir(), oci.WriteOptions{Compression: "lzma"})
	wantKind(t, "no compression", err, namespace.Invalid, "gzip, zstd or none")
}

// What Write makes is an image to those who know what one is, and a registry takes it.
func TestWriteIsAnImage(t *testing.T) {
	s, root := stored(t)
	dir := filepath.Join(t.TempDir(), "out")
	_, err := oci.Write(t.Context(), s, root, dir, oci.WriteOptions{Tag: "v1"})
	must(t, err)
	idx, err := layout.ImageIndexFromPath(dir)
	must(t, err)
	m, err := idx.IndexManifest()
	must(t, err)
	img, err := idx.Image(m.Manifests[0].Digest)
	must(t, err)
	host := serve(t, nil)
	push(t, host+"/out:v1", img)
	back, err := oci.Open(t.Context(), "docker://"+host+"/out:v1", oci.Options{Dir: t.TempDir()})
	must(t, err)
	defer back.Close()
	r, err := builder.Import(t.Context(), storetest.NewMem(), back.Source(), builder.Options{})
	must(t, err)
	if r.Root != root {
		t.Errorf("root %v, want %v", r.Root, root)
	}
}

func FuzzOpenArchive(f *testing.F) {
	dir := f.TempDir()
	_, err := layout.Write(dir, mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: twoLayers(f, "amd64")}))
	must(f, err)
	b, err := os.ReadFile(packLayout(f, dir))
	must(f, err)
	f.Add(b)
	f.Add(archive(f, "manifest.json", `[{"Config":"c.json","Layers":["../l"]}]`, "c.json", `{"os":"linux","rootfs":{"diff_ids":["sha256:`+strings.Repeat("0", 64)+`"]}}`))
	f.Add(archive(f, "index.json", `{"manifests":[{"digest":"sha256:../../etc/passwd","size":-1}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		file := filepath.Join(t.TempDir(), "a.tar")
		must(t, os.WriteFile(file, b, 0o644))
		oci.Is(file)
		if _, _, err := importImage(t, file, oci.Options{Dir: t.TempDir()}); namespace.IsKind(err, namespace.Internal) {
			t.Fatalf("kind internal: %v", err)
		}
	})
}
