package layer

import (
	"io/fs"
	"math"
	"strings"
	"time"
)

// An inode of a layer. Hard links are names of the same one.
type inode struct {
	mode     fs.FileMode
	uid, gid uint32
	mtime    time.Time
	links    int
	rdev     uint32            // of a device, as mknod(2) takes it
	target   string            // of a symbolic link
	data     data              // of a regular file
	xattrs   map[string]string // named as go-erofs wants them
	children map[string]*inode // of a directory
}

func newDir() *inode {
	return &inode{mode: fs.ModeDir | 0o755, mtime: time.Unix(0, 0), children: map[string]*inode{}}
}

func (i *inode) isSymlink() bool { return i.mode.Type() == fs.ModeSymlink }

// isWhiteout reports whether i hides a name of the layers below.
func (i *inode) isWhiteout() bool { return i.mode.Type() == charDevice && i.rdev == 0 }

func (i *inode) setxattr(name, value string) {
	if i.xattrs == nil {
		i.xattrs = map[string]string{}
	}
	i.xattrs[name] = value
}

// finish counts the links to all that is in the directory i. Where no directory
// of the layers below can show through it has no whiteouts: overlayfs would list them.
func (i *inode) finish(opaque bool) {
	opaque = opaque || i.xattrs[opaqueAttr] != ""
	i.links = 2
	for name, child := range i.children {
		switch {
		case child.mode.IsDir():
			i.links++
			child.finish(opaque)
		case child.isWhiteout() && opaque:
			delete(i.children, name)
		default:
			child.links++
		}
	}
}

// xattrName returns go-erofs's name for an extended attribute, and whether a
// file of the mode can have it: the others an unpack ignores, trusted.* above all.
func xattrName(mode fs.FileMode, name string) (string, bool) {
	switch {
	case name == "system.posix_acl_access":
		// With the dot it falls to go-erofs's prefix of that name, without it to none.
		return name + ".", mode.Type() != fs.ModeSymlink
	case name == "system.posix_acl_default":
		return name + ".", mode.IsDir()
	case strings.HasPrefix(name, "user."):
		return name, len(name) > len("user.") && (mode.IsRegular() || mode.IsDir())
	case strings.HasPrefix(name, "security."):
		return name, len(name) > len("security.")
	}
	return "", false
}

// bound brings a time into what containerd keeps: others become 1970-01-01.
func bound(t time.Time) time.Time {
	if t.Before(time.Unix(0, 0)) || t.After(time.Unix(0, math.MaxInt64)) {
		return time.Unix(0, 0)
	}
	return t
}
