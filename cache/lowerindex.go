package cache

import (
	"bytes"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"sort"

	"coppice.dev/coppice/namespace"
)

// pages looks up keys in the file of a bbolt database as it lies there. The library would lock the file,
// which keeps the owner of a shared cache from opening it and does not work on every network file
// system, and map it, which makes a file that vanishes a fault. Everything read is held against bounds;
// what is changed meanwhile by its owner is not found, or is found to be wrong by the entry's check.
//
// A page: u64 id, u16 flags, u16 count, u32 overflow pages; elements of 16 bytes; keys and values.
// An element of a branch: u32 position from itself, u32 key bytes, u64 page. Of a leaf: u32 flags, u32
// position, u32 key bytes, u32 value bytes. A bucket is a value: u64 root page, u64 sequence and, if the
// root is 0, a page. Pages 0 and 1 are metas: u32 magic, version, page size, flags; a bucket; u64 free
// list, pages, transaction, FNV-1a of all before.
type pages struct {
	r    io.ReaderAt
	size uint32 // of a page, bytes
	root uint64 // page of the root bucket
}

const (
	pageHeader  = 16
	elementSize = 16
	branchPage  = 0x01
	leafPage    = 0x02
	metaPage    = 0x04
	metaBytes   = 64
	bboltMagic  = 0xED0CDAED
	bboltFormat = 2
	// depthMax and pageMax bound what a damaged file can make a look-up do: a million chunks are four
	// pages deep, and only lists of free pages are larger than a page.
	depthMax = 16
	pageMax  = 1 << 20
)

func errPages(format string, args ...any) error {
	return namespace.E(namespace.Corrupt, "read", "index", fmt.Errorf(format, args...))
}

// openPages reads the newer of the two metas that is whole.
func openPages(r io.ReaderAt) (*pages, error) {
	var found *pages
	var newest uint64
	for _, at := range []int64{0, 4 << 10, 8 << 10, 16 << 10, 32 << 10, 64 << 10} { // page 1, by page size
		var b [pageHeader + metaBytes]byte
		if _, err := r.ReadAt(b[:], at); err != nil {
			continue
		}
		m := b[pageHeader:]
		sum := fnv.New64a()
		_, _ = sum.Write(m[:56])
		size := le.Uint32(m[8:])
		if le.Uint32(m) != bboltMagic || le.Uint32(m[4:]) != bboltFormat || sum.Sum64() != le.Uint64(m[56:]) ||
			le.Uint16(b[8:])&metaPage == 0 || size < 1<<10 || size > 64<<10 || at != 0 && at != int64(size) {
			continue
		}
		if tx := le.Uint64(m[48:]); found == nil || tx > newest {
			found, newest = &pages{r, size, le.Uint64(m[16:])}, tx
		}
	}
	if found == nil {
		return nil, errPages("no index of a version that this build knows")
	}
	return found, nil
}

// page reads a page, overflow included.
func (p *pages) page(id uint64) ([]byte, error) {
	if id > 1<<40 {
		return nil, errPages("page %d", id)
	}
	b := make([]byte, p.size)
	if _, err := p.r.ReadAt(b, int64(id)*int64(p.size)); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, errPages("page %d is behind the end", id)
		}
		return nil, err
	}
	if le.Uint64(b) != id {
		return nil, errPages("page %d is another", id)
	}
	if more := uint64(le.Uint32(b[12:])) * uint64(p.size); more > 0 {
		if more > pageMax {
			return nil, errPages("page %d has %d bytes", id, more)
		}
		b = append(b, make([]byte, more)...)
		if _, err := p.r.ReadAt(b[p.size:], int64(id+1)*int64(p.size)); err != nil {
			return nil, errPages("page %d is cut", id)
		}
	}
	return b, nil
}

// element returns the key of element i of a page and what belongs to it: the value, or the page's number.
func element(b []byte, i int) (key, value []byte, child uint64, err error) {
	at := pageHeader + i*elementSize
	if at+elementSize > len(b) {
		return nil, nil, 0, errPages("element %d of a page", i)
	}
	e := b[at:]
	var pos, klen, vlen uint32
	if le.Uint16(b[8:])&branchPage != 0 {
		pos, klen, child = le.Uint32(e), le.Uint32(e[4:]), le.Uint64(e[8:])
	} else {
		pos, klen, vlen = le.Uint32(e[4:]), le.Uint32(e[8:]), le.Uint32(e[12:])
	}
	if uint64(pos)+uint64(klen)+uint64(vlen) > uint64(len(e)) {
		return nil, nil, 0, errPages("element %d of a page", i)
	}
	return e[pos:][:klen], e[pos+klen:][:vlen], child, nil
}

// find returns the value of a key below the page b; nil: there is none.
func (p *pages) find(b, key []byte) ([]byte, error) {
	for range depthMax {
		flags, n := le.Uint16(b[8:]), int(le.Uint16(b[10:]))
		if flags != branchPage && flags != leafPage {
			return nil, errPages("a page that is neither branch nor leaf")
		}
		var bad error
		i := sort.Search(n, func(i int) bool {
			k, _, _, err := element(b, i)
			if err != nil {
				bad = err
			}
			return bytes.Compare(k, key) > 0
		}) - 1
		if bad != nil {
			return nil, bad
		}
		if flags == leafPage && i < 0 || n == 0 {
			return nil, nil
		}
		k, v, child, err := element(b, max(i, 0))
		if err != nil {
			return nil, err
		}
		if flags == leafPage {
			if !bytes.Equal(k, key) {
				return nil, nil
			}
			return v, nil
		}
		if b, err = p.page(child); err != nil {
			return nil, err
		}
	}
	return nil, errPages("deeper than %d pages", depthMax)
}

// get returns the value of a key in a bucket; nil: there is none. Kinds: Corrupt, those of the file.
func (p *pages) get(bucket, key []byte) ([]byte, error) {
	top, err := p.page(p.root)
	if err != nil {
		return nil, err
	}
	v, err := p.find(top, bucket)
	if err != nil {
		return nil, err
	}
	if len(v) < 16 {
		return nil, errPages("no bucket %q", bucket)
	}
	b := v[16:]
	if root := le.Uint64(v); root != 0 {
		if b, err = p.page(root); err != nil {
			return nil, err
		}
	} else if len(b) < pageHeader {
		return nil, errPages("a bucket without a page")
	}
	return p.find(b, key)
}
