package trust

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"coppice.dev/coppice/namespace"
)

// Profiles returns the record of the profiles of a namespace, and whether there is one. Kinds: Denied,
// Corrupt, Invalid, Limit, those of the reader.
func (r Refs) Profiles(ctx context.Context, name string) (p namespace.Profiles, found bool, err error) {
	raw, err := r.read(ctx, namespace.RefName{Kind: namespace.ProfileRef, Name: name}, &p)
	if err != nil || raw == nil {
		return p, false, err
	}
	return p, true, checkProfiles(name, p)
}

// ChangeProfiles replaces the record of the profiles of a namespace by what change makes of it, which
// is given the empty record if there is none. What it names must be stored. It may be called again, if
// others write too; if it changes nothing, nothing is written. Kinds: those of change, Denied, Limit,
// Invalid, those of the store.
func (p *Publisher) ChangeProfiles(ctx context.Context, name string, change func(*namespace.Profiles) error) error {
	n := namespace.RefName{Kind: namespace.ProfileRef, Name: name}
	err := p.update(ctx, n, func() any { return new(namespace.Profiles) }, func(record any, raw []byte) error {
		r := record.(*namespace.Profiles)
		if raw != nil && r.Name != name {
			return checkProfiles(name, *r)
		}
		r.Format, r.Name = namespace.RecordFormat, name
		before, err := namespace.EncodeRecord(r)
		if err != nil {
			return err
		}
		if err := change(r); err != nil {
			return err
		}
		after, err := namespace.EncodeRecord(r)
		if err == nil && raw != nil && bytes.Equal(before, after) {
			return errUnchanged
		}
		return errors.Join(err, checkProfiles(name, *r))
	})
	if errors.Is(err, errUnchanged) {
		return nil
	}
	return err
}

// errUnchanged ends an update that has nothing to write.
var errUnchanged = errors.New("unchanged")

func checkProfiles(name string, p namespace.Profiles) error {
	if p.Name != name {
		return namespace.E(namespace.Denied, "read", namespace.RefName{Kind: namespace.ProfileRef, Name: name}.String(),
			fmt.Errorf("it is the record of %q", p.Name))
	}
	return p.Check()
}
