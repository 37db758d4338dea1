package delta

import (
	"bytes"
	"compress/gzip"
	"io"
	"math/rand/v2"
	"os/exec"
	"strings"
	"testing"

	"coppice.dev/coppice/namespace"
)

// prose is like text: words that repeat, with repetitions of every length and distance.
func prose(r *rand.Rand, n int) []byte {
	b := make([]byte, 0, n+1000)
	for len(b) < n {
		switch k := r.IntN(20); {
		case k == 0 && len(b) > 0:
			at := r.IntN(len(b))
			b = append(b, b[at:min(len(b), at+r.IntN(700))]...)
		case k == 1:
			b = append(b, bytes.Repeat([]byte{byte(r.IntN(256))}, r.IntN(400))...)
		case k == 2:
			b = append(b, random(r, r.IntN(300), 256)...)
		default:
			b = append(b, strings.Repeat("word", r.IntN(3))...)
			b = append(b, random(r, r.IntN(8), 30)...)
		}
	}
	return b[:n]
}

// The one that packages are compressed with is asked itself.
func TestGzipIsThatOfGzip(t *testing.T) {
	r := rand.New(rand.NewPCG(13, 14))
	for _, n := range []int{0, 1, 2, 3, 100, 262, 4000, 65535 - 262, 65536, 65537, 98304, 300000} {
		for name, plain := range map[string][]byte{"prose": prose(r, n), "noise": random(r, n, 256), "zeros": make([]byte, n)} {
			cmd := exec.Command("gzip", "-9nc")
			cmd.Stdin = bytes.NewReader(plain)
			want, err := cmd.Output()
			if err != nil {
				t.Fatal(err)
			}
			content, ok := inflate(want)
			if !ok || !bytes.Equal(content[gzipHeader:], plain) {
				t.Fatalf("%s, %d bytes: not read back", name, n)
			}
			if !bytes.Equal(regzip(content), want) {
				t.Errorf("%s, %d bytes: other bytes than gzip's", name, n)
			}
		}
	}
}

func TestRegzipIsGzip(t *testing.T) {
	r := rand.New(rand.NewPCG(15, 16))
	for n := 1; n < 100000; n = n*5 + 7 {
		plain := prose(r, n)
		z, err := gzip.NewReader(bytes.NewReader(regzip(append([]byte("\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\x03"), plain...))))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(z); err != nil || !bytes.Equal(got, plain) {
			t.Fatalf("%d bytes: %d come out, %v", n, len(got), err)
		}
	}
}

func TestDiffOfCompressedFiles(t *testing.T) {
	r := rand.New(rand.NewPCG(17, 18))
	header := []byte("\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\x03")
	text := prose(r, 100000)
	old := regzip(append(header[:10:10], text...))
	new := regzip(append(append(header[:10:10], "a new line\n"...), text...))
	if k := ForFile(old, new); k != Gzip {
		t.Fatalf("kind %d", k)
	}
	for name, base := range map[string][]byte{"compressed": old, "not compressed": text} {
		patch, err := Diff(Gzip, base, new)
		if err != nil {
			t.Fatal(err)
		}
		got, err := Apply(base, patch, len(new))
		if err != nil || !bytes.Equal(got, new) {
			t.Fatalf("base %s: %d bytes, %v", name, len(got), err)
		}
		if len(patch) > 100 {
			t.Errorf("base %s: a patch of %d bytes for one line", name, len(patch))
		}
	}
	// What another compressor made cannot be made again, and that is said.
	var other bytes.Buffer
	z, err := gzip.NewWriterLevel(&other, 1)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := z.Write(text); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Diff(Gzip, old, other.Bytes()); !namespace.IsKind(err, namespace.Invalid) {
		t.Errorf("of another compressor: %v", err)
	}
	// A bomb is no reason to allocate.
	bomb := append(bytes.Clone(old[:len(old)-4]), 0xff, 0xff, 0xff, 0xff)
	if _, ok := inflate(bomb); ok {
		t.Error("a size of 4 GB was believed")
	}
}
