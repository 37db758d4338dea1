// Package tidy holds the rules of the house as a test: who may import whom, which package is the
// one door of a dependency, that every package and every exported name is documented, and how
// large functions and files may grow.
//
// The tables below are policy. A test that fails is mended in the code, not here; a rule that is
// wrong is changed here with a reason, and by a file in docs/decisions if the design says
// otherwise.
package tidy

// module is the prefix of our own import paths.
const module = "coppice.dev/coppice/"

// floors lists what of ours a package may import besides itself. A package that is not listed
// may not exist. Siblings do not import each other; tests may import the test-only rooms.
var floors = map[string][]string{
	"namespace":              {},
	"namespace/catalog":      {"namespace"},
	"namespace/object":       {"namespace"},
	"namespace/object/delta": {"namespace", "namespace/object"},
	"namespace/trust":        {"namespace"},
	"namespace/origin":       {"namespace", "internal/disk"},
	"namespace/storetest":    {"namespace"},
	"internal/disk":          {"namespace"},
	"internal/sandbox":       {"namespace"},
	"internal/privilege":     {"namespace"},
	"internal/launch":        {},
	"internal/netwatch":      {"namespace"},
	"internal/tidy":          {},
	"internal/slowlink":      {},
	"builder":                {"namespace", "namespace/catalog", "namespace/object", "namespace/object/delta", "namespace/trust", "internal/disk"},
	"builder/packages":       {"namespace", "namespace/catalog", "internal/disk"},
	"builder/oci":            {"namespace", "namespace/object", "builder", "internal/disk"},
	"cache":                  {"namespace", "namespace/catalog", "namespace/object", "namespace/object/delta", "internal/disk"},
	"fusefs":                 {"namespace", "namespace/catalog"},
	"rollout":                {"namespace", "namespace/trust"},
	"rollout/offer":          {"namespace"},
	"rollout/policy":         {"namespace", "rollout/window", "rollout/offer"},
	"rollout/window":         {"namespace"},
	"rollout/endpoint":       {"namespace", "rollout/offer", "rollout/policy", "rollout/window"},
	"rollout/agent":          {"namespace", "internal/disk", "rollout/offer", "rollout/policy", "rollout/endpoint", "rollout/report", "rollout/window"},
	"rollout/report":         {"namespace", "rollout/offer", "rollout/endpoint"},
	"internal/world":         {"namespace", "rollout/offer", "rollout/policy", "rollout/endpoint"}, // it simulates them; only tests import it
	"rollout/identity":       {"namespace", "internal/disk"},
	"rollout/audit":          {"namespace", "internal/disk"},
	"cmd/coppice": {"namespace", "namespace/catalog", "namespace/object", "namespace/trust", "namespace/origin",
		"builder", "builder/packages", "builder/oci", "cache", "fusefs", "rollout", "rollout/identity", "rollout/audit", "rollout/agent", "rollout/report", "rollout/endpoint", "rollout/policy", "rollout/offer",
		"internal/disk", "internal/sandbox", "internal/privilege", "internal/netwatch", "internal/launch"},
}

// testRooms may be imported by any test.
var testRooms = []string{"namespace/object/delta", "namespace/storetest", "namespace", "namespace/catalog", "namespace/object", "namespace/trust", "internal/disk", "internal/world"}

// doors names, for each third-party module, the packages that may import it: one, unless a
// reason stands beside it.
var doors = map[string][]string{
	"github.com/hanwen/go-fuse":              {"fusefs"},
	"github.com/containerd/continuity":       {"builder"},
	"github.com/klauspost/compress":          {"namespace/object"},
	"github.com/PlakarKorp":                  {"namespace/object"},
	"github.com/cespare/xxhash":              {"cache"},
	"go.etcd.io/bbolt":                       {"cache"},
	"github.com/bmatcuk/doublestar":          {"cache"},
	"github.com/andybalholm/brotli":          {"namespace/object/delta"},
	"github.com/ulikunitz/xz":                {"builder"},
	"github.com/theupdateframework/go-tuf":   {"namespace/trust"},
	"github.com/secure-systems-lab":          {"namespace/trust", "cmd/coppice"}, // what go-tuf itself uses: canonical JSON, and keys under a passphrase
	"golang.org/x/term":                      {"cmd/coppice"},                    // passphrases
	"github.com/cenkalti/backoff":            {"namespace/origin"},
	"github.com/google/renameio":             {"internal/disk"},
	"github.com/google/go-containerregistry": {"builder/oci"},
	"github.com/Masterminds/semver":          {"builder/packages"},
	"github.com/aquasecurity":                {"builder/packages"},
	"github.com/knqyf263":                    {"builder/packages"},
	"github.com/package-url":                 {"builder/packages"},
	"github.com/CycloneDX":                   {"builder/packages"},
	"github.com/spdx/tools-golang":           {"builder/packages"},
	"modernc.org/sqlite":                     {"builder/packages"},
	"github.com/spf13/cobra":                 {"cmd/coppice"},
	"github.com/goccy/go-yaml":               {"cmd/coppice"},
	"github.com/vbauerster/mpb":              {"cmd/coppice"},
	"cel.dev":                                {"rollout/policy"},
	"github.com/rogpeppe/go-internal":        {"cmd/coppice"},                                                                                                                                                                        // tests: testscript
	"github.com/prometheus/client_golang":    {"namespace/origin", "cache", "fusefs", "cmd/coppice", "internal/slowlink"},                                                                                                            // each has collectors, the command serves them
	"golang.org/x/sys":                       {"namespace/origin", "builder", "cache", "fusefs", "internal/disk", "internal/sandbox", "cmd/coppice", "internal/privilege", "rollout/identity", "rollout/audit", "internal/netwatch"}, // the kernel's door, not a library's
	"golang.org/x/time":                      {"rollout/identity", "namespace/origin", "cache"},
	"golang.org/x/net":                       {"namespace/origin"},  // httpproxy: how everybody reads NO_PROXY
	"github.com/vishvananda/netlink":         {"internal/netwatch"}, // what network there is, as the kernel tells it
	"github.com/godbus/dbus":                 {"internal/netwatch"}, // NetworkManager's metered flag
	"github.com/Shopify/toxiproxy":           {"internal/slowlink"},
	"github.com/rs/zerolog":                  {"internal/slowlink"}, // toxiproxy wants its logger
	"golang.org/x/sync":                      {"builder", "builder/oci", "cache", "namespace/origin", "fusefs"},
}

// pure lists packages that must not reach outside, and what they may not import for it.
var pure = map[string][]string{
	"namespace":         {"os", "net", "net/http", "os/exec", "syscall", "log", "log/slog"},
	"namespace/catalog": {"os", "net", "net/http", "os/exec", "syscall", "time", "log", "log/slog"},
	"namespace/trust":   {"os", "net", "net/http", "os/exec", "syscall", "log", "log/slog"},
	"rollout/offer":     {"os", "net", "net/http", "os/exec", "syscall", "log", "log/slog"},
	"rollout/policy":    {"os", "net", "net/http", "os/exec", "syscall", "log", "log/slog"},
	"rollout/endpoint":  {"os", "net", "net/http", "os/exec", "syscall", "log", "log/slog"},
	"rollout/window":    {"os", "net", "net/http", "os/exec", "syscall", "log", "log/slog"},
}

// Sizes, in lines. Few functions may be longer than functionLines, none longer than functionMax.
const (
	fileMax         = 600
	functionLines   = 60
	functionMax     = 100
	longShare       = 0.02 // of all functions may exceed functionLines
	topLevelAllowed = "cmd namespace fusefs cache builder rollout docs internal go.mod go.sum Makefile README.md LICENSE .ci .gitignore .git"
)

// banned are idioms with a reason against each. Matched as text in non-test files.
var banned = map[string]string{
	"ioutil.":        "deprecated: os and io have it",
	"log.Fatal":      "exits without a cleanup; return an error",
	"panic(":         "bad input is an error with a Kind",
	"os.Exit(":       "only main may",
	"// TO" + "DO":   "an issue, or the code",
	"time.Sleep(":    "waits that cannot be cancelled; use a timer and a context",
	"interface{}":    "any",
	"http.DefaultCl": "has no time-out",
}

// bannedExcept says where a banned idiom is right.
var bannedExcept = map[string][]string{
	"os.Exit(":    {"cmd/coppice/main.go", "internal/slowlink/main.go"},
	"time.Sleep(": {},
	"panic(":      {},
}
