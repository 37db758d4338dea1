package identity

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"coppice.dev/coppice/internal/disk"
	"coppice.dev/coppice/namespace"
)

// KeyPair is a certificate and its key in files, read again when they change: a renewed certificate
// is presented with no restart. While the files make no sense, as between two renames, the last good
// pair stays. Safe for concurrent use.
type KeyPair struct {
	cert, key string
	log       *slog.Logger

	mu     sync.Mutex
	stamp  [2]fileStamp
	looked time.Time
	pair   *tls.Certificate
}

// fileStamp tells whether a file is still the same.
type fileStamp struct {
	mtime time.Time
	size  int64
	ino   uint64
}

// lookEvery is how long a pair is used without a look at its files.
const lookEvery = time.Second

// pairBytesMax bounds a PEM file: a key and a chain of a few certificates have some 10 KiB.
const pairBytesMax = 1 << 20

// LoadKeyPair reads a certificate chain and its key, PEM; both may be in one file. log, which may be
// nil, is told of a pair that cannot be read later. Kinds: NotExist, Denied (others can read the key),
// Corrupt.
func LoadKeyPair(cert, key string, log *slog.Logger) (*KeyPair, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	k := &KeyPair{cert: cert, key: key, log: log}
	return k, k.reload(time.Now())
}

// Certificate returns the present pair.
func (k *KeyPair) Certificate() *tls.Certificate {
	k.mu.Lock()
	defer k.mu.Unlock()
	if now := time.Now(); now.Sub(k.looked) > lookEvery {
		if err := k.reload(now); err != nil {
			k.log.Warn("certificate not read again, the last one stays", "error", err)
		}
	}
	return k.pair
}

// Pin returns the pin of the present pair's key.
func (k *KeyPair) Pin() Pin { return PinOf(k.Certificate().Leaf) }

// reload reads the files if they changed. The caller holds mu, or is the only one to know k.
func (k *KeyPair) reload(now time.Time) error {
	k.looked = now
	stamp := [2]fileStamp{stampOf(k.cert), stampOf(k.key)}
	if k.pair != nil && stamp == k.stamp {
		return nil
	}
	chain, err := readBounded(k.cert, pairBytesMax)
	if err != nil {
		return err
	}
	key, err := readPrivate(k.key)
	if err != nil {
		return err
	}
	pair, err := tls.X509KeyPair(chain, key)
	if err != nil {
		return namespace.E(namespace.Corrupt, "read certificate", k.cert, err)
	}
	k.pair, k.stamp = &pair, stamp
	return nil
}

func stampOf(path string) fileStamp {
	info, err := os.Stat(path)
	if err != nil {
		return fileStamp{}
	}
	return fileStamp{info.ModTime(), info.Size(), inode(info)}
}

// readBounded reads a file of at most limit bytes.
func readBounded(path string, limit int64) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, disk.Error("read", path, err)
	}
	if !info.Mode().IsRegular() || info.Size() > limit {
		return nil, namespace.E(namespace.Invalid, "read", path, fmt.Errorf("want a file of at most %d bytes", limit))
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, disk.Error("read", path, err)
	}
	return b, nil
}

// readPrivate reads a file with a secret and refuses one that others can read.
func readPrivate(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, disk.Error("read key", path, err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, namespace.WithHint(
			namespace.E(namespace.Denied, "read key", path, fmt.Errorf("its mode is %#o: others can read it", info.Mode().Perm())),
			"`chmod 600 "+path+"`, and consider whether it leaked")
	}
	return readBounded(path, pairBytesMax)
}

// selfLife is how long a certificate of our own making is valid; its key, which is what is pinned,
// stays when it is made anew at selfRenew before the end.
const (
	selfLife  = 10 * 365 * 24 * time.Hour
	selfRenew = 365 * 24 * time.Hour
)

// SelfSigned returns the key pair tls.key and tls.crt in dir, made if need be: a P-256 key that stays,
// and a certificate signed by itself, for clients that pin. hosts are the names and addresses in it.
// Kinds: Denied, Corrupt, Limit.
func SelfSigned(dir string, hosts []string, log *slog.Logger) (*KeyPair, error) {
	certPath, keyPath := filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	key, err := readOrMakeKey(keyPath)
	if err != nil {
		return nil, err
	}
	if pair, err := LoadKeyPair(certPath, keyPath, log); err == nil {
		if time.Until(pair.Certificate().Leaf.NotAfter) > selfRenew {
			return pair, nil
		}
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "coppice"},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(selfLife),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
	}
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else if h != "" {
			template.DNSNames = append(template.DNSNames, h)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, namespace.E(namespace.Internal, "make certificate", certPath, err)
	}
	if err := disk.Replace(certPath, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644); err != nil {
		return nil, err
	}
	return LoadKeyPair(certPath, keyPath, log)
}

// readOrMakeKey returns the P-256 key in path (PKCS #8, PEM, mode 0600), made if there is none.
func readOrMakeKey(path string) (*ecdsa.PrivateKey, error) {
	b, err := readPrivate(path)
	if errors.Is(err, fs.ErrNotExist) {
		var key *ecdsa.PrivateKey
		if key, b, err = newKey(); err == nil {
			return key, disk.Replace(path, b, 0o600)
		}
	}
	if err != nil {
		return nil, err
	}
	return parseKey(path, b)
}

// newKey makes a P-256 key and its PEM form. P-256 because every TLS library and every hardware
// token knows it.
func newKey() (*ecdsa.PrivateKey, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, namespace.E(namespace.Internal, "make key", "", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, namespace.E(namespace.Internal, "make key", "", err)
	}
	return key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// parseKey reads the first key of a PEM file.
func parseKey(path string, b []byte) (*ecdsa.PrivateKey, error) {
	for block, rest := pem.Decode(b); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "PRIVATE KEY" {
			continue
		}
		parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
		key, ok := parsed.(*ecdsa.PrivateKey)
		if err != nil || !ok || key.Curve != elliptic.P256() {
			return nil, namespace.E(namespace.Corrupt, "read key", path, errors.New("no P-256 key in PKCS #8"))
		}
		return key, nil
	}
	return nil, namespace.E(namespace.Corrupt, "read key", path, errors.New("no PEM block with a key"))
}

// newSerial returns a certificate's serial number: 127 random bits, which is positive and cannot be
// guessed.
func newSerial() (*big.Int, error) {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, namespace.E(namespace.Internal, "make", "serial number", err)
	}
	return n.Add(n, big.NewInt(1)), nil
}

// ServerTLS returns the configuration of a listener: TLS 1.3 only, and a client that has a certificate
// is asked for it. Whether the certificate is good is for [Access] to say, at each request, so that
// whoever is refused is told why and a revocation holds at once.
func ServerTLS(pair *KeyPair) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: []string{"http/1.1"}, // one protocol, one set of bounds
		ClientAuth: tls.RequestClientCert,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return pair.Certificate(), nil
		},
	}
}
