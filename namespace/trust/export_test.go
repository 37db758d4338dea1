package trust

import (
	"context"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"coppice.dev/coppice/namespace"
)

// Forge points a channel wherever its caller likes, with the keys that it has and no questions asked: what
// a thief of the online keys can do.
func Forge(p *Publisher, channel string, v namespace.Version, manifest namespace.Digest) error {
	return p.commit(context.Background(), func(st *state) (*edit, error) {
		cur, raw, err := p.pointer(context.Background(), st.trusted, channel)
		if err != nil {
			return nil, err
		}
		next := namespace.Pointer{Format: namespace.RecordFormat, Channel: channel, Seq: uint64(cur.Signed.Version) + 1, Version: v,
			Manifest: manifest, Issued: p.now(), Prev: namespace.Sum(raw)}
		doc, err := pointerDocument(next, 1, p.now().Add(time.Hour))
		if err != nil {
			return nil, err
		}
		return &edit{channels: map[string]*metadata.Metadata[metadata.TargetsType]{channel: doc}}, signDocument(doc, p.note("evil"), p.Signers...)
	})
}
