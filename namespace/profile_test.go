package namespace_test

import (
	"bytes"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"coppice.dev/coppice/namespace"
)

func entries(paths ...string) (all []namespace.ProfileEntry) {
	for _, p := range paths {
		all = append(all, namespace.ProfileEntry{Path: namespace.PathText(p)})
	}
	return all
}

func TestProfileRoundTrip(t *testing.T) {
	p := &namespace.Profile{Format: 1, Name: "login", Command: "sh -c true", Recorded: namespace.Version{Name: "desk", N: 3},
		Entries: append(entries("usr/bin/git", "etc/100%", "\xff\xfe/n\ntab\t", "größe", "\ufffd"),
			namespace.ProfileEntry{Path: "big", Off: 10, Len: 5}, namespace.ProfileEntry{Path: "big", Off: 12, Len: 9})}
	b, err := namespace.EncodeProfile(p)
	if err != nil {
		t.Fatal(err)
	}
	got, err := namespace.DecodeProfile(b, "test")
	if err != nil || !reflect.DeepEqual(got, p) {
		t.Fatalf("%s\n%+v, %v", b, got, err)
	}
	if !bytes.Contains(b, []byte(`"path":"%FF%FE/n%0Atab%09"`)) || !bytes.Contains(b, []byte(`"path":"etc/100%25"`)) {
		t.Errorf("%s", b)
	}
}

// TestProfileRefused holds for what others wrote: each is told, none is taken for something else.
func TestProfileRefused(t *testing.T) {
	whole := `{"format":1,"name":"p","entries":[%s]}` + "\n"
	for name, text := range map[string]string{
		"absolute":         fmt.Sprintf(whole, `{"path":"/etc/passwd"}`),
		"above":            fmt.Sprintf(whole, `{"path":"a/../../b"}`),
		"empty name":       fmt.Sprintf(whole, `{"path":"a//b"}`),
		"no path":          fmt.Sprintf(whole, `{"path":""}`),
		"nul":              fmt.Sprintf(whole, `{"path":"a%00"}`),
		"other spelling":   fmt.Sprintf(whole, `{"path":"%61"}`),
		"lower case":       fmt.Sprintf(whole, `{"path":"%ff"}`),
		"cut escape":       fmt.Sprintf(whole, `{"path":"a%F"}`),
		"long name":        fmt.Sprintf(whole, `{"path":"`+strings.Repeat("a", 256)+`"}`),
		"long path":        fmt.Sprintf(whole, `{"path":"`+strings.Repeat("a/", 2048)+`a"}`),
		"twice":            fmt.Sprintf(whole, `{"path":"a"},{"path":"a"}`),
		"covered":          fmt.Sprintf(whole, `{"path":"a","off":1,"len":9},{"path":"a","off":2,"len":3}`),
		"offset alone":     fmt.Sprintf(whole, `{"path":"a","off":1}`),
		"end overflows":    fmt.Sprintf(whole, `{"path":"a","off":1,"len":9223372036854775807}`),
		"negative":         fmt.Sprintf(whole, `{"path":"a","off":-1,"len":1}`),
		"unknown field":    fmt.Sprintf(whole, `{"path":"a","x":1}`),
		"white space":      fmt.Sprintf(whole, ` {"path":"a"}`),
		"null entries":     `{"format":1,"name":"p","entries":null}x`,
		"later format":     `{"format":2,"name":"p","entries":[]}` + "\n",
		"name with a dot":  `{"format":1,"name":"../p","entries":[]}` + "\n",
		"too many":         fmt.Sprintf(whole, strings.TrimSuffix(strings.Repeat(`{"path":"a"},`, namespace.ProfileEntriesMax+1), ",")),
		"too large":        strings.Repeat(" ", namespace.ProfileBytesMax+1),
		"command not text": `{"format":1,"name":"p","command":"` + strings.Repeat("x", 5000) + `","entries":[]}` + "\n",
	} {
		if p, err := namespace.DecodeProfile([]byte(text), name); err == nil {
			t.Errorf("%s: taken as %+v", name, p)
		} else if k := namespace.KindOf(err); k != namespace.Corrupt && k != namespace.Invalid && k != namespace.Limit {
			t.Errorf("%s: %v, a %v", name, err, k)
		}
	}
}

func TestMergeProfiles(t *testing.T) {
	a := &namespace.Profile{Format: 1, Name: "a", Entries: entries("sh", "libc", "big")}
	b := &namespace.Profile{Format: 1, Name: "b", Entries: append([]namespace.ProfileEntry{{Path: "big", Off: 0, Len: 7}}, entries("sh", "new")...)}
	got := namespace.MergeProfiles(a, b)
	want := append([]namespace.ProfileEntry{{Path: "sh"}, {Path: "big", Off: 0, Len: 7}}, entries("libc", "big", "new")...)
	if got.Name != "a" || !reflect.DeepEqual(got.Entries, want) {
		t.Errorf("%+v, want %+v", got.Entries, want)
	}
	if err := got.Check(); err != nil {
		t.Error(err)
	}
	if again := namespace.MergeProfiles(got, a, b, got); len(again.Entries) != len(got.Entries) {
		t.Errorf("merging what is there already gives %+v", again.Entries)
	}
}

// TestTidyBounds: whatever was recorded makes a profile that can be read.
func TestTidyBounds(t *testing.T) {
	var all []namespace.ProfileEntry
	for i := range uint64(2 * namespace.ProfileRangesMax) {
		all = append(all, namespace.ProfileEntry{Path: "huge", Off: 10 * i, Len: 5})
	}
	for i := range namespace.ProfileEntriesMax + 10 {
		all = append(all, namespace.ProfileEntry{Path: namespace.PathText(fmt.Sprint("f", i))})
	}
	p := &namespace.Profile{Format: 1, Name: "p", Entries: namespace.Tidy(all)}
	if _, err := namespace.EncodeProfile(p); err != nil {
		t.Fatal(err)
	}
	if n := len(p.Entries); n != namespace.ProfileEntriesMax {
		t.Errorf("%d entries", n)
	}
	if last := p.Entries[namespace.ProfileRangesMax-1]; last != (namespace.ProfileEntry{Path: "huge"}) {
		t.Errorf("after so many ranges: %+v", last)
	}
}

func TestProfilesRecord(t *testing.T) {
	d := namespace.Sum([]byte("x"))
	good := namespace.Profiles{Format: 1, Name: "desk", Profiles: []namespace.ProfileRecord{
		{Name: "login", Profile: d, Layouts: []namespace.LayoutRef{{Root: d, Layout: namespace.Sum(nil)}}}, {Name: "office", Profile: d}}}
	if err := good.Check(); err != nil {
		t.Fatal(err)
	}
	if r, ok := good.Find("login"); !ok || r.Layout(d) != namespace.Sum(nil) || !r.Layout(namespace.Sum(nil)).IsZero() {
		t.Errorf("%+v", r)
	}
	for name, bad := range map[string]namespace.Profiles{
		"twice":  {Format: 1, Profiles: []namespace.ProfileRecord{good.Profiles[0], good.Profiles[0]}},
		"none":   {Format: 1, Profiles: []namespace.ProfileRecord{{Name: "a"}}},
		"format": {Format: 2},
		"many":   {Format: 1, Profiles: make([]namespace.ProfileRecord, namespace.ProfilesMax+1)},
		"name":   {Format: 1, Profiles: []namespace.ProfileRecord{{Name: "A", Profile: d}}},
		"layouts": {Format: 1, Profiles: []namespace.ProfileRecord{{Name: "a", Profile: d,
			Layouts: make([]namespace.LayoutRef, namespace.LayoutsMax+1)}}},
	} {
		if err := bad.Check(); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
}

func FuzzDecodeProfile(f *testing.F) {
	f.Add([]byte(`{"format":1,"name":"p","entries":[{"path":"usr/bin/sh"},{"path":"big","off":4096,"len":10},{"path":"a%FF"}]}` + "\n"))
	f.Add([]byte(`{"format":1,"name":"p","recorded":"desk@1","command":"true","entries":[]}` + "\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := namespace.DecodeProfile(b, "fuzz")
		if err != nil {
			return
		}
		again, err := namespace.EncodeProfile(p)
		if err != nil || !bytes.Equal(again, b) {
			t.Fatalf("%q decodes, and encodes as %q, %v", b, again, err)
		}
		if tidied := namespace.Tidy(p.Entries); len(tidied) != len(p.Entries) {
			t.Fatalf("%d of %d entries say something", len(tidied), len(p.Entries))
		}
	})
}
