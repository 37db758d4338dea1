package offer

import (
	"errors"
	"testing"

	"coppice.dev/coppice/namespace"
)

// signed is a pointer and the record that goes with it.
func signed(t *testing.T, o *Offer) (namespace.Pointer, []byte) {
	t.Helper()
	b, err := o.Encode()
	if err != nil {
		t.Fatal(err)
	}
	p := namespace.Pointer{Format: 1, Channel: o.Channel, Seq: o.Seq, Version: o.Base.Version, Manifest: o.Base.Manifest,
		Next: namespace.NamedVersion{Version: o.Target.Version, Manifest: o.Target.Manifest}, Offer: namespace.Sum(b), Policy: o.Policy}
	if o.Base.IsZero() {
		p.Version, p.Manifest, p.Next = p.Next.Version, p.Next.Manifest, namespace.NamedVersion{}
	}
	return p, b
}

func numbered(n namespace.NamedVersion) (Standing, error) {
	return Standing{Content: n.Version.N, Floor: 5}, nil
}

func TestOfAPlainPointer(t *testing.T) {
	want := target(7)
	p := namespace.Pointer{Format: 1, Channel: "desktop/stable", Seq: 3, Version: want.Version, Manifest: want.Manifest, Reason: "go"}
	o, err := Of(p, nil, numbered)
	if err != nil || !o.ForAll() || o.Target != want || o.Seq != 3 || o.PrevSeq != 2 || o.Floor != 5 || o.Severity != Routine || o.Reason != "go" {
		t.Errorf("%+v, %v", o, err)
	}
	below := func(excepted bool) func(namespace.NamedVersion) (Standing, error) {
		return func(namespace.NamedVersion) (Standing, error) { return Standing{3, 5, excepted}, nil }
	}
	if _, err := Of(p, nil, below(false)); !namespace.IsKind(err, namespace.Denied) {
		t.Errorf("below the floor: %v", err)
	}
	if o, err := Of(p, nil, below(true)); err != nil || !o.Permits(o.Target) {
		t.Errorf("with an exception: %+v, %v", o, err)
	}
	lost := errors.New("nobody knows it")
	if _, err := Of(p, nil, func(namespace.NamedVersion) (Standing, error) { return Standing{}, lost }); !errors.Is(err, lost) {
		t.Errorf("unknown: %v", err)
	}
}

func TestOfAPointerWithARecord(t *testing.T) {
	p, b := signed(t, valid())
	p.Seq++ // the keys changed, and it was signed anew
	o, err := Of(p, b, numbered)
	if err != nil || o.Seq != p.Seq || o.Base != target(6) || o.Open != 1 || len(o.Stages) != 3 {
		t.Fatalf("%+v, %v", o, err)
	}
	for name, change := range map[string]func(*namespace.Pointer){
		"another channel's": func(p *namespace.Pointer) { p.Channel = "laptop/stable" },
		"a newer pointer's": func(p *namespace.Pointer) { p.Seq = 811 },
		"another version's": func(p *namespace.Pointer) { p.Next.Version.N++ },
		"another content's": func(p *namespace.Pointer) { p.Next.Manifest = namespace.Sum([]byte("x")) },
		"another base's":    func(p *namespace.Pointer) { p.Manifest = namespace.Sum([]byte("x")) },
		"a wider one's": func(p *namespace.Pointer) {
			p.Version, p.Manifest, p.Next = p.Next.Version, p.Next.Manifest, namespace.NamedVersion{}
		},
		"another policy's": func(p *namespace.Pointer) { p.Policy = namespace.Sum([]byte("x")) },
	} {
		q := p
		change(&q)
		if _, err := Of(q, b, numbered); !namespace.IsKind(err, namespace.Corrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Of(p, b[:len(b)-2], numbered); !namespace.IsKind(err, namespace.Corrupt) {
		t.Errorf("cut short: %v", err)
	}
}
