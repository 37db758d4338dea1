// Package netwatch tells what network this machine has, and what that means: which class of link
// leads to a source ([Classify]), whether a source can be asked ([Machine]), and when either may
// have changed ([Watcher]: the kernel's netlink, NetworkManager's metered flag, a suspend).
//
// The decisions are pure functions of values, with the time as an argument; only Watcher touches
// the machine.
package netwatch

import (
	"fmt"
	"net/netip"
	"path"
	"strings"

	"coppice.dev/coppice/namespace"
)

// Class says what kind of link leads to a source. The zero Class is Offline.
type Class uint8

// The classes, from none to best.
const (
	Offline  Class = iota // no link at all
	Metered               // bytes cost money, or patience
	Internet              // a route over networks that are not ours
	VPN                   // a tunnel into ours
	LAN                   // ours: the same building, or this machine
	classCount
)

var classNames = [classCount]string{"offline", "metered", "internet", "vpn", "lan"}

// String returns the stable name, which is also its form in JSON and YAML.
func (c Class) String() string {
	if c < classCount {
		return classNames[c]
	}
	return "unknown"
}

// MarshalText implements encoding.TextMarshaler.
func (c Class) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (c *Class) UnmarshalText(b []byte) error {
	got, err := ParseClass(string(b))
	*c = got
	return err
}

// ParseClass is the inverse of String. Kinds: Invalid.
func ParseClass(s string) (Class, error) {
	for i, n := range classNames {
		if n == s {
			return Class(i), nil
		}
	}
	return Offline, namespace.E(namespace.Invalid, "read", "link class "+s,
		fmt.Errorf("it is one of %s", strings.Join(classNames[:], ", ")))
}

// Iface is a network interface. Kind is what the kernel calls its driver's kind ("device", "veth",
// "wireguard", "tuntap", …). Usable: it is up and has a carrier.
type Iface struct {
	Name   string
	Kind   string
	WWAN   bool // a modem
	Usable bool
}

// Route is the way to an address. OnLink: no gateway between. Source is this machine's address on it.
type Route struct {
	Iface  Iface
	OnLink bool
	Source netip.Addr
}

// Facts are what [Classify] judges by.
type Facts struct {
	// Local: the source is on this machine and needs no network.
	Local bool
	// Target is where the source is; the zero Addr if that is not known, as before a name was looked up.
	Target netip.Addr
	// Route leads to Target or, if that is not known, out of here; nil if nothing does.
	Route *Route
	// MeteredFlag is NetworkManager's; unknown where there is none.
	MeteredFlag Flag
}

// Flag is a yes, a no or neither.
type Flag uint8

// The values of a Flag.
const (
	Unknown Flag = iota
	Yes
	No
)

// Config is what somebody who knows better says. The zero Config says nothing.
type Config struct {
	// Force, if not nil, is the class whatever is detected, as long as there is a link at all.
	Force *Class
	// LAN lists prefixes that are ours: of a source, or of this machine's own address.
	LAN []netip.Prefix
	// VPNIfaces and MeteredIfaces are patterns (path.Match) of names of interfaces.
	VPNIfaces, MeteredIfaces []string
}

// Classify says what class of link leads to a source, and why, in words for a person. It is pure.
//
// That this machine has a private address says nothing: every home has them. So a link is lan only if
// the source itself is at a private, link-local or configured address, or this machine at a
// configured one.
func Classify(f Facts, c Config) (Class, string) {
	switch {
	case f.Local && c.Force != nil:
		return *c.Force, "set by hand"
	case f.Local:
		return LAN, "the source is on this machine"
	case f.Route == nil && f.Target.IsValid():
		return Offline, "no route to " + f.Target.String()
	case f.Route == nil:
		return Offline, "no default route"
	case !f.Route.Iface.Usable:
		return Offline, f.Route.Iface.Name + " is down"
	case c.Force != nil:
		return *c.Force, "set by hand"
	}
	in := f.Route.Iface
	if why := metered(f, c); why != "" {
		return Metered, why
	}
	switch {
	case matchAny(c.VPNIfaces, in.Name):
		return VPN, in.Name + " is configured as vpn"
	case tunnels[in.Kind]:
		return VPN, fmt.Sprintf("%s is a tunnel (%s)", in.Name, in.Kind)
	}
	return ours(f, c)
}

// metered returns why a link is metered, or "".
func metered(f Facts, c Config) string {
	in := f.Route.Iface
	switch {
	case matchAny(c.MeteredIfaces, in.Name):
		return in.Name + " is configured as metered"
	case f.MeteredFlag == Yes:
		return "NetworkManager says that the connection is metered"
	case in.WWAN && f.MeteredFlag != No:
		return in.Name + " is a modem"
	}
	return ""
}

// ours tells lan from internet.
func ours(f Facts, c Config) (Class, string) {
	in := f.Route.Iface
	for _, p := range c.LAN {
		if f.Target.IsValid() && p.Contains(f.Target) {
			return LAN, fmt.Sprintf("%s is in %s, configured as lan", f.Target, p)
		}
		if f.Route.Source.IsValid() && p.Contains(f.Route.Source) {
			return LAN, fmt.Sprintf("this machine's %s is in %s, configured as lan", f.Route.Source, p)
		}
	}
	switch t := f.Target; {
	case !t.IsValid():
		return Internet, "a route over " + in.Name
	case t.IsPrivate() || t.IsLinkLocalUnicast():
		return LAN, fmt.Sprintf("%s is a private address, over %s", t, in.Name)
	case f.Route.OnLink:
		return LAN, fmt.Sprintf("%s is on the network of %s", t, in.Name)
	}
	return Internet, fmt.Sprintf("%s over %s", f.Target, in.Name)
}

// tunnels are the kinds of interface that lead through another network.
var tunnels = map[string]bool{
	"wireguard": true, "tuntap": true, "tun": true, "xfrm": true, "vti": true, "vti6": true, "ipip": true,
	"gre": true, "gretap": true, "sit": true, "ip6tnl": true, "ppp": true, "ovpn": true, "geneve": true,
}

func matchAny(patterns []string, name string) bool {
	for _, p := range patterns {
		if ok, err := path.Match(p, name); ok && err == nil {
			return true
		}
	}
	return false
}
