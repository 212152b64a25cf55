package artifact

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"sync/atomic"

	"oras.land/oras-go/v2/content/oci"
)

const (
	maxEntries = 1 << 17   // of a tar: they are in memory
	maxListing = 256 << 20 // bytes of manifests that are read when a layout is opened
)

// A Layout is an OCI image layout that somebody else may have made. It is a
// Source; its Tags are the names in it. What is read of it is bounded, but is
// not checked against digests before it is pushed.
type Layout struct {
	*oci.ReadOnlyStore
	files io.Closer
}

// OpenLayout opens the layout in a directory or in a tar, which has to be
// uncompressed. In a tar there may be regular files and directories only, below
// its own root; links in a directory may not lead out of it. The caller closes it.
func OpenLayout(ctx context.Context, name string) (*Layout, error) {
	l, err := openLayout(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("open the image layout %s: %w", name, err)
	}
	return l, nil
}

func openLayout(ctx context.Context, name string) (_ *Layout, err error) {
	fi, err := os.Stat(name)
	if err != nil {
		return nil, errors.Unwrap(err)
	}
	var (
		files io.Closer
		fsys  fs.FS
	)
	if fi.IsDir() {
		root, err := os.OpenRoot(name)
		if err != nil {
			return nil, err
		}
		files, fsys = root, root.FS()
	} else {
		f, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		files = f
		if fsys, err = readTar(f, fi.Size()); err != nil {
			f.Close()
			return nil, err
		}
	}
	guard := &guardedFS{FS: fsys}
	guard.left.Store(maxListing)
	store, err := oci.NewFromFS(ctx, guard)
	if err != nil {
		files.Close()
		return nil, err
	}
	guard.open.Store(true)
	return &Layout{store, files}, nil
}

// Close lets go of the files.
func (l *Layout) Close() error { return l.files.Close() }

// Names returns the artifacts that the layout names, those left out that belong to others.
func (l *Layout) Names(ctx context.Context) (names []string, err error) {
	err = l.Tags(ctx, "", func(tags []string) error {
		for _, t := range tags {
			if !Belongs(t) {
				names = append(names, t)
			}
		}
		return nil
	})
	return names, err
}

// A guardedFS bounds what is read while a layout is opened, which is all of its manifests.
type guardedFS struct {
	fs.FS
	open atomic.Bool
	left atomic.Int64
}

func (g *guardedFS) Open(name string) (fs.File, error) {
	f, err := g.FS.Open(name)
	if err != nil || g.open.Load() {
		return f, err
	}
	fi, err := f.Stat()
	switch {
	case err != nil:
	case !fi.Mode().IsRegular():
		err = fmt.Errorf("%s is not a regular file", name)
	case fi.Size() > maxManifest:
		err = fmt.Errorf("%s has %d bytes; for a manifest %d are the limit", name, fi.Size(), maxManifest)
	case g.left.Add(-fi.Size()) < 0:
		err = fmt.Errorf("it has more than %d bytes of manifests", maxListing)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// A tarFS is the regular files of a tar. Unlike oras's it reads files of 8 GiB
// and more in every format of tar, and refuses what has no place in a layout.
type tarFS map[string]tarEntry

type tarEntry struct {
	data io.ReaderAt
	off  int64
	info fs.FileInfo
}

type tarSource interface {
	io.ReadSeeker
	io.ReaderAt
}

// readTar lists a tar of size bytes without reading what is in its files.
func readTar(f tarSource, size int64) (tarFS, error) {
	entries, r := tarFS{}, tar.NewReader(f)
	for n := 0; ; n++ {
		h, err := r.Next()
		if err == io.EOF && n > 0 {
			return entries, nil
		}
		if err == io.EOF || errors.Is(err, tar.ErrHeader) {
			return nil, errors.New("it is not a tar, or a compressed one: unpack it first")
		}
		if err != nil {
			return nil, fmt.Errorf("the tar ends early or is damaged: %w", err)
		}
		off, err := f.Seek(0, io.SeekCurrent)
		if err != nil {
			return nil, err
		}
		name := path.Clean(h.Name)
		switch {
		case n == maxEntries:
			return nil, fmt.Errorf("the tar has more than %d entries", maxEntries)
		case !fs.ValidPath(name):
			return nil, fmt.Errorf("the tar has an entry %q, which leads out of it", h.Name)
		case h.Typeflag == tar.TypeDir:
			continue
		case h.Typeflag != tar.TypeReg:
			return nil, fmt.Errorf("the tar has an entry %q that is neither a file nor a directory", h.Name)
		case h.Size > size-off:
			return nil, fmt.Errorf("the tar ends early: %q has %d bytes", h.Name, h.Size)
		}
		entries[name] = tarEntry{f, off, h.FileInfo()}
	}
}

func (t tarFS) Open(name string) (fs.File, error) {
	e, ok := t[name]
	if !ok {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	return &tarFile{io.NewSectionReader(e.data, e.off, e.info.Size()), e.info}, nil
}

type tarFile struct {
	*io.SectionReader
	info fs.FileInfo
}

func (f *tarFile) Stat() (fs.FileInfo, error) { return f.info, nil }
func (f *tarFile) Close() error               { return nil }
