package signing

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2"
	"oras.land/oras-go/v2/content"
	"oras.land/oras-go/v2/errdef"

	"github.com/spate-project/spate/cache/piece"
	"github.com/spate-project/spate/oci"
)

// A Target is where Attach pushes. *remote.Repository is one.
type Target interface {
	content.Pusher

	// Exists reports whether the target holds what desc describes.
	Exists(ctx context.Context, desc ocispec.Descriptor) (bool, error)
}

// Sign has signer sign desc, and attaches the signature as Attach does.
func Sign(ctx context.Context, target Target, signer Signer, desc ocispec.Descriptor) (ocispec.Descriptor, error) {
	subject, err := piece.ParseDigest(desc.Digest.String())
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("sign %s: %w", desc.Digest, err)
	}
	bundle, err := signer.Sign(ctx, subject)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	return Attach(ctx, target, desc, bundle)
}

// Attest has signer attest predicate, a JSON object of predicateType, of desc, and
// attaches that as `cosign attest` does.
func Attest(ctx context.Context, target Target, signer Signer, desc ocispec.Descriptor, predicateType string, predicate []byte) (ocispec.Descriptor, error) {
	subject, err := piece.ParseDigest(desc.Digest.String())
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("attest %s: %w", desc.Digest, err)
	}
	bundle, err := signer.Attest(ctx, subject, predicateType, predicate)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	if len(bundle) > maxAttestation {
		return ocispec.Descriptor{}, fmt.Errorf("attest %s: the bundle has %d bytes, and policies read at most %d", desc.Digest, len(bundle), maxAttestation)
	}
	return attach(ctx, target, desc, bundle, predicateType)
}

// Attach pushes bundle, a Sigstore bundle as a Signer makes it, as a referrer
// of subject, and returns the descriptor of the referrer's manifest. It lays
// the artifact out as `cosign sign` does, so that cosign finds it. Of subject
// it uses the media type, digest and size; it does not look whether the target
// has it, nor what the bundle says. Two calls attach two signatures.
func Attach(ctx context.Context, target Target, subject ocispec.Descriptor, bundle []byte) (ocispec.Descriptor, error) {
	return attach(ctx, target, subject, bundle, "https://sigstore.dev/cosign/sign/v1")
}

func attach(ctx context.Context, target Target, subject ocispec.Descriptor, bundle []byte, predicateType string) (ocispec.Descriptor, error) {
	config := ocispec.Descriptor{
		MediaType:    ocispec.MediaTypeEmptyJSON,
		Digest:       ocispec.DescriptorEmptyJSON.Digest,
		Size:         ocispec.DescriptorEmptyJSON.Size,
		ArtifactType: oci.ArtifactTypeBundle,
	}
	layer := ocispec.Descriptor{
		MediaType: oci.ArtifactTypeBundle,
		Digest:    digest.FromBytes(bundle),
		Size:      int64(len(bundle)),
	}
	if err := push(ctx, target, config, ocispec.DescriptorEmptyJSON.Data); err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("attach a bundle to %s: push its config: %w", subject.Digest, err)
	}
	if err := push(ctx, target, layer, bundle); err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("attach a bundle to %s: push its bundle: %w", subject.Digest, err)
	}
	// PackManifest adds the time of creation.
	desc, err := oras.PackManifest(ctx, target, oras.PackManifestVersion1_1, oci.ArtifactTypeBundle, oras.PackManifestOptions{
		Subject:          &ocispec.Descriptor{MediaType: subject.MediaType, Digest: subject.Digest, Size: subject.Size},
		ConfigDescriptor: &config,
		Layers:           []ocispec.Descriptor{layer},
		ManifestAnnotations: map[string]string{
			"dev.sigstore.bundle.content":       "dsse-envelope",
			"dev.sigstore.bundle.predicateType": predicateType,
		},
	})
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("attach a bundle to %s: push its manifest: %w", subject.Digest, err)
	}
	return desc, nil
}

func push(ctx context.Context, target Target, desc ocispec.Descriptor, b []byte) error {
	if exists, err := target.Exists(ctx, desc); err != nil || exists {
		return err
	}
	if err := target.Push(ctx, desc, bytes.NewReader(b)); err != nil && !errors.Is(err, errdef.ErrAlreadyExists) {
		return err
	}
	return nil
}
