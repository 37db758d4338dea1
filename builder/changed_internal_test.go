package builder

import (
	"context"
	"os"
	"strings"
	"sync"
	"testing"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/catalog"
	"coppice.dev/coppice/namespace/storetest"
)

// busyDir is a DirSource whose directory changes between the scan and the reading of content.
type busyDir struct {
	DirSource
	between func()
}

func (b busyDir) read(ctx context.Context, p *pipeline) (*scan, error) {
	s, top, err := b.find(ctx, p)
	if err != nil {
		return nil, err
	}
	b.between()
	order, out := top.layout()
	return out, s.submit(order)
}

func TestImportReadsChangedFilesAgain(t *testing.T) {
	dir := t.TempDir()
	large := storetest.Bytes(1, 2<<20)
	for name, b := range map[string][]byte{"grows": []byte("a"), "shrinks": []byte("long text"), "large": large, "same": []byte("s"),
		"growing large": []byte("b"), "emptied": []byte("e")} {
		if err := os.WriteFile(dir+"/"+name, b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	after := map[string]string{"grows": "more and more", "shrinks": "", "large": string(large[:1<<20+7]), "growing large": string(large) + "x", "emptied": ""}
	src := busyDir{DirSource{Path: dir}, func() {
		for name, text := range after {
			if err := os.WriteFile(dir+"/"+name, []byte(text), 0o644); err != nil {
				t.Error(err)
			}
		}
	}}
	var mu sync.Mutex
	warned := map[string]int{}
	store := storetest.NewMem()
	r, err := Import(t.Context(), store, src, Options{Warn: func(path, _ string) {
		mu.Lock()
		defer mu.Unlock()
		warned[path]++
	}})
	if err != nil {
		t.Fatal(err)
	}
	if len(warned) != len(after) {
		t.Errorf("warned of %v", warned)
	}
	err = VerifyDir(t.Context(), NewStored(store), r.Root, DirSource{Path: dir}, Options{}, func(c catalog.Change) error {
		t.Errorf("%s differs: %v", c.Path, c.What)
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

func TestImportFailsOnFilesThatKeepChanging(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"gone", "fifo", "busy", "symlink"} {
		if err := os.WriteFile(dir+"/"+name, storetest.Bytes(1, 8<<20), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	src := busyDir{DirSource{Path: dir}, func() {
		for _, name := range []string{"gone", "symlink"} {
			if err := os.Remove(dir + "/" + name); err != nil {
				t.Error(err)
			}
		}
		if err := os.Symlink("/etc/passwd", dir+"/symlink"); err != nil {
			t.Error(err)
		}
		f, err := os.OpenFile(dir+"/busy", os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			t.Error(err)
		}
		wg.Go(func() {
			defer f.Close()
			for {
				select {
				case <-stop:
					return
				default:
					_, _ = f.WriteString("x")
				}
			}
		})
	}}
	_, err := Import(t.Context(), storetest.NewMem(), src, Options{})
	close(stop)
	wg.Wait()
	if !namespace.IsKind(err, namespace.Unavailable) || namespace.HintOf(err) == "" {
		t.Fatalf("error %v", err)
	}
	for _, want := range []string{"gone: vanished", "busy: changed twice", "import symlink: became something else"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error %q does not say %q", err, want)
		}
	}
}
