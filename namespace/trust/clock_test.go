package trust_test

import (
	"strings"
	"testing"
	"time"

	"coppice.dev/coppice/namespace/trust"
)

func at(s string) time.Time {
	t, err := time.Parse("2006-01-02", s)
	if err != nil {
		t, err = time.Parse("2006-01-02 15:04", s)
	}
	if err != nil {
		return time.Time{}
	}
	return t
}

func TestClockWoundBack(t *testing.T) {
	c := trust.Clock{}.Prove(at("2026-03-01"), at("2026-03-08"), at("2026-03-01")).See(at("2026-03-20"))
	now, doubt := c.Now(at("2026-03-02"))
	if !now.Equal(at("2026-03-20")) || !strings.Contains(doubt, "wound back") {
		t.Errorf("%v, %q", now, doubt)
	}
	if c.Stand(at("2026-03-02"), trust.DefaultPolicy).Fresh {
		t.Error("winding the clock back makes an expired timestamp fresh")
	}
}

// A machine whose battery died believes to be in 2020: what is signed says better, and it goes on.
func TestClockBehindAllThatIsSigned(t *testing.T) {
	c := trust.Clock{}.Prove(at("2026-03-01"), at("2026-03-08"), at("2020-01-01"))
	now, doubt := c.Now(at("2020-01-01 00:05"))
	if !now.Equal(at("2026-03-01")) || !strings.Contains(doubt, "behind") {
		t.Errorf("%v, %q", now, doubt)
	}
	s := c.Stand(at("2020-01-02"), trust.DefaultPolicy)
	if !s.Fresh || s.LeaseOver {
		t.Errorf("%+v", s)
	}
}

// A clock that was years ahead once, and was set right, must not make everything expired for ever.
func TestClockYearsAhead(t *testing.T) {
	c := trust.Clock{}.Prove(at("2026-03-01"), at("2026-03-08"), at("2026-03-01")).See(at("2031-01-01"))
	if _, doubt := c.Now(at("2031-01-02")); !strings.Contains(doubt, "ahead of all that was signed") {
		t.Errorf("years ahead: %q", doubt)
	}
	now, doubt := c.Now(at("2026-03-03"))
	if !now.Equal(at("2026-03-03")) || !strings.Contains(doubt, "not believed") {
		t.Errorf("%v, %q", now, doubt)
	}
	c = c.Prove(at("2026-03-03"), at("2026-03-10"), at("2026-03-03"))
	if _, doubt := c.Now(at("2026-03-03")); doubt != "" {
		t.Errorf("after a proof that the clock is right: %q", doubt)
	}
	if now, _ := (trust.Clock{}).See(at("2031-01-01")).Now(at("2026-03-03")); !now.Equal(at("2026-03-03")) {
		t.Errorf("before first contact the clock is taken to show %v", now)
	}
}

// One that was months ahead, and was set right, must not wait for those months.
func TestClockMonthsAhead(t *testing.T) {
	c := trust.Clock{}.Prove(at("2026-03-01"), at("2026-03-08"), at("2026-03-01")).See(at("2026-06-01"))
	if now := c.Proven(at("2026-03-03")); !now.Equal(at("2026-03-03")) {
		t.Errorf("a newer timestamp is held against %v", now)
	}
	if now := c.Proven(at("2020-01-01")); !now.Equal(at("2026-03-01")) {
		t.Errorf("far behind, it is held against %v", now)
	}
	if same := c.Prove(at("2026-03-01"), at("2026-03-08"), at("2026-03-03")); !same.Highest.Equal(at("2026-06-01")) {
		t.Errorf("what was seen before proves that it is %v", same.Highest)
	}
	c = c.Prove(at("2026-03-03"), at("2026-03-10"), at("2026-03-03"))
	if now, doubt := c.Now(at("2026-03-04")); doubt != "" || !now.Equal(at("2026-03-04")) {
		t.Errorf("%v, %q", now, doubt)
	}
}

func TestLease(t *testing.T) {
	p := trust.Policy{Fresh: 24 * time.Hour, Lease: 10 * 24 * time.Hour, Then: trust.Quarantine}
	c := trust.Clock{}.Prove(at("2026-03-01"), at("2026-03-02"), at("2026-03-01"))
	for _, s := range []struct {
		local       string
		fresh, over bool
	}{
		{"2026-03-01", true, false}, {"2026-03-02", false, false}, {"2026-03-10 23:59", false, false}, {"2026-03-11", false, true}, {"2027-05-01", false, true},
	} {
		got := c.Stand(at(s.local), p)
		if got.Fresh != s.fresh || got.LeaseOver != s.over || got.Then != trust.Quarantine {
			t.Errorf("%s: %+v", s.local, got)
		}
	}
	if s := (trust.Clock{}).Stand(at("2026-03-01"), trust.Policy{}); s.LeaseOver || s.Then != trust.Warn {
		t.Errorf("before first contact: %+v", s)
	}
}

func TestPolicyRefused(t *testing.T) {
	for _, p := range []trust.Policy{{Then: "explode"}, {Fresh: time.Second}, {Fresh: 48 * time.Hour, Lease: time.Hour}, {Lease: 1 << 62}} {
		if p.Check() == nil {
			t.Errorf("%+v is accepted", p)
		}
	}
	if err := (trust.Policy{}).Check(); err != nil {
		t.Error(err)
	}
}

func TestRestoredSnapshot(t *testing.T) {
	m := trust.Machine{Generation: "a", Nonce: "n1", Acked: map[string]uint64{"c": 5}}
	for name, c := range map[string]struct {
		now  trust.Seen
		want string
	}{
		"the same":         {trust.Seen{Generation: "a", Nonce: "n1", Acked: map[string]uint64{"c": 5}}, ""},
		"nobody can tell":  {trust.Seen{}, ""},
		"another id":       {trust.Seen{Generation: "b"}, "generation id"},
		"the kernel tells": {trust.Seen{Generation: "a", Announced: true}, "kernel"},
		"another nonce":    {trust.Seen{Nonce: "n2"}, "nonce"},
		"a higher seq":     {trust.Seen{Acked: map[string]uint64{"c": 6}}, "seq 6"},
		"another channel":  {trust.Seen{Acked: map[string]uint64{"d": 1}}, "seq 1 of d"},
	} {
		got := m.Restored(c.now)
		if (got == "") != (c.want == "") || !strings.Contains(got, c.want) {
			t.Errorf("%s: %q", name, got)
		}
	}
	if again := m.Check(trust.Seen{Generation: "b", Nonce: "n2"}); again.Restored(trust.Seen{Generation: "b", Nonce: "n2"}) != "" {
		t.Errorf("%+v is suspected for ever", again)
	}
}

// shelf is a Keeper in memory.
type shelf map[string][]byte

func (s shelf) Load(name string) ([]byte, error) { return s[name], nil }
func (s shelf) Save(name string, b []byte) error { s[name] = b; return nil }

func TestClockIsKept(t *testing.T) {
	s := shelf{}
	c := trust.Clock{}.Prove(at("2026-03-01"), at("2026-03-08"), at("2026-03-01"))
	if err := trust.SaveClock(s, c); err != nil {
		t.Fatal(err)
	}
	if got, err := trust.LoadClock(s); err != nil || got != c {
		t.Errorf("%+v, %v", got, err)
	}
	m := trust.Machine{}.Check(trust.Seen{Generation: "a"})
	if err := trust.SaveMachine(s, m); err != nil {
		t.Fatal(err)
	}
	if got, err := trust.LoadMachine(s); err != nil || got.Generation != "a" {
		t.Errorf("%+v, %v", got, err)
	}
	for name := range s {
		s[name] = []byte("{}")
	}
	if c, err := trust.LoadClock(s); err != nil || c != (trust.Clock{}) {
		t.Errorf("a damaged clock: %+v, %v", c, err)
	}
}
