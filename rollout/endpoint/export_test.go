package endpoint

import (
	"time"

	"coppice.dev/coppice/rollout/offer"
	"coppice.dev/coppice/rollout/policy"
)

// Rows is how long the table is.
var Rows = len(table)

// Row describes a row.
func Row(i int) string {
	return table[i].in.String() + ": " + table[i].condition() + " -> " + table[i].toText()
}

// Works reports whether a row does anything.
func Works(i int) bool { return table[i].do != Nothing || table[i].then != keep }

// PlanWithout is Plan with a row taken out of the table.
func PlanWithout(i int) func(*State, *offer.Offer, *Facts, *policy.Policy, time.Time) Decision {
	without := byPhase(append(append([]row{}, table[:i]...), table[i+1:]...))
	pl := &planner{rows: &without}
	return pl.plan
}
