package index

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
	"oras.land/oras-go/v2/content"

	"github.com/spate-project/spate/cache/piece"
	"github.com/spate-project/spate/oci"
)

// An Index is an index that was read and whose piece layers are proven against
// its roots. It is only worth as much as the manifest that it was loaded from.
// It is immutable and safe for concurrent use.
type Index struct {
	subject ocispec.Descriptor
	objects []Object
	trees   map[piece.Digest]*piece.Tree
}

// Load reads the index whose manifest has the given bytes, which the caller
// trusts, and fetches the list of objects and the piece layers by their digests;
// EROFS metadata and objects stay where they are. It fails on anything that
// Build would not have written, and before it holds more than the limits allow.
func Load(ctx context.Context, fetcher content.Fetcher, manifest []byte) (*Index, error) {
	x, err := load(ctx, fetcher, manifest)
	if err != nil {
		return nil, fmt.Errorf("load index %s: %w", digest.FromBytes(manifest), err)
	}
	return x, nil
}

func load(ctx context.Context, fetcher content.Fetcher, manifest []byte) (*Index, error) {
	m, err := parseManifest(manifest)
	if err != nil {
		return nil, fmt.Errorf("its manifest: %w", err)
	}
	text, err := content.FetchAll(ctx, fetcher, m.Config)
	if err != nil {
		return nil, fmt.Errorf("its list of objects: %w", err)
	}
	c, err := parseConfig(text)
	if err != nil {
		return nil, fmt.Errorf("its list of objects: %w", err)
	}
	if !slices.EqualFunc(c.layers(), m.Layers, content.Equal) {
		return nil, fmt.Errorf("its manifest has other layers than its list of objects asks for")
	}
	trees, err := loadTrees(ctx, fetcher, c.Objects)
	if err != nil {
		return nil, err
	}
	return &Index{subject: *m.Subject, objects: c.Objects, trees: trees}, nil
}

// parseManifest reads the manifest of an index. It accepts fields that it does not know, as OCI asks for.
func parseManifest(b []byte) (*ocispec.Manifest, error) {
	if len(b) > MaxManifest {
		return nil, fmt.Errorf("it has more than %d bytes", MaxManifest)
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(b, &m); err != nil {
		return nil, err
	}
	switch {
	case m.SchemaVersion != 2 || m.MediaType != ocispec.MediaTypeImageManifest:
		return nil, fmt.Errorf("it is not an image manifest but %q", m.MediaType)
	case m.ArtifactType != oci.ArtifactTypeIndex:
		return nil, fmt.Errorf("its artifactType is %q instead of %q", m.ArtifactType, oci.ArtifactTypeIndex)
	case m.Config.MediaType != oci.MediaTypeIndexConfig:
		return nil, fmt.Errorf("its config is %q instead of %q", m.Config.MediaType, oci.MediaTypeIndexConfig)
	case m.Config.Size < 0 || m.Config.Size > MaxConfig:
		return nil, fmt.Errorf("its list of objects has %d bytes, more than %d", m.Config.Size, MaxConfig)
	case m.Subject == nil:
		return nil, fmt.Errorf("it has no subject")
	}
	if _, err := piece.ParseDigest(m.Subject.Digest.String()); err != nil {
		return nil, fmt.Errorf("its subject: %w", err)
	}
	return &m, nil
}

// loadTrees fetches the piece layers of objects and proves them.
func loadTrees(ctx context.Context, fetcher content.Fetcher, objects []Object) (map[piece.Digest]*piece.Tree, error) {
	proven := make([]*piece.Tree, len(objects))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(parallel)
	for i, o := range objects {
		g.Go(func() (err error) {
			var layer []byte
			if o.Layer != nil {
				if layer, err = content.FetchAll(ctx, fetcher, o.layerDescriptor()); err != nil {
					return fmt.Errorf("the piece layer of object %s: %w", o.Digest, err)
				}
			}
			proven[i], err = piece.NewTree(o.Object, layer)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	trees := make(map[piece.Digest]*piece.Tree, len(objects))
	for _, tree := range proven {
		trees[tree.Object().Digest] = tree
	}
	return trees, nil
}

// Subject returns the manifest that the index says it describes. Whoever got the
// index for a manifest compares: an index is signed, but so are others.
func (x *Index) Subject() ocispec.Descriptor { return x.subject }

// Objects returns the objects in their order. The caller must not change them.
func (x *Index) Objects() []Object { return x.objects }

// Tree returns the tree of the object with the given digest; ok is false when
// the index does not list it.
func (x *Index) Tree(object piece.Digest) (tree *piece.Tree, ok bool) {
	tree, ok = x.trees[object]
	return tree, ok
}
