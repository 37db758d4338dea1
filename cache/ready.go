package cache

import (
	"context"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/catalog"
)

// Readiness answers, for one generation of a hold, whether it works without a network.
type Readiness struct {
	Hold     string   `json:"hold"`
	Kind     HoldKind `json:"kind"`
	Target   string   `json:"target"`
	Origin   string   `json:"origin"`
	Select   string   `json:"select"` // what of its content, for people
	Role     Role     `json:"role"`
	Version  string   `json:"version"`
	Complete bool     `json:"complete"`
	// Proof is set if it is complete.
	Proof *Proof `json:"proof,omitempty"`
	// MissingCatalogs, MissingChunks and MissingBytes are what is not here; the bytes are plaintext. As long
	// as a catalog is missing, nobody knows all that is selected in it.
	MissingCatalogs int   `json:"missing_catalogs,omitempty"`
	MissingChunks   int64 `json:"missing_chunks,omitempty"`
	MissingBytes    int64 `json:"missing_bytes,omitempty"`
	// FetchBytes is what has to be fetched for them, if that is known without asking the origin; else it is
	// MissingBytes, which is more. Deltas may make it less.
	FetchBytes int64 `json:"fetch_bytes,omitempty"`
	Damaged    int   `json:"damaged,omitempty"` // found by reading everything, and dropped
}

// Ready checks every generation of a hold against what is here. What it finds complete it syncs before it
// says so. deep has everything read and hashed, and what is damaged dropped, which makes it missing.
// It asks no network. Kinds: Canceled, Limit, Internal.
func (c *Cache) Ready(ctx context.Context, h Hold, deep bool) ([]Readiness, error) {
	all := make([]Readiness, 0, len(h.Generations))
	for _, g := range h.Generations {
		r := Readiness{Hold: h.ID, Kind: h.Kind, Target: h.Target, Origin: h.Origin, Select: h.Wanted(g).String(), Role: g.Role, Version: g.Version}
		if err := c.ready(ctx, g, h.Wanted(g), deep, &r); err != nil {
			return nil, err
		}
		all = append(all, r)
	}
	return all, nil
}

func (c *Cache) ready(ctx context.Context, g Held, want Selection, deep bool, r *Readiness) error {
	set, err := Resolve(ctx, localLoader{c}, g.Root, want)
	if err != nil {
		if ctx.Err() != nil {
			return err
		}
		c.readyPart(g, want, r) // a catalog is missing, or was damaged and is missing now
		return nil
	}
	if deep {
		if r.Damaged, err = c.verifySet(ctx, set); err != nil {
			return err
		}
	}
	if !c.objects.stored(g.Manifest) {
		r.MissingCatalogs++
	}
	for _, d := range set.catalogs {
		if !c.objects.stored(d) { // in memory only, for want of a disk
			r.MissingCatalogs++
		}
		want := set.chosen[d]
		if want == nil {
			continue
		}
		c.readyCatalog(d, want, r)
		if ctx.Err() != nil {
			return namespace.E(namespace.Canceled, "check", g.Version, ctx.Err())
		}
	}
	if r.MissingCatalogs > 0 || r.MissingChunks > 0 {
		return nil
	}
	p, err := c.prove(set)
	if err != nil {
		return err
	}
	r.Complete, r.Proof = true, &p
	return nil
}

// readyCatalog adds what is missing of a catalog's content.
func (c *Cache) readyCatalog(d namespace.Digest, want *chosen, r *Readiness) {
	l := c.missing(want)
	if l.chunks == 0 {
		return
	}
	r.MissingChunks += l.chunks
	r.MissingBytes += l.bytes
	loc := c.objects.locator(d)
	if loc == nil || loc.Len() != want.cat.NumChunks() {
		r.FetchBytes += l.bytes
		return
	}
	for _, w := range cover([]*job{{source{d, want.cat, loc}, l}}, windowMax, gapHydrate) {
		r.FetchBytes += w.bytes()
	}
}

// readyPart says what is known to be missing of a tree some of whose catalogs are not here.
func (c *Cache) readyPart(g Held, want Selection, r *Readiness) {
	seen := map[namespace.Digest]bool{g.Root: true}
	for todo := []namespace.Digest{g.Root}; len(todo) > 0; {
		d := todo[0]
		todo = todo[1:]
		cat, err := c.objects.open(d)
		if err != nil {
			r.MissingCatalogs++
			continue
		}
		for i := range cat.Len() {
			if ref, ok := cat.Nested(i); ok && !seen[ref.Digest] {
				seen[ref.Digest] = true
				todo = append(todo, ref.Digest)
				if _, err := c.objects.open(ref.Digest); err != nil && want.All {
					r.MissingBytes += int64(ref.Bytes)
					r.FetchBytes += int64(ref.Bytes)
				}
			}
		}
		if want.All {
			every := &chosen{cat: cat, bits: make([]uint64, (cat.NumChunks()+63)/64)}
			every.add(0, cat.NumChunks())
			c.readyCatalog(d, every, r)
		}
	}
}

// verifySet reads every chunk of a set from the disk and hashes it. What is damaged is dropped.
func (c *Cache) verifySet(ctx context.Context, set *Set) (damaged int, err error) {
	var at frameKey // the frame in plain: chunks of one are mostly asked for one after the other
	var plain []byte
	set.each(func(_ *catalog.Catalog, _ int, ch catalog.Chunk) {
		e, ok := c.index.get(ch.Digest)
		if !ok || ctx.Err() != nil {
			return
		}
		if key := (frameKey{e.seg, e.at}); key != at || plain == nil {
			at = key
			if plain, err = c.load(e, plain[:0]); err != nil {
				plain = nil
			}
		}
		if uint64(e.off)+uint64(e.size) <= uint64(len(plain)) && namespace.Sum(plain[e.off:][:e.size]) == ch.Digest {
			return
		}
		c.index.drop(ch.Digest, e)
		c.count.corrupt.Add(1)
		damaged++
	})
	err = nil
	if ctx.Err() != nil {
		err = namespace.E(namespace.Canceled, "verify", set.Root.String(), ctx.Err())
	}
	return damaged, err
}
