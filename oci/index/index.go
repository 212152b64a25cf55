// Package index is the artifact that makes lazy reading safe: a referrer of a
// manifest that lists its objects with their roots, so that whoever trusts 32
// bytes of manifest digest can check every piece of every object alone.
//
// It is an OCI 1.1 image manifest whose subject is the manifest that it
// describes. Its config is the list of objects; its layers are the piece layers
// of the objects that have more than one piece, in the order of the list. The
// same objects make the same bytes on any machine.
//
// The config has one spelling: the one that Build writes. Anything else, an
// added field too, is refused, and a change of the format is a new version.
package index

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/spate-project/spate/cache/piece"
	"github.com/spate-project/spate/oci"
)

const (
	// Version is the version of the config that this package writes and reads.
	Version = 1

	// MaxManifest bounds an index manifest, in bytes, as registries do.
	MaxManifest = 4 << 20

	// MaxConfig bounds the list of objects, in bytes.
	MaxConfig = 16 << 20

	// MaxObjects bounds how many objects an index lists.
	MaxObjects = 16384

	// MaxLayers bounds the piece layers of an index together, in bytes. It is what 2 TiB of
	// objects have at the least piece length, and what a reader holds in memory.
	MaxLayers = 256 << 20
)

// An Object is one object of an index and the blob that holds it in the registry.
type Object struct {
	// Blob is the layer that the object comes from. Where it equals Digest the
	// blob is the object, byte by byte; else the blob has to be expanded.
	Blob piece.Digest `json:"blob"`

	piece.Object

	// Layer is the blob that holds the piece layer; nil for an object of at most one piece.
	Layer *piece.Digest `json:"layer,omitempty"`
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
		if o.Layer == nil {
			continue
		}
		if err := once("piece layer", *o.Layer); err != nil {
			return err
		}
		if layers += o.layerDescriptor().Size; layers > MaxLayers {
			return fmt.Errorf("its piece layers have more than %d bytes", MaxLayers)
		}
	}
	return nil
}

// layerDescriptor describes the piece layer of o, which has more than one piece.
func (o Object) layerDescriptor() ocispec.Descriptor {
	return ocispec.Descriptor{
		MediaType: oci.MediaTypePieceLayer,
		Digest:    digest.Digest(o.Layer.String()),
		Size:      int64(o.Pieces()) * int64(len(piece.Hash{})),
	}
}

// layers returns the layers that the index manifest of c has: the piece layers,
// or the empty descriptor where there is none, since a manifest needs a layer.
func (c config) layers() []ocispec.Descriptor {
	var layers []ocispec.Descriptor
	for _, o := range c.Objects {
		if o.Layer != nil {
			layers = append(layers, o.layerDescriptor())
		}
	}
	if layers == nil {
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
