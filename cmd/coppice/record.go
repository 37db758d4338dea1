package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"coppice.dev/coppice/cache"
	"coppice.dev/coppice/fusefs"
	"coppice.dev/coppice/internal/disk"
	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/catalog"
)

// recording is a mount of an active version of its own, whose first accesses are noted. It lives as long
// as the request that began it.
type recording struct {
	e      *endpoint
	rec    *cache.Recorder
	root   namespace.Digest
	server *fusefs.Server
	end    context.CancelFunc
	over   chan struct{} // closed when the mount is gone
}

// recordRequest asks for a recording of what is mounted at Dir.
type recordRequest struct {
	Dir string `json:"dir"`
}

// recordReply says where the recorded mount is.
type recordReply struct {
	Dir     string            `json:"dir"`
	Version namespace.Version `json:"version"`
	Error   *controlError     `json:"error,omitempty"`
}

// recordedRequest asks what was accessed in the recorded mount at Dir, and ends it.
type recordedRequest struct {
	Dir string `json:"dir"`
}

// waitsRequest asks what reads had to wait for, of the version mounted at Dir. Forget forgets it.
type waitsRequest struct {
	Dir    string `json:"dir"`
	Forget bool   `json:"forget,omitempty"`
}

// accessed is what was accessed of a version, in its order. Others counts accesses to something else.
type accessed struct {
	Version namespace.Version        `json:"version"`
	Entries []namespace.ProfileEntry `json:"entries"`
	Others  int                      `json:"others"`
}

func (d *daemon) handleProfiles(mux *http.ServeMux) {
	mux.HandleFunc("POST /record", d.record)
	mux.HandleFunc("POST /recorded", answer(d.recorded))
	mux.HandleFunc("POST /waits", answer(d.waits))
}

// record makes a recorded mount, says where, and keeps it until whoever asked is gone.
func (d *daemon) record(w http.ResponseWriter, r *http.Request) {
	var req recordRequest
	err := json.NewDecoder(io.LimitReader(r.Body, 1<<20)).Decode(&req)
	var e *endpoint
	if err == nil {
		e, err = d.find(req.Dir)
	}
	var reply recordReply
	var rec *recording
	if err == nil {
		reply, rec, err = d.beginRecording(r.Context(), e)
	}
	if err != nil {
		reply.Error = wireError(err)
	}
	_ = json.NewEncoder(w).Encode(reply)
	_ = http.NewResponseController(w).Flush()
	if err == nil {
		<-rec.over
	}
}

// beginRecording mounts the active version of e once more, until ctx ends.
func (d *daemon) beginRecording(ctx context.Context, e *endpoint) (reply recordReply, rec *recording, err error) {
	active := e.activePointer()
	m, err := e.manifest(ctx, active.Manifest)
	if err != nil {
		return reply, nil, err
	}
	base := filepath.Join(e.req.RunDir, "record")
	if err := os.MkdirAll(base, 0o700); err != nil {
		return reply, nil, disk.Error("create", base, err)
	}
	dir, err := os.MkdirTemp(base, "")
	if err != nil {
		return reply, nil, disk.Error("create in", base, err)
	}
	rec = &recording{e: e, rec: e.view.Record(), root: m.Root, over: make(chan struct{})}
	rec.server, err = fusefs.Mount(ctx, fusefs.Options{Dir: dir, Source: rec.rec, RunDir: filepath.Join(e.req.RunDir, "fuse"),
		Name: e.req.Target, AllowSuid: e.req.AllowSuid, AllowDev: e.req.AllowDev, Exact: true, ReadAheadKB: readAheadCold, Logger: e.log})
	if err != nil {
		return reply, nil, errors.Join(err, os.Remove(dir))
	}
	if _, err = rec.server.Activate(ctx, m.Root, active.Version.String()); err == nil && rec.server.Status().Mode != fusefs.ModeBeneath {
		err = namespace.WithHint(namespace.E(namespace.Denied, "record", e.req.Dir, errors.New("a private mount needs root")),
			"mount and record as root, or in a user namespace")
	}
	d.mu.Lock()
	if d.ending && err == nil {
		err = namespace.E(namespace.Unavailable, "record", e.req.Dir, errEnding)
	}
	if err == nil {
		ctx, rec.end = context.WithCancel(ctx)
		d.records[dir] = rec
		e.work.Go(func() { d.endRecording(ctx, dir, rec) })
	}
	d.mu.Unlock()
	if err != nil {
		uerr := rec.server.Unmount(true)
		rec.server.Wait()
		return reply, nil, errors.Join(err, uerr, os.Remove(dir))
	}
	e.log.Info("recording", "version", active.Version.String())
	return recordReply{Dir: dir, Version: active.Version}, rec, nil
}

// endRecording takes a recorded mount away when ctx, or its endpoint, has ended.
func (d *daemon) endRecording(ctx context.Context, dir string, rec *recording) {
	defer close(rec.over)
	defer rec.end()
	select {
	case <-ctx.Done():
	case <-rec.e.ctx.Done():
	}
	d.mu.Lock()
	delete(d.records, dir)
	d.mu.Unlock()
	if err := rec.server.Unmount(true); err != nil {
		rec.e.log.Warn("recorded mount not taken away", "error", err)
	}
	gone := make(chan struct{})
	go func() { defer close(gone); rec.server.Wait() }()
	select {
	case <-gone:
	case <-time.After(leaveWithin): // the command left somebody behind, who must not keep the daemon
		rec.e.log.Warn("a recorded mount is still in use")
	}
	_ = os.Remove(dir)
}

// recorded returns what was accessed, when the mount is gone.
func (d *daemon) recorded(ctx context.Context, req recordedRequest) (accessed, error) {
	d.mu.Lock()
	rec := d.records[req.Dir]
	d.mu.Unlock()
	if rec == nil {
		return accessed{}, namespace.E(namespace.NotExist, "record", req.Dir, errors.New("no such recording"))
	}
	rec.end()
	<-rec.over // which takes no longer than leaveWithin
	return rec.e.accessed(ctx, rec.rec.Accesses(), rec.root)
}

// waits returns what reads of the version at a mount had to wait for.
func (d *daemon) waits(ctx context.Context, req waitsRequest) (accessed, error) {
	e, err := d.find(req.Dir)
	if err != nil {
		return accessed{}, err
	}
	m, err := e.manifest(ctx, e.activePointer().Manifest)
	if err != nil {
		return accessed{}, err
	}
	roots := []namespace.Digest{m.Root}
	if before := e.before(); !before.Manifest.IsZero() { // what was missed of it is not lost with it
		if m, err := e.manifest(ctx, before.Manifest); err == nil && e.view.HasMetadata(m.Root) {
			roots = append(roots, m.Root)
		}
	}
	all := d.cache.Waits()
	a, err := e.accessed(ctx, all, roots...)
	if err == nil && req.Forget {
		d.cache.ForgetWaits(all)
	}
	return a, err
}

// before returns the pointer that was active before.
func (e *endpoint) before() namespace.Pointer {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.previous
}

// accessed says what accesses were to, in the trees at roots.
func (e *endpoint) accessed(ctx context.Context, all []catalog.Access, roots ...namespace.Digest) (a accessed, err error) {
	a.Version = e.activePointer().Version
	a.Entries, a.Others, err = catalog.ProfileEntries(ctx, e.view, all, roots...)
	return a, err
}
