package builder_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"coppice.dev/coppice/builder"
	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/catalog"
	"coppice.dev/coppice/namespace/object"
	"coppice.dev/coppice/namespace/storetest"
)

// loader loads catalogs from a store, verified.
func loader(store namespace.Store) catalog.Loader {
	return catalog.LoaderFunc(func(ctx context.Context, d namespace.Digest) (*catalog.Catalog, error) {
		stored, err := storetest.ReadAll(ctx, store, namespace.Key{Class: namespace.Blob, Digest: d}, 0, -1)
		if err != nil {
			return nil, err
		}
		b, err := object.DecodeBlob(stored, d, namespace.CatalogBytesMax)
		if err != nil {
			return nil, err
		}
		return catalog.Open(b)
	})
}

// found is an entry of an imported tree, with its content read through its locator.
type found struct {
	catalog.Attr
	target, link, xattrs string
	content              []byte
	holes                uint64
}

// tree reads a whole imported tree back, the way an endpoint does.
func tree(t testing.TB, store namespace.Store, root namespace.Digest) map[string]found {
	t.Helper()
	all := map[string]found{}
	in := &contents{store: store, locators: map[namespace.Digest]*object.Locator{}}
	err := walkCatalogs(t.Context(), store, root, func(path string, d namespace.Digest, c *catalog.Catalog, i int) error {
		e := c.Entry(i)
		f := found{Attr: e.Attr, target: string(c.Target(i)), link: string(c.Link(i))}
		for _, x := range c.Xattrs(i) {
			f.xattrs += fmt.Sprintf("%s=%q ", x.Name, x.Value)
		}
		f.xattrs = strings.TrimSpace(f.xattrs)
		lo, hi := c.Chunks(i)
		for k := lo; k < hi; k++ {
			if c.Chunk(k).Hole() {
				f.holes += c.ChunkLen(k)
				f.content = append(f.content, make([]byte, c.ChunkLen(k))...)
				continue
			}
			f.content = append(f.content, in.chunk(t, d, c, k)...)
		}
		all[path] = f
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// walkCatalogs is catalog.Walk that also knows each catalog's digest, as locators need it.
func walkCatalogs(ctx context.Context, store namespace.Store, root namespace.Digest,
	fn func(path string, d namespace.Digest, c *catalog.Catalog, i int) error) error {
	digests := map[*catalog.Catalog]namespace.Digest{}
	l := catalog.LoaderFunc(func(ctx context.Context, d namespace.Digest) (*catalog.Catalog, error) {
		c, err := loader(store).Catalog(ctx, d)
		digests[c] = d
		return c, err
	})
	return catalog.Walk(ctx, l, root, func(path string, c *catalog.Catalog, e catalog.Entry) error {
		return fn(path, digests[c], c, e.Index)
	})
}

// contents reads chunks through locators, and remembers these and the last frame.
type contents struct {
	store    namespace.Store
	locators map[namespace.Digest]*object.Locator
	at       object.Place
	frame    []byte
}

// chunk reads chunk k of catalog d.
func (s *contents) chunk(t testing.TB, d namespace.Digest, c *catalog.Catalog, k int) []byte {
	t.Helper()
	l := s.locators[d]
	if l == nil {
		stored, err := storetest.ReadAll(t.Context(), s.store, namespace.Key{Class: namespace.Locator, Digest: d}, 0, -1)
		must(t, err)
		l, err = object.OpenLocator(stored)
		must(t, err)
		if l.Len() != c.NumChunks() {
			t.Fatalf("locator of %d places for %d chunks", l.Len(), c.NumChunks())
		}
		s.locators[d] = l
	}
	p := l.Place(k)
	off := p.Off
	if p.Off = 0; p != s.at {
		b, err := storetest.ReadAll(t.Context(), s.store, namespace.Key{Class: namespace.Pack, Digest: p.Pack}, p.FrameOff, int64(p.FrameLen))
		must(t, err)
		s.frame, err = object.DecodeFrame(nil, b, p.Codec, int(p.FramePlain))
		must(t, err)
		s.at = p
	}
	plain := s.frame[off:][:c.ChunkLen(k)]
	if namespace.Sum(plain) != c.Chunk(k).Digest {
		t.Fatalf("chunk %d has another digest", k)
	}
	return plain
}

func must(t testing.TB, errs ...error) {
	t.Helper()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
}

func write(t testing.TB, dir, name string, b []byte) {
	t.Helper()
	path := filepath.Join(dir, name)
	must(t, os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, b, 0o644))
}

func importDir(t testing.TB, store namespace.Store, dir string) builder.Result {
	t.Helper()
	r, err := builder.Import(t.Context(), store, builder.DirSource{Path: dir}, builder.Options{
		Warn: func(path, reason string) { t.Errorf("warned of %q: %s", path, reason) },
	})
	must(t, err)
	return r
}

func wantKind(t testing.TB, what string, err error, k namespace.Kind, parts ...string) {
	t.Helper()
	if !namespace.IsKind(err, k) {
		t.Errorf("%s: error %v, want Kind %v", what, err, k)
		return
	}
	for _, p := range parts {
		if !strings.Contains(err.Error(), p) {
			t.Errorf("%s: error %q does not say %q", what, err, p)
		}
	}
}

const capability = "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00" // net_bind_service

// acl returns a posix ACL in the kernel's form: user::rwx user:1000:r-- group::r-x mask::r-x other::---.
func acl() []byte {
	b := binary.LittleEndian.AppendUint32(nil, 2)
	for _, e := range [][3]uint32{{1, 7, 1<<32 - 1}, {2, 4, 1000}, {4, 5, 1<<32 - 1}, {0x10, 5, 1<<32 - 1}, {0x20, 0, 1<<32 - 1}} {
		b = binary.LittleEndian.AppendUint16(b, uint16(e[0]))
		b = binary.LittleEndian.AppendUint16(b, uint16(e[1]))
		b = binary.LittleEndian.AppendUint32(b, e[2])
	}
	return b
}

// makeEverything fills dir with one of each thing that a tree can hold, names in the order of
// perm, so that directories list them differently.
func makeEverything(t testing.TB, dir string, reverse bool) {
	t.Helper()
	old := time.Unix(-5, 123456789)
	steps := []func(){
		func() { write(t, dir, "plain", []byte("hello\n")) },
		func() { write(t, dir, "empty", nil) },
		func() {
			write(t, dir, "bin/su", []byte("#!setuid"))
			must(t, os.Lchown(dir+"/bin/su", 12, 34), syscall.Chmod(dir+"/bin/su", 0o6755))
		},
		func() { write(t, dir, "old", []byte("x")); must(t, os.Chtimes(dir+"/old", old, old)) },
		func() {
			must(t, os.Symlink("../no/where", dir+"/link"), unix.Lchown(dir+"/link", 7, 8),
				unix.Lutimes(dir+"/link", []unix.Timeval{{Sec: 9}, {Sec: 9, Usec: 5}}))
		},
		func() { write(t, dir, "z/first", []byte("linked")) },
		func() { must(t, unix.Mknod(dir+"/null", unix.S_IFCHR|0o666, int(unix.Mkdev(1, 300)))) },
		func() { must(t, unix.Mknod(dir+"/disk", unix.S_IFBLK|0o660, int(unix.Mkdev(259, 1)))) },
		func() { must(t, unix.Mkfifo(dir+"/fifo", 0o600)) },
		func() { must(t, os.MkdirAll(dir+"/deep/er/empty", 0o700)) },
		func() { must(t, os.Mkdir(dir+"/sticky", 0o777), syscall.Chmod(dir+"/sticky", 0o1777)) },
		func() { write(t, dir, "na\xff\xfeme\n", []byte("not UTF-8")) },
		func() { write(t, dir, strings.Repeat("n", 255), []byte("long")) },
		func() {
			write(t, dir, "caps", []byte("cap"))
			must(t, unix.Lsetxattr(dir+"/caps", "security.capability", []byte(capability), 0),
				unix.Lsetxattr(dir+"/caps", "user.note", []byte("a\x00b"), 0),
				unix.Lsetxattr(dir+"/caps", "user.empty", nil, 0),
				unix.Lsetxattr(dir+"/caps", "trusted.secret", []byte("root's"), 0))
		},
		func() {
			must(t, os.Mkdir(dir+"/acl", 0o750), unix.Lsetxattr(dir+"/acl", "system.posix_acl_access", acl(), 0),
				unix.Lsetxattr(dir+"/acl", "system.posix_acl_default", acl(), 0))
		},
		func() {
			must(t, unix.Lsetxattr(dir+"/link", "trusted.onlink", []byte("l"), 0))
		},
		func() { write(t, dir, "large", storetest.Bytes(1, 3<<20)) },
		func() {
			f, err := os.Create(dir + "/sparse")
			must(t, err)
			_, err1 := f.WriteAt([]byte("middle"), 10<<20)
			must(t, err1, f.Truncate(40<<20), f.Close())
		},
		func() { write(t, dir, "zeros", make([]byte, 40<<20)) },
	}
	if reverse { // but what needs another step's file
		slices.Reverse(steps)
		i := len(steps) - 1 - 15
		j := len(steps) - 1 - 4
		steps[i], steps[j] = steps[j], steps[i]
	}
	for _, step := range steps {
		step()
	}
	must(t, os.Link(dir+"/z/first", dir+"/b-link"), os.Link(dir+"/z/first", dir+"/z/another"))
	must(t, os.Link(dir+"/fifo", dir+"/fifo2"))
	stamp := time.Unix(1_700_000_000, 987654321)
	must(t, filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && d.Name() != "old" && d.Name() != "link" {
			err = os.Chtimes(path, stamp, stamp)
		}
		return err
	}))
}
