package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"coppice.dev/coppice/cache"
	"coppice.dev/coppice/internal/disk"
	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/object"
	"coppice.dev/coppice/namespace/origin"
	"coppice.dev/coppice/namespace/trust"
	"coppice.dev/coppice/rollout"
)

// An export is a static origin with one channel, or one fixed version, in a directory or in a tar file:
// root of trust and signed record as this endpoint verified them, manifest, catalogs, locators and packs.
// An import is a hydration from it, after which the record is remembered as if the origin had sent it.

// exportMarker is the file of an export that says what it is of. Nothing in it is trusted.
const exportMarker = "export.json"

type exportInfo struct {
	Format int    `json:"format"`
	Origin string `json:"origin,omitempty"` // the location by which endpoints know it
	Target string `json:"target"`           // CHANNEL or NAME@N
}

type exportRequest struct {
	Dest   string `json:"dest"` // absolute
	Tar    bool   `json:"tar,omitempty"`
	Dir    string `json:"dir,omitempty"`    // a mount, or
	Target string `json:"target,omitempty"` // CHANNEL or NAME@N
	Origin string `json:"origin,omitempty"`
}

type importRequest struct {
	Source string `json:"source"` // absolute
	Origin string `json:"origin,omitempty"`
	Trust  []byte `json:"trust,omitempty"`
}

// archiveReply is the result of an export or import.
type archiveReply struct {
	Path    string `json:"path"`
	Target  string `json:"target"`
	Version string `json:"version"`
	Origin  string `json:"origin,omitempty"`
	Pinned  string `json:"pinned,omitempty"`
	cache.ExportReport
}

// progressOf is told bytes done and in total.
type progressOf func(done, total int64)

// selected is what an export is of.
type selected struct {
	info    exportInfo
	ref     namespace.RefName
	raw     []byte // its envelope
	root    []byte // the root's
	version namespace.Pointer
	view    *cache.Reader
	close   func() error
}

// export writes an export.
func (d *daemon) export(ctx context.Context, req exportRequest, progress progressOf) (archiveReply, error) {
	s, err := d.selectExport(ctx, req)
	if err != nil {
		return archiveReply{}, err
	}
	defer s.close()
	b, err := s.view.Blob(ctx, s.version.Manifest, namespace.ManifestBytesMax)
	if err != nil {
		return archiveReply{}, err
	}
	m, err := readManifest(b, s.version.Manifest)
	if err != nil {
		return archiveReply{}, err
	}
	write := s.toDir
	if req.Tar {
		write = s.toTar
	}
	rep, err := write(ctx, req.Dest, func(put putFunc) (cache.ExportReport, error) {
		if err := put(ctx, namespace.Key{Class: namespace.Blob, Digest: s.version.Manifest}, object.EncodeBlob(b)); err != nil {
			return cache.ExportReport{}, err
		}
		return s.view.Export(ctx, m.Root, put, progress)
	})
	if namespace.IsKind(err, namespace.Unavailable) {
		err = namespace.WithHint(err, "the cache does not hold all of it: `coppice cache hydrate` first, or name an --origin that answers")
	}
	return archiveReply{Path: req.Dest, Target: s.info.Target, Version: s.version.Version.String(), Origin: s.info.Origin, ExportReport: rep}, err
}

type putFunc = func(context.Context, namespace.Key, []byte) error

// selectExport finds the record of what is to be exported among those that were verified before.
func (d *daemon) selectExport(ctx context.Context, req exportRequest) (*selected, error) {
	s := &selected{info: exportInfo{Format: 1, Origin: req.Origin, Target: req.Target}, close: func() error { return nil }}
	if req.Dir != "" {
		e, err := d.find(req.Dir)
		if err != nil {
			return nil, err
		}
		s.info.Target, s.info.Origin, s.view = e.req.Target, e.req.Origin, e.view
		return s, s.open(d.dir, filepath.Base(string(e.state)))
	}
	if s.view = d.cache.Reader(nowhere{}); req.Origin != "" {
		if src, err := origin.Open(ctx, req.Origin, origin.Options{}); err == nil {
			s.view, s.close = d.cache.Reader(src), src.Close
		}
	}
	roots, err := filepath.Glob(filepath.Join(d.dir, "state", "*"))
	if err != nil {
		return nil, disk.Error("list", d.dir, err)
	}
	var found []string
	for _, dir := range roots {
		if n, err := targetRef(s.info.Target); err != nil {
			return nil, err
		} else if b, err := stateDir(dir).read(n.String()); err == nil && b != nil {
			found = append(found, filepath.Base(dir))
		}
	}
	switch len(found) {
	case 1:
		return s, s.open(d.dir, found[0])
	case 0:
		return nil, namespace.WithHint(namespace.E(namespace.NotExist, "export", s.info.Target, errors.New("this cache has no verified record of it")),
			"mount it once, or name the directory of a mount")
	}
	return nil, namespace.WithHint(namespace.E(namespace.Invalid, "export", s.info.Target, fmt.Errorf("%d origins have one of this name", len(found))),
		"name the directory of a mount")
}

// targetRef returns the ref that a mount's target is read from.
func targetRef(target string) (namespace.RefName, error) {
	n := namespace.RefName{Kind: namespace.ChannelRef, Name: target}
	if strings.Contains(target, "@") {
		v, err := namespace.ParseVersion(target)
		if err != nil {
			return n, err
		}
		n = namespace.RefName{Kind: namespace.NamespaceRef, Name: v.Name}
	}
	return n, n.Check()
}

// open reads and verifies the record as it is remembered of the origin id.
func (s *selected) open(cacheDir, id string) error {
	var err error
	if s.ref, err = targetRef(s.info.Target); err != nil {
		return err
	}
	var root *trust.Root
	pins, _ := filepath.Glob(filepath.Join(cacheDir, "trust", "*.json"))
	for _, pin := range pins {
		b, err := os.ReadFile(pin)
		if err != nil {
			continue
		}
		if r, err := trust.OpenRoot(b); err == nil && r.ID == id {
			root, s.root = r, b
		}
	}
	if root == nil {
		return namespace.E(namespace.NotExist, "export", s.info.Target, fmt.Errorf("no root of trust of the origin %s is pinned here", id))
	}
	if s.raw, err = stateDir(filepath.Join(cacheDir, "state", id)).read(s.ref.String()); err != nil || s.raw == nil {
		return errors.Join(err, namespace.E(namespace.NotExist, "export", s.info.Target, errors.New("this cache has no verified record of it")))
	}
	s.version, err = recordVersion(root, s.info.Target, s.ref, s.raw)
	return err
}

// recordVersion verifies a record and returns which version it means.
func recordVersion(root *trust.Root, target string, n namespace.RefName, raw []byte) (namespace.Pointer, error) {
	if n.Kind == namespace.ChannelRef {
		return root.OpenPointer(n.Name, raw, 0, namespace.Digest{})
	}
	v, err := namespace.ParseVersion(target)
	if err != nil {
		return namespace.Pointer{}, err
	}
	nv, v, err := trust.Refs{Reader: oneRef(raw), Root: root}.ResolveNamespace(context.Background(), v)
	return namespace.Pointer{Version: v, Manifest: nv.Manifest, Issued: nv.Created}, err
}

// toDir writes an export into a directory, or goes on with one that was interrupted.
func (s *selected) toDir(ctx context.Context, dest string, content func(putFunc) (cache.ExportReport, error)) (rep cache.ExportReport, err error) {
	marker, err := json.Marshal(s.info)
	if err != nil {
		return rep, namespace.E(namespace.Internal, "encode", exportMarker, err)
	}
	o, err := origin.CreateDir(dest)
	if namespace.IsKind(err, namespace.Exist) {
		have, rerr := os.ReadFile(filepath.Join(dest, exportMarker))
		if rerr != nil || string(have) != string(marker) {
			return rep, err
		}
		o, err = origin.OpenDir(dest)
	}
	if err != nil {
		return rep, err
	}
	defer o.Close()
	if err := disk.Replace(filepath.Join(dest, exportMarker), marker, 0o644); err != nil {
		return rep, err
	}
	if rep, err = content(o.Put); err != nil {
		return rep, err
	}
	for _, r := range []struct {
		n namespace.RefName
		b []byte
	}{{trust.RootName, s.root}, {s.ref, s.raw}} { // what names the rest comes last
		have, err := o.Ref(ctx, r.n)
		if err != nil && !namespace.IsKind(err, namespace.NotExist) {
			return rep, err
		}
		if string(have) != string(r.b) {
			if err := o.SwapRef(ctx, r.n, have, r.b); err != nil {
				return rep, err
			}
		}
	}
	return rep, nil
}

// toTar writes an export as a file, which appears when it is complete.
func (s *selected) toTar(_ context.Context, dest string, content func(putFunc) (cache.ExportReport, error)) (rep cache.ExportReport, err error) {
	f, err := disk.NewFile("export", dest, 0o644)
	if err != nil {
		return rep, err
	}
	defer f.Discard()
	w, err := cache.NewArchiveWriter(f)
	if err != nil {
		return rep, err
	}
	marker, err := json.Marshal(s.info)
	if err != nil {
		return rep, namespace.E(namespace.Internal, "encode", exportMarker, err)
	}
	if err := w.PutFile(exportMarker, marker); err != nil {
		return rep, err
	}
	if rep, err = content(w.Put); err != nil {
		return rep, err
	}
	err = w.PutRef(trust.RootName, s.root)
	if err == nil {
		err = w.PutRef(s.ref, s.raw)
	}
	if err == nil {
		err = w.Close()
	}
	if err == nil {
		err = f.Commit()
	}
	return rep, err
}

// nowhere is an origin that cannot be asked.
type nowhere struct{}

// Get implements namespace.Fetcher.
func (nowhere) Get(_ context.Context, k namespace.Key, _, _ int64) (io.ReadCloser, error) {
	return nil, namespace.E(namespace.Unavailable, "get", k.String(), errors.New("it is not in the cache, and no origin is known"))
}

// openExport opens an export and reads what it says of itself.
func openExport(path string) (src namespace.Source, closer io.Closer, info exportInfo, err error) {
	var b []byte
	if st, serr := os.Stat(path); serr != nil {
		return nil, nil, info, disk.Error("open", path, serr)
	} else if st.IsDir() {
		o, err := origin.OpenDir(path)
		if err != nil {
			return nil, nil, info, err
		}
		src, closer = o, o
		b, err = os.ReadFile(filepath.Join(path, exportMarker))
		if err != nil {
			o.Close()
			return nil, nil, info, namespace.WithHint(disk.Error("read", filepath.Join(path, exportMarker), err), "an import reads what `coppice cache export` wrote")
		}
	} else {
		a, err := cache.OpenArchive(path)
		if err != nil {
			return nil, nil, info, err
		}
		src, closer = a, a
		if b, err = a.File(exportMarker, 64<<10); err != nil {
			a.Close()
			return nil, nil, info, err
		}
	}
	if err = json.Unmarshal(b, &info); err == nil && info.Format != 1 {
		err = fmt.Errorf("format %d, this build knows 1", info.Format)
	}
	if err != nil {
		closer.Close()
		return nil, nil, info, namespace.E(namespace.Corrupt, "open export", path, err)
	}
	return src, closer, info, nil
}

// imports hydrates the cache from an export: content first, and when that is complete and durable, the
// record, if it is not older than what is remembered.
func (d *daemon) imports(ctx context.Context, req importRequest, progress progressOf) (archiveReply, error) {
	src, closer, info, err := openExport(req.Source)
	if err != nil {
		return archiveReply{}, err
	}
	defer closer.Close()
	loc := req.Origin
	if loc == "" {
		loc = info.Origin
	}
	if loc == "" {
		return archiveReply{}, namespace.WithHint(usage("the export does not say which origin it is of"), "name it with --origin")
	}
	n, err := targetRef(info.Target)
	if err != nil {
		return archiveReply{}, err
	}
	root, _, pinned, err := d.trustOrigin(ctx, src, mountRequest{Origin: loc, Trust: req.Trust})
	if err != nil {
		return archiveReply{}, err
	}
	state := stateDir(filepath.Join(d.dir, "state", root.ID))
	view := d.cache.Reader(src)
	hydrate := func(ctx context.Context, p namespace.Pointer) error {
		b, err := view.Blob(ctx, p.Manifest, namespace.ManifestBytesMax)
		if err != nil {
			return err
		}
		m, err := readManifest(b, p.Manifest)
		if err != nil {
			return err
		}
		return view.Hydrate(ctx, m.Root, progress)
	}
	var p namespace.Pointer
	if n.Kind == namespace.ChannelRef {
		p, err = importChannel(ctx, src, root, state, n.Name, hydrate)
	} else {
		p, err = importVersion(ctx, src, root, state, info.Target, hydrate)
	}
	return archiveReply{Path: req.Source, Target: info.Target, Version: p.Version.String(), Origin: loc, Pinned: pinned}, err
}

// importChannel takes a channel's pointer as a follower would, but remembers it when the content is here.
func importChannel(ctx context.Context, src namespace.RefReader, root *trust.Root, state stateDir, channel string,
	hydrate func(context.Context, namespace.Pointer) error) (namespace.Pointer, error) {
	held := &heldMemory{Memory: state}
	im := &importer{hydrate: hydrate}
	f := rollout.New(rollout.Options{Channel: channel, Reader: src, Root: root, Memory: held, Activator: im})
	if err := f.Start(ctx); err != nil {
		return namespace.Pointer{}, err
	}
	return im.p, held.flush(channel)
}

// heldMemory is a follower's memory that keeps what is saved to itself until it is flushed.
type heldMemory struct {
	rollout.Memory
	held []byte
}

// Save implements rollout.Memory.
func (m *heldMemory) Save(_ string, envelope []byte) error { m.held = envelope; return nil }

func (m *heldMemory) flush(channel string) error {
	if m.held == nil {
		return nil
	}
	return m.Memory.Save(channel, m.held)
}

// importer is the activator of an import: it has the content fetched.
type importer struct {
	hydrate func(context.Context, namespace.Pointer) error
	p       namespace.Pointer
}

// Stage implements rollout.Activator.
func (i *importer) Stage(ctx context.Context, p namespace.Pointer) error { return i.hydrate(ctx, p) }

// Activate implements rollout.Activator.
func (i *importer) Activate(_ context.Context, p namespace.Pointer) error { i.p = p; return nil }

// importVersion takes a fixed version. The record of its namespace is remembered unless a newer one is.
func importVersion(ctx context.Context, src namespace.RefReader, root *trust.Root, state stateDir, target string,
	hydrate func(context.Context, namespace.Pointer) error) (namespace.Pointer, error) {
	n, err := targetRef(target)
	if err != nil {
		return namespace.Pointer{}, err
	}
	raw, err := src.Ref(ctx, n)
	if err != nil {
		return namespace.Pointer{}, err
	}
	p, err := recordVersion(root, target, n, raw)
	if err != nil {
		return p, err
	}
	if err := hydrate(ctx, p); err != nil {
		return p, err
	}
	kept, err := state.read(n.String())
	if err != nil {
		return p, err
	}
	if kept != nil {
		var have, next namespace.Namespace
		if root.OpenRecord(n, kept, &have) == nil && root.OpenRecord(n, raw, &next) == nil && len(next.Versions) < len(have.Versions) {
			return p, nil
		}
	}
	return p, state.write(n.String(), raw)
}

// archiveUpdate is a line of the reply to an export or import: progress, then the end.
type archiveUpdate struct {
	hydrateUpdate
	Result archiveReply `json:"result,omitzero"`
}

// handleArchive adds export and import to the control protocol.
func (d *daemon) handleArchive(mux *http.ServeMux) {
	mux.HandleFunc("POST /export", stream(d.export))
	mux.HandleFunc("POST /import", stream(d.imports))
}

// stream makes a handler of long work that tells of its progress line by line.
func stream[Req any](work func(context.Context, Req, progressOf) (archiveReply, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var req Req
		err := json.NewDecoder(io.LimitReader(r.Body, 16<<20)).Decode(&req)
		enc, flush := json.NewEncoder(w), http.NewResponseController(w)
		var end archiveUpdate
		if err == nil {
			var last time.Time
			end.Result, err = work(r.Context(), req, func(done, total int64) {
				if time.Since(last) > 100*time.Millisecond {
					last = time.Now()
					_ = enc.Encode(archiveUpdate{hydrateUpdate: hydrateUpdate{Done: done, Total: total}})
					_ = flush.Flush()
				}
			})
		}
		if end.End = true; err != nil {
			end.Error = wireError(err)
		}
		_ = enc.Encode(end)
	}
}

// archive has the cache's daemon do the work at path, or does it itself if none runs.
func archive[Req any](ctx context.Context, a *app, what, path string, req Req, quota int64,
	work func(*daemon) func(context.Context, Req, progressOf) (archiveReply, error)) (archiveReply, error) {
	bar := a.progress(what, "")
	defer bar.Close()
	progress := func(done, total int64) { bar.Set(0, 0, uint64(done), uint64(total)) }
	var reply archiveReply
	err := a.onCache(ctx, cache.Options{QuotaBytes: quota},
		func(c *daemonClient) (err error) { reply, err = followArchive(ctx, c, path, req, progress); return err },
		func(d *daemon) (err error) { reply, err = work(d)(ctx, req, progress); return err })
	return reply, err
}

// followArchive follows the daemon's progress to its end.
func followArchive(ctx context.Context, d *daemonClient, path string, req any, progress progressOf) (archiveReply, error) {
	body, err := d.stream(ctx, path, req)
	if err != nil {
		return archiveReply{}, err
	}
	defer body.Close()
	dec := json.NewDecoder(body)
	for {
		var u archiveUpdate
		if err := dec.Decode(&u); err != nil {
			return archiveReply{}, namespace.E(namespace.Unavailable, "ask", "daemon of "+d.cache, fmt.Errorf("it stopped answering: %w", err))
		}
		switch {
		case u.Error != nil:
			return u.Result, u.Error.err()
		case u.End:
			return u.Result, nil
		}
		progress(u.Done, u.Total)
	}
}
