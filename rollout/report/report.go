// Package report is what an endpoint tells of itself: a document for a file and for a control server.
//
// A report is a register, not an event: it says how things are, whole, and takes the place of the one
// before. Losing one, sending one twice or sending two in the wrong order does no harm, because
// [Report.Supersedes] orders those of one boot by their counter, and those of two boots by their time.
//
// What is received comes from machines that may be broken or hostile: [Decode] bounds everything.
package report

import (
	"fmt"
	"regexp"
	"time"
	"unicode/utf8"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/rollout/endpoint"
	"coppice.dev/coppice/rollout/offer"
)

// Format is the version of the encoding.
const Format = 1

// Bounds of a report.
const (
	// ChannelsMax bounds the channels of one endpoint: more trees than anybody mounts.
	ChannelsMax = 64
	// FactsMax bounds facts: an inventory and the labels that a policy may look at.
	FactsMax = 512
	// FactBytesMax bounds a key and, separately, a value: a line.
	FactBytesMax = 256
	// TextBytesMax bounds a detail, a message and a reason: a paragraph.
	TextBytesMax = 1024
	// OldUsersMax bounds the processes named: a screen of them; OldUsersCount has all.
	OldUsersMax = 32
	// BytesMax bounds an encoded report. An agent tells the newest denials only, so that a usual
	// one is a few KB.
	BytesMax = 1 << 20
	// DeniedMax bounds the denials that are told of a channel; the newest are.
	DeniedMax = 16
	// PromiseMax bounds how long an endpoint may say it will be silent.
	PromiseMax = 30 * 24 * time.Hour
)

// Report is the state of one endpoint. The zero values of optional fields are not encoded.
type Report struct {
	Format   int    `json:"format"`
	Endpoint string `json:"endpoint"` // its id
	// Boot is the UUID of the machine's boot; Counter rises with each report in it. The two name a
	// report: who receives one twice has received it once.
	Boot    string    `json:"boot"`
	Counter uint64    `json:"counter"` // from 1
	At      time.Time `json:"at"`      // by the endpoint's clock, UTC
	// NextBy is a promise: the endpoint is heard of again by then, or it is lost.
	NextBy time.Time `json:"nextBy"`
	// FactsDigest is of all facts. Facts itself may be left out where the receiver has facts with
	// that digest already.
	FactsDigest namespace.Digest  `json:"factsDigest,omitzero"`
	Facts       map[string]string `json:"facts,omitempty"`
	Channels    []Channel         `json:"channels,omitempty"` // in the order of their names, then directories
}

// Channel is where the endpoint is with one channel.
type Channel struct {
	Channel string         `json:"channel"`
	Dir     string         `json:"dir"`
	Seq     uint64         `json:"seq"` // observed: the highest accepted; 0: none yet
	Phase   endpoint.Phase `json:"phase"`
	Code    endpoint.Code  `json:"code,omitempty"`
	Detail  string         `json:"detail,omitempty"`
	// LastError is of the channel's source; "" if it answered last.
	LastError string `json:"lastError,omitempty"`

	Active   endpoint.Generation `json:"active,omitzero"`
	Desired  endpoint.Generation `json:"desired,omitzero"`
	LastGood endpoint.Generation `json:"lastGood,omitzero"`

	Conditions []endpoint.Condition `json:"conditions,omitempty"`
	Denied     []endpoint.Denial    `json:"denied,omitempty"` // the newest
	// OfflineReady: all that the mount's scope names is here. nil was not measured, as below.
	OfflineReady  *bool     `json:"offlineReady,omitempty"`
	OldUsers      []OldUser `json:"oldUsers,omitempty"`
	OldUsersCount *int      `json:"oldUsersCount,omitempty"`
	Drift         *int      `json:"drift,omitempty"` // files that differ from what they should be
}

// OldUser is a process that still runs files of an older generation.
type OldUser struct {
	PID  int    `json:"pid"`
	Name string `json:"name"`
	Unit string `json:"unit,omitempty"`
}

// Supersedes reports whether r is newer than q, a report of the same endpoint. Nothing supersedes
// itself, and of two reports at most one supersedes the other.
func (r *Report) Supersedes(q *Report) bool {
	if r.Boot == q.Boot {
		return r.Counter > q.Counter
	}
	return r.At.After(q.At)
}

// DigestFacts returns the digest that stands for facts; zero for none.
func DigestFacts(facts map[string]string) (namespace.Digest, error) {
	if len(facts) == 0 {
		return namespace.Digest{}, nil
	}
	b, err := namespace.EncodeRecord(facts)
	if err != nil {
		return namespace.Digest{}, err
	}
	return namespace.Sum(b), nil
}

// Encode returns the canonical bytes of a report that Check accepts. Format is filled in.
func (r *Report) Encode() ([]byte, error) {
	c := *r
	c.Format = Format
	if err := c.Check(); err != nil {
		return nil, err
	}
	b, err := namespace.EncodeRecord(&c)
	if err == nil && len(b) > BytesMax {
		err = namespace.E(namespace.Limit, "encode report", r.Endpoint, fmt.Errorf("%d bytes, at most %d", len(b), BytesMax))
	}
	return b, err
}

// Decode reads canonical bytes and checks them; subject names their source. Kinds: Corrupt,
// Invalid, Limit.
func Decode(b []byte, subject string) (*Report, error) {
	r := new(Report)
	if err := namespace.DecodeRecord(b, BytesMax, subject, r); err != nil {
		return nil, err
	}
	if err := r.Check(); err != nil {
		return nil, fmt.Errorf("%s: %w", subject, err)
	}
	return r, nil
}

var bootID = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)

// Check returns an error whose subject is the path of the first faulty field. Kinds: Invalid; Limit
// for what is too large.
func (r *Report) Check() error {
	_, idErr := offer.Bucket("", r.Endpoint) // the rules of an id, in one place
	facts, err := DigestFacts(r.Facts)
	switch {
	case err != nil:
		return err
	case r.Format != Format:
		return invalid("$.format", "format %d, this program knows %d", r.Format, Format)
	case idErr != nil:
		return namespace.E(namespace.Invalid, "check report", "$.endpoint", idErr)
	case !bootID.MatchString(r.Boot):
		return invalid("$.boot", "%.40q is no UUID", r.Boot)
	case r.Counter == 0:
		return invalid("$.counter", "counts from 1")
	case r.At.IsZero():
		return invalid("$.at", "missing")
	case r.NextBy.Before(r.At) || r.NextBy.Sub(r.At) > PromiseMax:
		return invalid("$.nextBy", "%s after the report, want 0 to %s", r.NextBy.Sub(r.At), PromiseMax)
	case len(r.Facts) > FactsMax:
		return limit("$.facts", len(r.Facts), FactsMax)
	case len(r.Facts) > 0 && facts != r.FactsDigest:
		return invalid("$.factsDigest", "is not that of the facts")
	case len(r.Channels) > ChannelsMax:
		return limit("$.channels", len(r.Channels), ChannelsMax)
	}
	for k, v := range r.Facts {
		if k == "" || len(k) > FactBytesMax || len(v) > FactBytesMax {
			return limit(fmt.Sprintf("$.facts[%.40q]", k), max(len(k), len(v)), FactBytesMax)
		}
	}
	for i := range r.Channels {
		if err := r.Channels[i].check(fmt.Sprintf("$.channels[%d]", i)); err != nil {
			return err
		}
		if i > 0 && !less(&r.Channels[i-1], &r.Channels[i]) {
			return invalid(fmt.Sprintf("$.channels[%d]", i), "out of order, or there twice")
		}
	}
	return nil
}

func less(a, b *Channel) bool {
	return a.Channel < b.Channel || a.Channel == b.Channel && a.Dir < b.Dir
}

func (c *Channel) check(at string) error {
	if err := (namespace.RefName{Kind: namespace.ChannelRef, Name: c.Channel}).Check(); err != nil {
		return namespace.E(namespace.Invalid, "check report", at+".channel", err)
	}
	switch {
	case c.Phase == endpoint.Lost:
		return invalid(at+".phase", "no endpoint says of itself that it is lost")
	case len(c.Conditions) > len(endpoint.Types()):
		return limit(at+".conditions", len(c.Conditions), len(endpoint.Types()))
	case len(c.Denied) > DeniedMax:
		return limit(at+".denied", len(c.Denied), DeniedMax)
	case len(c.OldUsers) > OldUsersMax:
		return limit(at+".oldUsers", len(c.OldUsers), OldUsersMax)
	case c.Drift != nil && *c.Drift < 0 || c.OldUsersCount != nil && *c.OldUsersCount < len(c.OldUsers):
		return invalid(at, "a count that nothing has")
	}
	texts := []string{c.Dir, string(c.Code), c.Detail, c.LastError}
	for _, x := range c.Conditions {
		texts = append(texts, string(x.Type), string(x.Status), x.Reason, x.Message)
	}
	for _, x := range c.Denied {
		texts = append(texts, x.Reason)
	}
	for _, x := range c.OldUsers {
		texts = append(texts, x.Name, x.Unit)
	}
	for _, t := range texts {
		if len(t) > TextBytesMax {
			return limit(at, len(t), TextBytesMax)
		}
		if !utf8.ValidString(t) {
			return invalid(at, "text that is not UTF-8")
		}
	}
	return nil
}

func invalid(path, format string, args ...any) error {
	return namespace.E(namespace.Invalid, "check report", path, fmt.Errorf(format, args...))
}

func limit(path string, n, most int) error {
	return namespace.E(namespace.Limit, "check report", path, fmt.Errorf("%d, at most %d", n, most))
}
