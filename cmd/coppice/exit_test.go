package main

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"coppice.dev/coppice/namespace"
)

func TestEveryKindHasAnExitCode(t *testing.T) {
	seen := map[int]namespace.Kind{}
	for _, k := range namespace.Kinds() {
		code, ok := exitCodes[k]
		if !ok || code == exitOK || code == 2 {
			t.Errorf("%v exits with %d", k, code)
		}
		if other, dup := seen[code]; dup {
			t.Errorf("%v and %v both exit with %d", k, other, code)
		}
		seen[code] = k
		if !strings.Contains(exitHelp, fmt.Sprintf("\n  %-4d ", code)) {
			t.Errorf("the help does not explain exit code %d", code)
		}
	}
}

func TestReport(t *testing.T) {
	var b bytes.Buffer
	err := namespace.WithHint(namespace.E(namespace.NotExist, "read", "tree x", fmt.Errorf("none")), "make one")
	if code := report(&b, err); code != exitNotFound || b.String() != "coppice: read tree x: none\n  make one\n" {
		t.Errorf("%d, %q", code, b.String())
	}
	if code := report(&b, nil); code != exitOK {
		t.Errorf("no error exits with %d", code)
	}
}

func TestParseSize(t *testing.T) {
	for s, want := range map[string]int64{"": 0, "0": 0, "7": 7, "4K": 4096, "4KiB": 4096, "2G": 2 << 30, "1t": 1 << 40, "x": -1, "-1": -1, "1Q": -1, "K": -1, "99999999T": -1} {
		got, err := parseSize(s)
		if (err != nil) != (want < 0) || err == nil && got != want {
			t.Errorf("%q is %d, %v", s, got, err)
		}
	}
	for n, want := range map[uint64]string{0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 3 << 29: "1.5 GiB"} {
		if got := size(n); got != want {
			t.Errorf("%d is %q, want %q", n, got, want)
		}
	}
}
