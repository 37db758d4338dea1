package packages

import (
	"cmp"
	"regexp"
	"slices"
	"strings"

	"github.com/Masterminds/semver/v3"
	pep440 "github.com/aquasecurity/go-pep440-version"
	rpm "github.com/knqyf263/go-rpm-version"
)

// CompareVersions orders two versions by the rules of their ecosystem: negative if a is older than
// b. A version that breaks the rules is compared by segments as rpm does, which orders anything.
func CompareVersions(eco Ecosystem, a, b string) int {
	if a == b {
		return 0
	}
	switch eco {
	case Deb:
		return compareDeb(a, b)
	case APK:
		ta, oka := splitAPK(a)
		tb, okb := splitAPK(b)
		if oka && okb {
			return compareAPK(ta, tb)
		}
	case PyPI:
		va, erra := pep440.Parse(a)
		vb, errb := pep440.Parse(b)
		if erra == nil && errb == nil {
			return va.Compare(vb)
		}
	case NPM:
		va, erra := semver.NewVersion(a)
		vb, errb := semver.NewVersion(b)
		if erra == nil && errb == nil {
			return va.Compare(vb)
		}
	}
	return rpm.NewVersion(a).Compare(rpm.NewVersion(b))
}

// compareDeb is dpkg's order. It is written out here since dpkg installs versions that the library
// at hand refuses, and since a number of twenty digits, a time with its fraction, must not overflow
// where a downgrade is looked for.
func compareDeb(a, b string) int {
	ea, ua, ra := splitDeb(a)
	eb, ub, rb := splitDeb(b)
	return cmp.Or(compareDebPart(ea, eb), compareDebPart(ua, ub), compareDebPart(ra, rb))
}

// splitDeb cuts epoch:upstream-revision.
func splitDeb(v string) (epoch, upstream, revision string) {
	epoch, upstream, ok := strings.Cut(v, ":")
	if !ok {
		epoch, upstream = "", v
	}
	if i := strings.LastIndexByte(upstream, '-'); i >= 0 {
		upstream, revision = upstream[:i], upstream[i+1:]
	}
	return epoch, upstream, revision
}

// compareDebPart compares alternately what is no number, by weight, and numbers, by value.
func compareDebPart(a, b string) int {
	for a != "" || b != "" {
		for (a != "" && !isDigit(a[0])) || (b != "" && !isDigit(b[0])) {
			if c := cmp.Compare(debWeight(a), debWeight(b)); c != 0 {
				return c
			}
			a, b = a[1:], b[1:] // equal weights other than an end's or a number's: both have a byte
		}
		var na, nb string
		na, a = cutNumber(a)
		nb, b = cutNumber(b)
		if c := cmp.Or(cmp.Compare(len(na), len(nb)), cmp.Compare(na, nb)); c != 0 {
			return c
		}
	}
	return 0
}

// debWeight orders the byte that s begins with: a tilde before the end, the end before letters,
// letters before all else.
func debWeight(s string) int {
	switch {
	case s == "" || isDigit(s[0]):
		return 0
	case s[0] == '~':
		return -1
	case s[0] >= 'A' && s[0] <= 'Z' || s[0] >= 'a' && s[0] <= 'z':
		return int(s[0])
	}
	return int(s[0]) + 256
}

// apkVersion is the grammar of apk-tools 3. Its order is written out below, since the library at hand
// has that of an apk from 2020, to which 1.0_rc1 is newer than 1.0.
var apkVersion = regexp.MustCompile(`^(\d+)((?:\.\d+)*)([a-z]?)((?:_(?:alpha|beta|pre|rc|cvs|svn|git|hg|p)\d*)*)(~[0-9a-f]+)?(?:-r(\d+))?$`)

// The tokens of an apk version in the order in which they may follow, which is also the order of
// versions of which one has run out of tokens or goes on with a later one: the earlier token wins.
const (
	apkInitial = iota
	apkDigits
	apkLetter
	apkSuffix
	apkSuffixNumber
	apkCommit
	apkRevision
	apkEnd
)

// apkSuffixes in their order; the first four are older than no suffix at all.
var apkSuffixes = []string{"alpha", "beta", "pre", "rc", "cvs", "svn", "git", "hg", "p"}

type apkToken struct {
	kind int
	text string
}

func (t apkToken) preRelease() bool {
	return t.kind == apkSuffix && slices.Index(apkSuffixes, t.text) < slices.Index(apkSuffixes, "cvs")
}

func splitAPK(v string) (tokens []apkToken, ok bool) {
	m := apkVersion.FindStringSubmatch(v)
	if m == nil {
		return nil, false
	}
	add := func(kind int, text string) {
		if text != "" {
			tokens = append(tokens, apkToken{kind, text})
		}
	}
	add(apkInitial, m[1])
	for part := range strings.SplitSeq(m[2], ".") {
		add(apkDigits, part)
	}
	add(apkLetter, m[3])
	for part := range strings.SplitSeq(m[4], "_") {
		word := strings.TrimRight(part, "0123456789")
		add(apkSuffix, word)
		add(apkSuffixNumber, part[len(word):])
	}
	add(apkCommit, m[5])
	add(apkRevision, m[6])
	return append(tokens, apkToken{kind: apkEnd}), true
}

func compareAPK(a, b []apkToken) int {
	for i := range min(len(a), len(b)) {
		x, y := a[i], b[i]
		switch {
		case x.kind != y.kind && x.preRelease():
			return -1
		case x.kind != y.kind && y.preRelease():
			return 1
		case x.kind != y.kind:
			return cmp.Compare(y.kind, x.kind)
		}
		if c := x.compare(y); c != 0 {
			return c
		}
	}
	return 0
}

// compare orders two tokens of one kind.
func (t apkToken) compare(o apkToken) int {
	switch t.kind {
	case apkDigits:
		if t.text[0] == '0' || o.text[0] == '0' { // a fraction: 1.05 is older than 1.1
			return cmp.Compare(t.text, o.text)
		}
	case apkLetter, apkCommit:
		return cmp.Compare(t.text, o.text)
	case apkSuffix:
		return cmp.Compare(slices.Index(apkSuffixes, t.text), slices.Index(apkSuffixes, o.text))
	}
	return compareDebPart(t.text, o.text)
}

// cutNumber returns the digits at the beginning of s without leading zeros, and what follows.
func cutNumber(s string) (digits, rest string) {
	n := 0
	for n < len(s) && isDigit(s[n]) {
		n++
	}
	return strings.TrimLeft(s[:n], "0"), s[n:]
}

func isDigit(c byte) bool { return c >= '0' && c <= '9' }

// isDotted reports whether v is numbers with dots between.
func isDotted(v string) bool {
	for part := range strings.SplitSeq(v, ".") {
		if _, rest := cutNumber(part); part == "" || rest != "" {
			return false
		}
	}
	return true
}

// compareDotted compares versions of numbers with dots between; 1.2 is older than 1.2.0.
func compareDotted(a, b string) int {
	as, bs := strings.Split(a, "."), strings.Split(b, ".")
	for i := range min(len(as), len(bs)) {
		if c := compareDebPart(as[i], bs[i]); c != 0 {
			return c
		}
	}
	return cmp.Compare(len(as), len(bs))
}
