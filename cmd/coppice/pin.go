package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"coppice.dev/coppice/cache"
	"coppice.dev/coppice/internal/disk"
	"coppice.dev/coppice/namespace"
)

// keepFlags are those of commands that say what of a version is kept.
type keepFlags struct {
	paths    []string
	profile  string
	all      bool
	priority int
	quota    string
	rate     string
}

func (f *keepFlags) selects(c *cobra.Command) {
	c.Flags().StringArrayVar(&f.paths, "path", nil, "only what matches this `GLOB`, with everything below it; may be given again (* ? [a-z] {a,b} within a name, ** across)")
	c.Flags().StringVar(&f.profile, "profile", "", "also the files of a `PROFILE`: a recorded one, NAMESPACE:NAME of one that was published, or a list of paths, one a line")
	c.Flags().BoolVar(&f.all, "all", false, "everything")
	c.Flags().StringVar(&f.quota, "quota", "", "bound of the cache in `BYTES` (20G, 512M), from now on")
}

// profileMax bounds a list of paths: as many as a selection may have, of a usual length.
const profileMax = 64 << 20

// profilePaths reads what a profile names: one that was recorded or published, of which the files are
// meant, or a list of paths, one a line; empty lines and those that begin with # do not count.
func (a *app) profilePaths(ctx context.Context, arg string) ([]string, error) {
	f, err := os.Open(arg)
	if errors.Is(err, fs.ErrNotExist) && strings.Contains(arg, ":") {
		return a.recordedPaths(ctx, arg)
	}
	if err != nil {
		return nil, disk.Error("read", arg, err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, profileMax+1))
	if err == nil && len(b) > profileMax {
		err = namespace.E(namespace.Limit, "", "", fmt.Errorf("more than %d bytes", profileMax))
	}
	if err != nil {
		return nil, disk.Error("read", arg, err)
	}
	if bytes.HasPrefix(b, []byte("{")) {
		return a.recordedPaths(ctx, arg)
	}
	var paths []string
	lines := bufio.NewScanner(bytes.NewReader(b))
	lines.Buffer(nil, 2*namespace.PathBytesMax)
	for lines.Scan() {
		if p := lines.Text(); strings.TrimSpace(p) != "" && !strings.HasPrefix(p, "#") {
			paths = append(paths, escapeGlob(p))
		}
	}
	if err := lines.Err(); err != nil {
		return nil, namespace.E(namespace.Invalid, "read", arg, err)
	}
	return paths, nil
}

// recordedPaths returns the files that a profile names.
func (a *app) recordedPaths(ctx context.Context, arg string) ([]string, error) {
	p, err := a.readProfile(ctx, arg)
	if err != nil {
		return nil, err
	}
	paths := make([]string, len(p.Entries))
	for i, e := range p.Entries {
		paths[i] = cache.Exactly(string(e.Path))
	}
	slices.Sort(paths)
	return slices.Compact(paths), nil
}

// escapeGlob makes a pattern that matches only the path itself.
func escapeGlob(p string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`, `{`, `\{`).Replace(p)
}

// request makes of arguments and flags what the daemon is asked.
func (a *app) keepRequest(ctx context.Context, arg string, f keepFlags) (req keepRequest, err error) {
	req = keepRequest{Select: cache.Selection{All: f.all, Paths: f.paths}, Priority: f.priority}
	if f.all && (len(f.paths) > 0 || f.profile != "") {
		return req, usage("--all with --path or --profile: it includes them")
	}
	if f.profile != "" {
		paths, err := a.profilePaths(ctx, f.profile)
		if err != nil {
			return req, err
		}
		req.Select.Paths = append(req.Select.Paths, paths...)
	}
	if req.Quota, err = parseSize(f.quota); err != nil {
		return req, err
	}
	if req.Rate, err = parseSize(f.rate); err != nil {
		return req, err
	}
	if arg == "" {
		if req.Transport, err = a.tls.transport(); err != nil {
			return req, err
		}
		return req, req.Select.Check()
	}
	if err := a.keepSubject(arg, &req); err != nil {
		return req, err
	}
	return req, req.Select.Check()
}

// keepSubject tells a mount's directory from a target.
func (a *app) keepSubject(arg string, req *keepRequest) error {
	dir, err := mountPoint(arg)
	if err == nil {
		if _, known := lookup(runDir(), dir); known {
			req.Dir = dir
			return nil
		}
	}
	if strings.HasPrefix(arg, "/") || strings.HasPrefix(arg, ".") {
		return notMounted(arg)
	}
	if strings.Contains(arg, "@") {
		_, err = namespace.ParseVersion(arg)
	} else {
		err = namespace.CheckName(arg)
	}
	if err != nil {
		return err
	}
	if _, serr := os.Lstat(arg); serr == nil && len(a.origin) == 0 {
		return notMounted(arg)
	}
	req.Target = arg
	if req.Origin, err = a.location(); err == nil {
		req.Transport, err = a.tls.transport()
	}
	return err
}

func notMounted(dir string) error {
	return namespace.WithHint(namespace.E(namespace.NotExist, "find", dir, errors.New("not a mount of coppice")), "`coppice status` lists them; a channel or NAME@N needs no mount")
}

// keeper runs f with the daemon of the cache, or of the mount's cache; one is started if none runs, and
// the next one is asked if it is just ending.
func (a *app) keeper(ctx context.Context, req keepRequest, f func(*daemonClient) error) error {
	dir, err := a.cacheDir()
	if err != nil {
		return err
	}
	if r, known := lookup(runDir(), req.Dir); known {
		dir = r.Cache
	}
	for broken := 0; ; {
		d, err := reachDaemon(ctx, dir, "")
		if err != nil {
			return err
		}
		err = f(d)
		d.http.CloseIdleConnections()
		if isBroken(err) {
			broken++
		}
		if !errors.Is(err, errEnding) && (!isBroken(err) || broken > brokenMax) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(startPause):
		}
	}
}

func (a *app) cachePin() *cobra.Command {
	var f keepFlags
	c := &cobra.Command{
		Use:   "pin CHANNEL|NAME@N|DIR",
		Short: "Keep content in the cache, whatever else is read",
		Long: `Pins content of a version, or of whatever version a channel means: it is never evicted, and what a
new version has of it is fetched before that version is shown. Without --path and --profile that is
everything. A symlink is pinned with what it leads to in the tree. Pins survive restarts. There is one
for a target of an origin: pinning again replaces it.

For a mount the content is fetched in the background, else by "coppice cache hydrate". What is missing
is printed. Pins of a higher priority are fetched first.`,
		Example: `  coppice cache pin desktop/stable --path '/usr/bin/**' --path /usr/lib/python3
  coppice cache pin /mnt --all
  coppice cache pin desk@7 --profile session.paths --priority 5`,
		Args: exact(1),
		RunE: func(c *cobra.Command, args []string) error {
			if len(f.paths) == 0 && f.profile == "" {
				f.all = true
			}
			req, err := a.keepRequest(c.Context(), args[0], f)
			if err != nil {
				return err
			}
			var all []readiness
			if err := a.keeper(c.Context(), req, func(d *daemonClient) error { return d.call(c.Context(), "/pin", req, &all) }); err != nil {
				return err
			}
			return a.result(all, func(w io.Writer) { printReady(w, all) })
		},
	}
	f.selects(c)
	c.Flags().IntVar(&f.priority, "priority", 0, "`N`: pins of a higher one are fetched first")
	return c
}

func (a *app) cacheUnpin() *cobra.Command {
	return &cobra.Command{
		Use:   "unpin CHANNEL|NAME@N|DIR",
		Short: "No longer keep what is pinned",
		Long: `Removes the pin of a target, or of what is mounted at DIR. Its content stays until room is needed.
Without --origin the pins of that name are removed, whatever their origin.`,
		Example: "  coppice cache unpin desktop/stable",
		Args:    exact(1),
		RunE: func(c *cobra.Command, args []string) error {
			req := keepRequest{Target: args[0]}
			if dir, err := mountPoint(args[0]); err == nil {
				if _, known := lookup(runDir(), dir); known {
					req = keepRequest{Dir: dir}
				}
			}
			if req.Dir == "" && len(a.origin) > 0 {
				var err error
				if req.Origin, err = a.location(); err != nil {
					return err
				}
			}
			var none struct{}
			return a.keeper(c.Context(), req, func(d *daemonClient) error { return d.call(c.Context(), "/unpin", req, &none) })
		},
	}
}

func (a *app) cachePins() *cobra.Command {
	return &cobra.Command{
		Use:     "pins",
		Short:   "List what is pinned, and whether all of it is here",
		Example: "  coppice cache pins --json",
		Args:    exact(0),
		RunE: func(c *cobra.Command, _ []string) error {
			all, err := a.askReady(c.Context(), keepRequest{})
			if err != nil {
				return err
			}
			return a.result(all, func(w io.Writer) { printReady(w, all) })
		},
	}
}

// askReady asks how complete what is kept is.
func (a *app) askReady(ctx context.Context, req keepRequest) (all []readiness, err error) {
	err = a.keeper(ctx, req, func(d *daemonClient) error { return d.call(ctx, "/ready", req, &all) })
	return all, err
}

func (a *app) cacheReady() *cobra.Command {
	var deep bool
	c := &cobra.Command{
		Use:   "ready [DIR]",
		Short: "Ready to leave? Check that what is pinned works without a network",
		Long: `Checks that everything pinned, or everything that is kept for the mount at DIR, is in the cache, of the
version that is active: verified when it arrived, and synced to the disk before this command says so.
The proof names the set by a digest. Otherwise it prints what is missing, and how long that takes at
the rate measured on this link. Exit status 0 only when all is there, else 3.`,
		Example: "  coppice cache ready && echo 'you may close the lid'\n  coppice cache ready /mnt --verify --json",
		Args:    between(0, 1),
		RunE: func(c *cobra.Command, args []string) error {
			req := keepRequest{Deep: deep}
			if len(args) == 1 {
				dir, err := mountPoint(args[0])
				if err != nil {
					return err
				}
				if _, known := lookup(runDir(), dir); !known {
					return notMounted(args[0])
				}
				req.Dir = dir
			}
			all, err := a.askReady(c.Context(), req)
			if err != nil {
				return err
			}
			if err := a.result(all, func(w io.Writer) { printReady(w, all) }); err != nil {
				return err
			}
			return leave(all)
		},
	}
	c.Flags().BoolVar(&deep, "verify", false, "also read everything from the disk and hash it")
	return c
}

// leave is nil if everything that is kept of the active versions is here, and that is something.
func leave(all []readiness) error {
	content := false
	for _, r := range all {
		if r.Role == cache.Active && !r.Complete {
			return errDiffers
		}
		content = content || r.Role == cache.Active && r.Proof.Chunks > 0
	}
	if !content {
		return namespace.WithHint(namespace.E(namespace.NotExist, "check", "pins", errors.New("no content is pinned or hydrated")),
			"`coppice cache pin` says what must be there")
	}
	return nil
}

func printReady(w io.Writer, all []readiness) {
	if len(all) == 0 {
		fmt.Fprintln(w, "nothing is pinned")
	}
	for _, r := range all {
		fmt.Fprintf(w, "%s  %s\n", r.Target, r.text())
	}
}

// text says whether a generation is ready, with the proof or what is missing.
func (r readiness) text() string {
	what := fmt.Sprintf("%s of %s, %s", r.Select, r.Version, r.Role)
	if r.Complete {
		return fmt.Sprintf("yes: %s: %s in %d chunks, verified and synced %s, set %s", what, size(uint64(r.Proof.Bytes)), r.Proof.Chunks, when(r.Proof.At), r.Proof.Set.Short())
	}
	var lacks []string
	if r.MissingCatalogs > 0 {
		lacks = append(lacks, fmt.Sprintf("%d catalogs", r.MissingCatalogs))
	}
	if r.MissingBytes > 0 {
		lacks = append(lacks, fmt.Sprintf("%s of content", size(uint64(r.MissingBytes))))
	}
	text := fmt.Sprintf("no: %s: lacks %s", what, strings.Join(lacks, ", "))
	if r.FetchBytes > 0 {
		text += fmt.Sprintf(", %s to fetch", size(uint64(r.FetchBytes)))
	}
	if r.Seconds > 0 {
		text += fmt.Sprintf(", about %v at %s/s", time.Duration(r.Seconds)*time.Second, size(uint64(r.Rate)))
	}
	if r.Damaged > 0 {
		text += fmt.Sprintf(" (%d chunks were damaged on the disk and are dropped)", r.Damaged)
	}
	return text
}

func (a *app) cacheHydrate() *cobra.Command {
	var f keepFlags
	c := &cobra.Command{
		Use:   "hydrate [DIR|CHANNEL|NAME@N]",
		Short: "Fetch content ahead, so that it works without a network",
		Long: `Fetches what the cache does not hold yet, of the version mounted at DIR or that a target means: what
--path, --profile or --all name; without them what is pinned of it or, if nothing is, everything.
Without an argument everything that is pinned is fetched, higher priorities first. What was hydrated of a
mount is kept as long as its version may be shown.

It can be interrupted, and the link cut at any byte: what was fetched stays. What does not fit into the
quota is said before anything is fetched or evicted.`,
		Example: `  coppice cache hydrate /mnt
  coppice cache hydrate desktop/stable --path '/usr/**' --rate 2M
  coppice cache hydrate`,
		Args: between(0, 1),
		RunE: func(c *cobra.Command, args []string) error {
			arg := ""
			if len(args) == 1 {
				arg = args[0]
			}
			req, err := a.keepRequest(c.Context(), arg, f)
			if err != nil {
				return err
			}
			if arg == "" && !req.Select.Empty() {
				return usage("--path, --profile and --all need a mount or a target")
			}
			return a.keeper(c.Context(), req, func(d *daemonClient) error {
				body, err := d.stream(c.Context(), "/hydrate", req)
				if err != nil {
					return err
				}
				defer body.Close()
				return a.showHydrate(arg, body)
			})
		},
	}
	f.selects(c)
	c.Flags().StringVar(&f.rate, "rate", "", "at most so many `BYTES` a second (2M, 500K)")
	return c
}

// showHydrate follows the daemon's progress to its end.
func (a *app) showHydrate(subject string, body io.Reader) error {
	if subject == "" {
		subject = "what is pinned"
	}
	bar := a.progress("hydrating "+subject, "")
	defer bar.Close()
	dec := json.NewDecoder(body)
	for {
		var u hydrateUpdate
		if err := dec.Decode(&u); err != nil {
			return namespace.WithHint(namespace.E(namespace.Unavailable, "hydrate", subject, fmt.Errorf("the daemon stopped answering: %w", err)),
				"run it again: what was fetched is kept")
		}
		switch {
		case u.Error != nil:
			return u.Error.err()
		case u.End:
			return nil
		}
		bar.Set(0, 0, uint64(u.Done), uint64(u.Total))
	}
}

func (a *app) cacheQuota() *cobra.Command {
	return &cobra.Command{
		Use:   "quota [BYTES]",
		Short: "Show or set the bound of the cache",
		Long: `Sets the bound of what the cache has on disk, now and for every later start. What is pinned is never
evicted for it: if that is more, the rest is read through.`,
		Example: "  coppice cache quota 20G",
		Args:    between(0, 1),
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) == 1 {
				n, err := parseSize(args[0])
				if err != nil || n == 0 {
					return errors.Join(err, usage("want a quota like 20G"))
				}
				if _, err := a.askReady(c.Context(), keepRequest{Quota: n}); err != nil {
					return err
				}
			}
			s, err := a.cacheStats(c.Context())
			if err != nil {
				return err
			}
			return a.result(map[string]int64{"quota_bytes": s.QuotaBytes, "used_bytes": s.UsedBytes}, func(w io.Writer) {
				fmt.Fprintf(w, "%s, %s used\n", size(uint64(s.QuotaBytes)), size(uint64(s.UsedBytes)))
			})
		},
	}
}
