package world

import (
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/rollout/offer"
	"coppice.dev/coppice/rollout/policy"
)

// The hours of a day: offers and faults happen until quiet, then machines have time to settle.
const (
	offersEnd = 15 * time.Hour
	quiet     = 17 * time.Hour
	dayEnd    = 24 * time.Hour
)

// badness is how a version fails where it fails.
type badness uint8

const (
	fine badness = iota
	failsProbe
	hangs    // no verdict ever comes
	restarts // the machine goes down again and again
)

// version is one of those that the day publishes.
type version struct {
	offer.Target
	bad   badness
	share int // of a thousand machines, on which it is bad
}

// publication is an offer and when it is made.
type publication struct {
	at time.Duration
	offer.Offer
}

// script is what all machines of a world share.
type script struct {
	seed     uint64
	start    time.Time
	versions []version
	offers   []publication // offers[0] is in force at the start
	policies [zoneCount][kindCount]*policy.Policy
}

var zoneNames = [zoneCount]string{"UTC", "Europe/Zurich", "America/New_York", "Australia/Lord_Howe", "Europe/London", "Asia/Kathmandu"}

const zoneCount = 6

// days on which clocks change somewhere in zoneNames, and the Sunday that lasts two days' worth of
// trouble in none.
var changes = []string{"2026-03-29", "2026-10-25", "2026-03-08", "2026-11-01", "2026-04-05", "2026-10-04", "2026-06-14"}

// kind is which policy a machine is under; check.go knows each by itself, without the policy's text.
type kind uint8

const (
	free kind = iota
	night
	laptop
	pooled
	metered
	asked // by an expression
	office
	kindCount
)

var kindTexts = [kindCount]string{
	free:    `{"level":"global"}`,
	night:   `{"level":"global","settings":{"windows":[{"start":"01:00","duration":"4h","zone":"endpoint"}]}}`,
	laptop:  `{"level":"global","settings":{"busy":{"sessions":true},"power":{"battery":30},"deadline":{"after":"8h","grace":"1h"}}}`,
	pooled:  `{"level":"global","settings":{"slot":"pool"}}`,
	metered: `{"level":"global","settings":{"activate":{"metered":"critical","offline":"never"}}}`,
	asked:   `{"level":"global","settings":{"when":"facts.link != 'vpn' && !facts.inhibited"}}`,
	office:  `{"level":"global","settings":{"windows":[{"start":"08:00","duration":"10h","zone":"endpoint","mode":"deny"}]}}`,
}

// shared is what all worlds share, made once.
var shared = sync.OnceValues(func() (*common, error) {
	c := new(common)
	for k, text := range kindTexts {
		var l policy.Layer
		if err := json.Unmarshal([]byte(text), &l); err != nil {
			return nil, err
		}
		p, err := policy.Compile([]policy.Layer{l})
		if err != nil {
			return nil, err
		}
		c.policies[k] = p
	}
	for i, name := range zoneNames {
		loc, err := time.LoadLocation(name)
		if err != nil {
			return nil, err
		}
		c.zones[i] = loc
	}
	for i := range c.targets {
		v := namespace.Version{Name: "world", N: uint64(i + 1)}
		c.targets[i] = offer.Target{Version: v, Manifest: namespace.Sum([]byte(v.String())), Content: v.N}
	}
	return c, nil
})

type common struct {
	policies [kindCount]*policy.Policy
	zones    [zoneCount]*time.Location
	targets  [16]offer.Target
}

func newScript(seed uint64) (*script, error) {
	c, err := shared()
	if err != nil {
		return nil, err
	}
	var d dice
	d.seed(seed, 0)
	s := &script{seed: seed}
	date := changes[d.in(len(changes))]
	if s.start, err = time.Parse(time.DateOnly, date); err != nil {
		return nil, err
	}
	s.start = s.start.Add(-time.Duration(d.in(14)) * time.Hour) // so that changes come at all hours
	for z, loc := range c.zones {
		for k, p := range c.policies {
			s.policies[z][k] = p
			if k := kind(k); k == night || k == office {
				s.policies[z][k] = p.Prepare(s.start, s.start.Add(dayEnd+8*time.Hour), loc)
			}
		}
	}
	s.publish(c, &d)
	for i := range s.offers {
		if err := s.offers[i].Check(); err != nil {
			return nil, fmt.Errorf("offer %d: %w", i, err)
		}
	}
	return s, nil
}

// publish writes the day's offers.
func (s *script) publish(c *common, d *dice) {
	add := func(at time.Duration, o offer.Offer) {
		o.Format, o.Channel, o.Seq, o.PrevSeq, o.Salt = offer.Format, "world", uint64(len(s.offers)+1), uint64(len(s.offers)), "salt"
		s.offers = append(s.offers, publication{at, o})
	}
	release := func() offer.Target {
		v := version{Target: c.targets[len(s.versions)]}
		if len(s.versions) > 0 && d.one(3) {
			v.bad, v.share = badness(1+d.in(3)), []int{200, 1000, 20}[d.in(3)]
		}
		s.versions = append(s.versions, v)
		return v.Target
	}
	add(0, offer.Offer{Target: release(), Floor: 1, Severity: offer.Routine})
	at := time.Hour
	for n := 2 + d.in(6); n > 0 && at < offersEnd; n-- {
		last := s.offers[len(s.offers)-1].Offer
		sev := offer.Severities()[d.in(4)]
		o := offer.Offer{Target: last.Target, Base: last.Base, Floor: last.Floor, Severity: sev, Reason: "world"}
		switch d.in(10) {
		case 0, 5: // back to any earlier version, with the exception if it must be
			o.Target, o.Base = s.versions[d.in(len(s.versions))].Target, offer.Target{}
			o.RollbackOf = last.Seq
			if o.Target.Content < o.Floor {
				o.Signers, o.Exception = []string{"ann", "bob"}, []string{"bob"}
			}
		case 1:
			o.Halt = true
		case 2: // a security fix: nothing older from now on
			o.Target, o.Base = release(), offer.Target{}
			o.Floor = o.Target.Content
		case 3, 4: // a canary stage
			o.Base, o.Target = last.Target, release()
			o.Stages, o.Open = []offer.Stage{{Name: "canary", PerMillion: 200_000}, {Name: "all", PerMillion: 1_000_000}}, 1
			o.Floor = min(o.Floor, o.Base.Content)
		default:
			o.Target, o.Base = release(), offer.Target{}
		}
		if d.one(8) {
			o.NotBefore = s.start.Add(at + d.between(time.Hour, 3*time.Hour))
		}
		if d.one(12) {
			o.Expires = s.start.Add(at + d.between(4*time.Hour, 30*time.Hour))
		}
		if o.Target.Content < o.Floor && len(o.Exception) == 0 || !o.Base.IsZero() && o.Base.Content < o.Floor && len(o.Exception) == 0 {
			o.Signers, o.Exception = []string{"ann"}, []string{"ann"}
		}
		add(at, o)
		at += d.between(5*time.Minute, 6*time.Hour)
	}
}

// index returns which version a target is; -1: none.
func (s *script) index(content uint64) int { return int(content) - 1 }

// badOn reports how a version behaves on a machine: the same each time it is tried there.
func (s *script) badOn(v, machine int) badness {
	x := &s.versions[v]
	if x.bad == fine {
		return fine
	}
	var d dice
	d.seed(s.seed^0xbad, uint64(machine)<<8|uint64(v))
	if d.in(1000) < x.share {
		return x.bad
	}
	return fine
}
