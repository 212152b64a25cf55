package image

import (
	"fmt"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/spate-project/spate/cache/piece"
	"github.com/spate-project/spate/oci/index"
)

// An Indexed is a layer together with what an index says of its object.
type Indexed struct {
	Layer

	// Tree proves every piece of the object.
	Tree *piece.Tree

	// Object is the blob that is the object, byte by byte: what an origin reads ranges of.
	Object ocispec.Descriptor

	// EROFS is the blob with the object's EROFS metadata. It is nil for a layer
	// that has none and must be unpacked.
	EROFS *ocispec.Descriptor
}

// Find returns each of layers, in their order, with what x says of it. It fails
// when x does not list the object of one.
func Find(layers []Layer, x *index.Index) ([]Indexed, error) {
	objects := make(map[piece.Digest]index.Object, len(x.Objects()))
	for _, o := range x.Objects() {
		objects[o.Digest] = o
	}
	found := make([]Indexed, len(layers))
	for i, l := range layers {
		o, ok := objects[l.DiffID]
		if !ok {
			return nil, fmt.Errorf("the index does not list object %s of layer %d, %s", l.DiffID, i, l.Blob.Digest)
		}
		found[i] = Indexed{Layer: l, Object: o.Descriptor()}
		found[i].Tree, _ = x.Tree(o.Digest) // an index has a tree for each object
		if o.EROFS != nil {
			desc := o.MetadataDescriptor()
			found[i].EROFS = &desc
		}
	}
	return found, nil
}
