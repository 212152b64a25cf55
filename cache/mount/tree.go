package mount

import (
	"crypto/sha256"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/spate-project/spate/cache/piece"
)

// A node is a file or a directory.
type node struct {
	ino    uint64
	path   string // "" is the root
	mode   uint32
	mtime  time.Time
	file   File // nil: a directory
	parent *node
	names  []string // of children, sorted
	nodes  map[string]*node
	digest piece.Digest // of the file
}

// build numbers the nodes in the order of their paths. The root's comes first.
func (f *FS) build(entries []Entry) error {
	byPath := map[string]*node{"": {mode: fuse.S_IFDIR | 0o555}}
	for _, e := range entries {
		if !fs.ValidPath(e.Path) || e.Path == "." || strings.ContainsRune(e.Path, 0) {
			return fmt.Errorf("mount: %q is not a relative path", e.Path)
		}
		if e.File == nil {
			return fmt.Errorf("mount: %q has no file", e.Path)
		}
		if byPath[e.Path] != nil {
			return fmt.Errorf("mount: %q is there twice", e.Path)
		}
		mode := uint32(e.Mode.Perm()) &^ 0o222
		if mode == 0 {
			mode = 0o444
		}
		byPath[e.Path] = &node{path: e.Path, mode: fuse.S_IFREG | mode, mtime: e.ModTime, file: e.File, digest: e.Digest}
		f.size += e.File.Size()
		for dir := parent(e.Path); byPath[dir] == nil; dir = parent(dir) {
			byPath[dir] = &node{path: dir, mode: fuse.S_IFDIR | 0o555}
		}
	}
	for i, p := range slices.Sorted(maps.Keys(byPath)) {
		n := byPath[p]
		n.ino = uint64(i + 1)
		f.nodes = append(f.nodes, n)
		n.parent = byPath[parent(p)]
		if p == "" {
			continue
		}
		if n.parent.file != nil {
			return fmt.Errorf("mount: %q is both a file and a directory", n.parent.path)
		}
		name := path.Base(p)
		if len(name) > maxName {
			return fmt.Errorf("mount: the name %q is longer than %d bytes", name, maxName)
		}
		n.parent.add(name, n)
	}
	return nil
}

// sum returns a sum of all that the kernel was or may be told of f: of two file
// systems with the same one, each can go on with what the other began.
func (f *FS) sum() []byte {
	h := sha256.New()
	for _, n := range f.nodes {
		var size int64
		if n.file != nil {
			size = n.file.Size()
		}
		fmt.Fprintf(h, "%q %o %d %x %d\n", n.path, n.mode, size, n.digest, modified(n.mtime))
	}
	return h.Sum(nil)
}

// modified returns t as the kernel is told it.
func modified(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

// parent returns the path of the directory that p lies in.
func parent(p string) string { return p[:max(0, strings.LastIndexByte(p, '/'))] }

func (n *node) add(name string, child *node) {
	if n.nodes == nil {
		n.nodes = make(map[string]*node)
	}
	n.nodes[name] = child
	n.names = append(n.names, name)
}

func (n *node) attr(out *fuse.Attr) {
	out.Ino = n.ino
	out.Mode = n.mode
	out.Nlink = 1
	if n.file != nil {
		out.Size = uint64(n.file.Size())
		out.Blocks = (out.Size + 511) / 512
	}
	if !n.mtime.IsZero() {
		out.SetTimes(nil, &n.mtime, &n.mtime)
	}
}
