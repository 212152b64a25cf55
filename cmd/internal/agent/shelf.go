package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/content"
	"oras.land/oras-go/v2/content/oci"
	"oras.land/oras-go/v2/errdef"
	"oras.land/oras-go/v2/registry"

	"github.com/spate-project/spate/signing"
)

// A shelf keeps the documents that references were admitted by: manifests,
// indexes and signatures, in an OCI image layout (image-spec, image-layout.md).
// From it an agent that starts anew admits what it had without a registry. It
// proves nothing: what lies on it is checked like what a registry sends. It is
// safe for concurrent use.
type shelf struct {
	store *oci.Store
	dir   string
	log   *slog.Logger
}

var (
	_ signing.Repository = (*shelf)(nil)
	_ signing.Repository = keeper{}
)

// openShelf opens the shelf in dir. One of which a document is broken is
// cleared: a registry has them all.
func openShelf(dir string, log *slog.Logger) (*shelf, error) {
	store, err := oci.New(dir)
	if err != nil {
		log.Error("the documents by which references were admitted are broken, and are dropped", "dir", dir, "err", err)
		if err = os.RemoveAll(dir); err == nil {
			store, err = oci.New(dir)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("open the admitted documents in %s: %w", dir, err)
	}
	return &shelf{store, dir, log}, nil
}

// Resolve finds the manifest of a reference that ends in its digest. Tags are for a registry to resolve.
func (s *shelf) Resolve(ctx context.Context, reference string) (ocispec.Descriptor, error) {
	return s.store.Resolve(ctx, reference[strings.LastIndex(reference, "@")+1:])
}

// Fetch opens a document whose bytes were checked.
func (s *shelf) Fetch(ctx context.Context, target ocispec.Descriptor) (io.ReadCloser, error) {
	b, err := content.FetchAll(ctx, s.store, target)
	if err != nil {
		return nil, err
	}
	return io.NopCloser(bytes.NewReader(b)), nil
}

// Referrers lists what is here of artifactType whose subject is desc.
func (s *shelf) Referrers(ctx context.Context, desc ocispec.Descriptor, artifactType string, fn func([]ocispec.Descriptor) error) error {
	found, err := registry.Referrers(ctx, s.store, desc, artifactType)
	if err != nil || len(found) == 0 {
		return err
	}
	return fn(found)
}

// keep puts a document on the shelf. That it fails costs a restarted agent a question to the registry.
func (s *shelf) keep(ctx context.Context, desc ocispec.Descriptor, b []byte) {
	err := s.store.Push(ctx, desc, bytes.NewReader(b))
	if errors.Is(err, errdef.ErrAlreadyExists) {
		// It was not taken from there, so it may be broken.
		if _, broken := content.FetchAll(ctx, s.store, desc); broken == nil {
			return
		}
		path := filepath.Join(s.dir, ocispec.ImageBlobsDir, desc.Digest.Algorithm().String(), desc.Digest.Encoded())
		err = errors.Join(os.Remove(path), s.store.Push(ctx, desc, bytes.NewReader(b)))
	}
	if err != nil {
		s.log.Warn("keep a document for the next start", "digest", desc.Digest, "err", err)
	}
}

// A keeper is a registry's repository of which what is fetched stays on a shelf,
// and what lies there is not fetched again.
type keeper struct {
	signing.Repository
	shelf *shelf
}

// Fetch opens a document, whose size the caller has bounded.
func (k keeper) Fetch(ctx context.Context, target ocispec.Descriptor) (io.ReadCloser, error) {
	if body, err := k.shelf.Fetch(ctx, target); err == nil {
		return body, nil
	}
	b, err := content.FetchAll(ctx, k.Repository, target)
	if err != nil {
		return nil, err
	}
	k.shelf.keep(ctx, target, b)
	return io.NopCloser(bytes.NewReader(b)), nil
}
