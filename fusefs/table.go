package fusefs

import (
	"bytes"
	"fmt"
	"slices"
	"sync"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/catalog"
)

// instance is a catalog at a place: in a generation, its root at a path.
type instance struct {
	path        pathID // of its root
	cat         *catalog.Catalog
	digest      namespace.Digest
	gen         namespace.Digest // the generation's root
	tree        pathID           // root of the tree it belongs to: hard-link paths are relative to it
	parent      *instance        // that refers to it, at parentEntry; nil for a generation's root
	parentEntry int
	users       int64 // nodes that refer to it, and holds; guarded by table.mu
}

// node is what the kernel knows under a node id: an entry of an instance, and how often the kernel
// was told of it. One word, without pointers: there may be a million of them. From the top: 20 bits
// of instance, 28 of entry (as many as a catalog can have), 16 of lookups, which stay at the
// maximum once they reach it.
type node uint64

const (
	lookupBits   = 16
	entryBits    = 28
	lookupMax    = 1<<lookupBits - 1
	instancesMax = 1 << (64 - lookupBits - entryBits)
)

func newNode(inst uint32, entry int, lookups uint64) node {
	return node(uint64(inst)<<(lookupBits+entryBits) | uint64(entry)<<lookupBits | min(lookups, lookupMax))
}

func (n node) inst() uint32    { return uint32(n >> (lookupBits + entryBits)) }
func (n node) entry() int      { return int(n >> lookupBits & (1<<entryBits - 1)) }
func (n node) lookups() uint64 { return uint64(n & lookupMax) }

// dirInfo is what a directory's node has besides: where it is.
type dirInfo struct {
	path pathID
	gen  namespace.Digest
}

const shardCount = 64

type shard struct {
	mu    sync.RWMutex
	nodes map[uint64]node
	dirs  map[uint64]dirInfo
}

// table is the set of nodes that the kernel knows. Lock order: a shard's, then mu.
type table struct {
	shards [shardCount]shard

	mu        sync.RWMutex
	instances []*instance // by number; nil once dropped
	free      []uint32    // numbers of dropped ones
	numbers   map[instanceKey]uint32
}

// instanceKey tells instances apart: one catalog may be at several places of one generation.
type instanceKey struct {
	gen    namespace.Digest
	path   pathID
	digest namespace.Digest
}

func newTable() *table {
	t := &table{numbers: map[instanceKey]uint32{}}
	for i := range t.shards {
		t.shards[i].nodes = map[uint64]node{}
		t.shards[i].dirs = map[uint64]dirInfo{}
	}
	return t
}

func (t *table) shard(id uint64) *shard { return &t.shards[id%shardCount] }

// addInstance returns the instance in and its number, with its root at path, adding it if there is
// none like it. It is held: it and its number stay until the caller releases it. Kinds: Limit.
func (t *table) addInstance(in instance, path pathID) (uint32, *instance, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	in.path = path
	key := instanceKey{in.gen, path, in.digest}
	if n, ok := t.numbers[key]; ok {
		t.instances[n].users++
		return n, t.instances[n], nil
	}
	in.users = 1
	n := uint32(len(t.instances))
	switch {
	case len(t.free) > 0:
		n, t.free = t.free[len(t.free)-1], t.free[:len(t.free)-1]
		t.instances[n] = &in
	case n == instancesMax:
		return 0, nil, namespace.E(namespace.Limit, "load catalog", in.digest.String(), fmt.Errorf("%d catalogs in use", n))
	default:
		t.instances = append(t.instances, &in)
	}
	t.numbers[key] = n
	return n, &in, nil
}

// release gives back a hold.
func (t *table) release(inst uint32) { t.count(inst, -1) }

// instance returns an instance that a node refers to, or that is held.
func (t *table) instance(n uint32) *instance {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.instances[n]
}

// get returns the node's entry and, for a directory, where it is. ok is false for a node that the
// kernel should not know.
func (t *table) get(id uint64) (in *instance, entry int, dir dirInfo, ok bool) {
	s := t.shard(id)
	s.mu.RLock()
	defer s.mu.RUnlock() // until the instance is found: its number might be another's afterwards
	n, ok := s.nodes[id]
	if !ok {
		return nil, 0, dir, false
	}
	return t.instance(n.inst()), n.entry(), s.dirs[id], true
}

// hold is get of a node whose instance is to be used by number: the caller releases it.
func (t *table) hold(id uint64) (in *instance, inst uint32, entry int, dir dirInfo, ok bool) {
	s := t.shard(id)
	s.mu.RLock()
	defer s.mu.RUnlock()
	n, ok := s.nodes[id]
	if !ok {
		return nil, 0, 0, dir, false
	}
	t.count(n.inst(), 1)
	return t.instance(n.inst()), n.inst(), n.entry(), s.dirs[id], true
}

// enter counts one more lookup of id and makes it refer to the entry given, of an instance that the
// caller holds: what is known as a file of an old generation is one of the new from then on. Two
// different things under one id are a collision, and refused: the chance is 2⁻⁶⁴ a pair, but wrong
// data would be worse than an error.
func (t *table) enter(id uint64, inst uint32, entry int, dir *dirInfo) error {
	s := t.shard(id)
	s.mu.Lock()
	defer s.mu.Unlock()
	n, known := s.nodes[id]
	if known && !t.same(id, s, n, inst, entry, dir) {
		return namespace.E(namespace.Internal, "enter node", fmt.Sprintf("%#x", id),
			fmt.Errorf("collision: %q and %q", t.name(n.inst(), n.entry()), t.name(inst, entry)))
	}
	if dir != nil {
		if known { // a directory is of one generation, and may have been resolved
			inst, entry = n.inst(), n.entry()
		}
		s.dirs[id] = *dir
	}
	if !known || n.inst() != inst {
		t.count(inst, 1)
		if known {
			t.count(n.inst(), -1)
		}
	}
	s.nodes[id] = newNode(inst, entry, n.lookups()+1)
	return nil
}

// same reports whether what is known under id is what is entered.
func (t *table) same(id uint64, s *shard, n node, inst uint32, entry int, dir *dirInfo) bool {
	known, isDir := s.dirs[id]
	if isDir != (dir != nil) {
		return false
	}
	if isDir {
		return known == *dir
	}
	if n.inst() == inst && n.entry() == entry {
		return true
	}
	a, b := t.instance(n.inst()), t.instance(inst)
	if !bytes.Equal(a.cat.AppendIdentity(nil, n.entry()), b.cat.AppendIdentity(nil, entry)) {
		return false
	}
	la, lb := a.cat.Link(n.entry()), b.cat.Link(entry)
	if la != nil || lb != nil {
		return bytes.Equal(la, lb)
	}
	return bytes.Equal(a.cat.Entry(n.entry()).Name, b.cat.Entry(entry).Name)
}

func (t *table) name(inst uint32, entry int) string {
	return string(t.instance(inst).cat.Entry(entry).Name)
}

// resolve makes a directory's node refer to its own catalog instead of the entry that names it.
func (t *table) resolve(id uint64, inst uint32) {
	s := t.shard(id)
	s.mu.Lock()
	defer s.mu.Unlock()
	if n, ok := s.nodes[id]; ok && n.inst() != inst {
		t.count(n.inst(), -1)
		t.count(inst, 1)
		s.nodes[id] = newNode(inst, 0, n.lookups())
	}
}

// forget takes back n lookups; at none left the node is dropped.
func (t *table) forget(id, n uint64) {
	s := t.shard(id)
	s.mu.Lock()
	defer s.mu.Unlock()
	x, ok := s.nodes[id]
	if !ok || x.lookups() == lookupMax {
		return
	}
	if x.lookups() > n {
		s.nodes[id] = newNode(x.inst(), x.entry(), x.lookups()-n)
		return
	}
	delete(s.nodes, id)
	delete(s.dirs, id)
	t.count(x.inst(), -1)
}

// count keeps the number of an instance's users.
func (t *table) count(inst uint32, by int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.instances[inst].users += by
}

// drop lets go of a generation's instances that have no user, and returns how many have.
func (t *table) drop(gen namespace.Digest) (left int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for key, n := range t.numbers {
		if key.gen != gen {
			continue
		}
		if in := t.instances[n]; in.users > 0 {
			left++
			continue
		}
		t.instances[n] = nil
		t.free = append(t.free, n)
		delete(t.numbers, key)
	}
	return left
}

// rootCatalog returns a generation's root catalog, nil if nothing refers to it any more.
func (t *table) rootCatalog(gen namespace.Digest) *catalog.Catalog {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if n, ok := t.numbers[instanceKey{gen: gen, digest: gen}]; ok {
		return t.instances[n].cat
	}
	return nil
}

// len returns the number of nodes.
func (t *table) len() int {
	n := 0
	for i := range t.shards {
		t.shards[i].mu.RLock()
		n += len(t.shards[i].nodes)
		t.shards[i].mu.RUnlock()
	}
	return n
}

// pathOf returns the names that lead from the root of an entry's generation to it.
func (t *table) pathOf(in *instance, entry int) ([]string, bool) {
	var reversed []string
	for depth := 0; depth <= namespace.DepthMax; depth++ {
		for entry != 0 {
			reversed = append(reversed, string(in.cat.Entry(entry).Name))
			entry = in.cat.Parent(entry)
		}
		if in.parent == nil {
			slices.Reverse(reversed)
			return reversed, true
		}
		in, entry = in.parent, in.parentEntry
	}
	return nil, false
}
