package fusefs

import (
	"github.com/hanwen/go-fuse/v2/fuse"

	"coppice.dev/coppice/namespace/catalog"
)

// A directory is listed in the order in which builders lay out content: first what is no directory,
// by name, then directories, by name. So whoever reads a tree in directory order (tar, cp, grep)
// reads packs, and segments of the cache, from front to back.
//
// The offset of an entry says where to go on and needs no state: 1 and 2 follow "." and "..", then
// for n children 2+i+1 follows child i of the first pass and 2+n+i+1 child i of the second.

// ReadDir implements fuse.RawFileSystem.
func (r *rawFS) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return r.list(in, func(d place, e catalog.Entry, entry fuse.DirEntry) (bool, error) {
		return out.AddDirEntry(entry), nil
	})
}

// ReadDirPlus implements fuse.RawFileSystem: every entry comes with its attributes, so that find,
// ls -l and tar need no request for each.
func (r *rawFS) ReadDirPlus(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return r.list(in, func(d place, e catalog.Entry, entry fuse.DirEntry) (bool, error) {
		attr := out.AddDirLookupEntry(entry)
		if attr == nil {
			return false, nil
		}
		if e.Name == nil { // "." and "..": the kernel takes no lookup for them
			return true, nil
		}
		if err := r.enter(d, e, attr); err != nil {
			// The name is listed; whoever looks it up meets the error.
			*attr = fuse.EntryOut{}
			r.fail("readdir", d.node, err)
		}
		return true, nil
	})
}

// list calls add for the entries from the offset asked for on, until one does not fit.
func (r *rawFS) list(in *fuse.ReadIn, add func(place, catalog.Entry, fuse.DirEntry) (bool, error)) fuse.Status {
	ctx, cancel := r.request()
	defer cancel()
	d, st := r.directory(ctx, in.NodeId)
	if st != fuse.OK {
		return st
	}
	defer r.table.release(d.inst)
	lo, hi := d.in.cat.Children(d.entry)
	n := uint64(hi - lo)
	for at := in.Offset; at < 2+2*n; at++ {
		var e catalog.Entry
		entry := fuse.DirEntry{Off: at + 1, Mode: formats[catalog.Dir], Ino: dirInode(d.path)}
		switch {
		case at == 0:
			entry.Name = "."
		case at == 1:
			entry.Name = ".."
		default:
			second := at-2 >= n
			e = d.in.cat.Entry(lo + int((at-2)%n))
			if (e.Type == catalog.Dir) != second {
				continue
			}
			entry.Name, entry.Mode = string(e.Name), formats[e.Type]
			entry.Ino = r.inode(d, e)
		}
		ok, err := add(d, e, entry)
		if err != nil {
			return r.fail("readdir", in.NodeId, err)
		}
		if !ok {
			break
		}
	}
	return fuse.OK
}

// inode returns the inode number of entry e of directory d.
func (r *rawFS) inode(d place, e catalog.Entry) uint64 {
	if e.Type == catalog.Dir {
		return dirInode(d.path.child(e.Name))
	}
	return fileNode(d.in.cat, e.Index, e.Name, d.path, d.in.tree)
}
