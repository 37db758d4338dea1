package cache

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"coppice.dev/coppice/internal/disk"
	"coppice.dev/coppice/namespace"
)

// Hold names what is never evicted, as long as it stands: of each of its generations the manifest, all
// catalogs, and the content that is selected. It is kept in a file of its own, CACHE/holds/ID.json, for
// people to read; neither a restart nor the loss of the index loses it.
type Hold struct {
	ID string `json:"id"`
	// Kind says who made it: a person, who pins, or a mount, which keeps what it may be told to show.
	Kind     HoldKind  `json:"kind"`
	Target   string    `json:"target"` // CHANNEL or NAME@N
	Origin   string    `json:"origin"`
	Select   Selection `json:"select"`   // of every generation
	Priority int       `json:"priority"` // higher is fetched first
	Created  time.Time `json:"created"`
	// Generations are what the target means, one for each role at most.
	Generations []Held `json:"generations"`
}

// HoldKind is the class of a hold.
type HoldKind string

// The classes of holds.
const (
	Pinned  HoldKind = "pin"
	Mounted HoldKind = "mount"
)

// Role is what a generation is to the endpoint.
type Role string

// The roles of generations. All of them are held.
const (
	Next     Role = "next"
	Active   Role = "active"
	Previous Role = "previous"
)

// Held is a generation of a hold. Hydrated is content that was fetched on purpose besides what the
// hold selects.
type Held struct {
	Role     Role             `json:"role"`
	Version  string           `json:"version"`
	Manifest namespace.Digest `json:"manifest"`
	Root     namespace.Digest `json:"root"`
	Hydrated Selection        `json:"hydrated,omitzero"`
	// Proof is of the last time that everything selected was found here.
	Proof *Proof `json:"proof,omitempty"`
}

// Proof says that a set is complete: each chunk was verified when it arrived, its entry and its segment
// are here, and all of it was synced before this was said.
type Proof struct {
	Set    namespace.Digest `json:"set"` // names root and chunks
	Chunks int64            `json:"chunks"`
	Bytes  int64            `json:"bytes"` // plaintext
	At     time.Time        `json:"at"`
}

// holdFileMax bounds a hold's file: a selection of selectionPathsMax paths.
const holdFileMax = 64 << 20

// holds is the set of them. Safe for concurrent use.
type holds struct {
	dir string

	mu      sync.Mutex
	byID    map[string]Hold
	damaged []string // files that cannot be read: they hold nothing until somebody puts them right
}

// openHolds reads all holds. One that cannot be read is noted, left where it is, and holds nothing.
// Kinds: Denied, Internal.
func openHolds(dir string, log *slog.Logger) (*holds, error) {
	h := &holds{dir: dir, byID: map[string]Hold{}}
	names, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, disk.Error("list", dir, err)
	}
	for _, n := range names {
		id, ok := strings.CutSuffix(n.Name(), ".json")
		if !ok || strings.HasPrefix(id, ".") {
			continue // what a crash left of one being written
		}
		hold, err := readHold(filepath.Join(dir, n.Name()))
		if err == nil && hold.ID != id {
			err = errors.New("it names another id")
		}
		if err != nil {
			log.Error("a pin cannot be read and keeps nothing; pin again, or put its file right", "file", filepath.Join(dir, n.Name()), "error", err)
			h.damaged = append(h.damaged, filepath.Join(dir, n.Name()))
			continue
		}
		h.byID[id] = hold
	}
	return h, nil
}

func readHold(path string) (hold Hold, err error) {
	info, err := os.Stat(path)
	if err == nil && info.Size() > holdFileMax {
		err = fmt.Errorf("%d bytes, at most %d", info.Size(), holdFileMax)
	}
	var b []byte
	if err == nil {
		b, err = os.ReadFile(path)
	}
	if err == nil {
		err = decodeHold(b, &hold)
	}
	return hold, err
}

// decodeHold decodes a hold's file. Unknown fields are let pass: a later coppice may have added some.
func decodeHold(b []byte, hold *Hold) error {
	if err := json.Unmarshal(b, hold); err != nil {
		return err
	}
	return hold.check()
}

func (h Hold) check() error {
	invalid := func(format string, args ...any) error {
		return namespace.E(namespace.Invalid, "hold", h.Target, fmt.Errorf(format, args...))
	}
	if h.ID == "" || len(h.ID) > 64 || strings.Trim(h.ID, "0123456789abcdefghijklmnopqrstuvwxyz-") != "" {
		return invalid("id %q", h.ID)
	}
	if h.Kind != Pinned && h.Kind != Mounted {
		return invalid("kind %q", h.Kind)
	}
	seen := map[Role]bool{}
	for _, g := range h.Generations {
		if g.Role != Next && g.Role != Active && g.Role != Previous || seen[g.Role] {
			return invalid("role %q", g.Role)
		}
		seen[g.Role] = true
		if err := g.Hydrated.Check(); err != nil {
			return err
		}
	}
	return h.Select.Check()
}

// all returns the holds, the most important first.
func (h *holds) all() []Hold {
	h.mu.Lock()
	defer h.mu.Unlock()
	var all []Hold
	for _, x := range h.byID {
		x.Generations = slices.Clone(x.Generations)
		all = append(all, x)
	}
	slices.SortFunc(all, func(a, b Hold) int {
		return cmp.Or(cmp.Compare(b.Priority, a.Priority), a.Created.Compare(b.Created), cmp.Compare(a.ID, b.ID))
	})
	return all
}

// change replaces a hold by what fn makes of it, durably. fn gets the zero Hold if there is none; that
// fn leaves its ID empty removes it.
func (h *holds) change(id string, fn func(*Hold)) (Hold, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	old, was := h.byID[id]
	hold := old
	hold.Generations = slices.Clone(old.Generations)
	fn(&hold)
	path := filepath.Join(h.dir, id+".json")
	if hold.ID == "" {
		if !was {
			return hold, nil
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return old, disk.Error("remove", path, err)
		}
		delete(h.byID, id)
		return hold, disk.System{}.SyncDir(h.dir)
	}
	if err := hold.check(); err != nil {
		return old, err
	}
	b, err := json.MarshalIndent(hold, "", "  ")
	if err != nil {
		return old, namespace.E(namespace.Internal, "encode hold", id, err)
	}
	if err := disk.Replace(path, append(b, '\n'), 0o600); err != nil {
		return old, err
	}
	h.byID[id] = hold
	return hold, nil
}

// Holds returns all holds, the most important first. The slices in them are not to be changed.
func (c *Cache) Holds() []Hold { return c.holding.all() }

// ChangeHold replaces the hold id by what fn makes of it and returns that; durable when it returns. fn
// gets the zero Hold if there is none, and removes one by leaving its ID empty. It must not call the
// cache. Kinds: Invalid, Limit, Denied, Internal.
func (c *Cache) ChangeHold(id string, fn func(*Hold)) (Hold, error) {
	h, err := c.holding.change(id, fn)
	if err == nil {
		c.countHolds()
	}
	return h, err
}

// DamagedHolds returns the files of holds that could not be read when the cache was opened.
func (c *Cache) DamagedHolds() []string { return c.holding.damaged }

// Stage notes that h's target will mean g: it is held from now on, beside what is shown.
func (h *Hold) Stage(g Held) {
	g.Role = Next
	h.put(g)
}

// Activate notes that h's target means g now. What was active is kept as the previous one, with all
// that was fetched of it, for a rollback without a network.
func (h *Hold) Activate(g Held) {
	g.Role = Active
	g = h.known(g)
	i := slices.IndexFunc(h.Generations, func(x Held) bool { return x.Role == Active })
	if i >= 0 && h.Generations[i].Manifest != g.Manifest {
		was := h.Generations[i]
		was.Role = Previous
		h.put(was)
	}
	h.Generations = slices.DeleteFunc(h.Generations, func(x Held) bool { return x.Role == Next })
	h.put(g)
}

// put sets the generation of a role, taking over what is known of the same version.
func (h *Hold) put(g Held) {
	g = h.known(g)
	h.Generations = append(slices.DeleteFunc(h.Generations, func(x Held) bool { return x.Role == g.Role }), g)
	order := map[Role]int{Next: 0, Active: 1, Previous: 2}
	slices.SortFunc(h.Generations, func(a, b Held) int { return order[a.Role] - order[b.Role] })
}

// known returns g with what is known of the same version, whatever its role.
func (h *Hold) known(g Held) Held {
	for _, x := range h.Generations {
		if x.Manifest == g.Manifest {
			if g.Hydrated.Empty() {
				g.Hydrated = x.Hydrated
			}
			if g.Proof == nil {
				g.Proof = x.Proof
			}
		}
	}
	return g
}

// Wanted returns what is held of a generation's content.
func (h Hold) Wanted(g Held) Selection {
	s := Selection{All: h.Select.All || g.Hydrated.All}
	if !s.All {
		s.Paths = append(slices.Clone(h.Select.Paths), g.Hydrated.Paths...)
	}
	return s
}
