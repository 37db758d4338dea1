package endpoint

import (
	"fmt"
	"strings"
)

// Picture returns the state machine as Markdown: a Mermaid diagram, the table it is drawn from, and
// what the conditions mean. docs/ROLLOUT-states.md is this text; a test holds them together.
func Picture() string {
	var b strings.Builder
	b.WriteString("## The endpoint\n\n```mermaid\nstateDiagram-v2\n    [*] --> Idle\n")
	type edge struct{ from, to Phase }
	labels, order := map[edge][]string{}, []edge{}
	for _, r := range table {
		if r.to == stay {
			continue
		}
		for p := range Lost {
			if !r.in.has(p) {
				continue
			}
			e := edge{p, r.to}
			if labels[e] == nil {
				order = append(order, e)
			}
			labels[e] = append(labels[e], r.condition())
		}
	}
	for _, e := range order {
		fmt.Fprintf(&b, "    %s --> %s: %s\n", e.from, e.to, strings.Join(labels[e], " / "))
	}
	b.WriteString("```\n\nA watcher calls an endpoint `Lost` when it has been silent for longer than it promised; it is what it reports\nas soon as it reports again. No endpoint is ever `Lost` to itself.\n\n")
	b.WriteString("The first row that fits is taken. `·` stays in the phase.\n\n| in | if | unless | to | state | work |\n|---|---|---|---|---|---|\n")
	for _, r := range table {
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s |\n", r.in, r.when, r.unlessText(), r.toText(), effectNames[r.then], r.do)
	}
	b.WriteString("\n| condition | holds when |\n|---|---|\n")
	for i, name := range condNames {
		fmt.Fprintf(&b, "| %s | %s |\n", name, condMeanings[i])
	}
	return b.String()
}

func (r *row) condition() string {
	s := r.when.String()
	if r.unless != 0 {
		if s != "" {
			s += ", "
		}
		s += "not " + strings.ReplaceAll(r.unless.String(), ", ", ", not ")
	}
	if s == "" {
		s = "else"
	}
	return s
}

func (r *row) unlessText() string { return strings.ReplaceAll(r.unless.String(), ", ", " or ") }

func (r *row) toText() string {
	if r.to == stay {
		return "·"
	}
	return r.to.String()
}

// String lists the phases; all of them are "any", all but a few "any but …".
func (p phases) String() string {
	var names, missing []string
	for one := range Lost {
		if p.has(one) {
			names = append(names, one.String())
		} else {
			missing = append(missing, one.String())
		}
	}
	switch {
	case len(missing) == 0:
		return "any"
	case len(missing) < 4:
		return "any but " + strings.Join(missing, ", ")
	}
	return strings.Join(names, ", ")
}

var condMeanings = [condCount]string{
	"an offer with a higher seq than any accepted is at hand, and verified",
	"the newest offer wants another version here than the one this phase is about",
	"the version wanted is not the active one",
	"the active version passed its proof here",
	"the version wanted is the one that was proven last",
	"this version failed its proof here before, and nobody has allowed it again",
	"its content is below the highest floor seen, and no exception is signed",
	"halt, expiry, no record at hand, no id, or a restored machine that has not reached the origin since",
	"before the offer's `notBefore`",
	"all of its content is in the cache",
	"the policy lets content come over the present link",
	"this attempt's work failed",
	"the wait before another attempt is over",
	"the gates are open, or it is the way back from a version that is not proven",
	"all gates but the slot's are open",
	"a slot is held that cannot be used now",
	"what should be mounted is mounted",
	"the machine was restarted since the proof began",
	"all probes hold",
	"a probe failed, no verdict came in time, or the machine restarted too often",
	"an earlier proven version is there, not below the floor and not denied",
	"the clock shows less than when the phase began",
	"mounting it failed less than half a minute ago",
	"the machine's generation id changed: it was put back to a snapshot",
	"the origin itself has answered since",
}
