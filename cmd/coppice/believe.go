package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/trust"
)

// What a mount's sources are judged by while nobody looks at their documents as a whole: the newest root that
// follows from the pinned one, and what its vouching keys said last. None of this waits for a look, which
// itself reads from the sources.

// follow takes a root that follows from the one there is; an older one changes nothing.
func (k *trustKeeper) follow(root *trust.Root) {
	for {
		have := k.root.Load()
		if have != nil && have.ID == root.ID && have.Version >= root.Version || k.root.CompareAndSwap(have, root) {
			return
		}
	}
}

// proves is origin.SourcesOptions.Prove: a source has the root of trust, or one that follows from it by
// signatures, which it shows step by step. One that has an older root shows a timestamp instead, which no
// other server could have signed. Kinds: Denied, Stale, those of the source.
func (k *trustKeeper) proves(ctx context.Context, from namespace.RefReader) error {
	b, err := from.Ref(ctx, trust.RootName)
	if err != nil {
		return err
	}
	have := k.root.Load()
	if have != nil && string(b) == string(have.Bytes()) {
		return nil
	}
	shown, err := trust.OpenRoot(b)
	if err != nil || have == nil {
		return err
	}
	err = trust.CheckPin(have, shown)
	if namespace.IsKind(err, namespace.Stale) {
		if b, err = from.Ref(ctx, trust.TimestampName); err == nil {
			_, err = have.OpenTimestamp(b)
		}
		return err
	}
	if err != nil {
		return err
	}
	for range trust.RootsMax {
		if have.Version == shown.Version {
			return trust.CheckPin(have, shown)
		}
		if b, err = from.Ref(ctx, trust.RootVersion(int64(have.Version+1))); err != nil {
			return err
		}
		next, err := have.Next(b)
		if err != nil {
			return err
		}
		have = next
		k.follow(next)
	}
	return namespace.E(namespace.Unavailable, "verify", trust.RootName.String(), fmt.Errorf("more than %d new roots; the next attempt goes on from there", trust.RootsMax))
}

// rootAge is where in the age of a record the version of the root begins: after a rotation the versions of
// what the keys before signed count no more.
const rootAge = 40

// believes is an origin.CheckRef: the records of sources by the keys of who signs them.
func (k *trustKeeper) believes(n namespace.RefName, b []byte) (uint64, error) {
	root := k.root.Load()
	if root == nil {
		return 0, nil
	}
	switch {
	case n == trust.TimestampName:
		v, err := root.OpenTimestamp(b)
		return root.Version<<rootAge | min(v, 1<<rootAge-1), err
	case n.Kind == namespace.TrustRef:
		return believesRoot(root, n, b)
	case n.Kind == namespace.ChannelRef:
		return k.believesPointer(n.Name, b)
	}
	return believesList(root, n, b)
}

// believesRoot judges a root. One that is further than the next cannot be verified here: it is taken to be as
// old as the one there is, and whoever reads it verifies those between.
func believesRoot(root *trust.Root, n namespace.RefName, b []byte) (uint64, error) {
	shown, err := trust.OpenRoot(b)
	if err != nil {
		return 0, err
	}
	if err := trust.CheckPin(root, shown); err != nil && !namespace.IsKind(err, namespace.Stale) {
		return 0, err
	}
	if shown.Version == root.Version+1 {
		if _, err := root.Next(b); err != nil {
			return 0, err
		}
	}
	if n != trust.RootName {
		return 0, nil
	}
	return min(shown.Version, root.Version), nil
}

// believesPointer judges the record of a channel: by its seq, if the keys that are known signed it. If not,
// those may have changed: it is as new as any, unless a look at the origin refused it meanwhile.
func (k *trustKeeper) believesPointer(channel string, b []byte) (uint64, error) {
	v := k.vouching.Load()
	if v == nil {
		return 0, nil
	}
	p, err := v.OpenPointer(channel, b)
	if err == nil {
		k.seqs.Store(channel, p.Seq)
		return p.Seq, nil
	}
	if sum, ok := k.refused.Load(channel); ok && sum == namespace.Sum(b) {
		return 0, err
	}
	if _, rerr := trust.ReadPointer(channel, b); rerr != nil {
		return 0, rerr
	}
	seq, _ := k.seqs.Load(channel)
	last, _ := seq.(uint64)
	return last, nil
}

// believesList judges a catalogue: what was published is never taken back, so the longer one is newer.
func believesList(root *trust.Root, n namespace.RefName, b []byte) (uint64, error) {
	var err error
	var list struct {
		Versions []json.RawMessage `json:"versions"`
	}
	payload, err := root.Open(n, b)
	if err == nil {
		if derr := json.Unmarshal(payload, &list); derr != nil {
			err = namespace.E(namespace.Corrupt, "decode", n.String(), derr)
		}
	}
	return uint64(len(list.Versions)), err
}

// usedPrefix begins the names under which versions that were mounted by their number are noted.
const usedPrefix = "used/"

// use notes that a version was mounted by its number, so that a collection leaves it. Kinds: those of Save.
func (k *trustKeeper) use(v trust.Vouched) error {
	return k.files().Save(usedPrefix+v.Version.String(), []byte(v.Manifest.String()))
}

// remembered returns the manifests that are named by what is kept: of channels what was accepted last, and
// what was mounted by its number.
func (k fileKeeper) remembered() (all []namespace.Digest) {
	for _, name := range k.names() {
		b, err := k.Load(name)
		if err != nil {
			continue
		}
		if channel, ok := strings.CutPrefix(name, namespace.ChannelRef+"/"); ok {
			if p, err := trust.ReadPointer(channel, b); err == nil {
				for _, one := range p.Names() {
					all = append(all, one.Manifest)
				}
			}
		} else if strings.HasPrefix(name, usedPrefix) {
			if d, err := namespace.ParseDigest(string(b)); err == nil {
				all = append(all, d)
			}
		}
	}
	return all
}

// refuse notes why a channel's record was refused: if it was for its signatures, the next source is asked.
func (k *trustKeeper) refuse(channel string, record []byte, err error) {
	if namespace.IsKind(err, namespace.Denied) || namespace.IsKind(err, namespace.Corrupt) {
		k.refused.Store(channel, namespace.Sum(record))
	}
}

// errUnlike says that documents which are kept do not belong together.
var errUnlike = errors.New("what is kept of it is of different ages")
