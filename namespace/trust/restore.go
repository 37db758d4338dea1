package trust

import (
	"fmt"

	"coppice.dev/coppice/namespace"
)

// Machine is what an endpoint remembers of the machine it runs on and of whom it told what, to notice
// that it was restored from a snapshot of some time ago: then its state, and all that it has installed,
// may lie behind what it had.
type Machine struct {
	Format int `json:"format"`
	// Generation is the id that the hypervisor gives a virtual machine anew when it goes back in time or
	// is copied; "" where the kernel shows none.
	Generation string `json:"generation,omitempty"`
	// Nonce is what the server gave at the last check-in, a new one each time: who comes with an old one
	// was set back, or is one of two copies. "" without a server.
	Nonce string `json:"nonce,omitempty"`
	// Acked is the highest seq that this machine has reported, by channel.
	Acked map[string]uint64 `json:"acked,omitempty"`
}

// Seen is what there is to compare a Machine with now. Fields that nobody can tell are zero.
type Seen struct {
	Generation string            // as the kernel shows it now
	Nonce      string            // the one the server gave this machine last
	Acked      map[string]uint64 // what the server has from this machine
	Announced  bool              // the kernel told of a new generation (NEW_VMGENID) since the last look
}

// Restored says why m must be the memory of a machine that was restored or copied; "" if nothing speaks
// for it.
func (m Machine) Restored(now Seen) string {
	switch {
	case now.Announced:
		return "the kernel says that this virtual machine was restored or copied"
	case m.Generation != "" && now.Generation != "" && m.Generation != now.Generation:
		return "the generation id of this virtual machine changed: it was restored or copied"
	case m.Nonce != "" && now.Nonce != "" && m.Nonce != now.Nonce:
		return "the server expects another nonce: this machine was restored, or there are two of it"
	}
	for channel, seq := range now.Acked {
		if m.Acked[channel] < seq {
			return fmt.Sprintf("the server was told of seq %d of %s, and this machine knows %d", seq, channel, m.Acked[channel])
		}
	}
	return ""
}

// Check returns the machine as it is to be kept after the origin, or the server, was asked.
func (m Machine) Check(now Seen) Machine {
	m.Format = machineFormat
	if now.Generation != "" {
		m.Generation = now.Generation
	}
	if now.Nonce != "" {
		m.Nonce = now.Nonce
	}
	return m
}

const (
	machineFormat = 1
	machineName   = "machine"
)

// LoadMachine reads what is kept; a damaged record is begun anew.
func LoadMachine(k Keeper) (Machine, error) {
	var m Machine
	b, err := k.Load(machineName)
	if err != nil || b == nil {
		return m, err
	}
	if namespace.DecodeRecord(b, recordBytesMax, machineName, &m) != nil || m.Format != machineFormat {
		return Machine{}, nil
	}
	return m, nil
}

// SaveMachine keeps a machine. Kinds: those of the keeper.
func SaveMachine(k Keeper, m Machine) error { return saveRecord(k, machineName, m) }
