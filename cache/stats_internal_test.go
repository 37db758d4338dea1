package cache

import (
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

// Every metric can be gathered, has a help text, and says what Stats says.
func TestMetrics(t *testing.T) {
	f, dir := lowered(t)
	c := openTest(t, Options{Dir: t.TempDir(), Lower: []string{dir}})
	f.readAll(t, c.Reader(f.origin))
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(c.Collector())
	all, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, m := range all {
		if !strings.HasPrefix(m.GetName(), "coppice_cache_") || m.GetHelp() == "" {
			t.Errorf("%s: %q", m.GetName(), m.GetHelp())
		}
		got[m.GetName()] = m.Metric[0].GetCounter().GetValue() + m.Metric[0].GetGauge().GetValue()
	}
	s := c.Stats()
	for name, want := range map[string]float64{
		"hits_total": float64(s.Hits), "segments": float64(s.Segments), "index_bytes": float64(s.IndexBytes), "used_bytes": float64(s.UsedBytes),
		"lower_hits_total": float64(s.Lower[0].Hits), "lower_used": 1, "lower_damaged": 0, "index_made_anew_total": 0, "moved_bytes_total": 0,
	} {
		if v, ok := got["coppice_cache_"+name]; !ok || v != want {
			t.Errorf("%s is %v (%v), want %v", name, v, ok, want)
		}
	}
	if s.Lower[0].Hits == 0 {
		t.Errorf("%+v", s)
	}
}
