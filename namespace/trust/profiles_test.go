package trust_test

import (
	"testing"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/trust"
)

func TestProfiles(t *testing.T) {
	p, m := publisher(t)
	if _, found, err := p.Profiles(t.Context(), "desk"); found || err != nil {
		t.Fatalf("before there is one: %v, %v", found, err)
	}
	d := namespace.Sum([]byte("profile"))
	add := func(r *namespace.Profiles) error {
		if _, ok := r.Find("login"); !ok {
			r.Profiles = append(r.Profiles, namespace.ProfileRecord{Name: "login", Profile: d, Created: p.Now().UTC()})
		}
		return nil
	}
	if err := p.ChangeProfiles(t.Context(), "desk", add); err != nil {
		t.Fatal(err)
	}
	got, found, err := p.Profiles(t.Context(), "desk")
	if r, ok := got.Find("login"); err != nil || !found || !ok || r.Profile != d {
		t.Fatalf("%+v, %v, %v", got, found, err)
	}
	n := namespace.RefName{Kind: namespace.ProfileRef, Name: "desk"}
	m.refs[n] = append([]byte{}, m.refs[n]...)
	before := &m.refs[n][0]
	if err := p.ChangeProfiles(t.Context(), "desk", add); err != nil || &m.refs[n][0] != before {
		t.Errorf("a change of nothing: written, or %v", err)
	}
	// What no reader would take is not written.
	err = p.ChangeProfiles(t.Context(), "desk", func(r *namespace.Profiles) error {
		r.Profiles = append(r.Profiles, r.Profiles[0])
		return nil
	})
	if !namespace.IsKind(err, namespace.Invalid) || &m.refs[n][0] != before {
		t.Errorf("the same name twice: %v", err)
	}
	// A record of another namespace is not this one's, whoever signed it.
	env, err := trust.Seal(n, namespace.Profiles{Format: 1, Name: "other", Profiles: []namespace.ProfileRecord{}}, p.Signers...)
	if err != nil {
		t.Fatal(err)
	}
	m.refs[n] = env
	if _, _, err := p.Profiles(t.Context(), "desk"); !namespace.IsKind(err, namespace.Denied) {
		t.Errorf("a record of another name: %v", err)
	}
	if err := p.ChangeProfiles(t.Context(), "desk", add); !namespace.IsKind(err, namespace.Denied) {
		t.Errorf("changing it: %v", err)
	}
	m.refs[n] = m.refs[n][:len(m.refs[n])/2]
	if _, _, err := p.Profiles(t.Context(), "desk"); !namespace.IsKind(err, namespace.Corrupt) {
		t.Errorf("a cut record: %v", err)
	}
}

// A rotation of the publisher's key leaves the profiles readable for who knows the new root only.
func TestProfilesAfterRotation(t *testing.T) {
	r := newRepository(t, nil)
	err := r.ChangeProfiles(t.Context(), "desk", func(p *namespace.Profiles) error {
		p.Profiles = append(p.Profiles, namespace.ProfileRecord{Name: "login", Profile: namespace.Sum([]byte("profile")), Created: r.now.UTC()})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	r.rotate(t, trust.RolePublish, 77)
	root, _, err := trust.FetchRoot(t.Context(), r.memory)
	if err != nil || root.Version != 2 {
		t.Fatalf("%+v, %v", root, err)
	}
	got, found, err := trust.Refs{Reader: r.memory, Root: root}.Profiles(t.Context(), "desk")
	if _, ok := got.Find("login"); err != nil || !found || !ok {
		t.Errorf("%+v, %v, %v", got, found, err)
	}
}
