package audit_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/rollout/audit"
)

// written makes a trail of n entries and returns its path and the head.
func written(t *testing.T, n int, o audit.Options) (string, audit.Anchor) {
	path := filepath.Join(t.TempDir(), "audit.log")
	l, err := audit.Open(path, o)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for i := range n {
		if err := l.Record("ann", "channel.set", fmt.Sprint("desktop/stable ", i), "done", map[string]string{"to": "desk@7"}); err != nil {
			t.Fatal(err)
		}
	}
	head, err := l.Head()
	if err != nil {
		t.Fatal(err)
	}
	return path, head
}

func verify(t *testing.T, path string, want uint64, anchors ...audit.Anchor) audit.Report {
	t.Helper()
	r, err := audit.Verify(path, anchors, nil)
	if err != nil || r.Head.Seq != want {
		t.Fatalf("%+v, %v; want %d entries", r, err, want)
	}
	return r
}

func expectCorrupt(t *testing.T, path, part string, anchors ...audit.Anchor) {
	t.Helper()
	_, err := audit.Verify(path, anchors, nil)
	if !namespace.IsKind(err, namespace.Corrupt) || !strings.Contains(err.Error(), part) {
		t.Fatalf("got %v, want %q", err, part)
	}
}

func TestTrail(t *testing.T) {
	at := time.Date(2026, 11, 23, 8, 0, 0, 7, time.UTC)
	path, head := written(t, 3, audit.Options{Now: func() time.Time { return at }})
	var seen []audit.Entry
	r, err := audit.Verify(path, []audit.Anchor{head}, func(e audit.Entry) error { seen = append(seen, e); return nil })
	if err != nil || r.First != 1 || r.Head != head || len(seen) != 3 {
		t.Fatalf("%+v, %v", r, err)
	}
	if e := seen[2]; e.Seq != 3 || !e.Time.Equal(at) || e.Actor != "ann" || e.Subject != "desktop/stable 2" || e.Detail["to"] != "desk@7" {
		t.Fatalf("%+v", e)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatal(info.Mode(), err)
	}
}

func TestAttackTampering(t *testing.T) {
	edit := func(change func(lines [][]byte) [][]byte) func(*testing.T, string) {
		return func(t *testing.T, path string) {
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			lines := bytes.SplitAfter(b, []byte{'\n'})
			if err := os.WriteFile(path, bytes.Join(change(lines[:len(lines)-1]), nil), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	replace := func(line int, old, with string) func(*testing.T, string) {
		return edit(func(l [][]byte) [][]byte {
			l[line] = bytes.Replace(l[line], []byte(old), []byte(with), 1)
			return l
		})
	}
	for name, c := range map[string]struct {
		do   func(*testing.T, string)
		part string
	}{
		"edit in the middle": {replace(3, "ann", "bob"), "was changed"},
		"edit of the first":  {replace(0, "ann", "bob"), "was changed"},
		"edit of the last":   {replace(9, "ann", "bob"), "not the one that was anchored"},
		"edit of a digest":   {replace(3, `"prev":"sha256:`, `"prev":"sha256:00`), "does not follow"},
		"delete in middle":   {edit(func(l [][]byte) [][]byte { return append(l[:4:4], l[5:]...) }), "taken out"},
		"delete the first":   {edit(func(l [][]byte) [][]byte { return l[1:] }), "lines before are missing"},
		"cut the end off":    {edit(func(l [][]byte) [][]byte { return l[:7] }), "cut off"},
		"cut all":            {edit(func([][]byte) [][]byte { return nil }), "cut off"},
		"cut in a line":      {edit(func(l [][]byte) [][]byte { l[9] = l[9][:20]; return l }), "no end"},
		"reorder":            {edit(func(l [][]byte) [][]byte { l[2], l[3] = l[3], l[2]; return l }), "moved"},
		"repeat":             {edit(func(l [][]byte) [][]byte { return append(l[:4:4], l[3:]...) }), "put in"},
		"insert":             {edit(func(l [][]byte) [][]byte { return append(append(l[:4:4], []byte("{}\n")), l[4:]...) }), "no line of a trail"},
		"white space":        {replace(3, `"seq":4,`, `"seq": 4,`), "no line of a trail"},
		"duplicate key":      {replace(3, `"seq":4,`, `"seq":4,"seq":4,`), "no line of a trail"},
		"a line too long":    {replace(3, "ann", strings.Repeat("a", 70_000)), "longer than"},
		"blank line":         {edit(func(l [][]byte) [][]byte { l[3] = append(l[3], '\n'); return l }), "no line of a trail"},
		"remove the head": {func(t *testing.T, path string) {
			if err := os.Remove(path + ".head"); err != nil {
				t.Fatal(err)
			}
		}, "its head names entry 0"},
		"damage the head": {func(t *testing.T, path string) {
			if err := os.WriteFile(path+".head", []byte("10:sha256:00\n"), 0o600); err != nil {
				t.Fatal(err)
			}
		}, "SEQ:sha256:HEX"},
	} {
		t.Run(name, func(t *testing.T) {
			path, _ := written(t, 10, audit.Options{})
			verify(t, path, 10)
			c.do(t, path)
			expectCorrupt(t, path, c.part)
		})
	}
}

// TestAttackRewrittenTrail replaces file and head by others that fit: only an anchor kept elsewhere
// tells.
func TestAttackRewrittenTrail(t *testing.T) {
	path, head := written(t, 10, audit.Options{})
	forged, _ := written(t, 12, audit.Options{})
	for _, suffix := range []string{"", ".head"} {
		if err := os.Rename(forged+suffix, path+suffix); err != nil {
			t.Fatal(err)
		}
	}
	verify(t, path, 12)
	expectCorrupt(t, path, "not the one that was anchored", head)

	shorter, _ := written(t, 5, audit.Options{})
	expectCorrupt(t, shorter, "cut off", head)
}

func TestRotationKeepsTheChain(t *testing.T) {
	path, head := written(t, 40, audit.Options{FileBytes: 2000})
	aside, err := filepath.Glob(path + ".0*")
	if err != nil || len(aside) < 3 {
		t.Fatal(aside, err)
	}
	r := verify(t, path, 40, head)
	if r.First != 1 || len(r.Files) != len(aside)+1 {
		t.Fatalf("%+v", r)
	}

	// The oldest is archived: that must be said.
	var before audit.Anchor
	var last audit.Entry
	if _, err := audit.Verify(path, nil, func(e audit.Entry) error {
		if strings.HasSuffix(aside[1], fmt.Sprintf("%012d", e.Seq)) {
			before = audit.Anchor{Seq: last.Seq, Digest: e.Prev}
		}
		last = e
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(aside[0]); err != nil {
		t.Fatal(err)
	}
	expectCorrupt(t, path, "lines before are missing")
	verify(t, path, 40, before)
	// One from the middle is missed in any case.
	if err := os.Remove(aside[2]); err != nil {
		t.Fatal(err)
	}
	expectCorrupt(t, path, "taken out", before)
}

func TestSeveralWriters(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	var wg sync.WaitGroup
	for i := range 4 { // as processes have each its own
		l, err := audit.Open(path, audit.Options{FileBytes: 3000})
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		wg.Go(func() {
			for range 15 {
				if err := l.Record(fmt.Sprint("w", i), "x", "y", "done", nil); err != nil {
					t.Error(err)
				}
			}
		})
	}
	checked := make(chan error, 1)
	stop := make(chan struct{})
	go func() { // what is verified meanwhile is whole at each moment
		for {
			select {
			case <-stop:
				checked <- nil
				return
			default:
			}
			if _, err := audit.Verify(path, nil, nil); err != nil && !errors.Is(err, os.ErrNotExist) {
				checked <- err
				return
			}
		}
	}()
	wg.Wait()
	close(stop)
	if err := <-checked; err != nil {
		t.Fatal(err)
	}
	verify(t, path, 60)
}

// TestCrashInTheMiddleOfALine leaves each prefix of a last line, as power cuts do.
func TestCrashInTheMiddleOfALine(t *testing.T) {
	path, _ := written(t, 3, audit.Options{})
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	head, err := os.ReadFile(path + ".head")
	if err != nil {
		t.Fatal(err)
	}
	l, err := audit.Open(path, audit.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Record("ann", "x", "y", "done", nil); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	more, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for cut := len(whole); cut <= len(more); cut += 13 {
		if err := os.WriteFile(path, more[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path+".head", head, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := l.Record("ann", "after the crash", "y", "done", nil); err != nil {
			t.Fatalf("cut at %d: %v", cut, err)
		}
		want := uint64(4)
		if cut > len(whole) {
			want = 5 // the repair is recorded
		}
		verify(t, path, want)
	}
	// The whole line and no head: it was on disk, and counts.
	if err := os.WriteFile(path, more, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path+".head", head, 0o600); err != nil {
		t.Fatal(err)
	}
	verify(t, path, 4)
}

func TestWriterRefusesACutTrail(t *testing.T) {
	path, _ := written(t, 3, audit.Options{})
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	cut := bytes.Index(b, []byte{'\n'}) + 1
	if err := os.WriteFile(path, b[:cut], 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := audit.Open(path, audit.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := l.Record("ann", "x", "y", "done", nil); !namespace.IsKind(err, namespace.Corrupt) {
		t.Fatalf("got %v", err)
	}
	if after, err := os.ReadFile(path); err != nil || len(after) != cut {
		t.Fatal("it was written to", err)
	}
}

func TestEntriesThatDoNotFit(t *testing.T) {
	path, _ := written(t, 1, audit.Options{})
	l, err := audit.Open(path, audit.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := l.Record("ann", "x", strings.Repeat("y", 70_000), "done", nil); !namespace.IsKind(err, namespace.Limit) {
		t.Fatal(err)
	}
	if err := l.Record("a\xffb", "new\nline", "\u2028", "done", map[string]string{"k\xfe": "v\xfd"}); err != nil {
		t.Fatal(err)
	}
	verify(t, path, 2)
}

func TestAnchors(t *testing.T) {
	good := "7:sha256:" + strings.Repeat("0f", 32)
	if a, err := audit.ParseAnchor(good); err != nil || a.String() != good {
		t.Fatal(a, err)
	}
	for _, s := range []string{"", "7", "7:", "07" + good[1:], "-1" + good[1:], good + "00", strings.ToUpper(good), "99999999999999999999" + good[1:]} {
		if _, err := audit.ParseAnchor(s); !namespace.IsKind(err, namespace.Invalid) {
			t.Errorf("%q: %v", s, err)
		}
	}
}

// FuzzVerify holds that whatever a file holds, it is Corrupt or a chain of whole lines.
func FuzzVerify(f *testing.F) {
	dir := f.TempDir()
	path := filepath.Join(dir, "audit.log")
	l, err := audit.Open(path, audit.Options{})
	if err != nil {
		f.Fatal(err)
	}
	for range 3 {
		if err := l.Record("ann", "x", "y", "done", map[string]string{"a": "b"}); err != nil {
			f.Fatal(err)
		}
	}
	if err := l.Close(); err != nil {
		f.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add(b[:len(b)-1])
	f.Add([]byte("{}\n"))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, other []byte) {
		if err := os.WriteFile(path, other, 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := audit.Verify(path, nil, nil)
		if err == nil && !bytes.Equal(other, b) {
			t.Fatalf("accepted %q", other)
		}
		if err != nil && !namespace.IsKind(err, namespace.Corrupt) {
			t.Fatal(err)
		}
	})
}
