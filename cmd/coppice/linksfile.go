package main

import (
	"fmt"
	"net/netip"
	"net/url"
	"os"
	"path"
	"slices"
	"strings"

	"coppice.dev/coppice/internal/disk"
	"coppice.dev/coppice/internal/netwatch"
	"coppice.dev/coppice/namespace"
)

// linkPolicy says what a class of link is used for.
type linkPolicy struct {
	Background bool     `json:"background"`        // fetch what nobody waits for
	Rate       int64    `json:"rate,omitempty"`    // of that, in bytes a second; 0: no bound
	Sources    []string `json:"sources,omitempty"` // which sources, by location or host; none: all
}

// linkRules are what a file of links, or the flags, say; or the defaults.
type linkRules struct {
	Config  netwatch.Config               `json:"config"`
	Classes map[netwatch.Class]linkPolicy `json:"classes"`
}

// defaultRules leave metered links alone, and use the others.
func defaultRules() linkRules {
	return linkRules{Classes: map[netwatch.Class]linkPolicy{
		netwatch.LAN: {Background: true}, netwatch.VPN: {Background: true}, netwatch.Internet: {Background: true},
		netwatch.Metered: {}, netwatch.Offline: {},
	}}
}

// linksFile is the YAML of --links.
type linksFile struct {
	Class   string                    `yaml:"class"`
	LAN     []string                  `yaml:"lan"`
	VPN     []string                  `yaml:"vpn"`
	Metered []string                  `yaml:"metered"`
	Classes map[string]linkPolicyYAML `yaml:"classes"`
}

type linkPolicyYAML struct {
	Background *bool    `yaml:"background"`
	Rate       string   `yaml:"rate"`
	Sources    []string `yaml:"sources"`
}

// rateMin is the smallest rate that brings one request's window within a fetch's bound.
const rateMin = 32 << 10

// readLinks reads a file of links over the defaults; "" is none. class, if not "", is --link-class.
// origins are the sources there are. Kinds: NotExist, Denied, Invalid with file and line.
func readLinks(name, class string, origins []string) (linkRules, error) {
	rules := defaultRules()
	if name != "" {
		b, err := os.ReadFile(name)
		if err != nil {
			return rules, disk.Error("read", name, err)
		}
		if err := rules.parse(name, b, origins); err != nil {
			return rules, err
		}
	}
	if class == "" {
		return rules, nil
	}
	c, err := netwatch.ParseClass(class)
	rules.Config.Force = &c
	return rules, err
}

// parse reads the content of a file of links.
func (r *linkRules) parse(name string, b []byte, origins []string) error {
	f := yamlFile{name: name}
	var y linksFile
	if err := f.decode(b, &y); err != nil {
		return err
	}
	if y.Class != "" && y.Class != "auto" {
		c, err := netwatch.ParseClass(y.Class)
		if err != nil {
			return f.at("$.class", err)
		}
		r.Config.Force = &c
	}
	for i, s := range y.LAN {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return f.at(fmt.Sprintf("$.lan[%d]", i), namespace.E(namespace.Invalid, "read", "prefix", err))
		}
		r.Config.LAN = append(r.Config.LAN, p.Masked())
	}
	for key, patterns := range map[string][]string{"vpn": y.VPN, "metered": y.Metered} {
		for i, p := range patterns {
			if _, err := path.Match(p, ""); err != nil {
				return f.at(fmt.Sprintf("$.%s[%d]", key, i), namespace.E(namespace.Invalid, "read", "pattern "+p, err))
			}
		}
	}
	r.Config.VPNIfaces, r.Config.MeteredIfaces = y.VPN, y.Metered
	for key, p := range y.Classes {
		at := "$.classes." + key
		c, err := netwatch.ParseClass(key)
		if err == nil && c == netwatch.Offline {
			err = usage("there is nothing to say of offline")
		}
		if err != nil {
			return f.at(at, err)
		}
		if r.Classes[c], err = p.policy(r.Classes[c], origins); err != nil {
			return f.at(at, err)
		}
	}
	return nil
}

// policy lays what a file says of a class over a default.
func (y linkPolicyYAML) policy(p linkPolicy, origins []string) (linkPolicy, error) {
	if y.Background != nil {
		p.Background = *y.Background
	}
	rate, err := parseSize(y.Rate)
	if err == nil && rate != 0 && rate < rateMin {
		err = usage("a rate of %s a second; at least 32K, or background: false", y.Rate)
	}
	if err != nil {
		return p, err
	}
	p.Rate, p.Sources = rate, y.Sources
	for _, s := range y.Sources {
		if !slices.ContainsFunc(origins, func(o string) bool { return isSource(o, s) }) {
			return p, usage("%s is none of the origins (%s)", s, strings.Join(origins, ", "))
		}
	}
	return p, nil
}

// isSource reports whether a location is the one that a rule names, by location or host.
func isSource(location, named string) bool {
	if strings.TrimSuffix(location, "/") == strings.TrimSuffix(named, "/") {
		return true
	}
	u, err := url.Parse(location)
	return err == nil && u.Host != "" && (u.Host == named || u.Hostname() == named)
}

// allows returns which sources a policy leaves, nil for all.
func (p linkPolicy) allows() func(location string) bool {
	if len(p.Sources) == 0 {
		return nil
	}
	return func(location string) bool {
		return slices.ContainsFunc(p.Sources, func(s string) bool { return isSource(location, s) })
	}
}
