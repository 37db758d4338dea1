package main

import (
	"os"
	"path/filepath"

	"coppice.dev/coppice/builder"
	"coppice.dev/coppice/internal/disk"
	"coppice.dev/coppice/namespace"
)

// importMemory is what the last import of a directory into an origin saw, in a file of the user's cache.
// Losing it costs reading the files again.
type importMemory struct {
	*builder.Memory        // nil: not a directory
	path            string // "": nowhere to keep it
}

// rememberImport returns what is remembered of a source; nothing if fresh is set.
func rememberImport(w *workshop, source builder.Source, fresh bool) importMemory {
	dir, ok := source.(builder.DirSource)
	if !ok {
		return importMemory{}
	}
	m := importMemory{Memory: builder.NewMemory()}
	base, err := os.UserCacheDir()
	if err != nil {
		return m
	}
	abs, err := filepath.Abs(dir.Path)
	if err != nil {
		return m
	}
	cross := ""
	if dir.CrossDevices {
		cross = "+"
	}
	m.path = filepath.Join(base, "coppice-import", namespace.Sum([]byte(w.refs.Root.ID+cross+"\n"+abs)).Hex())
	if b, err := os.ReadFile(m.path); err == nil && !fresh {
		m.Memory = builder.OpenMemory(b)
	}
	return m
}

// save keeps what was seen, for the next import. Best effort: without it that one reads more.
func (m importMemory) save() {
	if m.path == "" || os.MkdirAll(filepath.Dir(m.path), 0o700) != nil {
		return
	}
	_ = disk.Replace(m.path, m.Encode(), 0o600)
}
