package remote

import (
	"context"
	"errors"
	"io"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/content"

	"github.com/spate-project/spate/cache/piece"
)

// Resolve returns the descriptor of the manifest that reference, a tag or a digest, names.
func (r *Repository) Resolve(ctx context.Context, reference string) (ocispec.Descriptor, error) {
	desc, err := r.Repository.Resolve(ctx, reference)
	return desc, r.explain("resolve", reference, err)
}

// ResolveBlob returns the descriptor of the blob d.
func (r *Repository) ResolveBlob(ctx context.Context, d digest.Digest) (ocispec.Descriptor, error) {
	desc, err := r.Repository.Blobs().Resolve(ctx, d.String())
	return desc, r.explain("look for", d.String(), err)
}

// Fetch opens a whole manifest or blob. The reader does not reach io.EOF unless
// the bytes have target's size and digest: it fails with io.ErrUnexpectedEOF
// when the registry sent too few and with a *piece.WrongBytesError when it sent
// others. ctx governs the reader too. The caller closes it.
func (r *Repository) Fetch(ctx context.Context, target ocispec.Descriptor) (io.ReadCloser, error) {
	body, err := r.Repository.Fetch(ctx, target)
	if err != nil {
		return nil, r.explain("fetch", target.Digest.String(), err)
	}
	return &checkedReader{VerifyReader: content.NewVerifyReader(body, target), Closer: body, repo: r, digest: target.Digest}, nil
}

// FetchReference opens the manifest that reference, a tag or a digest, names, and
// returns its descriptor. The reader is as Fetch's.
func (r *Repository) FetchReference(ctx context.Context, reference string) (ocispec.Descriptor, io.ReadCloser, error) {
	desc, body, err := r.Repository.FetchReference(ctx, reference)
	if err != nil {
		return ocispec.Descriptor{}, nil, r.explain("fetch", reference, err)
	}
	return desc, &checkedReader{VerifyReader: content.NewVerifyReader(body, desc), Closer: body, repo: r, digest: desc.Digest}, nil
}

// Exists reports whether the repository holds target.
func (r *Repository) Exists(ctx context.Context, target ocispec.Descriptor) (bool, error) {
	ok, err := r.Repository.Exists(ctx, target)
	return ok, r.explain("look for", target.Digest.String(), err)
}

// Push stores a manifest or a blob that is known beforehand.
func (r *Repository) Push(ctx context.Context, expected ocispec.Descriptor, body io.Reader) error {
	return r.explain("push", expected.Digest.String(), r.Repository.Push(ctx, expected, body))
}

// PushReference stores a manifest and lets the tag reference name it.
func (r *Repository) PushReference(ctx context.Context, expected ocispec.Descriptor, body io.Reader, reference string) error {
	return r.explain("push", reference, r.Repository.PushReference(ctx, expected, body, reference))
}

// Tag lets the tag reference name a manifest that the repository holds.
func (r *Repository) Tag(ctx context.Context, desc ocispec.Descriptor, reference string) error {
	return r.explain("tag", reference, r.Repository.Tag(ctx, desc, reference))
}

// Referrers calls fn with the manifests whose subject is desc, page by page; only
// those of artifactType unless it is empty. An error of fn ends the listing.
func (r *Repository) Referrers(ctx context.Context, desc ocispec.Descriptor, artifactType string, fn func([]ocispec.Descriptor) error) error {
	var fnErr error
	err := r.Repository.Referrers(ctx, desc, artifactType, func(page []ocispec.Descriptor) error {
		fnErr = fn(page)
		return fnErr
	})
	if fnErr != nil {
		return fnErr
	}
	return r.explain("list the referrers of", desc.Digest.String(), err)
}

// A checkedReader fails at the end of bytes that are not what they should be.
type checkedReader struct {
	*content.VerifyReader
	io.Closer
	repo   *Repository
	digest digest.Digest
}

func (c *checkedReader) Read(p []byte) (int, error) {
	n, err := c.VerifyReader.Read(p)
	if err == io.EOF {
		if verifyErr := c.Verify(); verifyErr != nil {
			err = verifyErr
		}
	}
	if err == nil || err == io.EOF {
		return n, err
	}
	wrong := errors.Is(err, content.ErrMismatchedDigest) || errors.Is(err, content.ErrTrailingData)
	if d, parseErr := piece.ParseDigest(c.digest.String()); wrong && parseErr == nil {
		return n, &piece.WrongBytesError{Object: d, Piece: -1, From: c.repo.Reference.Host()}
	}
	return n, c.repo.explain("read", c.digest.String(), err)
}
