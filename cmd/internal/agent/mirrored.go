package agent

import (
	"context"
	"errors"
	"fmt"
	"io"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/spate-project/spate/cache/piece"
	"github.com/spate-project/spate/oci/mirror"
)

// mirrored gives the mirror the blobs that are objects, piece by piece, and by
// hints those that are not, such as compressed layers.
type mirrored struct{ agent *Agent }

var _ mirror.Blobs = mirrored{}

// Open implements mirror.Blobs.
func (m mirrored) Open(ctx context.Context, reference string, blob ocispec.Descriptor) (io.ReadSeekCloser, error) {
	digest, err := piece.ParseDigest(blob.Digest.String())
	if err != nil {
		return nil, err
	}
	admission, err := m.agent.admit(ctx, reference, online)
	if errors.Is(err, errNotIndexed) {
		return nil, fmt.Errorf("blob %s of %s: %w", blob.Digest, reference, piece.ErrNotHere)
	}
	if err != nil {
		return nil, err
	}
	if _, ok := admission.Index.Tree(digest); !ok {
		return nil, fmt.Errorf("blob %s of %s: %w", blob.Digest, reference, piece.ErrNotHere)
	}
	art, err := m.agent.use(admission, need{})
	if err != nil {
		return nil, err
	}
	object := art.object(digest)
	if object == nil {
		m.agent.release(art, need{})
		return nil, fmt.Errorf("blob %s of %s: %w", blob.Digest, reference, piece.ErrNotHere)
	}
	read := readerAt(func(p []byte, off int64) (int, error) { return object.ReadContext(ctx, p, off) })
	return &blobReader{io.NewSectionReader(read, 0, object.Size()), func() { m.agent.release(art, need{}) }}, nil
}

// Pass implements mirror.Blobs.
func (m mirrored) Pass(ctx context.Context, blob ocispec.Descriptor) mirror.Passed {
	digest, err := piece.ParseDigest(blob.Digest.String())
	if err != nil || blob.Size < smallestHinted || blob.Size > piece.MaxSize {
		return mirror.Passed{Reason: mirror.Unfit}
	}
	return m.agent.hints.pass(ctx, digest, blob.Size)
}

type readerAt func(p []byte, off int64) (int, error)

func (r readerAt) ReadAt(p []byte, off int64) (int, error) { return r(p, off) }

// A blobReader reads an object that is open for it.
type blobReader struct {
	*io.SectionReader
	release func()
}

func (r *blobReader) Close() error {
	r.release()
	return nil
}
