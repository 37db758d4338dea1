package disk

import (
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
)

// Double is an Ops for tests: it does everything to the files of a directory, and knows what of it a
// crash of the machine could leave. Files that somebody else writes too, as a mapped database, are
// known by their content whenever they are synced and when Crash is called.
type Double struct {
	root string

	mu      sync.Mutex
	n       int
	plan    func(n int, op, path string) error
	after   func(n int, op, path string)
	current map[string]*node
	durable map[string]*node // the names that survive
	names   []naming         // since their directories were synced
}

// node is a file, whatever its name.
type node struct {
	foreign bool // written past the double
	mode    os.FileMode
	durable []byte
	writes  []change // since the last sync
}

// change is a write, or a truncation to off if b is nil.
type change struct {
	off int64
	b   []byte
}

// naming gives node the name to, and takes from away; either may be "". Both are in one directory.
type naming struct {
	from, to string
	node     *node
}

var _ Ops = (*Double)(nil)

// NewDouble returns a double of the directory root, which must be empty or hold what is durable.
func NewDouble(root string) (*Double, error) {
	d := &Double{root: root, current: map[string]*node{}, durable: map[string]*node{}}
	err := filepath.WalkDir(root, func(path string, e os.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		d.current[path] = &node{foreign: true, durable: b}
		d.durable[path] = d.current[path]
		return err
	})
	if err != nil {
		return nil, Error("read", root, err)
	}
	return d, nil
}

// Plan sets what decides whether an operation, the n-th from 0, fails instead of being done, and with
// what. Its name is that of Ops' method.
func (d *Double) Plan(plan func(n int, op, path string) error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.plan = plan
}

// After sets what is called after each operation, failed or not. It may call Crash and nothing else.
func (d *Double) After(after func(n int, op, path string)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.after = after
}

// Count returns the number of operations so far.
func (d *Double) Count() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.n
}

// do runs an operation, and note if it was done, with mu held.
func (d *Double) do(op, path string, act func() error, note func()) error {
	d.mu.Lock()
	n := d.n
	d.n++
	var err error
	if d.plan != nil {
		err = d.plan(n, op, path)
	}
	if err == nil {
		if err = act(); err == nil {
			note()
		}
	}
	after := d.after
	d.mu.Unlock()
	if after != nil {
		after(n, op, path)
	}
	return err
}

func (d *Double) node(path string) *node {
	x := d.current[path]
	if x == nil {
		x = &node{}
		d.current[path] = x
		d.names = append(d.names, naming{to: path, node: x})
	}
	return x
}

// Open implements Ops. The file may be written past the double.
func (d *Double) Open(path string) (f *os.File, err error) {
	err = d.do("Open", path, func() error { f, err = System{}.Open(path); return err }, func() { d.node(path).foreign = true })
	return f, err
}

// Create implements Ops.
func (d *Double) Create(path string) (f *os.File, err error) {
	err = d.do("Create", path, func() error { f, err = System{}.Create(path); return err }, func() {
		x := d.node(path)
		x.writes = append(x.writes, change{})
	})
	return f, err
}

// WriteAt implements Ops.
func (d *Double) WriteAt(f *os.File, b []byte, off int64) (n int, err error) {
	err = d.do("WriteAt", f.Name(), func() error { n, err = f.WriteAt(b, off); return err }, func() {
		x := d.node(f.Name())
		x.writes = append(x.writes, change{off, append([]byte{}, b...)})
	})
	return n, err
}

// Truncate implements Ops.
func (d *Double) Truncate(f *os.File, size int64) error {
	return d.do("Truncate", f.Name(), func() error { return f.Truncate(size) }, func() {
		x := d.node(f.Name())
		x.writes = append(x.writes, change{off: size})
	})
}

// Sync implements Ops.
func (d *Double) Sync(f *os.File) error {
	return d.do("Sync", f.Name(), f.Sync, func() {
		x := d.node(f.Name())
		if x.foreign {
			x.durable = content(f.Name())
		} else {
			x.durable = apply(x.durable, x.writes)
		}
		x.writes = nil
	})
}

// SyncDir implements Ops.
func (d *Double) SyncDir(dir string) error {
	return d.do("SyncDir", dir, func() error { return System{}.SyncDir(dir) }, func() {
		var rest []naming
		for _, n := range d.names {
			if filepath.Dir(max(n.to, n.from)) == dir {
				n.apply(d.durable)
			} else {
				rest = append(rest, n)
			}
		}
		d.names = rest
	})
}

// Seal implements Ops.
func (d *Double) Seal(f *os.File, mode os.FileMode) error {
	return d.do("Seal", f.Name(), func() error { return f.Chmod(mode) }, func() { d.node(f.Name()).mode = mode })
}

// Rename implements Ops. Both names are in one directory.
func (d *Double) Rename(from, to string) error {
	return d.do("Rename", from, func() error { return os.Rename(from, to) }, func() {
		x := d.node(from)
		d.names = append(d.names, naming{from, to, x})
		delete(d.current, from)
		d.current[to] = x
	})
}

// Remove implements Ops.
func (d *Double) Remove(path string) error {
	return d.do("Remove", path, func() error { return os.Remove(path) }, func() {
		if x := d.current[path]; x != nil {
			d.names = append(d.names, naming{from: path, node: x})
			delete(d.current, path)
		}
	})
}

func (n naming) apply(names map[string]*node) {
	if n.from != "" && names[n.from] == n.node {
		delete(names, n.from)
	}
	if n.to != "" {
		names[n.to] = n.node
	}
}

// apply returns what b is after changes.
func apply(b []byte, changes []change) []byte {
	b = append([]byte{}, b...)
	for _, c := range changes {
		if end := c.off + int64(len(c.b)); c.b == nil {
			b = append(b[:min(c.off, int64(len(b)))], make([]byte, max(0, c.off-int64(len(b))))...)
		} else {
			if end > int64(len(b)) {
				b = append(b, make([]byte, end-int64(len(b)))...)
			}
			copy(b[c.off:], c.b)
		}
	}
	return b
}

// content is that of a file; none if it is not there.
func content(path string) []byte {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	return b
}

// Sizes in which a disk writes: pages go in any order, sectors are whole.
const (
	pageBytes   = 4096
	sectorBytes = 512
)

// Crash writes into the directory to, which is made, what a crash of the machine at this moment could
// have left: what was synced, and of the rest a part that rng chooses, in any order, some of it torn.
func (d *Double) Crash(to string, rng *rand.Rand) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	names := maps.Clone(d.durable)
	left := append([]naming{}, d.names...)
	if rng.IntN(2) == 0 {
		rng.Shuffle(len(left), func(i, j int) { left[i], left[j] = left[j], left[i] })
	}
	luck := []float64{0, 0.5, 0.9, 1}[rng.IntN(4)] // how much of it came to the disk
	for _, n := range left {
		if rng.Float64() < luck {
			n.apply(names)
		}
	}
	for path, x := range names {
		dest := filepath.Join(to, strings.TrimPrefix(path, d.root))
		if err := os.MkdirAll(filepath.Dir(dest), 0o700); err != nil {
			return err
		}
		b := x.crash(rng, luck)
		if x.foreign {
			b = mix(x.durable, content(path), rng, luck)
		}
		mode := os.FileMode(0o600)
		if x.mode != 0 && rng.IntN(2) == 0 {
			mode = x.mode
		}
		if err := os.WriteFile(dest, b, mode); err != nil {
			return err
		}
	}
	return nil
}

// crash is what is left of a file of which only some changes came to the disk.
func (x *node) crash(rng *rand.Rand, luck float64) []byte {
	var kept []change
	for _, c := range x.writes {
		switch {
		case rng.Float64() < luck:
			kept = append(kept, c)
		case c.b != nil && rng.IntN(2) == 0: // a part of it
			cut := rng.IntN(len(c.b)/sectorBytes+1) * sectorBytes
			if rng.IntN(2) == 0 {
				kept = append(kept, change{c.off, c.b[:cut]})
			} else {
				kept = append(kept, change{c.off + int64(cut), c.b[cut:]})
			}
		}
	}
	if rng.IntN(2) == 0 {
		rng.Shuffle(len(kept), func(i, j int) { kept[i], kept[j] = kept[j], kept[i] })
	}
	return apply(x.durable, kept)
}

// mix takes each page from one of two states of a file, some torn.
func mix(before, now []byte, rng *rand.Rand, luck float64) []byte {
	b := append([]byte{}, before...)
	if len(now) > len(b) && (luck == 1 || rng.IntN(2) == 0) {
		b = append(b, make([]byte, len(now)-len(b))...)
	}
	for at := 0; at < min(len(now), len(b)); at += pageBytes {
		page := now[at:min(at+pageBytes, len(now), len(b))]
		switch {
		case rng.Float64() < luck:
			copy(b[at:], page)
		case rng.IntN(4) == 0:
			copy(b[at:], page[:min(len(page), rng.IntN(pageBytes/sectorBytes)*sectorBytes)])
		}
	}
	if luck == 1 {
		b = append(b[:0], now...)
	}
	return b
}
