package image

import (
	"context"
	"fmt"
	"io"

	"github.com/spate-project/spate/cache/piece"
)

// Under Options.MaxExpanded a layer may expand to maxRatio times its blob, and
// in any case to freeExpansion bytes: small layers are often nearly empty.
const (
	maxRatio      = 100
	freeExpansion = 64 << 20
)

// A tooLargeError says that what is expanded is larger than it may be.
type tooLargeError struct {
	what string
	most int64
}

func (e *tooLargeError) Error() string {
	return fmt.Sprintf("%s to more than %d bytes, the most that is allowed", e.what, e.most)
}

// A boundedReader reads an object that is expanded, and fails where that is too large.
type boundedReader struct {
	io.Reader
	builder    *builder
	read, most int64
}

// bounded returns object, in a blob of the given size, bounded as b.opts say.
func (b *builder) bounded(object io.Reader, size int64) io.Reader {
	most := int64(piece.MaxSize)
	if b.opts.MaxExpanded > 0 {
		most = min(most, max(freeExpansion, min(size, most)*maxRatio))
	}
	return &boundedReader{Reader: object, builder: b, most: most}
}

func (r *boundedReader) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	r.read += int64(n)
	if r.read > r.most {
		return 0, &tooLargeError{"it expands", r.most}
	}
	all, most := r.builder.expanded.Add(int64(n)), r.builder.opts.MaxExpanded
	if most > 0 && all > most {
		return 0, &tooLargeError{"the image's layers expand", most}
	}
	return n, err
}

// A governed reader fails once its context is done.
type governed struct {
	ctx context.Context
	io.Reader
}

func (g governed) Read(p []byte) (int, error) {
	if err := g.ctx.Err(); err != nil {
		return 0, err
	}
	return g.Reader.Read(p)
}
