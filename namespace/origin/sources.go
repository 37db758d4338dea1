package origin

import (
	"context"
	"errors"
	"net/netip"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"coppice.dev/coppice/namespace"
)

// SourcesOptions tune [OpenSources]. The zero value is the default.
type SourcesOptions struct {
	Options
	// ProbeRef is the ref by which a probe knows a source; a probe reads it, and CheckRef judges it.
	ProbeRef namespace.RefName
	// Prove, if set, is what a probe does instead: it reads from a source what shows that this is a source
	// of the origin and no other server, and returns an error if it is not. Of Kinds, Unavailable says
	// that nobody answered.
	Prove func(ctx context.Context, from namespace.RefReader) error
	// ProbeTimeout bounds a probe; 4 s.
	ProbeTimeout time.Duration
	// Gate, if set, is asked before each call, which fails with its error, at once. It must not block.
	Gate func() error
	// Changed, if set, is told that a source failed or came back. It must not block.
	Changed func()
}

// With several sources a stalled one is given up for the next one sooner than where there is none.
const (
	severalDial   = 3 * time.Second
	severalHeader = 10 * time.Second
	severalStall  = 5 * time.Second
)

// Sources are several origins that hold the same, in order of preference, as one: relays, mirrors and
// the origin itself. Objects may come from any, since they prove themselves; records come from the
// most preferred one that answers, has what this endpoint believes, and nothing older than it has
// seen. It implements Conn. Safe for concurrent use.
type Sources struct {
	namespace.Source
	namespace.RefWaiter

	members []*member
	fail    *failover
	pace    *pace
	opts    SourcesOptions

	probes sync.WaitGroup
	ctx    context.Context // of probes; ends with Close
	cancel context.CancelFunc
}

var _ Conn = (*Sources)(nil)

// OpenSources opens the origins at locations, as [Open] does, the most preferred one first. URLs are not
// contacted; of directories at least one must be there, if there is no URL. Kinds: those of Open.
func OpenSources(_ context.Context, locations []string, opts SourcesOptions) (*Sources, error) {
	setDefault(&opts.ProbeTimeout, 4*time.Second)
	if opts.Changed == nil {
		opts.Changed = func() {}
	}
	if opts.Gate == nil {
		opts.Gate = func() error { return nil }
	}
	if len(locations) > 1 {
		setDefault(&opts.HTTP.DialTimeout, severalDial)
		setDefault(&opts.HTTP.HeaderTimeout, severalHeader)
		setDefault(&opts.HTTP.StallTimeout, severalStall)
	}
	s := &Sources{opts: opts}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	var failed error
	for _, loc := range locations {
		m, err := openMember(loc, opts)
		if err != nil {
			failed = errors.Join(failed, err)
			if !namespace.IsKind(err, namespace.NotExist) && !namespace.IsKind(err, namespace.Unavailable) {
				s.members = nil
				break
			}
			continue // a disk that is not plugged in
		}
		s.members = append(s.members, m)
	}
	if len(s.members) == 0 {
		if failed == nil {
			_, _, failed = parseLocation("")
		}
		return nil, failed
	}
	s.stack()
	return s, nil
}

// stack puts the decorators around the members, in the one order there is: outermost what the caller
// sees first.
func (s *Sources) stack() {
	s.fail = &failover{members: s.members, notify: s.opts.Changed,
		seen: map[namespace.RefName]uint64{}, reorders: make(chan struct{})}
	s.pace = newPace(newHedge(s.fail))
	tried := Retry(s.pace, s.opts.Retry)
	g := &gate{Source: tried, waiter: tried.(namespace.RefWaiter), open: s.opts.Gate}
	s.Source, s.RefWaiter = g, g
}

// openMember opens one location and decorates it.
func openMember(location string, opts SourcesOptions) (*member, error) {
	scheme, path, err := parseLocation(location)
	if err != nil {
		return nil, err
	}
	m := &member{name: location}
	var src namespace.Source
	if scheme == "" {
		d, err := OpenDir(path)
		if err != nil {
			return nil, err
		}
		src, m.close = d, d.Close
	} else {
		c, err := NewClient(path, opts.HTTP)
		if err != nil {
			return nil, err
		}
		src, m.close, m.client, m.name = c, c.Close, c, c.URL()
	}
	if opts.Metrics != nil {
		src = opts.Metrics.Source(src, "client")
	}
	d := &measured{src: src, waiter: src.(namespace.RefWaiter), m: m}
	m.src, m.waiter = d, d
	return m, nil
}

// Trust sets how records are judged. Before it, they are believed as they come, and nothing is known
// of how old they are.
func (s *Sources) Trust(check CheckRef) {
	s.fail.mu.Lock()
	defer s.fail.mu.Unlock()
	s.fail.check = check
}

// Seen tells of a record that was seen before, as kept from the last run: an older one is not taken
// from a source where another has a newer one.
func (s *Sources) Seen(n namespace.RefName, b []byte) {
	s.fail.mu.Lock()
	check := s.fail.check
	s.fail.mu.Unlock()
	if check == nil {
		return
	}
	if age, err := check(n, b); err == nil {
		s.fail.mu.Lock()
		s.fail.seen[n] = max(s.fail.seen[n], age)
		s.fail.mu.Unlock()
	}
}

// Allow restricts the sources to those that ok accepts by location, nil to none but all. With none
// left, everything is Unavailable.
func (s *Sources) Allow(ok func(location string) bool) {
	for _, m := range s.members {
		m.mu.Lock()
		m.off = ok != nil && !ok(m.name)
		m.mu.Unlock()
	}
	s.fail.reordered()
}

// Pace keeps what is fetched in the background to a rate in bytes a second; 0 is none.
func (s *Sources) Pace(bytesPerSecond int64) { s.pace.set(bytesPerSecond) }

// Reset drops all connections: the network is another one now. Requests that are running begin again.
func (s *Sources) Reset() {
	for _, m := range s.members {
		if m.client != nil {
			m.client.Reset()
		}
	}
}

// Usable reports whether any source that may be used is up.
func (s *Sources) Usable() bool { return slices.ContainsFunc(s.members, (*member).usable) }

// Down reports whether any source that may be used is not up, so that a probe might bring news.
func (s *Sources) Down() bool {
	return slices.ContainsFunc(s.members, func(m *member) bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		return m.down && !m.off
	})
}

// Probe asks every source that may be used for ProbeRef, which no captive portal and no other server can
// show, and returns nil as soon as one has it; the others go on by themselves. A source that does
// not show it is down until it does. From the first call on only probes bring a source back.
// Kinds: Unavailable; Denied, if all that answered are others.
func (s *Sources) Probe(ctx context.Context) error {
	s.fail.mu.Lock()
	s.fail.watched = true
	s.fail.mu.Unlock()
	results := make(chan error, len(s.members))
	asked := 0
	for _, m := range s.members {
		m.mu.Lock()
		off := m.off
		m.mu.Unlock()
		if off {
			continue
		}
		asked++
		s.probes.Go(func() { results <- s.probe(m) })
	}
	worst := namespace.E(namespace.Unavailable, "probe", "sources", errNone)
	for i := range asked {
		select {
		case err := <-results:
			if err == nil {
				return nil
			}
			if i == 0 || namespace.IsKind(err, namespace.Denied) {
				worst = err
			}
		case <-ctx.Done():
			return contextError(ctx, "probe", "sources")
		}
	}
	return worst
}

// probe asks one source and notes what came of it.
func (s *Sources) probe(m *member) error {
	ctx, cancel := context.WithTimeout(s.ctx, s.opts.ProbeTimeout)
	defer cancel()
	err := s.prove(ctx, m)
	if s.ctx.Err() != nil {
		return contextError(s.ctx, "probe", m.name)
	}
	news := false
	if err == nil {
		news = m.answered(time.Now())
	} else {
		err = namespace.E(namespace.KindOf(err), "probe", m.name, err)
		if m.client != nil {
			_ = m.client.Close() // idle connections only: the next probe looks anew for who is there
		}
		news = m.failed(err, time.Now())
	}
	if news {
		s.fail.reordered()
	}
	return err
}

// prove reads from a source what shows that it is one.
func (s *Sources) prove(ctx context.Context, m *member) error {
	if s.opts.Prove != nil {
		return s.opts.Prove(ctx, m.src)
	}
	b, err := m.src.Ref(ctx, s.opts.ProbeRef)
	s.fail.mu.Lock()
	check := s.fail.check
	s.fail.mu.Unlock()
	if err == nil && check != nil {
		_, err = check(s.opts.ProbeRef, b)
	}
	return err
}

// Status returns what is known of each source, the most preferred one first.
func (s *Sources) Status() []SourceStatus {
	now := time.Now()
	all := make([]SourceStatus, len(s.members))
	for i, m := range s.members {
		all[i] = m.report(now)
	}
	return all
}

// Target is where a network must lead for a source to be reached: to the source, or to its proxy. Addr
// is the loopback address for what is on this machine, and not valid if nothing is known of it, as
// before a name was looked up. Sure: it cannot be elsewhere next time.
type Target struct {
	Addr netip.Addr
	Sure bool
}

// Targets returns where all sources are, as far as that is known without asking anybody.
func (s *Sources) Targets() []Target {
	all := make([]Target, len(s.members))
	for i, m := range s.members {
		all[i] = m.target()
	}
	return all
}

func (m *member) target() Target {
	if m.client == nil {
		return Target{netip.IPv6Loopback(), true}
	}
	u, err := url.Parse(m.name)
	if err == nil && !m.client.proxied() {
		if a, err := netip.ParseAddr(u.Hostname()); err == nil {
			return Target{a, true}
		}
		if u.Hostname() == "localhost" {
			return Target{netip.IPv6Loopback(), true}
		}
	}
	return Target{Addr: m.client.Remote()}
}

// Close implements Conn.
func (s *Sources) Close() error {
	s.cancel()
	s.probes.Wait()
	var all error
	for _, m := range s.members {
		all = errors.Join(all, m.close())
	}
	return all
}

// Describe implements prometheus.Collector.
func (s *Sources) Describe(ch chan<- *prometheus.Desc) { prometheus.DescribeByCollect(s, ch) }

func sourceDesc(name, help string) *prometheus.Desc {
	return prometheus.NewDesc("coppice_source_"+name, help, []string{"source"}, nil)
}

var (
	descSourceUp       = sourceDesc("up", "Whether the source answers and is not put aside.")
	descSourceRequests = sourceDesc("requests_total", "Requests to the source.")
	descSourceFailures = sourceDesc("failures_total", "Requests without an answer.")
	descSourceBytes    = sourceDesc("body_bytes_total", "Bytes of bodies from the source.")
	descSourceRejected = sourceDesc("rejected_total", "Bodies and records that proved wrong.")
	descSourceHedged   = sourceDesc("hedged_total", "Second requests sent to the source because another was slow.")
)

// Collect implements prometheus.Collector.
func (s *Sources) Collect(ch chan<- prometheus.Metric) {
	for _, st := range s.Status() {
		up := 0.0
		if st.State == "up" {
			up = 1
		}
		ch <- prometheus.MustNewConstMetric(descSourceUp, prometheus.GaugeValue, up, st.Source)
		for desc, v := range map[*prometheus.Desc]uint64{descSourceRequests: st.Requests, descSourceFailures: st.Failures,
			descSourceBytes: st.Bytes, descSourceRejected: st.Rejected, descSourceHedged: st.Hedged} {
			ch <- prometheus.MustNewConstMetric(desc, prometheus.CounterValue, float64(v), st.Source)
		}
	}
}
