package fusefs

import (
	"sync/atomic"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/prometheus/client_golang/prometheus"
)

// metrics is a rawFS that counts. What the kernel answers from its caches never comes here, so the
// counts are of what it did not have.
type metrics struct {
	*rawFS
	ops, errs [opCount]atomic.Uint64
	bytes     atomic.Uint64
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

func newMetrics(r *rawFS) *metrics { return &metrics{rawFS: r} }

func (m *metrics) count(op int, st fuse.Status) fuse.Status {
	m.ops[op].Add(1)
	if st != fuse.OK && st != fuse.ENODATA && st != fuse.ENOENT {
		m.errs[op].Add(1)
	}
	return st
}

// Lookup implements fuse.RawFileSystem.
func (m *metrics) Lookup(c <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	return m.count(opLookup, m.rawFS.Lookup(c, h, name, out))
}

// GetAttr implements fuse.RawFileSystem.
func (m *metrics) GetAttr(c <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	return m.count(opGetAttr, m.rawFS.GetAttr(c, in, out))
}

// ReadDir implements fuse.RawFileSystem.
func (m *metrics) ReadDir(c <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return m.count(opReadDir, m.rawFS.ReadDir(c, in, out))
}

// ReadDirPlus implements fuse.RawFileSystem.
func (m *metrics) ReadDirPlus(c <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return m.count(opReadDir, m.rawFS.ReadDirPlus(c, in, out))
}

// Read implements fuse.RawFileSystem.
func (m *metrics) Read(c <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	res, st := m.rawFS.Read(c, in, buf)
	if res != nil {
		m.bytes.Add(uint64(res.Size()))
	}
	return res, m.count(opRead, st)
}

// Readlink implements fuse.RawFileSystem.
func (m *metrics) Readlink(c <-chan struct{}, h *fuse.InHeader) ([]byte, fuse.Status) {
	b, st := m.rawFS.Readlink(c, h)
	return b, m.count(opReadlink, st)
}

// GetXAttr implements fuse.RawFileSystem.
func (m *metrics) GetXAttr(c <-chan struct{}, h *fuse.InHeader, name string, dest []byte) (uint32, fuse.Status) {
	n, st := m.rawFS.GetXAttr(c, h, name, dest)
	return n, m.count(opXattr, st)
}

var (
	descOps    = prometheus.NewDesc("coppice_fuse_requests_total", "Requests of the kernel.", []string{"op"}, nil)
	descErrors = prometheus.NewDesc("coppice_fuse_errors_total", "Requests that failed.", []string{"op"}, nil)
	descBytes  = prometheus.NewDesc("coppice_fuse_read_bytes_total", "Bytes given to the kernel.", nil, nil)
)

// Describe implements prometheus.Collector.
func (m *metrics) Describe(ch chan<- *prometheus.Desc) {
	ch <- descOps
	ch <- descErrors
	ch <- descBytes
}

// Collect implements prometheus.Collector.
func (m *metrics) Collect(ch chan<- prometheus.Metric) {
	for op, name := range opNames {
		ch <- prometheus.MustNewConstMetric(descOps, prometheus.CounterValue, float64(m.ops[op].Load()), name)
		ch <- prometheus.MustNewConstMetric(descErrors, prometheus.CounterValue, float64(m.errs[op].Load()), name)
	}
	ch <- prometheus.MustNewConstMetric(descBytes, prometheus.CounterValue, float64(m.bytes.Load()))
}
