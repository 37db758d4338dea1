package offer

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math/bits"
	"slices"
	"strings"

	"coppice.dev/coppice/namespace"
)

const million = 1_000_000

// IDBytesMax bounds an endpoint's id: longer than any host name or UUID.
const IDBytesMax = 253

// Bucket places an endpoint between 0 and 2^64: the first 8 bytes, big-endian, of
// SHA-256(salt ‖ 0 ‖ id). The salt is a rollout's name, so that another rollout has other canaries,
// or a channel's, so that they stay. Errors: Invalid for an id that is empty, too long or has a
// zero byte, or a salt that has one.
func Bucket(salt, id string) (uint64, error) {
	switch {
	case id == "" || len(id) > IDBytesMax:
		return 0, namespace.E(namespace.Invalid, "place endpoint", fmt.Sprintf("%.64q", id), fmt.Errorf("an id of 1 to %d bytes is needed", IDBytesMax))
	case len(salt) > SaltBytesMax:
		return 0, namespace.E(namespace.Invalid, "place endpoint", id, fmt.Errorf("a salt of %d bytes, at most %d", len(salt), SaltBytesMax))
	case strings.IndexByte(id, 0) >= 0 || strings.IndexByte(salt, 0) >= 0:
		return 0, namespace.E(namespace.Invalid, "place endpoint", fmt.Sprintf("%q", id), fmt.Errorf("a zero byte in id or salt"))
	}
	var b [SaltBytesMax + 1 + IDBytesMax]byte
	n := copy(b[:], salt) + 1
	n += copy(b[n:], id)
	sum := sha256.Sum256(b[:n])
	return binary.BigEndian.Uint64(sum[:8]), nil
}

// Below reports whether a bucket lies in the first perMillion of all. There is no modulo, so no
// bucket is favoured, and a larger share holds every smaller one.
func Below(bucket uint64, perMillion uint32) bool {
	if perMillion >= million {
		return true
	}
	edge, _ := bits.Div64(uint64(perMillion), 0, million) // ⌊perMillion · 2^64 / 1,000,000⌋
	return bucket < edge
}

// Has reports whether a bucket belongs to the stage.
func (s *Stage) Has(bucket uint64) bool {
	if Below(bucket, s.PerMillion) {
		return true
	}
	_, found := slices.BinarySearch(s.Members, bucket)
	return found
}

// Candidate is an endpoint that may be chosen, and the strata it stands for: "site=oslo",
// "model=x1", in any number.
type Candidate struct {
	ID     string
	Strata []string
}

// Choice is who was chosen. Members are the buckets for a [Stage], ascending; IDs the same
// endpoints, in the order of their buckets. Missing are the strata that have fewer than was asked
// for though they could have more: k was too small.
type Choice struct {
	IDs     []string
	Members []uint64
	Missing []string
}

// Choose takes exactly k endpoints, or all if there are fewer. In the order of their buckets, those
// come first that stand for a stratum with less than minimum chosen so far; what is left of k goes
// to the lowest buckets. The same arguments, in whatever order, give the same choice: a dry run is
// the run. Errors: Invalid for an id that is missing or there twice, or for two ids in one bucket.
func Choose(salt string, from []Candidate, k, minimum int) (Choice, error) {
	type placed struct {
		*Candidate
		bucket uint64
		taken  bool
	}
	if k < 0 || k > MembersMax {
		return Choice{}, namespace.E(namespace.Limit, "choose endpoints", salt, fmt.Errorf("%d, at most %d", k, MembersMax))
	}
	all := make([]placed, len(from))
	sizes := map[string]int{}
	for i := range from {
		b, err := Bucket(salt, from[i].ID)
		if err != nil {
			return Choice{}, err
		}
		all[i] = placed{Candidate: &from[i], bucket: b}
		for _, s := range distinct(from[i].Strata) {
			sizes[s]++
		}
	}
	slices.SortFunc(all, func(a, b placed) int { return cmp.Compare(a.bucket, b.bucket) })
	for i := 1; i < len(all); i++ {
		if all[i].bucket == all[i-1].bucket {
			return Choice{}, namespace.E(namespace.Invalid, "choose endpoints", all[i].ID, fmt.Errorf("the same bucket as %s: is the id there twice?", all[i-1].ID))
		}
	}
	chosen, left := map[string]int{}, min(k, len(all))
	take := func(p *placed) {
		p.taken = true
		left--
		for _, s := range distinct(p.Strata) {
			chosen[s]++
		}
	}
	for i := range all {
		if left > 0 && slices.ContainsFunc(all[i].Strata, func(s string) bool { return chosen[s] < minimum }) {
			take(&all[i])
		}
	}
	for i := range all {
		if left > 0 && !all[i].taken {
			take(&all[i])
		}
	}
	var c Choice
	for i := range all {
		if all[i].taken {
			c.IDs, c.Members = append(c.IDs, all[i].ID), append(c.Members, all[i].bucket)
		}
	}
	for s, n := range sizes {
		if chosen[s] < min(minimum, n) {
			c.Missing = append(c.Missing, s)
		}
	}
	slices.Sort(c.Missing)
	return c, nil
}

// distinct returns the strata of one endpoint, each once.
func distinct(strata []string) []string {
	if len(strata) < 2 {
		return strata
	}
	s := slices.Clone(strata)
	slices.Sort(s)
	return slices.Compact(s)
}
