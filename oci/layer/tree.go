package layer

import (
	"archive/tar"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"path"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Bounds of a layer's tree. A tar beyond them is unsupported.
const (
	maxEntries = 1 << 20
	maxText    = 256 << 20 // bytes of paths, link targets and extended attributes
	maxXattrs  = 1<<16 - 1 // bytes of one inode's extended attributes
	maxName    = 255       // bytes of one name (NAME_MAX)
	maxPath    = 4095      // bytes of a path or link target (PATH_MAX without the NUL)
	maxLinks   = 255       // symbolic links in one path, containerd's bound
	permBits   = fs.ModePerm | fs.ModeSetuid | fs.ModeSetgid | fs.ModeSticky
	charDevice = fs.ModeDevice | fs.ModeCharDevice
)

// Names that mean something in a layer (OCI image-spec layer.md, "Whiteouts").
const (
	whiteoutPrefix = ".wh."
	metaPrefix     = whiteoutPrefix + whiteoutPrefix // of AUFS; only the next one means something here
	opaqueMarker   = metaPrefix + ".opq"
)

// Extended attributes of directories that overlayfs keeps to itself.
const (
	opaqueAttr  = "trusted.overlay.opaque"
	impliedAttr = "trusted.overlay.spate.implied" // the layer has no entry for the directory
)

// A tree is what the entries of a tar, applied in order, have made so far.
type tree struct {
	root    *inode
	entries int
	text    int
	sparse  int64
	dirs    []dirTime
}

type dirTime struct {
	name  string
	mtime time.Time
}

func newTree() *tree { return &tree{root: newDir()} }

// apply adds one entry as containerd's archive.Apply does with whiteouts for overlayfs.
func (t *tree) apply(hdr *tar.Header, d data) error {
	if hdr.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	name := path.Clean(hdr.Name)
	dir, base := path.Split(name)
	if base == "" || base == "." || base == ".." {
		return nil // the root, whose attributes are not the layer's
	}
	if err := t.addEntry(); err != nil {
		return err
	}
	names, err := t.resolve(dir)
	if err != nil {
		return err
	}
	parent, err := t.mkdirs(names)
	if err != nil {
		return err
	}
	switch hidden, ok := strings.CutPrefix(base, whiteoutPrefix); {
	case base == opaqueMarker && parent == t.root:
		return fmt.Errorf("%w: it hides all layers below", errors.ErrUnsupported)
	case base == opaqueMarker:
		parent.setxattr(opaqueAttr, "y")
		return nil
	case strings.HasPrefix(base, metaPrefix):
		return nil
	case ok && (hidden == "" || hidden == "." || hidden == ".."):
		return errors.New("a whiteout of no name")
	case ok:
		return t.whiteout(parent, names, hidden)
	}
	if err := t.put(parent, names, base, hdr, d); err != nil {
		return err
	}
	if hdr.Typeflag == tar.TypeDir {
		t.dirs = append(t.dirs, dirTime{name, bound(hdr.ModTime)})
		return t.addText(len(name))
	}
	return nil
}

// whiteout hides a name of the layers below. It does not hide one of this layer.
func (t *tree) whiteout(parent *inode, names []string, name string) error {
	switch old := parent.children[name]; {
	case old == nil:
		return t.link(parent, names, name, &inode{mode: charDevice, mtime: time.Unix(0, 0)})
	case old.mode.IsDir():
		old.setxattr(opaqueAttr, "y")
	}
	return nil
}

// put makes the inode of hdr, or changes the one that is there, if both are directories.
func (t *tree) put(parent *inode, names []string, base string, hdr *tar.Header, d data) error {
	i := parent.children[base]
	if i == nil || !i.mode.IsDir() || hdr.Typeflag != tar.TypeDir {
		replaced := i != nil
		delete(parent.children, base) // before a hard link looks for its target
		var err error
		if i, err = t.make(hdr, d); err != nil {
			return err
		}
		if replaced && i.mode.IsDir() {
			i.setxattr(opaqueAttr, "y") // what was replaced hid the layers below
		}
		if err := t.link(parent, names, base, i); err != nil {
			return err
		}
	}
	return t.setMeta(i, hdr)
}

// make returns the inode for hdr without what setMeta sets. That of a hard link is its target.
func (t *tree) make(hdr *tar.Header, d data) (*inode, error) {
	switch hdr.Typeflag {
	case tar.TypeReg, tar.TypeGNUSparse:
		return &inode{data: d}, nil
	case tar.TypeDir:
		return newDir(), nil
	case tar.TypeSymlink:
		if hdr.Linkname == "" {
			return nil, errors.New("a symbolic link to nothing")
		}
		if len(hdr.Linkname) > maxPath {
			return nil, syscall.ENAMETOOLONG
		}
		return &inode{mode: fs.ModeSymlink | 0o777, target: hdr.Linkname}, t.addText(len(hdr.Linkname))
	case tar.TypeFifo:
		return &inode{mode: fs.ModeNamedPipe}, nil
	case tar.TypeChar, tar.TypeBlock:
		if hdr.Devmajor < 0 || hdr.Devmajor > math.MaxUint32 || hdr.Devminor < 0 || hdr.Devminor > math.MaxUint32 {
			return nil, fmt.Errorf("device number %d:%d is out of range", hdr.Devmajor, hdr.Devminor)
		}
		i := &inode{mode: fs.ModeDevice, rdev: uint32(unix.Mkdev(uint32(hdr.Devmajor), uint32(hdr.Devminor)))}
		if hdr.Typeflag == tar.TypeChar {
			i.mode = charDevice
		}
		if i.isWhiteout() {
			return nil, fmt.Errorf("%w: the device 0:0, which overlayfs takes for a whiteout", errors.ErrUnsupported)
		}
		return i, nil
	case tar.TypeLink:
		return t.linked(hdr.Linkname)
	default:
		return nil, fmt.Errorf("entry of unknown type %q", hdr.Typeflag)
	}
}

// linked returns the inode that a hard link to name is one more name of.
func (t *tree) linked(name string) (*inode, error) {
	dir, base := path.Split(name)
	names, err := t.resolve(dir)
	if err != nil {
		return nil, err
	}
	if base == "" || base == "." || base == ".." {
		return nil, fmt.Errorf("a hard link to the directory %q", name)
	}
	i := t.lookup(append(names, base))
	switch {
	case i == nil || i.isWhiteout():
		return nil, fmt.Errorf("%w: a hard link to %q, which is not in this layer", errors.ErrUnsupported, name)
	case i.mode.IsDir():
		return nil, fmt.Errorf("a hard link to the directory %q", name)
	}
	return i, nil
}

// setMeta sets what createTarFile of containerd sets on a file that it has just made.
func (t *tree) setMeta(i *inode, hdr *tar.Header) error {
	// As chown(2) does: 32 bits, of which all ones mean no change, and a capability does not outlive it.
	if uid := uint32(hdr.Uid); uid != math.MaxUint32 {
		i.uid = uid
	}
	if gid := uint32(hdr.Gid); gid != math.MaxUint32 {
		i.gid = gid
	}
	if !i.mode.IsDir() {
		delete(i.xattrs, "security.capability")
	}
	delete(i.xattrs, impliedAttr)
	for key, value := range hdr.PAXRecords {
		name, ok := strings.CutPrefix(key, "SCHILY.xattr.")
		if !ok {
			continue
		}
		if name, ok = xattrName(i.mode, name); !ok {
			continue
		}
		if len(name) > maxName {
			return fmt.Errorf("extended attribute %q: %w", name, syscall.ERANGE)
		}
		i.setxattr(name, value)
		if err := t.addText(len(name) + len(value)); err != nil {
			return err
		}
	}
	total := 0
	for name, value := range i.xattrs {
		total += len(name) + len(value)
	}
	if total > maxXattrs {
		return fmt.Errorf("%w: more than %d bytes of extended attributes", errors.ErrUnsupported, maxXattrs)
	}
	if !i.isSymlink() {
		i.mode = i.mode.Type() | hdr.FileInfo().Mode()&permBits
	}
	i.mtime = bound(hdr.ModTime)
	return nil
}

// resolve returns the path that name leads to within the root, symbolic links
// followed, as far as it exists (RootPath of containerd's continuity/fs).
func (t *tree) resolve(name string) ([]string, error) {
	var names []string
	inodes := []*inode{t.root} // of names, with the root before them; nil where there is none
	todo := strings.Split(name, "/")
	for links := 0; len(todo) > 0; {
		next := todo[0]
		todo = todo[1:]
		switch next {
		case "", ".":
			continue
		case "..":
			names = names[:max(0, len(names)-1)]
			inodes = inodes[:len(names)+1]
			continue
		}
		var i *inode
		if dir := inodes[len(inodes)-1]; dir != nil {
			i = dir.children[next]
		}
		if i == nil || !i.isSymlink() {
			names, inodes = append(names, next), append(inodes, i)
			continue
		}
		if links++; links > maxLinks {
			return nil, syscall.ELOOP
		}
		if path.IsAbs(i.target) {
			names, inodes = names[:0], inodes[:1]
		}
		todo = slices.Concat(strings.Split(i.target, "/"), todo)
	}
	return names, nil
}

// lookup returns the inode of a resolved path, or nil.
func (t *tree) lookup(names []string) *inode {
	i := t.root
	for _, name := range names {
		if i = i.children[name]; i == nil {
			return nil
		}
	}
	return i
}

// mkdirs returns the directory of a resolved path, made where there is none.
func (t *tree) mkdirs(names []string) (*inode, error) {
	i := t.root
	for n, name := range names {
		next := i.children[name]
		if next == nil || next.isWhiteout() {
			if err := t.addEntry(); err != nil {
				return nil, err
			}
			dir := newDir()
			dir.setxattr(impliedAttr, "y")
			if next != nil {
				dir.setxattr(opaqueAttr, "y")
			}
			if err := t.link(i, names[:n], name, dir); err != nil {
				return nil, err
			}
			next = dir
		}
		if !next.mode.IsDir() {
			return nil, &fs.PathError{Op: "mkdir", Path: path.Join(names[:n+1]...), Err: syscall.ENOTDIR}
		}
		i = next
	}
	return i, nil
}

// link gives i a name in the directory parent, which is at the path names.
func (t *tree) link(parent *inode, names []string, name string, i *inode) error {
	size := len(name)
	for _, dir := range names {
		size += len(dir) + 1
	}
	if len(name) > maxName || size > maxPath {
		return syscall.ENAMETOOLONG
	}
	parent.children[name] = i
	return t.addText(size)
}

func (t *tree) addEntry() error {
	if t.entries++; t.entries > maxEntries {
		return fmt.Errorf("%w: more than %d entries", errors.ErrUnsupported, maxEntries)
	}
	return nil
}

func (t *tree) addText(n int) error {
	if t.text += n; t.text > maxText {
		return fmt.Errorf("%w: more than %d bytes of paths, link targets and extended attributes", errors.ErrUnsupported, maxText)
	}
	return nil
}

// finish does what can be done at the end only. One thing is the times of
// directories, which containerd sets last, by name, whatever has the name then.
func (t *tree) finish() error {
	for _, dir := range t.dirs {
		names, err := t.resolve(dir.name)
		if err != nil {
			return fmt.Errorf("entry %q: %w", dir.name, err)
		}
		if i := t.lookup(names); i != nil {
			i.mtime = dir.mtime
		}
	}
	t.root.finish(false)
	return nil
}
