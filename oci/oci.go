// Package oci holds the names that spate's artifacts use in a registry: media
// types, artifact types and annotations. Its rooms do the work: registry
// serves, remote asks, model packs, image takes apart, index proves, layer expands.
package oci

import "strings"

// CNCF ModelPack (model-spec, docs/spec.md): a model as an OCI image manifest.
const (
	// ArtifactTypeModel is the artifactType of a ModelPack manifest.
	ArtifactTypeModel = "application/vnd.cncf.model.manifest.v1+json"

	// MediaTypeModelConfig is the media type of its config.
	MediaTypeModelConfig = "application/vnd.cncf.model.config.v1+json"

	// Layer kinds; a layer's media type is a kind and a packing: LayerWeight + PackingRaw.
	LayerWeight       = "application/vnd.cncf.model.weight.v1"
	LayerWeightConfig = "application/vnd.cncf.model.weight.config.v1"
	LayerDoc          = "application/vnd.cncf.model.doc.v1"
	LayerCode         = "application/vnd.cncf.model.code.v1"
	LayerDataset      = "application/vnd.cncf.model.dataset.v1"

	// Packings. Raw is one file as it is, neither archived nor compressed.
	PackingRaw     = ".raw"
	PackingTar     = ".tar"
	PackingTarGzip = ".tar+gzip"
	PackingTarZstd = ".tar+zstd"

	// AnnotationFilepath holds a layer's path within the model, slash-separated and relative.
	AnnotationFilepath = "org.cncf.model.filepath"

	// AnnotationFileMetadata holds a JSON object: name, mode, uid, gid, size, mtime, typeflag.
	AnnotationFileMetadata = "org.cncf.model.file.metadata+json"
)

// SplitModelLayer splits the media type of a ModelPack layer into its kind, one
// of the Layer constants, and its packing. It also knows the names that ModelPack
// had before it joined the CNCF. ok is false for any other media type.
func SplitModelLayer(mediaType string) (kind, packing string, ok bool) {
	const prefix, legacyPrefix = "application/vnd.cncf.model.", "application/vnd.cnai.model."
	if rest, ok := strings.CutPrefix(mediaType, legacyPrefix); ok {
		mediaType = prefix + rest
	}
	for _, kind := range []string{LayerWeight, LayerWeightConfig, LayerDoc, LayerCode, LayerDataset} {
		packing, ok := strings.CutPrefix(mediaType, kind)
		if !ok {
			continue
		}
		switch packing {
		case PackingRaw, PackingTar, PackingTarGzip, PackingTarZstd:
			return kind, packing, true
		}
	}
	return "", "", false
}

// The index: the referrer that lists a manifest's objects with their roots.
const (
	// ArtifactTypeIndex is the artifactType of the index manifest. Its subject is
	// the manifest that it describes, its layers are what proves and shows the objects.
	ArtifactTypeIndex = "application/vnd.spate.index.v1"

	// MediaTypeIndexConfig is the media type of its config, the list of objects.
	MediaTypeIndexConfig = "application/vnd.spate.index.config.v1+json"

	// MediaTypePieceLayer is the media type of one object's piece layer: its
	// piece hashes, 32 bytes each, in order (BEP 52, "piece layers").
	MediaTypePieceLayer = "application/vnd.spate.piece-layer.v1"

	// MediaTypeEROFS is the media type of the EROFS metadata of one object, a tar
	// layer: an image of file system EROFS whose files' data are in the object.
	MediaTypeEROFS = "application/vnd.spate.erofs.v1"
)

// The trace: the referrer that says what a start of its subject read.
const (
	// ArtifactTypeTrace is the artifactType of a trace's manifest.
	ArtifactTypeTrace = "application/vnd.spate.trace.v1"

	// MediaTypeTrace is the media type of its one layer, the reads.
	MediaTypeTrace = "application/vnd.spate.trace.v1+json"
)

// The warm set: what the nodes of a pool always hold. It is an artifact of its
// own, not a referrer, in a repository that the pool's name is a tag of.
const (
	// ArtifactTypeWarmSet is the artifactType of a warm set's manifest.
	ArtifactTypeWarmSet = "application/vnd.spate.warmset.v1"

	// MediaTypeWarmSet is the media type of its one layer, the set.
	MediaTypeWarmSet = "application/vnd.spate.warmset.v1+json"

	// AnnotationWarmSetPrevious holds the digest of the manifest that the set
	// replaced; the first one of a pool has none.
	AnnotationWarmSetPrevious = "dev.spate.warmset.previous"
)

// ArtifactTypeBundle is the artifactType and the layer media type under which
// cosign v3 attaches a Sigstore bundle to what it signs.
const ArtifactTypeBundle = "application/vnd.dev.sigstore.bundle.v0.3+json"

// Docker's image manifest V2, schema 2, and its list of manifests: what OCI's
// image manifest and image index are called in older images.
const (
	MediaTypeDockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	MediaTypeDockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
)
