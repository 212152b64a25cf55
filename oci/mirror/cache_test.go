package mirror

import (
	"bytes"
	"context"
	"io"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/spate-project/spate/cache"
	"github.com/spate-project/spate/cache/piece"
)

// A cached is a mesh of one object that lies in a real cache, which peers fill.
type cached struct {
	object *cache.Object
	peer   []byte // what a peer has for the object
}

func (c *cached) Open(ctx context.Context, _ string, blob ocispec.Descriptor) (io.ReadSeekCloser, error) {
	if c.object.Tree().Object().Digest.String() != blob.Digest.String() {
		return nil, piece.ErrNotHere
	}
	return struct {
		io.ReadSeeker
		io.Closer
	}{io.NewSectionReader(waiting{ctx, c.object}, 0, blob.Size), io.NopCloser(nil)}, nil
}

func (c *cached) Pass(context.Context, ocispec.Descriptor) Passed { return Passed{Reason: NoMesh} }

func (c *cached) Ahead(piece.Digest, int, int) {}

// Fetch is the peer's part.
func (c *cached) Fetch(_ context.Context, _ piece.Digest, i int) error {
	off, n := c.object.Tree().Object().Span(i)
	v, err := c.object.Tree().Verify(i, c.peer[off:off+n])
	if err != nil {
		return err
	}
	return c.object.Put(v)
}

type waiting struct {
	ctx context.Context
	*cache.Object
}

func (w waiting) ReadAt(p []byte, off int64) (int, error) { return w.ReadContext(w.ctx, p, off) }

// TestCache serves a blob whose pieces arrive while it is read, with the
// registry down, and one of which a piece never arrives right.
func TestCache(t *testing.T) {
	layer := random(3<<20 + 5)
	h := piece.NewHasher(int64(len(layer)))
	must(h.Write(layer))
	tree := must(h.Sum())
	wrong := bytes.Clone(layer)
	wrong[2<<20] ^= 1
	for name, peer := range map[string][]byte{"right": layer, "wrong": wrong} {
		t.Run(name, func(t *testing.T) {
			store := must(cache.Open(t.TempDir(), cache.Options{}))
			defer store.Close()
			mesh := &cached{peer: peer}
			mesh.object = must(store.Open(tree, mesh))
			defer mesh.object.Close()
			b := newBench(t, func(_ *bench, opts *Options) { opts.Blobs = mesh })
			img := b.image("v1", layer)
			b.sign(img.desc)
			if a := b.get("manifests/v1"); a.status != 200 {
				t.Fatalf("%s", a.body)
			}
			b.server.Close()
			blob := "blobs/" + digest.FromBytes(layer).String()
			b.get(blob, "Range", "bytes=1000000-1000999").want(t, 206, layer[1000000:1001000])
			if name == "right" {
				b.get(blob).want(t, 200, layer)
				return
			}
			a := b.get(blob)
			if a.err == nil || len(a.body) > 2<<20 || !bytes.HasPrefix(layer, a.body) {
				t.Errorf("%d bytes, error %v", len(a.body), a.err)
			}
		})
	}
}
