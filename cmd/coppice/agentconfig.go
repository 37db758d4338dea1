package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"coppice.dev/coppice/internal/disk"
	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/rollout/offer"
	"coppice.dev/coppice/rollout/policy"
)

// agentFile is the YAML of coppice agent.
type agentFile struct {
	ID       string           `yaml:"id"`
	Origins  []string         `yaml:"origins"`
	Cache    string           `yaml:"cache"`
	Trust    string           `yaml:"trust"`
	State    string           `yaml:"state"`
	Spool    string           `yaml:"spool"`
	LockFile string           `yaml:"lockFile"`
	Mounts   []agentMountYAML `yaml:"mounts"`
	Policy   []any            `yaml:"policy"`
}

type agentMountYAML struct {
	Channel string      `yaml:"channel"`
	Dir     string      `yaml:"dir"`
	Poll    string      `yaml:"poll"`
	Probes  []probeYAML `yaml:"probes"`
}

type probeYAML struct {
	Name    string   `yaml:"name"`
	Command []string `yaml:"command"`
	Timeout string   `yaml:"timeout"`
}

// agentProbe is a command that is to succeed inside a version.
type agentProbe struct {
	Name    string        `json:"name"`
	Command []string      `json:"command"`
	Timeout time.Duration `json:"timeout"`
}

// agentMount is what the agent knows of one mount: part of a request to the daemon.
type agentMount struct {
	ID       string         `json:"id"`
	State    string         `json:"state"` // file
	Report   string         `json:"report,omitempty"`
	LockFile string         `json:"lockFile,omitempty"`
	Layers   []policy.Layer `json:"layers,omitempty"`
	Probes   []agentProbe   `json:"probes,omitempty"`
}

// agentConfig is a checked file of the agent.
type agentConfig struct {
	origins []string
	cache   string // "" for the usual one
	trust   []byte
	mounts  []agentMounted
}

type agentMounted struct {
	channel, dir string
	poll         time.Duration
	agentMount
}

// Defaults and bounds of the agent's file.
const (
	agentStateDir    = "/var/lib/coppice/agent"
	probeTimeout     = 30 * time.Second
	probeTimeoutMax  = time.Hour        // longer than any policy's verify.within is sensible
	agentMountsMax   = 64               // as a report holds
	agentPollMin     = time.Second      // a fleet that asks more often is a flood
	agentPollDefault = 30 * time.Second // as of coppice mount
)

// readAgentConfig reads and checks the agent's file. Kinds: NotExist, Denied, Invalid with file and line.
func readAgentConfig(name string) (c agentConfig, err error) {
	b, err := os.ReadFile(name)
	if err != nil {
		return c, disk.Error("read", name, err)
	}
	f, y := yamlFile{name: name}, agentFile{State: agentStateDir}
	if err := f.decode(b, &y); err != nil {
		return c, err
	}
	switch {
	case len(y.Origins) == 0:
		return c, f.at("$", usage("origins: none is named"))
	case y.Trust == "":
		return c, namespace.WithHint(f.at("$", usage("trust: the agent trusts nobody at first contact")), "a copy of the origin's ref/trust/root, brought by another way")
	case len(y.Mounts) == 0 || len(y.Mounts) > agentMountsMax:
		return c, f.at("$", usage("mounts: %d, want 1 to %d", len(y.Mounts), agentMountsMax))
	}
	if y.ID == "" {
		if y.ID, err = machineID(); err != nil {
			return c, f.at("$", err)
		}
	}
	if _, err := offer.Bucket("", y.ID); err != nil {
		return c, f.at("$.id", err)
	}
	if c.trust, err = os.ReadFile(y.Trust); err != nil {
		return c, f.at("$.trust", disk.Error("read", y.Trust, err))
	}
	layers, err := y.layers(&f)
	if err != nil {
		return c, err
	}
	c.origins, c.cache = y.Origins, y.Cache
	base := agentMount{ID: y.ID, LockFile: y.LockFile, Layers: layers}
	seen := map[string]int{}
	for i, m := range y.Mounts {
		at := fmt.Sprintf("$.mounts[%d]", i)
		one, err := m.check(&f, at, base)
		if err != nil {
			return c, err
		}
		if j, twice := seen[one.dir]; twice {
			return c, f.at(at+".dir", usage("%s is that of mounts[%d] already", one.dir, j))
		}
		seen[one.dir] = i
		one.State = filepath.Join(y.State, agentFileName(one.channel, one.dir)+".json")
		if y.Spool != "" {
			one.Report = filepath.Join(y.Spool, agentFileName(one.channel, one.dir)+".report.json")
		}
		c.mounts = append(c.mounts, one)
	}
	return c, nil
}

// agentFileName is a readable name that no two mounts share.
func agentFileName(channel, dir string) string {
	return strings.ReplaceAll(channel, "/", "-") + "-" + namespace.Sum([]byte(channel+"\x00"+dir)).Short()
}

// machineID derives an id from that of the machine, which itself is not to be told to others.
func machineID() (string, error) {
	b, err := os.ReadFile("/etc/machine-id")
	if err != nil || len(bytes.TrimSpace(b)) == 0 {
		return "", namespace.WithHint(usage("id: none is given, and /etc/machine-id has none"), "`systemd-machine-id-setup` makes one, or write id: NAME")
	}
	return "machine-" + namespace.Sum(append([]byte("coppice endpoint\x00"), bytes.TrimSpace(b)...)).Short(), nil
}

// layers reads the policy by the names that it has in JSON, as when it is published.
func (y *agentFile) layers(f *yamlFile) ([]policy.Layer, error) {
	var all []policy.Layer
	for i, raw := range y.Policy {
		at := fmt.Sprintf("$.policy[%d]", i)
		b, err := json.Marshal(raw)
		if err != nil {
			return nil, f.at(at, usage("%v", err))
		}
		var l policy.Layer
		dec := json.NewDecoder(bytes.NewReader(b))
		dec.DisallowUnknownFields()
		if err := dec.Decode(&l); err != nil {
			return nil, f.at(at, namespace.E(namespace.Invalid, "read", "policy", err))
		}
		if err := l.Check(); err != nil {
			return nil, f.at(at, err)
		}
		all = append(all, l)
	}
	if _, err := policy.Compile(all); err != nil {
		return nil, f.at("$.policy", err)
	}
	return all, nil
}

func (y *agentMountYAML) check(f *yamlFile, at string, base agentMount) (agentMounted, error) {
	m := agentMounted{channel: y.Channel, poll: agentPollDefault, agentMount: base}
	if err := namespace.CheckName(y.Channel); err != nil {
		return m, f.at(at+".channel", err)
	}
	if !filepath.IsAbs(y.Dir) {
		return m, f.at(at+".dir", usage("dir %q: want an absolute path", y.Dir))
	}
	var err error
	if m.dir, err = mountPoint(y.Dir); err != nil {
		return m, f.at(at+".dir", err)
	}
	if y.Poll != "" {
		if m.poll, err = time.ParseDuration(y.Poll); err != nil || m.poll < agentPollMin {
			return m, f.at(at+".poll", usage("poll %q: want a duration of %s at least", y.Poll, agentPollMin))
		}
	}
	for i, p := range y.Probes {
		pat := fmt.Sprintf("%s.probes[%d]", at, i)
		one := agentProbe{p.Name, p.Command, probeTimeout}
		if p.Name == "" || len(p.Command) == 0 {
			return m, f.at(pat, usage("a probe has a name and a command"))
		}
		if p.Timeout != "" {
			if one.Timeout, err = time.ParseDuration(p.Timeout); err != nil || one.Timeout <= 0 || one.Timeout > probeTimeoutMax {
				return m, f.at(pat+".timeout", usage("timeout %q: want a duration up to %s", p.Timeout, probeTimeoutMax))
			}
		}
		m.Probes = append(m.Probes, one)
	}
	return m, nil
}
