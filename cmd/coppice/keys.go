package main

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"coppice.dev/coppice/internal/disk"
	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/trust"
)

// keyFile is the signing key in a keys directory: an ed25519 key in PKCS #8, PEM, so that
// `openssl pkey` reads it.
const keyFile = "publisher.pem"

// keysDir returns where the signing keys of the origin in dir are.
func (a *app) keysDir(dir string) string {
	if a.keys != "" {
		return a.keys
	}
	return strings.TrimRight(dir, "/") + ".keys"
}

// makeKey returns the key in keysDir, making one if there is none. made says which.
func makeKey(dir string) (key trust.Key, made bool, err error) {
	if key, err = readKey(dir); err == nil || !namespace.IsKind(err, namespace.NotExist) {
		return key, false, err
	}
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return key, false, namespace.E(namespace.Internal, "make key", dir, err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return key, false, namespace.E(namespace.Internal, "make key", dir, err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return key, false, disk.Error("create", dir, err)
	}
	err = disk.Replace(filepath.Join(dir, keyFile), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600)
	if err != nil {
		return key, false, err
	}
	key, err = readKey(dir)
	return key, true, err
}

// readKey reads the key in dir and refuses one that others can read. Kinds: NotExist, Denied,
// Corrupt.
func readKey(dir string) (trust.Key, error) {
	path := filepath.Join(dir, keyFile)
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return trust.Key{}, namespace.WithHint(namespace.E(namespace.NotExist, "read key", path, errors.New("there is none")),
			"`coppice origin init` makes it; --keys or COPPICE_KEYS names its directory")
	}
	if err != nil {
		return trust.Key{}, disk.Error("read key", path, err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return trust.Key{}, namespace.WithHint(
			namespace.E(namespace.Denied, "read key", path, fmt.Errorf("its mode is %#o: others can read it", info.Mode().Perm())),
			"`chmod 600 "+path+"`, and consider whether it leaked")
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return trust.Key{}, disk.Error("read key", path, err)
	}
	block, _ := pem.Decode(b)
	if block == nil {
		return trust.Key{}, namespace.E(namespace.Corrupt, "read key", path, errors.New("no PEM block"))
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	private, ok := parsed.(ed25519.PrivateKey)
	if err != nil || !ok {
		return trust.Key{}, namespace.E(namespace.Corrupt, "read key", path, errors.New("no ed25519 key in PKCS #8"))
	}
	return trust.NewKey(private.Seed())
}
