// Package index is the artifact that makes lazy reading safe: a referrer of a
// manifest that lists its objects with their roots, so that whoever trusts 32
// bytes of manifest digest can check every piece of every object alone.
//
// It is an OCI 1.1 image manifest whose subject is the manifest that it
// describes. Its config is the list of objects. Its layers are, each group in
// the order of the list:
//
//   - the piece layers of the objects that have more than one piece
//   - the EROFS metadata of the objects that have some, the same bytes once
//   - the objects themselves that the subject's layers hold compressed only
//
// so that a registry keeps them, and any object can be read from the middle by
// a range of the blob that has its digest. The same objects make the same bytes
// on any machine.
//
// The config has one spelling: the one that Build writes. Anything else, an
// added field too, is refused, and a change of the format is a new version.
package index

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/spate-project/spate/cache/piece"
	"github.com/spate-project/spate/oci"
)

const (
	// Version is the version of the config that this package writes and reads.
	Version = 2

	// MaxManifest bounds an index manifest, in bytes, as registries do.
	MaxManifest = 4 << 20

	// MaxConfig bounds the list of objects, in bytes.
	MaxConfig = 16 << 20

	// MaxObjects bounds how many objects an index lists.
	MaxObjects = 16384

	// MaxLayers bounds the piece layers of an index together, in bytes. It is what 2 TiB of
	// objects have at the least piece length, and what a reader holds in memory.
	MaxLayers = 256 << 20

	// MaxEROFS bounds the EROFS metadata of one object, and MaxEROFSTotal those
	// of an index together, in bytes.
	MaxEROFS      = 256 << 20
	MaxEROFSTotal = 1 << 30
)

// An Object is one object of an index and the blobs that hold it in the registry.
type Object struct {
	// Blob is the layer that the object comes from. Where it equals Digest the
	// blob is the object, byte by byte; else it is compressed, and the object is
	// a blob of its own beside it.
	Blob piece.Digest `json:"blob"`

	piece.Object

	// Layer is the blob that holds the piece layer; nil for an object of at most one piece.
	Layer *piece.Digest `json:"layer,omitempty"`

	// EROFS is the blob that holds the EROFS metadata; nil for an object that is
	// not a tar layer of an image, or one that cannot be shown without unpacking it.
	EROFS *Metadata `json:"erofs,omitempty"`
}

// Metadata names the EROFS metadata of an object. Load does not fetch them: whoever
// needs them fetches MetadataDescriptor and checks the digest, as remote.Repository does.
type Metadata struct {
	Digest piece.Digest `json:"digest"`
	Size   int64        `json:"size"` // bytes
}

// Descriptor describes the blob that is the object, byte by byte: what an origin
// reads ranges of. It is in the repository of the index.
func (o Object) Descriptor() ocispec.Descriptor {
	return describe(ocispec.MediaTypeImageLayer, o.Digest, o.Size)
}

// MetadataDescriptor describes the EROFS metadata of o, which has some.
func (o Object) MetadataDescriptor() ocispec.Descriptor {
	return describe(oci.MediaTypeEROFS, o.EROFS.Digest, o.EROFS.Size)
}

func describe(mediaType string, d piece.Digest, size int64) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: mediaType, Digest: digest.Digest(d.String()), Size: size}
}

// config is the list of objects as the registry stores it.
type config struct {
	Version int      `json:"version"`
	Objects []Object `json:"objects"`
}

// encode writes c in its one spelling.
func (c config) encode() ([]byte, error) {
	if c.Objects == nil {
		c.Objects = []Object{}
	}
	return json.Marshal(c)
}

// parseConfig reads what encode wrote.
func parseConfig(b []byte) (config, error) {
	var c config
	if len(b) > MaxConfig {
		return config{}, fmt.Errorf("it has more than %d bytes", MaxConfig)
	}
	var probe struct {
		Version int `json:"version"`
	}
	if err := json.Unmarshal(b, &probe); err != nil {
		return config{}, err
	}
	if probe.Version != Version {
		return config{}, fmt.Errorf("it has version %d, this program knows version %d; use a newer one", probe.Version, Version)
	}
	if err := json.Unmarshal(b, &c); err != nil {
		return config{}, err
	}
	if again, err := c.encode(); err != nil || !bytes.Equal(again, b) {
		return config{}, fmt.Errorf("it is not written as version %d is", Version)
	}
	return c, c.check()
}

// check reports whether the objects of c can be an index at all. It proves no root.
func (c config) check() error {
	if len(c.Objects) > MaxObjects {
		return fmt.Errorf("it lists %d objects, more than %d", len(c.Objects), MaxObjects)
	}
	var layers int64
	metadata := make(map[piece.Digest]int64)
	seen := make(map[string]bool, 3*len(c.Objects))
	once := func(what string, d piece.Digest) error {
		key := what + " " + d.String()
		if seen[key] {
			return fmt.Errorf("%s is listed twice", key)
		}
		seen[key] = true
		return nil
	}
	for _, o := range c.Objects {
		if err := errors.Join(o.Check(), once("object", o.Digest), once("blob", o.Blob)); err != nil {
			return err
		}
		if (o.Layer != nil) != (o.Pieces() > 1) {
			return fmt.Errorf("object %s has %d pieces, which does not go with having a piece layer or not", o.Digest, o.Pieces())
		}
		if o.Layer != nil {
			if err := once("piece layer", *o.Layer); err != nil {
				return err
			}
			if layers += o.layerDescriptor().Size; layers > MaxLayers {
				return fmt.Errorf("its piece layers have more than %d bytes", MaxLayers)
			}
		}
		if o.EROFS == nil {
			continue
		}
		if o.EROFS.Size <= 0 || o.EROFS.Size > MaxEROFS {
			return fmt.Errorf("object %s has EROFS metadata of %d bytes, outside 1..%d", o.Digest, o.EROFS.Size, MaxEROFS)
		}
		if size, ok := metadata[o.EROFS.Digest]; ok && size != o.EROFS.Size {
			return fmt.Errorf("EROFS metadata %s has two sizes", o.EROFS.Digest)
		}
		metadata[o.EROFS.Digest] = o.EROFS.Size
	}
	var total int64
	for _, size := range metadata {
		total += size
	}
	if total > MaxEROFSTotal {
		return fmt.Errorf("its EROFS metadata have more than %d bytes", MaxEROFSTotal)
	}
	return nil
}

// layerDescriptor describes the piece layer of o, which has more than one piece.
func (o Object) layerDescriptor() ocispec.Descriptor {
	return describe(oci.MediaTypePieceLayer, *o.Layer, int64(o.Pieces())*int64(len(piece.Hash{})))
}

// layers returns the layers that the index manifest of c has, in their order, or
// the empty descriptor where there is none, since a manifest needs a layer.
func (c config) layers() []ocispec.Descriptor {
	var layers, metadata, expanded []ocispec.Descriptor
	listed := make(map[piece.Digest]bool)
	for _, o := range c.Objects {
		if o.Layer != nil {
			layers = append(layers, o.layerDescriptor())
		}
		// Objects that differ in the contents of files alone have the same metadata.
		if o.EROFS != nil && !listed[o.EROFS.Digest] {
			listed[o.EROFS.Digest] = true
			metadata = append(metadata, o.MetadataDescriptor())
		}
		if o.Blob != o.Digest {
			expanded = append(expanded, o.Descriptor())
		}
	}
	layers = slices.Concat(layers, metadata, expanded)
	if len(layers) == 0 {
		layers = append(layers, emptyLayer())
	}
	return layers
}

// emptyLayer is OCI's empty descriptor without its optional data.
func emptyLayer() ocispec.Descriptor {
	return ocispec.Descriptor{
		MediaType: ocispec.MediaTypeEmptyJSON,
		Digest:    ocispec.DescriptorEmptyJSON.Digest,
		Size:      ocispec.DescriptorEmptyJSON.Size,
	}
}
