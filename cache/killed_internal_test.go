package cache

import (
	"bufio"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"coppice.dev/coppice/namespace"
)

// killedFixture is the tree that the process to be killed and the one that looks afterwards both make.
func killedFixture(t *testing.T) *fixture {
	return newFixture(t, 4, 60, 4000, layoutOf{4, 5, 0})
}

// The process is killed at random moments while it fills the cache, evicts, moves records, collects and
// closes; the next one goes on with what it left. Nothing is ever wrong, what the cache says it holds it
// has, and what was complete when the process was killed is read without a network.
func TestKilled(t *testing.T) {
	if dir := os.Getenv("COPPICE_TEST_KILLED"); dir != "" {
		killMe(t, dir)
		return
	}
	rounds := 10
	if long {
		rounds = 500
	}
	f := killedFixture(t)
	dir := t.TempDir()
	rng := rand.New(rand.NewPCG(3, uint64(time.Now().UnixNano())))
	seen := map[string]int{}
	for round := range rounds {
		cmd := exec.Command(os.Args[0], "-test.run=^TestKilled$")
		cmd.Env = append(os.Environ(), "COPPICE_TEST_KILLED="+dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		lines.Scan() // it begins
		timer := time.AfterFunc(time.Duration(rng.IntN(150_000))*time.Microsecond, func() { _ = cmd.Process.Kill() })
		last := lines.Text()
		for lines.Scan() {
			if text := lines.Text(); strings.HasPrefix(text, "now ") {
				last = text
			} else if strings.Contains(text, "FAIL") || strings.Contains(text, "panic") {
				t.Errorf("round %d: %s", round, text)
			}
		}
		_ = cmd.Wait() // killed
		timer.Stop()
		seen[last]++
		complete := 0
		if last == "now complete" {
			complete = len(f.refs)
		}
		what := fmt.Sprintf("round %d, killed after %q", round, last)
		c, err := Open(Options{Dir: dir, QuotaBytes: quotaMin})
		if err != nil {
			t.Fatalf("%s: it does not open: %v", what, err)
		}
		if good := f.offline(t, c, what); good < complete {
			t.Errorf("%s: %d of %d complete chunks can be read", what, good, complete)
		}
		if s := c.Stats(); s.IndexMade != 0 || s.Corrupt != 0 {
			t.Errorf("%s: %+v", what, s)
		}
		if rng.IntN(2) == 0 { // the next one finds what this one left, cleanly or not
			c.crash()
		} else if err := c.Close(); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		if t.Failed() {
			return
		}
	}
	t.Logf("killed: %v", seen)
	if rounds >= 100 && (seen["now complete"] == 0 || seen["now changing"] == 0 || seen["now filling"] == 0) {
		t.Errorf("moments are missing: %v", seen)
	}
}

// killMe does everything a cache does, again and again, until it is killed.
func killMe(t *testing.T, dir string) {
	f := killedFixture(t)
	say := func(what string) { fmt.Println("now " + what) }
	for {
		say("filling")
		c, err := Open(Options{Dir: dir, QuotaBytes: quotaMin})
		if err != nil {
			t.Fatalf("FAIL: %v", err)
		}
		c.segments.grain = 64 << 10
		r := c.Reader(f.origin)
		for range 50 {
			if err := f.read(t.Context(), r, f.refs[rand.IntN(len(f.refs))]); err != nil {
				t.Fatalf("FAIL: %v", err)
			}
		}
		if err := r.Hydrate(t.Context(), f.root, nil); err != nil {
			t.Fatalf("FAIL: %v", err)
		}
		say("complete")
		for range 3 {
			for _, s := range c.segments.all() {
				if err := c.rewrite(s, nil); err != nil {
					t.Fatalf("FAIL: %v", err)
				}
			}
			if _, err := c.Verify(t.Context(), true); err != nil {
				t.Fatalf("FAIL: %v", err)
			}
		}
		if rand.IntN(2) == 0 {
			say("changing")
			for range 3 {
				if old := c.segments.oldest(); old != nil {
					if err := c.evict(old); err != nil {
						t.Fatalf("FAIL: %v", err)
					}
				}
				if err := f.read(t.Context(), r, f.refs[rand.IntN(len(f.refs))]); err != nil {
					t.Fatalf("FAIL: %v", err)
				}
			}
			if _, err := c.GC(t.Context(), Keep{Chunk: func(d namespace.Digest) bool { return d[0]%2 == 0 }}, false); err != nil {
				t.Fatalf("FAIL: %v", err)
			}
		}
		if err := c.Close(); err != nil {
			t.Fatalf("FAIL: %v", err)
		}
	}
}
