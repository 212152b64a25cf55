package layer

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/erofs/go-erofs"
)

// Stackable reports whether overlayfs shows what unpacking would, for a layer
// above others, all given by their metadata, the lowest first. Each layer of an
// image wants its own call, the lowest too. The error matches
// errors.ErrUnsupported for what comes out differently:
//
//   - A directory without an entry that is another below. An unpack leaves it as it
//     is, /tmp say, where overlayfs shows the upper layer's 0755 of root.
//   - A whiteout in a directory that is not below. Overlayfs lists it.
//
// Times of directories without an entry are not looked at: an unpack gives them
// its own time.
func Stackable(upper io.ReaderAt, lowers ...io.ReaderAt) error {
	noData := strings.NewReader("")
	top, err := openMetadata(upper, noData)
	if err != nil {
		return err
	}
	below := make([]lstatFS, len(lowers))
	for i, lower := range lowers {
		if below[i], err = openMetadata(lower, noData); err != nil {
			return err
		}
	}
	entries := 0
	err = fs.WalkDir(top, ".", func(name string, d fs.DirEntry, err error) error {
		// Foreign metadata may hold a circle of directories.
		if entries++; entries > maxEntries || len(name) > maxPath {
			return errors.New("it has more, or deeper, directories than Metadata makes")
		}
		if err != nil || !d.IsDir() && d.Type() != charDevice {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		stat := info.Sys().(*erofs.Stat)
		if !d.IsDir() {
			return whiteoutAbove(name, stat, below)
		}
		if _, ok := stat.Xattrs[opaqueAttr]; ok {
			return fs.SkipDir // nothing shows through it, and it has no whiteouts
		}
		if _, ok := stat.Xattrs[impliedAttr]; ok {
			return impliedAbove(name, below)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("stack a layer: %w", err)
	}
	return nil
}

// impliedAbove returns why a directory without an entry cannot stand above the layers below.
func impliedAbove(name string, below []lstatFS) error {
	stat, err := shown(name, below)
	if err != nil || stat == nil {
		return err
	}
	attrs := len(stat.Xattrs)
	for _, own := range []string{opaqueAttr, impliedAttr} {
		if _, ok := stat.Xattrs[own]; ok {
			attrs--
		}
	}
	if stat.Mode != fs.ModeDir|0o755 || stat.UID != 0 || stat.GID != 0 || attrs > 0 {
		return fmt.Errorf("%w: it has no entry for the directory %q, which is another below: %v of %d:%d with %d attributes",
			errors.ErrUnsupported, name, stat.Mode, stat.UID, stat.GID, attrs)
	}
	return nil
}

// whiteoutAbove returns why a character device, if it is a whiteout, cannot stand above the layers below.
func whiteoutAbove(name string, stat *erofs.Stat, below []lstatFS) error {
	if stat.Rdev != 0 {
		return nil
	}
	dir, err := shown(path.Dir(name), below)
	if err == nil && (dir == nil || !dir.Mode.IsDir()) {
		err = fmt.Errorf("%w: it has a whiteout for %q, in a directory that is not below", errors.ErrUnsupported, name)
	}
	return err
}

type lstatFS interface {
	fs.FS
	Lstat(name string) (fs.FileInfo, error)
}

func openMetadata(r, object io.ReaderAt) (lstatFS, error) {
	fsys, err := erofs.Open(filledReader{r}, erofs.WithExtraDevices(object))
	if err != nil {
		return nil, fmt.Errorf("open the metadata of a layer: %w", err)
	}
	return fsys.(lstatFS), nil
}

// A filledReader has zeros behind its end for a read across it: go-erofs reads
// 64 bytes of an inode, also of a last one that has 32.
type filledReader struct{ io.ReaderAt }

func (f filledReader) ReadAt(p []byte, off int64) (int, error) {
	n, err := f.ReaderAt.ReadAt(p, off)
	if err == io.EOF && n > 0 {
		clear(p[n:])
		return len(p), nil
	}
	return n, err
}

// shown returns what layers show at a name: that of the uppermost which has it, or nil.
func shown(name string, layers []lstatFS) (*erofs.Stat, error) {
	for _, layer := range slices.Backward(layers) {
		info, hidden, err := lstatLayer(layer, name)
		if err != nil {
			return nil, err
		}
		if info == nil && !hidden {
			continue
		}
		if info == nil {
			return nil, nil
		}
		stat := info.Sys().(*erofs.Stat)
		if stat.Mode.Type() == charDevice && stat.Rdev == 0 {
			return nil, nil
		}
		return stat, nil
	}
	return nil, nil
}

// lstatLayer returns what one layer has at a name, or nil, and whether it hides the name in those below it.
func lstatLayer(fsys lstatFS, name string) (info fs.FileInfo, hidden bool, err error) {
	parts := strings.Split(name, "/")
	for n := range parts {
		info, err = fsys.Lstat(path.Join(parts[:n+1]...))
		if errors.Is(err, fs.ErrNotExist) {
			return nil, hidden, nil
		}
		if err != nil {
			return nil, false, err
		}
		if !info.IsDir() {
			if n < len(parts)-1 {
				return nil, true, nil
			}
			return info, true, nil
		}
		if _, ok := info.Sys().(*erofs.Stat).Xattrs[opaqueAttr]; ok {
			hidden = true
		}
	}
	return info, hidden, nil
}
