package identity

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"time"

	"coppice.dev/coppice/internal/disk"
	"coppice.dev/coppice/namespace"
)

// Known remembers, in a directory, which key each server has that proved itself by one. A nil *Known remembers nothing. Safe for concurrent use, also by several processes.
type Known struct {
	Dir string // mode 0700, made if need be
	// Notify, if not nil, is told of each key that is pinned at first contact.
	Notify func(host string, pin Pin)

	mu sync.Mutex // so that two connections at once are one first contact
}

// knownHost is what is kept of a server; Pin is zero in what is kept of its host name.
type knownHost struct {
	Host  string    `json:"host"`
	Pin   Pin       `json:"pin,omitzero"`
	Since time.Time `json:"since"`
}

// path returns the file about a host.
func (k *Known) path(host string) string {
	if k == nil {
		return ""
	}
	sum := sha256.Sum256([]byte(host))
	return filepath.Join(k.Dir, hex.EncodeToString(sum[:8])+".json")
}

// read returns what is known of a host; ok is false if nothing is.
func (k *Known) read(host string) (h knownHost, ok bool, err error) {
	if k == nil {
		return h, false, nil
	}
	b, err := os.ReadFile(k.path(host))
	if errors.Is(err, os.ErrNotExist) {
		return h, false, nil
	}
	if err == nil {
		err = namespace.DecodeRecord(b, recordBytesMax, k.path(host), &h)
	}
	if err == nil && h.Host != host {
		err = namespace.E(namespace.Corrupt, "read", k.path(host), errors.New("it is about another host"))
	}
	if err != nil {
		return knownHost{}, false, namespace.E(namespace.KindOf(err), "read known server", host, err)
	}
	return h, true, nil
}

// Pin returns the key that host (HOST:PORT) is known by, or zero. Kinds: Corrupt, Denied.
func (k *Known) Pin(host string) (Pin, error) {
	h, _, err := k.read(host)
	return h.Pin, err
}

// secure reports whether host is known by its key, on any port: http has another one. What cannot be
// read counts as yes.
func (k *Known) secure(host string) bool {
	if k == nil {
		return false
	}
	for _, h := range knownNames(host) {
		if _, ok, err := k.read(h); ok || err != nil {
			return true
		}
	}
	return false
}

// meet holds the server of a first contact to the key that another connection has noted meanwhile, or
// pins the one it has.
func (k *Known) meet(host string, leaf *x509.Certificate) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	seen, err := k.Pin(host)
	if err != nil {
		return err
	}
	if !seen.IsZero() {
		if !seen.Matches(leaf) {
			return impostor(host, seen, leaf)
		}
		return nil
	}
	if err := k.note(host, PinOf(leaf)); err != nil {
		return err
	}
	if k.Notify != nil {
		k.Notify(host, PinOf(leaf))
	}
	return nil
}

// note remembers the key that host proved itself by, durably.
func (k *Known) note(host string, pin Pin) error {
	if k == nil {
		return nil
	}
	h, ok, err := k.read(host)
	if err != nil || ok && h.Pin == pin {
		return err
	}
	now := time.Now().UTC()
	for i, name := range knownNames(host) {
		line := knownHost{Host: name, Since: now}
		if i == 0 {
			line.Pin = pin
		}
		b, err := namespace.EncodeRecord(line)
		if err != nil {
			return err
		}
		if err := disk.Replace(k.path(name), b, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// knownNames are the names that a server at HOST:PORT is remembered under: http has another port than
// https, so the host alone is one of them. Many servers live on a loopback address, which nobody is
// in between of: there each port counts for itself.
func knownNames(host string) []string {
	name := (&url.URL{Host: host}).Hostname()
	if name == host || isLoopback(name) {
		return []string{host}
	}
	return []string{host, name}
}

// hostPort returns HOST:PORT of a URL.
func hostPort(u *url.URL) string {
	if u.Port() != "" {
		return u.Host
	}
	return net.JoinHostPort(u.Hostname(), "443")
}

// isLoopback reports whether host is this machine by its very name.
func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}
