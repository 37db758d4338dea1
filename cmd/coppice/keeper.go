package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"coppice.dev/coppice/internal/disk"
	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/trust"
)

// trustTimeout bounds one look at an origin's documents: six small ones, on a bad link.
const trustTimeout = time.Minute

// clockEvery is how much time passes before the time that was seen is written down again.
const clockEvery = time.Minute

// fileKeeper is a trust.Keeper: a directory with one file a name, each replaced durably. Names are
// escaped into one file name.
type fileKeeper string

func (k fileKeeper) path(name string) string {
	return filepath.Join(string(k), url.PathEscape(name)+".json")
}

// Load implements trust.Keeper.
func (k fileKeeper) Load(name string) ([]byte, error) {
	b, err := os.ReadFile(k.path(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, disk.Error("read", k.path(name), err)
	}
	return b, nil
}

// Save implements trust.Keeper. What is kept already is not written again.
func (k fileKeeper) Save(name string, b []byte) error {
	if have, err := k.Load(name); err == nil && have != nil && string(have) == string(b) {
		return nil
	}
	return disk.Replace(k.path(name), b, 0o600)
}

// names returns what is kept.
func (k fileKeeper) names() (all []string) {
	files, _ := filepath.Glob(filepath.Join(string(k), "*.json"))
	for _, f := range files {
		if name, err := url.PathUnescape(strings.TrimSuffix(filepath.Base(f), ".json")); err == nil {
			all = append(all, name)
		}
	}
	return all
}

// rootKeeper is a fileKeeper that tells of roots, and keeps each of them for exports.
type rootKeeper struct {
	fileKeeper
	follow func(*trust.Root)
}

// Save implements trust.Keeper.
func (k rootKeeper) Save(name string, b []byte) error {
	if name != trust.DocRoot {
		return k.fileKeeper.Save(name, b)
	}
	root, err := trust.OpenRoot(b)
	if err == nil {
		err = k.fileKeeper.Save(trust.RootVersion(int64(root.Version)).Name, b)
	}
	if err == nil {
		err = k.fileKeeper.Save(name, b)
	}
	if err == nil {
		k.follow(root)
	}
	return err
}

// trustKeeper is what a daemon trusts of one origin, shared by all mounts of it. Safe for concurrent use.
type trustKeeper struct {
	dir string
	log *slog.Logger
	now func() time.Time
	gen func() string // the generation id of this virtual machine

	looks    sync.Mutex                     // held for a whole look at the origin: one at a time
	root     atomic.Pointer[trust.Root]     // the newest that follows from the pinned one; nil before there is one
	vouching atomic.Pointer[trust.Vouching] // as accepted last
	refused  sync.Map                       // channel → digest of the record that was refused last
	seqs     sync.Map                       // channel → seq of the record that was verified last

	mu     sync.Mutex // not held while the origin is asked
	clock  trust.Clock
	kept   trust.Clock // on disk
	policy trust.Policy
	doubt  string // why this machine may have been restored from a snapshot; "" if nothing speaks for it
}

// trustDir returns where the daemon of a cache keeps what it trusts of an origin.
func trustDir(cacheDir, origin string) string {
	sum := sha256.Sum256([]byte(origin))
	return filepath.Join(cacheDir, "trust", hex.EncodeToString(sum[:8]))
}

// trustOf returns the keeper of an origin that is at several locations: that of the first one which was met
// before, so that another order of them is no first contact.
func (d *daemon) trustOf(locations []string) (*trustKeeper, error) {
	dir := trustDir(d.dir, locations[0])
	for _, loc := range locations {
		at := trustDir(d.dir, loc)
		if b, err := fileKeeper(at).Load(trust.DocRoot); err != nil {
			return nil, err
		} else if b != nil {
			dir = at
			break
		}
	}
	return d.trustIn(dir)
}

// trustIn returns the keeper of a directory.
func (d *daemon) trustIn(dir string) (*trustKeeper, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if k := d.trusts[dir]; k != nil {
		return k, nil
	}
	k, err := openTrust(dir, d.log.With("trust", filepath.Base(dir)), time.Now, vmGeneration)
	if err == nil {
		d.trusts[dir] = k
	}
	return k, err
}

// trustDirs returns the directories of all origins that were met.
func (d *daemon) trustDirs() []string {
	roots, _ := filepath.Glob(filepath.Join(d.dir, "trust", "*", trust.DocRoot+".json"))
	for i, f := range roots {
		roots[i] = filepath.Dir(f)
	}
	return roots
}

// openTrust takes up what is kept in dir, which need not exist.
func openTrust(dir string, log *slog.Logger, now func() time.Time, gen func() string) (*trustKeeper, error) {
	k := &trustKeeper{dir: dir, log: log, now: now, gen: gen, policy: trust.DefaultPolicy}
	var err error
	if k.clock, err = trust.LoadClock(k.files()); err != nil {
		return nil, err
	}
	k.kept = k.clock
	machine, err := trust.LoadMachine(k.files())
	if err != nil {
		return nil, err
	}
	if k.doubt = machine.Restored(trust.Seen{Generation: gen()}); k.doubt != "" {
		log.Warn("the origin is asked before anything is started", "reason", k.doubt)
	}
	if b, err := k.files().Load(trust.DocRoot); err == nil && b != nil {
		if root, err := trust.OpenRoot(b); err == nil { // pin says what is wrong with it
			k.follow(root)
			_ = k.recall(context.Background(), func(*trust.Updater, *trust.Trusted) error { return nil }) // nor is that needed
		}
	}
	return k, nil
}

func (k *trustKeeper) files() rootKeeper { return rootKeeper{fileKeeper(k.dir), k.follow} }

// pin settles which root of trust the origin has: the one given with a request, or the one kept, or, at
// first contact, the one it presents; news is the origin's id then. offline says that the origin could
// not be asked. Kinds: Denied (another root), Stale (an older one), Unavailable, those of FetchRoot.
func (k *trustKeeper) pin(ctx context.Context, src namespace.RefReader, given []byte) (root *trust.Root, news string, err error) {
	ctx, cancel := context.WithTimeout(ctx, trustTimeout)
	defer cancel()
	k.looks.Lock()
	defer k.looks.Unlock()
	pinned, err := k.pinned(given)
	if err != nil {
		return nil, "", err
	}
	presented, b, err := trust.FetchRoot(ctx, src)
	if namespace.IsKind(err, namespace.Unavailable) && pinned != nil {
		return pinned, "", nil
	}
	if err != nil {
		return nil, "", err
	}
	if pinned == nil {
		return presented, presented.ID, k.files().Save(trust.DocRoot, b)
	}
	if err := trust.CheckPin(pinned, presented); err != nil {
		return nil, "", namespace.WithHint(err, "if the origin was made anew on purpose, remove "+k.dir)
	}
	return pinned, "", nil
}

// pinned returns the root that is kept, nil if there is none; given, if a person gave one, replaces that
// of another origin.
func (k *trustKeeper) pinned(given []byte) (*trust.Root, error) {
	b, err := k.files().Load(trust.DocRoot)
	if err != nil {
		return nil, err
	}
	var pinned *trust.Root
	if b != nil {
		if pinned, err = trust.OpenRoot(b); err != nil {
			return nil, namespace.WithHint(err, "what is kept of this origin is damaged; remove "+k.dir+" to start anew")
		}
	}
	if given == nil {
		return pinned, nil
	}
	root, err := trust.OpenRoot(given)
	if err != nil || pinned != nil && pinned.ID == root.ID && pinned.Version >= root.Version {
		return pinned, err // what was learnt since is not forgotten
	}
	if pinned != nil && pinned.ID != root.ID {
		if err := os.RemoveAll(k.dir); err != nil {
			return nil, disk.Error("remove", k.dir, err)
		}
		k.vouching.Store(nil)
		k.refused.Clear()
		k.seqs.Clear()
		k.mu.Lock()
		k.clock, k.kept = trust.Clock{}, trust.Clock{}
		k.mu.Unlock()
	}
	return root, k.files().Save(trust.DocRoot, given)
}

// look refreshes what is trusted of the origin and hands it to use. Kinds: those of trust.Updater.
func (k *trustKeeper) look(ctx context.Context, from trust.Documents, use func(*trust.Updater, *trust.Trusted) error) error {
	ctx, cancel := context.WithTimeout(ctx, trustTimeout)
	defer cancel()
	k.looks.Lock()
	defer k.looks.Unlock()
	local := k.now()
	u := &trust.Updater{From: from, Keep: k.files()}
	t, err := k.refresh(ctx, u, local)
	if err != nil {
		return errors.Join(err, k.saw(func(c trust.Clock) trust.Clock { return c.See(local) }))
	}
	v, err := t.Vouching()
	if err != nil {
		return err
	}
	k.vouching.Store(v)
	k.mu.Lock()
	if k.doubt != "" {
		k.log.Info("the origin was asked", "reason", k.doubt)
	}
	k.doubt, k.policy = "", v.Policy
	k.mu.Unlock()
	issued, expires := t.Issued()
	if err := k.saw(func(c trust.Clock) trust.Clock { return c.Prove(issued, expires, local) }); err != nil {
		return err
	}
	machine, err := trust.LoadMachine(k.files())
	if err == nil {
		err = trust.SaveMachine(k.files(), machine.Check(trust.Seen{Generation: k.gen()}))
	}
	if err != nil {
		return err
	}
	return use(u, t)
}

// preview is look without keeping anything: what would be accepted now.
func (k *trustKeeper) preview(ctx context.Context, from trust.Documents, use func(*trust.Updater, *trust.Trusted) error) error {
	k.looks.Lock()
	defer k.looks.Unlock()
	u := &trust.Updater{From: from, Keep: overKeeper{map[string][]byte{}, k.files()}}
	t, err := k.refresh(ctx, u, k.now())
	if err != nil {
		return err
	}
	return use(u, t)
}

// overKeeper is a trust.Keeper that leaves what lies below it as it is. Used by one updater.
type overKeeper struct {
	saved map[string][]byte
	below trust.Keeper
}

// Load implements trust.Keeper.
func (k overKeeper) Load(name string) ([]byte, error) {
	if b, ok := k.saved[name]; ok {
		return b, nil
	}
	return k.below.Load(name)
}

// Save implements trust.Keeper.
func (k overKeeper) Save(name string, b []byte) error { k.saved[name] = b; return nil }

// refresh is the updater's, at the time that the clock's memory says. If what the origin shows is over only
// because the clock was wound back, or set right, it counts if it is newer than all that was seen.
func (k *trustKeeper) refresh(ctx context.Context, u *trust.Updater, local time.Time) (*trust.Trusted, error) {
	k.mu.Lock()
	clock := k.clock
	k.mu.Unlock()
	now, doubt := clock.Now(local)
	t, err := u.Refresh(ctx, now)
	if namespace.IsKind(err, namespace.NotExist) { // collected or replaced while it was read
		t, err = u.Refresh(ctx, now)
	}
	if !trust.IsExpired(err) || doubt == "" {
		return t, err
	}
	err = namespace.WithHint(err, doubt)
	again, aerr := u.Refresh(ctx, clock.Proven(local))
	if aerr != nil {
		return t, err
	}
	if issued, _ := again.Issued(); !issued.After(clock.Signed) {
		return t, err
	}
	k.log.Warn("a newer timestamp is believed although it was not the time", "clock", doubt)
	return again, nil
}

// saw changes the clock; on disk only if it says something new then.
func (k *trustKeeper) saw(change func(trust.Clock) trust.Clock) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	c := change(k.clock)
	k.clock = c
	if c.Signed.Equal(k.kept.Signed) && c.Fresh.Sub(k.kept.Fresh) < clockEvery && c.Highest.Sub(k.kept.Highest).Abs() < clockEvery {
		return nil
	}
	k.kept = c
	return trust.SaveClock(k.files(), c)
}

// recall hands what was accepted before to use, without the origin. Kinds: NotExist (nothing was).
func (k *trustKeeper) recall(ctx context.Context, use func(*trust.Updater, *trust.Trusted) error) error {
	k.looks.Lock()
	defer k.looks.Unlock()
	u := &trust.Updater{Keep: k.files()}
	t, err := u.Recall(ctx)
	if err != nil {
		return err
	}
	if v, err := t.Vouching(); err == nil {
		k.vouching.Store(v)
		k.mu.Lock()
		k.policy = v.Policy
		k.mu.Unlock()
	}
	return use(u, t)
}

// suspicion says why the origin must be asked before anything is started; "" if it need not.
func (k *trustKeeper) suspicion() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.doubt
}

// announce notes that the kernel told of another generation of this virtual machine.
func (k *trustKeeper) announce() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.doubt = trust.Machine{}.Restored(trust.Seen{Announced: true})
}

// standing says how the origin stands with the two clocks. What of override is set comes first.
func (k *trustKeeper) standing(override trust.Policy) trust.Standing {
	k.mu.Lock()
	defer k.mu.Unlock()
	p := k.policy.WithDefaults()
	if override.Lease > 0 {
		p.Lease = override.Lease
	}
	if override.Then != "" {
		p.Then = override.Then
	}
	return k.clock.Stand(k.now(), p)
}

// endpointTrust is the rollout.Trust of one mount.
type endpointTrust struct {
	keep *trustKeeper
	from trust.Documents
}

// Accept implements rollout.Trust. That nothing new may be accepted because the time of what the origin
// shows is over is, for a mount that has something to go on with, as if the origin could not be reached.
func (t endpointTrust) Accept(ctx context.Context, channel string, record []byte) (p namespace.Pointer, err error) {
	err = t.keep.look(ctx, t.from, func(u *trust.Updater, trusted *trust.Trusted) error {
		p, err = u.Accept(ctx, trusted, channel, record)
		return err
	})
	if err == nil {
		return p, nil
	}
	t.keep.refuse(channel, record, err)
	if last, known, rerr := t.Recall(ctx, channel); rerr == nil && known && trust.IsExpired(err) {
		if shown, serr := trust.ReadPointer(channel, record); serr != nil || shown.Seq < last.Seq {
			return p, err // expired is the least that is wrong with it
		}
		err = namespace.WithHint(namespace.E(namespace.Unavailable, "accept", "channel "+channel, err), namespace.HintOf(err))
	}
	return p, err
}

// Recall implements rollout.Trust.
func (t endpointTrust) Recall(ctx context.Context, channel string) (p namespace.Pointer, known bool, err error) {
	err = t.keep.recall(ctx, func(u *trust.Updater, trusted *trust.Trusted) error {
		p, known = u.Remembered(trusted, channel)
		return nil
	})
	if err != nil { // nothing, or nothing that can be used: the origin has it
		return namespace.Pointer{}, false, nil
	}
	if why := t.keep.suspicion(); why != "" {
		return p, known, namespace.E(namespace.Unavailable, "start", "channel "+channel, errors.New(why+"; the origin must be asked before anything is started"))
	}
	return p, known, nil
}

// vouched returns the namespace version that v names, from the origin or, if that is out of reach or its
// time is over, from what was accepted before.
func (t endpointTrust) vouched(ctx context.Context, v namespace.Version) (one trust.Vouched, err error) {
	resolve := func(trusted *trust.Trusted) error {
		said, err := trusted.Vouching()
		if err != nil {
			return err
		}
		if one, err = said.Resolve(v); err != nil {
			return err
		}
		return said.Allows("", one.Version, one.Manifest, t.keep.now())
	}
	err = t.keep.look(ctx, t.from, func(_ *trust.Updater, trusted *trust.Trusted) error { return resolve(trusted) })
	if err == nil || !namespace.IsKind(err, namespace.Unavailable) && !trust.IsExpired(err) || t.keep.suspicion() != "" {
		return one, err
	}
	kerr := t.keep.recall(ctx, func(_ *trust.Updater, trusted *trust.Trusted) error { return resolve(trusted) })
	if kerr != nil {
		return one, err
	}
	return one, nil
}
