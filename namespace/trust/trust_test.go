package trust_test

import (
	"bytes"
	"encoding/json"
	"testing"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/trust"
)

var treeRef = namespace.RefName{Kind: namespace.TreeRef, Name: "debian"}

func key(t testing.TB, n byte) trust.Key {
	t.Helper()
	k, err := trust.NewKey(bytes.Repeat([]byte{n}, 32))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func seal(t testing.TB, n namespace.RefName, v any, s ...trust.Signer) []byte {
	t.Helper()
	b, err := trust.Seal(n, v, s...)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func aTree(name string) namespace.Tree {
	return namespace.Tree{Format: 1, Name: name, Versions: []namespace.TreeVersion{{N: 1, Root: namespace.Digest{1}}}}
}

func TestEnvelopeAttacks(t *testing.T) {
	root, k := newRepository(t, nil).Root, key(t, roles[trust.RolePublish])
	other := namespace.RefName{Kind: namespace.TreeRef, Name: "alpine"}
	ns := namespace.RefName{Kind: namespace.NamespaceRef, Name: "debian"}
	good := seal(t, treeRef, aTree("debian"), k)
	var got namespace.Tree
	if err := root.OpenRecord(treeRef, good, &got); err != nil || got.Name != "debian" {
		t.Fatalf("%+v, %v", got, err)
	}
	var env trust.Envelope
	if err := json.Unmarshal(good, &env); err != nil {
		t.Fatal(err)
	}
	env.Payload, _ = namespace.EncodeRecord(aTree("evil"))
	swapped, _ := namespace.EncodeRecord(env)
	for name, c := range map[string]struct {
		b    []byte
		kind namespace.Kind
	}{
		"signed by a stranger":         {seal(t, treeRef, aTree("debian"), key(t, 99)), namespace.Denied},
		"signed by another role's key": {seal(t, treeRef, aTree("debian"), key(t, roles[trust.RolePoint])), namespace.Denied},
		"no signature":                 {seal(t, treeRef, aTree("debian")), namespace.Denied},
		"payload replaced":             {swapped, namespace.Denied},
		"record of another tree":       {seal(t, other, aTree("alpine"), k), namespace.Denied},
		"record of another kind":       {seal(t, ns, aTree("debian"), k), namespace.Denied},
		"garbage":                      {[]byte("<html>welcome to the hotel</html>"), namespace.Corrupt},
		"empty":                        {nil, namespace.Corrupt},
		"endless":                      {bytes.Repeat([]byte(" "), namespace.RefBytesMax+1), namespace.Limit},
	} {
		if err := root.OpenRecord(treeRef, c.b, &got); !namespace.IsKind(err, c.kind) {
			t.Errorf("%s: %v, want %v", name, err, c.kind)
		}
	}
}

func TestEveryBitOfAnEnvelopeMatters(t *testing.T) {
	root := newRepository(t, nil).Root
	b := seal(t, treeRef, aTree("debian"), key(t, roles[trust.RolePublish]))
	for i := range b {
		for bit := range 8 {
			m := bytes.Clone(b)
			m[i] ^= 1 << bit
			if err := root.OpenRecord(treeRef, m, new(namespace.Tree)); err == nil {
				t.Fatalf("bit %d of byte %d made no difference", bit, i)
			}
		}
	}
}

func FuzzEnvelope(f *testing.F) {
	r := newRepository(f, nil)
	f.Add(seal(f, treeRef, aTree("debian"), key(f, roles[trust.RolePublish])))
	f.Add(r.Root.Bytes())
	f.Fuzz(func(t *testing.T, b []byte) {
		_ = r.Root.OpenRecord(treeRef, b, new(namespace.Tree))
		_, _ = trust.OpenRoot(b)
	})
}
