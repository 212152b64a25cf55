package image

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"
	"oras.land/oras-go/v2/content"

	"github.com/spate-project/spate/cache/piece"
	"github.com/spate-project/spate/oci/index"
)

// Options change how Build works. The zero value is good.
type Options struct {
	// Dir is where layers are kept while they are expanded, one file for each
	// that is under way, of the size of its object. Default os.TempDir(). No name
	// of a file stays there, whatever happens.
	Dir string

	// Concurrency is how many layers are under way at once. Default one for each processor.
	Concurrency int

	// MaxExpanded bounds, in bytes, what the compressed layers of the image expand
	// to, all together. Each one is then bounded too: to 100 times the size of its
	// blob, or 64 MiB where that is more. 0 is no bound, for images that are known to be good.
	MaxExpanded int64

	// Progress is told what has happened, by several goroutines at once. It must
	// not block for long: the work waits for it. Nil means that nobody cares.
	Progress func(Event)
}

func (o Options) progress(e Event) {
	if o.Progress != nil {
		o.Progress(e)
	}
}

// An Event tells how far Build is. The first one is Planned. Then come, for each
// layer, Started, any number of Advanced and Finished, those of one layer in
// order. An error ends the events: it is told by Build alone.
type Event struct {
	Step  Step
	Layer string // the digest of the layer's blob; empty for Planned

	// Done of Size bytes have been read: of the layer's blob, or of all blobs for Planned.
	Done, Size int64

	Layers int // how many layers there are, each counted once; for Planned only
}

// A Step is what an Event tells.
type Step int

const (
	Planned  Step = iota // it is known what there is to do
	Started              // a layer is under way
	Advanced             // more of a layer was read
	Finished             // a layer's object is known and stored
)

// Built is the index of an image, which Build has pushed.
type Built struct {
	Index   *index.Artifact
	Objects []Object // one for each layer, in their order
}

// An Object is what Build has made of a layer.
type Object struct {
	Layer
	Size  int64           // bytes of the object
	EROFS *index.Metadata // nil where there are none

	// Unsupported says why a layer of an image has no EROFS metadata: nodes have
	// to unpack it. Nil when it has some, and for the files of a model.
	Unsupported error

	tree     *piece.Tree
	metadata *os.File // EROFS; nil of a model's file
}

// Build makes the index of the image m and pushes it to repo, where m is. It
// reads each layer once, checks the object against the diffID of the image's
// config, and stores the objects that repo has compressed only, and all EROFS
// metadata, beside the index. What repo has already is not sent again. It never
// changes the image.
//
// What repo.Fetch opens must fail at its end when it is not what its digest
// names, as *remote.Repository's does. Memory does not depend on the size of a layer but for
// its pieces and its number of files. ctx governs all of it.
func Build(ctx context.Context, repo content.Storage, m Manifest, opts Options) (*Built, error) {
	built, err := build(ctx, repo, m, opts)
	if err != nil {
		return nil, fmt.Errorf("index %s: %w", m.Descriptor.Digest, err)
	}
	return built, nil
}

func build(ctx context.Context, repo content.Storage, m Manifest, opts Options) (*Built, error) {
	layers, err := Layers(ctx, repo, m.Bytes)
	if err != nil {
		return nil, err
	}
	planned := Event{Step: Planned}
	objects := make([]*Object, len(layers))
	known := make(map[layerKey]*Object) // some builders list an empty layer many times
	for i, l := range layers {
		key := layerKey{l.Blob.Digest, l.Blob.MediaType, l.DiffID}
		if known[key] == nil {
			known[key] = &Object{Layer: l}
			planned.Layers++
			planned.Size += l.Blob.Size
		}
		objects[i] = known[key]
	}
	opts.progress(planned)
	b := &builder{repo: repo, opts: opts}
	defer func() {
		for _, o := range known {
			if o.metadata != nil {
				o.metadata.Close()
			}
		}
	}()
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(cmp.Or(max(opts.Concurrency, 0), runtime.GOMAXPROCS(0)))
	for i, o := range objects {
		if slices.Index(objects, o) < i {
			continue
		}
		g.Go(func() error {
			if err := b.layer(gctx, o); err != nil {
				return fmt.Errorf("layer %d, %s: %w", i, o.Blob.Digest, err)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	if err := b.stack(ctx, objects); err != nil {
		return nil, err
	}
	built := &Built{Objects: make([]Object, len(layers))}
	entries := make([]index.Entry, len(layers))
	for i, o := range objects {
		built.Objects[i] = *o
		built.Objects[i].metadata = nil
		entries[i] = index.Entry{Blob: o.Blob, Tree: o.tree, EROFS: o.EROFS}
	}
	if built.Index, err = index.Build(m.Descriptor, entries); err != nil {
		return nil, err
	}
	return built, built.Index.Push(ctx, repo)
}

// A layerKey tells layers apart that have to be read each.
type layerKey struct {
	blob      digest.Digest
	mediaType string
	diffID    piece.Digest
}

// A wrongDiffError says that an image is not made of what its config says.
type wrongDiffError struct{ want, got piece.Digest }

func (e *wrongDiffError) Error() string {
	return fmt.Sprintf("its bytes are %s, but the image's config says %s; the image is broken, build it again", e.got, e.want)
}

// Unwrap makes it an error of the class of wrong bytes.
func (e *wrongDiffError) Unwrap() error { return &piece.WrongBytesError{Object: e.want, Piece: -1} }

// counter tells how much of a blob was read, about once a MiB.
type counter struct {
	io.Reader
	advanced   func(done int64)
	done, told int64
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.done += int64(n)
	if c.done >= c.told+1<<20 || (err != nil && c.done > c.told) {
		c.told = c.done
		c.advanced(c.done)
	}
	return n, err
}

// blobError is the error of a blob that could not be expanded: that it is not
// the blob that its digest names, where reading the rest of it tells so, else err.
func blobError(blob io.Reader, err error) error {
	var wrong *piece.WrongBytesError
	if _, blobErr := io.Copy(io.Discard, blob); errors.As(blobErr, &wrong) {
		return blobErr
	}
	return err
}
