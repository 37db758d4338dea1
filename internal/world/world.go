// Package world simulates a day of many endpoints in virtual time: the real decisions of
// rollout/endpoint, on machines that sleep, crash between any two steps, lose and reorder what is
// sent to them, run on wrong clocks through changes of summer time, are put back to snapshots, and
// are given versions that do not work.
//
// The checkers (check.go) know nothing of how decisions are made: they see what a machine mounts and
// keeps, and hold it against what the world knows. Everything follows from the seed: a run that
// fails prints it, with the machine, and the same seed fails again in the same way.
//
// Machines share a world (what is published when, which versions are bad, the day) and nothing
// else, so each lives its day alone, with its own source of chance; that makes a day cost
// microseconds, and one machine of a failing world can be replayed by itself.
package world

import (
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"coppice.dev/coppice/rollout/endpoint"
	"coppice.dev/coppice/rollout/offer"
	"coppice.dev/coppice/rollout/policy"
)

// PlanFunc decides; [endpoint.Plan], or a broken variant of it that a checker must catch.
type PlanFunc func(s *endpoint.State, o *offer.Offer, f *endpoint.Facts, p *policy.Policy, now time.Time) endpoint.Decision

// ExplainFunc gives reasons; [endpoint.Explain], or one that lies.
type ExplainFunc func(s *endpoint.State, o *offer.Offer, f *endpoint.Facts, p *policy.Policy, now time.Time) endpoint.Explanation

// Config says what to simulate.
type Config struct {
	Seed      uint64
	Seeds     int // worlds, with the seeds Seed, Seed+1, …; 0 is 1
	Endpoints int // machines in each
	Only      int // the one machine to run, counted from 1; 0: all
	Plan      PlanFunc
	Explain   ExplainFunc
	Trace     io.Writer // what each machine does, line by line; nil: nothing
	// Forgetful machines do not keep what they should: a broken shell, for the checkers' sake.
	Forgetful bool
}

// Violation is a sentence that did not hold.
type Violation struct {
	Check   string // which checker
	Seed    uint64
	Machine int // counted from 1
	At      time.Duration
	What    string
}

// String says what broke and how to see it again.
func (v Violation) String() string {
	return fmt.Sprintf("%s: machine %d at %s: %s\n\treplay: go test ./internal/world -run TestDay -v -seed %d -machine %d",
		v.Check, v.Machine, v.At, v.What, v.Seed, v.Machine)
}

// Result sums up a run.
type Result struct {
	Days       int // of one endpoint each
	Decisions  int
	Swaps      int
	Reverts    int
	Crashes    int
	Converged  int            // machines that ended with what was wanted
	Waiting    map[string]int // machines that did not, by the reason they gave, which was held to be true
	Apart      int            // machines that were asleep or offline at the end
	Violations []Violation    // the first few
	Broken     map[string]int // violations by checker
}

// violationsMax bounds what a run remembers of its failures; the first tells the most.
const violationsMax = 200

// Run simulates. It uses as many goroutines as there are processors.
func Run(c Config) (*Result, error) {
	if c.Plan == nil {
		c.Plan = endpoint.Plan
	}
	if c.Explain == nil {
		c.Explain = endpoint.Explain
	}
	c.Seeds = max(c.Seeds, 1)
	var (
		next  atomic.Int64
		wg    sync.WaitGroup
		mu    sync.Mutex
		first error
	)
	total := newResult()
	for range min(runtime.GOMAXPROCS(0), c.Seeds) {
		wg.Go(func() {
			part := newResult()
			m := new(machine)
			for {
				i := int(next.Add(1)) - 1
				if i >= c.Seeds {
					break
				}
				if err := day(&c, c.Seed+uint64(i), m, part); err != nil {
					mu.Lock()
					first = err
					mu.Unlock()
					break
				}
			}
			mu.Lock()
			total.add(part)
			mu.Unlock()
		})
	}
	wg.Wait()
	return total, first
}

func newResult() *Result {
	return &Result{Waiting: map[string]int{}, Broken: map[string]int{}}
}

func (r *Result) add(p *Result) {
	r.Days += p.Days
	r.Decisions += p.Decisions
	r.Swaps += p.Swaps
	r.Reverts += p.Reverts
	r.Crashes += p.Crashes
	r.Converged += p.Converged
	r.Apart += p.Apart
	for k, n := range p.Waiting {
		r.Waiting[k] += n
	}
	for k, n := range p.Broken {
		r.Broken[k] += n
	}
	r.Violations = append(r.Violations, p.Violations...)
	r.Violations = r.Violations[:min(len(r.Violations), violationsMax)]
}

// day runs one world.
func day(c *Config, seed uint64, m *machine, r *Result) error {
	s, err := newScript(seed)
	if err != nil {
		return fmt.Errorf("seed %d: %w", seed, err)
	}
	for i := range c.Endpoints {
		if c.Only != 0 && c.Only != i+1 {
			continue
		}
		m.reset(c, s, i, r)
		m.live()
		r.Days++
	}
	return nil
}

// dice is a source of chance.
type dice struct {
	pcg rand.PCG
}

func (d *dice) seed(a, b uint64) { d.pcg.Seed(a, b) }

// in returns a number in [0, n); n is small, so the bias of a multiplication does not matter.
func (d *dice) in(n int) int { return int((d.pcg.Uint64() >> 32) * uint64(n) >> 32) }

// one is true once in n times.
func (d *dice) one(n int) bool { return d.in(n) == 0 }

// between returns a duration in [lo, hi).
func (d *dice) between(lo, hi time.Duration) time.Duration {
	return lo + time.Duration(float64(d.pcg.Uint64()>>11)/(1<<53)*float64(hi-lo))
}
