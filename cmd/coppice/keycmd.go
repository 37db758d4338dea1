package main

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"coppice.dev/coppice/internal/disk"
	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/trust"
)

// roleNames are the roles as people say them; vouching is the targets role of The Update Framework.
var roleNames = map[string]trust.Role{
	"root": trust.RoleRoot, "vouching": trust.RoleVouching, "publisher": trust.RolePublish,
	"pointer": trust.RolePoint, "snapshot": trust.RoleSnapshot, "timestamp": trust.RoleTimestamp,
}

func parseRole(name string) (trust.Role, error) {
	if r, ok := roleNames[name]; ok {
		return r, nil
	}
	return "", usage("role %q: want root, vouching, publisher, pointer, snapshot or timestamp", name)
}

func roleName(r trust.Role) string {
	for name, role := range roleNames {
		if role == r {
			return name
		}
	}
	return string(r)
}

func (a *app) keyCommand() *cobra.Command {
	return group("key", "Make, list, rotate and revoke signing keys", a.keyGenerate(), a.keyList(), a.keyRotate(), a.keyRevoke())
}

func (a *app) keyGenerate() *cobra.Command {
	var offline bool
	c := &cobra.Command{
		Use:   "generate NAME",
		Short: "Make a key, without giving it a role",
		Long: `Makes an ed25519 key in --keys: NAME.pem, which is secret, and NAME.pub, which is not. It has no
role until the root keys, or for channels the vouching keys, say so: ` + "`key rotate`" + ` and
` + "`request create keys`" + ` take the public file. A key that is there is never overwritten.
With --offline it goes to the directory offline, and with a passphrase it is encrypted.`,
		Example: "  coppice key generate ann --keys /media/ann/keys --passphrase-file pass",
		Args:    exact(1),
		RunE: func(_ *cobra.Command, args []string) error {
			if a.keys == "" && len(a.origin) == 0 {
				return namespace.WithHint(usage("no directory for the key"), "name one with --keys")
			}
			return a.generateKey(args[0], offline)
		},
	}
	c.Flags().BoolVar(&offline, "offline", false, "put it with the offline keys")
	return c
}

func (a *app) generateKey(name string, offline bool) error {
	if err := namespace.CheckName(name); err != nil || strings.Contains(name, "/") {
		return usage("name %q: want lower-case letters, digits and . _ + -", name)
	}
	dir := a.keys
	if dir == "" {
		loc, err := a.location()
		if err != nil {
			return err
		}
		dir = a.keysDir(loc)
	}
	if offline {
		dir = filepath.Join(dir, offlineDir)
	}
	path := filepath.Join(dir, name+keySuffix)
	if _, err := a.readKey(path); !namespace.IsKind(err, namespace.NotExist) {
		return namespace.E(namespace.Exist, "make key", path, err)
	}
	pass, err := a.newPassphrase()
	if err != nil {
		return err
	}
	k, _, err := a.makeKey(path, pass)
	if err != nil {
		return err
	}
	public, err := a.writePublic(strings.TrimSuffix(path, keySuffix)+".pub", k)
	if err != nil {
		return err
	}
	return a.result(map[string]any{"key": path, "public": public, "key_id": k.KeyID(), "encrypted": k.locked != nil}, func(w io.Writer) {
		fmt.Fprintf(w, "key     %s (%s)\npublic  %s\n", path, k.KeyID()[:16], public)
	})
}

// writePublic writes the public half of a key, which may be read by all.
func (a *app) writePublic(path string, k *keyRing) (string, error) {
	der, err := x509.MarshalPKIXPublicKey(k.public)
	if err != nil {
		return "", namespace.E(namespace.Internal, "write", path, err)
	}
	return path, disk.Replace(path, pem.EncodeToMemory(&pem.Block{Type: publicPEM, Bytes: der}), 0o644)
}

// listedKey is a key with a role, as it is printed.
type listedKey struct {
	trust.Member
	Role   string `json:"role"`
	AtHand bool   `json:"at_hand"`
}

func (a *app) keyList() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List whose keys count for what, and when documents expire",
		Long: `Lists the keys that the root and the vouching document name, by role, with how many of a role must
sign, and which of them are in --keys.`,
		Example: "  coppice key list --origin /srv/origin",
		Args:    exact(0),
		RunE: func(c *cobra.Command, _ []string) error {
			r, err := a.openReader(c.Context())
			if err != nil {
				return err
			}
			v, err := r.refs.Vouching(c.Context())
			if err != nil {
				return err
			}
			loc, err := a.location()
			if err != nil {
				return err
			}
			have := map[string]bool{}
			if keys, err := a.readKeys(a.keysDir(loc)); err == nil {
				for _, k := range keys {
					have[k.KeyID()] = true
				}
			}
			all := []listedKey{}
			var rows [][]string
			for _, m := range trust.Members(r.refs.Root, v) {
				l := listedKey{m, roleName(m.Role), have[m.KeyID]}
				all = append(all, l)
				here := ""
				if l.AtHand {
					here = "at hand"
				}
				rows = append(rows, []string{l.Role, m.Channel, m.KeyID[:min(16, len(m.KeyID))], m.Name, fmt.Sprintf("%d of %d", m.Need, m.Of), here})
			}
			return a.result(all, func(w io.Writer) { table(w, "ROLE CHANNEL KEY NAME SIGN NOTE", rows) })
		},
	}
}

// keyFlags are those of changing who has a role.
type keyFlags struct {
	channel, name, why string
	threshold          int
}

func (f *keyFlags) add(c *cobra.Command) {
	c.Flags().StringVar(&f.channel, "channel", "", "only for this `CHANNEL` (role pointer)")
	c.Flags().StringVar(&f.name, "name", "", "whose the new key is: `TEXT` shown in lists")
	c.Flags().IntVar(&f.threshold, "threshold", 0, "how `MANY` keys of the role must sign (default: as it is)")
	c.Flags().StringVar(&f.why, "reason", "", "`TEXT` kept with the signatures")
}

// change makes the change of keys that the arguments ask for: a public key's file to add, and the id, or
// the beginning of the id, of one to remove; either may be "".
func (f *keyFlags) change(role, add, remove string, members []trust.Member) (trust.KeyChange, error) {
	r, err := parseRole(role)
	if err != nil {
		return trust.KeyChange{}, err
	}
	if f.channel != "" && r != trust.RolePoint {
		return trust.KeyChange{}, usage("--channel is for the role pointer")
	}
	k := trust.KeyChange{Role: r, Channel: f.channel, Name: f.name, Threshold: f.threshold}
	if add != "" {
		if k.Add, err = publicKey(add); err != nil {
			return k, err
		}
	}
	if remove == "" {
		return k, nil
	}
	var ids []string
	for _, m := range members {
		if m.Role == r && (m.Channel == f.channel || f.channel == "") && strings.HasPrefix(m.KeyID, remove) && !slices.Contains(ids, m.KeyID) {
			ids = append(ids, m.KeyID)
		}
	}
	if len(ids) != 1 || len(remove) < 8 {
		return k, namespace.WithHint(namespace.E(namespace.NotExist, "find key", remove, fmt.Errorf("%d keys of role %s begin so", len(ids), role)),
			"`coppice key list` shows them; give eight digits at least")
	}
	k.Remove = ids[0]
	return k, nil
}

func (a *app) keyRotate() *cobra.Command {
	var f keyFlags
	var old string
	c := &cobra.Command{
		Use:   "rotate ROLE NEW.pub",
		Short: "Give a role a new key, and take the old one away",
		Long: `Makes NEW.pub, the public half of a key that ` + "`key generate`" + ` made, the key of ROLE (root,
vouching, publisher, pointer, snapshot or timestamp) in place of the old one: the only one the role
has, or the one that --old names. --old none adds a key and removes none. What the old key signed and
the new one must sign is signed with both at once, so both have to be at hand, and the root keys (for
pointer: the vouching keys) too; where they are not, use ` + "`request create keys`" + `.

Endpoints that were off for any number of rotations follow: each root is signed by the one before.`,
		Example: `  coppice key rotate pointer new.pub --name 'operations' --reason 'yearly'
  coppice key rotate vouching bob.pub --old none --threshold 2`,
		Args: exact(2),
		RunE: func(c *cobra.Command, args []string) error {
			return a.changeKeys(c.Context(), f.why, func(members []trust.Member) (trust.KeyChange, error) {
				remove := old
				if old == "" {
					role, err := parseRole(args[0])
					if err != nil {
						return trust.KeyChange{}, err
					}
					if remove, err = onlyKey(members, role, f.channel); err != nil {
						return trust.KeyChange{}, err
					}
				}
				if remove == "none" {
					remove = ""
				}
				return f.change(args[0], args[1], remove, members)
			})
		},
	}
	f.add(c)
	c.Flags().StringVar(&old, "old", "", "the `KEY` that goes: the beginning of its id, or none")
	return c
}

// onlyKey returns the id of the only key of a role.
func onlyKey(members []trust.Member, role trust.Role, channel string) (string, error) {
	var id string
	for _, m := range members {
		if m.Role != role || m.Channel != channel {
			continue
		}
		if id != "" {
			return "", usage("role %s has several keys: say with --old which one goes", roleName(role))
		}
		id = m.KeyID
	}
	if id == "" {
		return "none", nil
	}
	return id, nil
}

func (a *app) keyRevoke() *cobra.Command {
	var f keyFlags
	c := &cobra.Command{
		Use:   "revoke ROLE KEY",
		Short: "Take a role away from a key",
		Long: `Removes the key whose id begins with KEY from ROLE. What it signed and others of the role can sign is
signed anew by them, so that nothing depends on it any more. The last key of a role cannot be revoked, only
rotated. See docs/SECURITY.md for what to do when a key is lost or stolen.`,
		Example: "  coppice key revoke pointer 3f9a01bc77de5566 --reason 'lost laptop'",
		Args:    exact(2),
		RunE: func(c *cobra.Command, args []string) error {
			return a.changeKeys(c.Context(), f.why, func(members []trust.Member) (trust.KeyChange, error) {
				return f.change(args[0], "", args[1], members)
			})
		},
	}
	f.add(c)
	return c
}

// changeKeys makes a change of who has a role, with the keys at hand, and lists who has it then.
func (a *app) changeKeys(ctx context.Context, why string, choose func([]trust.Member) (trust.KeyChange, error)) error {
	w, err := a.openWorkshop(ctx)
	if err != nil {
		return err
	}
	p, err := w.publisher()
	if err != nil {
		return err
	}
	v, err := p.Vouching(ctx)
	if err != nil {
		return err
	}
	change, err := choose(trust.Members(p.Root, v))
	if err != nil {
		return err
	}
	if change.Role == trust.RolePoint {
		v, err = p.ChangeVouching(ctx, trust.VouchingChange{Keys: []trust.KeyChange{change}}, why)
	} else {
		_, err = p.ChangeRoot(ctx, []trust.KeyChange{change}, why)
	}
	if err != nil {
		return err
	}
	var left []listedKey
	var rows [][]string
	for _, m := range trust.Members(p.Root, v) {
		if m.Role == change.Role {
			left = append(left, listedKey{m, roleName(m.Role), false})
			rows = append(rows, []string{roleName(m.Role), m.Channel, m.KeyID[:min(16, len(m.KeyID))], m.Name, fmt.Sprintf("%d of %d", m.Need, m.Of)})
		}
	}
	return a.result(left, func(out io.Writer) { table(out, "ROLE CHANNEL KEY NAME SIGN", rows) })
}
