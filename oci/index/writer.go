package index

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
	"oras.land/oras-go/v2/content"
	"oras.land/oras-go/v2/errdef"

	"github.com/spate-project/spate/cache/piece"
	"github.com/spate-project/spate/oci"
)

// parallel is how many requests Push and Load have under way at once.
const parallel = 8

// An Entry is an object to be listed and the blob, a layer of the subject, that holds it.
type Entry struct {
	Blob  ocispec.Descriptor // only the digest is used
	Tree  *piece.Tree
	EROFS *Metadata // nil where there are none
}

// An Artifact is an index that was built: its manifest and what of its parts is
// small, the list of objects and the piece layers.
type Artifact struct {
	Descriptor ocispec.Descriptor // of Manifest
	Manifest   []byte             // not to be changed

	blobs map[digest.Digest][]byte
	descs []ocispec.Descriptor // of blobs, the list of objects last
}

// Build makes the index of subject, the manifest whose layers the entries are,
// in their order. An object that several entries have is listed once, with the
// first one's blob. The result depends on nothing but the arguments.
func Build(subject ocispec.Descriptor, entries []Entry) (*Artifact, error) {
	a := &Artifact{blobs: make(map[digest.Digest][]byte)}
	c := config{Version: Version}
	listed := make(map[piece.Digest]bool)
	for _, e := range entries {
		object := Object{Object: e.Tree.Object(), EROFS: e.EROFS}
		if listed[object.Digest] {
			continue
		}
		listed[object.Digest] = true
		blob, err := piece.ParseDigest(e.Blob.Digest.String())
		if err != nil {
			return nil, fmt.Errorf("build index of %s: %w", subject.Digest, err)
		}
		object.Blob = blob
		if layer := e.Tree.Layer(); layer != nil {
			d := piece.Digest(a.add(oci.MediaTypePieceLayer, layer))
			object.Layer = &d
		}
		c.Objects = append(c.Objects, object)
	}
	if err := c.check(); err != nil {
		return nil, fmt.Errorf("build index of %s: %w", subject.Digest, err)
	}
	text, err := c.encode()
	if err != nil {
		return nil, fmt.Errorf("build index of %s: %w", subject.Digest, err)
	}
	if len(text) > MaxConfig {
		return nil, fmt.Errorf("build index of %s: its list of objects has more than %d bytes", subject.Digest, MaxConfig)
	}
	layers := c.layers()
	if layers[0].MediaType == ocispec.MediaTypeEmptyJSON {
		a.add(ocispec.MediaTypeEmptyJSON, ocispec.DescriptorEmptyJSON.Data)
	}
	a.add(oci.MediaTypeIndexConfig, text)
	a.Manifest, err = json.Marshal(ocispec.Manifest{
		Versioned:    specs.Versioned{SchemaVersion: 2},
		MediaType:    ocispec.MediaTypeImageManifest,
		ArtifactType: oci.ArtifactTypeIndex,
		Config:       a.descs[len(a.descs)-1],
		Layers:       layers,
		Subject:      &ocispec.Descriptor{MediaType: subject.MediaType, Digest: subject.Digest, Size: subject.Size},
	})
	if err != nil {
		return nil, fmt.Errorf("build index of %s: %w", subject.Digest, err)
	}
	if len(a.Manifest) > MaxManifest {
		return nil, fmt.Errorf("build index of %s: its manifest has more than %d bytes", subject.Digest, MaxManifest)
	}
	a.Descriptor = content.NewDescriptorFromBytes(ocispec.MediaTypeImageManifest, a.Manifest)
	a.Descriptor.ArtifactType = oci.ArtifactTypeIndex
	return a, nil
}

// add keeps b as a part of the artifact and returns its SHA-256.
func (a *Artifact) add(mediaType string, b []byte) [sha256.Size]byte {
	sum := sha256.Sum256(b)
	desc := ocispec.Descriptor{MediaType: mediaType, Digest: digest.NewDigestFromBytes(digest.SHA256, sum[:]), Size: int64(len(b))}
	a.descs = append(a.descs, desc)
	a.blobs[desc.Digest] = b
	return sum
}

// Push stores the index, its manifest last. It is found as a referrer of its
// subject from then on, which need not be stored yet. What target holds already
// is not sent again. EROFS metadata and expanded objects the caller stores
// beforehand: a registry refuses a manifest that lacks a layer.
func (a *Artifact) Push(ctx context.Context, target content.Storage) error {
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(parallel)
	for _, desc := range a.descs {
		g.Go(func() error { return push(gctx, target, desc, a.blobs[desc.Digest]) })
	}
	if err := g.Wait(); err != nil {
		return fmt.Errorf("push index %s: %w", a.Descriptor.Digest, err)
	}
	if err := push(ctx, target, a.Descriptor, a.Manifest); err != nil {
		return fmt.Errorf("push index %s: %w", a.Descriptor.Digest, err)
	}
	return nil
}

func push(ctx context.Context, target content.Storage, desc ocispec.Descriptor, b []byte) error {
	if ok, err := target.Exists(ctx, desc); ok || err != nil {
		return err
	}
	err := target.Push(ctx, desc, bytes.NewReader(b))
	if errors.Is(err, errdef.ErrAlreadyExists) {
		return nil
	}
	return err
}
