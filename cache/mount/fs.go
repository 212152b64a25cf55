package mount

import (
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
)

const (
	maxName = 255

	// forever is how long the kernel may keep what it knows of names and attributes, which never change.
	forever = 365 * 24 * time.Hour
)

// String names the file system for go-fuse.
func (f *FS) String() string { return "spate" }

// node returns the node with inode number ino, which the kernel learned from us.
func (f *FS) node(ino uint64) (*node, fuse.Status) {
	if ino < 1 || ino > uint64(len(f.nodes)) {
		return nil, fuse.ENOENT
	}
	return f.nodes[ino-1], fuse.OK
}

func (n *node) entry(out *fuse.EntryOut) {
	out.NodeId = n.ino
	n.attr(&out.Attr)
	out.SetEntryTimeout(forever)
	out.SetAttrTimeout(forever)
}

// Lookup finds a name; that there is none is remembered like any other answer.
func (f *FS) Lookup(_ <-chan struct{}, in *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	dir, status := f.node(in.NodeId)
	if !status.Ok() {
		return status
	}
	if n := dir.nodes[name]; n != nil {
		n.entry(out)
		return fuse.OK
	}
	out.SetEntryTimeout(forever)
	return fuse.OK
}

// GetAttr describes a node.
func (f *FS) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	n, status := f.node(in.NodeId)
	if !status.Ok() {
		return status
	}
	n.attr(&out.Attr)
	out.SetTimeout(forever)
	return fuse.OK
}

// GetXAttr finds nothing: there are no extended attributes.
func (f *FS) GetXAttr(<-chan struct{}, *fuse.InHeader, string, []byte) (uint32, fuse.Status) {
	return 0, fuse.ENODATA
}

// ListXAttr lists nothing.
func (f *FS) ListXAttr(<-chan struct{}, *fuse.InHeader, []byte) (uint32, fuse.Status) {
	return 0, fuse.OK
}

// OpenDir lets the kernel keep the listing.
func (f *FS) OpenDir(_ <-chan struct{}, _ *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	out.OpenFlags = fuse.FOPEN_KEEP_CACHE | fuse.FOPEN_CACHE_DIR
	return fuse.OK
}

// ReadDir lists a directory.
func (f *FS) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return f.list(in, func(e fuse.DirEntry, _ *node) bool { return out.AddDirEntry(e) })
}

// ReadDirPlus lists a directory with what Lookup says of each name.
func (f *FS) ReadDirPlus(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return f.list(in, func(e fuse.DirEntry, n *node) bool {
		entry := out.AddDirLookupEntry(e)
		if entry == nil {
			return false
		}
		if e.Name != "." && e.Name != ".." { // the kernel looks these up by itself
			n.entry(entry)
		}
		return true
	})
}

// list gives add the entries after in.Offset until it has no room. The offset
// of an entry is its place in the list, counted from 1.
func (f *FS) list(in *fuse.ReadIn, add func(fuse.DirEntry, *node) bool) fuse.Status {
	dir, status := f.node(in.NodeId)
	if !status.Ok() {
		return status
	}
	for i := in.Offset; i < uint64(len(dir.names)+2); i++ {
		var name string
		var n *node
		switch i {
		case 0:
			name, n = ".", dir
		case 1:
			name, n = "..", dir.parent
		default:
			name = dir.names[i-2]
			n = dir.nodes[name]
		}
		if !add(fuse.DirEntry{Name: name, Mode: n.mode, Ino: n.ino, Off: i + 1}, n) {
			break
		}
	}
	return fuse.OK
}

// StatFs reports a full file system of the files' size.
func (f *FS) StatFs(_ <-chan struct{}, _ *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	const block = 4096
	out.Bsize, out.Frsize = block, block
	out.Blocks = uint64(f.size+block-1) / block
	out.Files = uint64(len(f.nodes))
	out.NameLen = maxName
	return fuse.OK
}
