package image

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/content"
	"oras.land/oras-go/v2/errdef"

	"github.com/spate-project/spate/cache/piece"
	"github.com/spate-project/spate/oci/index"
	"github.com/spate-project/spate/oci/layer"
)

// A builder is one run of Build.
type builder struct {
	repo     content.Storage
	opts     Options
	expanded atomic.Int64 // bytes of compressed layers
}

// layer makes the object of o.Layer and stores what the index needs of it. It
// fills in what is not known of o yet.
func (b *builder) layer(ctx context.Context, o *Object) error {
	event := Event{Step: Started, Layer: o.Blob.Digest.String(), Size: o.Blob.Size}
	b.opts.progress(event)
	body, err := b.repo.Fetch(ctx, o.Blob)
	if err != nil {
		return err
	}
	defer body.Close()
	blob := &counter{Reader: body, advanced: func(done int64) {
		b.opts.progress(Event{Step: Advanced, Layer: event.Layer, Done: done, Size: event.Size})
	}}
	compression, err := layer.CompressionOf(o.Blob.MediaType)
	if err != nil {
		return err
	}
	if compression == layer.None {
		err = b.read(ctx, o, blob, o.Blob.Size)
	} else {
		err = b.expand(ctx, o, blob)
	}
	if err != nil {
		return err
	}
	event.Step, event.Done = Finished, event.Size
	b.opts.progress(event)
	return nil
}

// expand makes the object of a compressed blob and stores it.
func (b *builder) expand(ctx context.Context, o *Object, blob io.Reader) error {
	spool, err := tempFile(b.opts.Dir)
	if err != nil {
		return err
	}
	defer spool.Close()
	size, err := b.spool(spool, o.Blob, blob)
	if bomb := (*tooLargeError)(nil); errors.As(err, &bomb) {
		return err
	}
	if err != nil {
		return blobError(blob, err)
	}
	if err := b.read(ctx, o, io.NewSectionReader(spool, 0, size), size); err != nil {
		return err
	}
	return store(ctx, b.repo, index.Object{Object: o.tree.Object()}.Descriptor(), spool)
}

// spool writes the object of blob to w and returns its size. It goes on until
// the blob's end was reached, where its digest is checked.
func (b *builder) spool(w io.Writer, desc ocispec.Descriptor, blob io.Reader) (int64, error) {
	object, err := layer.Expand(desc.MediaType, blob)
	if err != nil {
		return 0, err
	}
	defer object.Close()
	return io.Copy(w, b.bounded(object, desc.Size))
}

// read reads the object of o, size bytes, and makes its EROFS metadata.
func (b *builder) read(ctx context.Context, o *Object, r io.Reader, size int64) error {
	r = governed{ctx, r}
	h := piece.NewHasher(size)
	var tarErr error
	if o.Tar {
		var err error
		if o.metadata, err = tempFile(b.opts.Dir); err != nil {
			return err
		}
		tarErr = layer.Metadata(o.metadata, io.TeeReader(r, h))
	}
	// That the bytes are wrong explains an error of the tar, so it comes first.
	if _, err := io.CopyBuffer(h, r, make([]byte, chunkSize)); err != nil {
		return err
	}
	tree, err := h.Sum()
	if err != nil {
		return err
	}
	if got := tree.Object().Digest; got != o.DiffID {
		return &wrongDiffError{want: o.DiffID, got: got}
	}
	o.Size, o.tree = size, tree
	if errors.Is(tarErr, errors.ErrUnsupported) {
		o.Unsupported = tarErr
		return nil
	}
	return tarErr
}

// stack settles which layers are shown by their EROFS metadata, and stores
// those: the layers up to the first one that has none or that overlayfs would
// not show as an unpack does. containerd unpacks whatever lies above one that it
// has to unpack.
func (b *builder) stack(ctx context.Context, objects []*Object) error {
	var lowers []io.ReaderAt
	for i, o := range objects {
		if o.metadata == nil {
			continue
		}
		if o.Unsupported == nil && len(lowers) < i {
			o.Unsupported = fmt.Errorf("%w: a layer below it has to be unpacked", errors.ErrUnsupported)
		}
		if o.Unsupported == nil {
			err := layer.Stackable(o.metadata, lowers...)
			if errors.Is(err, errors.ErrUnsupported) {
				o.Unsupported = err
			} else if err != nil {
				return fmt.Errorf("layer %d, %s: %w", i, o.Blob.Digest, err)
			}
		}
		if o.Unsupported != nil {
			o.EROFS = nil // the same layer may lie further down
			continue
		}
		if err := b.storeMetadata(ctx, o); err != nil {
			return fmt.Errorf("layer %d, %s: %w", i, o.Blob.Digest, err)
		}
		if o.Unsupported == nil {
			lowers = append(lowers, o.metadata)
		}
	}
	return nil
}

// storeMetadata stores the EROFS metadata of o.
func (b *builder) storeMetadata(ctx context.Context, o *Object) error {
	info, err := o.metadata.Stat()
	if err != nil {
		return err
	}
	m := index.Metadata{Size: info.Size()}
	if m.Size > index.MaxEROFS {
		o.Unsupported = fmt.Errorf("%w: its EROFS metadata have %d bytes, more than %d", errors.ErrUnsupported, m.Size, index.MaxEROFS)
		return nil
	}
	h := sha256.New()
	if _, err := io.Copy(h, io.NewSectionReader(o.metadata, 0, m.Size)); err != nil {
		return err
	}
	h.Sum(m.Digest[:0])
	o.EROFS = &m
	return store(ctx, b.repo, index.Object{EROFS: &m}.MetadataDescriptor(), o.metadata)
}

// store pushes the first desc.Size bytes of f unless repo has them.
func store(ctx context.Context, repo content.Storage, desc ocispec.Descriptor, f io.ReaderAt) error {
	if ok, err := repo.Exists(ctx, desc); ok || err != nil {
		return err
	}
	err := repo.Push(ctx, desc, governed{ctx, io.NewSectionReader(f, 0, desc.Size)})
	if errors.Is(err, errdef.ErrAlreadyExists) {
		return nil // another layer has the same
	}
	return err
}

// chunkSize is how much is read and hashed at a time, in bytes.
const chunkSize = 1 << 20

// tempFile makes a file in dir that has no name any more, so that nothing is left of it.
func tempFile(dir string) (*os.File, error) {
	f, err := os.CreateTemp(dir, "spate-layer-*")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}
