// Package indexer indexes the images that are pushed to a registry, in the
// registry's process: what `spate index` does from outside. It makes the index
// of each image with oci/image, signs the index, and never the image, with the
// registry's own key, and attaches both beside the image, which stays as it is.
package indexer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/errdef"

	"github.com/spate-project/spate/cache/piece"
	"github.com/spate-project/spate/oci"
	"github.com/spate-project/spate/oci/image"
	"github.com/spate-project/spate/oci/registry"
	"github.com/spate-project/spate/signing"
)

// Options are what an Indexer needs.
type Options struct {
	// Signer signs each index. Verifier is for the same key: an index that it
	// accepts, and whose parts are there, is not made again.
	Signer   signing.Signer
	Verifier signing.Verifier

	// MaxExpanded bounds what an image's layers may expand to, in bytes, as
	// image.Options have it; 0 is no bound. An image beyond it gets no index.
	MaxExpanded int64

	// Logger gets, at level info, a line when an image's turn has come, one for
	// each layer and one for the index, and a warning for an image that gets none.
	// Nil discards them.
	Logger *slog.Logger
}

// An Indexer indexes one image at a time, one layer at a time, so that its memory and
// its processors are few whatever is pushed; layers are expanded to the store's disk.
//
// What waits is not written down: it is the images in the store that have no
// index. Run looks for them once when it begins, and again when more was pushed at once than
// its bounded queue holds. An image that could not be indexed is tried again then,
// and when its manifest is pushed again. The platforms of an image index are
// pushed, and indexed, before it, as manifests of their own. A nil Indexer indexes nothing.
type Indexer struct {
	opts   Options
	policy *signing.Policy
	queue  *queue

	mu    sync.Mutex
	stats Stats
}

// Stats are counts since the Indexer was made.
type Stats struct {
	Indexed int           // images that got an index
	Failed  int           // those that were to get one and did not
	Skipped int           // those that had one, or that are of layers which cannot be indexed
	Pending int           // those that wait or are under way now; one until all that is in the store was looked at
	Took    time.Duration // time spent on all of them but what is under way
}

// New returns an Indexer, which does nothing before Run.
func New(opts Options) *Indexer {
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	policy := &signing.Policy{Verifiers: []signing.Verifier{opts.Verifier}}
	return &Indexer{opts: opts, policy: policy, queue: newQueue()}
}

// Pushed tells that m is in the repository repo. It does not block, and is safe for concurrent use.
func (x *Indexer) Pushed(repo string, m *registry.Manifest) {
	if x != nil && isImage(m) {
		x.queue.add(task{repo, m.Descriptor.Digest})
	}
}

// Stats returns the counts. It is safe for concurrent use.
func (x *Indexer) Stats() Stats {
	if x == nil {
		return Stats{}
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	s := x.stats
	s.Pending = x.queue.pending()
	return s
}

// Run indexes the images in store until ctx is done, and then returns nil. What
// was under way is given up, and nothing of it stays behind.
func (x *Indexer) Run(ctx context.Context, store *registry.Store) error {
	if x == nil {
		return nil
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-x.queue.wake:
		}
		if x.queue.takeLook() {
			x.look(ctx, store)
			x.queue.done()
		}
		x.drain(ctx, store)
	}
}

// look indexes what the store holds, and first what is pushed meanwhile.
func (x *Indexer) look(ctx context.Context, store *registry.Store) {
	err := store.Manifests(func(repo string, d digest.Digest) error {
		x.drain(ctx, store)
		x.consider(ctx, store, task{repo, d})
		return ctx.Err()
	})
	if err != nil && ctx.Err() == nil {
		x.opts.Logger.Error("images that were pushed earlier may stay without an index", "err", err)
	}
}

// drain empties the queue.
func (x *Indexer) drain(ctx context.Context, store *registry.Store) {
	for ctx.Err() == nil {
		t, ok := x.queue.take()
		if !ok {
			return
		}
		x.consider(ctx, store, t)
		x.queue.done()
	}
}

// consider indexes an image unless that is done, and tells the outcome.
func (x *Indexer) consider(ctx context.Context, store *registry.Store, t task) {
	log := x.opts.Logger.With("repository", t.repo, "manifest", t.manifest)
	m, err := store.Manifest(t.repo, t.manifest)
	if err == nil && !isImage(m) || errors.Is(err, piece.ErrNotHere) {
		return
	}
	start := time.Now()
	made := false
	if err == nil {
		made, err = x.index(ctx, store, t.repo, m, log)
	}
	if _, gone := store.Manifest(t.repo, t.manifest); err != nil && (ctx.Err() != nil || errors.Is(gone, piece.ErrNotHere)) {
		return // deleted meanwhile, or for the next start to do
	}
	outcome := &x.stats.Failed
	switch {
	case made:
		outcome = &x.stats.Indexed
	case errors.Is(err, errdef.ErrUnsupported):
		outcome = &x.stats.Skipped
		log.Info("an image has no index, for it cannot have one", "err", err)
	case err == nil:
		outcome = &x.stats.Skipped
	default:
		log.Warn("an image has no index, and is not read lazily until it has one", "err", err)
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	*outcome++
	x.stats.Took += time.Since(start)
}

// index makes, signs and attaches the index of m, and reports whether there was a need to.
func (x *Indexer) index(ctx context.Context, store *registry.Store, name string, m *registry.Manifest, log *slog.Logger) (made bool, err error) {
	repo := &repository{store, name, store.NewBatch(name)}
	defer repo.batch.Close()
	desc := ocispec.Descriptor{MediaType: m.Descriptor.MediaType, Digest: m.Descriptor.Digest, Size: m.Descriptor.Size}
	if ok, err := x.indexed(ctx, repo, desc); ok || err != nil {
		return false, err
	}
	start := time.Now()
	built, err := image.Build(ctx, repo, image.Manifest{Descriptor: desc, Bytes: m.Bytes}, image.Options{
		Dir: store.TempDir(), Concurrency: 1, MaxExpanded: x.opts.MaxExpanded,
		Progress: func(e image.Event) {
			switch e.Step {
			case image.Planned:
				log.Info("an image is being indexed", "layers", e.Layers, "bytes", e.Size)
			case image.Finished:
				log.Info("a layer was expanded", "layer", e.Layer, "bytes", e.Size)
			}
		},
	})
	if err != nil {
		return false, err
	}
	if _, err := signing.Sign(ctx, repo, x.opts.Signer, built.Index.Descriptor); err != nil {
		return false, err
	}
	if err := repo.batch.Commit(desc.Digest); err != nil {
		return false, err
	}
	log.Info("an image was indexed", "index", built.Index.Descriptor.Digest, "took", time.Since(start))
	return true, nil
}

// indexed reports whether desc has an index that this indexer has signed, with all that belongs to it.
func (x *Indexer) indexed(ctx context.Context, repo *repository, desc ocispec.Descriptor) (bool, error) {
	found := errors.New("found")
	err := repo.Referrers(ctx, desc, oci.ArtifactTypeIndex, func(page []ocispec.Descriptor) error {
		for _, d := range page {
			trusted, _, err := x.policy.Admit(ctx, repo, d.Digest.String())
			if err != nil {
				continue // another's, or broken: that is no reason to have none
			}
			m, err := registry.ParseManifest(trusted.Manifest().Bytes, d.Digest.Algorithm())
			if err == nil && repo.whole(m) {
				return found
			}
		}
		return nil
	})
	if errors.Is(err, found) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("look for an index of %s: %w", desc.Digest, err)
	}
	return false, nil
}

// isImage reports whether m is an image, and neither about another manifest nor some other artifact.
func isImage(m *registry.Manifest) bool {
	return m.Subject == "" && len(m.Blobs) > 0 && m.Descriptor.ArtifactType == m.Blobs[0].MediaType && image.Is(m.Bytes)
}
