package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"coppice.dev/coppice/cache"
	"coppice.dev/coppice/fusefs"
	"coppice.dev/coppice/internal/netwatch"
	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/trust"
)

type statusRequest struct {
	Dir   string `json:"dir"`   // "" for all
	Brief bool   `json:"brief"` // without what takes a look at all of the cache
}

// pointed is a pointer in a status.
type pointed struct {
	Version  string           `json:"version"`
	Manifest namespace.Digest `json:"manifest"`
	Seq      uint64           `json:"seq,omitempty"`
	Issued   time.Time        `json:"issued,omitzero"`
}

// drain is an old generation and the processes that still use it.
type drain struct {
	Version string       `json:"version"`
	Since   time.Time    `json:"since"`
	Holders []heldByProc `json:"holders"`
}

// heldByProc is one thing of an old generation that a process has. Changed says that the active
// generation has other content there: the process runs, or reads, what was patched.
type heldByProc struct {
	PID     int    `json:"pid"`
	Comm    string `json:"comm"`
	What    string `json:"what"`
	Path    string `json:"path"`
	Changed bool   `json:"changed"`
}

// mountStatus is what `coppice status` knows of a mount.
type mountStatus struct {
	Dir       string      `json:"dir"`
	Target    string      `json:"target"`
	Origin    string      `json:"origin"`
	PID       int         `json:"pid"`
	Alive     bool        `json:"alive"`
	Mode      string      `json:"mode,omitempty"`
	Online    bool        `json:"online"`
	LastError string      `json:"last_error,omitempty"`
	Desired   *pointed    `json:"desired,omitempty"`
	Active    *pointed    `json:"active,omitempty"`
	Previous  *pointed    `json:"previous,omitempty"`
	Draining  []drain     `json:"draining,omitempty"`
	Cache     string      `json:"cache"`
	CacheInfo cache.Stats `json:"cache_stats"`
	Link      *linkStatus `json:"link,omitempty"`
	// Ready says for each generation that is kept whether it works without a network.
	Ready []readiness `json:"ready,omitempty"`

	Trust      *trust.Standing `json:"trust,omitempty"`
	Suspicion  string          `json:"suspicion,omitempty"` // why this machine may have been set back
	Quarantine bool            `json:"quarantine,omitempty"`

	Agent *agentView `json:"agent,omitempty"`
}

func point(p namespace.Pointer) *pointed {
	if p.Manifest.IsZero() {
		return nil
	}
	return &pointed{p.Version.String(), p.Manifest, p.Seq, p.Issued}
}

// wireStatus is what the daemon answers: it names the old generations, and the command finds out who
// holds them.
type wireStatus struct {
	mountStatus
	Generations []fusefs.Generation `json:"generations"`
}

// status answers for one mount, or for all.
func (d *daemon) status(ctx context.Context, req statusRequest) ([]wireStatus, error) {
	all := []wireStatus{}
	for _, e := range d.endpoints() {
		if req.Dir != "" && e.req.Dir != req.Dir {
			continue
		}
		s := e.describe(d)
		if !req.Brief {
			var err error
			if s.Ready, err = d.readyOf(ctx, e.holds(), false); err != nil {
				return nil, err
			}
		}
		all = append(all, s)
	}
	return all, nil
}

func (e *endpoint) describe(d *daemon) wireStatus {
	s := e.server.Status()
	stand, suspicion := e.minded(), e.trust.keep.suspicion()
	seen := e.agentView() // its loop may be waiting for e.mu
	e.swap.Lock()
	quarantined := e.quarantined
	e.swap.Unlock()
	e.mu.Lock()
	defer e.mu.Unlock()
	link := e.link.status()
	link.Sources = e.source.Status()
	return wireStatus{mountStatus{
		Dir: e.req.Dir, Target: e.req.Target, Origin: e.req.Origin, Alive: true, Mode: s.Mode,
		Online: link.State == netwatch.Online, Link: &link, LastError: e.status.LastError,
		Desired: point(e.status.Desired), Active: point(e.status.Active), Previous: point(e.previous),
		Cache: d.dir, CacheInfo: d.cache.Stats(),
		Trust: &stand, Suspicion: suspicion, Quarantine: quarantined, Agent: seen,
	}, s.Draining}
}

// currentRequest asks which inode numbers show the same content in the active generation.
type currentRequest struct {
	Dir    string   `json:"dir"`
	Inodes []uint64 `json:"inodes"`
}

func (d *daemon) current(_ context.Context, req currentRequest) ([]bool, error) {
	e, err := d.find(req.Dir)
	if err != nil {
		return nil, err
	}
	same := make([]bool, len(req.Inodes))
	for i, ino := range req.Inodes {
		same[i] = e.server.Current(ino)
	}
	return same, nil
}

func (a *app) statusCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "status [DIR]",
		Short: "Show what is mounted: desired, active, previous, draining, ready to leave",
		Long: `Shows the mounts of this user, or the one at DIR: the version its channel asks for, the one that is
active, the one before, and the old ones that processes still hold. A process that holds a file
whose content changed is patched on disk but not in memory: restart it. A line "ready" says of each
version that is kept, and of what is pinned of it, whether it works without a network, or what is missing
and how long that takes at the rate measured on this link.`,
		Example: "  coppice status\n  coppice status /mnt --json",
		Args:    between(0, 1),
		RunE: func(c *cobra.Command, args []string) error {
			dir := ""
			if len(args) == 1 {
				var err error
				if dir, err = mountPoint(args[0]); err != nil {
					return err
				}
			}
			all, err := a.collectStatus(c.Context(), dir)
			if err != nil {
				return err
			}
			if dir != "" && len(all) == 0 {
				return namespace.E(namespace.NotExist, "status of", dir, fmt.Errorf("not a mount of coppice"))
			}
			return a.result(all, func(w io.Writer) { printStatus(w, all) })
		},
	}
}

// collectStatus asks the daemons of all registered mounts, or of the one at dir.
func (a *app) collectStatus(ctx context.Context, dir string) ([]mountStatus, error) {
	all := []mountStatus{}
	for _, r := range allRegistered(runDir()) {
		if dir != "" && r.Dir != dir {
			continue
		}
		s, err := askStatus(ctx, r)
		if err != nil {
			return nil, err
		}
		all = append(all, s)
	}
	return all, nil
}

func askStatus(ctx context.Context, r registered) (mountStatus, error) {
	dead := mountStatus{Dir: r.Dir, Target: r.Target, PID: r.PID, Cache: r.Cache, LastError: "its daemon is gone; `coppice mount` or `coppice unmount` cleans up"}
	d, err := dialDaemon(r.Cache)
	if namespace.IsKind(err, namespace.NotExist) {
		return dead, nil
	}
	if err != nil {
		return dead, err
	}
	defer d.http.CloseIdleConnections()
	var got []wireStatus
	if err := d.call(ctx, "/status", statusRequest{Dir: r.Dir}, &got); err != nil || len(got) == 0 {
		return dead, err
	}
	s := got[0].mountStatus
	s.PID = r.PID
	err = findHolders(ctx, d, &s, got[0].Generations)
	return s, err
}

// findHolders fills in s.Draining: which processes hold which old generation.
func findHolders(ctx context.Context, d *daemonClient, s *mountStatus, old []fusefs.Generation) error {
	if len(old) == 0 {
		return nil
	}
	byMount, ids := map[uint64]int{}, []uint64{}
	for i, g := range old {
		s.Draining = append(s.Draining, drain{Version: g.Label, Since: g.Since, Holders: []heldByProc{}})
		byMount[g.MountID] = i
		ids = append(ids, g.MountID)
	}
	holders, err := fusefs.Users(ids...)
	if err != nil {
		return err
	}
	req := currentRequest{Dir: s.Dir}
	for _, h := range holders {
		req.Inodes = append(req.Inodes, h.Ino)
	}
	var same []bool
	if err := d.call(ctx, "/current", req, &same); err != nil {
		return err
	}
	for i, h := range holders {
		if k, ok := byMount[h.MountID]; ok && i < len(same) {
			g := &s.Draining[k]
			g.Holders = append(g.Holders, heldByProc{h.PID, h.Comm, h.What, h.Path, !same[i] && h.What != "cwd" && h.What != "root"})
		}
	}
	return nil
}

func printStatus(w io.Writer, all []mountStatus) {
	if len(all) == 0 {
		fmt.Fprintln(w, "nothing is mounted")
	}
	for i, s := range all {
		if i > 0 {
			fmt.Fprintln(w)
		}
		link := "online"
		switch {
		case !s.Alive:
			link = "dead"
		case s.Link != nil:
			link = s.Link.State.String()
		}
		fmt.Fprintf(w, "%s  %s  %s\n", s.Dir, s.Target, link)
		field(w, "origin", s.Origin)
		if s.Link != nil {
			printLink(w, s.Link)
		}
		field(w, "mode", s.Mode)
		printPointed(w, "desired", s.Desired)
		printPointed(w, "active", s.Active)
		printPointed(w, "previous", s.Previous)
		for _, d := range s.Draining {
			printDrain(w, d)
		}
		for _, r := range s.Ready {
			field(w, "ready", r.text())
		}
		if s.Alive {
			field(w, "cache", fmt.Sprintf("%s of %s in %s", size(uint64(s.CacheInfo.UsedBytes)), size(uint64(s.CacheInfo.QuotaBytes)), s.Cache))
		}
		printTrust(w, s)
		if s.Agent != nil {
			s.Agent.print(w)
		}
		field(w, "error", s.LastError)
	}
}

func printTrust(w io.Writer, s mountStatus) {
	if t := s.Trust; t != nil {
		fresh := "fresh until " + when(t.Expires)
		if !t.Fresh {
			fresh = "expired " + when(t.Expires) + ": nothing new is accepted"
		}
		field(w, "trust", fresh)
		lease := "until " + when(t.LeaseUntil) + ", then " + string(t.Then)
		if t.LeaseOver {
			lease = "over since " + when(t.LeaseUntil) + ": " + string(t.Then)
		}
		field(w, "lease", lease)
		field(w, "clock", t.Doubt)
	}
	field(w, "restored", s.Suspicion)
	if s.Quarantine {
		field(w, "content", "none: in quarantine until the origin is reached")
	}
}

func field(w io.Writer, name, value string) {
	if value != "" {
		fmt.Fprintf(w, "  %-9s %s\n", name, value)
	}
}

func printPointed(w io.Writer, name string, p *pointed) {
	if p == nil {
		return
	}
	seq := ""
	if p.Seq > 0 {
		seq = fmt.Sprintf("  seq %d", p.Seq)
	}
	field(w, name, fmt.Sprintf("%s%s  issued %s  %s", p.Version, seq, when(p.Issued), p.Manifest.Short()))
}

func printDrain(w io.Writer, d drain) {
	if len(d.Holders) == 0 {
		field(w, "draining", d.Version+"  no process holds it")
		return
	}
	field(w, "draining", fmt.Sprintf("%s  held by", d.Version))
	for _, h := range d.Holders {
		note := ""
		if h.Changed {
			note = "  changed: restart it"
		}
		fmt.Fprintf(w, "            %s[%d] %s %s%s\n", h.Comm, h.PID, h.What, strings.TrimSpace(h.Path), note)
	}
}
