package netwatch

import (
	"context"
	"errors"

	"github.com/godbus/dbus/v5"

	"coppice.dev/coppice/namespace"
)

const (
	nmName  = "org.freedesktop.NetworkManager"
	nmPath  = dbus.ObjectPath("/org/freedesktop/NetworkManager")
	propsIf = "org.freedesktop.DBus.Properties"
	busName = "org.freedesktop.DBus"
)

// watchBus keeps the metered flag as NetworkManager has it until ctx ends or the bus does. A bus
// without NetworkManager is watched for it to appear; it is not started.
func (w *Watcher) watchBus(ctx context.Context, note func()) error {
	fail := func(err error) error { return namespace.E(namespace.Unavailable, "watch", "NetworkManager", err) }
	conn, err := w.dialBus(ctx)
	if err != nil {
		return fail(err)
	}
	defer conn.Close()
	defer w.setMetered(Unknown, note)
	signals := make(chan *dbus.Signal, 64)
	conn.Signal(signals)
	err = errors.Join(
		conn.AddMatchSignalContext(ctx, dbus.WithMatchObjectPath(nmPath), dbus.WithMatchInterface(propsIf), dbus.WithMatchSender(nmName)),
		conn.AddMatchSignalContext(ctx, dbus.WithMatchSender(busName), dbus.WithMatchMember("NameOwnerChanged"), dbus.WithMatchArg(0, nmName)))
	if err != nil {
		return fail(err)
	}
	w.setMetered(readMetered(ctx, conn), note)
	for {
		select {
		case _, ok := <-signals:
			if !ok {
				return fail(errors.New("the bus is gone"))
			}
			w.setMetered(readMetered(ctx, conn), note)
		case <-ctx.Done():
			return nil
		}
	}
}

func (w *Watcher) dialBus(ctx context.Context) (*dbus.Conn, error) {
	if w.o.Bus == "" {
		return dbus.ConnectSystemBus(dbus.WithContext(ctx))
	}
	return dbus.Connect(w.o.Bus, dbus.WithContext(ctx))
}

// readMetered asks NetworkManager, if it is there. Its guesses count: they are what it acts on itself.
func readMetered(ctx context.Context, conn *dbus.Conn) Flag {
	var there bool
	err := conn.BusObject().CallWithContext(ctx, busName+".NameHasOwner", 0, nmName).Store(&there)
	if err != nil || !there {
		return Unknown
	}
	var v dbus.Variant
	call := conn.Object(nmName, nmPath).CallWithContext(ctx, propsIf+".Get", dbus.FlagNoAutoStart, nmName, "Metered")
	if call.Store(&v) != nil {
		return Unknown
	}
	n, _ := v.Value().(uint32)
	switch n { // NMMetered: 1 yes, 2 no, 3 guess yes, 4 guess no
	case 1, 3:
		return Yes
	case 2, 4:
		return No
	}
	return Unknown
}

func (w *Watcher) setMetered(f Flag, note func()) {
	w.mu.Lock()
	changed := w.metered != f
	w.metered = f
	w.mu.Unlock()
	if changed {
		note()
	}
}
