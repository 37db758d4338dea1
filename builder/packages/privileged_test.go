package packages

import (
	"encoding/binary"
	"fmt"
	"slices"
	"testing"
)

// fileCaps makes a security.capability value.
func fileCaps(revision, effective uint32, permitted, inheritable uint64, rootid uint32) []byte {
	le := binary.LittleEndian
	b := le.AppendUint32(nil, revision<<24|effective)
	for range map[uint32]int{1: 1, 2: 2, 3: 2}[revision] {
		b = le.AppendUint32(b, uint32(permitted))
		b = le.AppendUint32(b, uint32(inheritable))
		permitted, inheritable = permitted>>32, inheritable>>32
	}
	if revision == 3 {
		b = le.AppendUint32(b, rootid)
	}
	return b
}

func TestCapabilities(t *testing.T) {
	for want, v := range map[string][]byte{
		"cap_net_raw=ep":               fileCaps(2, 1, 1<<13, 0, 0),
		"cap_chown,cap_kill=p":         fileCaps(1, 0, 1<<0|1<<5, 0, 0),
		"cap_bpf=eip":                  fileCaps(2, 1, 1<<39, 1<<39, 0),
		"cap_63=ep":                    fileCaps(2, 1, 1<<63, 0, 0),
		"cap_chown=i cap_kill=p":       fileCaps(2, 0, 1<<5, 1<<0, 0),
		"cap_net_raw=ep [rootid=1000]": fileCaps(3, 1, 1<<13, 0, 1000),
		"unreadable, 0 bytes":          nil,
		"unreadable, 24 bytes":         append(fileCaps(2, 1, 1, 1, 0), 0, 0, 0, 0),
		"unreadable, 19 bytes":         fileCaps(2, 1, 1, 1, 0)[:19],
	} {
		if got := capabilities(v); got != want {
			t.Errorf("%x is %q, want %q", v, got, want)
		}
	}
}

func TestPrivileged(t *testing.T) {
	m := newMemory()
	files := map[string]string{"usr/bin/su": "x", "usr/bin/wall": "x", "usr/bin/ping": "x", "usr/bin/ls": "x", "tmp/": "", "drop/": "", "var/mail/x": "x", "link": "-> usr/bin/su", "staff/": ""}
	modes := map[string]uint16{"usr/bin/su": 0o4755, "usr/bin/wall": 0o2755, "tmp": 0o1777, "drop": 0o777, "var/mail/x": 0o6666, "staff": 0o2775}
	before := m.put(t, tree{files, modes, map[string][]byte{"usr/bin/ping": fileCaps(2, 1, 1<<13, 0, 0)}})
	all, err := Privileged(t.Context(), m, before)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, p := range all {
		got = append(got, fmt.Sprint(p.Path, " ", p.Mode, " ", p.Kinds, p.Capabilities))
	}
	want := []string{
		"/drop 0777 [world-writable]", "/tmp 1777 [world-writable sticky]", "/usr/bin/ping 0644 [capabilities]cap_net_raw=ep",
		"/usr/bin/su 4755 [setuid]", "/usr/bin/wall 2755 [setgid]", "/var/mail/x 6666 [setuid setgid world-writable]",
	}
	if !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}

	delete(files, "usr/bin/su")
	files["usr/bin/sudo"], modes["usr/bin/sudo"], modes["usr/bin/wall"] = "x", 0o4755, 0o2711
	after, err := Privileged(t.Context(), m, m.put(t, tree{files, modes, nil}))
	if err != nil {
		t.Fatal(err)
	}
	got = nil
	for _, c := range ComparePrivileged(all, after) {
		got = append(got, fmt.Sprint(c.Path, " ", c.Before != nil, " ", c.After != nil))
	}
	want = []string{"/usr/bin/ping true false", "/usr/bin/su true false", "/usr/bin/sudo false true", "/usr/bin/wall true true"}
	if !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	if none := ComparePrivileged(all, all); len(none) != 0 {
		t.Errorf("a tree differs from itself: %v", none)
	}
}

func FuzzCapabilities(f *testing.F) {
	f.Add(fileCaps(2, 1, 1<<13, 1, 0))
	f.Add(fileCaps(3, 1, 1<<40, 1, 7))
	f.Fuzz(func(t *testing.T, b []byte) {
		if s := capabilities(b); len(s) > 64*1024 {
			t.Errorf("%d bytes say %d", len(b), len(s))
		}
	})
}
