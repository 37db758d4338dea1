package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"coppice.dev/coppice/builder"
	"coppice.dev/coppice/internal/sandbox"
	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/catalog"
	"coppice.dev/coppice/namespace/trust"
)

type patchFlags struct {
	interactive, noNetwork, outside, rebase bool
	env, binds                              []string
	user, workdir, comment, scratch         string
}

func (a *app) treePatch() *cobra.Command {
	var f patchFlags
	c := &cobra.Command{
		Use:   "patch NAME[@N] -- CMD…",
		Short: "Run a command in a writable view of a tree; what it changed becomes the next version",
		Long: `Runs CMD in a writable view of a version of the tree NAME, the newest if none is given, as root in a
chroot with /proc, /dev, /sys, /run and /tmp of its own. If CMD succeeds, what it changed becomes the
next version of the tree; if it fails, nothing happened, and its exit status is that of this command.
The cost is that of the change. Processes that CMD leaves running are ended. What lies in /run and
/tmp is not part of the tree.

If somebody else published a version meanwhile, nothing is overwritten: --rebase makes the change
again upon the newest version, if the two changed different paths; without it you are told how.

Without root this works where the kernel allows user namespaces; all owners can be written if
newuidmap is there and /etc/subuid has a range for you.`,
		Example: `  coppice tree patch debian -- sh -c 'apt-get update && apt-get -y upgrade && apt-get clean'
  coppice tree patch debian@3 --interactive
  coppice tree patch debian --no-network --bind $PWD/fixes:/mnt:ro -- dpkg -i /mnt/fix.deb
  coppice tree patch go --outside -- cp $PWD/VERSION .`,
		RunE: func(c *cobra.Command, args []string) error {
			command, err := f.command(c, args)
			if err != nil {
				return err
			}
			return a.patchTree(c.Context(), args[0], command, f)
		},
	}
	fl := c.Flags()
	fl.BoolVarP(&f.interactive, "interactive", "i", false, "run a shell; asks before it publishes")
	fl.BoolVar(&f.noNetwork, "no-network", false, "give CMD no network")
	fl.BoolVar(&f.outside, "outside", false, "run CMD of this machine, with the tree as its directory of work, instead of one of the tree")
	fl.BoolVar(&f.rebase, "rebase", false, "make the change again upon a version published meanwhile")
	fl.StringArrayVarP(&f.env, "env", "e", nil, "set `NAME=VALUE`, or pass NAME on; repeatable")
	fl.StringArrayVar(&f.binds, "bind", nil, "show `SRC:DST[:ro]` of this machine in the view; repeatable")
	fl.StringVar(&f.user, "user", "", "run CMD as `USER[:GROUP]` of the tree")
	fl.StringVar(&f.workdir, "workdir", "", "`DIR` in the view to start in")
	fl.StringVar(&f.comment, "comment", "", "`TEXT` kept with the version; the command if there is none")
	fl.StringVar(&f.scratch, "scratch", os.Getenv("TMPDIR"), "`DIR` for what CMD changes, until it is stored; default /var/tmp")
	fl.Lookup("scratch").DefValue = ""
	return c
}

// shell starts the better shell of those that a tree has.
const shell = "if command -v bash >/dev/null; then exec bash; else exec sh; fi"

// command returns what to run.
func (f *patchFlags) command(c *cobra.Command, args []string) ([]string, error) {
	if len(args) == 0 || c.ArgsLenAtDash() > 1 {
		return nil, namespace.WithHint(usage("one tree, please"), "usage: "+c.UseLine())
	}
	switch {
	case f.interactive && len(args) == 1:
		return []string{"sh", "-c", shell}, nil
	case len(args) == 1:
		return nil, namespace.WithHint(usage("no command to run"), "give it behind --, or --interactive for a shell")
	case c.ArgsLenAtDash() != 1:
		return nil, namespace.WithHint(usage("put -- before the command"), "usage: "+c.UseLine())
	}
	return args[1:], nil
}

func (a *app) patchTree(ctx context.Context, target string, command []string, f patchFlags) error {
	if !sandbox.IsStage() {
		return enterScratch(ctx, f.scratch)
	}
	if err := sandbox.Stage(); err != nil {
		return err
	}
	spec, err := f.spec(command)
	if err != nil {
		return err
	}
	t, err := a.openTransaction(ctx, target)
	if err != nil {
		return err
	}
	defer t.scratch.clear()
	if err := t.change(ctx, spec); err != nil {
		var failed *sandbox.ExitError
		if errors.As(err, &failed) {
			err = namespace.WithHint(err, t.version.String()+" is as it was")
		}
		return err
	}
	if f.comment == "" {
		f.comment = strings.Join(command, " ")
	}
	return t.commit(ctx, f)
}

// spec translates the flags.
func (f *patchFlags) spec(command []string) (sandbox.Spec, error) {
	s := sandbox.Spec{Command: command, Dir: f.workdir, User: f.user, Network: !f.noNetwork, Outside: f.outside,
		Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8"}}
	passed := []string{"TERM"}
	if s.Network {
		passed = append(passed, "http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
	}
	for _, name := range passed {
		if v, ok := os.LookupEnv(name); ok {
			s.Env = append(s.Env, name+"="+v)
		}
	}
	if f.outside {
		s.Env = os.Environ()
	}
	for _, kv := range f.env {
		name, _, given := strings.Cut(kv, "=")
		if v, ok := os.LookupEnv(name); !given && ok {
			kv += "=" + v
		} else if !given || name == "" {
			return s, usage("--env %s: want NAME=VALUE, or the name of a variable that is set", kv)
		}
		s.Env = append(s.Env, kv)
	}
	for _, b := range f.binds {
		parts := strings.Split(b, ":")
		readOnly := len(parts) == 3 && parts[2] == "ro"
		if len(parts) < 2 || len(parts) > 3 || len(parts) == 3 && !readOnly || !strings.HasPrefix(parts[0], "/") || !strings.HasPrefix(parts[1], "/") {
			return s, usage("--bind %s: want SRC:DST or SRC:DST:ro, both absolute", b)
		}
		s.Binds = append(s.Binds, sandbox.Bind{Source: parts[0], Target: parts[1], ReadOnly: readOnly})
	}
	if f.outside && len(s.Binds) > 0 {
		return s, usage("--bind has no meaning with --outside: CMD sees this machine")
	}
	return s, nil
}

// patched is the result of `tree patch` and `tree rebase`.
type patched struct {
	Version  namespace.Version `json:"version"`
	Root     namespace.Digest  `json:"root"`
	Base     namespace.Version `json:"base"`
	Changed  bool              `json:"changed"`
	Counts   changeCounts      `json:"changes"`
	NewBytes uint64            `json:"new_bytes"`
}

// changeCounts counts paths by what happened to them.
type changeCounts struct {
	Added   int `json:"added"`
	Removed int `json:"removed"`
	Changed int `json:"changed"`
}

func (n changeCounts) String() string {
	return fmt.Sprintf("%d added, %d removed, %d changed", n.Added, n.Removed, n.Changed)
}

func countChanges(ctx context.Context, l catalog.Loader, a, b namespace.Digest) (n changeCounts, err error) {
	err = catalog.Diff(ctx, l, a, b, func(c catalog.Change) error {
		switch {
		case c.What&catalog.DiffAdded != 0:
			n.Added++
		case c.What&catalog.DiffRemoved != 0:
			n.Removed++
		default:
			n.Changed++
		}
		return nil
	})
	return n, err
}

// commit stores what the transaction changed as the next version.
func (t *transaction) commit(ctx context.Context, f patchFlags) error {
	start := time.Now()
	bar := t.a.progress("storing", "files")
	res, err := t.store(ctx, bar)
	bar.Close()
	if err != nil {
		return err
	}
	counts, err := countChanges(ctx, t.stored, t.base.Root, res.Root)
	if err != nil {
		return err
	}
	out := patched{t.version, res.Root, t.version, res.Root != t.base.Root, counts, res.NewBytes}
	if !out.Changed {
		return t.a.printPatched(out, start)
	}
	if f.interactive && !t.a.confirm(fmt.Sprintf("%v. Publish as the next version of %s?", counts, t.version.Name)) {
		return namespace.E(namespace.Canceled, "patch", t.version.String(), errors.New("not published; it is as it was"))
	}
	v := namespace.TreeVersion{Root: res.Root, Entries: res.Entries, Bytes: res.Bytes, Comment: f.comment}
	if err := builder.Hold(ctx, t.origin, res.Root); err != nil { // what it shares with its base, too
		return err
	}
	var warnings []string
	v.Packages, warnings = t.recordPackages(ctx, res.Root)
	for _, w := range warnings {
		t.a.note("warning: %s", w)
	}
	out.Version, err = t.pub.AddTreeAfter(ctx, t.version.Name, t.newest, v)
	if namespace.IsKind(err, namespace.Exist) {
		if !f.rebase {
			return namespace.WithHint(err, fmt.Sprintf("your change is stored: `coppice tree rebase %s %v --base %v` makes it again upon the newest version", t.version.Name, res.Root, t.version))
		}
		out, err = t.a.rebase(ctx, t.workshop, t.pub, t.version.Name, t.base.Root, v)
		out.Base = t.version
	}
	if err != nil {
		return err
	}
	return t.a.printPatched(out, start)
}

func (a *app) printPatched(p patched, start time.Time) error {
	return a.result(p, func(out io.Writer) {
		fmt.Fprintf(out, "%s %s\n", p.Version, p.Root)
		switch {
		case a.quiet:
		case !p.Changed:
			a.note("nothing changed: no version was made")
		default:
			a.note("%v; %s new in the origin; stored in %.1f s", p.Counts, size(p.NewBytes), time.Since(start).Seconds())
		}
	})
}

// confirm asks on the terminal; without one it agrees, since whoever scripts an interactive shell has
// said what he wants.
func (a *app) confirm(question string) bool {
	if !isTerminal(os.Stdin) {
		return true
	}
	fmt.Fprint(a.stderr, question+" [y/N] ")
	line, err := bufio.NewReader(os.Stdin).ReadString('\n')
	answer := strings.ToLower(strings.TrimSpace(line))
	return err == nil && (answer == "y" || answer == "yes")
}

func (a *app) treeRebase() *cobra.Command {
	var base, comment string
	c := &cobra.Command{
		Use:   "rebase NAME ROOT --base NAME@N",
		Short: "Make a change again upon the newest version of a tree",
		Long: `Makes the change that leads from --base to ROOT, the root digest of a tree that is stored, again upon
the newest version of the tree NAME, and publishes the result as the next one. Paths that both
changed, and differently, are conflicts: they are listed, and nothing is published. No content is read.`,
		Example: "  coppice tree rebase debian sha256:59e1… --base debian@3",
		Args:    exact(2),
		RunE: func(c *cobra.Command, args []string) error {
			ctx, start := c.Context(), time.Now()
			if base == "" {
				return usage("--base is missing: the version that ROOT was made from")
			}
			w, err := a.openWorkshop(ctx)
			if err != nil {
				return err
			}
			p, err := w.publisher()
			if err != nil {
				return err
			}
			from, version, err := treeRoot(ctx, w.refs, base)
			if err != nil {
				return err
			}
			mine, err := namespace.ParseDigest(args[1])
			if err != nil {
				return err
			}
			out, err := a.rebase(ctx, w, p, args[0], from, namespace.TreeVersion{Root: mine, Comment: comment})
			if err != nil {
				return err
			}
			out.Base = version
			return a.printPatched(out, start)
		},
	}
	c.Flags().StringVar(&base, "base", "", "`NAME@N` that ROOT was made from (required)")
	c.Flags().StringVar(&comment, "comment", "", "`TEXT` kept with the version")
	return c
}

// rebase publishes the change from base to v.Root upon the newest version of a tree, whichever that is
// by then.
func (a *app) rebase(ctx context.Context, w *workshop, p *trust.Publisher, name string, base namespace.Digest, v namespace.TreeVersion) (patched, error) {
	stored := builder.NewStored(w.origin)
	mine := v.Root
	for {
		onto, version, err := w.refs.ResolveTree(ctx, namespace.Version{Name: name})
		if err != nil {
			return patched{}, err
		}
		res, err := builder.Import(ctx, w.origin, builder.RebaseSource{Base: base, Mine: mine, Onto: onto.Root, Loader: stored}, builder.Options{})
		if err != nil {
			var conflict *builder.ConflictError
			if errors.As(err, &conflict) {
				err = namespace.WithHint(err, "nothing was published; patch "+version.String()+" instead")
			}
			return patched{}, err
		}
		counts, err := countChanges(ctx, stored, onto.Root, res.Root)
		if err != nil {
			return patched{}, err
		}
		if res.Root == onto.Root {
			return patched{Version: version, Root: res.Root}, nil
		}
		v.Root, v.Entries, v.Bytes = res.Root, res.Entries, res.Bytes
		if err := builder.Hold(ctx, w.origin, res.Root); err != nil {
			return patched{}, err
		}
		v.Packages, _ = w.recordPackages(ctx, res.Root) // one that was made for mine has warned
		got, err := p.AddTreeAfter(ctx, name, version.N, v)
		if !namespace.IsKind(err, namespace.Exist) {
			return patched{Version: got, Root: res.Root, Changed: true, Counts: counts, NewBytes: res.NewBytes}, err
		}
	}
}
