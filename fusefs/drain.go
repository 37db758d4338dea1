package fusefs

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/catalog"
)

// Holder is something of a mount that a process has.
type Holder struct {
	PID     int
	Comm    string
	What    string // cwd, root, exe, fd, map
	Path    string
	MountID uint64
	Ino     uint64 // as the process sees it; 0 if that cannot be told without asking the mount
}

// Users returns what processes have on the mounts with these ids: working and root directories,
// programs, open and mapped files. It reads /proc and opens with O_PATH only, which asks no file
// system anything, so the daemon of the mounts may call it. Processes that may not be looked at are
// left out, and so are mount namespaces that hold copies of their own, and files that are open with
// O_PATH: nothing is read through such a descriptor, and another daemon that looks for its users as this
// one does has some for a moment. Kinds: Denied, Internal.
func Users(mountIDs ...uint64) ([]Holder, error) {
	wanted := map[uint64]bool{}
	for _, id := range mountIDs {
		wanted[id] = true
	}
	procs, err := os.ReadDir("/proc")
	if err != nil {
		return nil, namespace.E(namespace.KindOf(err), "list", "/proc", err)
	}
	var all []Holder
	for _, p := range procs {
		if pid, err := strconv.Atoi(p.Name()); err == nil {
			all = append(all, holdings(pid, wanted)...)
		}
	}
	return all, nil
}

// holdings returns what one process has.
func holdings(pid int, wanted map[uint64]bool) []Holder {
	base := filepath.Join("/proc", strconv.Itoa(pid))
	links := map[string]string{}
	for _, what := range []string{"cwd", "root", "exe"} {
		links[filepath.Join(base, what)] = what
	}
	for dir, what := range map[string]string{"fd": "fd", "map_files": "map"} {
		entries, _ := os.ReadDir(filepath.Join(base, dir))
		for _, e := range entries {
			links[filepath.Join(base, dir, e.Name())] = what
		}
	}
	var all []Holder
	seen := map[Holder]bool{} // a library is mapped in several pieces
	for link, what := range links {
		h, ok := holding(link)
		if !ok || !wanted[h.MountID] || what == "fd" && opensPath(base, filepath.Base(link)) {
			continue
		}
		h.PID, h.What = pid, what
		if !seen[h] {
			seen[h] = true
			comm, _ := os.ReadFile(filepath.Join(base, "comm"))
			named := h
			named.Comm = strings.TrimSpace(string(comm))
			all = append(all, named)
		}
	}
	return all
}

// opensPath reports whether a descriptor of the process below base was opened with O_PATH, or is gone.
func opensPath(base, fd string) bool {
	b, err := os.ReadFile(filepath.Join(base, "fdinfo", fd))
	if err != nil {
		return true
	}
	for line := range strings.Lines(string(b)) {
		if v, found := strings.CutPrefix(line, "flags:"); found {
			flags, err := strconv.ParseUint(strings.TrimSpace(v), 8, 64)
			return err == nil && flags&unix.O_PATH != 0
		}
	}
	return false
}

// holding tells which mount and inode a magic link of /proc leads to.
func holding(link string) (Holder, bool) {
	fd, err := unix.Open(link, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return Holder{}, false
	}
	defer unix.Close(fd)
	b, err := os.ReadFile("/proc/self/fdinfo/" + strconv.Itoa(fd))
	if err != nil {
		return Holder{}, false
	}
	id, ok := mountIDIn(string(b))
	if !ok {
		return Holder{}, false
	}
	h := Holder{MountID: id}
	for line := range strings.Lines(string(b)) {
		if v, found := strings.CutPrefix(line, "ino:"); found {
			h.Ino, _ = strconv.ParseUint(strings.TrimSpace(v), 10, 64)
		}
	}
	h.Path, _ = os.Readlink(link)
	return h, true
}

// resolves reports whether the path of an entry of an old generation leads, in the generation
// active, to the inode ino.
func (s *Server) resolves(in *instance, entry int, ino uint64, active namespace.Digest) bool {
	ctx, cancel := s.raw.request()
	defer cancel()
	g, ok := s.generation(active.Hex())
	if !ok {
		return false
	}
	path, ok := s.table.pathOf(in, entry)
	if !ok {
		return false
	}
	var at, tree pathID
	c, i := g.cat, 0
	for k, name := range path {
		next, found := c.Lookup(i, []byte(name))
		if !found {
			return false
		}
		e := c.Entry(next)
		if k == len(path)-1 {
			return e.Type != catalog.Dir && fileNode(c, next, e.Name, at, tree) == ino
		}
		at = at.child(e.Name)
		if i = next; e.IsNested() {
			ref, _ := c.Nested(next)
			sub, err := c.Enter(ctx, s.o.Source, next)
			if err != nil {
				return false
			}
			if ref.TreeRoot {
				tree = at
			}
			c, i = sub, 0
		}
	}
	return false
}

// sweep drops, from time to time, the generations that no process uses any more.
func (s *Server) sweep() {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		select {
		case <-s.stop:
			return
		case <-tick.C:
			if err := s.Sweep(); err != nil {
				s.o.Logger.Warn("old generations not swept", "error", err)
			}
		}
	}
}

// Sweep drops the draining generations that no process uses any more: the kernel is told to forget
// their entries, and their catalogs are let go as soon as it has. It is called from time to time
// anyway. Processes that Users cannot see keep what they have: it is merely not listed any more.
// Kinds: those of Users.
func (s *Server) Sweep() error {
	old := s.Status().Draining
	var holders []Holder
	if len(old) > 0 {
		var mounts []uint64
		for _, g := range old {
			mounts = append(mounts, g.at.mount)
		}
		var err error
		if holders, err = Users(mounts...); err != nil {
			return err
		}
	}
	s.mu.Lock() // which no handler takes, so the kernel may ask meanwhile
	defer s.mu.Unlock()
	for _, g := range old {
		if !slices.ContainsFunc(holders, g.at.holds) {
			s.retire(g)
		}
	}
	for root, g := range s.leaving {
		if left := s.table.drop(root); left == 0 {
			s.o.Logger.Info("generation drained", "version", g.Label, "root", root.String())
			delete(s.leaving, root)
			continue
		}
		s.forgetBelow(root)
	}
	return nil
}

// forgetBelow tells the kernel to forget what it still knows below the root of a generation that left
// while somebody used it, unseen by Users: the entry of the root is gone, and with it the way on which
// the kernel would find the rest when its last user goes.
func (s *Server) forgetBelow(root namespace.Digest) {
	c := s.table.rootCatalog(root)
	if c == nil {
		return
	}
	id := dirNode(root, pathID{})
	for lo, hi := c.Children(0); lo < hi; lo++ {
		s.fuse.EntryNotify(id, string(c.Entry(lo).Name)) // what it does not know is no error of ours
	}
}

// retire takes g off the list of those that drain. If nothing else of ours shows its tree, the
// kernel is told to forget it.
func (s *Server) retire(g Generation) {
	s.draining = slices.DeleteFunc(s.draining, func(d Generation) bool { return d == g })
	if s.active.Root == g.Root || s.isDraining(g.Root) {
		return
	}
	s.withdraw(g.Root)
	s.leaving[g.Root] = g
	s.fuse.EntryNotify(superRoot, g.Root.Hex())
}
