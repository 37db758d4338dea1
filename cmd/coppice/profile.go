package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"coppice.dev/coppice/builder"
	"coppice.dev/coppice/internal/disk"
	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/trust"
)

func (a *app) profileCommand() *cobra.Command {
	return group("profile", "Record what a workload reads first, and have it fetched ahead",
		a.profileRecord(), a.profileMerge(), a.profilePublish(), a.profileList(), a.profileShow(), a.profileRemove())
}

func (a *app) profileRecord() *cobra.Command {
	var name, out string
	c := &cobra.Command{
		Use:   "record DIR -- CMD…",
		Short: "Run a command on a mount and record what it reads first",
		Long: `Runs CMD in a mount namespace of its own, in which a fresh mount of the version that is active at DIR
is in the place of DIR, together with what is mounted below it: nothing of it is in the kernel's
caches, so each first access is seen. CMD has the terminal, and its exit status is that of this
command; what it read is written to --out also if it fails. Needs root.

A profile names paths, and byte ranges of large files, and so serves later versions as well. Record
what people do first: a login, a program's start, a build. ` + "`profile merge`" + ` joins recordings,
` + "`profile publish`" + ` gives them to all endpoints.`,
		Example: `  coppice profile record /mnt --name login -- chroot /mnt python3 -c 'import numpy'
  coppice profile record /opt/tools --out build.profile -- make -C $PWD`,
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) < 2 || c.ArgsLenAtDash() != 1 {
				return namespace.WithHint(usage("a mount, and behind -- a command, please"), "usage: "+c.UseLine())
			}
			return a.recordProfile(c.Context(), args[0], args[1:], name, out)
		},
	}
	c.Flags().StringVar(&name, "name", "", "`NAME` of the profile (default: the command's)")
	c.Flags().StringVarP(&out, "out", "o", "", "`FILE` to write (default: NAME.profile)")
	return c
}

// recorded is the result of `profile record` and `profile merge`.
type recorded struct {
	Profile  string            `json:"profile"`
	File     string            `json:"file"`
	Recorded namespace.Version `json:"recorded,omitzero"`
	Entries  int               `json:"entries"`
	Others   int               `json:"others"`
}

func (a *app) recordProfile(ctx context.Context, dir string, command []string, name, out string) error {
	if name == "" {
		name = nameOf(command[0])
	}
	if err := namespace.CheckName(name); err != nil {
		return namespace.WithHint(err, "name it with --name")
	}
	if out == "" {
		out = filepath.Base(name) + ".profile"
	}
	dir, d, err := a.mountAt(dir)
	if err != nil {
		return err
	}
	ctx = context.WithoutCancel(ctx) // an interrupt is the command's
	body, err := d.stream(ctx, "/record", recordRequest{dir})
	if err != nil {
		return err
	}
	defer body.Close() // ends the recording
	var at recordReply
	if err := json.NewDecoder(body).Decode(&at); err != nil {
		return namespace.E(namespace.Unavailable, "record", dir, fmt.Errorf("the daemon stopped answering: %w", err))
	}
	if at.Error != nil {
		return at.Error.err()
	}
	stdout := os.Stdout
	if a.json { // which is for the result
		stdout = os.Stderr
	}
	failed := runOver(at.Dir, dir, command, stdout)
	if failed != nil && exitStatus(failed) == 0 {
		return failed
	}
	var got accessed
	if err := d.call(ctx, "/recorded", recordedRequest{at.Dir}, &got); err != nil {
		return errors.Join(err, failed)
	}
	text := strings.Join(command, " ")
	p := &namespace.Profile{Format: namespace.RecordFormat, Name: name, Recorded: at.Version,
		Command: strings.ToValidUTF8(text[:min(len(text), namespace.PathBytesMax)], "?"), Entries: got.Entries}
	if err := a.writeProfile(out, p, got.Others); err != nil {
		return err
	}
	return failed
}

// nameOf makes a name of a command's: that of its file, as far as names allow.
func nameOf(command string) string {
	return strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || strings.ContainsRune("._+-", r) {
			return r
		}
		return -1
	}, strings.ToLower(filepath.Base(command)))
}

// mountAt finds a mount and its daemon.
func (a *app) mountAt(dir string) (string, *daemonClient, error) {
	dir, err := mountPoint(dir)
	if err != nil {
		return dir, nil, err
	}
	r, ok := lookup(runDir(), dir)
	if !ok {
		return dir, nil, namespace.WithHint(namespace.E(namespace.NotExist, "find", dir, errors.New("not a mount of coppice")), "`coppice status` lists them")
	}
	d, err := dialDaemon(r.Cache)
	return dir, d, err
}

// writeProfile writes a profile to a file and tells of it.
func (a *app) writeProfile(out string, p *namespace.Profile, others int) error {
	b, err := namespace.EncodeProfile(p)
	if err != nil {
		return err
	}
	if err := disk.Replace(out, b, 0o644); err != nil {
		return err
	}
	if !a.json {
		if !a.quiet {
			a.note("%s: %d files and directories, in %s", p.Name, len(p.Entries), out)
		}
		return nil
	}
	return a.result(recorded{p.Name, out, p.Recorded, len(p.Entries), others}, nil)
}

// readProfile reads a profile: a file, or NAMESPACE:NAME as it was published.
func (a *app) readProfile(ctx context.Context, arg string) (*namespace.Profile, error) {
	b, err := os.ReadFile(arg)
	if err == nil {
		return namespace.DecodeProfile(b, arg)
	}
	space, name, published := strings.Cut(arg, ":")
	if !published || !errors.Is(err, fs.ErrNotExist) {
		return nil, namespace.WithHint(disk.Error("read", arg, err), "want a file, or NAMESPACE:NAME of a published profile")
	}
	r, err := a.openReader(ctx)
	if err != nil {
		return nil, err
	}
	rec, err := publishedProfile(ctx, r.refs, space, name)
	if err != nil {
		return nil, err
	}
	return builder.LoadProfile(ctx, r.source, rec.Profile)
}

func publishedProfile(ctx context.Context, refs trust.Refs, space, name string) (namespace.ProfileRecord, error) {
	all, _, err := refs.Profiles(ctx, space)
	if err != nil {
		return namespace.ProfileRecord{}, err
	}
	r, ok := all.Find(name)
	if !ok {
		err = namespace.WithHint(namespace.E(namespace.NotExist, "find", "profile "+space+":"+name, nil), "`coppice profile list` shows those there are")
	}
	return r, err
}

func (a *app) profileMerge() *cobra.Command {
	var name, out, misses string
	var forget bool
	c := &cobra.Command{
		Use:   "merge PROFILE… --out FILE",
		Short: "Join recordings, and what endpoints had to wait for, into one profile",
		Long: `Joins profiles, each a file or NAMESPACE:NAME of a published one: a file comes as early as in any of
them, and what several have is there once. --misses DIR adds what reads of the mount at DIR had to
wait for since its cache was made, in that order, so that the next cold start need not; --forget
makes the endpoint forget them when they are written.`,
		Example: `  coppice profile merge login.profile build.profile --name desk --out desk.profile
  coppice profile merge desk:login --misses /mnt --forget --out login.profile`,
		RunE: func(c *cobra.Command, args []string) error {
			if out == "" || len(args) == 0 && misses == "" {
				return namespace.WithHint(usage("profiles to join, or --misses, and --out, please"), "usage: "+c.UseLine())
			}
			return a.mergeProfiles(c.Context(), args, name, out, misses, forget)
		},
	}
	c.Flags().StringVar(&name, "name", "", "`NAME` of the result (default: that of the first)")
	c.Flags().StringVarP(&out, "out", "o", "", "`FILE` to write (required)")
	c.Flags().StringVar(&misses, "misses", "", "add what reads of the mount at `DIR` had to wait for")
	c.Flags().BoolVar(&forget, "forget", false, "forget these when they are written")
	return c
}

func (a *app) mergeProfiles(ctx context.Context, args []string, name, out, misses string, forget bool) error {
	var all []*namespace.Profile
	for _, arg := range args {
		p, err := a.readProfile(ctx, arg)
		if err != nil {
			return err
		}
		all = append(all, p)
	}
	others := 0
	var d *daemonClient
	if misses != "" {
		var err error
		if misses, d, err = a.mountAt(misses); err != nil {
			return err
		}
		var got accessed
		if err := d.call(ctx, "/waits", waitsRequest{Dir: misses}, &got); err != nil {
			return err
		}
		others = got.Others
		all = append(all, &namespace.Profile{Format: namespace.RecordFormat, Name: "misses", Recorded: got.Version, Entries: got.Entries})
	}
	merged := namespace.MergeProfiles(all[0], all[1:]...)
	if name != "" {
		merged.Name = name
	}
	if err := a.writeProfile(out, merged, others); err != nil || !forget || d == nil {
		return err
	}
	return d.call(ctx, "/waits", waitsRequest{Dir: misses, Forget: true}, &accessed{})
}

func (a *app) profileList() *cobra.Command {
	return &cobra.Command{
		Use:     "list [NAMESPACE]",
		Short:   "List published profiles, in the order in which endpoints fetch them",
		Example: "  coppice profile list desk",
		Args:    between(0, 1),
		RunE: func(c *cobra.Command, args []string) error {
			r, err := a.openReader(c.Context())
			if err != nil {
				return err
			}
			names := args
			if len(args) == 0 {
				if names, err = r.source.Refs(c.Context(), namespace.ProfileRef); err != nil {
					return err
				}
			}
			all := []namespace.Profiles{}
			var rows [][]string
			for _, name := range names {
				rec, found, err := r.refs.Profiles(c.Context(), name)
				if err != nil {
					return err
				}
				if !found {
					return namespace.WithHint(namespace.E(namespace.NotExist, "list", "profiles of "+name, nil), "`coppice profile publish` adds one")
				}
				all = append(all, rec)
				for _, p := range rec.Profiles {
					var versions []string
					for _, l := range p.Layouts {
						versions = append(versions, l.Version.String())
					}
					rows = append(rows, []string{name + ":" + p.Name, when(p.Created), p.Profile.Short(), strings.Join(append(versions, "-")[:max(1, len(versions))], ","), p.Comment})
				}
			}
			return a.result(all, func(w io.Writer) { table(w, "PROFILE CREATED DIGEST LAID-OUT COMMENT", rows) })
		},
	}
}

func (a *app) profileShow() *cobra.Command {
	return &cobra.Command{
		Use:     "show PROFILE",
		Short:   "Show what a profile names, in its order",
		Long:    `Shows a profile, a file or NAMESPACE:NAME of a published one: a path a line, with the byte range of a large file.`,
		Example: "  coppice profile show desk:login\n  coppice profile show login.profile --json",
		Args:    exact(1),
		RunE: func(c *cobra.Command, args []string) error {
			p, err := a.readProfile(c.Context(), args[0])
			if err != nil {
				return err
			}
			return a.result(p, func(w io.Writer) {
				for _, e := range p.Entries {
					text, _ := e.Path.MarshalText() // which cannot fail
					if e.Len > 0 {
						fmt.Fprintf(w, "%s %s+%s\n", text, strconv.FormatUint(e.Off, 10), strconv.FormatUint(e.Len, 10))
						continue
					}
					fmt.Fprintf(w, "%s\n", text)
				}
			})
		},
	}
}
