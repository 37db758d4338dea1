package main

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"coppice.dev/coppice/namespace"
)

// app is what every command needs: the global flags and where to print.
type app struct {
	output
	origin []string // --origin: directories or URLs, the preferred one first
	cache  string   // --cache
	keys   string   // --keys
	quiet  bool
	tls    transportFlags

	passFile string // --passphrase-file
}

// run executes one command line and returns its exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	a := &app{output: output{stdout: stdout, stderr: stderr}}
	root := a.command()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	return report(stderr, root.ExecuteContext(ctx))
}

// command builds the command table. Help, man pages, completion and docs/CLI.md come from it.
func (a *app) command() *cobra.Command {
	root := &cobra.Command{
		Use:   "coppice",
		Short: "Run operating-system and application trees from the network",
		Long: `Coppice runs operating-system and application trees from the network. A patch is applied
once, to an immutable, versioned tree on an origin; endpoints mount the tree with a verified
local cache; rollout and rollback move a signed pointer.

  engineer   coppice origin init → tree import → namespace publish → channel set
  endpoint   coppice mount CHANNEL DIR

` + exitHelp,
		Example: `  coppice origin init /srv/origin
  export COPPICE_ORIGIN=/srv/origin
  coppice tree import go /usr/local/go
  printf 'mounts:\n  - {path: /, tree: go}\n' >dev.yaml
  coppice namespace publish dev -f dev.yaml
  coppice channel set dev/stable dev@1
  coppice mount dev/stable /mnt`,
		Args:              cobra.ArbitraryArgs, // so that an unknown verb comes to RunE
		RunE:              verbs,
		SilenceErrors:     true,
		SilenceUsage:      true,
		DisableAutoGenTag: true,
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: false},
	}
	f := root.PersistentFlags()
	f.StringSliceVar(&a.origin, "origin", splitOrigins(os.Getenv("COPPICE_ORIGIN")), "`LOCATION` of the origin: a directory or an http(s) URL; of several, the preferred first (COPPICE_ORIGIN)")
	f.StringVar(&a.cache, "cache", os.Getenv("COPPICE_CACHE"), "`DIR` of the endpoint's cache (COPPICE_CACHE; default "+defaultCacheText+")")
	f.StringVar(&a.keys, "keys", os.Getenv("COPPICE_KEYS"), "`DIR` of the signing keys (COPPICE_KEYS; default: the origin's directory with .keys appended)")
	a.tls.register(f)
	f.StringVar(&a.passFile, "passphrase-file", "", "`FILE` with the passphrase of encrypted keys (or COPPICE_PASSPHRASE, or at the terminal)")
	f.BoolVar(&a.json, "json", false, "print the result as JSON; fields are only ever added")
	f.BoolVarP(&a.quiet, "quiet", "q", false, "no progress and no notes")
	// What the environment says is no default: help and manual are the same everywhere.
	for _, name := range append([]string{"origin", "cache", "keys"}, transportNames...) {
		f.Lookup(name).DefValue = ""
	}
	f.Lookup("origin").DefValue = "[]" // as a list says ""
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return namespace.WithHint(usage("%v", err), "`"+c.CommandPath()+" --help` shows the flags")
	})
	root.AddCommand(a.originCommand(), a.treeCommand(), a.namespaceCommand(), a.channelCommand(), a.profileCommand(), a.whereCommand(),
		a.keyCommand(), a.requestCommand(), a.trustCommand(),
		a.mountCommand(), a.unmountCommand(), a.statusCommand(), a.cacheCommand(),
		a.accessCommand(), a.endpointCommand(), a.auditCommand(),
		a.agentCommand(), a.updateCommand(), a.deferCommand(), a.explainCommand(),
		a.daemonCommand(), a.docsCommand(root))
	return root
}

// group makes a noun: a command that only holds verbs. Its examples are the first one of each.
func group(use, short string, subs ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{Use: use, Short: short, RunE: verbs}
	var examples []string
	for _, sub := range subs {
		first, _, _ := strings.Cut(sub.Example, "\n")
		examples = append(examples, first)
	}
	c.Example = strings.Join(examples, "\n")
	c.AddCommand(subs...)
	return c
}

// verbs is what a command that only holds verbs does: help. An unknown verb is an error.
func verbs(c *cobra.Command, args []string) error {
	if len(args) == 0 {
		return c.Help()
	}
	c.SuggestionsMinimumDistance = 2
	hint := "`" + c.CommandPath() + " --help` lists them"
	if near := c.SuggestionsFor(args[0]); len(near) > 0 {
		hint = "did you mean `" + c.CommandPath() + " " + near[0] + "`? " + hint
	}
	return namespace.WithHint(usage("%s has no verb %q", c.CommandPath(), args[0]), hint)
}

// exact refuses any other number of arguments than n, saying how the command is used.
func exact(n int) cobra.PositionalArgs { return between(n, n) }

func between(lo, hi int) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if len(args) < lo || len(args) > hi {
			return namespace.WithHint(usage("%s takes other arguments than the %d given", c.CommandPath(), len(args)), "usage: "+c.UseLine())
		}
		return nil
	}
}

const defaultCacheText = "/var/cache/coppice for root, ~/.cache/coppice else"

// cacheDir returns the cache's directory, absolute.
func (a *app) cacheDir() (string, error) {
	dir := a.cache
	switch {
	case dir != "":
	case os.Geteuid() == 0:
		dir = "/var/cache/coppice"
	default:
		base, err := os.UserCacheDir()
		if err != nil {
			return "", namespace.WithHint(namespace.E(namespace.NotExist, "find", "cache directory", err), "name one with --cache")
		}
		dir = filepath.Join(base, "coppice")
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", namespace.E(namespace.Invalid, "find", dir, err)
	}
	return abs, nil
}

// runDir returns the directory of what lives no longer than a boot: the register of mounts.
func runDir() string {
	if dir := os.Getenv("COPPICE_RUN"); dir != "" {
		return dir
	}
	if os.Geteuid() == 0 {
		return "/run/coppice"
	}
	if dir := os.Getenv("XDG_RUNTIME_DIR"); dir != "" {
		return filepath.Join(dir, "coppice")
	}
	return filepath.Join(os.TempDir(), "coppice-"+strconv.Itoa(os.Geteuid()))
}

// location returns the preferred origin's location; what builds and publishes knows one only.
func (a *app) location() (string, error) {
	all, err := a.locations()
	if err != nil {
		return "", err
	}
	return all[0], nil
}
