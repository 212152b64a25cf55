package layer

import (
	"archive/tar"
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/erofs/go-erofs"
)

// blockSize is the block size in bytes of the metadata: that of a tar, so that
// the data of every entry begin at a block.
const blockSize = 512

// chunkSize is the unit in bytes in which go-erofs maps a file that has holes.
const chunkSize = 4096

// maxSparse bounds the sizes in bytes of a layer's sparse files, all together:
// their holes cost nothing in the tar, but metadata and time here.
const maxSparse = 16 << 30

// Metadata reads the object r, the tar of one layer, to its end and writes to w
// the EROFS image that shows it: inodes, names and extended attributes, and for
// the data of its files where they lie in the tar, as device 1. Mounting it
// takes both: mount(2) of type erofs with the image as source and the option
// device=TAR. The same tar gives the same image, whoever makes it and when.
//
// What the image holds is what containerd's archive.Apply unpacks, as one layer
// of an overlay: a whiteout (OCI image-spec layer.md) is a character device 0:0,
// an opaque directory has the attribute trusted.overlay.opaque=y. Directories
// that have no entry are made 0755, of root, of 1970-01-01, and marked for
// Stackable.
//
// The error matches errors.ErrUnsupported when the tar is fine but cannot be
// shown so: a hard link to a file of another layer, an opaque root, a device 0:0,
// a sparse file whose holes are not of whole 4096-byte blocks, a tar that is not
// of whole blocks, or more than the bounds allow, of which a million entries is
// the main one. Memory is about 1 KB for each entry. What w holds after an error
// is of no use.
func Metadata(w io.WriteSeeker, r io.Reader) error {
	object := &countReader{r: bufio.NewReaderSize(r, 256<<10)}
	t := newTree()
	for entries := tar.NewReader(object); ; {
		hdr, err := entries.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return fmt.Errorf("read the tar of a layer up to byte %d: %w", object.n, err)
		}
		f, err := dataOf(hdr, entries, object, &t.sparse)
		if err == nil {
			err = t.apply(hdr, f)
		}
		if err != nil {
			return fmt.Errorf("make the metadata of a layer: entry %q: %w", hdr.Name, err)
		}
	}
	// What follows the end of the archive is part of the object too.
	if _, err := io.Copy(io.Discard, object); err != nil {
		return fmt.Errorf("read the tar of a layer up to byte %d: %w", object.n, err)
	}
	if object.n%blockSize != 0 {
		return fmt.Errorf("make the metadata of a layer: %w: a tar of %d bytes ends within a block, which EROFS cannot read",
			errors.ErrUnsupported, object.n)
	}
	if err := t.finish(); err != nil {
		return fmt.Errorf("make the metadata of a layer: %w", err)
	}
	image := erofs.Create(w, erofs.WithBlockSize(blockSize), erofs.WithBuildTime(0, 0))
	if err := image.CopyFrom(&treeFS{t.root, object.n}, erofs.MetadataOnly()); err != nil {
		return fmt.Errorf("make the metadata of a layer: %w", err)
	}
	if err := image.Close(); err != nil {
		return fmt.Errorf("write the metadata of a layer: %w", err)
	}
	return nil
}

// data is where the bytes of a regular file are in the tar.
type data struct {
	size   int64
	ranges []erofs.DataRange
}

// dataOf returns where the data of the entry that entries has just come to are in object.
func dataOf(hdr *tar.Header, entries *tar.Reader, object *countReader, sparse *int64) (data, error) {
	if !isRegular(hdr) || hdr.Size == 0 {
		return data{}, nil
	}
	if !isSparse(hdr) {
		// The header, with all that belongs to it, has been read in whole blocks and nothing more.
		return data{hdr.Size, []erofs.DataRange{{Offset: object.n, Size: hdr.Size}}}, nil
	}
	if hdr.Size > maxSparse-*sparse {
		return data{}, fmt.Errorf("%w: more than %d bytes of sparse files", errors.ErrUnsupported, int64(maxSparse))
	}
	*sparse += hdr.Size

	// archive/tar does not tell where the holes are, but reading one does not read the tar.
	d := data{size: hdr.Size}
	var chunk [chunkSize]byte
	for at := int64(0); at < d.size; {
		n := min(d.size-at, chunkSize)
		before := object.n
		if _, err := io.ReadFull(entries, chunk[:n]); err != nil {
			return data{}, err
		}
		next := erofs.DataRange{Offset: before, Size: n}
		switch object.n - before {
		case n:
		case 0:
			next.Offset = -1
		default:
			return data{}, fmt.Errorf("%w: a hole begins or ends within bytes %d-%d", errors.ErrUnsupported, at, at+n)
		}
		if last := len(d.ranges) - 1; last >= 0 && follows(d.ranges[last], next) {
			d.ranges[last].Size += n
		} else {
			d.ranges = append(d.ranges, next)
		}
		at += n
	}
	return d, nil
}

func follows(a, b erofs.DataRange) bool {
	if a.Offset < 0 || b.Offset < 0 {
		return a.Offset == b.Offset
	}
	return a.Offset+a.Size == b.Offset
}

func isRegular(hdr *tar.Header) bool {
	return hdr.Typeflag == tar.TypeReg || hdr.Typeflag == tar.TypeGNUSparse
}

// isSparse reports whether archive/tar may read the entry as a sparse file, in
// the old GNU format or one of the three that GNU tar writes with PAX.
func isSparse(hdr *tar.Header) bool {
	if hdr.Typeflag == tar.TypeGNUSparse {
		return true
	}
	for key := range hdr.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") {
			return true
		}
	}
	return false
}

// A countReader knows how many bytes were read through it.
type countReader struct {
	r io.Reader
	n int64
}

func (c *countReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

// A treeFS shows a tree to erofs.Writer.CopyFrom, with the optional methods that it looks for.
type treeFS struct {
	root *inode
	size int64 // of the tar, in bytes
}

func (f *treeFS) BlockSize() uint32    { return blockSize }
func (f *treeFS) DeviceBlocks() uint64 { return uint64(f.size+blockSize-1) / blockSize }

// Open is there for fs.FS alone: no file's data are copied.
func (f *treeFS) Open(name string) (fs.File, error) {
	return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrInvalid}
}

func (f *treeFS) Stat(name string) (fs.FileInfo, error) {
	i, err := f.lookup("stat", name)
	return info{name, i}, err
}

func (f *treeFS) ReadLink(name string) (string, error) {
	i, err := f.lookup("readlink", name)
	if err != nil {
		return "", err
	}
	return i.target, nil
}

func (f *treeFS) ReadDir(name string) ([]fs.DirEntry, error) {
	dir, err := f.lookup("readdir", name)
	if err != nil {
		return nil, err
	}
	list := make([]fs.DirEntry, 0, len(dir.children))
	for name, i := range dir.children {
		list = append(list, fs.FileInfoToDirEntry(info{name, i}))
	}
	slices.SortFunc(list, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	return list, nil
}

func (f *treeFS) lookup(op, name string) (*inode, error) {
	i := f.root
	for part := range strings.SplitSeq(name, "/") {
		if part == "." {
			continue
		}
		if i = i.children[part]; i == nil {
			return nil, &fs.PathError{Op: op, Path: name, Err: fs.ErrNotExist}
		}
	}
	return i, nil
}

// info is a name and its inode as fs.FileInfo, with the optional DataRange.
type info struct {
	name string
	i    *inode
}

func (f info) Name() string                 { return f.name }
func (f info) Size() int64                  { return f.i.data.size }
func (f info) Mode() fs.FileMode            { return f.i.mode }
func (f info) ModTime() time.Time           { return f.i.mtime }
func (f info) IsDir() bool                  { return f.i.mode.IsDir() }
func (f info) DataRange() []erofs.DataRange { return f.i.data.ranges }

func (f info) Sys() any {
	return &erofs.Stat{
		UID: f.i.uid, GID: f.i.gid, Nlink: f.i.links, Rdev: f.i.rdev, Xattrs: f.i.xattrs,
		Mtime: uint64(f.i.mtime.Unix()), MtimeNs: uint32(f.i.mtime.Nanosecond()),
	}
}
