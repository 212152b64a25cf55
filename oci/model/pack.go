package model

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
	"oras.land/oras-go/v2/content"
	"oras.land/oras-go/v2/errdef"

	"github.com/spate-project/spate/cache/piece"
	"github.com/spate-project/spate/oci"
	"github.com/spate-project/spate/oci/index"
)

// A Target is where Pack puts a model. *remote.Repository is one.
type Target interface {
	content.Storage

	// Upload stores a blob whose digest is known when src was read to its end;
	// digest is called then. It fails when src has not size bytes, and does not
	// touch src after it returned.
	Upload(ctx context.Context, src io.Reader, size int64, digest func() digest.Digest) error
}

// Packed is a model that Pack has put into its target, together with its index.
// No tag names it yet: the caller signs both digests first, and then tags.
type Packed struct {
	Descriptor ocispec.Descriptor // of Manifest
	Manifest   []byte             // not to be changed
	Index      *index.Artifact
	Files      []File
	Size       int64    // bytes of all files
	Skipped    []string // what of the directory is not in the model: paths of files and directories
}

// Pack stores the files of dir, subdirectories included, as a model in target,
// and their index. A name that starts with a dot is not packed, and neither is
// __pycache__. Links to files are followed within dir, and from a snapshot of
// the Hugging Face cache to that cache's blobs; any other link is an error.
//
// A file that changes while Pack runs makes it fail. Memory does not depend on
// the size of the files but for their pieces: about 5 MiB and a piece for each of
// Options.Concurrency, and 32 bytes for every piece there is.
func Pack(ctx context.Context, dir string, target Target, opts Options) (*Packed, error) {
	packed, err := pack(ctx, dir, target, opts)
	if err != nil {
		return nil, fmt.Errorf("pack %s: %w", dir, err)
	}
	return packed, nil
}

func pack(ctx context.Context, dir string, target Target, opts Options) (*Packed, error) {
	sources, skipped, err := scan(dir)
	if err != nil {
		return nil, err
	}
	packed, entries, err := packSources(ctx, sources, target, opts)
	if err != nil {
		return nil, err
	}
	packed.Skipped = skipped
	return packed, packed.index(ctx, target, entries)
}

// packSources stores the layers, the config and the manifest of a model. The
// entries are one for each layer, in their order.
func packSources(ctx context.Context, sources []source, target Target, opts Options) (*Packed, []index.Entry, error) {
	packed := &Packed{}
	planned := Event{Step: Planned, Files: len(sources)}
	for _, src := range sources {
		packed.Size += src.stamp.size
		planned.Size += src.layerSize()
	}
	opts.progress(planned)

	layers := make([]ocispec.Descriptor, len(sources))
	hints := make([]hint, len(sources))
	entries := make([]index.Entry, len(sources))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(cmp.Or(max(opts.Concurrency, 0), 2))
	for i, src := range sources {
		g.Go(func() error {
			h, tree, err := packFile(gctx, src, target, opts)
			if err != nil {
				return fmt.Errorf("%s: %w", src.name, err)
			}
			hints[i], layers[i] = h, src.layer(tree)
			entries[i] = index.Entry{Blob: layers[i], Tree: tree}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, nil, err
	}
	for _, src := range sources {
		if err := src.unchanged(); err != nil {
			return nil, nil, fmt.Errorf("%s: %w", src.name, err)
		}
	}
	return packed, entries, packed.writeManifest(ctx, target, layers, hints, opts)
}

// index stores the index of the model, whose layers the entries are.
func (p *Packed) index(ctx context.Context, target Target, entries []index.Entry) (err error) {
	if p.Index, err = index.Build(p.Descriptor, entries); err != nil {
		return err
	}
	return p.Index.Push(ctx, target)
}

// packFile sends one file to target and returns what was learnt on the way.
func packFile(ctx context.Context, src source, target Target, opts Options) (hint, *piece.Tree, error) {
	f, err := os.Open(src.path)
	if err != nil {
		return hint{}, nil, err
	}
	defer f.Close()
	size := src.layerSize()
	opts.progress(Event{Step: Started, Path: src.name, Size: size})
	h := look(f, src.name, src.stamp.size)
	tree, err := send(ctx, src.frame.around(f), size, target, func(done int64) {
		opts.progress(Event{Step: Advanced, Path: src.name, Done: done, Size: size})
	})
	if info, statErr := f.Stat(); statErr == nil && stampOf(info) != src.stamp {
		err = errChanged // whatever else went wrong came of it
	}
	if err != nil {
		return hint{}, nil, err
	}
	opts.progress(Event{Step: Finished, Path: src.name, Done: size, Size: size})
	return h, tree, nil
}

var errChanged = errors.New("it changed while it was being packed; pack again when nothing writes to it")

// unchanged reports whether the file under src's path is still the one that was packed.
func (src source) unchanged() error {
	info, err := os.Lstat(src.path)
	if err != nil || stampOf(info) != src.stamp {
		return errChanged
	}
	return nil
}

// send uploads what r has, size bytes, and hashes it in the same pass.
func send(ctx context.Context, r io.Reader, size int64, target Target, advanced func(done int64)) (*piece.Tree, error) {
	ctx, cancel := context.WithCancel(ctx)
	var g errgroup.Group
	defer g.Wait()
	defer cancel()
	var tree *piece.Tree
	s := startStream(ctx, &g, r, size)
	err := target.Upload(ctx, &countingReader{Reader: s, advanced: advanced}, size, func() digest.Digest {
		if tree = <-s.tree; tree == nil {
			return "" // the upload was told of the wrong size by then
		}
		return digest.Digest(tree.Object().Digest.String())
	})
	if err == nil && tree == nil {
		err = errChanged
	}
	return tree, err
}

// A countingReader tells how many bytes were read, about once a chunk.
type countingReader struct {
	io.Reader
	advanced   func(done int64)
	done, told int64
}

func (r *countingReader) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	r.done += int64(n)
	if r.done >= r.told+chunkSize || (err != nil && r.done > r.told) {
		r.told = r.done
		r.advanced(r.done)
	}
	return n, err
}

// layerSize returns the size in bytes of the layer that src becomes.
func (src source) layerSize() int64 { return src.frame.size() + src.stamp.size }

// layer describes the layer that src became.
func (src source) layer(tree *piece.Tree) ocispec.Descriptor {
	metadata, _ := json.Marshal(fileMetadata{ // a struct of plain fields always can
		Name: src.name, Mode: uint32(src.mode), Size: src.stamp.size,
		ModTime: "1970-01-01T00:00:00Z", Typeflag: '0',
	})
	return ocispec.Descriptor{
		MediaType: src.kind + src.frame.packing(),
		Digest:    digest.Digest(tree.Object().Digest.String()),
		Size:      src.layerSize(),
		Annotations: map[string]string{
			oci.AnnotationFilepath:     src.name,
			oci.AnnotationFileMetadata: string(metadata),
			ocispec.AnnotationTitle:    src.name,
		},
	}
}

// writeManifest stores the config and the manifest of a model of the given layers.
func (p *Packed) writeManifest(ctx context.Context, target Target, layers []ocispec.Descriptor, hints []hint, opts Options) error {
	text, err := describe(layers, hints, opts)
	if err != nil {
		return err
	}
	configDesc := content.NewDescriptorFromBytes(oci.MediaTypeModelConfig, text)
	p.Manifest, err = json.Marshal(ocispec.Manifest{
		Versioned:    specs.Versioned{SchemaVersion: 2},
		MediaType:    ocispec.MediaTypeImageManifest,
		ArtifactType: oci.ArtifactTypeModel,
		Config:       configDesc,
		Layers:       layers,
	})
	if err != nil {
		return err
	}
	if p.Files, err = Files(p.Manifest); err != nil {
		return err
	}
	p.Descriptor = content.NewDescriptorFromBytes(ocispec.MediaTypeImageManifest, p.Manifest)
	p.Descriptor.ArtifactType = oci.ArtifactTypeModel
	if err := push(ctx, target, configDesc, text); err != nil {
		return err
	}
	return push(ctx, target, p.Descriptor, p.Manifest)
}

func push(ctx context.Context, target content.Pusher, desc ocispec.Descriptor, b []byte) error {
	err := target.Push(ctx, desc, bytes.NewReader(b))
	if errors.Is(err, errdef.ErrAlreadyExists) {
		return nil
	}
	return err
}
