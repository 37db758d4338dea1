package report

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/rollout/endpoint"
)

func sample(t testing.TB) *Report {
	facts := map[string]string{"site": "oslo", "kernel": "6.1"}
	d, err := DigestFacts(facts)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Date(2026, 3, 1, 8, 0, 0, 0, time.UTC)
	n, yes := 1, true
	return &Report{
		Format: Format, Endpoint: "desk-7", Boot: "1b4e28ba-2fa1-41d2-883f-0016d3cca427", Counter: 3, At: now, NextBy: now.Add(time.Hour),
		FactsDigest: d, Facts: facts,
		Channels: []Channel{{
			Channel: "desktop/stable", Dir: "/opt/desktop", Seq: 9, Phase: endpoint.Reverted, Detail: "probe failed",
			Conditions:   []endpoint.Condition{{Type: endpoint.Compliant, Status: endpoint.False, Reason: "Reverted", Changed: now, ObservedSeq: 9}},
			Denied:       []endpoint.Denial{{Seq: 9, At: now, Reason: "probe failed", Manifest: namespace.Sum([]byte("m")), Version: namespace.Version{Name: "desktop", N: 2}}},
			OfflineReady: &yes, OldUsers: []OldUser{{PID: 42, Name: "firefox"}}, OldUsersCount: &n,
			Active: endpoint.Generation{Seq: 8}, LastGood: endpoint.Generation{Seq: 8},
		}},
	}
}

func TestRoundTrip(t *testing.T) {
	b, err := sample(t).Encode()
	if err != nil {
		t.Fatal(err)
	}
	r, err := Decode(b, "test")
	if err != nil {
		t.Fatal(err)
	}
	if c, err := r.Encode(); err != nil || !bytes.Equal(b, c) {
		t.Fatalf("not the same again: %v\n%s%s", err, b, c)
	}
}

func TestBounds(t *testing.T) {
	long := strings.Repeat("x", TextBytesMax+1)
	for _, c := range []struct {
		path   string
		change func(*Report)
		kind   namespace.Kind
	}{
		{"$.endpoint", func(r *Report) { r.Endpoint = "" }, namespace.Invalid},
		{"$.boot", func(r *Report) { r.Boot = "../../etc" }, namespace.Invalid},
		{"$.counter", func(r *Report) { r.Counter = 0 }, namespace.Invalid},
		{"$.at", func(r *Report) { r.At = time.Time{} }, namespace.Invalid},
		{"$.nextBy", func(r *Report) { r.NextBy = r.At.Add(-1) }, namespace.Invalid},
		{"$.nextBy", func(r *Report) { r.NextBy = r.At.Add(PromiseMax + 1) }, namespace.Invalid},
		{"$.factsDigest", func(r *Report) { r.Facts["site"] = "rome" }, namespace.Invalid},
		{"$.channels", func(r *Report) { r.Channels = make([]Channel, ChannelsMax+1) }, namespace.Limit},
		{"$.channels[1]", func(r *Report) { r.Channels = append(r.Channels, r.Channels[0]) }, namespace.Invalid},
		{"$.channels[0].channel", func(r *Report) { r.Channels[0].Channel = "a//../b" }, namespace.Invalid},
		{"$.channels[0].phase", func(r *Report) { r.Channels[0].Phase = endpoint.Lost }, namespace.Invalid},
		{"$.channels[0].denied", func(r *Report) { r.Channels[0].Denied = make([]endpoint.Denial, DeniedMax+1) }, namespace.Limit},
		{"$.channels[0].oldUsers", func(r *Report) { r.Channels[0].OldUsers = make([]OldUser, OldUsersMax+1) }, namespace.Limit},
		{"$.channels[0]", func(r *Report) { r.Channels[0].Detail = long }, namespace.Limit},
		{"$.channels[0]", func(r *Report) { r.Channels[0].Detail = "\xff" }, namespace.Invalid},
		{"$.channels[0]", func(r *Report) { n := -1; r.Channels[0].Drift = &n }, namespace.Invalid},
	} {
		r := sample(t)
		c.change(r)
		err := r.Check()
		if namespace.KindOf(err) != c.kind || err == nil || !strings.Contains(err.Error(), c.path+":") {
			t.Errorf("%s: %v", c.path, err)
		}
	}
}

func TestSupersedes(t *testing.T) {
	a, b := sample(t), sample(t)
	if a.Supersedes(b) {
		t.Error("a report supersedes itself")
	}
	b.Counter, b.At = a.Counter+1, a.At.Add(-time.Hour) // the clock was set back
	if !b.Supersedes(a) || a.Supersedes(b) {
		t.Error("within a boot the counter decides")
	}
	b.Boot, b.Counter, b.At = "00000000-2fa1-41d2-883f-0016d3cca427", 1, a.At.Add(time.Minute)
	if !b.Supersedes(a) || a.Supersedes(b) {
		t.Error("between boots the time decides")
	}
}

// FuzzDecode holds that what is accepted encodes to the same bytes.
func FuzzDecode(f *testing.F) {
	b, err := sample(f).Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte("{}\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := Decode(b, "fuzz")
		if err != nil {
			return
		}
		if c, err := r.Encode(); err != nil || !bytes.Equal(b, c) {
			t.Fatalf("%v: %q became %q", err, b, c)
		}
	})
}
