package model

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/content"

	"github.com/spate-project/spate/cache/piece"
	"github.com/spate-project/spate/oci"
	"github.com/spate-project/spate/oci/image"
	"github.com/spate-project/spate/oci/index"
	"github.com/spate-project/spate/oci/layer"
)

// volumeArchitectures are those that a volume has an image for, all of Linux:
// a container runtime mounts none that is for another machine. The images
// differ in their config alone.
var volumeArchitectures = []string{"amd64", "arm64"}

// A Volume is a model that container runtimes mount, as a Kubernetes image volume
// say: one blob a file, a plain tar, which the model lists and images list too.
// Everything is stored in the target, and no tag names it yet: the caller signs
// first, each manifest and index and Root, and then tags Root.
type Volume struct {
	*Packed               // the model, of archives
	Images  []VolumeImage // for linux/amd64 and linux/arm64

	// Root is the image index of the images and, with its artifactType and no
	// platform, the model.
	Root ocispec.Descriptor
}

// A VolumeImage is a volume as an image of one platform.
type VolumeImage struct {
	Descriptor ocispec.Descriptor // of its manifest, with the platform
	Index      *index.Artifact
}

// PackVolume is Pack for a volume. Each file is read once here too, and each blob
// stored once. A volume has no more files than an image layers, image.MaxLayers.
// The files are at the paths that they have in the model, of root and of 1970-01-01.
func PackVolume(ctx context.Context, dir string, target Target, opts Options) (*Volume, error) {
	v, err := packVolume(ctx, dir, target, opts)
	if err != nil {
		return nil, fmt.Errorf("pack %s as an image volume: %w", dir, err)
	}
	return v, nil
}

func packVolume(ctx context.Context, dir string, target Target, opts Options) (*Volume, error) {
	sources, skipped, err := scan(dir)
	if err != nil {
		return nil, err
	}
	if len(sources) > image.MaxLayers {
		return nil, fmt.Errorf("it has %d files, more than the %d layers that an image may have; pack it without an image volume",
			len(sources), image.MaxLayers)
	}
	for i := range sources {
		if sources[i].frame, err = frameOf(sources[i]); err != nil {
			return nil, fmt.Errorf("%s: %w", sources[i].name, err)
		}
	}
	v := &Volume{}
	var entries []index.Entry
	if v.Packed, entries, err = packSources(ctx, sources, target, opts); err != nil {
		return nil, err
	}
	v.Skipped = skipped
	if err := v.Packed.index(ctx, target, entries); err != nil {
		return nil, err
	}
	shown := slices.Clone(entries) // the model's archives are no trees of files
	for i, src := range sources {
		if shown[i].EROFS, err = storeMetadata(ctx, src, target); err != nil {
			return nil, fmt.Errorf("%s: %w", src.name, err)
		}
	}
	for _, arch := range volumeArchitectures {
		im, err := storeImage(ctx, arch, shown, target, opts)
		if err != nil {
			return nil, fmt.Errorf("image for %s: %w", arch, err)
		}
		v.Images = append(v.Images, im)
	}
	return v, v.storeRoot(ctx, target)
}

// storeMetadata stores the EROFS metadata of the layer that src became. They tell
// nothing of the file's bytes, which are not read again. That layers stack
// (layer.Stackable) follows from their directories, which are all alike.
func storeMetadata(ctx context.Context, src source, target Target) (*index.Metadata, error) {
	f, err := os.CreateTemp("", "spate-layer-*")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := os.Remove(f.Name()); err != nil {
		return nil, err
	}
	if err := layer.Metadata(f, src.frame.around(io.LimitReader(anything{}, src.stamp.size))); err != nil {
		return nil, err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	text, err := io.ReadAll(f)
	if err != nil {
		return nil, err
	}
	desc := content.NewDescriptorFromBytes(oci.MediaTypeEROFS, text)
	m := &index.Metadata{Size: desc.Size}
	if m.Digest, err = piece.ParseDigest(desc.Digest.String()); err != nil {
		return nil, err
	}
	return m, push(ctx, target, desc, text)
}

// anything stands for bytes that do not matter.
type anything struct{}

func (anything) Read(p []byte) (int, error) { return len(p), nil }

// storeImage stores the image for an architecture, and its index.
func storeImage(ctx context.Context, arch string, entries []index.Entry, target Target, opts Options) (im VolumeImage, err error) {
	config := ocispec.Image{
		Platform: ocispec.Platform{Architecture: arch, OS: "linux"},
		RootFS:   ocispec.RootFS{Type: "layers"},
	}
	if !opts.CreatedAt.IsZero() {
		created := opts.createdAt()
		config.Created = &created
	}
	manifest := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	for _, e := range entries {
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, e.Blob.Digest) // a plain tar is its own
		manifest.Layers = append(manifest.Layers, ocispec.Descriptor{
			MediaType: ocispec.MediaTypeImageLayer, Digest: e.Blob.Digest, Size: e.Blob.Size,
		})
	}
	if manifest.Config, err = storeJSON(ctx, target, ocispec.MediaTypeImageConfig, config); err != nil {
		return im, err
	}
	if im.Descriptor, err = storeJSON(ctx, target, manifest.MediaType, manifest); err != nil {
		return im, err
	}
	im.Descriptor.Platform = &config.Platform
	if im.Index, err = index.Build(im.Descriptor, entries); err != nil {
		return im, err
	}
	return im, im.Index.Push(ctx, target)
}

// storeRoot stores the image index. The images come first: some runtimes take
// an entry without a platform for one that fits.
func (v *Volume) storeRoot(ctx context.Context, target Target) (err error) {
	root := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	for _, im := range v.Images {
		root.Manifests = append(root.Manifests, im.Descriptor)
	}
	root.Manifests = append(root.Manifests, v.Descriptor)
	v.Root, err = storeJSON(ctx, target, root.MediaType, root)
	return err
}

func storeJSON(ctx context.Context, target Target, mediaType string, doc any) (ocispec.Descriptor, error) {
	text, err := json.Marshal(doc)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	desc := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(text), Size: int64(len(text))}
	return desc, push(ctx, target, desc, text)
}
