package trust_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/trust"
)

const channel = "desktop/stable"

var channelRef = namespace.RefName{Kind: namespace.ChannelRef, Name: channel}

// visitor is an endpoint: what it keeps, and the origin that it sees.
type visitor struct {
	shelf
	from *memory
	now  time.Time
}

func (r *repository) visit() *visitor {
	return &visitor{shelf{trust.DocRoot: r.Root.Bytes()}, r.memory, r.now}
}

// accept refreshes, and takes the channel's pointer.
func (v *visitor) accept(ctx context.Context) (namespace.Pointer, error) {
	u := trust.Updater{From: trust.OriginDocuments(v.from, v.from), Keep: v.shelf}
	trusted, err := u.Refresh(ctx, v.now)
	if err != nil {
		return namespace.Pointer{}, err
	}
	v.from.mu.Lock()
	raw := v.from.refs[channelRef]
	v.from.mu.Unlock()
	return u.Accept(ctx, trusted, channel, raw)
}

func (v *visitor) want(t *testing.T, what string, seq uint64, kind ...namespace.Kind) {
	t.Helper()
	before := maps.Clone(v.shelf)
	p, err := v.accept(t.Context())
	if len(kind) == 0 {
		if err != nil || p.Seq != seq {
			t.Fatalf("%s: seq %d, %v, want %d", what, p.Seq, err, seq)
		}
		return
	}
	for _, k := range kind {
		if namespace.IsKind(err, k) {
			if pointer := trust.ChannelDoc(channel); !bytes.Equal(before[pointer], v.shelf[pointer]) {
				t.Errorf("%s: a pointer was kept", what)
			}
			return
		}
	}
	t.Fatalf("%s: seq %d, %v, want %v", what, p.Seq, err, kind)
}

// copy returns the origin as it is now: what an attacker can show again later.
func (m *memory) copy() *memory {
	m.mu.Lock()
	defer m.mu.Unlock()
	return &memory{refs: maps.Clone(m.refs), blobs: maps.Clone(m.blobs)}
}

// ready returns an origin with three versions and a channel at the first, and an endpoint that has seen it.
func ready(t *testing.T, change func(*trust.Start)) (*repository, *visitor) {
	t.Helper()
	r := newRepository(t, change)
	publish(t, r.Publisher, 3)
	r.point(t, "desk@1")
	v := r.visit()
	v.want(t, "first contact", 1)
	return r, v
}

func (r *repository) point(t *testing.T, v string) {
	t.Helper()
	if _, err := r.Set(t.Context(), channel, version(t, v), "go"); err != nil {
		t.Fatal(err)
	}
}

func TestRollback(t *testing.T) {
	r, v := ready(t, nil)
	old := r.memory.copy()
	r.point(t, "desk@2")
	v.want(t, "forward", 2)
	v.from = old
	v.want(t, "the whole origin of before", 0, namespace.Stale)
	v.from = r.memory.copy()
	v.from.refs[channelRef] = old.refs[channelRef]
	v.want(t, "the channel's record of before", 0, namespace.Stale)
	v.from.refs[channelRef] = r.refs[channelRef]
	v.from.refs[trust.TimestampName] = old.refs[trust.TimestampName]
	v.want(t, "the timestamp of before", 0, namespace.Stale)
	v.from = r.memory
	r.point(t, "desk@1")
	v.want(t, "a rollback that was signed", 3)
}

func TestFreeze(t *testing.T) {
	r, v := ready(t, nil)
	frozen := r.memory.copy()
	r.now = r.now.Add(3 * 24 * time.Hour)
	r.point(t, "desk@2")
	v.from, v.now = frozen, r.now
	v.want(t, "within the life of the timestamp it cannot be noticed", 1)
	v.now = v.now.Add(5 * 24 * time.Hour)
	_, err := v.accept(t.Context())
	if !trust.IsExpired(err) {
		t.Errorf("frozen for a week: %v", err)
	}
	v.from = r.memory
	v.want(t, "thawed", 2)
}

// Who had the keys for a while wrote the highest version there is. New keys make it count for nothing.
func TestFastForward(t *testing.T) {
	r, v := ready(t, nil)
	thief := *r.Publisher
	for range 5 {
		if err := thief.Refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	good := r.memory.copy()
	for range 20 {
		if err := thief.Refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	v.want(t, "as far as the thief went", 1)
	r.memory.mu.Lock()
	r.memory.refs = good.refs // restored from a backup
	r.memory.mu.Unlock()
	v.want(t, "the backup lies behind", 0, namespace.Stale)
	r.rotate(t, trust.RoleTimestamp, 44)
	r.rotate(t, trust.RoleSnapshot, 33)
	r.point(t, "desk@2")
	v.want(t, "after the keys were changed", 2)
}

// rotate gives a role another key.
func (r *repository) rotate(t *testing.T, role trust.Role, seed byte) {
	t.Helper()
	was := trust.KeyID(key(t, roles[role]).Public())
	if ids := r.Root.Keys(role).KeyIDs; len(ids) == 1 {
		was = ids[0]
	}
	k := key(t, seed)
	r.Signers = append(r.Signers, k)
	_, err := r.ChangeRoot(t.Context(), []trust.KeyChange{{Role: role, Add: k.Public(), Remove: was}}, "rotated")
	if err != nil {
		t.Fatal(err)
	}
}

func TestMixAndMatch(t *testing.T) {
	r, v := ready(t, nil)
	old := r.memory.copy()
	r.point(t, "desk@2")
	digest := func(m *memory) (d namespace.Digest) { return namespace.Sum(m.refs[channelRef]) }
	// The blob that the new snapshot names holds the old pointer.
	v.from = r.memory.copy()
	v.from.refs[channelRef] = nil
	delete(v.from.refs, channelRef)
	v.from.blobs[digest(r.memory)] = old.refs[channelRef]
	v.want(t, "an old pointer under the new name", 0, namespace.Corrupt, namespace.Denied)
	// A timestamp of today with a snapshot of yesterday.
	for d, b := range r.blobs {
		if bytes.Contains(b, []byte(`"_type":"snapshot"`)) && !bytes.Contains(b, []byte(`"version":1,`)) {
			v.from.blobs[d] = nil
			for _, was := range old.blobs {
				if bytes.Contains(was, []byte(`"_type":"snapshot"`)) {
					v.from.blobs[d] = was
				}
			}
		}
	}
	v.want(t, "an old snapshot under the new name", 0, namespace.Corrupt, namespace.Denied)
}

func TestEndlessData(t *testing.T) {
	r, _ := ready(t, nil)
	endless := bytes.Repeat([]byte(" "), namespace.RefBytesMax+1)
	for name, spoil := range map[string]func(m *memory){
		"timestamp": func(m *memory) { m.refs[trust.TimestampName] = endless },
		"root":      func(m *memory) { m.refs[trust.RootVersion(2)] = endless },
		"channel":   func(m *memory) { m.refs[channelRef] = endless },
		"blobs": func(m *memory) {
			for d := range m.blobs {
				m.blobs[d] = endless
			}
		},
	} {
		v := r.visit()
		v.from = r.memory.copy()
		spoil(v.from)
		v.want(t, name, 0, namespace.Limit)
	}
}

// slowly is an origin whose documents never come to an end.
type slowly struct{ trust.Documents }

func (s slowly) Timestamp(ctx context.Context, _ int) ([]byte, error) {
	<-ctx.Done()
	return nil, namespace.E(namespace.Unavailable, "read", "timestamp", ctx.Err())
}

func TestSlowRetrieval(t *testing.T) {
	r, v := ready(t, nil)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	u := trust.Updater{From: slowly{trust.OriginDocuments(r.memory, r.memory)}, Keep: v.shelf}
	if _, err := u.Refresh(ctx, v.now); !namespace.IsKind(err, namespace.Unavailable) {
		t.Error(err)
	}
	v.want(t, "when it is over", 1)
}

// doc decodes a document for changing it by hand.
func doc(t *testing.T, b []byte) (m map[string]any) {
	t.Helper()
	if err := json.Unmarshal(b, &m); err != nil {
		t.Fatal(err)
	}
	return m
}

func encode(t *testing.T, m map[string]any) []byte {
	t.Helper()
	b, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestWrongRole(t *testing.T) {
	r, v := ready(t, nil)
	stamp := r.refs[trust.TimestampName]
	for name, b := range map[string][]byte{
		"a root as timestamp":    r.Root.Bytes(),
		"a pointer as timestamp": r.refs[channelRef],
	} {
		v.from = r.memory.copy()
		v.from.refs[trust.TimestampName] = b
		v.want(t, name, 0, namespace.Corrupt)
	}
	v.from = r.memory.copy()
	v.from.refs[trust.RootVersion(2)] = stamp
	v.want(t, "a timestamp as root", 0, namespace.Corrupt)
	// Each online key alone, used for what is another's.
	for role, seed := range roles {
		if role == trust.RoleTimestamp {
			continue
		}
		thief := newRepository(t, nil)
		thief.Signers = nil
		s := trust.Start{ID: "0123", Keys: map[trust.Role][]ed25519.PublicKey{}}
		for any := range roles {
			s.Keys[any] = []ed25519.PublicKey{key(t, seed).Public()}
		}
		thief.Signers = []trust.Signer{key(t, seed)}
		thief.memory.refs = map[namespace.RefName][]byte{}
		if _, err := thief.Init(t.Context(), s); err != nil {
			t.Fatal(err)
		}
		v.from = r.memory.copy()
		v.from.refs[trust.TimestampName] = thief.refs[trust.TimestampName]
		maps.Copy(v.from.blobs, thief.blobs)
		v.want(t, fmt.Sprintf("the key of %s signs a timestamp", role), 0, namespace.Denied)
	}
}

func TestExpiredEverything(t *testing.T) {
	r, _ := ready(t, nil)
	for _, c := range []struct {
		what string
		at   time.Duration
	}{{"timestamp", 8 * 24 * time.Hour}, {"snapshot", 60 * 24 * time.Hour}, {"vouching and pointer", 3 * 365 * 24 * time.Hour}, {"root", 6 * 365 * 24 * time.Hour}} {
		v := r.visit()
		v.now = r.now.Add(c.at)
		if _, err := v.accept(t.Context()); !trust.IsExpired(err) || !namespace.IsKind(err, namespace.Stale) {
			t.Errorf("%s: %v", c.what, err)
		}
		if c.what == "root" {
			continue
		}
		stamped := *r.Publisher // the online keys go on, the others have gone home
		at := v.now
		stamped.Now = func() time.Time { return at }
		if err := stamped.Refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
		_, err := v.accept(t.Context())
		if (err == nil) != (c.at < 2*365*24*time.Hour) {
			t.Errorf("%s, and the timestamp signed anew: %v", c.what, err)
		}
	}
}

func TestPointerBelowFloor(t *testing.T) {
	r, v := ready(t, nil)
	floor := trust.VouchingChange{Floor: []namespace.Version{version(t, "desk@2")}}
	if _, err := r.ChangeVouching(t.Context(), floor, "CVE"); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Set(t.Context(), channel, version(t, "desk@1"), ""); !namespace.IsKind(err, namespace.Denied) {
		t.Errorf("published below the floor: %v", err)
	}
	r.point(t, "desk@2")
	v.want(t, "at the floor", 2)
	if _, err := r.ChangeVouching(t.Context(), trust.VouchingChange{Vouch: []namespace.Version{version(t, "desk@1")},
		Except: []trust.Exception{{Channel: channel, Until: r.now.Add(time.Hour)}}}, "one application needs it"); err != nil {
		t.Fatal(err)
	}
	before := r.memory.copy()
	r.point(t, "desk@1")
	v.want(t, "with an exception", 3)
	late := before.visitAt(r, r.now.Add(2*time.Hour))
	late.from = r.memory
	late.want(t, "after the exception is over", 0, namespace.Denied)
	if _, err := r.Set(t.Context(), "other", version(t, "desk@1"), ""); !namespace.IsKind(err, namespace.Denied) {
		t.Errorf("an exception for another channel: %v", err)
	}
}

func (m *memory) visitAt(r *repository, now time.Time) *visitor {
	return &visitor{shelf{trust.DocRoot: r.Root.Bytes()}, m, now}
}

// A thief with all online keys points the channel at what nobody vouches for.
func TestPointerToAnUnvouchedVersion(t *testing.T) {
	r, v := ready(t, nil)
	thief := *r.Publisher
	thief.Signers = nil
	for role, seed := range roles {
		if role != trust.RoleRoot && role != trust.RoleVouching {
			thief.Signers = append(thief.Signers, key(t, seed))
		}
	}
	publish4, err := thief.Blobs.PutBlob(t.Context(), []byte("evil"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := thief.AddNamespace(t.Context(), "desk", publish4, ""); err != nil {
		t.Fatal(err)
	}
	if _, err := thief.Set(t.Context(), channel, version(t, "desk@4"), ""); !namespace.IsKind(err, namespace.Denied) {
		t.Errorf("by its own tools: %v", err)
	}
	if err := trust.Forge(&thief, channel, version(t, "desk@4"), publish4); err != nil {
		t.Fatal(err)
	}
	v.want(t, "by other tools", 0, namespace.Denied)
	if err := trust.Forge(&thief, channel, version(t, "desk@1"), publish4); err != nil {
		t.Fatal(err)
	}
	v.want(t, "under a name that is vouched for", 0, namespace.Denied)
	r.point(t, "desk@2")
	v.want(t, "set right", 4)
	if _, err := r.ChangeVouching(t.Context(), trust.VouchingChange{Withdraw: []namespace.Version{version(t, "desk@3")}}, "bad"); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Set(t.Context(), channel, version(t, "desk@3"), ""); !namespace.IsKind(err, namespace.Denied) {
		t.Errorf("a version that was withdrawn: %v", err)
	}
}

func TestPathTraversalInNames(t *testing.T) {
	r, v := ready(t, nil)
	for _, name := range []string{"../x", "/etc/passwd", "a/../b", "a//b", ".", "..", "", "a\x00b", "A", "a/", strings.Repeat("a", 300), "c.json/../../x", "%2e%2e/x"} {
		if _, err := r.Set(t.Context(), name, version(t, "desk@1"), ""); !namespace.IsKind(err, namespace.Invalid) {
			t.Errorf("channel %q: %v", name, err)
		}
		if _, err := r.ChangeVouching(t.Context(), trust.VouchingChange{Channels: []string{name}}, ""); !namespace.IsKind(err, namespace.Invalid) {
			t.Errorf("delegated channel %q: %v", name, err)
		}
		u := trust.Updater{From: trust.OriginDocuments(v.from, v.from), Keep: v.shelf}
		trusted, err := u.Refresh(t.Context(), v.now)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := u.Accept(t.Context(), trusted, name, nil); err == nil {
			t.Errorf("channel %q is accepted", name)
		}
	}
	for _, id := range []string{"../../x", "", "g", strings.Repeat("ab", 65)} {
		m := doc(t, r.Root.Bytes())
		m["signed"].(map[string]any)["coppice"].(map[string]any)["id"] = id
		if _, err := trust.OpenRoot(encode(t, m)); err == nil {
			t.Errorf("an origin called %q", id)
		}
	}
}

// What a crash between any two steps of a publisher leaves is valid, and the next one makes it whole.
func TestCrashBetweenSteps(t *testing.T) {
	for step := 0; ; step++ {
		r, v := ready(t, nil)
		dying := *r.Publisher
		m := &mortal{memory: r.memory, left: step}
		dying.Reader, dying.Writer, dying.Blobs = m, m, m
		_, err := dying.Set(t.Context(), channel, version(t, "desk@2"), "")
		p, verr := v.accept(t.Context())
		if verr != nil && !namespace.IsKind(verr, namespace.Stale) || verr == nil && p.Seq > 2 {
			t.Fatalf("step %d: %v", step, verr)
		}
		if err == nil {
			if step < 4 {
				t.Fatalf("only %d steps", step)
			}
			return
		}
		if err := r.Publisher.Refresh(t.Context()); err != nil {
			t.Fatalf("step %d: %v", step, err)
		}
		r.point(t, "desk@3")
		if p, err = v.accept(t.Context()); err != nil || p.Version.N != 3 {
			t.Fatalf("step %d: %+v, %v", step, p, err)
		}
	}
}

// mortal is an origin that fails at a write and ever after.
type mortal struct {
	*memory
	left int
}

func (m *mortal) die() error {
	if m.left--; m.left < 0 {
		return namespace.E(namespace.Unavailable, "write", "origin", nil)
	}
	return nil
}

func (m *mortal) PutBlob(ctx context.Context, b []byte) (namespace.Digest, error) {
	if err := m.die(); err != nil {
		return namespace.Digest{}, err
	}
	return m.memory.PutBlob(ctx, b)
}

func (m *mortal) SwapRef(ctx context.Context, n namespace.RefName, prev, next []byte) error {
	if err := m.die(); err != nil {
		return err
	}
	return m.memory.SwapRef(ctx, n, prev, next)
}

func TestEveryBitOfTheDocumentsMatters(t *testing.T) {
	r, _ := ready(t, nil)
	stamp := r.refs[trust.TimestampName]
	for i := 0; i < len(stamp); i += 3 {
		v := r.visit()
		v.from = r.memory.copy()
		b := bytes.Clone(stamp)
		b[i] ^= 1
		v.from.refs[trust.TimestampName] = b
		if p, err := v.accept(t.Context()); err == nil && !bytes.Contains(stamp[max(0, i-300):min(i+6, len(stamp))], []byte(`"note"`)) {
			t.Errorf("bit 0 of byte %d (%q) made no difference: %+v", i, stamp[max(0, i-10):i+1], p)
		}
	}
}

func TestPublishersOfChannelsLoseNothing(t *testing.T) {
	r, v := ready(t, nil)
	done := make(chan error)
	const writers, each = 4, 4
	for range writers {
		go func() {
			for range each {
				if _, err := r.Set(context.Background(), channel, namespace.Version{Name: "desk", N: 2}, ""); err != nil {
					done <- err
					return
				}
			}
			done <- nil
		}()
	}
	for range writers {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	v.want(t, "after a crowd", 1+writers*each)
	n := 0
	if err := r.History(t.Context(), channel, func(namespace.Pointer) bool { n++; return true }); err != nil || n != 1+writers*each {
		t.Errorf("%d in the history, %v", n, err)
	}
}

func TestSignaturesSayWhoWhenAndWhy(t *testing.T) {
	r, _ := ready(t, nil)
	r.point(t, "desk@2")
	var all []trust.Entry
	if err := r.Log(t.Context(), channel, func(e trust.Entry) bool { all = append(all, e); return true }); err != nil || len(all) != 2 {
		t.Fatal(all, err)
	}
	s := all[0].Signed
	if len(s) != 1 || !s[0].Verified || s[0].By != "ann" || s[0].Why != "go" || !s[0].At.Equal(r.now) {
		t.Errorf("%+v", s)
	}
	// A note that was changed is not shown.
	r.memory.mu.Lock()
	raw := r.refs[channelRef]
	r.memory.mu.Unlock()
	m := doc(t, raw)
	m["signatures"].([]any)[0].(map[string]any)["note"].(map[string]any)["by"] = "eve"
	forged := encode(t, m)
	if bytes.Equal(forged, raw) || !bytes.Contains(forged, []byte("eve")) {
		t.Fatal("the test does not test")
	}
	r.refs[channelRef] = forged
	if _, err := r.Pointer(t.Context(), channel); !namespace.IsKind(err, namespace.Denied) {
		t.Errorf("a pointer with another note: %v", err)
	}
}

func FuzzRequest(f *testing.F) {
	r := newRepository(f, nil)
	ask, err := r.AskVouching(f.Context(), trust.VouchingChange{Channels: []string{"c"}}, "why")
	if err != nil {
		f.Fatal(err)
	}
	b, err := json.Marshal(ask)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(_ *testing.T, b []byte) {
		if r, err := trust.OpenRequest(b); err == nil {
			_ = r.Changes()
			_ = r.Signatures()
			_, _ = r.Merge(r)
		}
	})
}
