package policy

import (
	"cmp"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/rollout/offer"
	"coppice.dev/coppice/rollout/window"
)

// Setting is where an effective value comes from.
type Setting struct {
	Key string `json:"key"`
	Origin
	// Clamped is who bounds the value, and Asked what Origin had asked for; zero if nobody does.
	Clamped Origin `json:"clamped,omitzero"`
	Asked   string `json:"asked,omitempty"`
}

// Overruled is a value that a layer set in vain, and why.
type Overruled struct {
	Key string `json:"key"`
	Origin
	By  Origin `json:"by"`
	Why string `json:"why"` // "locked", or "set by both": two layers of one level disagree
}

// Policy is what the layers of one endpoint come to. Immutable; safe for concurrent use.
type Policy struct {
	effective [4]*Effective // by rank
}

// For returns what holds for a severity; an unknown one is treated as routine.
func (p *Policy) For(s offer.Severity) *Effective { return p.effective[max(s.Rank(), 0)] }

// Prepare is [Effective.Prepare] for every severity.
func (p *Policy) Prepare(from, to time.Time, zone *time.Location) *Policy {
	var q Policy
	for i, e := range p.effective {
		q.effective[i] = e.Prepare(from, to, zone)
	}
	return &q
}

// keys are the settings' keys: how to reach each field.
var keys = fields(reflect.TypeFor[Settings](), "", nil)

func fields(t reflect.Type, prefix string, index []int) map[string][]int {
	all := map[string][]int{}
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		at := append(slices.Clone(index), i)
		if f.Type.Kind() == reflect.Struct {
			maps.Copy(all, fields(f.Type, prefix+name+".", at))
			continue
		}
		all[prefix+name] = at
	}
	return all
}

// Keys lists the settings, in order.
func Keys() []string { return sortedKeys(keys) }

func sortedKeys[K cmp.Ordered, V any](m map[K]V) []K { return slices.Sorted(maps.Keys(m)) }

// Compile lays layers over each other, over the defaults of this program. Their order among each
// other is that of their levels, then names; the caller's order does not matter.
//
// A layer below a lock keeps the locked value; bounds of all layers hold together. Where two layers
// of one level set a key differently the later name wins and the overlap is kept for explain.
// Errors: Invalid, with layer and path; Limit.
func Compile(layers []Layer) (*Policy, error) {
	if len(layers) > LayersMax {
		return nil, namespace.E(namespace.Limit, "compile policy", "$", fmt.Errorf("%d layers, at most %d", len(layers), LayersMax))
	}
	sorted := append([]Layer{defaults()}, layers...)
	for i := range sorted {
		if err := sorted[i].Check(); err != nil {
			return nil, namespace.E(namespace.KindOf(err), "layer", sorted[i].origin().Layer, err)
		}
	}
	slices.SortStableFunc(sorted, func(a, b Layer) int {
		return cmp.Or(cmp.Compare(slices.Index(levels, a.Level), slices.Index(levels, b.Level)), cmp.Compare(a.Name, b.Name))
	})
	p := new(Policy)
	for i, sev := range offer.Severities() {
		e, err := effective(sorted, sev)
		if err != nil {
			return nil, err
		}
		p.effective[i] = e
	}
	return p, nil
}

// merging is the state of one pass over the layers.
type merging struct {
	e      *Effective
	locked map[string]*Layer
	setBy  map[string]*Layer
}

func effective(layers []Layer, sev offer.Severity) (*Effective, error) {
	m := merging{&Effective{from: map[string]Setting{}}, map[string]*Layer{}, map[string]*Layer{}}
	for i := range layers {
		l := &layers[i]
		m.lay(l, l.Settings)
		if s, tier := l.Severity[sev]; tier {
			m.lay(l, s)
		}
		for _, key := range l.Lock {
			if m.locked[key] == nil {
				m.locked[key] = l
			}
		}
	}
	for i := range layers {
		for _, key := range sortedKeys(layers[i].Clamp) {
			m.clamp(&layers[i], key)
		}
	}
	return m.e, m.e.finish(sev)
}

// lay takes from s what is set and not locked.
func (m *merging) lay(l *Layer, s Settings) {
	from, to := reflect.ValueOf(s), reflect.ValueOf(&m.e.Settings).Elem()
	for _, key := range sortedKeys(keys) {
		v := from.FieldByIndex(keys[key])
		if v.IsNil() {
			continue
		}
		if by := m.locked[key]; by != nil && by.Level != l.Level {
			m.e.Overruled = append(m.e.Overruled, Overruled{key, l.origin(), by.origin(), "locked"})
			continue
		}
		old := to.FieldByIndex(keys[key])
		if by := m.setBy[key]; by != nil && by != l && by.Level == l.Level && !reflect.DeepEqual(old.Interface(), v.Interface()) {
			m.e.Overruled = append(m.e.Overruled, Overruled{key, by.origin(), l.origin(), "set by both"})
		}
		old.Set(v)
		m.setBy[key] = l
		m.e.from[key] = Setting{Key: key, Origin: l.origin()}
	}
}

// clamp moves a value into a layer's bounds.
func (m *merging) clamp(l *Layer, key string) {
	field := reflect.ValueOf(&m.e.Settings).Elem().FieldByIndex(keys[key])
	have, _ := number(field.Elem())
	c := l.Clamp[key]
	lo, hi := c.bounds(key)
	want := min(max(have, lo), hi)
	if want == have {
		return
	}
	set := m.e.from[key]
	if set.Asked == "" {
		set.Asked = text(field.Elem())
	}
	set.Clamped = l.origin()
	m.e.from[key] = set
	fresh := reflect.New(field.Type().Elem())
	fresh.Elem().SetInt(want)
	field.Set(fresh)
}

// number returns the value of a key that can be bounded.
func number(v reflect.Value) (int64, bool) {
	if v.Kind() == reflect.Int || v.Kind() == reflect.Int64 {
		return v.Int(), true
	}
	return 0, false
}

func text(v reflect.Value) string { return fmt.Sprint(v.Interface()) }

// parse reads a bound in the text that a key takes.
func parse(key, s string) (int64, error) {
	if fieldType(key) == reflect.TypeFor[window.Duration]() {
		d, err := window.ParseDuration(s)
		return int64(d), err
	}
	n, err := strconv.Atoi(s)
	return int64(n), err
}

func fieldType(key string) reflect.Type {
	return reflect.TypeFor[Settings]().FieldByIndex(keys[key]).Type.Elem()
}

func (c Clamp) check(path, key string) error {
	if _, known := keys[key]; !known {
		return fault(path, "no setting is named %q", key)
	}
	if k := fieldType(key).Kind(); k != reflect.Int && k != reflect.Int64 {
		return fault(path, "%s is neither a duration nor a number", key)
	}
	for at, s := range map[string]string{".min": c.Min, ".max": c.Max} {
		if s != "" {
			if _, err := parse(key, s); err != nil {
				return fault(path+at, "%q is not what %s takes", s, key)
			}
		}
	}
	if lo, hi := c.bounds(key); lo > hi {
		return fault(path, "min %s is more than max %s", c.Min, c.Max)
	}
	return nil
}

// bounds returns the bounds of a clamp that was checked.
func (c Clamp) bounds(key string) (lo, hi int64) {
	lo, hi = -1<<63, 1<<63-1
	if c.Min != "" {
		lo, _ = parse(key, c.Min)
	}
	if c.Max != "" {
		hi, _ = parse(key, c.Max)
	}
	return lo, hi
}

// defaults is the layer below all others: what happens when nobody says anything.
func defaults() Layer {
	always, urgent, never := Always, Urgent, Never
	no, yes, zero := false, true, 0
	none, none2, none3 := window.Duration(0), window.Duration(0), window.Duration(0)
	each, total, count := window.Duration(8*hour), window.Duration(3*window.Dayspan), 5
	within, boots := window.Duration(10*minute), 2
	empty, empty2, warn := "", "", "warn"
	rule := DefaultRule()
	people := []Gate{WindowGate, DeferGate, BusyGate, SlotGate}
	return Layer{Level: Default, Settings: Settings{
		Windows:   []window.Window{},
		Deadline:  Deadline{&none, &none2},
		Defer:     Deferral{&each, &total, &count},
		Fetch:     Links{&always, &always, &always, &urgent, &never},
		Activate:  Links{&always, &always, &always, &always, &always},
		Slot:      &empty,
		Busy:      Busy{&no, &yes, &yes, &none3},
		Power:     Power{&no, &zero},
		When:      &empty2,
		Gates:     &rule,
		Emergency: people,
		Hurry:     []Gate{WindowGate, DeferGate, BusyGate},
		Verify:    Verify{&within, &boots},
		Offline:   Offline{&none, &warn},
	}}
}
