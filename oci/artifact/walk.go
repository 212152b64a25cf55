package artifact

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
	"oras.land/oras-go/v2/content"
	"oras.land/oras-go/v2/registry"

	"github.com/spate-project/spate/oci"
)

const (
	// maxManifest is the largest manifest that is read (distribution-spec 1.1,
	// "Pushing Manifests": what registries have to take).
	maxManifest = 4 << 20

	// maxManifests bounds all manifests of one artifact together, in bytes: they
	// are in memory. Each counts for minManifest at least.
	maxManifests = 64 << 20
	minManifest  = 1 << 10
)

// found is what belongs to an artifact.
type found struct {
	levels [][]ocispec.Descriptor // the root, what refers to it or to its parts, what refers to that, and so on
	tags   []tagged               // by which cosign finds some of it
}

type tagged struct {
	tag  string
	desc ocispec.Descriptor
}

// cosignTags are the kinds of tags that cosign makes of a manifest's digest.
var cosignTags = []string{".sig", ".att", ".sbom"}

// cosignTag returns the tag of a kind.
func cosignTag(d digest.Digest, kind string) string {
	return strings.Replace(d.String(), ":", "-", 1) + kind
}

// Belongs reports whether a tag is one by which something belongs to another
// manifest: cosign's (sha256-HEX.sig) or that of the referrers tag schema (sha256-HEX).
func Belongs(tag string) bool {
	for _, kind := range cosignTags {
		tag = strings.TrimSuffix(tag, kind)
	}
	algorithm, hex, ok := strings.Cut(tag, "-")
	return ok && digest.NewDigestFromEncoded(digest.Algorithm(algorithm), hex).Validate() == nil
}

// A walker looks for what belongs to an artifact. Referrers are asked for of each
// platform's manifest too: an index of objects or a signature may be on that alone.
type walker struct {
	src Source

	mu    sync.Mutex
	seen  map[digest.Digest]bool
	bytes int64
	found found
}

func walk(ctx context.Context, src Source, root ocispec.Descriptor, concurrency int) (found, error) {
	w := &walker{src: src, seen: map[digest.Digest]bool{}}
	if _, err := w.enter(root); err != nil {
		return found{}, err
	}
	for tops := []ocispec.Descriptor{root}; len(tops) > 0; {
		w.found.levels = append(w.found.levels, tops)
		var next []ocispec.Descriptor
		for parts := tops; len(parts) > 0; {
			var below []ocispec.Descriptor
			group, ctx := errgroup.WithContext(ctx)
			group.SetLimit(concurrency)
			for _, m := range parts {
				group.Go(func() error {
					children, referrers, err := w.visit(ctx, m)
					w.mu.Lock()
					defer w.mu.Unlock()
					below, next = append(below, children...), append(next, referrers...)
					return err
				})
			}
			if err := group.Wait(); err != nil {
				return found{}, err
			}
			parts = below
		}
		tops = next
	}
	return w.found, nil
}

// enter reports whether a manifest is met for the first time, and refuses it
// where it is one too much.
func (w *walker) enter(d ocispec.Descriptor) (bool, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.seen[d.Digest] {
		return false, nil
	}
	w.seen[d.Digest] = true
	if d.Size > maxManifest {
		return false, fmt.Errorf("manifest %s has %d bytes; %d are the limit", d.Digest, d.Size, maxManifest)
	}
	if w.bytes += max(d.Size, minManifest); w.bytes > maxManifests {
		return false, fmt.Errorf("more than %d bytes of manifests belong to it", maxManifests)
	}
	return true, nil
}

// visit returns the manifests that m lists and those that refer to it, each once.
func (w *walker) visit(ctx context.Context, m ocispec.Descriptor) (children, referrers []ocispec.Descriptor, err error) {
	if children, err = content.Successors(ctx, w.src, m); err != nil {
		return nil, nil, err
	}
	children = slices.DeleteFunc(children, func(d ocispec.Descriptor) bool { return !isManifest(d) })
	if children, err = w.fresh(children); err != nil {
		return nil, nil, err
	}
	if referrers, err = w.referrers(ctx, m); err != nil {
		return nil, nil, err
	}
	for _, kind := range cosignTags {
		t := tagged{tag: cosignTag(m.Digest, kind)}
		if t.desc, err = w.src.Resolve(ctx, t.tag); notFound(err) {
			continue
		} else if err != nil {
			return nil, nil, err
		}
		w.mu.Lock()
		w.found.tags = append(w.found.tags, t)
		w.mu.Unlock()
		more, err := w.fresh([]ocispec.Descriptor{t.desc})
		if err != nil {
			return nil, nil, err
		}
		referrers = append(referrers, more...)
	}
	return children, referrers, nil
}

// referrers returns the manifests whose subject is m, each once. A list that is too long is not read to its end.
func (w *walker) referrers(ctx context.Context, m ocispec.Descriptor) (list []ocispec.Descriptor, err error) {
	lister, ok := w.src.(registry.ReferrerLister)
	if !ok {
		if list, err = registry.Referrers(ctx, w.src, m, ""); err != nil {
			return nil, err
		}
		return w.fresh(list)
	}
	err = lister.Referrers(ctx, m, "", func(page []ocispec.Descriptor) error {
		page, err := w.fresh(page)
		list = append(list, page...)
		return err
	})
	return list, err
}

// fresh returns those of manifests that are met for the first time.
func (w *walker) fresh(manifests []ocispec.Descriptor) (list []ocispec.Descriptor, err error) {
	for _, d := range manifests {
		first, err := w.enter(d)
		if err != nil {
			return nil, err
		}
		if first {
			list = append(list, d)
		}
	}
	return list, nil
}

func isManifest(d ocispec.Descriptor) bool {
	switch d.MediaType {
	case ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageIndex, oci.MediaTypeDockerManifest, oci.MediaTypeDockerList:
		return true
	}
	return false
}
