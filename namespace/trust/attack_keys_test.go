package trust_test

import (
	"bytes"
	"crypto/ed25519"
	"encoding/hex"
	"maps"
	"strings"
	"testing"
	"time"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/trust"
)

// three gives the role three keys, of which two must sign.
func three(t *testing.T, role trust.Role) func(*trust.Start) {
	return func(s *trust.Start) {
		s.Keys[role] = append(s.Keys[role], key(t, 71).Public(), key(t, 72).Public())
		s.Need[role] = 2
	}
}

func TestThresholdShortByOne(t *testing.T) {
	r := &repository{}
	grow := func(s *trust.Start) { three(t, trust.RoleVouching)(s) }
	func() {
		r.memory = &memory{refs: map[namespace.RefName][]byte{}, blobs: map[namespace.Digest][]byte{}}
		r.now = begin
		r.Publisher = &trust.Publisher{Refs: trust.Refs{Reader: r.memory, Blobs: r.memory}, Writer: r.memory, By: "ann", Now: func() time.Time { return r.now }}
		s := trust.Start{ID: "0123", Keys: map[trust.Role][]ed25519.PublicKey{}, Need: map[trust.Role]int{}}
		for role, seed := range roles {
			s.Keys[role] = []ed25519.PublicKey{key(t, seed).Public()}
			r.Signers = append(r.Signers, key(t, seed))
		}
		grow(&s)
		if _, err := r.Init(t.Context(), s); !namespace.IsKind(err, namespace.Denied) {
			t.Fatalf("an origin with one of two signatures: %v", err)
		}
		r.Signers = append(r.Signers, key(t, 71))
		if _, err := r.Init(t.Context(), s); err != nil {
			t.Fatal(err)
		}
	}()
	publish(t, r.Publisher, 1)
	r.point(t, "desk@1")
	all := r.Signers
	r.Signers = all[:len(all)-1]
	if r.CanVouch() {
		t.Error("one of two may vouch")
	}
	if _, err := r.ChangeVouching(t.Context(), trust.VouchingChange{Floor: []namespace.Version{version(t, "desk@1")}}, ""); !namespace.IsKind(err, namespace.Denied) {
		t.Errorf("with one of two keys: %v", err)
	}
	// A request with one signature, with the same signature given twice, and with two.
	ask, err := r.AskVouching(t.Context(), trust.VouchingChange{Floor: []namespace.Version{version(t, "desk@1")}}, "hole")
	if err != nil {
		t.Fatal(err)
	}
	one, _, err := trust.SignRequest(ask, trust.Note{By: "ann"}, key(t, roles[trust.RoleVouching]))
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Apply(t.Context(), one); !namespace.IsKind(err, namespace.Denied) {
		t.Errorf("a request with one of two signatures: %v", err)
	}
	again, err := one.Merge(one)
	if err != nil || r.Apply(t.Context(), again) == nil {
		t.Errorf("the same signature twice: %v", err)
	}
	two, _, err := trust.SignRequest(ask, trust.Note{By: "bob"}, key(t, 72))
	if err != nil {
		t.Fatal(err)
	}
	if two, err = two.Merge(one); err != nil {
		t.Fatal(err)
	}
	if err := r.Apply(t.Context(), two); err != nil {
		t.Errorf("two signatures: %v", err)
	}
	if err := r.Apply(t.Context(), two); !namespace.IsKind(err, namespace.Exist) {
		t.Errorf("applied twice: %v", err)
	}
}

// The same key under two ids, or the same id twice, is one key.
func TestDuplicateKeyCountedTwice(t *testing.T) {
	r := newRepository(t, nil)
	m := doc(t, r.Root.Bytes())
	signed := m["signed"].(map[string]any)
	root := signed["roles"].(map[string]any)["root"].(map[string]any)
	id := root["keyids"].([]any)[0].(string)
	root["keyids"] = []any{id, id}
	root["threshold"] = 2
	if _, err := trust.OpenRoot(encode(t, m)); err == nil {
		t.Error("one id twice makes two")
	}
	twin := hex.EncodeToString(make([]byte, 32))
	root["keyids"] = []any{id, twin}
	keys := signed["keys"].(map[string]any)
	keys[twin] = keys[id]
	sigs := m["signatures"].([]any)
	copied := maps.Clone(sigs[0].(map[string]any))
	copied["keyid"] = twin
	m["signatures"] = append(sigs, copied)
	if _, err := trust.OpenRoot(encode(t, m)); err == nil {
		t.Error("one key under two ids makes two")
	}
	e := seal(t, treeRef, aTree("debian"), key(t, roles[trust.RolePublish]), key(t, roles[trust.RolePublish]))
	if bytes.Count(e, []byte("keyid")) != 2 {
		t.Fatal("the test does not test")
	}
	two := newRepository(t, func(s *trust.Start) { three(t, trust.RolePublish)(s) })
	if err := two.Root.OpenRecord(treeRef, e, new(namespace.Tree)); !namespace.IsKind(err, namespace.Denied) {
		t.Errorf("one key that signed an envelope twice: %v", err)
	}
}

func TestRevokedKey(t *testing.T) {
	r, v := ready(t, nil)
	stolen := *r.Publisher
	pointer := trust.KeyID(key(t, roles[trust.RolePoint]).Public())
	fresh := key(t, 66)
	r.Signers = append(r.Signers, fresh)
	if _, err := r.ChangeVouching(t.Context(), trust.VouchingChange{Keys: []trust.KeyChange{
		{Role: trust.RolePoint, Add: fresh.Public(), Remove: pointer}}}, "the laptop was lost"); err != nil {
		t.Fatal(err)
	}
	v.want(t, "the pointer was signed anew", 2)
	if _, err := stolen.Set(t.Context(), channel, version(t, "desk@2"), ""); !namespace.IsKind(err, namespace.Denied) {
		t.Errorf("with the stolen key: %v", err)
	}
	r.rotate(t, trust.RolePublish, 55)
	if _, err := stolen.AddTree(t.Context(), "evil", namespace.TreeVersion{}); err == nil {
		if _, err := r.Tree(t.Context(), "evil"); !namespace.IsKind(err, namespace.Denied) {
			t.Errorf("a tree signed by a revoked key: %v", err)
		}
	}
	if ns, err := r.Namespace(t.Context(), "desk"); err != nil || len(ns.Versions) != 3 {
		t.Errorf("what was published before: %v", err)
	}
	r.point(t, "desk@3")
	v.want(t, "and on", 3)
	if v.shelf[trust.DocRoot] == nil || bytes.Contains(v.shelf[trust.DocRoot], []byte(pointer)) {
		t.Error("the root still has it")
	}
}

// All root keys change ten times, and all others once, while the endpoint is off for a year.
func TestRootRotatedTenTimesWhileOffline(t *testing.T) {
	r, v := ready(t, nil)
	asleep := r.visit()
	for i := range 10 {
		r.now = r.now.Add(36 * 24 * time.Hour)
		r.rotate(t, trust.RoleRoot, byte(100+i))
		switch i {
		case 1:
			r.rotate(t, trust.RoleVouching, 22)
		case 2:
			r.rotate(t, trust.RoleSnapshot, 33)
			r.rotate(t, trust.RoleTimestamp, 44)
		case 3:
			r.Signers = keysAfter(t, r)
		}
	}
	r.point(t, "desk@2")
	v.now, asleep.now = r.now, r.now
	v.want(t, "after a year", 2)
	asleep.want(t, "one that never saw more than the first root", 2)
	clock := trust.Clock{}.Prove(begin, begin.Add(7*24*time.Hour), begin)
	if s := clock.Stand(r.now, trust.DefaultPolicy); s.Fresh || !s.LeaseOver {
		t.Errorf("before it caught up: %+v", s)
	}
	if s := clock.Prove(r.now, r.now.Add(time.Hour), r.now).Stand(r.now, trust.DefaultPolicy); !s.Fresh || s.LeaseOver || s.Doubt != "" {
		t.Errorf("after it caught up: %+v", s)
	}
}

// keysAfter returns only those keys that count now and the root's later ones need.
func keysAfter(t *testing.T, r *repository) []trust.Signer {
	var keep []trust.Signer
	for _, role := range []trust.Role{trust.RoleVouching, trust.RoleSnapshot, trust.RoleTimestamp, trust.RolePublish, trust.RoleRoot} {
		for _, s := range r.Signers {
			if strings.Contains(strings.Join(r.Root.Keys(role).KeyIDs, " "), s.KeyID()) {
				keep = append(keep, s)
			}
		}
	}
	return append([]trust.Signer{key(t, 90), key(t, 91), key(t, 92), key(t, 93), key(t, 94), key(t, 95)}, append(keep, key(t, roles[trust.RolePoint]))...)
}

func TestTooManyRoots(t *testing.T) {
	r, v := ready(t, nil)
	for range trust.RootsMax + 3 {
		if _, err := r.ChangeRoot(t.Context(), nil, "again"); err != nil {
			t.Fatal(err)
		}
	}
	v.want(t, "more roots than one refresh walks", 0, namespace.Limit)
	v.want(t, "the next one goes on from there", 1)
}
