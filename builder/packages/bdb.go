package packages

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Pages of a Berkeley DB hash database, and where in them is what. See dbinc/db_page.h of Berkeley DB
// 5.3. The library at hand for it takes hostile pages for an index and so ends the process; rpm's use
// of the format is small enough to be read here, with every offset checked.
const (
	bdbMagic          = 0x00061561
	bdbHeader         = 26 // bytes of a page's head
	bdbNext           = 16 // uint32: the page that continues this one
	bdbEntries        = 20 // uint16: offsets that follow the head
	bdbUsed           = 22 // uint16: on the last page of a value, its bytes there
	bdbType           = 25 // the page's type
	bdbHashUnsorted   = 2
	bdbOverflow       = 7
	bdbHashMeta       = 8
	bdbHash           = 13
	bdbOffPage        = 3  // the type of an item that is on pages of its own
	bdbOffPageBytes   = 12 // type, padding, uint32 page, uint32 length
	bdbValueBytesMax  = 256 << 20
	bdbPageBytesLeast = 512
	bdbPageBytesMost  = 64 << 10
)

// bdb is a Berkeley DB hash database in memory.
type bdb struct {
	b     []byte
	page  uint64
	order binary.ByteOrder
}

// eachBDB calls fn with every value of an rpm database in the format of Berkeley DB, as RHEL 8 and
// older have it. Headers of packages are always too large for a page of keys, so only values that
// have pages of their own are looked at.
func eachBDB(b []byte, fn func(blob []byte)) error {
	if len(b) < bdbPageBytesLeast || b[bdbType] != bdbHashMeta {
		return errors.New("no Berkeley DB hash database")
	}
	db := bdb{b: b, order: binary.LittleEndian}
	if db.order.Uint32(b[12:]) != bdbMagic {
		db.order = binary.BigEndian
	}
	if db.order.Uint32(b[12:]) != bdbMagic || b[24] != 0 {
		return errors.New("no Berkeley DB hash database that can be read")
	}
	db.page = uint64(db.order.Uint32(b[20:]))
	if db.page < bdbPageBytesLeast || db.page > bdbPageBytesMost || db.page&(db.page-1) != 0 {
		return fmt.Errorf("a page size of %d", db.page)
	}
	budget := 2 * len(b) // what is taken out of a database that repeats no page is not more than it has
	for at := uint64(0); at+db.page <= uint64(len(b)); at += db.page {
		p := b[at:][:db.page]
		if p[bdbType] != bdbHash && p[bdbType] != bdbHashUnsorted {
			continue
		}
		n := uint64(db.order.Uint16(p[bdbEntries:]))
		if bdbHeader+2*n > db.page {
			return fmt.Errorf("page %d has %d entries", at/db.page, n)
		}
		for i := uint64(1); i < n; i += 2 { // key, value, key, value
			off := uint64(db.order.Uint16(p[bdbHeader+2*i:]))
			if off+bdbOffPageBytes > db.page || p[off] != bdbOffPage {
				continue
			}
			v, err := db.value(db.order.Uint32(p[off+4:]), db.order.Uint32(p[off+8:]))
			if err != nil {
				return err
			}
			if budget -= len(v); budget < 0 {
				return errors.New("a database whose values share pages")
			}
			fn(v)
		}
	}
	return nil
}

// value collects a value of n bytes from its pages.
func (db *bdb) value(page, n uint32) ([]byte, error) {
	if n > bdbValueBytesMax || uint64(n) > uint64(len(db.b)) {
		return nil, fmt.Errorf("a value of %d bytes", n)
	}
	v := make([]byte, 0, n)
	for uint32(len(v)) < n {
		at := uint64(page) * db.page
		if page == 0 || at+db.page > uint64(len(db.b)) || db.b[at+bdbType] != bdbOverflow {
			return nil, fmt.Errorf("page %d is not part of a value", page)
		}
		p := db.b[at:][:db.page]
		page = db.order.Uint32(p[bdbNext:])
		part := p[bdbHeader:]
		if page == 0 {
			part = part[:min(uint64(len(part)), uint64(db.order.Uint16(p[bdbUsed:])))]
		}
		part = part[:min(len(part), int(n)-len(v))]
		if len(part) == 0 {
			return nil, errors.New("a value ends early")
		}
		v = append(v, part...)
	}
	return v, nil
}
