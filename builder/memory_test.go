package builder_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"coppice.dev/coppice/builder"
	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/storetest"
)

// remembered imports dir with a memory that went through its encoding, and returns it with the bytes read.
func remembered(t *testing.T, store namespace.Store, dir string, m *builder.Memory) (namespace.Digest, *builder.Memory, uint64) {
	t.Helper()
	m = builder.OpenMemory(m.Encode())
	var read uint64
	r, err := builder.Import(t.Context(), store, builder.DirSource{Path: dir}, builder.Options{Memory: m, Loader: builder.NewStored(store),
		Progress: func(p builder.Progress) { read = p.Bytes }})
	must(t, err)
	return r.Root, m, read
}

// aged waits until the times of what was just written are old enough to be relied on.
func aged(t *testing.T) {
	t.Helper()
	select {
	case <-time.After(2200 * time.Millisecond):
	case <-t.Context().Done():
	}
}

func TestMemory(t *testing.T) {
	store, dir := storetest.NewMem(), t.TempDir()
	makeEverything(t, dir, false)
	write(t, dir, "changes", []byte("one"))
	write(t, dir, "touched", []byte("same"))
	write(t, dir, "noted", []byte("with an attribute"))
	root, m, young := remembered(t, store, dir, builder.NewMemory())
	_, m, again := remembered(t, store, dir, m)
	if young == 0 || again != young {
		t.Errorf("%d bytes read, then %d: files too young to be relied on must be read again", young, again)
	}
	aged(t)
	_, m, _ = remembered(t, store, dir, m)
	got, m, read := remembered(t, store, dir, m)
	if got != root || read != 0 {
		t.Errorf("nothing changed: root %v, want %v; %d bytes read", got, root, read)
	}

	// The same size and mtime, other content: its ctime tells.
	info, err := os.Stat(filepath.Join(dir, "changes"))
	must(t, err)
	must(t, os.WriteFile(filepath.Join(dir, "changes"), []byte("two"), info.Mode()), os.Chtimes(filepath.Join(dir, "changes"), info.ModTime(), info.ModTime()))
	must(t, unix.Setxattr(filepath.Join(dir, "noted"), "user.note", []byte("x"), 0))
	write(t, dir, "new", []byte("new"))
	got, m, read = remembered(t, store, dir, m)
	if want := importDir(t, store, dir).Root; got != want {
		tellDifference(t, store, want, got)
	}
	if want := uint64(len("two") + len("new") + len("with an attribute")); read != want {
		t.Errorf("%d bytes read, want %d", read, want)
	}

	// An origin that lost the content gets it again.
	other := storetest.NewMem()
	got, _, _ = remembered(t, other, dir, m)
	if want := importDir(t, store, dir).Root; got != want {
		t.Errorf("into another origin: %v, want %v", got, want)
	}
	report, err := builder.VerifyStore(context.Background(), other, []namespace.Digest{got}, builder.VerifyOptions{})
	if err != nil || report.Problems != 0 {
		t.Errorf("the other origin: %+v, %v", report, err)
	}
}

func TestMemoryDamaged(t *testing.T) {
	store, dir := storetest.NewMem(), t.TempDir()
	write(t, dir, "f", []byte("f"))
	aged(t)
	_, m, _ := remembered(t, store, dir, builder.NewMemory())
	good := m.Encode()
	empty := len(builder.NewMemory().Encode())
	for i := range good {
		bad := append([]byte(nil), good...)
		bad[i] ^= 1
		if n := len(builder.OpenMemory(bad).Encode()); n != empty {
			t.Errorf("byte %d flipped: something is remembered", i)
		}
		builder.OpenMemory(good[:i])
	}
}
