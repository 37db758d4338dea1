package trust_test

import (
	"errors"
	"fmt"
	"testing"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/trust"
)

// offering offers next to a part of the fleet; the record says no more than its seq.
func offering(t *testing.T, base, next string) trust.Offering {
	o := trust.Offering{Base: version(t, base), Record: func(p namespace.Pointer) ([]byte, error) { return fmt.Append(nil, "offer ", p.Seq), nil }}
	if next != "" {
		o.Next = version(t, next)
	}
	return o
}

func TestAnOfferIsAPointer(t *testing.T) {
	r, v := ready(t, nil)
	p, err := r.Offer(t.Context(), channel, offering(t, "desk@1", "desk@2"), "canaries")
	if err != nil || p.Seq != 2 || p.Version.N != 1 || p.Next.Version.N != 2 || len(p.Names()) != 2 {
		t.Fatalf("%+v, %v", p, err)
	}
	if b, err := r.Blobs.GetBlob(t.Context(), p.Offer, 100); err != nil || string(b) != "offer 2" {
		t.Errorf("its record: %q, %v", b, err)
	}
	got, err := v.accept(t.Context())
	if err != nil || !got.SameAs(&p) {
		t.Errorf("accepted: %+v, %v", got, err)
	}
	// To go back from it is to go back to its base.
	if p, err = r.Rollback(t.Context(), channel, namespace.Version{}, "no"); err != nil || p.Version.N != 1 || len(p.Names()) != 1 || len(p.Blobs()) != 0 {
		t.Errorf("back: %+v, %v", p, err)
	}
}

// What is offered to a part of the fleet needs the vouching keys as much as what all run.
func TestOfferOfAnUnvouchedVersion(t *testing.T) {
	r, v := ready(t, nil)
	thief := *r.Publisher
	thief.Signers = nil
	for role, seed := range roles {
		if role != trust.RoleVouching {
			thief.Signers = append(thief.Signers, key(t, seed))
		}
	}
	d, err := r.Blobs.PutBlob(t.Context(), []byte("evil"))
	if err != nil {
		t.Fatal(err)
	}
	evil, err := thief.AddNamespace(t.Context(), "desk", d, "")
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range []trust.Offering{offering(t, "desk@1", evil.String()), offering(t, evil.String(), "desk@1")} {
		if p, err := thief.Offer(t.Context(), channel, o, ""); !namespace.IsKind(err, namespace.Denied) {
			t.Errorf("%+v, %v", p, err)
		}
	}
	v.want(t, "what was", 1)
}

func TestOfferWithoutARecord(t *testing.T) {
	r, _ := ready(t, nil)
	o := offering(t, "desk@1", "desk@2")
	lost := errors.New("no record")
	o.Record = func(namespace.Pointer) ([]byte, error) { return nil, lost }
	if p, err := r.Offer(t.Context(), channel, o, ""); !errors.Is(err, lost) {
		t.Errorf("%+v, %v", p, err)
	}
	o.Record = nil
	if p, err := r.Offer(t.Context(), channel, o, ""); !namespace.IsKind(err, namespace.Invalid) {
		t.Errorf("%+v, %v", p, err)
	}
}
