package netwatch_test

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"coppice.dev/coppice/internal/netwatch"
	"coppice.dev/coppice/namespace"
)

func TestClassify(t *testing.T) {
	eth := netwatch.Iface{Name: "eth0", Kind: "device", Usable: true}
	wg := netwatch.Iface{Name: "wg0", Kind: "wireguard", Usable: true}
	modem := netwatch.Iface{Name: "wwan0", Kind: "device", WWAN: true, Usable: true}
	down := netwatch.Iface{Name: "eth1", Kind: "device"}
	metered := netwatch.Metered
	over := func(i netwatch.Iface, target string) netwatch.Facts {
		f := netwatch.Facts{Route: &netwatch.Route{Iface: i, Source: netip.MustParseAddr("192.168.1.7")}}
		if target != "" {
			f.Target = netip.MustParseAddr(target)
		}
		return f
	}
	with := func(f netwatch.Facts, change func(*netwatch.Facts)) netwatch.Facts { change(&f); return f }
	office := netwatch.Config{LAN: []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")}}
	for name, c := range map[string]struct {
		facts netwatch.Facts
		conf  netwatch.Config
		want  netwatch.Class
		why   string
	}{
		"a directory":                  {netwatch.Facts{Local: true}, netwatch.Config{}, netwatch.LAN, "this machine"},
		"a directory, forced":          {netwatch.Facts{Local: true}, netwatch.Config{Force: &metered}, metered, "by hand"},
		"nothing":                      {netwatch.Facts{}, netwatch.Config{}, netwatch.Offline, "no default route"},
		"no route there":               {netwatch.Facts{Target: netip.MustParseAddr("10.1.1.1")}, netwatch.Config{}, netwatch.Offline, "no route to 10.1.1.1"},
		"no carrier":                   {over(down, "10.1.1.1"), netwatch.Config{}, netwatch.Offline, "eth1 is down"},
		"no carrier, forced":           {over(down, "10.1.1.1"), netwatch.Config{Force: &metered}, netwatch.Offline, "eth1 is down"},
		"forced":                       {over(eth, "10.1.1.1"), netwatch.Config{Force: &metered}, metered, "by hand"},
		"a name not looked up":         {over(eth, ""), netwatch.Config{}, netwatch.Internet, "a route over eth0"},
		"home wifi, public origin":     {over(eth, "198.51.100.4"), netwatch.Config{}, netwatch.Internet, "198.51.100.4 over eth0"},
		"a private origin":             {over(eth, "10.1.1.1"), netwatch.Config{}, netwatch.LAN, "private"},
		"a unique local origin":        {over(eth, "fd00::1"), netwatch.Config{}, netwatch.LAN, "private"},
		"public, but on this network":  {with(over(eth, "198.51.100.4"), func(f *netwatch.Facts) { f.Route.OnLink = true }), netwatch.Config{}, netwatch.LAN, "network of eth0"},
		"a configured prefix":          {over(eth, "203.0.113.9"), office, netwatch.LAN, "203.0.113.0/24"},
		"our address is configured":    {with(over(eth, ""), func(f *netwatch.Facts) { f.Route.Source = netip.MustParseAddr("203.0.113.77") }), office, netwatch.LAN, "this machine's 203.0.113.77"},
		"wireguard":                    {over(wg, "10.1.1.1"), netwatch.Config{}, netwatch.VPN, "tunnel (wireguard)"},
		"a vpn by name":                {over(eth, "10.1.1.1"), netwatch.Config{VPNIfaces: []string{"eth*"}}, netwatch.VPN, "configured"},
		"a modem":                      {over(modem, "10.1.1.1"), netwatch.Config{}, metered, "modem"},
		"a modem with a flat rate":     {with(over(modem, "10.1.1.1"), func(f *netwatch.Facts) { f.MeteredFlag = netwatch.No }), netwatch.Config{}, netwatch.LAN, "private"},
		"a phone's hotspot":            {with(over(eth, "10.1.1.1"), func(f *netwatch.Facts) { f.MeteredFlag = netwatch.Yes }), netwatch.Config{}, metered, "NetworkManager"},
		"a tunnel over a hotspot":      {with(over(wg, "10.1.1.1"), func(f *netwatch.Facts) { f.MeteredFlag = netwatch.Yes }), netwatch.Config{}, metered, "NetworkManager"},
		"metered by name":              {over(eth, "10.1.1.1"), netwatch.Config{MeteredIfaces: []string{"eth0"}}, metered, "configured"},
		"a pattern that is no pattern": {over(eth, "10.1.1.1"), netwatch.Config{VPNIfaces: []string{"["}}, netwatch.LAN, "private"},
	} {
		got, why := netwatch.Classify(c.facts, c.conf)
		if got != c.want || !strings.Contains(why, c.why) {
			t.Errorf("%s: %v (%s), want %v (…%s…)", name, got, why, c.want, c.why)
		}
	}
}

func TestClassNames(t *testing.T) {
	var names []string
	for c := netwatch.Offline; c <= netwatch.LAN; c++ {
		back, err := netwatch.ParseClass(c.String())
		if err != nil || back != c {
			t.Errorf("%v reads as %v, %v", c, back, err)
		}
		names = append(names, c.String())
	}
	if want := []string{"offline", "metered", "internet", "vpn", "lan"}; !slices.Equal(names, want) {
		t.Errorf("the classes are %q, want %q", names, want)
	}
	if _, err := netwatch.ParseClass("wifi"); !namespace.IsKind(err, namespace.Invalid) {
		t.Errorf("wifi: %v", err)
	}
}
