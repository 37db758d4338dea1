package trust_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"slices"
	"sync"
	"testing"
	"time"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/trust"
)

// memory is an origin's refs and blobs in memory.
type memory struct {
	mu    sync.Mutex
	refs  map[namespace.RefName][]byte
	blobs map[namespace.Digest][]byte
}

func (m *memory) Ref(_ context.Context, n namespace.RefName) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	b, ok := m.refs[n]
	if !ok {
		return nil, namespace.E(namespace.NotExist, "ref", n.String(), nil)
	}
	return b, nil
}

func (m *memory) SwapRef(_ context.Context, n namespace.RefName, prev, next []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !bytes.Equal(m.refs[n], prev) {
		return namespace.E(namespace.Exist, "swap", n.String(), nil)
	}
	m.refs[n] = next
	return nil
}

func (m *memory) PutBlob(_ context.Context, b []byte) (namespace.Digest, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	d := namespace.Sum(b)
	m.blobs[d] = b
	return d, nil
}

func (m *memory) GetBlob(_ context.Context, d namespace.Digest, limit int64) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	b, ok := m.blobs[d]
	if !ok {
		return nil, namespace.E(namespace.NotExist, "get blob", d.String(), nil)
	}
	if int64(len(b)) > limit {
		return nil, namespace.E(namespace.Limit, "get blob", d.String(), nil)
	}
	return b, nil
}

func (m *memory) Refs(_ context.Context, kind string) ([]string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var names []string
	for n := range m.refs {
		if n.Kind == kind {
			names = append(names, n.Name)
		}
	}
	slices.Sort(names)
	return names, nil
}

// begin is when the tests' origins are made.
var begin = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// roles gives every role but pointing one key each, in the order of the bytes that seed them.
var roles = map[trust.Role]byte{trust.RoleRoot: 1, trust.RoleVouching: 2, trust.RoleSnapshot: 3, trust.RoleTimestamp: 4, trust.RolePublish: 5, trust.RolePoint: 6}

// repository is an origin in memory, its keys and its time.
type repository struct {
	*trust.Publisher
	*memory
	now time.Time
}

// newRepository makes an origin, with the thresholds and the keys beyond the first that change asks for.
func newRepository(t testing.TB, change func(*trust.Start)) *repository {
	t.Helper()
	r := &repository{memory: &memory{refs: map[namespace.RefName][]byte{}, blobs: map[namespace.Digest][]byte{}}, now: begin}
	r.Publisher = &trust.Publisher{Refs: trust.Refs{Reader: r.memory, Blobs: r.memory}, Writer: r.memory, By: "ann", Now: func() time.Time { return r.now }}
	s := trust.Start{ID: "0123", Keys: map[trust.Role][]ed25519.PublicKey{}, Need: map[trust.Role]int{}, Names: map[string]string{}}
	for role, seed := range roles {
		k := key(t, seed)
		s.Keys[role] = []ed25519.PublicKey{k.Public()}
		r.Signers = append(r.Signers, k)
	}
	if change != nil {
		change(&s)
	}
	if _, err := r.Init(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	return r
}

func (r *repository) Ref(ctx context.Context, n namespace.RefName) ([]byte, error) {
	return r.memory.Ref(ctx, n)
}
func (r *repository) Refs(ctx context.Context, k string) ([]string, error) {
	return r.memory.Refs(ctx, k)
}

func publisher(t *testing.T) (*trust.Publisher, *memory) {
	r := newRepository(t, nil)
	return r.Publisher, r.memory
}

func publish(t *testing.T, p *trust.Publisher, versions int) {
	t.Helper()
	for i := range versions {
		d, err := p.Blobs.PutBlob(t.Context(), []byte{byte(i)}) // a manifest, as far as trust is concerned
		if err != nil {
			t.Fatal(err)
		}
		v, err := p.AddNamespace(t.Context(), "desk", d, "")
		if err != nil || v.N != uint64(i+1) {
			t.Fatalf("%v, %v", v, err)
		}
	}
}

func version(t *testing.T, s string) namespace.Version {
	t.Helper()
	v, err := namespace.ParseVersion(s)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestChannelLife(t *testing.T) {
	p, _ := publisher(t)
	publish(t, p, 3)
	ctx := t.Context()
	for _, s := range []string{"desk@1", "desk@2", "desk"} {
		if _, err := p.Set(ctx, "stable", version(t, s), "go"); err != nil {
			t.Fatal(err)
		}
	}
	back, err := p.Rollback(ctx, "stable", namespace.Version{}, "broken")
	if err != nil || back.Seq != 4 || back.Version.N != 2 {
		t.Fatalf("%+v, %v", back, err)
	}
	if back, err = p.Rollback(ctx, "stable", version(t, "desk@1"), ""); err != nil || back.Seq != 5 || back.Version.N != 1 {
		t.Fatalf("%+v, %v", back, err)
	}
	var seqs, versions []uint64
	if err := p.History(ctx, "stable", func(x namespace.Pointer) bool {
		seqs, versions = append(seqs, x.Seq), append(versions, x.Version.N)
		return true
	}); err != nil {
		t.Fatal(err)
	}
	for i, want := range []uint64{1, 2, 3, 2, 1} {
		if seqs[i] != uint64(5-i) || versions[i] != want {
			t.Fatalf("history is %v of %v", versions, seqs)
		}
	}
}

func TestRollbackWithoutPast(t *testing.T) {
	p, _ := publisher(t)
	publish(t, p, 1)
	for range 2 {
		if _, err := p.Set(t.Context(), "stable", version(t, "desk@1"), ""); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := p.Rollback(t.Context(), "stable", namespace.Version{}, ""); !namespace.IsKind(err, namespace.NotExist) {
		t.Error(err)
	}
	if _, err := p.Rollback(t.Context(), "none", namespace.Version{}, ""); !namespace.IsKind(err, namespace.NotExist) {
		t.Error(err)
	}
	if _, err := p.Set(t.Context(), "stable", version(t, "desk@9"), ""); !namespace.IsKind(err, namespace.NotExist) {
		t.Error(err)
	}
}

func TestPublishersLoseNothing(t *testing.T) {
	p, _ := publisher(t)
	const each = 5
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := range each {
				if _, err := p.AddTree(context.Background(), "t", namespace.TreeVersion{Root: namespace.Sum([]byte{byte(w), byte(i)})}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	tree, err := p.Tree(t.Context(), "t")
	if err != nil || len(tree.Versions) != 8*each {
		t.Fatalf("%d versions, %v", len(tree.Versions), err)
	}
	seen := map[namespace.Digest]bool{}
	for i, v := range tree.Versions {
		if v.N != uint64(i+1) || seen[v.Root] {
			t.Errorf("version %d is numbered %d", i+1, v.N)
		}
		seen[v.Root] = true
	}
}

func TestPublisherWithWrongKey(t *testing.T) {
	p, m := publisher(t)
	had := len(m.refs)
	p.Signers = []trust.Signer{key(t, 99)}
	if _, err := p.AddTree(t.Context(), "t", namespace.TreeVersion{}); !namespace.IsKind(err, namespace.Denied) || len(m.refs) != had {
		t.Errorf("%v, %d refs written", err, len(m.refs)-had)
	}
}

func TestPublisherRefusesForgedRecord(t *testing.T) {
	p, m := publisher(t)
	publish(t, p, 1)
	n := namespace.RefName{Kind: namespace.NamespaceRef, Name: "desk"}
	m.refs[n] = seal(t, n, namespace.Namespace{Format: 1, Name: "desk"}, key(t, 99))
	if _, err := p.AddNamespace(t.Context(), "desk", namespace.Digest{1}, ""); !namespace.IsKind(err, namespace.Denied) {
		t.Error(err)
	}
}
