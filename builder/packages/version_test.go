package packages

import (
	"strings"
	"testing"
)

// TestCompareVersions goes through chains, each of them ascending by its ecosystem's own rules;
// versions that are equal share an item, with "==" between.
func TestCompareVersions(t *testing.T) {
	for eco, chains := range map[Ecosystem][]string{
		Deb: {
			"1.0~~ 1.0~~a 1.0~ 1.0~rc1 1.0==1.0-0==0:1.0 1.0-1~deb12u1 1.0-1 1.0-1+b1 1.0-1.1 1.0-2 1.0a 1.0+dfsg 1.0.1 1.10 1:0.1 2:0",
			"3.0.9-1 3.0.16-1~deb12u1 3.0.17-1~deb12u2 3.0.17-1~deb12u3 3.1",
			"0==0-==00 0a 0+ 1",
			"20240101123045123456789 20240101123045123456790 99999999999999999999999",
			"1.2.3-1 1.2.3-1ubuntu1 1.2.3-2",
			"1a 1b==01b a b",
			"1.0 1.0-1-1",
		},
		RPM: {
			"1.0~rc1-1 1.0-1 1.0^git1-1 1.0.1-1 1.1-1 1:0.5-1",
			"1.0-1.fc40 1.0-1.fc41 1.0-2.fc40 1.0-10",
			"a 1 2a 2.0 2.0a 2.0.1 10==010",
			"1.0==1_0 1.0.a 1.0.0",
			"4.18.0-80 4.18.0-80.1 4.18.0-193",
		},
		APK: {
			"1.0_alpha 1.0_alpha2 1.0_beta 1.0_rc1 1.0 1.0-r1 1.0-r10 1.0_git20240101 1.0_p1 1.0a 1.0.1 1.05 1.1 1.1b 1.10",
			"1.2.3_git20240101~0abc 1.2.3_git20240101~1abc-r1 1.2.3_git20240102",
			"3.1.4-r5 3.1.4-r6 3.1.5-r0",
		},
		PyPI: {
			"1.0.dev1 1.0a1 1.0a2 1.0b1 1.0rc1 1.0==1.0.0==1 1.0+local.1 1.0.post1 1.0.1 1.10 1!0.1",
			"2.0.dev3 2.0",
		},
		NPM: {
			"1.0.0-alpha 1.0.0-alpha.1 1.0.0-alpha.beta 1.0.0-beta.2 1.0.0-beta.11 1.0.0-rc.1 1.0.0==1.0.0+build 1.0.1 1.10.0 2.0.0",
		},
	} {
		for _, chain := range chains {
			var ladder []string
			rung := map[string]int{}
			for i, group := range strings.Fields(chain) {
				for v := range strings.SplitSeq(group, "==") {
					ladder = append(ladder, v)
					rung[v] = i
				}
			}
			for _, a := range ladder {
				for _, b := range ladder {
					got := CompareVersions(eco, a, b)
					if want := rung[a] - rung[b]; sign(got) != sign(want) {
						t.Errorf("%s: %s against %s is %d, want the sign of %d", eco, a, b, got, want)
					}
				}
			}
		}
	}
}

func sign(n int) int {
	switch {
	case n < 0:
		return -1
	case n > 0:
		return 1
	}
	return 0
}

func TestCompareVersionsThatBreakTheRules(t *testing.T) {
	for _, eco := range Ecosystems() {
		if CompareVersions(eco, "not a version 1", "not a version 2") >= 0 {
			t.Errorf("%s: the first is not older", eco)
		}
		if CompareVersions(eco, "::-~", "::-~") != 0 {
			t.Errorf("%s: not equal to itself", eco)
		}
	}
}

func TestCompareDotted(t *testing.T) {
	ladder := strings.Fields("1 1.2 1.2.0 1.2.3 1.10 2 99999999999999999999 100000000000000000000")
	for i, a := range ladder {
		for j, b := range ladder {
			if got := compareDotted(a, b); sign(got) != sign(i-j) {
				t.Errorf("%s against %s is %d", a, b, got)
			}
		}
	}
	for v, want := range map[string]bool{"1": true, "1.20.3": true, "": false, "1.": false, ".1": false, "1.a": false} {
		if isDotted(v) != want {
			t.Errorf("isDotted(%q) is %v", v, !want)
		}
	}
}

func FuzzCompareVersions(f *testing.F) {
	f.Add("1.0-1", "1.0~rc1")
	f.Add("1:2^3_p4", "1!2.0.dev1")
	f.Add("", "-")
	f.Fuzz(func(t *testing.T, a, b string) {
		for _, eco := range Ecosystems() {
			if sign(CompareVersions(eco, a, b)) != -sign(CompareVersions(eco, b, a)) {
				t.Errorf("%s: %q and %q are not opposite", eco, a, b)
			}
		}
	})
}
