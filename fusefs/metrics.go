package fusefs

import (
	"sync/atomic"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/prometheus/client_golang/prometheus"
)

// metrics is a rawFS that counts and takes the time. What the kernel answers from its caches never
// comes here, so this is of what it did not have.
type metrics struct {
	*rawFS
	errs    [opCount]atomic.Uint64
	bytes   atomic.Uint64
	seconds [opCount]prometheus.Histogram
}

const (
	opLookup = iota
	opGetAttr
	opReadDir
	opRead
	opReadlink
	opXattr
	opCount
)

var opNames = [opCount]string{"lookup", "getattr", "readdir", "read", "readlink", "xattr"}

func newMetrics(r *rawFS) *metrics {
	m := &metrics{rawFS: r}
	for op, name := range opNames {
		m.seconds[op] = prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "coppice_fuse_request_seconds", Help: "How long requests of the kernel took.",
			ConstLabels: prometheus.Labels{"op": name},
			Buckets:     prometheus.ExponentialBuckets(10e-6, 4, 12), // 10 µs, in memory, to 42 s, hardly a network
		})
	}
	return m
}

func (m *metrics) count(op int, start time.Time, st fuse.Status) fuse.Status {
	m.seconds[op].Observe(time.Since(start).Seconds())
	if st != fuse.OK && st != fuse.ENODATA && st != fuse.ENOENT {
		m.errs[op].Add(1)
	}
	return st
}

// Lookup implements fuse.RawFileSystem.
func (m *metrics) Lookup(c <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	start := time.Now()
	return m.count(opLookup, start, m.rawFS.Lookup(c, h, name, out))
}

// GetAttr implements fuse.RawFileSystem.
func (m *metrics) GetAttr(c <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	start := time.Now()
	return m.count(opGetAttr, start, m.rawFS.GetAttr(c, in, out))
}

// ReadDir implements fuse.RawFileSystem.
func (m *metrics) ReadDir(c <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	start := time.Now()
	return m.count(opReadDir, start, m.rawFS.ReadDir(c, in, out))
}

// ReadDirPlus implements fuse.RawFileSystem.
func (m *metrics) ReadDirPlus(c <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	start := time.Now()
	return m.count(opReadDir, start, m.rawFS.ReadDirPlus(c, in, out))
}

// Read implements fuse.RawFileSystem.
func (m *metrics) Read(c <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	start := time.Now()
	res, st := m.rawFS.Read(c, in, buf)
	if res != nil {
		m.bytes.Add(uint64(res.Size()))
	}
	return res, m.count(opRead, start, st)
}

// Readlink implements fuse.RawFileSystem.
func (m *metrics) Readlink(c <-chan struct{}, h *fuse.InHeader) ([]byte, fuse.Status) {
	start := time.Now()
	b, st := m.rawFS.Readlink(c, h)
	return b, m.count(opReadlink, start, st)
}

// GetXAttr implements fuse.RawFileSystem.
func (m *metrics) GetXAttr(c <-chan struct{}, h *fuse.InHeader, name string, dest []byte) (uint32, fuse.Status) {
	start := time.Now()
	n, st := m.rawFS.GetXAttr(c, h, name, dest)
	return n, m.count(opXattr, start, st)
}

var (
	descErrors = prometheus.NewDesc("coppice_fuse_errors_total", "Requests that failed.", []string{"op"}, nil)
	descBytes  = prometheus.NewDesc("coppice_fuse_read_bytes_total", "Bytes given to the kernel.", nil, nil)
	descNodes  = prometheus.NewDesc("coppice_fuse_nodes", "Nodes that the kernel knows.", nil, nil)
)

// Describe implements prometheus.Collector.
func (m *metrics) Describe(ch chan<- *prometheus.Desc) {
	for _, h := range m.seconds {
		h.Describe(ch)
	}
	ch <- descErrors
	ch <- descBytes
	ch <- descNodes
}

// Collect implements prometheus.Collector.
func (m *metrics) Collect(ch chan<- prometheus.Metric) {
	for op, name := range opNames {
		m.seconds[op].Collect(ch)
		ch <- prometheus.MustNewConstMetric(descErrors, prometheus.CounterValue, float64(m.errs[op].Load()), name)
	}
	ch <- prometheus.MustNewConstMetric(descBytes, prometheus.CounterValue, float64(m.bytes.Load()))
	ch <- prometheus.MustNewConstMetric(descNodes, prometheus.GaugeValue, float64(m.table.len()))
}
