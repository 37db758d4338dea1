package endpoint

import (
	"flag"
	"os"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write docs/ROLLOUT-states.md")

const docsFile = "../../docs/ROLLOUT-states.md"

// TestPictureIsCurrent holds docs/ROLLOUT-states.md to the table; -update writes it.
func TestPictureIsCurrent(t *testing.T) {
	b, err := os.ReadFile(docsFile)
	if err != nil {
		t.Fatal(err)
	}
	const begin, end = "<!-- endpoint: go test ./rollout/endpoint -run Picture -update -->\n", "<!-- end of endpoint -->\n"
	before, rest, found := strings.Cut(string(b), begin)
	old, after, ended := strings.Cut(rest, end)
	if !found || !ended {
		t.Fatalf("%s has lost the marks %q and %q", docsFile, begin, end)
	}
	if old == Picture() {
		return
	}
	if !*update {
		t.Fatalf("%s is not what the table says; run this test with -update", docsFile)
	}
	if err := os.WriteFile(docsFile, []byte(before+begin+Picture()+end+after), 0o644); err != nil {
		t.Fatal(err)
	}
}

// each calls f for a phase with every set of those conditions that its rows look at.
func each(by *[Lost][]row, p Phase, f func(c cond, r *row)) {
	var named cond
	for _, r := range by[p] {
		named |= r.when | r.unless
	}
	for c := named; ; c = (c - 1) & named {
		f(c, match(by, p, c))
		if c == 0 {
			return
		}
	}
}

// TestEveryPhaseWithEverySetOfConditions: what must hold whatever happens.
func TestEveryPhaseWithEverySetOfConditions(t *testing.T) {
	used := map[row]bool{}
	total := 0
	for p := range Lost {
		each(&rows, p, func(c cond, r *row) {
			total++
			used[*r] = true
			if !r.in.has(p) {
				t.Fatalf("%s, %s: no row fits", p, c)
			}
			for what, wrong := range map[string]bool{
				"changes version though something forbids it": (r.to == Activating || p == Activating && r.do == Show) &&
					(c&(denied|sunk|frozen|early|moved|newer|restored) != 0 || c&here == 0 || c&open == 0),
				"shows again what is shown":               r.do == Show && p != Activating && r.then != revert && c&(shown|stuck) != 0,
				"puts off a newer offer":                  c&newer != 0 && c&(restored|skewed) == 0 && r.then != accept,
				"fetches what may not be":                 r.do == Fetch && (c&mayFetch == 0 || c&frozen != 0 || c&(moved|denied|sunk) != 0),
				"proves what is not":                      r.then == prove && (c&passed == 0 || c&refuted != 0),
				"reverts without need, or to nothing":     r.then == revert && (c&refuted == 0 || c&fallback == 0),
				"hoards a slot":                           r.do == Lease && (c&needsSlot == 0 || c&holds != 0),
				"begins a proof of what is not there":     r.then == begin && p == Activating && c&shown == 0,
				"is healthy without a proof":              r.to == Healthy && r.then != prove && (c&proven == 0 || c&wanted != 0),
				"calls itself lost":                       r.to == Lost,
				"turns to what is desired without noting": r.to == Offered && c&moved != 0 && r.then != try,
			} {
				if wrong {
					t.Errorf("%s, %s: goes to %s, %q, and %s", p, c, r.toText(), r.do, what)
				}
			}
		})
	}
	for i, r := range table {
		if !used[r] {
			t.Errorf("row %d (%s if %s) is never taken", i, r.in, r.condition())
		}
	}
	t.Logf("%d phases with conditions", total)
}

// TestNoPhaseIsADeadEnd: from everywhere Healthy can be reached, and every phase from Idle.
func TestNoPhaseIsADeadEnd(t *testing.T) {
	next := map[Phase]map[Phase]bool{}
	for p := range Lost {
		next[p] = map[Phase]bool{}
		each(&rows, p, func(_ cond, r *row) {
			if r.to != stay {
				next[p][r.to] = true
			}
		})
	}
	reach := func(from Phase) map[Phase]bool {
		seen := map[Phase]bool{from: true}
		for todo := []Phase{from}; len(todo) > 0; todo = todo[1:] {
			for p := range next[todo[0]] {
				if !seen[p] {
					seen[p] = true
					todo = append(todo, p)
				}
			}
		}
		return seen
	}
	for p := range Lost {
		if !reach(Idle)[p] {
			t.Errorf("%s cannot be reached", p)
		}
		if !reach(p)[Healthy] {
			t.Errorf("%s is a dead end", p)
		}
	}
}
