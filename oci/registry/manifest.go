package registry

import (
	"encoding/json"
	"fmt"
	"mime"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/spate-project/spate/oci"
)

// A Manifest is an image manifest or an index. It is immutable.
type Manifest struct {
	// Descriptor says what the manifest is, as a list of referrers does:
	// media type, digest, size, artifact type and annotations.
	Descriptor ocispec.Descriptor

	// Bytes are exactly what was pushed.
	Bytes []byte

	// Subject is what the manifest refers to; empty when it refers to nothing.
	Subject digest.Digest

	// Blobs are the config and the layers, without those that are not to be
	// distributed. Manifests are the entries of an index.
	Blobs, Manifests []ocispec.Descriptor
}

// ParseManifest reads a manifest and computes its digest with algorithm. The
// media type is a function of the bytes alone, so none is stored beside them: a
// manifest without the field is OCI's index when it has manifests, else OCI's
// image manifest. The error is a *ManifestError. ParseManifest keeps raw.
func ParseManifest(raw []byte, algorithm digest.Algorithm) (*Manifest, error) {
	var doc struct {
		SchemaVersion int                   `json:"schemaVersion"`
		MediaType     string                `json:"mediaType"`
		ArtifactType  string                `json:"artifactType"`
		Config        *ocispec.Descriptor   `json:"config"`
		Layers        []ocispec.Descriptor  `json:"layers"`
		Manifests     *[]ocispec.Descriptor `json:"manifests"`
		Subject       *ocispec.Descriptor   `json:"subject"`
		Annotations   map[string]string     `json:"annotations"`
	}
	if err := json.Unmarshal(raw, &doc); err != nil {
		return nil, invalid("it is not the JSON of a manifest: %v", err)
	}
	if doc.SchemaVersion != 2 {
		return nil, invalid("schemaVersion is %d, not 2", doc.SchemaVersion)
	}
	if doc.MediaType == "" {
		doc.MediaType = ocispec.MediaTypeImageManifest
		if doc.Manifests != nil {
			doc.MediaType = ocispec.MediaTypeImageIndex
		}
	}
	m := &Manifest{Bytes: raw}
	switch doc.MediaType {
	case ocispec.MediaTypeImageManifest, oci.MediaTypeDockerManifest:
		if doc.Config == nil || doc.Manifests != nil {
			return nil, invalid("%s has a config and no manifests", doc.MediaType)
		}
		if doc.ArtifactType == "" {
			doc.ArtifactType = doc.Config.MediaType
		}
		m.Blobs = append(m.Blobs, *doc.Config)
		for _, l := range doc.Layers {
			if distributable(l.MediaType) {
				m.Blobs = append(m.Blobs, l)
			}
		}
	case ocispec.MediaTypeImageIndex, oci.MediaTypeDockerList:
		// Readers that take one document for the other are an attack (CVE-2021-41190).
		if doc.Manifests == nil || doc.Config != nil || doc.Layers != nil {
			return nil, invalid("%s has manifests, no config and no layers", doc.MediaType)
		}
		m.Manifests = *doc.Manifests
	default:
		return nil, invalid("media type %q is unknown; this registry keeps image manifests and indexes of OCI and Docker", doc.MediaType)
	}
	if doc.Subject != nil {
		m.Subject = doc.Subject.Digest
		if err := m.Subject.Validate(); err != nil {
			return nil, invalid("its subject has digest %q: %v", m.Subject, err)
		}
	}
	for _, list := range [][]ocispec.Descriptor{m.Blobs, m.Manifests} {
		for _, d := range list {
			if err := d.Digest.Validate(); err != nil {
				return nil, invalid("it refers to digest %q: %v", d.Digest, err)
			}
			if d.Size < 0 {
				return nil, invalid("it refers to %s with size %d", d.Digest, d.Size)
			}
		}
	}
	m.Descriptor = ocispec.Descriptor{
		MediaType: doc.MediaType, Digest: algorithm.FromBytes(raw), Size: int64(len(raw)),
		ArtifactType: doc.ArtifactType, Annotations: doc.Annotations,
	}
	return m, nil
}

func invalid(format string, args ...any) error {
	return &ManifestError{Reason: fmt.Sprintf(format, args...)}
}

// matches reports whether a Content-Type may stand before m. Parameters are
// ignored, a missing one says nothing.
func (m *Manifest) matches(contentType string) error {
	if contentType == "" {
		return nil
	}
	t, _, err := mime.ParseMediaType(contentType)
	if err != nil {
		return invalid("Content-Type %q: %v", contentType, err)
	}
	if t != m.Descriptor.MediaType {
		return invalid("it was sent as Content-Type %s, but is a %s", t, m.Descriptor.MediaType)
	}
	return nil
}

// distributable reports whether a layer is pushed at all; the others are had from elsewhere.
func distributable(mediaType string) bool {
	return !strings.HasPrefix(mediaType, "application/vnd.oci.image.layer.nondistributable.") &&
		!strings.HasPrefix(mediaType, "application/vnd.docker.image.rootfs.foreign.")
}
