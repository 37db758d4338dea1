package offer

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"coppice.dev/coppice/namespace"
)

func target(n uint64) Target {
	return Target{namespace.Version{Name: "desktop", N: n}, namespace.Sum(fmt.Append(nil, n)), n}
}

func valid() *Offer {
	return &Offer{
		Format: Format, Channel: "desktop/stable", Seq: 812, PrevSeq: 811, Target: target(7), Base: target(6), Floor: 5,
		Severity: Critical, Salt: "os-2026-11", Open: 1,
		Stages:    []Stage{{Name: "canary", Members: []uint64{3, 9}}, {Name: "pilot", PerMillion: 50_000}, {Name: "global", PerMillion: million}},
		NotBefore: time.Date(2026, 11, 23, 6, 0, 0, 0, time.UTC), Expires: time.Date(2026, 12, 23, 6, 0, 0, 0, time.UTC), Reason: "openssl",
	}
}

func TestBucketsAreGolden(t *testing.T) {
	b, err := os.ReadFile("testdata/buckets.json") // made by another program, in another language
	if err != nil {
		t.Fatal(err)
	}
	var rows []struct {
		Salt, ID, Bucket string
		LeastPerMillion  uint32
	}
	if err := json.Unmarshal(b, &rows); err != nil || len(rows) < 5 {
		t.Fatal(len(rows), err)
	}
	for _, r := range rows {
		got, err := Bucket(r.Salt, r.ID)
		if err != nil || fmt.Sprintf("%016x", got) != r.Bucket {
			t.Errorf("%q %q: %016x %v, want %s", r.Salt, r.ID, got, err, r.Bucket)
		}
		if !Below(got, r.LeastPerMillion) || Below(got, r.LeastPerMillion-1) {
			t.Errorf("%q %q: the least share that holds it is not %d", r.Salt, r.ID, r.LeastPerMillion)
		}
	}
}

func TestBucketRefuses(t *testing.T) {
	for _, c := range [][2]string{{"s", ""}, {"s", strings.Repeat("x", IDBytesMax+1)}, {"s", "a\x00b"}, {"s\x00", "a"}, {strings.Repeat("s", SaltBytesMax+1), "a"}} {
		if b, err := Bucket(c[0], c[1]); !namespace.IsKind(err, namespace.Invalid) {
			t.Errorf("%.20q %.20q: %x, %v", c[0], c[1], b, err)
		}
	}
	if _, err := valid().For(""); !namespace.IsKind(err, namespace.Invalid) {
		t.Errorf("an offer for a machine without an id: %v", err)
	}
}

func TestBucketsAreFairAndRotate(t *testing.T) {
	const n = 100_000
	in, both := 0, 0
	for i := range n {
		id := fmt.Sprintf("host-%d", i)
		a, _ := Bucket("one", id)
		b, _ := Bucket("two", id)
		if Below(a, 10_000) {
			in++
			if Below(b, 10_000) {
				both++
			}
		}
	}
	if math.Abs(float64(in)-1000) > 4*32 { // 1 % is 1000 ± 32
		t.Errorf("1 %% of %d endpoints is %d", n, in)
	}
	if both > 30 { // 10 are expected
		t.Errorf("%d of %d canaries are canaries again", both, in)
	}
	for p := range uint32(1000) { // a larger share holds the smaller
		if h := rand.Uint64(); Below(h, p*1000) && !Below(h, p*1000+1) {
			t.Fatalf("%x is in %d and not in the next", h, p*1000)
		}
	}
	if Below(0, 0) || !Below(math.MaxUint64, million) {
		t.Error("the ends are wrong")
	}
}

func TestForFollowsTheStages(t *testing.T) {
	o := valid()
	if err := o.Check(); err != nil {
		t.Fatal(err)
	}
	had := map[string]bool{}
	b, _ := Bucket(o.Salt, "canary-machine")
	o.Stages[0].Members = []uint64{b}
	for open := range len(o.Stages) + 1 {
		o.Open = open
		got := 0
		for i := range 2000 {
			id := fmt.Sprintf("host-%d", i)
			if i == 0 {
				id = "canary-machine"
			}
			v, err := o.For(id)
			if err != nil || v != o.Target && v != o.Base {
				t.Fatal(v, err)
			}
			if had[id] && v != o.Target {
				t.Fatalf("%s was in an earlier stage and is in none of %d", id, open)
			}
			if v == o.Target {
				had[id] = true
				got++
			}
		}
		want := []int{0, 1, 100, 2000}[open]
		if math.Abs(float64(got-want)) > float64(want)*0.4 {
			t.Errorf("%d stages open: %d endpoints, want about %d", open, got, want)
		}
	}
}

func TestRoundTrip(t *testing.T) {
	b, err := valid().Encode()
	if err != nil {
		t.Fatal(err)
	}
	o, err := Decode(b, "test")
	if err != nil {
		t.Fatal(err)
	}
	again, err := o.Encode()
	if err != nil || string(again) != string(b) {
		t.Errorf("%s\n%s %v", b, again, err)
	}
}

func TestCheckNamesTheField(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(*Offer)
		path  string
		kind  namespace.Kind
	}{
		"format":             {func(o *Offer) { o.Format = 2 }, "$.format", namespace.Invalid},
		"channel":            {func(o *Offer) { o.Channel = "../x" }, "$.channel", namespace.Invalid},
		"no seq":             {func(o *Offer) { o.Seq = 0 }, "$.seq", namespace.Invalid},
		"prev after":         {func(o *Offer) { o.PrevSeq = 812 }, "$.prevSeq", namespace.Invalid},
		"rollback of later":  {func(o *Offer) { o.RollbackOf = 900 }, "$.rollbackOf", namespace.Invalid},
		"severity":           {func(o *Offer) { o.Severity = "huge" }, "$.severity", namespace.Invalid},
		"no version":         {func(o *Offer) { o.Target.Version.N = 0 }, "$.target.version", namespace.Invalid},
		"no manifest":        {func(o *Offer) { o.Target.Manifest = namespace.Digest{} }, "$.target.manifest", namespace.Invalid},
		"no content":         {func(o *Offer) { o.Base.Content = 0 }, "$.base.content", namespace.Invalid},
		"below floor":        {func(o *Offer) { o.Floor = 8 }, "", namespace.Denied},
		"base below floor":   {func(o *Offer) { o.Floor = 7 }, "$.base.content", namespace.Denied},
		"too many stages":    {func(o *Offer) { o.Stages = make([]Stage, StagesMax+1) }, "$.stages", namespace.Limit},
		"open":               {func(o *Offer) { o.Open = 4 }, "$.open", namespace.Invalid},
		"no salt":            {func(o *Offer) { o.Salt = "" }, "$.salt", namespace.Invalid},
		"stage twice":        {func(o *Offer) { o.Stages[1].Name = "canary" }, "$.stages[1].name", namespace.Invalid},
		"stage shrinks":      {func(o *Offer) { o.Stages[2].PerMillion = 1 }, "$.stages[2].perMillion", namespace.Invalid},
		"more than all":      {func(o *Offer) { o.Stages[2].PerMillion = million + 1 }, "$.stages[2].perMillion", namespace.Invalid},
		"members unsorted":   {func(o *Offer) { o.Stages[0].Members = []uint64{9, 9} }, "$.stages[0].members[1]", namespace.Invalid},
		"members":            {func(o *Offer) { o.Stages[0].Members = make([]uint64, MembersMax+1) }, "$.stages[0].members", namespace.Limit},
		"no base":            {func(o *Offer) { o.Base = Target{} }, "$.base", namespace.Invalid},
		"local time":         {func(o *Offer) { o.NotBefore = o.NotBefore.In(time.FixedZone("x", 3600)) }, "$.notBefore", namespace.Invalid},
		"expires before":     {func(o *Offer) { o.Expires = o.NotBefore }, "$.expires", namespace.Invalid},
		"halt without why":   {func(o *Offer) { o.Halt, o.Reason = true, "" }, "$.reason", namespace.Invalid},
		"reason of lines":    {func(o *Offer) { o.Reason = "a\x1b[2Jb" }, "$.reason", namespace.Invalid},
		"long reason":        {func(o *Offer) { o.Reason = strings.Repeat("x", ReasonBytesMax+1) }, "$.reason", namespace.Limit},
		"signer twice":       {func(o *Offer) { o.Signers = []string{"a", "a"} }, "$.signers[1]", namespace.Invalid},
		"exception unsigned": {func(o *Offer) { o.Exception = []string{"eve"} }, "$.exception[0]", namespace.Invalid},
	} {
		o := valid()
		c.spoil(o)
		err := o.Check()
		var e *namespace.Error
		for inner := err; errors.As(inner, &e) && e.Subject == ""; inner = e.Err { // a hint wraps
		}
		if !namespace.IsKind(err, c.kind) || c.path != "" && e.Subject != c.path {
			t.Errorf("%s: %v, want %s at %s", name, err, c.kind, c.path)
		}
	}
	o := valid()
	o.Floor, o.Signers, o.Exception = 9, []string{"ann", "bob"}, []string{"bob"}
	if err := o.Check(); err != nil {
		t.Errorf("allowed by bob: %v", err)
	}
}

func fleet(n int) []Candidate {
	var all []Candidate
	for i := range n {
		site, model := fmt.Sprintf("site=%d", i%7), fmt.Sprintf("model=%d", i%3)
		if i%500 == 499 {
			site = "site=rare"
		}
		all = append(all, Candidate{fmt.Sprintf("host-%d", i), []string{site, model}})
	}
	return all
}

func TestChooseIsExactFairAndRepeats(t *testing.T) {
	all := fleet(2000)
	c, err := Choose("r1", all, 50, 2)
	if err != nil || len(c.IDs) != 50 || len(c.Members) != 50 || len(c.Missing) != 0 {
		t.Fatalf("%+v %v", c, err)
	}
	per := map[string]int{}
	for _, id := range c.IDs {
		i := slices.IndexFunc(all, func(c Candidate) bool { return c.ID == id })
		for _, s := range all[i].Strata {
			per[s]++
		}
	}
	if len(per) != 11 || per["site=rare"] < 2 {
		t.Errorf("strata of the canaries: %v", per)
	}
	shuffled := slices.Clone(all)
	rand.Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
	if again, err := Choose("r1", shuffled, 50, 2); err != nil || !slices.Equal(again.IDs, c.IDs) {
		t.Errorf("another order, another choice: %v %v", again, err)
	}
	other, err := Choose("r2", all, 50, 2)
	if err != nil || slices.Equal(other.IDs, c.IDs) {
		t.Error("another salt, the same canaries")
	}
	s := Stage{Members: c.Members}
	in := 0
	for i := range all {
		if b, _ := Bucket("r1", all[i].ID); s.Has(b) {
			in++
		}
	}
	if in != 50 {
		t.Errorf("the stage holds %d endpoints, want 50", in)
	}
}

func TestChooseEdges(t *testing.T) {
	all := fleet(2000)
	if c, err := Choose("r", all, 2, 1); err != nil || len(c.IDs) != 2 || len(c.Missing) == 0 {
		t.Errorf("too few for all strata: %+v %v", c, err)
	}
	if c, err := Choose("r", all[:3], 50, 1); err != nil || len(c.IDs) != 3 || len(c.Missing) != 0 {
		t.Errorf("more than there are: %+v %v", c, err)
	}
	if c, err := Choose("r", nil, 5, 1); err != nil || len(c.IDs) != 0 {
		t.Errorf("of nobody: %+v %v", c, err)
	}
	for _, bad := range [][]Candidate{{{ID: ""}}, {{ID: "a"}, {ID: "a"}}} {
		if c, err := Choose("r", bad, 1, 1); !namespace.IsKind(err, namespace.Invalid) {
			t.Errorf("%v: %+v %v", bad, c, err)
		}
	}
	if _, err := Choose("r", all, -1, 1); !namespace.IsKind(err, namespace.Limit) {
		t.Errorf("-1 endpoints: %v", err)
	}
}

func FuzzDecode(f *testing.F) {
	b, err := valid().Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte("{}\n"))
	f.Add([]byte(strings.Replace(string(b), "812", "0", 1)))
	f.Fuzz(func(t *testing.T, b []byte) {
		o, err := Decode(b, "fuzz")
		if err != nil {
			return
		}
		if again, err := namespace.EncodeRecord(o); err != nil || string(again) != string(b) {
			t.Fatalf("%q %q %v", b, again, err)
		}
		if _, err := o.For("x"); err != nil {
			t.Fatal(err)
		}
	})
}
