package indexer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/content"

	"github.com/spate-project/spate/cache/piece"
	"github.com/spate-project/spate/oci/registry"
)

// A repository is one repository of a store as oras knows one: what an image is
// indexed in and signatures are looked for in. What is pushed is kept in its batch.
type repository struct {
	store *registry.Store
	name  string
	batch *registry.Batch
}

// Fetch opens what the store holds, not what the batch does. ctx governs the
// reader too, which does not reach io.EOF unless the bytes are target's.
func (r *repository) Fetch(ctx context.Context, target ocispec.Descriptor) (io.ReadCloser, error) {
	if isManifest(target) {
		m, err := r.store.Manifest(r.name, target.Digest)
		if err != nil {
			return nil, err
		}
		return io.NopCloser(bytes.NewReader(m.Bytes)), nil
	}
	f, err := r.store.OpenBlob(r.name, target.Digest)
	if err != nil {
		return nil, err
	}
	return &blob{content.NewVerifyReader(f, target), ctx, f, target.Digest}, nil
}

// Push keeps a blob or a manifest for the batch's Commit.
func (r *repository) Push(_ context.Context, expected ocispec.Descriptor, body io.Reader) error {
	if !isManifest(expected) {
		return r.batch.PutBlob(expected.Digest, body)
	}
	raw, err := content.ReadAll(body, expected)
	if err != nil {
		return err
	}
	m, err := registry.ParseManifest(raw, expected.Digest.Algorithm())
	if err != nil {
		return fmt.Errorf("add manifest %s to %s: %w", expected.Digest, r.name, err)
	}
	r.batch.PutManifest(m)
	return nil
}

// Exists reports whether the store or the batch holds a blob, or the store a manifest.
func (r *repository) Exists(_ context.Context, target ocispec.Descriptor) (bool, error) {
	var err error
	if isManifest(target) {
		_, err = r.store.Manifest(r.name, target.Digest)
	} else {
		_, err = r.batch.BlobSize(target.Digest)
	}
	if errors.Is(err, piece.ErrNotHere) {
		return false, nil
	}
	return err == nil, err
}

// Resolve returns the descriptor of the manifest that reference, a digest, names.
func (r *repository) Resolve(_ context.Context, reference string) (ocispec.Descriptor, error) {
	m, err := r.store.Manifest(r.name, digest.Digest(reference))
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	return m.Descriptor, nil
}

// Referrers calls fn with each manifest whose subject is desc; with those of artifactType alone unless it is empty.
func (r *repository) Referrers(ctx context.Context, desc ocispec.Descriptor, artifactType string, fn func([]ocispec.Descriptor) error) error {
	found, err := r.store.Referrers(r.name, desc.Digest)
	if err != nil {
		return err
	}
	for _, d := range found {
		m, err := r.store.Manifest(r.name, d)
		switch {
		case errors.Is(err, piece.ErrNotHere):
			continue
		case err == nil:
			err = ctx.Err()
		}
		if err != nil {
			return err
		}
		if artifactType != "" && m.Descriptor.ArtifactType != artifactType {
			continue
		}
		if err := fn([]ocispec.Descriptor{m.Descriptor}); err != nil {
			return err
		}
	}
	return nil
}

// whole reports whether the store holds what m refers to.
func (r *repository) whole(m *registry.Manifest) bool {
	return !slices.ContainsFunc(m.Blobs, func(b ocispec.Descriptor) bool {
		size, err := r.store.BlobSize(r.name, b.Digest)
		return err != nil || size != b.Size
	})
}

func isManifest(desc ocispec.Descriptor) bool {
	return desc.MediaType == ocispec.MediaTypeImageManifest
}

// A blob is an open blob of a store.
type blob struct {
	verified *content.VerifyReader
	ctx      context.Context
	*os.File
	digest digest.Digest
}

// Read fails at the end with a *piece.WrongBytesError when the bytes on disk are no longer the blob's.
func (b *blob) Read(p []byte) (int, error) {
	if err := b.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := b.verified.Read(p)
	if err != io.EOF {
		return n, err
	}
	if err := b.verified.Verify(); err != nil {
		if d, parseErr := piece.ParseDigest(b.digest.String()); parseErr == nil {
			err = &piece.WrongBytesError{Object: d, Piece: -1, From: "the registry's disk"}
		}
		return n, err
	}
	return n, io.EOF
}
