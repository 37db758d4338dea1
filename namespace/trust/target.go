package trust

import (
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"slices"
	"strings"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"coppice.dev/coppice/namespace"
)

// Target is a file that a repository of The Update Framework, ours or another's, vouches for.
type Target struct {
	Path       string
	Length     int64
	Consistent bool // it is stored under a name that begins with its digest
	hashes     metadata.Hashes
}

// delegationsMax bounds the roles that one lookup visits.
const delegationsMax = 32

// Target finds what the repository says of a path, asking delegated roles in their order. Kinds: those of
// Refresh; NotExist (no role knows it).
func (u *Updater) Target(ctx context.Context, t *Trusted, path string) (Target, error) {
	type visit struct{ role, by string }
	todo, seen := []visit{{DocVouching, DocRoot}}, map[string]bool{}
	for len(todo) > 0 && len(seen) <= delegationsMax {
		next := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if seen[next.role] {
			continue
		}
		seen[next.role] = true
		if t.set.Targets[next.role] == nil {
			if err := u.delegated(ctx, t, next.role, next.by, nil); err != nil {
				return Target{}, err
			}
		}
		doc := t.set.Targets[next.role]
		if found := doc.Signed.Targets[path]; found != nil {
			return Target{path, found.Length, t.set.Root.Signed.ConsistentSnapshot, found.Hashes}, nil
		}
		var children []visit
		for _, d := range delegatesOf(doc, path) {
			if children = append(children, visit{d.Name, next.role}); d.Terminating {
				todo = nil
				break
			}
		}
		slices.Reverse(children)
		todo = append(todo, children...)
	}
	return Target{}, namespace.E(namespace.NotExist, "find", "target "+path, errors.New("no role vouches for it"))
}

// delegatesOf returns the roles that doc asks about a path, in order.
func delegatesOf(doc *metadata.Metadata[metadata.TargetsType], path string) []metadata.RoleResult {
	d := doc.Signed.Delegations
	if d == nil {
		return nil
	}
	if d.Roles == nil {
		return d.GetRolesForTarget(path)
	}
	var all []metadata.RoleResult
	sum := sha256.Sum256([]byte(path))
	digest := hex.EncodeToString(sum[:])
	for _, r := range d.Roles {
		match, err := r.IsDelegatedPath(path)
		if len(r.Paths) == 0 { // go-tuf compares these with another encoding of the digest
			match = slices.ContainsFunc(r.PathHashPrefixes, func(p string) bool { return p != "" && strings.HasPrefix(digest, p) })
		}
		if err == nil && match {
			all = append(all, metadata.RoleResult{Name: r.Name, Terminating: r.Terminating})
		}
	}
	return all
}

// Name returns where the target is below the repository's base, by one of its digests if the repository is
// consistent.
func (t Target) Name() string {
	if !t.Consistent {
		return t.Path
	}
	dir, base := "", t.Path
	if i := strings.LastIndexByte(t.Path, '/'); i >= 0 {
		dir, base = t.Path[:i+1], t.Path[i+1:]
	}
	for _, algorithm := range []string{"sha256", "sha512"} {
		if h := t.hashes[algorithm]; len(h) > 0 {
			return dir + h.String() + "." + base
		}
	}
	return t.Path
}

// Verify reads r to its end and says whether it is the target. It reads at most a byte more than the
// target has. Kinds: Corrupt, Limit (too long), those of r.
func (t Target) Verify(r io.Reader) error {
	bad := func(kind namespace.Kind, format string, args ...any) error {
		return namespace.E(kind, "verify", "target "+t.Path, fmt.Errorf(format, args...))
	}
	sums := map[string]hash.Hash{}
	var all []io.Writer
	for name := range t.hashes {
		switch name {
		case "sha256":
			sums[name] = sha256.New()
		case "sha512":
			sums[name] = sha512.New()
		default:
			return bad(namespace.Corrupt, "a digest by %q", name)
		}
		all = append(all, sums[name])
	}
	if len(all) == 0 {
		return bad(namespace.Corrupt, "it has no digest")
	}
	n, err := io.Copy(io.MultiWriter(all...), io.LimitReader(r, t.Length+1))
	switch {
	case err != nil:
		return bad(namespace.KindOf(err), "%w", err)
	case n > t.Length:
		return bad(namespace.Limit, "more than %d bytes", t.Length)
	case n < t.Length:
		return bad(namespace.Corrupt, "%d bytes of %d", n, t.Length)
	}
	for name, h := range t.hashes {
		if !slices.Equal(sums[name].Sum(nil), h) {
			return bad(namespace.Corrupt, "its %s is another", name)
		}
	}
	return nil
}
