package model

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"path"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/spate-project/spate/cache/piece"
	"github.com/spate-project/spate/oci"
)

// The names that ModelPack had before it joined the CNCF.
const (
	legacyArtifactType   = "application/vnd.cnai.model.manifest.v1+json"
	legacyFilepath       = "org.cnai.model.filepath"
	legacyFileMetadata   = "org.cnai.model.file.metadata+json"
	maxPath, maxPathPart = 1024, 255
)

// A File is a layer of a model: one file as it is, or an archive of files.
type File struct {
	// Path is where the file belongs in the model: relative, slash-separated,
	// clean, and never out of it. For an archive it is only a name for people.
	Path string

	Mode fs.FileMode // 0o644, or 0o755 for what can be run
	Size int64       // bytes of the layer's blob, which for a plain file is the file

	// Packing is one of the oci.Packing constants: oci.PackingRaw for a plain file.
	Packing string

	// Descriptor is the layer as the manifest has it.
	Descriptor ocispec.Descriptor
}

// Archive reports whether f is an archive of files instead of a file.
func (f File) Archive() bool { return f.Packing != oci.PackingRaw }

// fileMetadata is the value of oci.AnnotationFileMetadata. Pack writes the same
// values for every file of a mode and size, since nothing else may depend on the machine.
type fileMetadata struct {
	Name     string `json:"name"`
	Mode     uint32 `json:"mode"`
	UID      uint32 `json:"uid"`
	GID      uint32 `json:"gid"`
	Size     int64  `json:"size"`
	ModTime  string `json:"mtime"`
	Typeflag byte   `json:"typeflag"`
}

// Files reads the manifest of a model, whoever packed it. It fails on a path
// that leads out of the model, on paths that cannot all be there at once, and on
// anything that it does not know how to unpack.
func Files(manifest []byte) ([]File, error) {
	files, err := parseFiles(manifest)
	if err != nil {
		return nil, fmt.Errorf("read model manifest: %w", err)
	}
	return files, nil
}

func parseFiles(manifest []byte) ([]File, error) {
	if len(manifest) > MaxManifest {
		return nil, fmt.Errorf("it has more than %d bytes", MaxManifest)
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(manifest, &m); err != nil {
		return nil, err
	}
	switch {
	case m.SchemaVersion != 2 || m.MediaType != ocispec.MediaTypeImageManifest:
		return nil, fmt.Errorf("it is not an image manifest but %q", m.MediaType)
	case m.ArtifactType != oci.ArtifactTypeModel && m.ArtifactType != legacyArtifactType:
		return nil, fmt.Errorf("its artifactType is %q, not the %q of a model", m.ArtifactType, oci.ArtifactTypeModel)
	case len(m.Layers) == 0:
		return nil, fmt.Errorf("the model has no files")
	case len(m.Layers) > MaxFiles:
		return nil, fmt.Errorf("the model has %d files, more than %d", len(m.Layers), MaxFiles)
	}
	files := make([]File, len(m.Layers))
	var paths tree
	for i, layer := range m.Layers {
		f, err := parseFile(layer)
		if err != nil {
			return nil, fmt.Errorf("layer %d, %s: %w", i, layer.Digest, err)
		}
		if !f.Archive() {
			if err := paths.add(f.Path); err != nil {
				return nil, fmt.Errorf("layer %d, %s: %w", i, layer.Digest, err)
			}
		}
		files[i] = f
	}
	return files, nil
}

func parseFile(layer ocispec.Descriptor) (File, error) {
	_, packing, ok := oci.SplitModelLayer(layer.MediaType)
	if !ok {
		return File{}, fmt.Errorf("media type %q is not one of a model's layer", layer.MediaType)
	}
	if _, err := piece.ParseDigest(layer.Digest.String()); err != nil {
		return File{}, err
	}
	if layer.Size < 0 {
		return File{}, fmt.Errorf("it has %d bytes", layer.Size)
	}
	f := File{
		Path:       annotation(layer, oci.AnnotationFilepath, legacyFilepath, ocispec.AnnotationTitle),
		Mode:       0o644,
		Size:       layer.Size,
		Packing:    packing,
		Descriptor: layer,
	}
	if f.Archive() && f.Path == "" {
		f.Path = layer.Digest.Encoded()
	}
	if err := checkPath(f.Path); err != nil {
		return File{}, err
	}
	if text := annotation(layer, oci.AnnotationFileMetadata, legacyFileMetadata); text != "" {
		var metadata struct {
			Mode uint32 `json:"mode"`
		}
		if err := json.Unmarshal([]byte(text), &metadata); err != nil {
			return File{}, fmt.Errorf("file %q: its metadata: %w", f.Path, err)
		}
		f.Mode = plainMode(fs.FileMode(metadata.Mode))
	}
	return f, nil
}

// annotation returns the first of the named annotations that is there.
func annotation(desc ocispec.Descriptor, names ...string) string {
	for _, name := range names {
		if value := desc.Annotations[name]; value != "" {
			return value
		}
	}
	return ""
}

// plainMode keeps of a mode whether the file can be run.
func plainMode(mode fs.FileMode) fs.FileMode {
	if mode&0o111 != 0 {
		return 0o755
	}
	return 0o644
}

// checkPath reports why a path cannot be one in a model.
func checkPath(p string) error {
	switch {
	case !fs.ValidPath(p) || p == ".":
		return fmt.Errorf("path %q is not a clean relative one", p)
	case strings.ContainsFunc(p, func(r rune) bool { return r < ' ' || r == 0x7f || r == '\\' }):
		return fmt.Errorf("path %q has a backslash or a control character", p)
	case len(p) > maxPath:
		return fmt.Errorf("path %.40q… is longer than %d bytes", p, maxPath)
	}
	for part := range strings.SplitSeq(p, "/") {
		if len(part) > maxPathPart {
			return fmt.Errorf("path %.40q… has a name longer than %d bytes", p, maxPathPart)
		}
	}
	return nil
}

// A tree holds paths that can all be there at once. The zero value is empty.
type tree struct {
	files map[string]bool // true for a file, false for a directory
}

// add adds a file.
func (t *tree) add(file string) error {
	if t.files == nil {
		t.files = make(map[string]bool)
	}
	if isFile, ok := t.files[file]; ok {
		if isFile {
			return fmt.Errorf("file %q is there twice", file)
		}
		return fmt.Errorf("%q is a file and a directory", file)
	}
	t.files[file] = true
	for dir := path.Dir(file); dir != "."; dir = path.Dir(dir) {
		if t.files[dir] {
			return fmt.Errorf("%q is a file and a directory", dir)
		}
		t.files[dir] = false
	}
	return nil
}
