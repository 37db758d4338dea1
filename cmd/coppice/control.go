package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"coppice.dev/coppice/internal/disk"
	"coppice.dev/coppice/namespace"
	"coppice.dev/coppice/namespace/origin"
	"coppice.dev/coppice/namespace/trust"
	"coppice.dev/coppice/rollout/identity"
)

// The control protocol: JSON over HTTP on a UNIX socket in the cache's directory, which only the
// cache's owner can enter. One daemon serves a cache and all mounts that use it.

// mountRequest asks the daemon for a mount.
type mountRequest struct {
	Target    string        `json:"target"` // CHANNEL or NAME@N
	Dir       string        `json:"dir"`    // absolute
	Origin    string        `json:"origin"` // absolute or URL
	Trust     []byte        `json:"trust,omitempty"`
	Poll      time.Duration `json:"poll"`
	AllowSuid bool          `json:"allow_suid,omitempty"`
	AllowDev  bool          `json:"allow_dev,omitempty"`
	DenyExec  bool          `json:"deny_exec,omitempty"`
	Hydrate   bool          `json:"hydrate,omitempty"`
	NoAhead   bool          `json:"no_ahead,omitempty"` // profiles are not fetched ahead
	Stage     string        `json:"stage,omitempty"`    // stageAll, stagePinned or stageMetadata
	Quota     int64         `json:"quota,omitempty"`    // of the cache; 0: as it is
	RunDir    string        `json:"run_dir"`
	// Transport says how the origin proves itself, and this endpoint itself to it.
	Transport identity.Transport `json:"transport,omitzero"`

	Origins []string        `json:"origins,omitempty"` // all of them, in order; Origin is the first
	Proxies *origin.Proxies `json:"proxies,omitempty"`
	Links   linkRules       `json:"links"`

	Check time.Duration `json:"check,omitempty"` // of the timestamp
	Lease time.Duration `json:"lease,omitempty"` // 0: as the origin's policy says
	Then  trust.Then    `json:"then,omitempty"`

	Agent *agentMount `json:"agent,omitempty"` // the agent decides what is shown, and when
}

// sources returns where a mount reads from.
func (r mountRequest) sources() []string {
	if len(r.Origins) == 0 {
		return []string{r.Origin}
	}
	return r.Origins
}

// mountReply says what is mounted; Pinned is set when the origin's root was pinned just now.
type mountReply struct {
	Version  string `json:"version"`
	Manifest string `json:"manifest"`
	Mode     string `json:"mode"`
	Pinned   string `json:"pinned,omitempty"`
	// PinnedKey is "HOST: pinned its key PIN", if the key of the origin's server was pinned just now.
	PinnedKey string `json:"pinned_key,omitempty"`
}

type unmountRequest struct {
	Dir   string `json:"dir"`
	Force bool   `json:"force,omitempty"`
}

// hydrateUpdate is a line of the reply to a request to hydrate: progress, then the end. The bytes are
// plaintext of What.
type hydrateUpdate struct {
	What  string        `json:"what,omitempty"`
	Done  int64         `json:"done"`
	Total int64         `json:"total"`
	End   bool          `json:"end,omitempty"`
	Error *controlError `json:"error,omitempty"`
}

// controlError is an error on the wire: its Kind survives.
type controlError struct {
	Kind    string `json:"kind"`
	Message string `json:"message"`
	Hint    string `json:"hint,omitempty"`
	Ending  bool   `json:"ending,omitempty"` // ask the next daemon
}

func wireError(err error) *controlError {
	return &controlError{namespace.KindOf(err).String(), err.Error(), namespace.HintOf(err), errors.Is(err, errEnding)}
}

func (e *controlError) err() error {
	if e.Ending {
		return namespace.E(namespace.Unavailable, "", "", errEnding)
	}
	err := namespace.E(namespace.ParseKind(e.Kind), "", "", errors.New(e.Message))
	if e.Hint != "" {
		err = namespace.WithHint(err, e.Hint)
	}
	return err
}

const socketName = "control.sock"

// socketPath returns a path of the socket in dir that fits into a sockaddr (108 bytes), whatever
// the length of dir: by way of a descriptor of the directory. The caller closes it.
func socketPath(dir string) (string, io.Closer, error) {
	d, err := os.Open(dir)
	if err != nil {
		return "", nil, err
	}
	return fmt.Sprintf("/proc/self/fd/%d/%s", d.Fd(), socketName), d, nil
}

// daemonClient speaks to the daemon of a cache.
type daemonClient struct {
	http  *http.Client
	cache string
}

// dialDaemon connects to the daemon of the cache dir. NotExist: none is running.
func dialDaemon(dir string) (*daemonClient, error) {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		path, d, err := socketPath(dir)
		if err != nil {
			return nil, err
		}
		defer d.Close()
		var dialer net.Dialer
		return dialer.DialContext(ctx, "unix", path)
	}
	conn, err := dial(context.Background(), "", "")
	if err != nil {
		if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, os.ErrNotExist) {
			return nil, namespace.E(namespace.NotExist, "reach", "daemon of "+dir, errors.New("none is running"))
		}
		return nil, namespace.E(namespace.KindOf(err), "reach", "daemon of "+dir, err)
	}
	conn.Close()
	return &daemonClient{&http.Client{Transport: &http.Transport{DialContext: dial}}, dir}, nil
}

// call posts req and decodes the reply.
func (c *daemonClient) call(ctx context.Context, path string, req, reply any) error {
	body, err := c.stream(ctx, path, req)
	if err != nil {
		return err
	}
	defer body.Close()
	if err := json.NewDecoder(body).Decode(reply); err != nil {
		return namespace.E(namespace.Internal, "read reply", path, err)
	}
	return nil
}

// stream posts req and returns the body of a successful reply.
func (c *daemonClient) stream(ctx context.Context, path string, req any) (io.ReadCloser, error) {
	b, err := json.Marshal(req)
	if err != nil {
		return nil, namespace.E(namespace.Internal, "encode request", path, err)
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://daemon"+path, bytes.NewReader(b))
	if err != nil {
		return nil, namespace.E(namespace.Internal, "make request", path, err)
	}
	resp, err := c.http.Do(r)
	if err != nil {
		return nil, namespace.WithHint(namespace.E(namespace.Unavailable, "ask", "daemon of "+c.cache, err),
			"its log is "+logPath(c.cache))
	}
	if resp.StatusCode == http.StatusOK {
		return resp.Body, nil
	}
	defer resp.Body.Close()
	var e controlError
	if err := json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(&e); err != nil {
		return nil, namespace.E(namespace.Internal, "ask", "daemon of "+c.cache, fmt.Errorf("status %s", resp.Status))
	}
	return nil, e.err()
}

// registered is a line in the register of mounts, by which `unmount` and `status` find the daemon
// of a directory.
type registered struct {
	Dir    string `json:"dir"`
	Cache  string `json:"cache"`
	PID    int    `json:"pid"`
	Target string `json:"target"`
}

// registerPath returns the file that registers dir below run.
func registerPath(run, dir string) string {
	sum := sha256.Sum256([]byte(dir))
	return filepath.Join(run, "mounts", hex.EncodeToString(sum[:8])+".json")
}

func register(run string, r registered) error {
	b, err := namespace.EncodeRecord(r)
	if err != nil {
		return err
	}
	return disk.Replace(registerPath(run, r.Dir), b, 0o600)
}

// unregister forgets dir; that it was not there is no error.
func unregister(run, dir string) { _ = os.Remove(registerPath(run, dir)) }

// lookup finds the register's line for dir.
func lookup(run, dir string) (registered, bool) {
	var r registered
	b, err := os.ReadFile(registerPath(run, dir))
	if err != nil || json.Unmarshal(b, &r) != nil || r.Dir != dir {
		return registered{}, false
	}
	return r, true
}

// allRegistered returns the whole register.
func allRegistered(run string) []registered {
	var all []registered
	names, _ := filepath.Glob(filepath.Join(run, "mounts", "*.json"))
	for _, name := range names {
		var r registered
		if b, err := os.ReadFile(name); err == nil && json.Unmarshal(b, &r) == nil {
			all = append(all, r)
		}
	}
	return all
}
