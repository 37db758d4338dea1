package builder_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"coppice.dev/coppice/builder"
	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/catalog"
	"coppice.dev/coppice/namespace/storetest"
)

type layerHeaders []tar.Header

// layersOf makes a source of archives; opened counts how often each is read.
func layersOf(opened []int, archives ...[]byte) builder.LayersSource {
	var l builder.LayersSource
	for i, b := range archives {
		l.Layers = append(l.Layers, builder.Layer{
			Name: fmt.Sprintf("layer %d", i+1),
			Open: func(context.Context) (io.ReadCloser, error) {
				if opened != nil {
					opened[i]++
				}
				return io.NopCloser(bytes.NewReader(b)), nil
			},
		})
	}
	return l
}

func archives(t testing.TB, layers []layerHeaders) [][]byte {
	var all [][]byte
	for _, headers := range layers {
		all = append(all, archive(t, headers...))
	}
	return all
}

// importLayers imports and returns what the tree holds, and the warnings.
func importLayers(t testing.TB, l builder.LayersSource) (map[string]found, string, error) {
	t.Helper()
	var warned strings.Builder
	store := storetest.NewMem()
	r, err := builder.Import(t.Context(), store, l, builder.Options{
		Warn: func(path, reason string) { fmt.Fprintf(&warned, "%s: %s\n", path, reason) },
	})
	if err != nil {
		return nil, warned.String(), err
	}
	return tree(t, store, r.Root), warned.String(), nil
}

func whiteout(name string) tar.Header { return file(name, "") }

func TestLayersApplyInOrder(t *testing.T) {
	base := layerHeaders{dirHeader("d"), file("d/a", "a1"), file("d/b", "b1"), dirHeader("d/sub"), file("d/sub/x", "x1"),
		link("s", "d", tar.TypeSymlink), file("f", "f1"), link("g", "f", tar.TypeLink)}
	for name, c := range map[string]struct {
		layers []layerHeaders
		want   string // path=content, sorted
	}{
		"nothing on top":         {[]layerHeaders{base, {}}, "d/ d/a=a1 d/b=b1 d/sub/ d/sub/x=x1 f=f1 g=f1 s->d"},
		"a file is replaced":     {[]layerHeaders{base, {file("d/a", "a2")}}, "d/ d/a=a2 d/b=b1 d/sub/ d/sub/x=x1 f=f1 g=f1 s->d"},
		"a name of a hard link":  {[]layerHeaders{base, {file("f", "f2")}}, "d/ d/a=a1 d/b=b1 d/sub/ d/sub/x=x1 f=f2 g=f1 s->d"},
		"whiteout of a file":     {[]layerHeaders{base, {whiteout("d/.wh.a")}}, "d/ d/b=b1 d/sub/ d/sub/x=x1 f=f1 g=f1 s->d"},
		"whiteout of a tree":     {[]layerHeaders{base, {whiteout(".wh.d")}}, "f=f1 g=f1 s->d"},
		"whiteout of a link":     {[]layerHeaders{base, {whiteout(".wh.s"), whiteout(".wh.f")}}, "d/ d/a=a1 d/b=b1 d/sub/ d/sub/x=x1 g=f1"},
		"whiteout, then anew":    {[]layerHeaders{base, {whiteout(".wh.d"), file("d/n", "n2")}}, "d/ d/n=n2 f=f1 g=f1 s->d"},
		"anew, then whiteout":    {[]layerHeaders{base, {file("d/n", "n2"), whiteout(".wh.d")}}, "d/ d/n=n2 f=f1 g=f1 s->d"},
		"whiteout of its own":    {[]layerHeaders{base, {file("n", "n2"), whiteout(".wh.n"), file("d/a", "a2"), whiteout("d/.wh.a")}}, "d/ d/a=a2 d/b=b1 d/sub/ d/sub/x=x1 f=f1 g=f1 n=n2 s->d"},
		"in the layer above":     {[]layerHeaders{base, {file("n", "n2")}, {whiteout(".wh.n"), whiteout(".wh.d")}}, "f=f1 g=f1 s->d"},
		"back in a third":        {[]layerHeaders{base, {whiteout(".wh.d")}, {file("d/a", "a3")}}, "d/ d/a=a3 f=f1 g=f1 s->d"},
		"opaque first":           {[]layerHeaders{base, {dirHeader("d"), whiteout("d/.wh..wh..opq"), file("d/n", "n2")}}, "d/ d/n=n2 f=f1 g=f1 s->d"},
		"opaque last":            {[]layerHeaders{base, {dirHeader("d"), file("d/sub/n", "n2"), file("d/b", "b2"), whiteout("d/.wh..wh..opq")}}, "d/ d/b=b2 d/sub/ d/sub/n=n2 f=f1 g=f1 s->d"},
		"opaque twice":           {[]layerHeaders{base, {whiteout("d/.wh..wh..opq"), file("d/n", "n2"), whiteout("d/.wh..wh..opq")}}, "d/ d/n=n2 f=f1 g=f1 s->d"},
		"opaque root":            {[]layerHeaders{base, {file("n", "n2"), whiteout(".wh..wh..opq")}}, "n=n2"},
		"opaque of a layer each": {[]layerHeaders{base, {file("d/n", "n2"), whiteout("d/.wh..wh..opq")}, {file("d/m", "m3"), whiteout("d/.wh..wh..opq")}}, "d/ d/m=m3 f=f1 g=f1 s->d"},
		"hard link to below":     {[]layerHeaders{base, {link("h", "d/b", tar.TypeLink), whiteout("d/.wh.b")}}, "d/ d/a=a1 d/sub/ d/sub/x=x1 f=f1 g=f1 h=b1 s->d"},
		"a symlink becomes dir":  {[]layerHeaders{base, {dirHeader("s"), file("s/n", "n2")}}, "d/ d/a=a1 d/b=b1 d/sub/ d/sub/x=x1 f=f1 g=f1 s/ s/n=n2"},
		"a tree becomes symlink": {[]layerHeaders{base, {link("d", "/etc", tar.TypeSymlink)}}, "d->/etc f=f1 g=f1 s->d"},
		"a tree becomes a file":  {[]layerHeaders{base, {file("d", "d2")}, {dirHeader("d"), file("d/n", "n3")}}, "d/ d/n=n3 f=f1 g=f1 s->d"},
		"absolute names":         {[]layerHeaders{base, {file("/d/a", "a2"), file("//d/./b", "b2"), link("h", "/f", tar.TypeLink), whiteout("/.wh.s"), dirHeader("/")}}, "d/ d/a=a2 d/b=b2 d/sub/ d/sub/x=x1 f=f1 g=f1 h=f1"},
		"last of one name":       {[]layerHeaders{base, {file("d/a", "a2"), file("d/a", "a3")}, {}}, "d/ d/a=a3 d/b=b1 d/sub/ d/sub/x=x1 f=f1 g=f1 s->d"},
		"no layers":              {nil, ""},
	} {
		t.Run(name, func(t *testing.T) {
			all, warned, err := importLayers(t, layersOf(nil, archives(t, c.layers)...))
			must(t, err)
			if got := listing(all); got != c.want || warned != "" {
				t.Errorf("got  %s\nwant %s\nwarned %q", got, c.want, warned)
			}
		})
	}
}

// listing prints a tree on a line.
func listing(all map[string]found) string {
	var lines []string
	for _, path := range slices.Sorted(maps.Keys(all)) {
		switch f := all[path]; {
		case path == "":
		case f.Type == catalog.Dir:
			lines = append(lines, path+"/")
		case f.Type == catalog.Symlink:
			lines = append(lines, path+"->"+f.target)
		default:
			lines = append(lines, path+"="+string(f.content))
		}
	}
	return strings.Join(lines, " ")
}

// Attributes of a directory are those of the last layer that describes it.
func TestLayersDirectoryAttributes(t *testing.T) {
	private := tar.Header{Name: "d/", Typeflag: tar.TypeDir, Mode: 0o700, Uid: 7}
	for name, c := range map[string]struct {
		layers []layerHeaders
		mode   uint16
	}{
		"described below":  {[]layerHeaders{{private}, {file("d/f", "x")}}, 0o700},
		"described above":  {[]layerHeaders{{dirHeader("d"), file("d/f", "x")}, {private}}, 0o700},
		"removed below":    {[]layerHeaders{{private}, {whiteout(".wh.d"), file("d/f", "x")}}, 0o755},
		"removed at last":  {[]layerHeaders{{private}, {file("d/f", "x"), whiteout(".wh.d")}}, 0o755},
		"emptied, not own": {[]layerHeaders{{private, file("d/g", "x")}, {whiteout("d/.wh..wh..opq"), file("d/f", "x")}}, 0o700},
	} {
		all, _, err := importLayers(t, layersOf(nil, archives(t, c.layers)...))
		must(t, err)
		if d := all["d"]; d.Mode != c.mode || listing(all) != "d/ d/f=x" {
			t.Errorf("%s: mode %#o of %s, want %#o", name, d.Mode, listing(all), c.mode)
		}
	}
}

func TestLayersRefuseHostileEntries(t *testing.T) {
	base := layerHeaders{dirHeader("d"), link("s", "/etc", tar.TypeSymlink), link("s2", "s", tar.TypeSymlink), file("f", "x")}
	for name, c := range map[string]struct {
		top     layerHeaders
		culprit string
	}{
		"upwards":                    {layerHeaders{file("../x", "x")}, "../x"},
		"absolute and upwards":       {layerHeaders{file("/../x", "x")}, "/../x"},
		"through a lower symlink":    {layerHeaders{file("s/passwd", "x")}, "s/passwd"},
		"through two symlinks":       {layerHeaders{file("s2/passwd", "x")}, "s2/passwd"},
		"through a lower file":       {layerHeaders{file("f/x", "x")}, "f/x"},
		"hard link by a symlink":     {layerHeaders{link("h", "s/shadow", tar.TypeLink)}, "s/shadow"},
		"hard link upwards":          {layerHeaders{link("h", "/../etc/shadow", tar.TypeLink)}, "etc/shadow"},
		"hard link to what is gone":  {layerHeaders{whiteout(".wh.f"), link("h", "f", tar.TypeLink)}, `"f"`},
		"whiteout by a symlink":      {layerHeaders{whiteout("s/.wh.passwd")}, "s/.wh.passwd"},
		"opaque by a symlink":        {layerHeaders{whiteout("s/.wh..wh..opq")}, "s/.wh..wh..opq"},
		"whiteout of the parent":     {layerHeaders{whiteout("d/.wh...")}, "d/.wh..."},
		"whiteout of itself":         {layerHeaders{whiteout("d/.wh..")}, "d/.wh.."},
		"whiteout of nothing at all": {layerHeaders{whiteout("d/.wh.")}, "d/.wh."},
		"below a whiteout":           {layerHeaders{file(".wh.d/x", "x")}, ".wh.d/x"},
		"root as a file":             {layerHeaders{file("/.", "")}, `"/."`},
		"unknown type":               {layerHeaders{{Name: "a", Typeflag: 'Z'}}, `"a"`},
	} {
		_, _, err := importLayers(t, layersOf(nil, archives(t, []layerHeaders{base, c.top})...))
		wantKind(t, name, err, namespace.Invalid, "layer 2", c.culprit)
	}
	_, _, err := importLayers(t, builder.LayersSource{Layers: make([]builder.Layer, namespace.LayersMax+1)})
	wantKind(t, "too many layers", err, namespace.Limit)
}

// What removes nothing does no harm, and is told of.
func TestLayersWarn(t *testing.T) {
	all, warned, err := importLayers(t, layersOf(nil, archives(t, []layerHeaders{
		{file("f", "x"), whiteout("gone/.wh.x")}, {whiteout(".wh.gone"), whiteout("gone/.wh..wh..opq"), dirHeader(".wh..wh.plnk"), file(".wh..wh.plnk/12.34", "x")},
	})...))
	must(t, err)
	if got := listing(all); got != "f=x" {
		t.Errorf("imported %s", got)
	}
	for _, want := range []string{`layer 1 "gone/.wh.x"`, `layer 2 ".wh.gone"`, `layer 2 "gone/.wh..wh..opq"`, `layer 2 ".wh..wh.plnk/12.34"`} {
		if !strings.Contains(warned, want) {
			t.Errorf("warned %q, not of %s", warned, want)
		}
	}
}

// Content that a later layer removes or replaces is not stored; the last layer is read once.
func TestLayersStoreOnlyWhatIsKept(t *testing.T) {
	noise := string(storetest.Bytes(7, 300<<10))
	opened := make([]int, 3)
	l := layersOf(opened, archives(t, []layerHeaders{
		{file("a", "old"+noise), file("b", "gone"+noise), file("c", "kept")}, {file("a", "new"), whiteout(".wh.b")}, {file("c2", "top")},
	})...)
	r, err := builder.Import(t.Context(), storetest.NewMem(), l, builder.Options{})
	must(t, err)
	if r.NewBytes != uint64(len("kept"+"new"+"top")) {
		t.Errorf("stored %d bytes", r.NewBytes)
	}
	if !slices.Equal(opened, []int{2, 2, 1}) {
		t.Errorf("opened %v times", opened)
	}
}

// A layer that is another one at the second look is not believed.
func TestLayersChangedMeanwhile(t *testing.T) {
	first, second := archive(t, file("a", "x"), file("b", "y")), archive(t, file("a", "x"))
	l := layersOf(nil, first, archive(t))
	l.Layers[0].Open = func(context.Context) (io.ReadCloser, error) {
		b := first
		first = second
		return io.NopCloser(bytes.NewReader(b)), nil
	}
	_, _, err := importLayers(t, l)
	wantKind(t, "another layer", err, namespace.Unavailable, "layer 1")
	l.Layers[0].Open = func(context.Context) (io.ReadCloser, error) {
		return io.NopCloser(failing{errors.New("corrupt input")}), nil // as decompressors say it
	}
	_, _, err = importLayers(t, l)
	wantKind(t, "a layer that fails at once", err, namespace.Corrupt, "layer 1")
	fails := namespace.E(namespace.Denied, "open", "layer", nil)
	l.Layers[0].Open = func(context.Context) (io.ReadCloser, error) { return nil, fails }
	_, _, err = importLayers(t, l)
	wantKind(t, "a layer that does not open", err, namespace.Denied)
}

// A layer that repeats the opaque marker of a large directory costs no more than its entries.
func TestLayersRepeatedOpaqueMarkers(t *testing.T) {
	var top layerHeaders
	for i := range 5_000 {
		top = append(top, file(fmt.Sprintf("d/%d", i), ""))
	}
	for range 40_000 {
		top = append(top, whiteout("d/.wh..wh..opq"))
	}
	start := time.Now()
	all, _, err := importLayers(t, layersOf(nil, archives(t, []layerHeaders{{file("d/gone", "x")}, top})...))
	must(t, err)
	if len(all) != 5_002 || time.Since(start) > 10*time.Second { // 200 million steps if each were looked at again
		t.Errorf("%d entries after %v", len(all), time.Since(start))
	}
}

// 8 GB of zeros in some kilobytes: a hole in the tree, neither memory nor disk.
func TestLayersZeros(t *testing.T) {
	dir := t.TempDir()
	f, err := os.Create(dir + "/huge")
	must(t, err, f.Truncate(8<<30), f.Close())
	bomb, err := exec.Command("tar", "--format=posix", "--sparse", "-C", dir, "-cf", "-", "huge").Output()
	must(t, err)
	store := storetest.NewMem()
	r, err := builder.Import(t.Context(), store, layersOf(nil, bomb, archive(t, file("f", "x"))), builder.Options{})
	must(t, err)
	if r.NewBytes > 1<<20 || r.Stored > 1<<20 || len(bomb) > 64<<10 {
		t.Errorf("an archive of %d bytes stored %+v", len(bomb), r)
	}
}

func FuzzLayers(f *testing.F) {
	base := archive(f, dirHeader("d"), file("d/f", "text"), link("s", "d", tar.TypeSymlink))
	f.Add(base, archive(f, whiteout("d/.wh.f"), file("/d/n", "x"), whiteout("d/.wh..wh..opq")))
	f.Add(base, archive(f, whiteout("s/.wh.f")))
	f.Add(base, archive(f, link("h", "/d/f", tar.TypeLink), whiteout(".wh.d"), whiteout(".wh...")))
	f.Fuzz(func(t *testing.T, below, above []byte) {
		all, _, err := importLayers(t, layersOf(nil, below, above))
		if err != nil {
			if namespace.IsKind(err, namespace.Internal) {
				t.Fatalf("kind internal: %v", err)
			}
			return
		}
		for path := range all {
			for part := range strings.SplitSeq(path, "/") {
				if part == ".." || part == "." || path != "" && part == "" || strings.HasPrefix(part, ".wh.") {
					t.Fatalf("imported the name %q", path)
				}
			}
		}
	})
}
