package cache

import (
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

// counters count since the cache was opened.
type counters struct {
	hits, misses, frames, requests, fetched atomic.Uint64
	corrupt, evictions, unkept, carried     atomic.Uint64
}

// Stats says what a cache holds and did since it was opened.
type Stats struct {
	UsedBytes   int64  `json:"used_bytes"`
	QuotaBytes  int64  `json:"quota_bytes"`
	Segments    int    `json:"segments"`
	Hits        uint64 `json:"hits"`          // chunk reads answered from here
	Misses      uint64 `json:"misses"`        // chunk reads that waited for an origin
	Frames      uint64 `json:"frames"`        // frames demanded for them
	Requests    uint64 `json:"requests"`      // sent to origins
	Fetched     uint64 `json:"fetched_bytes"` // received from them
	Corrupt     uint64 `json:"corrupt"`       // objects refused, from the disk or the network
	Evictions   uint64 `json:"evictions"`     // segments dropped to keep the bound
	Carried     uint64 `json:"carried_bytes"` // copied out of dropped segments, since they are held
	Unkept      uint64 `json:"unkept"`        // objects that could not be written
	ReadThrough bool   `json:"read_through"`  // the last write failed
	// DamagedHolds are the files of pins that could not be read when the cache was opened.
	DamagedHolds []string `json:"damaged_holds,omitempty"`
}

// Stats returns the cache's statistics.
func (c *Cache) Stats() Stats {
	return Stats{
		UsedBytes: c.onDisk(), QuotaBytes: c.quota.Load(), Segments: len(c.segments.all()),
		Hits: c.count.hits.Load(), Misses: c.count.misses.Load(), Frames: c.count.frames.Load(), Requests: c.count.requests.Load(), Fetched: c.count.fetched.Load(),
		Corrupt: c.count.corrupt.Load(), Evictions: c.count.evictions.Load(), Carried: c.count.carried.Load(), Unkept: c.count.unkept.Load(), ReadThrough: c.through.Load(),
		DamagedHolds: c.DamagedHolds(),
	}
}

// Collector returns the statistics as metrics.
func (c *Cache) Collector() prometheus.Collector { return collector{c} }

type collector struct{ c *Cache }

func desc(name, help string) *prometheus.Desc {
	return prometheus.NewDesc("coppice_cache_"+name, help, nil, nil)
}

var (
	descUsed      = desc("used_bytes", "Bytes on disk.")
	descQuota     = desc("quota_bytes", "Bound of the bytes on disk.")
	descHits      = desc("hits_total", "Chunk reads answered from the cache.")
	descMisses    = desc("misses_total", "Chunk reads that waited for an origin.")
	descRequests  = desc("requests_total", "Requests sent to origins.")
	descFetched   = desc("fetched_bytes_total", "Bytes received from origins.")
	descCorrupt   = desc("corrupt_total", "Objects refused, from the disk or the network.")
	descEvictions = desc("evictions_total", "Segments dropped to keep the bound.")
	descUnkept    = desc("unkept_total", "Objects that could not be written.")
)

// Describe implements prometheus.Collector.
func (k collector) Describe(ch chan<- *prometheus.Desc) { prometheus.DescribeByCollect(k, ch) }

// Collect implements prometheus.Collector.
func (k collector) Collect(ch chan<- prometheus.Metric) {
	s := k.c.Stats()
	gauge := func(d *prometheus.Desc, v int64) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(v))
	}
	counter := func(d *prometheus.Desc, v uint64) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v))
	}
	gauge(descUsed, s.UsedBytes)
	gauge(descQuota, s.QuotaBytes)
	counter(descHits, s.Hits)
	counter(descMisses, s.Misses)
	counter(descRequests, s.Requests)
	counter(descFetched, s.Fetched)
	counter(descCorrupt, s.Corrupt)
	counter(descEvictions, s.Evictions)
	counter(descUnkept, s.Unkept)
}
