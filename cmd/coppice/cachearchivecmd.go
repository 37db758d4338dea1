package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"coppice.dev/coppice/internal/disk"
	"coppice.dev/coppice/namespace"
)

func (a *app) cacheExport() *cobra.Command {
	return &cobra.Command{
		Use:   "export FILE|DIR/ [DIR-OF-MOUNT|CHANNEL|NAME@N]",
		Short: "Write what a mount needs to a file or a USB disk",
		Long: `Writes a version, with everything that a machine without any link needs to mount it: the signed
record, the root of trust, catalogs and content. With a path that ends with / a directory is
written, which is a static origin and can be served, else a tar file of the same. An interrupted
export to a directory goes on where it ended. Without a second argument the cache must have one
mount. What the cache does not hold is fetched, or the export fails.`,
		Example: "  coppice cache export /media/usb/desk.tar /mnt\n  coppice cache export /media/usb/desk/ desktop/stable",
		Args:    between(1, 2),
		RunE: func(c *cobra.Command, args []string) error {
			req, err := a.exportRequest(args)
			if err != nil {
				return err
			}
			r, err := archive(c.Context(), a, "exporting", "/export", req, 0,
				func(d *daemon) func(context.Context, exportRequest, progressOf) (archiveReply, error) {
					return d.export
				})
			if err != nil {
				return err
			}
			return a.result(r, func(w io.Writer) {
				fmt.Fprintf(w, "%s  %s  %d packs, %s\n", r.Path, r.Version, r.Packs, size(r.Bytes))
			})
		},
	}
}

func (a *app) exportRequest(args []string) (req exportRequest, err error) {
	if req.Dest, err = filepath.Abs(args[0]); err != nil {
		return req, namespace.E(namespace.Invalid, "find", args[0], err)
	}
	info, serr := os.Stat(req.Dest)
	req.Tar = !strings.HasSuffix(args[0], "/") && (serr != nil || !info.IsDir())
	if len(a.origin) > 0 {
		if req.Origin, err = a.location(); err != nil {
			return req, err
		}
	}
	if len(args) < 2 {
		cacheDir, err := a.cacheDir()
		if err != nil {
			return req, err
		}
		var mounts []string
		for _, r := range allRegistered(runDir()) {
			if r.Cache == cacheDir {
				mounts = append(mounts, r.Dir)
			}
		}
		if len(mounts) != 1 {
			return req, namespace.WithHint(usage("the cache has %d mounts", len(mounts)), "name a mount, a channel or NAME@N")
		}
		req.Dir = mounts[0]
		return req, nil
	}
	if dir, err := mountPoint(args[1]); err == nil {
		if r, ok := lookup(runDir(), dir); ok {
			a.cache, req.Dir = r.Cache, dir
			return req, nil
		}
	}
	req.Target = args[1]
	_, err = targetRef(req.Target)
	return req, err
}

func (a *app) cacheImport() *cobra.Command {
	var trusted, quota string
	c := &cobra.Command{
		Use:   "import FILE|DIR",
		Short: "Fill the cache from what `cache export` wrote",
		Long: `Reads an export into the cache, so that what it holds can be mounted without a network. Everything is
verified as from the network: content by digest, the documents by the root of trust that is pinned
for the origin, or given with --trust; older ones than those seen last are refused, and so are some
whose timestamp has expired: import within that time (a week, unless the origin's policy says else).
What was imported goes on after that. At first contact the root in the export is pinned. --origin names the origin as mounts will, if not as the
export says. An interrupted import goes on where it ended.`,
		Example: "  coppice cache import /media/usb/desk.tar\n  coppice cache import /media/usb/desk --trust root.json",
		Args:    exact(1),
		RunE: func(c *cobra.Command, args []string) error {
			bytes, err := parseSize(quota)
			if err != nil {
				return err
			}
			req, err := a.importRequest(args[0], trusted)
			if err != nil {
				return err
			}
			r, err := archive(c.Context(), a, "importing", "/import", req, bytes,
				func(d *daemon) func(context.Context, importRequest, progressOf) (archiveReply, error) {
					return d.imports
				})
			if err != nil {
				return err
			}
			if r.Pinned != "" && !a.quiet {
				a.note("first contact with %s: pinned its root of trust, origin id %s", r.Origin, r.Pinned)
			}
			return a.result(r, func(w io.Writer) { fmt.Fprintf(w, "%s  %s  of %s\n", r.Target, r.Version, r.Origin) })
		},
	}
	c.Flags().StringVar(&trusted, "trust", "", "`FILE` with the origin's root of trust (a copy of ref/trust/root)")
	c.Flags().StringVar(&quota, "quota", "", "bound of the cache in `BYTES` (20G, 512M), when no daemon has it")
	return c
}

func (a *app) importRequest(source, trusted string) (req importRequest, err error) {
	if req.Source, err = filepath.Abs(source); err != nil {
		return req, namespace.E(namespace.Invalid, "find", source, err)
	}
	if len(a.origin) > 0 {
		if req.Origin, err = a.location(); err != nil {
			return req, err
		}
	}
	if trusted != "" {
		if req.Trust, err = os.ReadFile(trusted); err != nil {
			return req, disk.Error("read", trusted, err)
		}
	}
	return req, nil
}
