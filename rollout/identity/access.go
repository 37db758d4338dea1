package identity

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"coppice.dev/coppice/internal/disk"
	"coppice.dev/coppice/namespace"
)

// recordBytesMax bounds a file of the access directory: a record with its labels has a few KiB.
const recordBytesMax = 64 << 10

// Access is an open access directory: who may do what. Safe for concurrent use, also by several
// processes: a running server sees at once what a command changed.
type Access struct {
	dir    string
	now    func() time.Time
	record Recorder

	mu sync.Mutex // serialises changes in this process, as the lock does between processes
}

// Recorder keeps a durable trail of who did what. The trail of package audit is one.
// Record returns when the entry is on disk; what cannot be recorded is not done.
type Recorder interface {
	Record(actor, action, subject, outcome string, detail map[string]string) error
}

// AccessOptions tune [OpenAccess]. The zero value is the default.
type AccessOptions struct {
	Now      func() time.Time // default time.Now
	Recorder Recorder         // default: none
}

// OpenAccess opens the access directory dir, which is made, mode 0700, if need be. One that others can
// enter is refused. Kinds: Denied, Limit.
func OpenAccess(dir string, o AccessOptions) (*Access, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Recorder == nil {
		o.Recorder = silent{}
	}
	for _, sub := range []string{"tokens", "invitations", "used", "endpoints"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o700); err != nil {
			return nil, disk.Error("create", dir, err)
		}
	}
	info, err := os.Stat(dir)
	if err != nil {
		return nil, disk.Error("open", dir, err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, namespace.WithHint(namespace.E(namespace.Denied, "open", dir, fmt.Errorf("its mode is %#o: others can enter it", info.Mode().Perm())),
			"`chmod 700 "+dir+"`, and consider who did")
	}
	return &Access{dir: dir, now: o.Now, record: o.Recorder}, nil
}

// Dir returns the directory.
func (a *Access) Dir() string { return a.dir }

type silent struct{}

func (silent) Record(string, string, string, string, map[string]string) error { return nil }

// Outcomes in the trail.
const (
	Done   = "done"
	Denial = "denied"
)

// Token is what is kept of a person's token; the token itself is not.
type Token struct {
	ID      string    `json:"id"`
	Name    string    `json:"name"`
	Role    Role      `json:"role"`
	Hash    string    `json:"hash"`
	Created time.Time `json:"created"`
	By      string    `json:"by"`
	Expires time.Time `json:"expires"`
	Revoked time.Time `json:"revoked,omitzero"`
}

// State says in a word whether the token is good: "valid", "expired" or "revoked".
func (t Token) State(now time.Time) string {
	switch {
	case !t.Revoked.IsZero():
		return "revoked"
	case !now.Before(t.Expires):
		return "expired"
	}
	return "valid"
}

// A secret is PREFIX_ID_SECRET: the id finds the record, the secret, 256 random bits, proves. A digest
// of so many bits cannot be searched for, so it needs no slow hash.
const (
	tokenPrefix  = "copt"
	invitePrefix = "copi"
	idBytes      = 8
	secretBytes  = 32
)

// newSecret makes an id and a secret, and returns the text to give away and the digest to keep.
func newSecret(prefix string) (id, text, hash string, err error) {
	b := make([]byte, idBytes+secretBytes)
	if _, err := rand.Read(b); err != nil {
		return "", "", "", namespace.E(namespace.Internal, "make", "secret", err)
	}
	id, secret := hex.EncodeToString(b[:idBytes]), hex.EncodeToString(b[idBytes:])
	return id, prefix + "_" + id + "_" + secret, hashSecret(prefix, id, secret), nil
}

// hashSecret is the digest that is kept. It covers what the secret is for, so that a record that was
// moved proves nothing.
func hashSecret(prefix, id, secret string) string {
	sum := sha256.Sum256([]byte("coppice " + prefix + "\x00" + id + "\x00" + secret))
	return hex.EncodeToString(sum[:])
}

// splitSecret takes a text apart. Only the exact form is accepted: the id becomes a file name.
func splitSecret(prefix, text string) (id, secret string, ok bool) {
	parts := strings.Split(text, "_")
	if len(parts) != 3 || parts[0] != prefix || !isHex(parts[1], idBytes) || !isHex(parts[2], secretBytes) {
		return "", "", false
	}
	return parts[1], parts[2], true
}

// isHex reports whether s is n bytes in lower-case hex.
func isHex(s string, n int) bool {
	b, err := hex.DecodeString(s)
	return err == nil && len(b) == n && hex.EncodeToString(b) == s
}

// sameHash compares in constant time.
func sameHash(a, b string) bool { return subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1 }

// tokenLifeMax bounds how long a token may be good for: a year, since nobody remembers longer.
const tokenLifeMax = 366 * 24 * time.Hour

// CreateToken makes a token for a person and returns it; it can never be shown again. by says who
// made it. Kinds: Invalid, Limit, Denied.
func (a *Access) CreateToken(by, name string, role Role, life time.Duration) (string, Token, error) {
	if err := CheckID(name); err != nil {
		return "", Token{}, err
	}
	if !slices.Contains(PeopleRoles(), role) {
		return "", Token{}, namespace.WithHint(namespace.E(namespace.Invalid, "create token", name, fmt.Errorf("a person cannot be %q", role)),
			"roles are viewer, operator, publisher and admin")
	}
	if life <= 0 || life > tokenLifeMax {
		return "", Token{}, namespace.E(namespace.Invalid, "create token", name, errors.New("it must expire, and within a year"))
	}
	id, text, hash, err := newSecret(tokenPrefix)
	if err != nil {
		return "", Token{}, err
	}
	now := a.now().UTC()
	t := Token{ID: id, Name: name, Role: role, Hash: hash, Created: now, By: by, Expires: now.Add(life)}
	err = a.change(func() error {
		if err := a.record.Record(by, "token.create", name, Done, map[string]string{"id": id, "role": string(role), "expires": t.Expires.Format(time.RFC3339)}); err != nil {
			return err
		}
		return a.write("tokens", id, t)
	})
	if err != nil {
		return "", Token{}, err
	}
	return text, t, nil
}

// Tokens returns all tokens, the oldest first. Kinds: Corrupt, Denied.
func (a *Access) Tokens() ([]Token, error) {
	all, err := readAll[Token](a, "tokens")
	slices.SortFunc(all, func(x, y Token) int { return x.Created.Compare(y.Created) })
	return all, err
}

// RevokeToken makes a token good for nothing, from now on. Kinds: NotExist, Invalid, Limit.
func (a *Access) RevokeToken(by, id string) error {
	if !isHex(id, idBytes) {
		return namespace.E(namespace.Invalid, "revoke token", id, errors.New("want a token's id: 16 hex digits"))
	}
	return a.change(func() error {
		var t Token
		if err := a.read("tokens", id, &t); err != nil {
			return err
		}
		if !t.Revoked.IsZero() {
			return nil
		}
		if err := a.record.Record(by, "token.revoke", t.Name, Done, map[string]string{"id": id}); err != nil {
			return err
		}
		t.Revoked = a.now().UTC()
		return a.write("tokens", id, t)
	})
}

// Authenticate returns whose token text is. Kinds: Denied (whatever is wrong with it), Internal.
func (a *Access) Authenticate(text string) (Principal, error) {
	refuse := func(why string) (Principal, error) {
		return Principal{}, namespace.E(namespace.Denied, "authenticate", "token", errors.New(why))
	}
	id, secret, ok := splitSecret(tokenPrefix, text)
	if !ok {
		return refuse("it is none")
	}
	var t Token
	err := a.read("tokens", id, &t)
	if err != nil && !namespace.IsKind(err, namespace.NotExist) {
		return Principal{}, err
	}
	good := sameHash(hashSecret(tokenPrefix, id, secret), t.Hash)
	switch {
	case err != nil || !good || t.ID != id:
		return refuse("it is not known")
	case t.State(a.now()) != "valid":
		return refuse("it is " + t.State(a.now()))
	}
	return Principal{Name: t.Name, Role: t.Role, Via: "token", ID: id}, nil
}

// change runs fn while nobody else changes the directory.
func (a *Access) change(fn func() error) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	f, err := os.OpenFile(filepath.Join(a.dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return disk.Error("lock", a.dir, err)
	}
	defer f.Close() // which unlocks
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		return disk.Error("lock", a.dir, err)
	}
	return fn()
}

// path returns the file of a record. id was checked: [isHex] or [CheckID].
func (a *Access) path(class, id string) string { return filepath.Join(a.dir, class, id+".json") }

// read reads a record. Kinds: NotExist, Corrupt, Denied.
func (a *Access) read(class, id string, v any) error {
	const op = "read record"
	subject := class + " " + id // not the path: this error may be answered with
	b, err := os.ReadFile(a.path(class, id))
	if errors.Is(err, fs.ErrNotExist) {
		return namespace.E(namespace.NotExist, op, subject, nil)
	}
	if err != nil {
		return namespace.E(namespace.KindOf(err), op, subject, errors.New("it cannot be read"))
	}
	return namespace.DecodeRecord(b, recordBytesMax, subject, v)
}

// write replaces a record, durably.
func (a *Access) write(class, id string, v any) error {
	b, err := namespace.EncodeRecord(v)
	if err != nil {
		return err
	}
	if len(b) > recordBytesMax {
		return namespace.E(namespace.Limit, "write record", class+" "+id, fmt.Errorf("%d bytes, at most %d", len(b), recordBytesMax))
	}
	return disk.Replace(a.path(class, id), b, 0o600)
}

// readAll reads all records of a class.
func readAll[T any](a *Access, class string) ([]T, error) {
	names, err := os.ReadDir(filepath.Join(a.dir, class))
	if err != nil {
		return nil, disk.Error("list", filepath.Join(a.dir, class), err)
	}
	var all []T
	for _, n := range names {
		id, ok := strings.CutSuffix(n.Name(), ".json")
		if !ok || strings.HasPrefix(id, ".") {
			continue // being written
		}
		var v T
		if err := a.read(class, id, &v); err != nil && !namespace.IsKind(err, namespace.NotExist) {
			return nil, err
		} else if err == nil {
			all = append(all, v)
		}
	}
	return all, nil
}
