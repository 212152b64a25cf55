package model

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spate-project/spate/oci/model/format"
)

// A source is a file to be packed.
type source struct {
	name  string // its path in the model
	path  string // where it is read, links followed
	kind  string // one of the oci.Layer constants
	mode  fs.FileMode
	stamp stamp
	frame frame
}

// A stamp changes whenever a file does.
type stamp struct {
	size    int64
	modTime int64 // nanoseconds
	inode   inode
}

func stampOf(info fs.FileInfo) stamp {
	return stamp{size: info.Size(), modTime: info.ModTime().UnixNano(), inode: inodeOf(info)}
}

// A scanner collects the files of a directory.
type scanner struct {
	root    string   // without links
	allowed []string // directories, without links, that a link may point into
	sources []source
	skipped []string
	paths   tree
}

// scan returns the files in dir in the order in which they are packed, and what
// is not packed: whatever has a name that starts with a dot, and __pycache__.
func scan(dir string) (sources []source, skipped []string, err error) {
	info, err := os.Stat(dir)
	switch {
	case err != nil:
		return nil, nil, err
	case !info.IsDir():
		return nil, nil, fmt.Errorf("it is a file; give the directory that holds the model")
	}
	root, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return nil, nil, err
	}
	s := &scanner{root: root, allowed: []string{root}}
	if blobs := cacheBlobs(root); blobs != "" {
		s.allowed = append(s.allowed, blobs)
	}
	if err := filepath.WalkDir(root, s.visit); err != nil {
		return nil, nil, err
	}
	switch {
	case len(s.sources) == 0 && len(s.skipped) > 0:
		return nil, nil, fmt.Errorf("it has no files but hidden ones, which are not packed")
	case len(s.sources) == 0:
		return nil, nil, fmt.Errorf("it has no files")
	case len(s.sources) > MaxFiles:
		return nil, nil, fmt.Errorf("it has %d files, more than the %d that a model may have", len(s.sources), MaxFiles)
	}
	slices.SortFunc(s.sources, func(a, b source) int { return format.Compare(a.kind, a.name, b.kind, b.name) })
	return s.sources, s.skipped, nil
}

// cacheBlobs returns the directory that the links of a Hugging Face cache
// snapshot, models--ORG--NAME/snapshots/REVISION, point into: its sibling
// blobs. It returns "" for any other directory.
func cacheBlobs(root string) string {
	snapshots := filepath.Dir(root)
	repo := filepath.Dir(snapshots)
	if filepath.Base(snapshots) != "snapshots" || !strings.HasPrefix(filepath.Base(repo), "models--") {
		return ""
	}
	blobs, err := filepath.EvalSymlinks(filepath.Join(repo, "blobs"))
	if err != nil {
		return ""
	}
	return blobs
}

func (s *scanner) visit(path string, entry fs.DirEntry, err error) error {
	if err != nil {
		return err
	}
	if path == s.root {
		return nil
	}
	name, err := filepath.Rel(s.root, path)
	if err != nil {
		return err
	}
	name = filepath.ToSlash(name)
	if base := entry.Name(); strings.HasPrefix(base, ".") || base == "__pycache__" {
		s.skipped = append(s.skipped, name)
		if entry.IsDir() {
			return fs.SkipDir
		}
		return nil
	}
	if entry.IsDir() {
		return nil
	}
	if err := checkPath(name); err != nil {
		return err
	}
	target, err := s.follow(path, name, entry)
	if err != nil {
		return err
	}
	info, err := os.Lstat(target)
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s is neither a file nor a directory but %s; remove it", name, typeName(info.Mode()))
	}
	if err := s.paths.add(name); err != nil {
		return err
	}
	s.sources = append(s.sources, source{
		name: name, path: target,
		kind: format.KindOf(name, info.Size()), mode: plainMode(info.Mode()), stamp: stampOf(info),
	})
	return nil
}

// follow returns the file behind a link, which must stay within what is allowed, or path itself.
func (s *scanner) follow(path, name string, entry fs.DirEntry) (string, error) {
	if entry.Type()&fs.ModeSymlink == 0 {
		return path, nil
	}
	target, err := filepath.EvalSymlinks(path)
	if errors.Is(err, fs.ErrNotExist) {
		to, _ := os.Readlink(path)
		return "", fmt.Errorf("%s is a link to %s, which does not exist", name, to)
	}
	if err != nil {
		return "", fmt.Errorf("%s is a link that cannot be followed: %w", name, err)
	}
	if !slices.ContainsFunc(s.allowed, func(dir string) bool { return within(dir, target) }) {
		return "", fmt.Errorf("%s is a link out of the directory, to %s; put the file itself there", name, target)
	}
	return target, nil
}

// within reports whether path is below dir. Both are clean and without links.
func within(dir, path string) bool {
	rel, err := filepath.Rel(dir, path)
	return err == nil && filepath.IsLocal(rel)
}

func typeName(mode fs.FileMode) string {
	switch {
	case mode.IsDir():
		return "a link to a directory"
	case mode&fs.ModeNamedPipe != 0:
		return "a named pipe"
	case mode&fs.ModeSocket != 0:
		return "a socket"
	case mode&fs.ModeDevice != 0:
		return "a device"
	}
	return "something special"
}
