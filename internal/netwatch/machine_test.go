package netwatch_test

import (
	"testing"
	"time"

	"coppice.dev/coppice/internal/netwatch"
)

// clocked drives a Machine in virtual time: probes succeed while alive, and take what they take.
type clocked struct {
	netwatch.Machine
	now    time.Time
	alive  bool
	took   time.Duration
	probes []time.Duration // since start
	start  time.Time
}

func newClocked() *clocked {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	return &clocked{now: now, start: now, alive: true, took: time.Millisecond}
}

// run lets d pass, doing what is due.
func (c *clocked) run(d time.Duration) {
	for end := c.now.Add(d); ; {
		probe, wait := c.Due(c.now)
		if probe {
			c.probes = append(c.probes, c.now.Sub(c.start))
			c.now = c.now.Add(c.took)
			c.Probed(c.alive, c.took, c.now)
			continue
		}
		if wait <= 0 {
			panic("nothing to do, and no time to wait for it")
		}
		if c.now.Add(wait).After(end) {
			c.now = end
			return
		}
		c.now = c.now.Add(wait)
	}
}

func (c *clocked) want(t *testing.T, what string, s netwatch.State) {
	t.Helper()
	if got, _ := c.State(); got != s {
		t.Errorf("%s at %v: %v, want %v", what, c.now.Sub(c.start), got, s)
	}
}

func TestMachineGoesOnlineByProbeOnly(t *testing.T) {
	c := newClocked()
	c.alive = false
	c.Network(true, c.now)
	c.want(t, "a network alone", netwatch.Unreachable)
	c.run(10 * time.Second)
	c.want(t, "nobody answers", netwatch.Unreachable)
	if n := len(c.probes); n < 4 || n > 10 || c.probes[0] != 0 {
		t.Errorf("probes at %v", c.probes)
	}
	c.alive = true
	c.run(35 * time.Second)
	c.want(t, "it answers", netwatch.Online)
	c.alive = false
	c.run(6 * time.Minute)
	c.want(t, "it died in silence", netwatch.Unreachable)
}

func TestMachineCable(t *testing.T) {
	c := newClocked()
	c.Network(true, c.now)
	c.run(time.Second)
	c.want(t, "plugged in", netwatch.Online)
	// Roaming: shorter than anybody should notice.
	c.Network(false, c.now)
	c.run(100 * time.Millisecond)
	c.want(t, "a blink", netwatch.Online)
	c.Network(true, c.now)
	c.run(time.Second)
	c.want(t, "after a blink", netwatch.Online)
	c.Network(false, c.now)
	c.run(250 * time.Millisecond)
	c.want(t, "pulled", netwatch.Disconnected)
	before := len(c.probes)
	c.run(time.Hour)
	if len(c.probes) != before {
		t.Errorf("%d probes without a network", len(c.probes)-before)
	}
	if c.Demand(c.now) {
		t.Error("a reader may ask for a probe without a network")
	}
	c.Network(true, c.now)
	c.want(t, "plugged in, not yet asked", netwatch.Unreachable)
	c.run(10 * time.Millisecond)
	c.want(t, "plugged in again", netwatch.Online)
	if _, since := c.State(); c.now.Sub(since) > 10*time.Millisecond {
		t.Errorf("online since %v, now is %v", since, c.now)
	}
}

func TestMachineStartsWithoutNetwork(t *testing.T) {
	c := newClocked()
	c.Network(false, c.now)
	c.want(t, "no network from the start", netwatch.Disconnected)
}

// A link that goes up and down all the time is probed less and less often.
func TestMachineFlapping(t *testing.T) {
	c := newClocked()
	c.Network(true, c.now)
	c.run(time.Second)
	c.probes = nil
	for range 60 {
		c.Network(false, c.now)
		c.run(300 * time.Millisecond)
		c.Network(true, c.now)
		c.run(700 * time.Millisecond)
	}
	if n := len(c.probes); n < 3 || n > 6 {
		t.Errorf("%d probes of a link that flapped 60 times: %v", n, c.probes)
	}
	c.run(16 * time.Second)
	c.want(t, "after it came to rest", netwatch.Online)
	c.run(2 * time.Minute)
	c.Network(false, c.now)
	c.run(time.Second)
	c.Network(true, c.now)
	c.run(10 * time.Millisecond)
	c.want(t, "later, once", netwatch.Online)
}

// A reader that asks is answered soon by a server that refuses, and never pays for most of its time
// when probes take long.
func TestMachineDemand(t *testing.T) {
	for _, took := range []time.Duration{time.Millisecond, 200 * time.Millisecond, 2 * time.Second} {
		c := newClocked()
		c.alive, c.took = false, took
		c.Network(true, c.now)
		c.run(time.Minute)
		var waited time.Duration
		start := c.now
		for c.now.Sub(start) < time.Minute {
			if c.Demand(c.now) {
				waited += took
				c.now = c.now.Add(took)
				c.Probed(false, took, c.now)
			}
			c.now = c.now.Add(10 * time.Millisecond)
		}
		if share := waited.Seconds() / 60; share > 0.35 {
			t.Errorf("probes of %v take %.0f %% of a reader's time", took, 100*share)
		}
		c.alive = true
		for !c.Demand(c.now) {
			c.now = c.now.Add(10 * time.Millisecond)
			if c.now.Sub(start) > 2*time.Minute {
				t.Fatal("a reader can never ask again")
			}
		}
	}
}

func TestMachineLostAndSuspect(t *testing.T) {
	c := newClocked()
	c.Network(true, c.now)
	c.run(time.Second)
	n := len(c.probes)
	c.Suspect(c.now)
	c.run(time.Millisecond)
	if len(c.probes) != n+1 {
		t.Errorf("a suspicion made %d probes", len(c.probes)-n)
	}
	c.want(t, "a wrong suspicion", netwatch.Online)
	c.alive = false
	c.Lost(c.now)
	c.want(t, "the last source failed", netwatch.Unreachable)
	c.alive = true
	c.run(time.Second)
	c.want(t, "and answers again", netwatch.Online)
	c.Changed(c.now) // a suspend
	n = len(c.probes)
	c.run(time.Millisecond)
	if len(c.probes) != n+1 {
		t.Errorf("a changed network made %d probes", len(c.probes)-n)
	}
}
