package agent

import (
	"context"
	"fmt"
	"io/fs"
	"os"

	"github.com/spate-project/spate/oci/image"
	"github.com/spate-project/spate/oci/layer"
	"github.com/spate-project/spate/prefetch"
)

// programAhead bounds how much of a program is fetched before it runs, in bytes.
// Of a large one a start reads a part.
const programAhead = 16 << 20

// program plans the program that containers of an image begin with, so that it
// comes while the container is made. The plan is empty where the image names
// none, or none that is a file of one layer. Its documents are on the shelf.
func (a *Agent) program(ctx context.Context, admission *Admission) (prefetch.Plan, error) {
	if a.images == nil || len(admission.Layers) == 0 {
		return nil, nil
	}
	names, err := image.Programs(ctx, newKeeper(admission.repo, a.shelf), admission.Trusted.Manifest().Bytes)
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		for i := len(admission.Layers) - 1; i >= 0; i-- {
			l := admission.Layers[i]
			if l.EROFS == nil {
				continue
			}
			metadata, err := os.Open(a.images.metadata(*l.EROFS))
			if err != nil {
				return nil, err
			}
			extents, err := layer.Extents(metadata, name)
			metadata.Close()
			if err == nil {
				return planOf(l, extents), nil
			}
		}
	}
	return nil, fmt.Errorf("program %q: no layer has it as a file: %w", names, fs.ErrNotExist)
}

// planOf plans the first programAhead bytes of a file of a layer.
func planOf(l image.Indexed, extents []layer.Extent) (p prefetch.Plan) {
	left := int64(programAhead)
	for _, e := range extents {
		n := min(e.Length, left)
		if left -= n; n > 0 {
			p = append(p, prefetch.Range{Object: l.DiffID, Offset: e.Offset, Length: n})
		}
	}
	return p
}
