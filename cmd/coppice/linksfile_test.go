package main

import (
	"net/netip"
	"testing"

	"coppice.dev/coppice/internal/netwatch"
	"coppice.dev/coppice/namespace"
)

// parseLinks reads a file of links over the defaults.
func parseLinks(b []byte) (linkRules, error) {
	r := defaultRules()
	return r, r.parse("links.yaml", b, []string{"https://origin.example", "/srv/origin"})
}

func TestLinksFile(t *testing.T) {
	r, err := parseLinks([]byte(`
class: auto
lan: [192.0.2.7/24, "2001:db8::/32"]
vpn: [corp*]
metered: [usb0]
classes:
  vpn: {rate: 2M}
  metered: {background: true, rate: 32K, sources: [origin.example, /srv/origin/]}
`))
	if err != nil {
		t.Fatal(err)
	}
	vpn, metered, lan := r.Classes[netwatch.VPN], r.Classes[netwatch.Metered], r.Classes[netwatch.LAN]
	switch {
	case r.Config.Force != nil || len(r.Config.LAN) != 2 || r.Config.LAN[0] != netip.MustParsePrefix("192.0.2.0/24"):
		t.Errorf("the configuration: %+v", r.Config)
	case !vpn.Background || vpn.Rate != 2<<20 || vpn.allows() != nil:
		t.Errorf("vpn: %+v", vpn)
	case !metered.Background || metered.Rate != 32<<10 || !metered.allows()("https://origin.example/") || metered.allows()("https://other.example"):
		t.Errorf("metered: %+v", metered)
	case !lan.Background || lan.Rate != 0:
		t.Errorf("lan, of which nothing was said: %+v", lan)
	}
	if r, err := parseLinks([]byte("class: metered\n")); err != nil || r.Config.Force == nil || *r.Config.Force != netwatch.Metered {
		t.Errorf("a forced class: %+v, %v", r.Config, err)
	}
}

// Whatever is in a file of links, it is read or refused as the writer's mistake.
func FuzzLinksFile(f *testing.F) {
	for _, s := range []string{"", "class: metered", "lan: [10.0.0.0/8]\nvpn: ['tun*']", "classes: {vpn: {rate: 2M, sources: [origin.example]}}",
		"classes: {offline: {}}", "classes: {'a.b[': {}}", "lan: 10.0.0.0/8", "metered: ['[']", "classes:\n  lan:\n    rate: -1", "&a [*a]", "\x00", "lan: [~]"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := parseLinks(b)
		if err != nil && !namespace.IsKind(err, namespace.Invalid) {
			t.Errorf("%q: %v", b, err)
		}
		for c, p := range r.Classes {
			if err == nil && (p.Rate < 0 || p.Rate > 0 && p.Rate < rateMin || c > netwatch.LAN) {
				t.Errorf("%q: %v is %+v", b, c, p)
			}
		}
	})
}
