package world

import (
	"encoding/json"
	"slices"
	"testing"
	"time"

	"coppice.dev/coppice/rollout/endpoint"
	"coppice.dev/coppice/rollout/offer"
	"coppice.dev/coppice/rollout/policy"
)

// with returns a Plan that is told something else than is so.
func with(spoil func(s *endpoint.State, o *offer.Offer, f *endpoint.Facts)) PlanFunc {
	return func(s *endpoint.State, o *offer.Offer, f *endpoint.Facts, p *policy.Policy, now time.Time) endpoint.Decision {
		s2, f2 := *s, *f
		var o2 *offer.Offer
		if o != nil {
			c := *o
			o2 = &c
		}
		spoil(&s2, o2, &f2)
		return endpoint.Plan(&s2, o2, &f2, p, now)
	}
}

// after returns a Plan whose decision is tampered with.
func after(spoil func(s *endpoint.State, d *endpoint.Decision)) PlanFunc {
	return func(s *endpoint.State, o *offer.Offer, f *endpoint.Facts, p *policy.Policy, now time.Time) endpoint.Decision {
		d := endpoint.Plan(s, o, f, p, now)
		spoil(s, &d)
		return d
	}
}

// TestCheckersCatch: for each sentence, minds that break it, and the checker that must see it.
func TestCheckersCatch(t *testing.T) {
	var layer policy.Layer
	if err := json.Unmarshal([]byte(kindTexts[free]), &layer); err != nil {
		t.Fatal(err)
	}
	lax, err := policy.Compile([]policy.Layer{layer})
	if err != nil {
		t.Fatal(err)
	}
	type (
		S = endpoint.State
		O = offer.Offer
		F = endpoint.Facts
	)
	for name, c := range map[string]struct {
		check  string
		config Config
	}{
		"takes half a version for a whole one": {"generation", Config{Plan: with(func(s *S, o *O, f *F) { f.Here = s.Trying.Manifest })}},
		"knows no floor":                       {"floor", Config{Plan: with(func(s *S, o *O, f *F) { s.Floor = 0 })}},
		"forgets what failed":                  {"denied", Config{Plan: with(func(s *S, o *O, f *F) { s.Denied = nil })}},
		"does not see a halt": {"halt", Config{Plan: with(func(s *S, o *O, f *F) {
			if o != nil {
				o.Halt = false
			}
		})}},
		"cannot wait for its time": {"halt", Config{Plan: with(func(s *S, o *O, f *F) {
			if o != nil {
				o.NotBefore = time.Time{}
			}
		})}},
		"takes what has expired": {"halt", Config{Plan: with(func(s *S, o *O, f *F) {
			if o != nil {
				o.Expires = time.Time{}
			}
		})}},
		"obeys an older record": {"seq", Config{Plan: with(func(s *S, o *O, f *F) {
			if o != nil && o.Seq < s.Seq {
				s.Seq = o.Seq - 1
			}
		})}},
		"trusts a snapshot's memory": {"confirmed", Config{Plan: with(func(s *S, o *O, f *F) { s.Unconfirmed, s.Machine = false, f.Machine })}},
		"asks no gate": {"gate", Config{Plan: func(s *endpoint.State, o *offer.Offer, f *endpoint.Facts, _ *policy.Policy, now time.Time) endpoint.Decision {
			return endpoint.Plan(s, o, f, lax, now)
		}}},
		"thinks it is always night in UTC": {"gate", Config{Plan: with(func(s *S, o *O, f *F) { f.Zone = time.UTC })}},
		"believes without a proof": {"proof", Config{Plan: with(func(s *S, o *O, f *F) {
			f.Probe = endpoint.Verdict{Of: s.Active.Manifest, Attempt: s.Attempt, Passed: true}
		})}},
		"takes an old verdict for this one": {"proof", Config{Plan: with(func(s *S, o *O, f *F) {
			if f.Probe.Passed {
				f.Probe.Of, f.Probe.Attempt = s.Active.Manifest, s.Attempt
			}
		})}},
		"sleeps through its alarm": {"converges", Config{Plan: after(func(_ *S, d *endpoint.Decision) { d.Wake = time.Time{} })}},
		"does nothing when there is something new": {"converges", Config{Plan: with(func(s *S, o *O, f *F) {
			if o != nil && o.Seq > 2 {
				o.Seq = 2
			}
		})}},
		"takes what is for others": {"wanted", Config{Plan: with(func(s *S, o *O, f *F) {
			if o != nil {
				o.Stages = nil
			}
		})}},
		"does not count restarts":       {"loops", Config{Plan: with(func(s *S, o *O, f *F) { s.Boots = 0 })}},
		"does not see that work failed": {"patience", Config{Plan: with(func(s *S, o *O, f *F) { f.FetchFailed.Code = endpoint.NoCode })}},
		"keeps its slot": {"hoards", Config{Plan: after(func(_ *S, d *endpoint.Decision) {
			if d.Do.Verb == endpoint.Release {
				d.Do.Verb = endpoint.Nothing
			}
		})}},
		"goes round in circles": {"livelock", Config{Plan: after(func(_ *S, d *endpoint.Decision) { d.Again = true })}},
		"says anything": {"why", Config{Explain: func(s *endpoint.State, _ *offer.Offer, _ *endpoint.Facts, _ *policy.Policy, _ time.Time) endpoint.Explanation {
			return endpoint.Explanation{Holds: []policy.Blocking{{Gate: "denied", Why: "because"}}}
		}}},
		"blames the gates": {"why", Config{Explain: func(s *endpoint.State, _ *offer.Offer, _ *endpoint.Facts, _ *policy.Policy, _ time.Time) endpoint.Explanation {
			return endpoint.Explanation{Gates: policy.Explanation{Blocking: []policy.Blocking{{Gate: "window", Why: "because"}}}}
		}}},
		"acts before it keeps": {"halt", Config{Forgetful: true}},
	} {
		c.config.Endpoints, c.config.Seeds = 50, 4
		found := false
		for c.config.Seed = 1; c.config.Seed < 400 && !found; c.config.Seed += 4 {
			r, err := Run(c.config)
			if err != nil {
				t.Fatal(err)
			}
			found = r.Broken[c.check] > 0
		}
		if !found {
			t.Errorf("a machine that %s is not caught by the checker %q", name, c.check)
		}
		delete(unseen, c.check)
	}
	for check := range unseen {
		t.Errorf("nothing shows that the checker %q works", check)
	}
}

// unseen are the checkers that no broken mind has set off yet.
var unseen = map[string]bool{"generation": true, "floor": true, "denied": true, "halt": true, "confirmed": true,
	"gate": true, "seq": true, "proof": true, "converges": true, "why": true, "livelock": true, "wanted": true, "loops": true, "patience": true, "hoards": true}

// TestSeedsRepeat: the same seed, the same day, down to the diary; and one machine alone lives the
// day that it lives among others.
func TestSeedsRepeat(t *testing.T) {
	var diaries [3]lines
	for i, c := range []Config{{Endpoints: 20}, {Endpoints: 20}, {Endpoints: 20, Only: 7}} {
		c.Seed, c.Trace = 5, &diaries[i]
		if _, err := Run(c); err != nil {
			t.Fatal(err)
		}
	}
	if !slices.Equal(diaries[0], diaries[1]) || len(diaries[0]) < 100 {
		t.Error("the same seed gives another day")
	}
	alone := slices.DeleteFunc(slices.Clone(diaries[0]), func(s string) bool { return len(s) < 4 || s[:4] != "5/7 " })
	if !slices.Equal(alone, diaries[2]) || len(alone) < 5 {
		t.Errorf("alone, the machine lives another day: %d lines, and %d", len(diaries[2]), len(alone))
	}
}

// lines keeps what is written, by writes of less than a line each.
type lines []string

func (l *lines) Write(b []byte) (int, error) {
	if n := len(*l); n > 0 && (*l)[n-1][len((*l)[n-1])-1] != '\n' {
		(*l)[n-1] += string(b)
	} else {
		*l = append(*l, string(b))
	}
	return len(b), nil
}
