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
)

// An export is a static origin with one channel, or one fixed version, in a directory or in a tar file:
// the documents of trust as this endpoint verified them, manifest, catalogs, locators and packs.
// An import is a hydration from it, after which the documents are taken as if the origin had sent them.

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
	info      exportInfo
	documents *documents
	version   namespace.Pointer
	view      *cache.Reader
	close     func() error
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
		if err := s.documents.put(ctx, put); err != nil {
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
	for _, n := range s.documents.order {
		have, err := o.Ref(ctx, n)
		if err != nil && !namespace.IsKind(err, namespace.NotExist) {
			return rep, err
		}
		if next := s.documents.refs[n]; string(have) != string(next) {
			if err := o.SwapRef(ctx, n, have, next); err != nil {
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
	for _, n := range s.documents.order {
		if err := w.PutRef(n, s.documents.refs[n]); err != nil {
			return rep, err
		}
	}
	err = w.Close()
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
