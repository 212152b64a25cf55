// Package image takes container images apart, those of OCI and of Docker, and
// makes the index of one: each layer is expanded once, becomes an object with a
// root, and gets the EROFS metadata that show its files without unpacking it.
// The image stays as it is, to the last byte.
//
// Models are indexed in the same way, each file an object.
package image

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/content"
	"oras.land/oras-go/v2/errdef"

	"github.com/spate-project/spate/cache/piece"
	"github.com/spate-project/spate/oci"
	"github.com/spate-project/spate/oci/layer"
)

const (
	// MaxManifest bounds a manifest and an image index, in bytes, as registries do.
	MaxManifest = 4 << 20

	// MaxConfig bounds the config of an image, in bytes.
	MaxConfig = 8 << 20

	// MaxLayers bounds the layers of an image. Overlayfs mounts no more than 500.
	MaxLayers = 500

	// MaxFiles bounds the layers of a model.
	MaxFiles = 2048
)

// dockerConfig is what Docker calls an image config, which OCI\'s was made from.
const dockerConfig = "application/vnd.docker.container.image.v1+json"

// A Layer is one layer of an image, or one file of a model.
type Layer struct {
	// Blob is the layer as the manifest has it.
	Blob ocispec.Descriptor

	// DiffID names the object: the layer's tar without compression, or the file of a model.
	DiffID piece.Digest

	// Tar says that the object is a layer of an image, to be shown as a tree of files.
	Tar bool
}

// Layers takes the manifest of an image or a model apart. It fetches the config
// of an image and checks that there is one diffID for each layer; what the
// history says does not count, since many builders leave it out. The same layer
// may be there several times. The error for what cannot be indexed, another kind of
// artifact or a layer that is not distributed with the image, matches errdef.ErrUnsupported.
func Layers(ctx context.Context, fetcher content.Fetcher, manifest []byte) ([]Layer, error) {
	layers, err := readLayers(ctx, fetcher, manifest)
	if err != nil {
		return nil, fmt.Errorf("read image manifest: %w", err)
	}
	return layers, nil
}

func readLayers(ctx context.Context, fetcher content.Fetcher, manifest []byte) ([]Layer, error) {
	m, err := parseManifest(manifest)
	if err != nil {
		return nil, err
	}
	if !isImage(m) {
		return modelLayers(m)
	}
	text, err := fetchConfig(ctx, fetcher, m)
	if err != nil {
		return nil, err
	}
	return imageLayers(m, text)
}

func fetchConfig(ctx context.Context, fetcher content.Fetcher, m *ocispec.Manifest) ([]byte, error) {
	if m.Config.Size < 0 || m.Config.Size > MaxConfig {
		return nil, fmt.Errorf("its config has %d bytes, more than %d", m.Config.Size, MaxConfig)
	}
	text, err := content.FetchAll(ctx, fetcher, m.Config)
	if err != nil {
		return nil, fmt.Errorf("its config: %w", err)
	}
	return text, nil
}

// Is reports whether a manifest is that of a container image, whatever else may be wrong with it.
func Is(manifest []byte) bool {
	m, err := parseManifest(manifest)
	return err == nil && isImage(m)
}

func isImage(m *ocispec.Manifest) bool {
	return m.Config.MediaType == ocispec.MediaTypeImageConfig || m.Config.MediaType == dockerConfig
}

// parseManifest reads a manifest of layers. It accepts fields that it does not know, as OCI asks for.
func parseManifest(b []byte) (*ocispec.Manifest, error) {
	if len(b) > MaxManifest {
		return nil, fmt.Errorf("it has more than %d bytes", MaxManifest)
	}
	var m struct {
		ocispec.Manifest
		Manifests json.RawMessage `json:"manifests"`
	}
	if err := json.Unmarshal(b, &m); err != nil {
		return nil, err
	}
	switch m.MediaType {
	case "", ocispec.MediaTypeImageManifest, oci.MediaTypeDockerManifest:
	default:
		return nil, fmt.Errorf("it is not an image manifest but %q", m.MediaType)
	}
	if m.SchemaVersion != 2 || m.Manifests != nil {
		return nil, fmt.Errorf("it is not an image manifest of schema version 2")
	}
	return &m.Manifest, nil
}

// imageLayers joins the layers of an image with the diffIDs of its config.
func imageLayers(m *ocispec.Manifest, config []byte) ([]Layer, error) {
	var c struct {
		RootFS struct {
			Type    string         `json:"type"`
			DiffIDs []piece.Digest `json:"diff_ids"`
		} `json:"rootfs"`
	}
	if err := json.Unmarshal(config, &c); err != nil {
		return nil, fmt.Errorf("its config: %w", err)
	}
	switch {
	case c.RootFS.Type != "layers":
		return nil, fmt.Errorf("its config has a root file system of type %q instead of \"layers\"", c.RootFS.Type)
	case len(m.Layers) > MaxLayers:
		return nil, fmt.Errorf("the image has %d layers, more than %d", len(m.Layers), MaxLayers)
	case len(c.RootFS.DiffIDs) != len(m.Layers):
		return nil, fmt.Errorf("the image has %d layers, but its config names %d", len(m.Layers), len(c.RootFS.DiffIDs))
	}
	layers := make([]Layer, len(m.Layers))
	for i, blob := range m.Layers {
		err := checkBlob(blob)
		if err == nil && foreign(blob.MediaType) {
			err = fmt.Errorf("it is not distributed with the image (%s): %w", blob.MediaType, errdef.ErrUnsupported)
		}
		if err != nil {
			return nil, fmt.Errorf("layer %d, %s: %w", i, blob.Digest, err)
		}
		layers[i] = Layer{Blob: blob, DiffID: c.RootFS.DiffIDs[i], Tar: true}
	}
	return layers, nil
}

// modelLayers returns the files of a model, each of which is an object as it is.
func modelLayers(m *ocispec.Manifest) ([]Layer, error) {
	if len(m.Layers) == 0 || len(m.Layers) > MaxFiles {
		return nil, fmt.Errorf("%w: it has %d layers and the config %q: neither an image nor a model of 1 to %d files",
			errdef.ErrUnsupported, len(m.Layers), m.Config.MediaType, MaxFiles)
	}
	layers := make([]Layer, len(m.Layers))
	for i, blob := range m.Layers {
		err := checkBlob(blob)
		switch _, packing, ok := oci.SplitModelLayer(blob.MediaType); {
		case err != nil:
		case !ok:
			err = fmt.Errorf("%w: media type %q is not one of a model's layer, and the config %q not one of an image",
				errdef.ErrUnsupported, blob.MediaType, m.Config.MediaType)
		case packing != oci.PackingRaw && packing != oci.PackingTar:
			err = fmt.Errorf("%w: a compressed archive; pack the model with one file a layer", errdef.ErrUnsupported)
		}
		if err != nil {
			return nil, fmt.Errorf("layer %d, %s: %w", i, blob.Digest, err)
		}
		layers[i].Blob = blob
		layers[i].DiffID, _ = piece.ParseDigest(blob.Digest.String()) // checkBlob did
	}
	return layers, nil
}

func checkBlob(blob ocispec.Descriptor) error {
	if _, err := piece.ParseDigest(blob.Digest.String()); err != nil {
		return err
	}
	if blob.Size < 0 {
		return fmt.Errorf("it has %d bytes", blob.Size)
	}
	_, err := layer.CompressionOf(blob.MediaType)
	return err
}

// foreign reports whether a layer is to be had elsewhere only.
func foreign(mediaType string) bool {
	return strings.HasPrefix(mediaType, "application/vnd.oci.image.layer.nondistributable.") ||
		strings.HasPrefix(mediaType, "application/vnd.docker.image.rootfs.foreign.")
}
