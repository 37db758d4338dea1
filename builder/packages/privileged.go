package packages

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/catalog"
)

// Privilege is a path that gives privileges to whoever runs or writes it. Kinds has of "setuid",
// "setgid" (both of files), "capabilities", "world-writable" and "sticky" (of a directory that all
// may write to, but delete from only what is theirs) those that hold, in that order.
type Privilege struct {
	Path         string   `json:"path"`
	Kinds        []string `json:"kinds"`
	Mode         string   `json:"mode"` // four octal digits
	UID          uint32   `json:"uid"`
	GID          uint32   `json:"gid"`
	Capabilities string   `json:"capabilities,omitempty"`
}

// Equal reports whether p and o give the same to the same.
func (p Privilege) Equal(o Privilege) bool {
	return p.Path == o.Path && slices.Equal(p.Kinds, o.Kinds) && p.Mode == o.Mode && p.UID == o.UID && p.GID == o.GID &&
		p.Capabilities == o.Capabilities
}

// Privileged lists what in a tree gives privileges away, in the order of a walk, from its catalogs
// alone. Kinds: those of the loader.
func Privileged(ctx context.Context, l catalog.Loader, root namespace.Digest) ([]Privilege, error) {
	all := []Privilege{}
	err := catalog.Walk(ctx, l, root, func(p string, c *catalog.Catalog, e catalog.Entry) error {
		if found, ok := privilegeOf(p, c, e); ok {
			all = append(all, found)
		}
		return nil
	})
	return all, err
}

func privilegeOf(p string, c *catalog.Catalog, e catalog.Entry) (Privilege, bool) {
	const setuid, setgid, sticky, worldWrite = 0o4000, 0o2000, 0o1000, 0o002
	found := Privilege{Path: "/" + p, Mode: fmt.Sprintf("%04o", e.Mode), UID: e.UID, GID: e.GID}
	is := func(holds bool, kind string) {
		if holds {
			found.Kinds = append(found.Kinds, kind)
		}
	}
	file, open := e.Type == catalog.File, e.Type != catalog.Symlink && e.Mode&worldWrite != 0
	is(file && e.Mode&setuid != 0, "setuid")
	is(file && e.Mode&setgid != 0, "setgid")
	if file && e.HasXattrs() {
		if v, ok := c.Xattr(e.Index, "security.capability"); ok {
			is(true, "capabilities")
			found.Capabilities = capabilities(v)
		}
	}
	is(open, "world-writable")
	is(open && e.Type == catalog.Dir && e.Mode&sticky != 0, "sticky")
	return found, found.Kinds != nil
}

// PrivilegeChange is a path whose privileges two trees do not agree on; nil stands for none.
type PrivilegeChange struct {
	Path   string     `json:"path"`
	Before *Privilege `json:"before,omitempty"`
	After  *Privilege `json:"after,omitempty"`
}

// ComparePrivileged returns how two results of Privileged differ, sorted by path.
func ComparePrivileged(before, after []Privilege) []PrivilegeChange {
	then := map[string]*Privilege{}
	for i := range before {
		then[before[i].Path] = &before[i]
	}
	changes := []PrivilegeChange{}
	for i := range after {
		p := &after[i]
		old := then[p.Path]
		delete(then, p.Path)
		if old == nil || !old.Equal(*p) {
			changes = append(changes, PrivilegeChange{p.Path, old, p})
		}
	}
	for _, p := range then {
		changes = append(changes, PrivilegeChange{Path: p.Path, Before: p})
	}
	slices.SortFunc(changes, func(a, b PrivilegeChange) int { return strings.Compare(a.Path, b.Path) })
	return changes
}

// capabilityNames by number, as of Linux 5.9; see linux/capability.h.
var capabilityNames = strings.Fields(`chown dac_override dac_read_search fowner fsetid kill setgid setuid setpcap linux_immutable
	net_bind_service net_broadcast net_admin net_raw ipc_lock ipc_owner sys_module sys_rawio sys_chroot sys_ptrace sys_pacct
	sys_admin sys_boot sys_nice sys_resource sys_time sys_tty_config mknod lease audit_write audit_control setfcap mac_override
	mac_admin syslog wake_alarm block_suspend audit_read perfmon bpf checkpoint_restore`)

// capabilities tells the value of security.capability as getcap does: "cap_net_raw=ep". The value is
// struct vfs_cap_data: a word with revision and the effective bit, then pairs of permitted and
// inheritable words, and in revision 3 a user id.
func capabilities(v []byte) string {
	sizes := map[uint32]int{1: 12, 2: 20, 3: 24}
	if len(v) < 12 || sizes[binary.LittleEndian.Uint32(v)>>24] != len(v) {
		return fmt.Sprintf("unreadable, %d bytes", len(v))
	}
	head := binary.LittleEndian.Uint32(v)
	byFlags := map[string][]string{}
	for word := 0; word < 2 && 12+8*word <= len(v); word++ {
		permitted, inheritable := binary.LittleEndian.Uint32(v[4+8*word:]), binary.LittleEndian.Uint32(v[8+8*word:])
		for bit := range 32 {
			flags := ""
			if head&1 != 0 && (permitted|inheritable)&(1<<bit) != 0 {
				flags += "e"
			}
			if inheritable&(1<<bit) != 0 {
				flags += "i"
			}
			if permitted&(1<<bit) != 0 {
				flags += "p"
			}
			if (permitted|inheritable)&(1<<bit) == 0 {
				continue
			}
			name := fmt.Sprint(32*word + bit)
			if n := 32*word + bit; n < len(capabilityNames) {
				name = capabilityNames[n]
			}
			byFlags[flags] = append(byFlags[flags], "cap_"+name)
		}
	}
	var parts []string
	for flags, names := range byFlags {
		parts = append(parts, strings.Join(names, ",")+"="+flags)
	}
	slices.Sort(parts)
	if head>>24 == 3 {
		if id := binary.LittleEndian.Uint32(v[20:]); id != 0 {
			parts = append(parts, fmt.Sprintf("[rootid=%d]", id))
		}
	}
	return strings.Join(parts, " ")
}
