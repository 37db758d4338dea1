package netwatch

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"coppice.dev/coppice/namespace"
)

// Options tune a [Watcher]. The zero value is the default.
type Options struct {
	Logger *slog.Logger // default: discard
	// Bus is the address of the D-Bus on which NetworkManager is looked for; default: the system's. "none"
	// looks for none.
	Bus string
	// Tick is how often the clocks are compared; 2 s.
	Tick time.Duration
	// Clocks returns the time since boot with and without suspends; default: the kernel's.
	Clocks func() (boot, monotonic time.Duration)
}

// Event tells that the network may be another than before.
type Event struct {
	// Slept is how long the machine was suspended just now; 0 if it was not.
	Slept time.Duration
}

// Watcher watches the network of the name space it was made in. Safe for concurrent use.
type Watcher struct {
	o Options

	mu      sync.Mutex
	metered Flag
}

const (
	// settle is how long events are collected before they are told: one change of address makes a dozen.
	settle = 100 * time.Millisecond
	// settleMax bounds that when events never end.
	settleMax = 500 * time.Millisecond
	// sleptMin is how far the clocks must drift apart for it to be a suspend.
	sleptMin = time.Second
	// resubscribe is the pause before netlink or the bus are tried again.
	resubscribe = 5 * time.Second
)

// New returns a Watcher; it does nothing but look until Run.
func New(o Options) *Watcher {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Tick == 0 {
		o.Tick = 2 * time.Second
	}
	if o.Clocks == nil {
		o.Clocks = clocks
	}
	return &Watcher{o: o}
}

// clocks returns CLOCK_BOOTTIME and CLOCK_MONOTONIC, which differ by the time spent suspended.
func clocks() (boot, monotonic time.Duration) {
	var b, m unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &b) != nil || unix.ClockGettime(unix.CLOCK_MONOTONIC, &m) != nil {
		return 0, 0
	}
	return time.Duration(b.Nano()), time.Duration(m.Nano())
}

// Facts returns what there is to say of the way to target, now; a target that is not valid stands for
// everything. Kinds: Unavailable, if the kernel does not answer.
func (w *Watcher) Facts(target netip.Addr) (Facts, error) {
	f := Facts{Target: target.Unmap()}
	w.mu.Lock()
	f.MeteredFlag = w.metered
	w.mu.Unlock()
	if target.IsLoopback() {
		f.Local = true
		return f, nil
	}
	targets := []netip.Addr{f.Target}
	if !target.IsValid() {
		targets = anywhere
	}
	var worst error
	for _, t := range targets {
		r, err := route(t)
		if err != nil {
			worst = err
			continue
		}
		if r != nil && (f.Route == nil || !f.Route.Iface.Usable) {
			f.Route = r
		}
	}
	if f.Route == nil && !target.IsValid() {
		f.Route = anyRoute()
	}
	if f.Route != nil {
		worst = nil
	}
	return f, worst
}

// anyRoute returns some way out of this machine, nil if there is none: without a default route, a
// source whose address is not known may still be near.
func anyRoute() *Route {
	routes, err := netlink.RouteList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil
	}
	for _, r := range routes {
		if r.Dst == nil || r.Dst.IP.IsLinkLocalUnicast() || r.Dst.IP.IsMulticast() || r.Dst.IP.IsLoopback() || r.Type != unix.RTN_UNICAST {
			continue // every interface that is up has some of these
		}
		l, err := netlink.LinkByIndex(r.LinkIndex)
		if err != nil || l.Attrs().Flags&net.FlagLoopback != 0 {
			continue
		}
		if in := iface(l); in.Usable {
			src, _ := netip.AddrFromSlice(r.Src)
			return &Route{Iface: in, Source: src.Unmap()}
		}
	}
	return nil
}

// anywhere are addresses of documentation networks: whatever leads there is a default route.
var anywhere = []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}

// route asks the kernel for the way to an address; nil if there is none.
func route(to netip.Addr) (*Route, error) {
	routes, err := netlink.RouteGet(to.AsSlice())
	for _, none := range []error{unix.ENETUNREACH, unix.EHOSTUNREACH, unix.EINVAL, unix.EACCES, unix.ENETDOWN, unix.ESRCH} {
		if errors.Is(err, none) { // unreachable, blackhole, prohibit, …
			return nil, nil
		}
	}
	if err != nil {
		return nil, namespace.E(namespace.Unavailable, "find route to", to.String(), err)
	}
	for _, r := range routes {
		if r.Type == unix.RTN_UNREACHABLE || r.Type == unix.RTN_BLACKHOLE || r.Type == unix.RTN_PROHIBIT {
			continue
		}
		l, err := netlink.LinkByIndex(r.LinkIndex)
		if err != nil {
			continue // gone since
		}
		src, _ := netip.AddrFromSlice(r.Src)
		return &Route{Iface: iface(l), OnLink: r.Gw == nil && r.Via == nil, Source: src.Unmap()}, nil
	}
	return nil, nil
}

// iface makes an Iface of what netlink tells.
func iface(l netlink.Link) Iface {
	a := l.Attrs()
	kind := l.Type()
	if a.EncapType == "ppp" {
		kind = "ppp"
	}
	return Iface{Name: a.Name, Kind: kind, WWAN: kind == "wwan" || isModem(a.Name),
		Usable: a.Flags&net.FlagUp != 0 && a.RawFlags&unix.IFF_LOWER_UP != 0}
}

// isModem reports whether udev knows an interface as a modem.
func isModem(name string) bool {
	if strings.Contains(name, "/") {
		return false
	}
	b, err := os.ReadFile("/sys/class/net/" + name + "/uevent")
	return err == nil && strings.Contains(string(b), "DEVTYPE=wwan\n")
}

// Run tells fn of every event until ctx ends, one at a time, collected over a moment. It works without
// netlink and without a bus, as far as there is anything to see.
func (w *Watcher) Run(ctx context.Context, fn func(Event)) {
	var all sync.WaitGroup
	defer all.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	seen := make(chan struct{}, 1)
	note := func() {
		select {
		case seen <- struct{}{}:
		default: // one is waiting already
		}
	}
	all.Go(func() { w.keep(ctx, "netlink", func() error { return subscribe(ctx, note) }) })
	if w.o.Bus != "none" {
		all.Go(func() { w.keep(ctx, "D-Bus", func() error { return w.watchBus(ctx, note) }) })
	}
	tick := time.NewTicker(w.o.Tick)
	defer tick.Stop()
	boot, mono := w.o.Clocks()
	offset := boot - mono
	for {
		select {
		case <-ctx.Done():
			return
		case <-seen:
			quiet(ctx, seen)
			fn(Event{})
		case <-tick.C:
			boot, mono = w.o.Clocks()
			slept := boot - mono - offset
			offset = boot - mono
			if slept >= sleptMin {
				fn(Event{Slept: slept})
			}
		}
	}
}

// quiet waits until no event came for a moment.
func quiet(ctx context.Context, seen <-chan struct{}) {
	last := time.NewTimer(settleMax)
	defer last.Stop()
	t := time.NewTimer(settle)
	defer t.Stop()
	for {
		select {
		case <-seen:
			t.Reset(settle)
		case <-t.C:
			return
		case <-last.C:
			return
		case <-ctx.Done():
			return
		}
	}
}

// keep runs a subscription again when it ends.
func (w *Watcher) keep(ctx context.Context, what string, run func() error) {
	told := false
	for ctx.Err() == nil {
		err := run()
		if err != nil && ctx.Err() == nil && !told {
			told = true // once: most machines without it never get it
			w.o.Logger.Info("not watched, tried again from time to time", "what", what, "error", err)
		}
		t := time.NewTimer(resubscribe)
		select {
		case <-t.C:
		case <-ctx.Done():
		}
		t.Stop()
	}
}

// subscribe tells note of changes of links, addresses and routes until ctx ends or the kernel stops
// telling: when too much happened at once, it drops the subscription's socket.
func subscribe(ctx context.Context, note func()) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	links, addrs, routes := make(chan netlink.LinkUpdate, 64), make(chan netlink.AddrUpdate, 64), make(chan netlink.RouteUpdate, 64)
	// The library closes the channels when done is closed, and may be sending until then.
	done := ctx.Done()
	lost := make(chan error, 8)
	failed := func(err error) {
		select {
		case lost <- err:
		default:
		}
	}
	err := netlink.LinkSubscribeWithOptions(links, done, netlink.LinkSubscribeOptions{ErrorCallback: failed})
	if err == nil {
		defer drain(links)
		err = netlink.AddrSubscribeWithOptions(addrs, done, netlink.AddrSubscribeOptions{ErrorCallback: failed})
	}
	if err == nil {
		defer drain(addrs)
		err = netlink.RouteSubscribeWithOptions(routes, done, netlink.RouteSubscribeOptions{ErrorCallback: failed})
	}
	if err != nil {
		cancel()
		return namespace.E(namespace.Unavailable, "subscribe to", "netlink", err)
	}
	defer drain(routes)
	defer cancel()
	note() // what changed before this began to listen
	for {
		var ok bool
		select {
		case _, ok = <-links:
		case _, ok = <-addrs:
		case _, ok = <-routes:
		case err := <-lost:
			return namespace.E(namespace.Unavailable, "read", "netlink", err)
		case <-ctx.Done():
			return nil
		}
		if !ok {
			return namespace.E(namespace.Unavailable, "read", "netlink", errors.New("the subscription ended"))
		}
		note()
	}
}

// drain reads a channel until its sender, who was told to end, closes it.
func drain[T any](ch <-chan T) {
	for range ch {
		_ = 0
	}
}
