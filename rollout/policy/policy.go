// Package policy says when an endpoint may change version: settings that an organisation lays over
// each other, from the whole fleet down to one machine, and the gates that follow from them.
//
// Three parts, each a value and a function of values:
//
//   - [Layer] and [Compile]: the settings of all layers become one [Effective] for each severity,
//     in which every value names the layer and the seq that set it.
//   - [Gate], [Rule] and [Effective.Answer]: eight gates, each open or closed at an instant for the
//     [Facts] of a machine, composed by AND and OR.
//   - [Effective.Explain]: which gates stand in the way, who set them, and when they could open.
//
// A gate that does not know is closed: a check that fails must not let an update through. What
// never may be skipped (a halt, a floor, a denied version) is no gate, and lies in rollout/endpoint.
package policy

import (
	"fmt"
	"slices"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/rollout/offer"
	"coppice.dev/coppice/rollout/window"
)

// Settings of one layer. A field that is nil is not set by it; a list that is there, even an empty
// one, replaces the list of the layers above. Keys are the JSON names joined by dots: "deadline.after".
type Settings struct {
	Windows  []window.Window `json:"windows,omitzero"`
	Deadline Deadline        `json:"deadline,omitzero"`
	Defer    Deferral        `json:"defer,omitzero"`
	Fetch    Links           `json:"fetch,omitzero"`    // over which links content is fetched ahead
	Activate Links           `json:"activate,omitzero"` // on which links a version may change
	Slot     *string         `json:"slot,omitzero"`     // pool whose lease is needed; "" needs none
	Busy     Busy            `json:"busy,omitzero"`
	Power    Power           `json:"power,omitzero"`
	When     *string         `json:"when,omitzero"`  // CEL over facts; "" asks nothing
	Gates    *Rule           `json:"gates,omitzero"` // how gates compose

	Emergency []Gate  `json:"emergency,omitzero"` // gates that severity emergency skips
	Hurry     []Gate  `json:"hurry,omitzero"`     // gates that a person's "now" skips
	Verify    Verify  `json:"verify,omitzero"`
	Offline   Offline `json:"offline,omitzero"`
}

// Deadline is the later of After since this endpoint first was offered a change, and Grace since it
// last became reachable. After 0: there is none.
type Deadline struct {
	After *window.Duration `json:"after,omitzero"`
	Grace *window.Duration `json:"grace,omitzero"`
}

// Deferral bounds how a person at the endpoint may put a change off: each time, in total, how often.
type Deferral struct {
	Each  *window.Duration `json:"each,omitzero"`
	Total *window.Duration `json:"total,omitzero"`
	Count *int             `json:"count,omitzero"`
}

// Links says what each class of link is good for.
type Links struct {
	LAN      *Use `json:"lan,omitzero"`
	VPN      *Use `json:"vpn,omitzero"`
	Internet *Use `json:"internet,omitzero"`
	Metered  *Use `json:"metered,omitzero"`
	Offline  *Use `json:"offline,omitzero"`
}

// Use is what a link is good for.
type Use string

// The uses. Wanted: if a person asked, or the deadline has passed. Urgent: for severity critical
// and above.
const (
	Always Use = "always"
	Wanted Use = "wanted"
	Urgent Use = "critical"
	Never  Use = "never"
)

// Busy says what keeps a machine from being changed, and for how long at Most since the version was
// ready (0: for ever).
type Busy struct {
	Sessions   *bool            `json:"sessions,omitzero"`
	Inhibitors *bool            `json:"inhibitors,omitzero"`
	LockFile   *bool            `json:"lockFile,omitzero"`
	Most       *window.Duration `json:"most,omitzero"`
}

// Power: with AC the mains is needed; else at least Battery percent, or the mains.
type Power struct {
	AC      *bool `json:"ac,omitzero"`
	Battery *int  `json:"battery,omitzero"`
}

// Verify bounds the proof of a new version: a verdict Within, and at most Boots unplanned restarts
// of the machine while it is looked at.
type Verify struct {
	Within *window.Duration `json:"within,omitzero"`
	Boots  *int             `json:"boots,omitzero"`
}

// Offline says how long a machine keeps running what it has without a fresh word from its channel
// (0: for ever), and what happens Then: "warn", "report" or "quarantine".
type Offline struct {
	After *window.Duration `json:"after,omitzero"`
	Then  *string          `json:"then,omitzero"`
}

// Level orders layers, from all machines to one.
type Level string

// The levels. Default is the program's own.
const (
	Default  Level = "default"
	Global   Level = "global"
	Region   Level = "region"
	Site     Level = "site"
	Group    Level = "group"
	Endpoint Level = "endpoint"
)

var levels = []Level{Default, Global, Region, Site, Group, Endpoint}

// Layer is the policy of one level: settings, more of them for a severity (the schedule of a tier),
// keys that lower layers may not set, and bounds of what they may set.
type Layer struct {
	Level    Level                       `json:"level"`
	Name     string                      `json:"name,omitempty"` // "emea"; none at the level global
	Seq      uint64                      `json:"seq"`
	Settings Settings                    `json:"settings,omitzero"`
	Severity map[offer.Severity]Settings `json:"severity,omitempty"`
	Lock     []string                    `json:"lock,omitempty"`
	Clamp    map[string]Clamp            `json:"clamp,omitempty"`
}

// Clamp bounds a duration or a number, in the text that the key takes; "" bounds nothing.
type Clamp struct {
	Min string `json:"min,omitempty"`
	Max string `json:"max,omitempty"`
}

// Bounds.
const (
	// LayersMax bounds the layers of one endpoint: a dozen groups besides the other levels.
	LayersMax = 32
	// RuleNodesMax and ruleDepthMax bound a rule; eight gates need no more.
	RuleNodesMax = 64
	ruleDepthMax = 8
	// BootsMax bounds unplanned restarts that are put up with: more is no proof of anything.
	BootsMax = 100
	// DeferCountMax bounds deferrals: State counts them in a byte.
	DeferCountMax = 200
)

// Origin is who set a value.
type Origin struct {
	Layer string `json:"layer"` // "region/emea"
	Seq   uint64 `json:"seq"`
}

// String returns "region/emea @ seq 812".
func (o Origin) String() string { return fmt.Sprintf("%s @ seq %d", o.Layer, o.Seq) }

func (l *Layer) origin() Origin {
	name := string(l.Level)
	if l.Name != "" {
		name += "/" + l.Name
	}
	return Origin{name, l.Seq}
}

// Check returns an error whose subject is the path of the first faulty field, "$.settings.when" for
// instance: a reader of YAML finds the line by it. Kinds: Invalid, Limit.
func (l *Layer) Check() error {
	switch {
	case !slices.Contains(levels, l.Level):
		return fault("$.level", "%q, want one of %v", l.Level, levels[1:])
	case l.Name == "" && l.Level != Global && l.Level != Default:
		return fault("$.name", "a layer of level %s is of some %s: name it", l.Level, l.Level)
	case l.Name != "" && namespace.CheckName(l.Name) != nil:
		return fault("$.name", "%q, want a name in lower case", l.Name)
	}
	if err := l.Settings.check("$.settings"); err != nil {
		return err
	}
	for _, sev := range sortedKeys(l.Severity) {
		if sev.Rank() < 0 {
			return fault("$.severity."+string(sev), "want one of %v", offer.Severities())
		}
		s := l.Severity[sev]
		if err := s.check("$.severity." + string(sev)); err != nil {
			return err
		}
	}
	for i, key := range l.Lock {
		if _, known := keys[key]; !known {
			return fault(fmt.Sprintf("$.lock[%d]", i), "no setting is named %q", key)
		}
	}
	for _, key := range sortedKeys(l.Clamp) {
		if err := l.Clamp[key].check("$.clamp.'"+key+"'", key); err != nil {
			return err
		}
	}
	return nil
}

func (s *Settings) check(path string) error {
	if _, err := window.Compile(s.Windows, path+".windows"); err != nil {
		return err
	}
	for at, list := range map[string][]Gate{".emergency": s.Emergency, ".hurry": s.Hurry} {
		for i, g := range list {
			if g.index() < 0 {
				return fault(fmt.Sprintf("%s%s[%d]", path, at, i), "no gate is named %q; there are %v", g, Gates())
			}
		}
	}
	for at, l := range map[string]Links{".fetch": s.Fetch, ".activate": s.Activate} {
		for i, u := range l.list() {
			if u != nil && *u != Always && *u != Wanted && *u != Urgent && *u != Never {
				return fault(path+at+"."+string(linkNames[i]), "%q, want always, wanted, critical or never", *u)
			}
		}
	}
	if s.When != nil && *s.When != "" {
		if _, err := CompileWhen(*s.When, path+".when"); err != nil {
			return err
		}
	}
	if s.Gates != nil {
		if _, err := s.Gates.compile(path + ".gates"); err != nil {
			return err
		}
	}
	if s.Slot != nil && *s.Slot != "" && namespace.CheckName(*s.Slot) != nil {
		return fault(path+".slot", "%q, want a pool's name in lower case", *s.Slot)
	}
	return s.checkNumbers(path)
}

func (s *Settings) checkNumbers(path string) error {
	within := func(key string, v *int, lo, hi int) error {
		if v != nil && (*v < lo || *v > hi) {
			return fault(path+"."+key, "%d, want %d to %d", *v, lo, hi)
		}
		return nil
	}
	if err := within("power.battery", s.Power.Battery, 0, 100); err != nil {
		return err
	}
	if err := within("verify.boots", s.Verify.Boots, 0, BootsMax); err != nil {
		return err
	}
	if err := within("defer.count", s.Defer.Count, 0, DeferCountMax); err != nil {
		return err
	}
	if w := s.Verify.Within; w != nil && *w <= 0 {
		return fault(path+".verify.within", "a verdict must come within some time")
	}
	if t := s.Offline.Then; t != nil && !slices.Contains([]string{"warn", "report", "quarantine"}, *t) {
		return fault(path+".offline.then", "%q, want warn, report or quarantine", *t)
	}
	return nil
}

func fault(path, format string, args ...any) error {
	return namespace.E(namespace.Invalid, "check policy", path, fmt.Errorf(format, args...))
}
