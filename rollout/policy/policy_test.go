package policy

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/rollout/offer"
	"coppice.dev/coppice/rollout/window"
)

func layers(t testing.TB, texts ...string) []Layer {
	t.Helper()
	var all []Layer
	for _, s := range texts {
		var l Layer
		dec := json.NewDecoder(strings.NewReader(s))
		dec.DisallowUnknownFields()
		if err := dec.Decode(&l); err != nil {
			t.Fatalf("%s: %v", s, err)
		}
		all = append(all, l)
	}
	return all
}

func compile(t testing.TB, sev offer.Severity, texts ...string) *Effective {
	t.Helper()
	p, err := Compile(layers(t, texts...))
	if err != nil {
		t.Fatal(err)
	}
	return p.For(sev)
}

var monday = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

// calm is a machine that nothing is wrong with.
func calm() *Question {
	return &Question{Pending: monday.Add(-time.Hour), Staged: monday.Add(-time.Minute), Facts: &Facts{Zone: time.UTC, Link: LAN, ReachableSince: monday.Add(-10 * hour),
		Busy: Activity{Known: true}, Power: Supply{Known: true, AC: true, Percent: 80}, Labels: map[string]string{"role": "kiosk"}}}
}

func TestKeysAreThoseOfTheJSON(t *testing.T) {
	want := "activate.internet activate.lan activate.metered activate.offline activate.vpn busy.inhibitors busy.lockFile busy.most busy.sessions deadline.after deadline.grace defer.count defer.each defer.total emergency fetch.internet fetch.lan fetch.metered fetch.offline fetch.vpn gates hurry offline.after offline.then power.ac power.battery slot verify.boots verify.within when windows"
	if got := strings.Join(Keys(), " "); got != want {
		t.Errorf("%s", got)
	}
	e := compile(t, offer.Routine)
	for _, k := range Keys() { // the defaults set everything
		if e.From(k).Layer != "default" {
			t.Errorf("%s is set by %q", k, e.From(k).Layer)
		}
	}
}

func TestLayers(t *testing.T) {
	global := `{"level":"global","seq":7,"settings":{"deadline":{"after":"14d","grace":"2d"},"slot":"all","when":"facts.ac"},"lock":["when","windows"],
		"clamp":{"deadline.after":{"max":"7d","min":"1h"},"power.battery":{"min":"20"}},"severity":{"critical":{"deadline":{"after":"1d"}}}}`
	region := `{"level":"region","name":"emea","seq":812,"settings":{"deadline":{"after":"10m"},"when":"true","slot":"emea"}}`
	a := `{"level":"group","name":"a","seq":1,"settings":{"slot":"a"}}`
	b := `{"level":"group","name":"b","seq":2,"settings":{"slot":"b","power":{"battery":5}}}`
	e := compile(t, offer.Routine, b, region, a, global) // in whatever order
	if got := *e.Settings.Deadline.After; got != window.Duration(hour) {
		t.Errorf("deadline.after %s, want what the clamp leaves", got)
	}
	if s := e.From("deadline.after"); s.Origin.String() != "region/emea @ seq 812" || s.Clamped.Layer != "global" || s.Asked != "10m" {
		t.Errorf("deadline.after comes from %+v", s)
	}
	if *e.Settings.Power.Battery != 20 || e.From("power.battery").Asked != "5" {
		t.Errorf("power.battery %d from %+v", *e.Settings.Power.Battery, e.From("power.battery"))
	}
	if *e.Settings.When != "facts.ac" || e.From("when").Layer != "global" {
		t.Errorf("a locked key is %q from %+v", *e.Settings.When, e.From("when"))
	}
	if e.Slot() != "b" {
		t.Errorf("slot %q, want that of the last name", e.Slot())
	}
	want := []Overruled{{"when", Origin{"region/emea", 812}, Origin{"global", 7}, "locked"}, {"slot", Origin{"group/a", 1}, Origin{"group/b", 2}, "set by both"}}
	if !slices.Equal(e.Overruled, want) {
		t.Errorf("overruled %+v", e.Overruled)
	}
	crit := compile(t, offer.Critical, global)
	if got := *crit.Settings.Deadline.After; got != window.Duration(window.Dayspan) {
		t.Errorf("the schedule of critical has the deadline %s", got)
	}
	// A clamp bounds what stood above it, too; an empty list replaces one that is not empty.
	e = compile(t, offer.Routine, `{"level":"global","settings":{"deadline":{"after":"14d"},"emergency":["window"]}}`,
		`{"level":"site","name":"oslo","seq":3,"clamp":{"deadline.after":{"max":"2d"}},"settings":{"emergency":[]}}`)
	if *e.Settings.Deadline.After != window.Duration(2*window.Dayspan) || len(e.Settings.Emergency) != 0 || e.Settings.Emergency == nil {
		t.Errorf("%s %v", e.Settings.Deadline.After, e.Settings.Emergency)
	}
}

func TestCheckNamesTheField(t *testing.T) {
	for text, path := range map[string]string{
		`{"level":"galaxy"}`:                                                                "$.level",
		`{"level":"site"}`:                                                                  "$.name",
		`{"level":"site","name":"../x"}`:                                                    "$.name",
		`{"level":"global","lock":["deadline.after","deadlin"]}`:                            "$.lock[1]",
		`{"level":"global","clamp":{"nope":{}}}`:                                            "$.clamp.'nope'",
		`{"level":"global","clamp":{"when":{"max":"1"}}}`:                                   "$.clamp.'when'",
		`{"level":"global","clamp":{"deadline.after":{"max":"soon"}}}`:                      "$.clamp.'deadline.after'.max",
		`{"level":"global","clamp":{"deadline.after":{"min":"2d","max":"1d"}}}`:             "$.clamp.'deadline.after'",
		`{"level":"global","settings":{"windows":[{"start":"01:00","duration":"1h"}]}}`:     "$.settings.windows[0].zone",
		`{"level":"global","settings":{"fetch":{"vpn":"perhaps"}}}`:                         "$.settings.fetch.vpn",
		`{"level":"global","settings":{"hurry":["link","halt"]}}`:                           "$.settings.hurry[1]",
		`{"level":"global","settings":{"power":{"battery":101}}}`:                           "$.settings.power.battery",
		`{"level":"global","settings":{"verify":{"within":"0s"}}}`:                          "$.settings.verify.within",
		`{"level":"global","settings":{"verify":{"boots":-1}}}`:                             "$.settings.verify.boots",
		`{"level":"global","settings":{"defer":{"count":1000}}}`:                            "$.settings.defer.count",
		`{"level":"global","settings":{"offline":{"then":"explode"}}}`:                      "$.settings.offline.then",
		`{"level":"global","settings":{"slot":"A B"}}`:                                      "$.settings.slot",
		`{"level":"global","settings":{"when":"facts.lnk == 'lan'"}}`:                       "$.settings.when",
		`{"level":"global","settings":{"when":"1 + 1"}}`:                                    "$.settings.when",
		`{"level":"global","severity":{"critical":{"when":"("}}}`:                           "$.severity.critical.when",
		`{"level":"global","severity":{"urgent":{}}}`:                                       "$.severity.urgent",
		`{"level":"global","settings":{"gates":{}}}`:                                        "$.settings.gates",
		`{"level":"global","settings":{"gates":{"all":[]}}}`:                                "$.settings.gates",
		`{"level":"global","settings":{"gates":{"gate":"link","any":[{"gate":"link"}]}}}`:   "$.settings.gates",
		`{"level":"global","settings":{"gates":{"all":[{"gate":"link"},{"gate":"moon"}]}}}`: "$.settings.gates.all[1].gate",
	} {
		l := layers(t, text)[0]
		err := l.Check()
		var e *namespace.Error
		if !namespace.IsKind(err, namespace.Invalid) || !errors.As(err, &e) || e.Subject != path {
			t.Errorf("%s: %v, want Invalid at %s", text, err, path)
		}
		if _, err := Compile([]Layer{l}); !namespace.IsKind(err, namespace.Invalid) {
			t.Errorf("%s: compiled: %v", text, err)
		}
	}
	deep := strings.Repeat(`{"all":[`, 20) + `{"gate":"link"}` + strings.Repeat(`]}`, 20)
	l := layers(t, `{"level":"global","settings":{"gates":`+deep+`}}`)[0]
	if err := l.Check(); !namespace.IsKind(err, namespace.Limit) {
		t.Errorf("a deep rule: %v", err)
	}
	if _, err := Compile(make([]Layer, LayersMax+1)); !namespace.IsKind(err, namespace.Limit) {
		t.Errorf("many layers: %v", err)
	}
}

// TestEachGateAlone: a rule of one gate; a machine for which it is closed, and what opens it.
func TestEachGateAlone(t *testing.T) {
	for name, c := range map[string]struct {
		gate, settings string
		closed         func(*Question)
		why            string
		open           func(*Question)
	}{
		"window":         {"window", `"windows":[{"days":["Sat"],"start":"01:00","duration":"1h","zone":"UTC"}]`, nil, "outside all windows", func(q *Question) { q.Pending = saturday }},
		"deadline":       {"deadline", `"deadline":{"after":"2h"}`, nil, "first offered", func(q *Question) { q.Pending = monday.Add(-2 * hour) }},
		"grace":          {"deadline", `"deadline":{"after":"1h","grace":"1d"}`, nil, "became reachable", func(q *Question) { q.Facts.ReachableSince = monday.Add(-24 * hour) }},
		"defer":          {"defer", `"slot":""`, func(q *Question) { q.Deferred = monday.Add(1) }, "put off", func(q *Question) { q.Deferred = monday }},
		"link":           {"link", `"activate":{"lan":"never"}`, nil, "the link is lan", func(q *Question) { q.Facts.Link = VPN }},
		"wanted link":    {"link", `"activate":{"lan":"wanted"}`, nil, "the link is lan", func(q *Question) { q.Hurry = true }},
		"overdue link":   {"link", `"activate":{"lan":"wanted"},"deadline":{"after":"2h"}`, nil, "the link is lan", func(q *Question) { q.Pending = monday.Add(-3 * hour) }},
		"slot":           {"slot", `"slot":"pool"`, nil, `no slot of the pool "pool"`, func(q *Question) { q.Facts.Slot = Slot{true, monday.Add(1)} }},
		"slot ran out":   {"slot", `"slot":"pool"`, func(q *Question) { q.Facts.Slot = Slot{true, monday} }, "no slot", func(q *Question) { q.Facts.Slot.Until = monday.Add(1) }},
		"sessions":       {"busy", `"busy":{"sessions":true}`, func(q *Question) { q.Facts.Busy.Sessions = 1 }, "logged in", func(q *Question) { q.Facts.Busy.Sessions = 0 }},
		"inhibitor":      {"busy", `"busy":{"sessions":true}`, func(q *Question) { q.Facts.Busy.Inhibitor = "vlc" }, "inhibited by vlc", func(q *Question) { q.Facts.Busy.Inhibitor = "" }},
		"lock file":      {"busy", `"slot":""`, func(q *Question) { q.Facts.Busy.LockFile = "/run/lock/x" }, "/run/lock/x", func(q *Question) { q.Facts.Busy.LockFile = "" }},
		"busy unknown":   {"busy", `"slot":""`, func(q *Question) { q.Facts.Busy = Activity{} }, "not known", func(q *Question) { q.Facts.Busy.Known = true }},
		"busy long":      {"busy", `"busy":{"sessions":true,"most":"2h"}`, func(q *Question) { q.Facts.Busy.Sessions = 1 }, "logged in", func(q *Question) { q.Staged = monday.Add(-2 * hour) }},
		"mains":          {"power", `"power":{"ac":true}`, func(q *Question) { q.Facts.Power.AC = false }, "on battery", func(q *Question) { q.Facts.Power.AC = true }},
		"battery":        {"power", `"power":{"battery":50}`, func(q *Question) { q.Facts.Power = Supply{true, false, 49} }, "too low", func(q *Question) { q.Facts.Power.Percent = 50 }},
		"power unknown":  {"power", `"power":{"battery":50}`, func(q *Question) { q.Facts.Power.Known = false }, "not known", func(q *Question) { q.Facts.Power.Known = true }},
		"when":           {"when", `"when":"facts.idleSeconds > 600 && facts.labels.role == 'kiosk'"`, nil, "does not hold", func(q *Question) { q.Facts.Busy.Idle = 601 * time.Second }},
		"when fails":     {"when", `"when":"facts.labels.nope == 'x' || deadline.passed"`, nil, "no such key", func(q *Question) { q.Facts.Labels = map[string]string{"nope": "x"} }},
		"too many label": {"when", `"when":"size(facts.labels) < 10000"`, func(q *Question) { q.Facts.Labels = many() }, "facts.labels", func(q *Question) { q.Facts.Labels = nil }},
	} {
		e := compile(t, offer.Routine, `{"level":"site","name":"x","seq":9,"settings":{`+c.settings+`,"hurry":[],"gates":{"gate":"`+c.gate+`"}}}`)
		q := calm()
		if c.closed != nil {
			c.closed(q)
		}
		now := monday
		a, x := e.Answer(q, now), e.Explain(q, now, time.Time{}, time.Time{})
		if a.Open || x.Open || len(x.Blocking) != 1 || x.Blocking[0].Gate != c.gate || !strings.Contains(x.Blocking[0].Why, c.why) {
			t.Errorf("%s: open %t, %+v", name, a.Open, x.Blocking)
		}
		if a.NeedsSlot != (c.gate == "slot") {
			t.Errorf("%s: needs a slot: %t", name, a.NeedsSlot)
		}
		c.open(q)
		if q.Pending == saturday {
			now = saturday
		}
		if a := e.Answer(q, now); !a.Open {
			t.Errorf("%s: still closed: %+v", name, e.Explain(q, now, time.Time{}, time.Time{}).Blocking)
		}
	}
}

var saturday = time.Date(2026, 11, 28, 1, 30, 0, 0, time.UTC)

func many() map[string]string {
	m := map[string]string{}
	for i := range LabelsMax + 1 {
		m[fmt.Sprint(i)] = ""
	}
	return m
}

func TestSkips(t *testing.T) {
	settings := `{"level":"global","settings":{"slot":"p","power":{"ac":true},"busy":{"sessions":true},"windows":[{"days":["Sat"],"start":"01:00","duration":"1h","zone":"UTC"}],"emergency":["window","busy"],"hurry":["busy"]}}`
	q := calm()
	q.Facts.Busy.Sessions, q.Facts.Power.AC, q.Deferred = 2, false, monday.Add(hour)
	names := func(x Explanation) (s string) {
		for _, b := range x.Blocking {
			s += b.Gate + " "
		}
		return s
	}
	for sev, want := range map[offer.Severity]string{offer.Routine: "window deadline defer slot busy power ", offer.Emergency: "deadline defer slot power "} {
		x := compile(t, sev, settings).Explain(q, monday, time.Time{}, time.Time{})
		if got := names(x); got != want {
			t.Errorf("%s: blocked by %s, want %s", sev, got, want)
		}
	}
	q.Hurry = true
	if got := names(compile(t, offer.Routine, settings).Explain(q, monday, time.Time{}, time.Time{})); got != "window deadline defer slot power " {
		t.Errorf("now: blocked by %s", got)
	}
}

func TestMandatoryWindowOverridesADeferral(t *testing.T) {
	e := compile(t, offer.Routine, `{"level":"global","settings":{"windows":[{"days":["Mon"],"start":"11:00","duration":"2h","zone":"UTC","mode":"mandatory"}]}}`)
	q := calm()
	q.Deferred = monday.Add(10 * hour)
	if !e.Answer(q, monday).Open {
		t.Error("a deferral counts in a mandatory window")
	}
	if e.Answer(q, monday.Add(2*hour)).Open {
		t.Error("open outside the window")
	}
}

func TestExplainEarliest(t *testing.T) {
	weekend := `"windows":[{"days":["Sat"],"start":"01:00","duration":"4h","zone":"UTC"}]`
	for name, c := range map[string]struct {
		settings string
		spoil    func(*Question)
		earliest time.Time
		sentence string
		setBy    string
	}{
		"window":           {weekend, nil, saturday.Add(-30 * minute), "at 2026-11-28T01:00:00Z", "windows"},
		"deadline first":   {weekend + `,"deadline":{"after":"1d"}`, nil, monday.Add(23 * hour), "no opening before the deadline 2026-11-24T11:00:00Z", "windows"},
		"deadline later":   {weekend + `,"deadline":{"after":"9d"}`, nil, saturday.Add(-30 * minute), "at 2026-11-28T01:00:00Z", "windows"},
		"deferred past it": {weekend, func(q *Question) { q.Deferred = saturday }, saturday, "at 2026-11-28T01:30:00Z", "defer.each"},
		"deferred a week":  {weekend, func(q *Question) { q.Deferred = saturday.Add(100 * hour) }, saturday.Add(7*24*hour - 30*minute), "at 2026-12-05T01:00:00Z", "defer.each"},
		"busy": {weekend + `,"busy":{"sessions":true}`, func(q *Question) { q.Facts.Busy.Sessions = 1 }, saturday.Add(-30 * minute),
			"from 2026-11-28T01:00:00Z on, as soon as these allow it: [busy]", "busy.sessions"},
		"never":      {`"windows":[{"start":"00:00","duration":"1d","zone":"UTC","mode":"deny"},{"start":"12:00","duration":"12h","zone":"UTC","mode":"deny"}]`, nil, time.Time{}, "no opening in sight", "windows"},
		"never then": {`"windows":[{"start":"00:00","duration":"1d","zone":"UTC","mode":"deny"}],"deadline":{"after":"3d"},"gates":{"gate":"window"}`, nil, time.Time{}, "no opening, not even at the deadline", "windows"},
		"busy most":  {`"busy":{"sessions":true,"most":"3h"}`, func(q *Question) { q.Facts.Busy.Sessions = 1 }, monday, "from 2026-11-23T12:00:00Z on, as soon as these allow it: [busy]", "busy.sessions"},
	} {
		e := compile(t, offer.Routine, `{"level":"site","name":"oslo","seq":4,"settings":{`+c.settings+`}}`)
		q := calm()
		if c.spoil != nil {
			c.spoil(q)
		}
		x := e.Explain(q, monday, time.Time{}, time.Time{})
		if !x.Earliest.Equal(c.earliest) || x.Sentence() != c.sentence {
			t.Errorf("%s: earliest %s, %q; want %s, %q", name, x.Earliest, x.Sentence(), c.earliest, c.sentence)
		}
		if !slices.ContainsFunc(x.Blocking, func(b Blocking) bool { return b.By.Key == c.setBy }) {
			t.Errorf("%s: %+v, want one by %s", name, x.Blocking, c.setBy)
		}
	}
	e := compile(t, offer.Routine, `{"level":"global","settings":{`+weekend+`}}`)
	if x := e.Explain(calm(), monday, time.Time{}, saturday.Add(-hour)); !x.Earliest.IsZero() {
		t.Errorf("opens at %s, after the offer expired", x.Earliest)
	}
	if x := e.Explain(calm(), monday, saturday, time.Time{}); !x.Earliest.Equal(saturday) {
		t.Errorf("opens at %s, before notBefore", x.Earliest)
	}
}

// randomLayer makes settings of every kind for properties.
func randomQuestion(rng *rand.Rand) (*Question, time.Time) {
	q := calm()
	now := monday.Add(time.Duration(rng.IntN(14*24*60)) * minute)
	q.Facts.Link = Link(rng.IntN(5))
	q.Facts.Busy = Activity{Known: rng.IntN(5) > 0, Sessions: rng.IntN(2)}
	q.Facts.Power = Supply{rng.IntN(5) > 0, rng.IntN(2) == 0, rng.IntN(100)}
	q.Facts.Slot = Slot{rng.IntN(2) == 0, now.Add(hour)}
	q.Hurry = rng.IntN(6) == 0
	if rng.IntN(3) == 0 {
		q.Deferred = now.Add(time.Duration(rng.IntN(600)) * minute)
	}
	return q, now
}

const everything = `{"level":"global","settings":{"slot":"p","power":{"battery":40},"busy":{"sessions":true,"most":"5h"},"deadline":{"after":"3d","grace":"1d"},
	"activate":{"metered":"critical","vpn":"wanted","offline":"never"},"when":"facts.battery > 20 || deadline.passed",
	"windows":[{"days":["Sat","Tue"],"start":"01:00","duration":"30h","zone":"endpoint"},{"start":"08:00","duration":"2h","zone":"Asia/Tokyo","mode":"deny"}]}}`

// TestExplainAgreesWithAnswer: what Explain calls open Answer does, with a calendar or without;
// something is named whenever it is closed; and once all that is named is open, so is the whole.
func TestExplainAgreesWithAnswer(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for _, sev := range offer.Severities() {
		e := compile(t, sev, everything)
		p := e.Prepare(monday, monday.Add(20*window.Dayspan), time.UTC)
		closed := 0
		for range 3000 {
			q, now := randomQuestion(rng)
			a, x := e.Answer(q, now), e.Explain(q, now, time.Time{}, time.Time{})
			if b := p.Answer(q, now); b != a {
				t.Fatalf("prepared: %+v, else %+v", b, a)
			}
			if a.Open != x.Open || x.Open != (len(x.Blocking) == 0) {
				t.Fatalf("answer %t, explanation %+v", a.Open, x)
			}
			if !a.Open {
				closed++
				all := a.open
				if e.when.Ask(e.inputs(q, now)) == nil { // Answer asks only where it decides
					all |= whenHolds
				}
				for _, b := range x.Blocking {
					all |= 1 << Gate(b.Gate).index()
				}
				if !e.rule.holds(all) {
					t.Fatalf("all that is named open, and still closed: %+v", x)
				}
				if x.Sentence() == "" || x.Blocking[0].Why == "" || x.Blocking[0].By.Layer == "" {
					t.Fatalf("no reason: %+v", x)
				}
			}
			// Nothing that can be foreseen changes before Wake says so.
			if wake, more := e.Wake(q, now); more {
				between := now.Add(time.Duration(rng.Int64N(int64(wake.Sub(now)))))
				if got, want := e.foreseen(q, &a, between), e.foreseen(q, &a, now); got != want {
					t.Fatalf("at %s %08b, at %s %08b, and no wake before %s", now, want, between, got, wake)
				}
			}
		}
		if closed < 100 {
			t.Errorf("%s: closed %d times of 3000", sev, closed)
		}
	}
}

// TestRulesAreMonotone: opening a gate never closes a rule.
func TestRulesAreMonotone(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	var random func(depth int) Rule
	random = func(depth int) Rule {
		if depth == 0 || rng.IntN(3) == 0 {
			return Rule{Gate: gates[rng.IntN(8)]}
		}
		list := []Rule{random(depth - 1), random(depth - 1)}
		if rng.IntN(2) == 0 {
			return Rule{All: list}
		}
		return Rule{Any: list}
	}
	for range 200 {
		r := random(4)
		table, err := r.compile("$")
		if err != nil {
			t.Fatal(err)
		}
		for m := range 256 {
			for i := range 8 {
				if table.holds(mask(m)) && !table.holds(mask(m)|1<<i) {
					t.Fatalf("%+v holds for %08b and not with gate %s", r, m, gates[i])
				}
			}
		}
	}
}

func TestWhenIsBounded(t *testing.T) {
	for text, kind := range map[string]namespace.Kind{
		strings.Repeat("true && ", 1000) + "true":                                         namespace.Limit,
		"facts.labels.all(a, facts.labels.all(b, facts.labels.all(c, a + b + c != 'x')))": namespace.Limit,
		"facts.labels.exists(k, facts.labels.exists(l, l == k))":                          namespace.Limit,
		strings.Repeat("(", 100) + "true" + strings.Repeat(")", 100):                      namespace.Invalid,
		"env.HOME == ''": namespace.Invalid,
		"now":            namespace.Invalid,
		"":               namespace.Invalid,
	} {
		if w, err := CompileWhen(text, "$.when"); !namespace.IsKind(err, kind) {
			t.Errorf("%.60s: %v, want %s (%+v)", text, err, kind, w)
		}
	}
	names, types, docs := Variables()
	for i, n := range names {
		cmp := map[string]string{"string": `!= ""`, "int": ">= -1", "bool": "|| true", "map(string, string)": "!= {}", "google.protobuf.Timestamp": "> timestamp('2020-01-01T00:00:00Z')"}[types[i]]
		w, err := CompileWhen(n+" "+cmp, "$")
		if err != nil || docs[i] == "" {
			t.Errorf("%s of type %s: %v", n, types[i], err)
			continue
		}
		if err := w.Ask(&Inputs{*calm(), "routine", time.Time{}, monday}); err != nil {
			t.Errorf("%s: %v", n, err)
		}
	}
}

func BenchmarkAnswer(b *testing.B) {
	e := compile(b, offer.Routine, everything, `{"level":"site","name":"x","settings":{"when":""}}`)
	e = e.Prepare(monday, monday.Add(window.Dayspan), time.UTC)
	q := calm()
	b.ReportAllocs()
	for b.Loop() {
		e.Answer(q, monday)
	}
}
