package world

import (
	"flag"
	"os"
	"testing"
	"time"
)

var (
	seed    = flag.Uint64("seed", 0, "run this seed's world")
	one     = flag.Int("machine", 0, "with -seed: trace this machine, counted from 1")
	seeds   = flag.Int("seeds", 0, "how many seeds")
	members = flag.Int("endpoints", 0, "how many machines in each world")
)

// TestDay: a day of many machines, in many worlds; all sentences hold. With -seed, that world; with
// -machine, its diary.
func TestDay(t *testing.T) {
	c := Config{Seed: 1, Seeds: 40, Endpoints: 100}
	if os.Getenv("COPPICE_TEST_LONG") != "" {
		c = Config{Seed: uint64(time.Now().UnixNano()), Seeds: 200, Endpoints: 10_000}
	}
	if *seeds > 0 {
		c.Seeds = *seeds
	}
	if *members > 0 {
		c.Endpoints = *members
	}
	if *seed > 0 {
		c.Seed, c.Seeds, c.Endpoints, c.Only = *seed, 1, max(*members, 10_000), *one
		if *one > 0 {
			c.Trace = os.Stdout
		}
	}
	start := time.Now()
	r, err := Run(c)
	if err != nil {
		t.Fatal(err)
	}
	spent := time.Since(start)
	t.Logf("seeds %d…: %d endpoint-days in %s, %.0f a second; %.1f decisions, %.2f swaps, %.2f crashes a day",
		c.Seed, r.Days, spent.Truncate(time.Millisecond), float64(r.Days)/spent.Seconds(), per(r.Decisions, r), per(r.Swaps, r), per(r.Crashes, r))
	t.Logf("converged %d, apart %d, waiting %v, reverts %d", r.Converged, r.Apart, r.Waiting, r.Reverts)
	for _, v := range r.Violations {
		t.Error(v)
	}
	if len(r.Broken) > 0 {
		t.Errorf("violations: %v", r.Broken)
	}
}

func per(n int, r *Result) float64 { return float64(n) / float64(r.Days) }
