package fusefs

import (
	"crypto/sha256"
	"runtime"
	"testing"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/catalog"
)

func TestEveryKindHasAnErrno(t *testing.T) {
	for _, k := range namespace.Kinds() {
		if e, ok := errnos[k]; !ok || e == 0 {
			t.Errorf("%v is errno %d", k, e)
		}
	}
}

// TestCollisionIsRefused weakens the hash: two files under one id must never become one.
func TestCollisionIsRefused(t *testing.T) {
	hash = func([]byte) [32]byte { return sha256.Sum256(nil) }
	defer func() { hash = sha256.Sum256 }()
	f := func(name string) *catalog.Node {
		return &catalog.Node{Name: name, Attr: catalog.Attr{Type: catalog.File, Nlink: 1}}
	}
	b, err := catalog.Encode(&catalog.Node{Attr: catalog.Attr{Type: catalog.Dir}, Children: []*catalog.Node{f("a"), f("b")}})
	if err != nil {
		t.Fatal(err)
	}
	c, err := catalog.Open(b)
	if err != nil {
		t.Fatal(err)
	}
	tab := newTable()
	n, in, err := tab.addInstance(instance{cat: c}, pathID{})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := tab.enter(7, n, 1, nil); err != nil {
			t.Errorf("the same file again: %v", err)
		}
	}
	if err := tab.enter(7, n, 2, nil); !namespace.IsKind(err, namespace.Internal) {
		t.Errorf("another file under the same id: %v", err)
	}
	tab.forget(7, 2)
	if tab.len() != 0 || in.users != 1 {
		t.Errorf("%d nodes left after they were forgotten", tab.len())
	}
}

// TestNodesAreCheap bounds what a node known to the kernel costs.
func TestNodesAreCheap(t *testing.T) {
	root := &catalog.Node{Attr: catalog.Attr{Type: catalog.Dir}}
	b, err := catalog.Encode(root)
	if err != nil {
		t.Fatal(err)
	}
	c, err := catalog.Open(b)
	if err != nil {
		t.Fatal(err)
	}
	const n = 1_000_000
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	tab := newTable()
	inst, _, err := tab.addInstance(instance{cat: c}, pathID{})
	if err != nil {
		t.Fatal(err)
	}
	for id := range uint64(n) {
		if err := tab.enter(id+100, inst, 0, nil); err != nil {
			t.Fatal(err)
		}
	}
	if per := float64(heap()-before) / n; per > 45 {
		t.Errorf("%.1f bytes a node", per)
	}
	runtime.KeepAlive(tab)
}
