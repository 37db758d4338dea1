package trust_test

import (
	"bytes"
	"encoding/json"
	"testing"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/trust"
)

var channel = namespace.RefName{Kind: namespace.ChannelRef, Name: "desktop/stable"}

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

func pointer(seq uint64) namespace.Pointer {
	return namespace.Pointer{Format: 1, Channel: channel.Name, Seq: seq, Version: namespace.Version{Name: "d", N: 1},
		Manifest: namespace.Sum([]byte{byte(seq)})}
}

func openRoot(t testing.TB, k trust.Key) *trust.Root {
	t.Helper()
	root, err := trust.OpenRoot(seal(t, trust.RootName, trust.NewRoot("o1", k.Public()), k))
	if err != nil {
		t.Fatal(err)
	}
	return root
}

func TestPointerAccepted(t *testing.T) {
	k := key(t, 1)
	p, err := openRoot(t, k).OpenPointer(channel.Name, seal(t, channel, pointer(5), k), 4, namespace.Digest{})
	if err != nil || p.Seq != 5 {
		t.Fatalf("%+v, %v", p, err)
	}
	if _, err := openRoot(t, k).OpenPointer(channel.Name, seal(t, channel, pointer(5), k), 5, p.Manifest); err != nil {
		t.Errorf("the same pointer again: %v", err)
	}
}

func TestPointerAttacks(t *testing.T) {
	k, thief := key(t, 1), key(t, 2)
	root := openRoot(t, k)
	other := namespace.RefName{Kind: namespace.ChannelRef, Name: "desktop/beta"}
	tree := namespace.RefName{Kind: namespace.TreeRef, Name: channel.Name}
	moved := pointer(5)
	moved.Channel = other.Name
	twin := pointer(5)
	twin.Manifest = namespace.Sum([]byte("twin"))
	var env trust.Envelope
	if err := json.Unmarshal(seal(t, channel, pointer(5), k), &env); err != nil {
		t.Fatal(err)
	}
	swapped := env
	swapped.Payload, _ = namespace.EncodeRecord(pointer(6))
	swappedBytes, _ := namespace.EncodeRecord(swapped)
	for name, c := range map[string]struct {
		b    []byte
		kind namespace.Kind
	}{
		"rollback to an older seq":     {seal(t, channel, pointer(4), k), namespace.Stale},
		"same seq, other version":      {seal(t, channel, twin, k), namespace.Stale},
		"signed by a stranger":         {seal(t, channel, pointer(6), thief), namespace.Denied},
		"no signature":                 {seal(t, channel, pointer(6)), namespace.Denied},
		"payload replaced":             {swappedBytes, namespace.Denied},
		"record of another channel":    {seal(t, other, moved, k), namespace.Denied},
		"record of another kind":       {seal(t, tree, pointer(6), k), namespace.Denied},
		"signed, but for another name": {seal(t, channel, moved, k), namespace.Corrupt},
		"seq 0":                        {seal(t, channel, pointer(0), k), namespace.Corrupt},
		"garbage":                      {[]byte("<html>welcome to the hotel</html>"), namespace.Corrupt},
		"empty":                        {nil, namespace.Corrupt},
		"endless":                      {bytes.Repeat([]byte(" "), namespace.RefBytesMax+1), namespace.Limit},
	} {
		if _, err := root.OpenPointer(channel.Name, c.b, 5, pointer(5).Manifest); !namespace.IsKind(err, c.kind) {
			t.Errorf("%s: %v, want %v", name, err, c.kind)
		}
	}
}

func TestEveryBitOfAnEnvelopeMatters(t *testing.T) {
	k := key(t, 1)
	root := openRoot(t, k)
	b := seal(t, channel, pointer(5), k)
	for i := range b {
		for bit := range 8 {
			m := bytes.Clone(b)
			m[i] ^= 1 << bit
			if _, err := root.OpenPointer(channel.Name, m, 0, namespace.Digest{}); err == nil {
				t.Fatalf("bit %d of byte %d made no difference", bit, i)
			}
		}
	}
}

func TestThreshold(t *testing.T) {
	a, b := key(t, 1), key(t, 2)
	root := trust.NewRoot("o1", a.Public())
	root.Keys = append(root.Keys, trust.NewRoot("", b.Public()).Keys...)
	for i := range root.Roles {
		root.Roles[i].Threshold, root.Roles[i].KeyIDs = 2, []string{a.KeyID(), b.KeyID()}
	}
	if _, err := trust.OpenRoot(seal(t, trust.RootName, root, a)); !namespace.IsKind(err, namespace.Denied) {
		t.Errorf("a root with one of two signatures: %v", err)
	}
	if _, err := trust.OpenRoot(seal(t, trust.RootName, root, a, a)); !namespace.IsKind(err, namespace.Denied) {
		t.Errorf("the same signature twice: %v", err)
	}
	if _, err := trust.OpenRoot(seal(t, trust.RootName, root, a, b)); err != nil {
		t.Errorf("both signatures: %v", err)
	}
}

func TestRootRefused(t *testing.T) {
	k := key(t, 1)
	for name, change := range map[string]func(*trust.Root){
		"no keys":           func(r *trust.Root) { r.Keys = nil },
		"no roles":          func(r *trust.Root) { r.Roles = nil },
		"threshold 0":       func(r *trust.Root) { r.Roles[0].Threshold = 0 },
		"threshold too big": func(r *trust.Root) { r.Roles[0].Threshold = 2 },
		"unknown key":       func(r *trust.Root) { r.Roles[1].KeyIDs = []string{"x"} },
		"bad key":           func(r *trust.Root) { r.Keys = []string{"zz"} },
		"role twice":        func(r *trust.Root) { r.Roles = append(r.Roles, r.Roles[0]) },
		"newer format":      func(r *trust.Root) { r.Format = 2 },
	} {
		root := trust.NewRoot("o1", k.Public())
		change(&root)
		if _, err := trust.OpenRoot(seal(t, trust.RootName, root, k)); !namespace.IsKind(err, namespace.Corrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
