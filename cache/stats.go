package cache

import (
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

// counters count since the cache was opened.
type counters struct {
	hits, misses, frames, requests, fetched atomic.Uint64
	corrupt, evictions, unkept, failed      atomic.Uint64
	made, moved                             atomic.Uint64
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
	Unkept      uint64 `json:"unkept"`        // objects that could not be written
	Failed      uint64 `json:"failed"`        // reads of what was not here and not to be had
	ReadThrough bool   `json:"read_through"`  // the last write failed

	IndexBytes  int64        `json:"index_bytes"`
	ObjectBytes int64        `json:"object_bytes"`    // of catalogs, manifests and locators
	IndexMade   uint64       `json:"index_made_anew"` // since it was damaged
	Moved       uint64       `json:"moved_bytes"`     // written anew, out of segments that were dropped
	Lower       []LowerStats `json:"lower,omitempty"` // lower caches
	// DamagedHolds are the files of pins that could not be read when the cache was opened.
	DamagedHolds []string `json:"damaged_holds,omitempty"`
}

// Stats returns the cache's statistics.
func (c *Cache) Stats() Stats {
	s := Stats{
		UsedBytes: c.onDisk(), QuotaBytes: c.quota.Load(), Segments: len(c.segments.all()),
		Hits: c.count.hits.Load(), Misses: c.count.misses.Load(), Frames: c.count.frames.Load(), Requests: c.count.requests.Load(), Fetched: c.count.fetched.Load(),
		Corrupt: c.count.corrupt.Load(), Evictions: c.count.evictions.Load(), Unkept: c.count.unkept.Load(), Failed: c.count.failed.Load(), ReadThrough: c.through.Load(),
		IndexBytes: c.index.size.Load(), ObjectBytes: c.objectBytes.Load(), IndexMade: c.count.made.Load(), Moved: c.count.moved.Load(),
		DamagedHolds: c.DamagedHolds(),
	}
	for _, l := range c.segments.lowers {
		s.Lower = append(s.Lower, l.stats())
	}
	return s
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
	descFailed    = desc("failed_total", "Reads of what was not in the cache and not to be had.")
	descUnkept    = desc("unkept_total", "Objects that could not be written.")
	descSegments  = desc("segments", "Segment files.")
	descIndex     = desc("index_bytes", "Bytes of the index.")
	descObjects   = desc("object_bytes", "Bytes of catalogs, manifests and locators.")
	descThrough   = desc("read_through", "1 while what is fetched cannot be kept.")
	descFrames    = desc("frames_total", "Frames demanded.")
	descMade      = desc("index_made_anew_total", "Times the index was made anew since it was damaged.")
	descMoved     = desc("moved_bytes_total", "Bytes written anew, out of segments that were dropped.")

	descLowerHits    = prometheus.NewDesc("coppice_cache_lower_hits_total", "Chunk reads answered from a lower cache.", []string{"lower"}, nil)
	descLowerDamaged = prometheus.NewDesc("coppice_cache_lower_damaged", "Frames of a lower cache that were refused.", []string{"lower"}, nil)
	descLowerUsed    = prometheus.NewDesc("coppice_cache_lower_used", "0 while a lower cache cannot be used.", []string{"lower"}, nil)
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
	counter(descFailed, s.Failed)
	counter(descUnkept, s.Unkept)
	gauge(descSegments, int64(s.Segments))
	gauge(descIndex, s.IndexBytes)
	gauge(descObjects, s.ObjectBytes)
	gauge(descThrough, boolValue(s.ReadThrough))
	counter(descFrames, s.Frames)
	counter(descMade, s.IndexMade)
	counter(descMoved, s.Moved)
	for _, l := range s.Lower {
		ch <- prometheus.MustNewConstMetric(descLowerHits, prometheus.CounterValue, float64(l.Hits), l.Dir)
		ch <- prometheus.MustNewConstMetric(descLowerDamaged, prometheus.GaugeValue, float64(l.Damaged), l.Dir)
		ch <- prometheus.MustNewConstMetric(descLowerUsed, prometheus.GaugeValue, float64(boolValue(l.Error == "")), l.Dir)
	}
}

func boolValue(b bool) int64 {
	if b {
		return 1
	}
	return 0
}
