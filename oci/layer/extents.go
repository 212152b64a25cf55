package layer

import (
	"cmp"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"

	"github.com/erofs/go-erofs"
)

// An Extent is consecutive bytes of a layer's object.
type Extent struct{ Offset, Length int64 }

// Extents returns where in a layer's object the bytes of a regular file lie, in
// the order of the file and without its holes. It reads the layer's EROFS
// metadata, made by Metadata, and nothing of the object. name is absolute or of
// the root; symbolic links lead within the layer. The error for a file that the
// layer does not have matches fs.ErrNotExist.
func Extents(metadata io.ReaderAt, name string) ([]Extent, error) {
	name = cmp.Or(strings.TrimPrefix(path.Clean("/"+name), "/"), ".")
	fail := func(err error) ([]Extent, error) { return nil, fmt.Errorf("find %q in a layer: %w", name, err) }
	tree, err := erofs.Open(metadata, erofs.WithExtraDevices(strings.NewReader(""))) // the object is not looked at
	if err != nil {
		return fail(err)
	}
	info, err := fs.Stat(tree, name)
	if err != nil {
		return fail(err)
	}
	ranges, ok := info.(interface{ DataRange() []erofs.DataRange })
	if !ok || !info.Mode().IsRegular() {
		return fail(fmt.Errorf("%w: it is no regular file", fs.ErrNotExist))
	}
	var extents []Extent
	for _, r := range ranges.DataRange() {
		if r.Offset >= 0 && r.Device == 1 && r.Size > 0 {
			extents = append(extents, Extent{r.Offset, r.Size})
		}
	}
	return extents, nil
}
