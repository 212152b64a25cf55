package image

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/content"
	"oras.land/oras-go/v2/errdef"

	"github.com/spate-project/spate/cache/piece"
	"github.com/spate-project/spate/oci"
)

// MaxManifests bounds how many manifests an image index lists.
const MaxManifests = 256

// A Source is what Manifests reads. *remote.Repository is one.
type Source interface {
	content.Resolver
	content.Fetcher
}

// A Manifest is one image, of one platform, or one model.
type Manifest struct {
	Descriptor ocispec.Descriptor // of Bytes
	Bytes      []byte             // not to be changed
}

// Manifests returns what reference, a tag or a digest as repo.Resolve takes it,
// names: root is that itself, and manifests are the images of all platforms when
// it is an image index, else the one that it is.
func Manifests(ctx context.Context, repo Source, reference string) (root ocispec.Descriptor, manifests []Manifest, err error) {
	fail := func(err error) (ocispec.Descriptor, []Manifest, error) {
		return ocispec.Descriptor{}, nil, fmt.Errorf("read the manifests of %s: %w", reference, err)
	}
	root, err = repo.Resolve(ctx, reference)
	if err != nil {
		return fail(err)
	}
	root = ocispec.Descriptor{MediaType: root.MediaType, Digest: root.Digest, Size: root.Size}
	text, err := fetchManifest(ctx, repo, root)
	if err != nil {
		return fail(err)
	}
	if !IsIndex(root.MediaType) {
		return root, []Manifest{{Descriptor: root, Bytes: text}}, nil
	}
	images, err := Images(text)
	if err != nil {
		return fail(err)
	}
	for _, desc := range images {
		if text, err = fetchManifest(ctx, repo, desc); err != nil {
			return fail(err)
		}
		manifests = append(manifests, Manifest{Descriptor: desc, Bytes: text})
	}
	return root, manifests, nil
}

func fetchManifest(ctx context.Context, repo content.Fetcher, desc ocispec.Descriptor) ([]byte, error) {
	if desc.Size < 0 || desc.Size > MaxManifest {
		return nil, fmt.Errorf("manifest %s has %d bytes, more than %d", desc.Digest, desc.Size, MaxManifest)
	}
	return content.FetchAll(ctx, repo, desc)
}

// IsIndex reports whether mediaType is that of an image index, OCI's or Docker's.
func IsIndex(mediaType string) bool {
	return mediaType == ocispec.MediaTypeImageIndex || mediaType == oci.MediaTypeDockerList
}

// Images returns the manifests that an image index lists, in its order: images
// and models. It passes over what only accompanies them, such as attestations,
// which say that they are of an unknown platform, and other artifacts.
func Images(imageIndex []byte) ([]ocispec.Descriptor, error) {
	images, err := parseIndex(imageIndex)
	if err != nil {
		return nil, fmt.Errorf("read image index: %w", err)
	}
	return images, nil
}

func parseIndex(b []byte) ([]ocispec.Descriptor, error) {
	if len(b) > MaxManifest {
		return nil, fmt.Errorf("it has more than %d bytes", MaxManifest)
	}
	var x struct {
		ocispec.Index
		Config json.RawMessage `json:"config"`
		Layers json.RawMessage `json:"layers"`
	}
	if err := json.Unmarshal(b, &x); err != nil {
		return nil, err
	}
	switch {
	case x.MediaType != "" && !IsIndex(x.MediaType):
		return nil, fmt.Errorf("it is not an image index but %q", x.MediaType)
	case x.SchemaVersion != 2 || x.Config != nil || x.Layers != nil:
		return nil, fmt.Errorf("it is not an image index of schema version 2")
	case len(x.Manifests) > MaxManifests:
		return nil, fmt.Errorf("it lists %d manifests, more than %d", len(x.Manifests), MaxManifests)
	}
	var images []ocispec.Descriptor
	for i, desc := range x.Manifests {
		if accompanies(desc) {
			continue
		}
		if _, err := piece.ParseDigest(desc.Digest.String()); err != nil {
			return nil, fmt.Errorf("manifest %d: %w", i, err)
		}
		switch desc.MediaType {
		case ocispec.MediaTypeImageManifest, oci.MediaTypeDockerManifest:
		default:
			return nil, fmt.Errorf("manifest %d, %s: %w: it is not an image manifest but %q", i, desc.Digest, errdef.ErrUnsupported, desc.MediaType)
		}
		same := func(d ocispec.Descriptor) bool { return d.Digest == desc.Digest }
		if !slices.ContainsFunc(images, same) {
			images = append(images, desc)
		}
	}
	if len(images) == 0 {
		return nil, fmt.Errorf("it lists no image")
	}
	return images, nil
}

// accompanies reports whether an entry of an image index is neither an image nor a model.
func accompanies(desc ocispec.Descriptor) bool {
	if p := desc.Platform; p != nil && p.OS == "unknown" && p.Architecture == "unknown" {
		return true
	}
	return desc.ArtifactType != "" && desc.ArtifactType != oci.ArtifactTypeModel &&
		desc.ArtifactType != ocispec.MediaTypeImageConfig
}

// ForPlatform returns the first of images, the entries of an image index, that
// is for the given operating system and architecture as Go names them.
func ForPlatform(images []ocispec.Descriptor, os, arch string) (ocispec.Descriptor, error) {
	var others []string
	for _, desc := range images {
		if p := desc.Platform; p != nil && p.OS == os && p.Architecture == arch {
			return desc, nil
		}
		others = append(others, cmp.Or(Platform(desc), "unknown"))
	}
	return ocispec.Descriptor{}, fmt.Errorf("%w: no image for %s/%s, only for %s",
		errdef.ErrNotFound, os, arch, strings.Join(others, ", "))
}

// Platform writes the platform of an image index's entry, "linux/arm64/v8", or ""
// where it says none.
func Platform(desc ocispec.Descriptor) string {
	p := desc.Platform
	if p == nil || p.OS == "" {
		return ""
	}
	name := p.OS + "/" + p.Architecture
	if p.Variant != "" {
		name += "/" + p.Variant
	}
	if p.OSVersion != "" {
		name += ":" + p.OSVersion
	}
	return name
}
