package trust

import (
	"strings"
	"testing"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"coppice.dev/coppice/namespace"
)

func TestJSONAmbiguities(t *testing.T) {
	for name, s := range map[string]string{
		"duplicate key":          `{"a":1,"a":2}`,
		"duplicate below":        `{"x":[{"a":1,"a":2}]}`,
		"the same but for case":  `{"signed":{},"Signed":{}}`,
		"kelvin sign":            "{\"k\":1,\"\u212a\":2}",
		"long s":                 "{\"s\":1,\"\u017f\":2}",
		"escaped duplicate":      `{"a":1,"\u0061":2}`,
		"huge number":            `{"a":9007199254740993}`,
		"beyond 64 bits":         `{"a":99999999999999999999999}`,
		"fraction":               `{"a":1.5}`,
		"exponent":               `{"a":1e2}`,
		"negative zero":          `{"a":-0}`,
		"NaN":                    `{"a":NaN}`,
		"infinity":               `{"a":Infinity}`,
		"null":                   `{"a":null}`,
		"nothing but null":       `null`,
		"trailing":               `{} {}`,
		"trailing bracket":       `{}}`,
		"not UTF-8":              "{\"a\":\"\xff\"}",
		"unfinished":             `{"a":`,
		"comment":                `{/**/}`,
		"empty":                  ``,
		"too deep":               strings.Repeat("[", 64) + strings.Repeat("]", 64),
		"leading zero":           `{"a":01}`,
		"byte order mark":        "\ufeff{}",
		"a name without a value": `{"a"}`,
	} {
		if err := checkJSON([]byte(s), 1<<10, "test"); !namespace.IsKind(err, namespace.Corrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := checkJSON([]byte(`{"a":[1,-2,"x",true,{"b":9007199254740992}]}`), 1<<10, "test"); err != nil {
		t.Error(err)
	}
	if err := checkJSON(make([]byte, 1<<10+1), 1<<10, "test"); !namespace.IsKind(err, namespace.Limit) {
		t.Errorf("endless: %v", err)
	}
}

// What made go-tuf stumble: keys of another size than the library expects, members that are null.
func TestDocumentsThatMadeReadersStumble(t *testing.T) {
	for name, s := range map[string]string{
		"short key":       `{"signatures":[],"signed":{"_type":"root","spec_version":"1.0.31","version":1,"expires":"2030-01-01T00:00:00Z","consistent_snapshot":true,"keys":{"x":{"keytype":"ed25519","scheme":"ed25519","keyval":{"public":"abcd"}}},"roles":{"root":{"keyids":["x"],"threshold":1}}}}`,
		"null key":        `{"signatures":[],"signed":{"_type":"root","spec_version":"1.0.31","version":1,"expires":"2030-01-01T00:00:00Z","keys":{"x":null},"roles":{}}}`,
		"version 0":       `{"signatures":[],"signed":{"_type":"root","spec_version":"1.0.31","version":0,"expires":"2030-01-01T00:00:00Z","keys":{},"roles":{}}}`,
		"other spec":      `{"signatures":[],"signed":{"_type":"root","spec_version":"2.0.0","version":1,"expires":"2030-01-01T00:00:00Z","keys":{},"roles":{}}}`,
		"another type":    `{"signatures":[],"signed":{"_type":"snapshot","spec_version":"1.0.31","version":1,"expires":"2030-01-01T00:00:00Z","meta":{}}}`,
		"not an object":   `[]`,
		"signature twice": `{"signatures":[{"keyid":"x","sig":"00"},{"keyid":"x","sig":"00"}],"signed":{"_type":"root","spec_version":"1.0.31","version":1,"expires":"2030-01-01T00:00:00Z","keys":{},"roles":{}}}`,
	} {
		if _, err := decodeDocument[metadata.RootType](DocRoot, []byte(s)); !namespace.IsKind(err, namespace.Corrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzDocument(f *testing.F) {
	f.Add([]byte(`{"signatures":[{"keyid":"x","sig":"00"}],"signed":{"_type":"timestamp","spec_version":"1.0.31","version":1,"expires":"2030-01-01T00:00:00Z","meta":{"snapshot.json":{"version":1}}}}`))
	f.Add([]byte(`{"signatures":[],"signed":{"_type":"snapshot","spec_version":"1.0.31","version":1,"expires":"2030-01-01T00:00:00Z","meta":{"targets.json":{"version":1}}}}`))
	f.Add([]byte(`{"signatures":[],"signed":{"_type":"targets","spec_version":"1.0.31","version":1,"expires":"2030-01-01T00:00:00Z","targets":{"c":{"length":1,"hashes":{"sha256":"00"},"custom":{"seq":1}}}}}`))
	f.Add([]byte(`{"signatures":[],"signed":{"_type":"root","spec_version":"1.0.31","version":1,"expires":"2030-01-01T00:00:00Z","consistent_snapshot":true,"keys":{},"roles":{"root":{"keyids":["x"],"threshold":1}}}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if m, err := decodeDocument[metadata.RootType](DocRoot, b); err == nil {
			_ = m.VerifyDelegate(DocRoot, m)
		}
		if m, err := decodeDocument[metadata.TargetsType](DocVouching, b); err == nil {
			_, _ = readVouching(m)
			_, _ = readPointer("c", m)
			_ = m.VerifyDelegate("channel/c", m)
			_ = signatures(m, nil)
		}
		_, _ = decodeDocument[metadata.TimestampType](DocTimestamp, b)
		_, _ = decodeDocument[metadata.SnapshotType](DocSnapshot, b)
	})
}
