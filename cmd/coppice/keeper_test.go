package main

import (
	"context"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/origin"
	"coppice.dev/coppice/namespace/trust"
)

// machine is an endpoint's trust in an origin, with a clock and a generation id to turn.
type machine struct {
	t     *testing.T
	dir   string
	o     *origin.Dir
	now   time.Time
	gen   string
	trust endpointTrust
}

func newMachine(t *testing.T, o *origin.Dir) *machine {
	m := &machine{t: t, dir: t.TempDir(), o: o, now: time.Now()}
	m.boot()
	if _, news, err := m.trust.keep.pin(t.Context(), o, nil); err != nil || news == "" {
		t.Fatal(news, err)
	}
	return m
}

// boot starts it anew on what it has kept.
func (m *machine) boot() {
	m.t.Helper()
	keep, err := openTrust(m.dir, slog.New(slog.DiscardHandler), func() time.Time { return m.now }, func() string { return m.gen })
	if err != nil {
		m.t.Fatal(err)
	}
	m.trust = endpointTrust{keep, trust.OriginDocuments(m.o, sourceBlobs{m.o})}
}

func (m *machine) accept() (namespace.Pointer, error) {
	m.t.Helper()
	b, err := m.o.Ref(m.t.Context(), namespace.RefName{Kind: namespace.ChannelRef, Name: "stable"})
	if err != nil {
		m.t.Fatal(err)
	}
	return m.trust.Accept(m.t.Context(), "stable", b)
}

func (m *machine) want(what string, seq uint64) {
	m.t.Helper()
	if p, err := m.accept(); err != nil || p.Seq != seq {
		m.t.Errorf("%s: seq %d, %v", what, p.Seq, err)
	}
}

// A frozen origin: nothing new is accepted, what runs goes on, until the lease is over.
func TestFrozenOrigin(t *testing.T) {
	dir, o := plainOrigin(t)
	m := newMachine(t, o)
	m.want("first contact", 1)
	start := m.now
	for _, c := range []struct {
		days        int
		fresh, over bool
	}{{1, true, false}, {8, false, false}, {30, false, false}, {32, false, true}, {300, false, true}} {
		m.now = start.Add(time.Duration(c.days) * 24 * time.Hour)
		m.boot()
		if _, err := m.accept(); (err == nil) != c.fresh || err != nil && (!trust.IsExpired(err) || !namespace.IsKind(err, namespace.Unavailable)) {
			t.Errorf("after %d days: %v", c.days, err)
		}
		if p, known, err := m.trust.Recall(t.Context(), "stable"); err != nil || !known || p.Seq != 1 {
			t.Errorf("after %d days it has %+v, %v", c.days, p, err)
		}
		if _, err := m.trust.vouched(t.Context(), namespace.Version{Name: "dev", N: 1}); err != nil {
			t.Errorf("after %d days a fixed version: %v", c.days, err)
		}
		s := m.trust.keep.standing(trust.Policy{})
		if s.Fresh != c.fresh || s.LeaseOver != c.over { // it runs from the first day, the last fresh one
			t.Errorf("after %d days: %+v", c.days, s)
		}
	}
	if s := m.trust.keep.standing(trust.Policy{Then: trust.Quarantine}); !s.LeaseOver || s.Then != trust.Quarantine {
		t.Errorf("after a year: %+v", s)
	}
	m.now = start.Add(time.Second) // the clock was wrong, and was set right
	m.boot()
	if _, err := m.accept(); !trust.IsExpired(err) {
		t.Errorf("what was over is fresh again: %v", err)
	}
	later := start.Add(time.Minute)
	a := &app{}
	keys, err := a.signers(a.keysDir(dir))
	if err != nil {
		t.Fatal(err)
	}
	root, _, err := trust.FetchRoot(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	p := trust.Publisher{Refs: trust.Refs{Reader: o, Root: root, Blobs: originBlobs{o}}, Writer: o, Signers: keys, Now: func() time.Time { return later }}
	if _, err := p.Set(t.Context(), "stable", namespace.Version{Name: "dev", N: 1}, ""); err != nil {
		t.Fatal(err)
	}
	m.now = later
	m.want("thawed", 2)
	if s := m.trust.keep.standing(trust.Policy{}); !s.Fresh || s.LeaseOver || s.Doubt != "" {
		t.Errorf("thawed: %+v", s)
	}
}

// Winding the clock back does not make what has expired fresh again, also after a restart.
func TestClockWoundBackAtTheEndpoint(t *testing.T) {
	_, o := plainOrigin(t)
	m := newMachine(t, o)
	m.want("first contact", 1)
	m.now = m.now.Add(20 * 24 * time.Hour)
	if _, err := m.accept(); !trust.IsExpired(err) {
		t.Errorf("after twenty days: %v", err)
	}
	m.now = m.now.Add(-19 * 24 * time.Hour)
	m.boot()
	_, err := m.accept()
	if !trust.IsExpired(err) || !strings.Contains(namespace.HintOf(err)+err.Error(), "expired") {
		t.Errorf("wound back: %v", err)
	}
	if s := m.trust.keep.standing(trust.Policy{}); !strings.Contains(s.Doubt, "wound back") || s.Fresh {
		t.Errorf("%+v", s)
	}
}

// A virtual machine that is set back, with all that it kept, asks the origin before it starts anything.
func TestRestoredVirtualMachine(t *testing.T) {
	_, o := plainOrigin(t)
	m := newMachine(t, o)
	m.gen = "aa"
	m.want("first contact", 1)
	m.boot()
	if _, known, err := m.trust.Recall(t.Context(), "stable"); err != nil || !known {
		t.Errorf("an ordinary restart: %v", err)
	}
	m.gen = "bb"
	m.boot()
	_, known, err := m.trust.Recall(t.Context(), "stable")
	if !known || !namespace.IsKind(err, namespace.Unavailable) || !strings.Contains(err.Error(), "restored") {
		t.Errorf("restored: %v", err)
	}
	m.want("it asks", 1)
	if _, _, err := m.trust.Recall(t.Context(), "stable"); err != nil || m.trust.keep.suspicion() != "" {
		t.Errorf("after it asked: %v", err)
	}
	m.trust.keep.announce()
	if m.trust.keep.suspicion() == "" {
		t.Error("what the kernel announces makes no difference")
	}
}

func TestGenerationAnnounced(t *testing.T) {
	for event, want := range map[string]bool{
		"change@/devices/QEMUVGID:00\x00ACTION=change\x00NEW_VMGENID=1\x00SEQNUM=7\x00": true,
		"change@/x\x00ACTION=change\x00NEW_VMGENID=0\x00":                               false,
		"add@/x\x00NAME=NEW_VMGENID=1\x00":                                              false,
		"":                                                                              false,
	} {
		if announcesGeneration([]byte(event)) != want {
			t.Errorf("%q", event)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	watchGeneration(ctx, func() { t.Error("nothing happened") })
}

// What is kept may be damaged in any file: it is fetched again, or an error names it.
func TestDamagedTrust(t *testing.T) {
	_, o := plainOrigin(t)
	for _, name := range []string{"timestamp", "snapshot", "targets", "channel/stable", "clock", "machine"} {
		m := newMachine(t, o)
		m.want("first contact", 1)
		if err := os.WriteFile(m.trust.keep.files().path(name), []byte("{\"a\":null"), 0o600); err != nil {
			t.Fatal(err)
		}
		m.boot()
		m.want(name+" damaged", 1)
	}
	m := newMachine(t, o)
	if err := os.WriteFile(m.trust.keep.files().path(trust.DocRoot), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	m.boot()
	if _, _, err := m.trust.keep.pin(t.Context(), o, nil); !strings.Contains(namespace.HintOf(err), "remove "+m.dir) {
		t.Errorf("a damaged root: %v", err)
	}
}

func FuzzKeyFile(f *testing.F) {
	f.Add([]byte("-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIAAA\n-----END PRIVATE KEY-----\n"))
	f.Add([]byte("-----BEGIN COPPICE ENCRYPTED PRIVATE KEY-----\nPublic: 00\n\ne30=\n-----END COPPICE ENCRYPTED PRIVATE KEY-----\n"))
	a := &app{}
	f.Fuzz(func(_ *testing.T, b []byte) {
		_, _ = a.decodeKey("key", b)
	})
}
