package main

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strings"

	"github.com/secure-systems-lab/go-securesystemslib/encrypted"
	"golang.org/x/term"

	"coppice.dev/coppice/internal/disk"
	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/trust"
)

// A keys directory holds one file for each key, NAME.pem, and those that belong on another machine in
// the directory offline. A file is an ed25519 key in PKCS #8, PEM, so that `openssl pkey` reads it, or
// the same under a passphrase, with the public key in a header, so that it is asked for only when the
// key is used.
const (
	keySuffix     = ".pem"
	offlineDir    = "offline"
	plainPEM      = "PRIVATE KEY"
	lockedPEM     = "COPPICE ENCRYPTED PRIVATE KEY"
	publicPEM     = "PUBLIC KEY"
	publicHeader  = "Public"
	keyFileMax    = 64 << 10
	passphraseMax = 4 << 10
)

// initKeys are the keys that `origin init` makes, and the roles they have: what must be signed by whoever
// publishes, apart from what a cron job signs, apart from what decides over all of it.
var initKeys = []struct {
	name  string // its file, below the keys directory
	roles []trust.Role
}{
	{"publisher", []trust.Role{trust.RolePublish}},
	{"pointer", []trust.Role{trust.RolePoint}},
	{"online", []trust.Role{trust.RoleSnapshot, trust.RoleTimestamp}},
	{offlineDir + "/root", []trust.Role{trust.RoleRoot}},
	{offlineDir + "/vouching", []trust.Role{trust.RoleVouching}},
}

// keysDir returns where the signing keys of the origin in dir are.
func (a *app) keysDir(dir string) string {
	if a.keys != "" {
		return a.keys
	}
	return strings.TrimRight(dir, "/") + ".keys"
}

// signerName is who signs, in the notes of signatures.
func signerName() string {
	if name := os.Getenv("COPPICE_SIGNER"); name != "" {
		return name
	}
	name := "uid " + fmt.Sprint(os.Getuid())
	if u, err := user.Current(); err == nil {
		name = u.Username
	}
	if host, err := os.Hostname(); err == nil {
		name += "@" + host
	}
	return name
}

// passphrase returns the passphrase of keys, nil if there is none: from --passphrase-file, the
// environment, or, if ask, a person at the terminal.
func (a *app) passphrase(ask string) ([]byte, error) {
	if a.passFile != "" {
		b, err := os.ReadFile(a.passFile)
		if err != nil {
			return nil, disk.Error("read", a.passFile, err)
		}
		b = []byte(strings.TrimRight(string(b), "\r\n"))
		if len(b) == 0 || len(b) > passphraseMax {
			return nil, namespace.E(namespace.Invalid, "read passphrase", a.passFile, fmt.Errorf("it has %d bytes", len(b)))
		}
		return b, nil
	}
	if p := os.Getenv("COPPICE_PASSPHRASE"); p != "" {
		return []byte(p), nil
	}
	if ask == "" || !atTerminal() {
		return nil, nil
	}
	fmt.Fprint(a.stderr, ask+": ")
	b, err := term.ReadPassword(int(os.Stdin.Fd()))
	fmt.Fprintln(a.stderr)
	if err != nil {
		return nil, namespace.E(namespace.Unavailable, "read passphrase", "terminal", err)
	}
	return b, nil
}

func atTerminal() bool { return term.IsTerminal(int(os.Stdin.Fd())) }

// keyRing is a trust.Signer for a key in a file, which is unlocked when it is first used.
type keyRing struct {
	path   string
	public ed25519.PublicKey
	locked []byte // nil: open is set
	open   *trust.Key
	ask    func(prompt string) ([]byte, error)
}

// KeyID implements trust.Signer.
func (k *keyRing) KeyID() string { return trust.KeyID(k.public) }

// Public implements trust.Signer.
func (k *keyRing) Public() ed25519.PublicKey { return k.public }

// Sign implements trust.Signer.
func (k *keyRing) Sign(msg []byte) ([]byte, error) {
	if k.open == nil {
		if err := k.unlock(); err != nil {
			return nil, err
		}
	}
	return k.open.Sign(msg)
}

func (k *keyRing) unlock() error {
	pass, err := k.ask("passphrase of " + k.path)
	if err == nil && len(pass) == 0 {
		err = namespace.WithHint(namespace.E(namespace.Denied, "unlock key", k.path, errors.New("it is encrypted")),
			"give the passphrase with --passphrase-file or COPPICE_PASSPHRASE, or run this at a terminal")
	}
	if err != nil {
		return err
	}
	der, err := encrypted.Decrypt(k.locked, pass)
	if err != nil {
		return namespace.E(namespace.Denied, "unlock key", k.path, errors.New("the passphrase is wrong, or the file damaged"))
	}
	key, err := parseKey(k.path, der)
	if err != nil {
		return err
	}
	if !key.Public().Equal(k.public) {
		return namespace.E(namespace.Corrupt, "unlock key", k.path, errors.New("it is another key than its header says"))
	}
	k.open = &key
	return nil
}

func parseKey(path string, der []byte) (trust.Key, error) {
	parsed, err := x509.ParsePKCS8PrivateKey(der)
	private, ok := parsed.(ed25519.PrivateKey)
	if err != nil || !ok {
		return trust.Key{}, namespace.E(namespace.Corrupt, "read key", path, errors.New("no ed25519 key in PKCS #8"))
	}
	return trust.NewKey(private.Seed())
}

// makeKey returns the key in the file path, making one if there is none; made says which. With a
// passphrase a new one is encrypted.
func (a *app) makeKey(path string, pass []byte) (key *keyRing, made bool, err error) {
	if key, err = a.readKey(path); err == nil || !namespace.IsKind(err, namespace.NotExist) {
		return key, false, err
	}
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, false, namespace.E(namespace.Internal, "make key", path, err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	block := &pem.Block{Type: plainPEM, Bytes: der}
	if err == nil && len(pass) > 0 {
		block = &pem.Block{Type: lockedPEM, Headers: map[string]string{publicHeader: hex.EncodeToString(public)}}
		block.Bytes, err = encrypted.EncryptWithCustomKDFParameters(der, pass, encrypted.Standard)
	}
	if err != nil {
		return nil, false, namespace.E(namespace.Internal, "make key", path, err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, false, disk.Error("create", filepath.Dir(path), err)
	}
	if err := disk.Replace(path, pem.EncodeToMemory(block), 0o600); err != nil {
		return nil, false, err
	}
	key, err = a.readKey(path)
	return key, true, err
}

// readKey reads a key's file and refuses one that others can read. Kinds: NotExist, Denied, Corrupt.
func (a *app) readKey(path string) (*keyRing, error) {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, namespace.WithHint(namespace.E(namespace.NotExist, "read key", path, errors.New("there is none")),
			"`coppice origin init` makes it; --keys or COPPICE_KEYS names its directory")
	}
	if err != nil {
		return nil, disk.Error("read key", path, err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, namespace.WithHint(
			namespace.E(namespace.Denied, "read key", path, fmt.Errorf("its mode is %#o: others can read it", info.Mode().Perm())),
			"`chmod 600 "+path+"`, and consider whether it leaked")
	}
	if info.Size() > keyFileMax {
		return nil, namespace.E(namespace.Corrupt, "read key", path, fmt.Errorf("%d bytes", info.Size()))
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, disk.Error("read key", path, err)
	}
	return a.decodeKey(path, b)
}

// decodeKey reads the content of a key's file.
func (a *app) decodeKey(path string, b []byte) (*keyRing, error) {
	block, _ := pem.Decode(b)
	if block == nil {
		return nil, namespace.E(namespace.Corrupt, "read key", path, errors.New("no PEM block"))
	}
	if block.Type == lockedPEM {
		public, err := hex.DecodeString(block.Headers[publicHeader])
		if err != nil || len(public) != ed25519.PublicKeySize {
			return nil, namespace.E(namespace.Corrupt, "read key", path, errors.New("its header names no public key"))
		}
		return &keyRing{path: path, public: public, locked: block.Bytes, ask: a.passphrase}, nil
	}
	key, err := parseKey(path, block.Bytes)
	if err != nil {
		return nil, err
	}
	return &keyRing{path: path, public: key.Public(), open: &key}, nil
}

// readKeys returns the keys in dir and in its directory of offline keys. Keys that are encrypted count if
// their passphrase is to be had. Kinds: those of readKey; NotExist if there are none.
func (a *app) readKeys(dir string) ([]*keyRing, error) {
	var all []*keyRing
	for _, pattern := range []string{"*" + keySuffix, offlineDir + "/*" + keySuffix} {
		names, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			return nil, namespace.E(namespace.Invalid, "read keys", dir, err)
		}
		for _, name := range names {
			k, err := a.readKey(name)
			if err != nil {
				return nil, err
			}
			all = append(all, k)
		}
	}
	if len(all) == 0 {
		return nil, namespace.WithHint(namespace.E(namespace.NotExist, "read keys", dir, errors.New("there are none")),
			"`coppice origin init` makes them; --keys or COPPICE_KEYS names their directory")
	}
	return all, nil
}

// signers returns the keys in dir that can be used.
func (a *app) signers(dir string) ([]trust.Signer, error) {
	all, err := a.readKeys(dir)
	if err != nil {
		return nil, err
	}
	var usable []trust.Signer
	for _, k := range all {
		if k.open == nil && a.passFile == "" && os.Getenv("COPPICE_PASSPHRASE") == "" && !atTerminal() {
			continue
		}
		usable = append(usable, k)
	}
	return usable, nil
}

// publicKey reads the file of a public key, as `key generate` writes it.
func publicKey(path string) (ed25519.PublicKey, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, disk.Error("read", path, err)
	}
	block, _ := pem.Decode(b)
	if block == nil || block.Type != publicPEM {
		return nil, namespace.E(namespace.Corrupt, "read", path, errors.New("no public key in PEM"))
	}
	parsed, err := x509.ParsePKIXPublicKey(block.Bytes)
	public, ok := parsed.(ed25519.PublicKey)
	if err != nil || !ok {
		return nil, namespace.E(namespace.Corrupt, "read", path, errors.New("no ed25519 public key"))
	}
	return public, nil
}

// newPassphrase returns the passphrase for keys about to be made, asked for twice at a terminal; nil for
// none.
func (a *app) newPassphrase() ([]byte, error) {
	prompt := "passphrase for the keys that decide over others (empty for none)"
	if a.quiet {
		prompt = "" // a script
	}
	pass, err := a.passphrase(prompt)
	if err != nil || len(pass) == 0 || a.passFile != "" || os.Getenv("COPPICE_PASSPHRASE") != "" {
		return pass, err
	}
	again, err := a.passphrase("once more")
	if err == nil && string(again) != string(pass) {
		err = namespace.E(namespace.Invalid, "read passphrase", "terminal", errors.New("they differ"))
	}
	return pass, err
}
