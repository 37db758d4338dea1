package endpoint_test

import (
	"os"
	"strings"
	"testing"

	"coppice.dev/coppice/internal/world"
	"coppice.dev/coppice/rollout/endpoint"
)

// harmless are rows without which the simulated day goes on: what makes up for each is said.
var harmless = map[string]string{}

// TestEveryRowIsNeeded takes each row of the table away, and looks whether the world notices.
func TestEveryRowIsNeeded(t *testing.T) {
	most := uint64(60)
	if os.Getenv("COPPICE_TEST_LONG") != "" {
		most = 2000
	}
	for i := range endpoint.Rows {
		noticed := map[string]int{}
		for seed := uint64(1); seed < most && len(noticed) == 0; seed += 4 {
			r, err := world.Run(world.Config{Seed: seed, Seeds: 4, Endpoints: 40, Plan: endpoint.PlanWithout(i)})
			if err != nil {
				t.Fatal(err)
			}
			noticed = r.Broken
		}
		row := endpoint.Row(i)
		why, known := harmless[row]
		if len(noticed) == 0 && !known {
			t.Errorf("row %d can be taken away, and nothing happens: %s", i, row)
		}
		if len(noticed) > 0 && known {
			t.Errorf("row %d (%s) is needed after all (%v); it was called harmless since %s", i, row, noticed, why)
		}
		if strings.Contains(why, "\n") {
			t.Errorf("row %d: one line", i)
		}
	}
}
