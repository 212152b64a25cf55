// Package artifact moves a whole artifact from one place to another: a manifest
// or an image index with all its platforms and blobs, and what refers to any of
// them: signatures, indexes, traces, SBOMs. A place is a repository of a
// registry or an OCI image layout (image-spec 1.1, "OCI Image Layout").
package artifact

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
	"oras.land/oras-go/v2"
	"oras.land/oras-go/v2/content"
	"oras.land/oras-go/v2/errdef"
)

// A Source is where an artifact is. Its referrers are found by the referrers API
// where it has a method Referrers, else among the Predecessors.
type Source = oras.ReadOnlyGraphTarget

// A Target is where an artifact goes. Push checks the digest. Where Exists says
// that a manifest is there, all that it lists has to be there, or to come when it is asked for.
type Target interface {
	content.Storage
	content.TagResolver
}

// Options tune Copy. The zero value is ready to use.
type Options struct {
	// Concurrency is how many blobs are on their way at once. Default 4.
	Concurrency int

	// Progress is told that done of d's bytes were read, the last time with
	// all of them. It is called from several goroutines. What is skipped is not told.
	Progress func(d ocispec.Descriptor, done int64)
}

// Copied is what a copy moved.
type Copied struct {
	Root      ocispec.Descriptor `json:"-"`
	Referrers int                `json:"referrers"` // signatures and the like that belong to it, moved or not
	Manifests int                `json:"manifests"` // that were moved
	Blobs     int                `json:"blobs"`     // that were moved
	Bytes     int64              `json:"bytes"`     // of both
}

// Copy copies the artifact that from, a tag or a digest, names in src, and lets
// the tag to name it in dst; an empty tag is none. What dst has is not read.
// Referrers come before tags and the tag comes last: whoever sees it sees all.
// Stopped in the middle it leaves untagged parts in dst, which a later copy uses.
//
// Signatures and attestations that cosign keeps under tags (sha256-….sig, .att,
// .sbom) are copied too, under the same tags.
func Copy(ctx context.Context, src Source, from string, dst Target, to string, opts Options) (Copied, error) {
	if opts.Concurrency <= 0 {
		opts.Concurrency = 4
	}
	root, err := src.Resolve(ctx, from)
	if err != nil {
		return Copied{}, err
	}
	found, err := walk(ctx, src, root, opts.Concurrency)
	if err != nil {
		return Copied{}, fmt.Errorf("look for what belongs to %s: %w", root.Digest, err)
	}
	c := copier{src: &told{src, opts.Progress}, dst: dst, opts: opts, copied: Copied{Root: root}}
	for i, level := range found.levels {
		if err := c.copyAll(ctx, level); err != nil {
			return c.copied, fmt.Errorf("copy %s: %w", root.Digest, cause(err))
		}
		if i > 0 {
			c.copied.Referrers += len(level)
		}
	}
	for _, t := range append(found.tags, tagged{to, root}) {
		if err := tag(ctx, dst, t); err != nil {
			return c.copied, err
		}
	}
	return c.copied, nil
}

// tag leaves a tag alone that names what it should: it may be one that dst follows elsewhere.
func tag(ctx context.Context, dst Target, t tagged) error {
	if t.tag == "" {
		return nil
	}
	if there, err := dst.Resolve(ctx, t.tag); err == nil && there.Digest == t.desc.Digest {
		return nil
	}
	return dst.Tag(ctx, t.desc, t.tag)
}

// cause strips what oras puts before the error of a place, which says the same.
func cause(err error) error {
	var c *oras.CopyError
	if errors.As(err, &c) {
		return c.Err
	}
	return err
}

// A copier copies graphs and counts.
type copier struct {
	src  content.ReadOnlyStorage
	dst  Target
	opts Options

	mu     sync.Mutex
	copied Copied
}

// copyAll copies manifests with all that they list.
func (c *copier) copyAll(ctx context.Context, manifests []ocispec.Descriptor) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(c.opts.Concurrency)
	each := max(1, c.opts.Concurrency/len(manifests))
	for _, m := range manifests {
		group.Go(func() error {
			return oras.CopyGraph(ctx, c.src, c.dst, m, oras.CopyGraphOptions{
				Concurrency:      each,
				MaxMetadataBytes: maxManifest,
				PostCopy:         c.count,
			})
		})
	}
	return group.Wait()
}

func (c *copier) count(_ context.Context, d ocispec.Descriptor) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if isManifest(d) {
		c.copied.Manifests++
	} else {
		c.copied.Blobs++
	}
	c.copied.Bytes += d.Size
	return nil
}

// told is a storage that tells what is read of it.
type told struct {
	content.ReadOnlyStorage
	progress func(ocispec.Descriptor, int64)
}

func (t *told) Fetch(ctx context.Context, d ocispec.Descriptor) (io.ReadCloser, error) {
	body, err := t.ReadOnlyStorage.Fetch(ctx, d)
	if err != nil || t.progress == nil {
		return body, err
	}
	return &toldReader{ReadCloser: body, told: t, desc: d}, nil
}

type toldReader struct {
	io.ReadCloser
	told *told
	desc ocispec.Descriptor
	done int64
}

func (r *toldReader) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	if n > 0 {
		r.done += int64(n)
		r.told.progress(r.desc, r.done)
	}
	return n, err
}

// notFound reports whether err says that something is not there.
func notFound(err error) bool { return errors.Is(err, errdef.ErrNotFound) }
