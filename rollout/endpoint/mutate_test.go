package endpoint_test

import (
	"os"
	"strings"
	"testing"

	"coppice.dev/coppice/internal/world"
	"coppice.dev/coppice/rollout/endpoint"
)

// harmless are rows without which the simulated day goes on: what makes up for each is said.
var harmless = map[string]string{
	"Offered: moved -> Superseded":                       "the next phase turns to what is desired as well",
	"Activating: moved -> Superseded":                    "the phases before have looked",
	"Prefetching, Staged, Gated: denied -> Offered":      "Offered has looked; a second lock",
	"Prefetching, Staged, Gated: below floor -> Offered": "Offered has looked, and no valid record sinks what it names; a second lock",
	"Activating: denied -> Offered":                      "Offered has looked; a second lock",
	"Activating: below floor -> Offered":                 "Offered has looked; a second lock",
	"Staged, Gated: not here -> Prefetching":             "Activating looks again",
	"Activating: not here -> Prefetching":                "the phases before have looked",
	"Verifying: moved, way back -> Superseded":           "the verdict comes anyway; TestRollbackDoesNotWaitForTheVerdict",
	"Failed: moved -> Superseded":                        "a newer record makes another attempt due at once",
}

// TestEveryRowIsNeeded takes each row of the table away, and looks whether the world notices.
func TestEveryRowIsNeeded(t *testing.T) {
	needed, idle := uint64(240), uint64(8) // seeds that a row gets to be missed
	if os.Getenv("COPPICE_TEST_LONG") != "" {
		needed, idle = 2000, 2000
	}
	for i := range endpoint.Rows {
		if strings.HasSuffix(endpoint.Row(i), "else -> ·") && !endpoint.Works(i) {
			continue // says what happens anyway
		}
		row := endpoint.Row(i)
		why, known := harmless[row]
		most := needed
		if known {
			most = idle
		}
		noticed := map[string]int{}
		for seed := uint64(1); seed < most && len(noticed) == 0; seed += 4 {
			r, err := world.Run(world.Config{Seed: seed, Seeds: 4, Endpoints: 40, Plan: endpoint.PlanWithout(i)})
			if err != nil {
				t.Fatal(err)
			}
			noticed = r.Broken
		}
		if len(noticed) == 0 && !known {
			t.Errorf("row %d can be taken away, and nothing happens: %s", i, row)
		}
		if len(noticed) > 0 && known {
			t.Errorf("row %d (%s) is needed after all (%v); it was called harmless since %s", i, row, noticed, why)
		}
	}
}
