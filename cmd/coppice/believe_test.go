package main

import (
	"testing"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/trust"
)

// A source proves itself by the pinned root, or by one that follows from it, however many rotations were
// missed; another origin does not, nor does one that shows only the newest of them.
func TestSourceProvesItself(t *testing.T) {
	dir, o := plainOrigin(t)
	_, other := plainOrigin(t)
	m := newMachine(t, o)
	keep := m.trust.keep
	if err := keep.proves(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	if err := keep.proves(t.Context(), other); !namespace.IsKind(err, namespace.Denied) {
		t.Errorf("another origin: %v", err)
	}
	before, err := o.Ref(t.Context(), trust.RootName)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"one", "two"} {
		coppice(t, "-q", "--origin", dir, "key", "generate", name, "--offline")
		coppice(t, "-q", "--origin", dir, "key", "rotate", "root", dir+".keys/offline/"+name+".pub")
		coppice(t, "-q", "--origin", dir, "key", "rotate", "timestamp", dir+".keys/offline/"+name+".pub")
	}
	newest, err := o.Ref(t.Context(), trust.RootName)
	if err != nil {
		t.Fatal(err)
	}
	alone := &documents{refs: map[namespace.RefName][]byte{trust.RootName: newest}}
	if err := keep.proves(t.Context(), alone); err == nil {
		t.Error("a root that nothing leads to proves a source")
	}
	if err := keep.proves(t.Context(), o); err != nil || keep.root.Load().Version != 5 {
		t.Errorf("after rotations: root %d, %v", keep.root.Load().Version, err)
	}
	// A mirror that lies behind is one all the same, if its timestamp is signed by keys that still count.
	timestamp, err := o.Ref(t.Context(), trust.TimestampName)
	if err != nil {
		t.Fatal(err)
	}
	behind := &documents{refs: map[namespace.RefName][]byte{trust.RootName: before, trust.TimestampName: timestamp}}
	if err := keep.proves(t.Context(), behind); err != nil {
		t.Errorf("a mirror that lies behind: %v", err)
	}
	behind.refs[trust.TimestampName] = timestamp[:len(timestamp)-2]
	if err := keep.proves(t.Context(), behind); err == nil {
		t.Error("an old root proves a source, which anybody may have copied")
	}
}

// The records of sources have an age if the keys that are known signed them.
func TestRecordsOfSources(t *testing.T) {
	dir, o := plainOrigin(t)
	_, other := plainOrigin(t)
	m := newMachine(t, o)
	m.want("first contact", 1)
	n := namespace.RefName{Kind: namespace.ChannelRef, Name: "stable"}
	read := func(from namespace.RefReader, n namespace.RefName) []byte {
		b, err := from.Ref(t.Context(), n)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	old := read(o, n)
	stamp, err := m.trust.keep.believes(trust.TimestampName, read(o, trust.TimestampName))
	if err != nil {
		t.Fatal(err)
	}
	coppice(t, "-q", "--origin", dir, "channel", "set", "stable", "dev@1")
	for what, c := range map[string]struct {
		b    []byte
		want uint64
	}{"the first": {old, 1}, "the second": {read(o, n), 2}} {
		if age, err := m.trust.keep.believes(n, c.b); err != nil || age != c.want {
			t.Errorf("%s: age %d, %v", what, age, err)
		}
	}
	if next, err := m.trust.keep.believes(trust.TimestampName, read(o, trust.TimestampName)); err != nil || next <= stamp {
		t.Errorf("timestamps: %d, then %d, %v", stamp, next, err)
	}
	for _, n := range []namespace.RefName{trust.RootName, trust.TimestampName, {Kind: namespace.NamespaceRef, Name: "dev"}} {
		if _, err := m.trust.keep.believes(n, read(other, n)); err == nil {
			t.Errorf("%v of another origin is believed", n)
		}
	}
	// A pointer that strange keys signed is no measure, and once it was refused the next source is asked.
	strange := read(other, n)
	m.trust.keep.seqs.Store("stable", uint64(7))
	if age, err := m.trust.keep.believes(n, strange); err != nil || age != 7 {
		t.Errorf("a strange pointer: age %d, %v", age, err)
	}
	if _, err := m.trust.Accept(t.Context(), "stable", strange); !namespace.IsKind(err, namespace.Denied) {
		t.Errorf("a strange pointer: %v", err)
	}
	if _, err := m.trust.keep.believes(n, strange); err == nil {
		t.Error("what was refused is believed")
	}
}
