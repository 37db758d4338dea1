package policy

import (
	"errors"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/rollout/offer"
)

const document = `level: region
name: emea
seq: 812
settings:
  windows:
    - {name: weekend, days: [Sat, Sun], start: "01:00", duration: 4h, zone: endpoint}
    - nth: {n: 2, day: Tue, offset: 2}
      start: "22:00"
      duration: 1d
      zone: Europe/Zurich
      mode: mandatory
  deadline: {after: 7d, grace: 48h}
  activate: {vpn: wanted, metered: critical}
  power: {battery: 40}
  when: facts.idleSeconds > 600 || deadline.passed
  gates:
    all:
      - gate: link
      - any: [{gate: deadline}, {all: [{gate: window}, {gate: busy}]}]
  emergency: []
severity:
  critical:
    deadline: {after: 1d}
lock: [when]
clamp:
  deadline.after: {max: 14d}
  power.battery: {min: 20}
`

// TestYAML: the types decode from YAML as they stand, and a fault's path is a path in the document.
func TestYAML(t *testing.T) {
	var l Layer
	if err := yaml.NewDecoder(strings.NewReader(document), yaml.Strict()).Decode(&l); err != nil {
		t.Fatal(err)
	}
	p, err := Compile([]Layer{l})
	if err != nil {
		t.Fatal(err)
	}
	e := p.For(offer.Critical)
	if e.Settings.Deadline.After.String() != "1d" || e.windows.Len() != 2 || e.Settings.Emergency == nil || len(e.Settings.Emergency) != 0 {
		t.Errorf("%+v", e.Settings)
	}
	spoiled := strings.Replace(document, "zone: Europe/Zurich", "zone: Europe/Zuerich", 1)
	l = Layer{}
	if err := yaml.NewDecoder(strings.NewReader(spoiled), yaml.Strict()).Decode(&l); err != nil {
		t.Fatal(err)
	}
	var fault *namespace.Error
	if !errors.As(l.Check(), &fault) {
		t.Fatal("Europe/Zuerich is a zone")
	}
	at, err := yaml.PathString(fault.Subject)
	if err != nil {
		t.Fatal(err)
	}
	shown, err := at.AnnotateSource([]byte(spoiled), false)
	if err != nil || !strings.Contains(string(shown), "> 10 |") {
		t.Errorf("%s leads to\n%s %v", fault.Subject, shown, err)
	}
	if err := yaml.NewDecoder(strings.NewReader("level: global\nsetings: {}\n"), yaml.Strict()).Decode(&l); err == nil {
		t.Error("an unknown key is accepted")
	}
}
