package builder

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"runtime"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/catalog"
	"coppice.dev/coppice/namespace/object"
	"coppice.dev/coppice/namespace/trust"
)

// SyncOptions of [Sync].
type SyncOptions struct {
	// Policy says what is copied: of which names, and which versions of them. Records are copied
	// whole, since they are signed; a version that was not copied is like one that was collected.
	Policy Policy
	// Progress, if set, is told the packs copied and their bytes; totals are 0 until they are known,
	// and that of bytes grows with a source that does not tell sizes. From one goroutine at a time.
	Progress func(packs, packsAll, bytes, bytesAll uint64)
}

// SyncReport says what [Sync] did.
type SyncReport struct {
	Catalogs uint64           // that the destination now has of what was asked for
	Copied   map[string]Tally // by class; stored bytes
	Refs     []string         // that were written, "kind/name"
	Missing  []string         // versions that the source itself does not hold any more
}

// Sync copies what the policy chooses of the origin src to dst: first the root of trust, if dst has
// none, or a newer one, and objects, then the refs: of trees and namespaces, the timestamp, at last those of channels, all as they
// were when Sync began, with their signatures; a mirror needs no key. What dst holds already is not
// copied, and is protected from a collection that may be running there. Packs and blobs are verified
// by their digests on the way. An interrupted Sync leaves dst as it was, but for objects that
// nothing names, and the next one goes on from them.
//
// A channel that would go back to a lower seq, a record with fewer or other versions, and a dst
// with another root of trust are refused before anything is copied. Memory: a digest for each
// catalog and missing pack, and some packs. Kinds: Denied (signatures, roots), Stale (going back),
// NotExist (the source lacks what it refers to, or was collected meanwhile: try again), Corrupt,
// those of both stores.
func Sync(ctx context.Context, src namespace.Source, dst namespace.Origin, o SyncOptions) (SyncReport, error) {
	s := &syncer{src: src, dst: dst, o: o, packs: newRenewer(dst, namespace.Pack), want: map[namespace.Digest]bool{}}
	s.report.Copied = map[string]Tally{}
	steps := []func(context.Context) error{s.trust, s.snapshot, s.blobs, s.layouts, s.trees, s.copyPacks, s.writeRefs}
	for _, step := range steps {
		if err := step(ctx); err != nil {
			return s.report, err
		}
	}
	return s.report, nil
}

type syncer struct {
	src   namespace.Source
	dst   namespace.Origin
	o     SyncOptions
	root  *trust.Root
	roots []syncRef
	refs  []syncRef
	kept  Retained
	packs *renewer // of dst

	mu     sync.Mutex                // guards what follows
	want   map[namespace.Digest]bool // packs that dst lacks
	recs   []object.IndexRecord      // of packs that no segment of dst covers yet
	fresh  []namespace.Digest
	report SyncReport
	done   Tally
	total  uint64 // bytes
}

// syncRef is a ref with its record at the source and at the destination, nil if it has none.
type syncRef struct {
	name      namespace.RefName
	src, have []byte
}

// trust checks that both have the same root, or gives dst that of src.
func (s *syncer) trust(ctx context.Context) error {
	root, _, err := trust.FetchRoot(ctx, s.src)
	if err != nil {
		return err
	}
	s.root = root
	var roots []syncRef
	for n := int64(1); n <= int64(root.Version); n++ {
		r := syncRef{name: trust.RootVersion(n)}
		if err := r.read(ctx, s.src, s.dst); err != nil {
			return err
		}
		roots = append(roots, r)
	}
	newest := syncRef{name: trust.RootName}
	if err := newest.read(ctx, s.src, s.dst); err != nil {
		return err
	}
	newest.src = root.Bytes() // the ref may lie behind
	if newest.have != nil {
		have, _, err := trust.FetchRoot(ctx, s.dst)
		if err != nil {
			return err
		}
		if have.Version <= root.Version && !bytes.Equal(roots[have.Version-1].src, have.Bytes()) || have.ID != root.ID {
			return namespace.WithHint(namespace.E(namespace.Denied, "sync", trust.RootName.String(), fmt.Errorf("the destination has another root of trust")),
				"it is a mirror of another origin, or an origin of its own: choose an empty directory")
		}
		if have.Version > root.Version {
			return stale(trust.RootName, "the source has version %d, the destination has %d", root.Version, have.Version)
		}
	}
	s.roots = append(roots, newest)
	return nil
}

// snapshot reads all refs that are chosen, and checks that none goes back.
func (s *syncer) snapshot(ctx context.Context) error {
	taken := refSnapshot{}
	// The timestamp last: what it leads to may be newer than the channels' records, but never older.
	for _, kind := range []string{namespace.TreeRef, namespace.NamespaceRef, namespace.ProfileRef, namespace.ChannelRef, namespace.TrustRef} {
		names, err := s.src.Refs(ctx, kind)
		if err != nil {
			return err
		}
		for _, name := range names {
			n := namespace.RefName{Kind: kind, Name: name}
			chosen := n == trust.TimestampName
			if kind != namespace.TrustRef {
				chosen = kind == namespace.ProfileRef || s.o.Policy.Only == nil || s.o.Policy.Only(n)
			}
			if !chosen {
				continue
			}
			if err := s.take(ctx, n); err != nil {
				return err
			}
			taken[n] = s.refs[len(s.refs)-1].src
		}
	}
	var err error
	s.kept, err = s.o.Policy.Retain(ctx, trust.Refs{Reader: taken, Root: s.root}, s.src)
	s.report.Missing = s.kept.Missing
	s.dropProfiles()
	return err
}

func (s *syncer) take(ctx context.Context, n namespace.RefName) error {
	r := syncRef{name: n}
	if err := r.read(ctx, s.src, s.dst); err != nil {
		return err
	}
	s.refs = append(s.refs, r)
	return r.check(s.root)
}

// read reads both records.
func (r *syncRef) read(ctx context.Context, src, dst namespace.RefReader) (err error) {
	if r.src, err = src.Ref(ctx, r.name); err != nil {
		return err
	}
	if r.have, err = dst.Ref(ctx, r.name); namespace.IsKind(err, namespace.NotExist) {
		r.have, err = nil, nil
	}
	return err
}

// check says whether the source's record may follow the destination's.
func (r syncRef) check(root *trust.Root) error {
	switch r.name.Kind {
	case namespace.ChannelRef:
		return r.checkPointer()
	case namespace.TrustRef:
		return r.checkTimestamp(root)
	}
	if _, err := root.Open(r.name, r.src); err != nil || r.have == nil || bytes.Equal(r.src, r.have) {
		return err
	}
	next, err := versionDigests(root, r.name, r.src)
	if err != nil {
		return err
	}
	have, err := versionDigests(root, r.name, r.have)
	if err != nil {
		return err
	}
	if len(next) < len(have) || !slices.Equal(next[:len(have)], have) {
		return stale(r.name, "the destination has %d versions, of which the source has not all", len(have))
	}
	return nil
}

// checkPointer compares the seqs of a channel; its signatures are verified with its history.
func (r syncRef) checkPointer() error {
	next, err := trust.ReadPointer(r.name.Name, r.src)
	if err != nil || r.have == nil {
		return err
	}
	have, err := trust.ReadPointer(r.name.Name, r.have)
	if err == nil && (next.Seq < have.Seq || next.Seq == have.Seq && !bytes.Equal(r.src, r.have)) {
		err = stale(r.name, "the source has seq %d, the destination has %d", next.Seq, have.Seq)
	}
	return err
}

// checkTimestamp compares the versions of timestamps. One that was signed with a key of before says
// nothing.
func (r syncRef) checkTimestamp(root *trust.Root) error {
	next, err := root.OpenTimestamp(r.src)
	if err != nil || r.have == nil {
		return err
	}
	have, err := root.OpenTimestamp(r.have)
	if err == nil && (next < have || next == have && !bytes.Equal(r.src, r.have)) {
		return stale(r.name, "the source has version %d, the destination has %d", next, have)
	}
	return nil
}

func stale(n namespace.RefName, format string, args ...any) error {
	return namespace.WithHint(namespace.E(namespace.Stale, "sync", n.String(), fmt.Errorf(format, args...)),
		"is the source an old copy, or was the destination published to?")
}

// versionDigests returns what the versions of a tree or namespace are, in order; nothing for others.
func versionDigests(root *trust.Root, n namespace.RefName, b []byte) (all []namespace.Digest, err error) {
	switch n.Kind {
	case namespace.TreeRef:
		var t namespace.Tree
		err = root.OpenRecord(n, b, &t)
		for _, v := range t.Versions {
			all = append(all, v.Root)
		}
	case namespace.NamespaceRef:
		var ns namespace.Namespace
		err = root.OpenRecord(n, b, &ns)
		for _, v := range ns.Versions {
			all = append(all, v.Manifest)
		}
	}
	return all, err
}

// refSnapshot is a namespace.RefReader of records that were read before.
type refSnapshot map[namespace.RefName][]byte

// Ref implements namespace.RefReader.
func (r refSnapshot) Ref(_ context.Context, n namespace.RefName) ([]byte, error) {
	b, ok := r[n]
	if !ok {
		return nil, namespace.E(namespace.NotExist, "read ref", n.String(), nil)
	}
	return b, nil
}

// Refs implements namespace.RefReader.
func (r refSnapshot) Refs(_ context.Context, kind string) ([]string, error) {
	var names []string
	for n := range r {
		if n.Kind == kind {
			names = append(names, n.Name)
		}
	}
	slices.Sort(names)
	return names, nil
}

// blobs copies manifests, replaced pointers and tables of packages.
func (s *syncer) blobs(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(max(crawlersMin, 2*runtime.GOMAXPROCS(0)))
	for _, d := range s.kept.Blobs {
		group.Go(func() error {
			_, err := s.blob(ctx, d, false)
			return err
		})
	}
	return group.Wait()
}

// blob makes sure that dst holds a blob, and returns its plaintext if that was asked for, or was
// at hand. One that is damaged in dst is not replaced: verify finds it.
func (s *syncer) blob(ctx context.Context, d namespace.Digest, want bool) ([]byte, error) {
	k := namespace.Key{Class: namespace.Blob, Digest: d}
	from := namespace.Fetcher(s.dst)
	err := renew(ctx, s.dst, k)
	if err == nil && !want {
		return nil, nil
	}
	missing := namespace.IsKind(err, namespace.NotExist)
	if missing {
		from, err = s.src, nil
	}
	if err != nil {
		return nil, err
	}
	stored, err := getAll(ctx, from, k, namespace.CatalogBytesMax)
	if err != nil {
		return nil, err
	}
	plain, err := object.DecodeBlob(stored, d, namespace.CatalogBytesMax)
	if err != nil || !missing {
		return plain, err
	}
	return plain, s.put(ctx, k, stored)
}

func (s *syncer) put(ctx context.Context, k namespace.Key, b []byte) error {
	if err := s.dst.Put(ctx, k, b); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.report.Copied[k.Class.String()]
	t.add(int64(len(b)))
	s.report.Copied[k.Class.String()] = t
	return nil
}

// trees copies catalogs and locators, and notes which packs are missing.
func (s *syncer) trees(ctx context.Context) error {
	newest := map[namespace.Digest]bool{}
	names := map[namespace.Digest]string{}
	var starts []catalogAt
	for _, t := range s.kept.Trees {
		starts = append(starts, catalogAt{digest: t.Root})
		newest[t.Root], names[t.Root] = newest[t.Root] || t.Newest, t.Name
	}
	return newCrawl().run(ctx, starts, func(ctx context.Context, at catalogAt) ([]catalogAt, error) {
		b, err := s.blob(ctx, at.digest, true)
		if namespace.IsKind(err, namespace.NotExist) && at.digest == at.root && !newest[at.root] {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.report.Missing = append(s.report.Missing, names[at.root])
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		c, err := catalog.Open(b)
		if err != nil {
			return nil, err
		}
		if err := s.locator(ctx, at.digest, c); err != nil {
			return nil, err
		}
		if err := s.delta(ctx, at.digest); err != nil {
			return nil, err
		}
		s.mu.Lock()
		s.report.Catalogs++
		s.mu.Unlock()
		return nestedAt(c, at), nil
	})
}

// locator makes sure that dst has a locator of catalog c: its own if all packs that it names are
// there, which may be others after a repacking, else that of the source.
func (s *syncer) locator(ctx context.Context, d namespace.Digest, c *catalog.Catalog) error {
	k := namespace.Key{Class: namespace.Locator, Digest: d}
	have, err := loadLocator(ctx, s.dst, d, c)
	if err == nil {
		lacks, err := s.lacks(ctx, have)
		if err != nil {
			return err
		}
		if len(lacks) == 0 {
			if err := renew(ctx, s.dst, k); !namespace.IsKind(err, namespace.NotExist) {
				return err
			}
		}
	} else if !damaged(err) {
		return err
	}
	stored, err := getAll(ctx, s.src, k, namespace.LocatorBytesMax)
	if err != nil {
		return err
	}
	l, err := openLocatorOf(k, stored, c)
	if err != nil {
		return err
	}
	lacks, err := s.lacks(ctx, l)
	if err != nil {
		return err
	}
	s.mu.Lock()
	for _, d := range lacks {
		s.want[d] = true
	}
	s.mu.Unlock()
	return s.put(ctx, k, stored)
}

// lacks returns the packs of a locator that dst has not got.
func (s *syncer) lacks(ctx context.Context, l *object.Locator) (missing []namespace.Digest, err error) {
	for _, d := range l.Packs() {
		ok, err := s.packs.has(ctx, d)
		if err != nil {
			return nil, err
		}
		if !ok {
			missing = append(missing, d)
		}
	}
	return missing, nil
}

// delta copies the delta of a catalog if dst has none, or one that differs in size, as far as the
// source tells sizes. What is in it is
// verified by who applies it.
func (s *syncer) delta(ctx context.Context, d namespace.Digest) error {
	k := namespace.Key{Class: namespace.Delta, Digest: d}
	size, err := s.dst.Stat(ctx, k)
	if err == nil {
		st, ok := s.src.(stater)
		if !ok {
			return renew(ctx, s.dst, k)
		}
		if there, err := st.Stat(ctx, k); err != nil || there == size || there < 0 {
			return renew(ctx, s.dst, k)
		}
	} else if !namespace.IsKind(err, namespace.NotExist) {
		return err
	}
	b, err := getAll(ctx, s.src, k, objectBytesMax[k.Class])
	if namespace.IsKind(err, namespace.NotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return s.put(ctx, k, b)
}

// stater is what sources can that tell the size of an object, -1 for unknown.
type stater interface {
	Stat(context.Context, namespace.Key) (int64, error)
}

// syncPacks is how many packs are under way together: each is in memory, of 16 to 64 MiB.
const syncPacks = 4

// copyPacks copies the packs that are missing, each verified, and covers them by the index.
func (s *syncer) copyPacks(ctx context.Context) error {
	packs := make([]namespace.Digest, 0, len(s.want))
	for d := range s.want {
		packs = append(packs, d)
	}
	slices.SortFunc(packs, func(a, b namespace.Digest) int { return cmp.Compare(a.Hex(), b.Hex()) })
	if err := s.sizes(ctx, packs); err != nil {
		return err
	}
	group, inner := errgroup.WithContext(ctx)
	group.SetLimit(syncPacks)
	for _, d := range packs {
		group.Go(func() error { return s.pack(inner, d) })
	}
	if err := group.Wait(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cover(ctx)
}

// sizes asks how much there is to copy, if somebody wants to know.
func (s *syncer) sizes(ctx context.Context, packs []namespace.Digest) error {
	st, ok := s.src.(stater)
	if s.o.Progress == nil || !ok {
		return nil
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(loadsMax)
	for _, d := range packs {
		group.Go(func() error {
			n, err := st.Stat(ctx, namespace.Key{Class: namespace.Pack, Digest: d})
			s.mu.Lock()
			defer s.mu.Unlock()
			s.total += uint64(max(0, n))
			return err
		})
	}
	return group.Wait()
}

func (s *syncer) pack(ctx context.Context, d namespace.Digest) error {
	k := namespace.Key{Class: namespace.Pack, Digest: d}
	b, err := getAll(ctx, s.src, k, namespace.PackBytesMax)
	if err != nil {
		return namespace.WithHint(err, "if the source was collected meanwhile, sync again; else check it with `coppice origin verify`")
	}
	if err := checkDigest(k, b); err != nil {
		return err
	}
	frames, err := object.ReadPackDirectory(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		return namespace.E(namespace.KindOf(err), "sync", k.String(), err)
	}
	if err := s.put(ctx, k, b); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fresh = append(s.fresh, d)
	for _, f := range frames {
		for _, c := range f.Chunks {
			s.recs = append(s.recs, object.IndexRecord{Digest: c.Digest, Place: placeOf(d, f, c)})
		}
	}
	s.done.add(int64(len(b)))
	if s.o.Progress != nil {
		s.o.Progress(s.done.Objects, uint64(len(s.want)), s.done.Bytes, max(s.total, s.done.Bytes))
	}
	if len(s.recs) < movesMax {
		return nil
	}
	return s.cover(ctx)
}

// cover writes a segment of the index for the packs that were copied since the last; s.mu is held.
// The index of the source is not copied: it may cover what was not, and not every server shows it.
func (s *syncer) cover(ctx context.Context) error {
	if len(s.fresh) == 0 {
		return nil
	}
	seg, err := putSegment(ctx, s.dst, s.fresh, s.recs)
	s.fresh, s.recs = nil, nil
	if err == nil {
		t := s.report.Copied[namespace.Index.String()]
		t.add(seg.size)
		s.report.Copied[namespace.Index.String()] = t
	}
	return err
}

// writeRefs writes the records that changed: roots and the timestamp, what they lead to being there, then
// the catalogues, and channels last, on which followers wait.
func (s *syncer) writeRefs(ctx context.Context) error {
	first := slices.IndexFunc(s.refs, func(r syncRef) bool { return r.name == trust.TimestampName })
	if first >= 0 {
		s.roots = append(s.roots, s.refs[first])
		s.refs = slices.Delete(s.refs, first, first+1)
	}
	return s.write(ctx, append(s.roots, s.refs...))
}

func (s *syncer) write(ctx context.Context, refs []syncRef) error {
	for _, r := range refs {
		if bytes.Equal(r.src, r.have) {
			continue
		}
		if err := s.dst.SwapRef(ctx, r.name, r.have, r.src); err != nil {
			return err
		}
		s.report.Refs = append(s.report.Refs, r.name.String())
	}
	return nil
}
