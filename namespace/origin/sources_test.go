package origin_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/origin"
	"coppice.dev/coppice/namespace/storetest"
)

var rootRef = namespace.RefName{Kind: namespace.TrustRef, Name: "root"}

// site is one of several sources: a faulty origin behind a real server.
type site struct {
	*storetest.Faulty
	mem *storetest.Mem
	srv *httptest.Server
}

// newSite serves an origin whose root record is root.
func newSite(t testing.TB, root string) *site {
	s := &site{mem: storetest.NewMem()}
	s.Faulty = &storetest.Faulty{Origin: s.mem}
	s.set(t, rootRef, root)
	s.srv = httptest.NewServer(origin.NewHandler(s.Faulty))
	t.Cleanup(s.srv.Close)
	return s
}

func (s *site) set(t testing.TB, n namespace.RefName, record string) {
	t.Helper()
	old, err := s.mem.Ref(t.Context(), n)
	if err != nil {
		old = nil
	}
	if err := s.mem.SwapRef(t.Context(), n, old, []byte(record)); err != nil {
		t.Fatal(err)
	}
}

func (s *site) put(t testing.TB, b []byte) namespace.Key {
	t.Helper()
	k := namespace.Key{Class: namespace.Pack, Digest: namespace.Sum(b)}
	if err := s.mem.Put(t.Context(), k, b); err != nil {
		t.Fatal(err)
	}
	return k
}

// down makes a site answer nothing but errors, up lets it be.
func (s *site) down() {
	s.SetPlan(func(storetest.Call) storetest.Fault { return storetest.Fault{Err: errDown} })
}

func (s *site) up() { s.SetPlan(nil) }

// quick are options for tests: nothing waits for long.
func quick() origin.SourcesOptions {
	var o origin.SourcesOptions
	o.ProbeRef = rootRef
	o.ProbeTimeout = 2 * time.Second
	o.HTTP = origin.ClientOptions{Wait: 2 * time.Second, Poll: 20 * time.Millisecond}
	o.Retry = origin.RetryOptions{First: time.Millisecond, Max: 5 * time.Millisecond, Elapsed: 300 * time.Millisecond, RefElapsed: 100 * time.Millisecond}
	return o
}

// believe accepts the root "ours" and channel records that begin with a digit, which is their age.
func believe(n namespace.RefName, b []byte) (uint64, error) {
	if n == rootRef {
		if string(b) != "ours" {
			return 0, namespace.E(namespace.Denied, "verify", n.String(), fmt.Errorf("another root: %s", b))
		}
		return 0, nil
	}
	if len(b) == 0 || b[0] < '0' || b[0] > '9' {
		return 0, namespace.E(namespace.Denied, "verify", n.String(), fmt.Errorf("not signed"))
	}
	return uint64(b[0] - '0'), nil
}

func openSources(t testing.TB, o origin.SourcesOptions, urls ...string) *origin.Sources {
	t.Helper()
	s, err := origin.OpenSources(t.Context(), urls, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// two returns two sites with the same pack and a Sources of them, the first preferred.
func two(t testing.TB) (a, b *site, s *origin.Sources, k namespace.Key, body []byte) {
	a, b = newSite(t, "ours"), newSite(t, "ours")
	body = storetest.Bytes(7, 300_000)
	k = a.put(t, body)
	b.put(t, body)
	s = openSources(t, quick(), a.srv.URL, b.srv.URL)
	s.Trust(believe)
	return a, b, s, k, body
}

func wantGet(t *testing.T, s namespace.Fetcher, k namespace.Key, want []byte) {
	t.Helper()
	got, err := storetest.ReadAll(t.Context(), s, k, 0, -1)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes, %v; want %d", len(got), err, len(want))
	}
}

// found probes until every source is up.
func found(t *testing.T, s *origin.Sources) {
	t.Helper()
	for s.Down() { // a probe returns with the first answer
		if err := s.Probe(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

func wantState(t *testing.T, s *origin.Sources, want ...string) {
	t.Helper()
	var got []string
	for _, st := range s.Status() {
		got = append(got, st.State)
	}
	if strings.Join(got, " ") != strings.Join(want, " ") {
		t.Errorf("the sources are %q, want %q: %+v", got, want, s.Status())
	}
}

// Several sources are as good as one, also if the first is dead, breaks off, or is a directory.
func TestSourcesConform(t *testing.T) {
	dead := httptest.NewServer(http.NotFoundHandler())
	dead.Close()
	for name, urls := range map[string]func(t *testing.T, good string, same namespace.Source) []string{
		"One":  func(_ *testing.T, good string, _ namespace.Source) []string { return []string{good} },
		"Dead": func(_ *testing.T, good string, _ namespace.Source) []string { return []string{dead.URL, good} },
		"Twice": func(t *testing.T, good string, same namespace.Source) []string {
			second := httptest.NewServer(origin.NewHandler(same))
			t.Cleanup(second.Close)
			return []string{good, second.URL}
		},
		"Flaky": func(t *testing.T, good string, same namespace.Source) []string {
			f := &storetest.Faulty{Origin: same.(namespace.Origin), Plan: everyOther()}
			flaky := httptest.NewServer(origin.NewHandler(f))
			t.Cleanup(flaky.Close)
			return []string{flaky.URL, good}
		},
	} {
		t.Run(name, func(t *testing.T) {
			open := func(t *testing.T) (*storetest.Mem, *origin.Sources) {
				m := storetest.NewMem()
				srv := httptest.NewServer(origin.NewHandler(m))
				t.Cleanup(srv.Close)
				return m, openSources(t, quick(), urls(t, srv.URL, m)...)
			}
			storetest.TestSource(t, func(t *testing.T) (namespace.Origin, namespace.Source) { return open(t) })
			storetest.TestWait(t, func(t *testing.T) (namespace.RefWriter, namespace.RefWaiter) { return open(t) })
		})
	}
	t.Run("Directory", func(t *testing.T) {
		storetest.TestSource(t, func(t *testing.T) (namespace.Origin, namespace.Source) {
			d := newDir(t)
			return d, openSources(t, quick(), d.Path(), dead.URL)
		})
	})
}

// What fails at the preferred source comes from the next one; once a probe found the preferred one
// again, it is asked again.
func TestSourcesFailOverAndReturn(t *testing.T) {
	a, b, s, k, body := two(t)
	if err := s.Probe(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.Reset()
	wantGet(t, s, k, body)
	if b.Calls("Get") != 0 {
		t.Error("the second source was asked for nothing")
	}
	a.down()
	wantGet(t, s, k, body)
	wantState(t, s, "down", "up")
	a.Reset()
	wantGet(t, s, k, body)
	if a.Calls("Get") != 0 {
		t.Error("a source that is down was asked before one that is up")
	}
	if !s.Down() || !s.Usable() {
		t.Error("one is down, one is up")
	}
	a.up()
	found(t, s)
	wantState(t, s, "up", "up")
	b.Reset()
	wantGet(t, s, k, body)
	if b.Calls("Get") != 0 {
		t.Error("the preferred source is up again, and the other was asked")
	}
	a.down()
	b.down()
	if _, err := storetest.ReadAll(t.Context(), s, k, 0, -1); !namespace.IsKind(err, namespace.Unavailable) {
		t.Errorf("with none: %v", err)
	}
	if s.Usable() {
		t.Error("none is usable")
	}
}

// A body that breaks at one source goes on at the other, at the byte it had reached.
func TestSourcesResumeElsewhere(t *testing.T) {
	a, b, s, k, body := two(t)
	a.SetPlan(func(c storetest.Call) storetest.Fault {
		if c.Op == "Get" {
			return storetest.Fault{Cut: 100_001}
		}
		return storetest.Fault{}
	})
	wantGet(t, s, k, body)
	var gets []storetest.Call
	for _, c := range b.Log() {
		if c.Op == "Get" {
			gets = append(gets, c)
		}
	}
	if len(gets) != 1 || gets[0].Off < 1 {
		t.Errorf("the second source was asked %+v", gets)
	}
	if n := a.BytesRead() + b.BytesRead(); n > int64(len(body))+70_000 { // what was on its way when it broke
		t.Errorf("%d bytes were read of %d", n, len(body))
	}
}

// A source that serves garbage comes last from then on, and is named.
func TestSourcesReject(t *testing.T) {
	_, b, s, k, body := two(t)
	rc, err := s.Get(t.Context(), k, 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, rc); err != nil {
		t.Fatal(err)
	}
	if err := rc.Close(); err != nil {
		t.Fatal(err)
	}
	namespace.Reject(rc, namespace.E(namespace.Corrupt, "verify", "chunk", nil))
	wantState(t, s, "aside", "up")
	wantGet(t, s, k, body)
	if b.Calls("Get") != 1 {
		t.Error("it was asked again")
	}
	if st := s.Status()[0]; st.Rejected != 1 || !strings.Contains(st.LastError, "chunk") {
		t.Errorf("its status: %+v", st)
	}
	// It is still better than none.
	b.srv.Close()
	wantGet(t, s, k, body)
	// A locator, which is read in one piece, can be rejected as well.
	loc := namespace.Key{Class: namespace.Locator, Digest: k.Digest}
	if err := b.mem.Put(t.Context(), loc, []byte("x")); err != nil {
		t.Fatal(err)
	}
	one := openSources(t, quick(), newSiteOf(t, b.mem))
	if rc, err = one.Get(t.Context(), loc, 0, -1); err != nil {
		t.Fatal(err)
	}
	namespace.Reject(rc, namespace.E(namespace.Corrupt, "verify", "locator", nil))
	wantState(t, one, "aside")
}

func newSiteOf(t *testing.T, src namespace.Source) string {
	srv := httptest.NewServer(origin.NewHandler(src))
	t.Cleanup(srv.Close)
	return srv.URL
}

// A stalled request is overtaken by a second one; what is slow for everybody is not asked for twice.
func TestSourcesHedge(t *testing.T) {
	a, b, s, k, body := two(t)
	for range 20 { // so that it is known what is usual
		wantGet(t, s, k, body)
	}
	gate := make(chan struct{})
	a.SetPlan(func(c storetest.Call) storetest.Fault {
		if c.Op == "Get" {
			return storetest.Fault{Gate: gate}
		}
		return storetest.Fault{}
	})
	defer close(gate)
	start := time.Now()
	wantGet(t, s, k, body)
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("it took %v", took)
	}
	if st := s.Status()[1]; st.Hedged < 1 || st.HedgesWon < 1 {
		t.Errorf("the second source: %+v", st)
	}
	// Everything stalls: the budget is spent, and then requests wait.
	b.SetPlan(func(c storetest.Call) storetest.Fault { return storetest.Fault{Gate: gate} })
	ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
	defer cancel()
	done := make(chan struct{}, 40)
	for range 40 {
		go func() {
			_, _ = storetest.ReadAll(ctx, s, k, 0, 10) // must only end
			done <- struct{}{}
		}()
	}
	for range 40 {
		<-done
	}
	if n := s.Status()[0].Hedged + s.Status()[1].Hedged; n > 12 {
		t.Errorf("%d second requests for 60", n)
	}
	// In the background nothing is hedged.
	before := s.Status()[1].Hedged
	bg, stop := context.WithTimeout(namespace.InBackground(t.Context(), nil), time.Second)
	defer stop()
	if _, err := storetest.ReadAll(bg, s, k, 0, 10); err == nil {
		t.Error("read through a closed gate")
	}
	if st := s.Status()[1]; st.Hedged != before {
		t.Error("a background request was hedged")
	}
}

// Only who shows the right root record counts as up: neither a page nor another origin does.
func TestSourcesProbe(t *testing.T) {
	page := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		fmt.Fprint(w, "<html>Welcome to the hotel</html>")
	}))
	defer page.Close()
	plain := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/octet-stream")
		fmt.Fprint(w, "ok")
	}))
	defer plain.Close()
	elsewhere := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, page.URL+"/", http.StatusFound)
	}))
	defer elsewhere.Close()
	other := newSite(t, "another's")
	for name, c := range map[string]struct {
		url  string
		kind namespace.Kind
	}{
		"a captive portal":             {page.URL, namespace.Unavailable},
		"one that redirects":           {elsewhere.URL, namespace.Unavailable},
		"one that pretends":            {plain.URL, namespace.Denied},
		"another origin":               {other.srv.URL, namespace.Denied},
		"a directory on such a server": {plain.URL + "/x/y", namespace.Denied},
	} {
		s := openSources(t, quick(), c.url)
		s.Trust(believe)
		if err := s.Probe(t.Context()); !namespace.IsKind(err, c.kind) {
			t.Errorf("%s: %v, want %v", name, err, c.kind)
		}
		if s.Usable() {
			t.Errorf("%s counts as up", name)
		}
		if st := s.Status()[0]; st.LastError == "" || !st.LastAnswer.IsZero() {
			t.Errorf("%s: %+v", name, st)
		}
	}
	silent := newSite(t, "ours")
	silent.SetPlan(func(storetest.Call) storetest.Fault { return storetest.Fault{Delay: time.Hour} })
	o := quick()
	o.ProbeTimeout = 100 * time.Millisecond
	good := newSite(t, "ours")
	s := openSources(t, o, silent.srv.URL, good.srv.URL)
	s.Trust(believe)
	start := time.Now()
	if err := s.Probe(t.Context()); err != nil || time.Since(start) > 5*time.Second {
		t.Errorf("one silent, one good: %v after %v", err, time.Since(start))
	}
}

// A reset breaks off what runs, and it goes on over new connections.
func TestSourcesReset(t *testing.T) {
	a := newSite(t, "ours")
	body := storetest.Bytes(7, 300_000)
	k := a.put(t, body)
	gate := make(chan struct{})
	a.SetPlan(func(c storetest.Call) storetest.Fault {
		if c.Op == "Get" && c.N == 1 {
			return storetest.Fault{Gate: gate}
		}
		return storetest.Fault{}
	})
	defer close(gate)
	s := openSources(t, quick(), a.srv.URL)
	done := make(chan error, 1)
	go func() {
		got, err := storetest.ReadAll(t.Context(), s, k, 0, -1)
		if err == nil && !bytes.Equal(got, body) {
			err = fmt.Errorf("%d bytes", len(got))
		}
		done <- err
	}()
	for a.Calls("Get") == 0 {
		<-time.After(time.Millisecond)
	}
	s.Reset()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Error("it still waits on the old connection")
	}
}

// The background keeps to its rate, readers do not.
func TestSourcesPace(t *testing.T) {
	_, _, s, k, body := two(t)
	s.Pace(400_000)
	wantGet(t, s, k, body)
	start := time.Now()
	got, err := storetest.ReadAll(namespace.InBackground(t.Context(), nil), s, k, 0, -1)
	took := time.Since(start)
	if err != nil || !bytes.Equal(got, body) || took < 400*time.Millisecond {
		t.Errorf("the background read %d bytes in %v, %v", len(got), took, err)
	}
	ctx, cancel := context.WithTimeout(namespace.InBackground(t.Context(), nil), 50*time.Millisecond)
	defer cancel()
	if _, err := storetest.ReadAll(ctx, s, k, 0, -1); !namespace.IsKind(err, namespace.Unavailable) {
		t.Errorf("with a deadline: %v", err)
	}
	urgent := make(chan struct{})
	time.AfterFunc(20*time.Millisecond, func() { close(urgent) })
	s.Pace(1000)
	start = time.Now()
	got, err = storetest.ReadAll(namespace.InBackground(t.Context(), urgent), s, k, 0, -1)
	if took := time.Since(start); err != nil || !bytes.Equal(got, body) || took > 30*time.Second {
		t.Errorf("what became urgent came in %v, %v", took, err)
	}
	s.Pace(0)
	if _, err := storetest.ReadAll(namespace.InBackground(t.Context(), nil), s, k, 0, -1); err != nil {
		t.Error(err)
	}
}

func TestSourcesAllow(t *testing.T) {
	a, b, s, k, body := two(t)
	s.Allow(func(loc string) bool { return loc == b.srv.URL })
	wantState(t, s, "off", "up")
	wantGet(t, s, k, body)
	if a.Calls("") != 0 {
		t.Error("a source that may not be used was")
	}
	s.Allow(func(string) bool { return false })
	if _, err := storetest.ReadAll(t.Context(), s, k, 0, -1); !namespace.IsKind(err, namespace.Unavailable) {
		t.Errorf("with none: %v", err)
	}
	if err := s.Probe(t.Context()); !namespace.IsKind(err, namespace.Unavailable) {
		t.Errorf("a probe of none: %v", err)
	}
	n := namespace.RefName{Kind: namespace.ChannelRef, Name: "x"}
	if _, err := s.WaitRef(t.Context(), n, nil); !namespace.IsKind(err, namespace.Unavailable) {
		t.Errorf("waiting at none: %v", err)
	}
	s.Allow(nil)
	wantGet(t, s, k, body)
}

func TestOpenSourcesErrors(t *testing.T) {
	missing := t.TempDir() + "/none"
	for name, c := range map[string]struct {
		locations []string
		kind      namespace.Kind
	}{
		"none":          {nil, namespace.Invalid},
		"no directory":  {[]string{missing}, namespace.NotExist},
		"a bad scheme":  {[]string{newDir(t).Path(), "gopher://x"}, namespace.Invalid},
		"two that lack": {[]string{missing, missing}, namespace.NotExist},
	} {
		if _, err := origin.OpenSources(t.Context(), c.locations, quick()); !namespace.IsKind(err, c.kind) {
			t.Errorf("%s: %v, want %v", name, err, c.kind)
		}
	}
	openSources(t, quick(), missing, "http://127.0.0.1:1") // a disk that is not plugged in
}

func TestSourcesMetrics(t *testing.T) {
	_, _, s, k, body := two(t)
	wantGet(t, s, k, body)
	if err := testutil.GatherAndCompare(gatherer(t, s), strings.NewReader(fmt.Sprintf(`
# HELP coppice_source_body_bytes_total Bytes of bodies from the source.
# TYPE coppice_source_body_bytes_total counter
coppice_source_body_bytes_total{source=%q} 300000
coppice_source_body_bytes_total{source=%q} 0
`, s.Status()[0].Source, s.Status()[1].Source)), "coppice_source_body_bytes_total"); err != nil {
		t.Error(err)
	}
}

func gatherer(t *testing.T, c prometheus.Collector) prometheus.Gatherer {
	r := prometheus.NewRegistry()
	if err := r.Register(c); err != nil {
		t.Fatal(err)
	}
	return r
}
