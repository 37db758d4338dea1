package catalog

import (
	"bytes"
	"fmt"

	"coppice.dev/coppice/namespace"
)

// encodeXattrs returns the bytes of a set: for each attribute, sorted by name, the length of the
// name (u8), of the value (u32), the name, the value.
func encodeXattrs(set []Xattr) ([]byte, error) {
	var b []byte
	for i, x := range set {
		switch {
		case x.Name == "" || len(x.Name) > namespace.XattrNameBytesMax || bytes.IndexByte([]byte(x.Name), 0) >= 0:
			return nil, fmt.Errorf("xattr name %q", x.Name)
		case len(x.Value) > namespace.XattrValueBytesMax:
			return nil, fmt.Errorf("xattr %s of %d bytes", x.Name, len(x.Value))
		case i > 0 && x.Name == set[i-1].Name:
			return nil, fmt.Errorf("xattr %s twice", x.Name)
		}
		b = append(b, byte(len(x.Name)))
		b = le.AppendUint32(b, uint32(len(x.Value)))
		b = append(b, x.Name...)
		b = append(b, x.Value...)
	}
	if len(b) > namespace.XattrSetBytesMax {
		return nil, fmt.Errorf("xattrs of %d bytes, at most %d", len(b), namespace.XattrSetBytesMax)
	}
	return b, nil
}

// nextXattr cuts the first attribute off an encoded set. ok is false if it is malformed.
func nextXattr(b []byte) (name, value, rest []byte, ok bool) {
	if len(b) < 5 {
		return nil, nil, nil, false
	}
	n, v := int(b[0]), uint64(le.Uint32(b[1:]))
	if b = b[5:]; n == 0 || v > namespace.XattrValueBytesMax || uint64(len(b)) < uint64(n)+v {
		return nil, nil, nil, false
	}
	return b[:n:n], b[n : n+int(v) : n+int(v)], b[n+int(v):], true
}

// checkXattrs holds the rules of an encoded set.
func checkXattrs(b []byte) error {
	if len(b) == 0 || len(b) > namespace.XattrSetBytesMax {
		return fmt.Errorf("xattr set of %d bytes", len(b))
	}
	var prev []byte
	for len(b) > 0 {
		name, _, rest, ok := nextXattr(b)
		if !ok || bytes.IndexByte(name, 0) >= 0 || bytes.Compare(prev, name) >= 0 {
			return fmt.Errorf("xattr set malformed or out of order")
		}
		prev, b = name, rest
	}
	return nil
}
