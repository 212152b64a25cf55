package signing

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/content"
	"oras.land/oras-go/v2/registry"

	"github.com/spate-project/spate/cache/piece"
	"github.com/spate-project/spate/oci"
)

// maxListed bounds how many entries of one list of referrers are read.
const maxListed = 4096

// newest lists at most n referrers of subject with artifactType, newest first,
// and says whether there were more. Newest is what says the latest creation
// time; of those that say none, and come last, what the registry lists last.
// The list is only a hint: nothing in it is known to be true.
func newest(ctx context.Context, repo registry.ReferrerLister, subject ocispec.Descriptor, artifactType string, n int) (found []ocispec.Descriptor, more bool, err error) {
	if err := ctx.Err(); err != nil {
		return nil, false, err
	}
	type entry struct {
		desc    ocispec.Descriptor
		created time.Time
	}
	var list []entry
	read := 0
	seen := make(map[digest.Digest]bool)
	enough := errors.New("enough listed")
	err = repo.Referrers(ctx, subject, artifactType, func(page []ocispec.Descriptor) error {
		for _, d := range page {
			if read++; read > maxListed {
				return enough
			}
			if d.MediaType != ocispec.MediaTypeImageManifest || d.ArtifactType != artifactType || seen[d.Digest] {
				continue
			}
			seen[d.Digest] = true
			created, _ := time.Parse(time.RFC3339, d.Annotations[ocispec.AnnotationCreated])
			list = append(list, entry{
				desc:    ocispec.Descriptor{MediaType: d.MediaType, ArtifactType: artifactType, Digest: d.Digest, Size: d.Size},
				created: created,
			})
		}
		return nil
	})
	if err != nil && !errors.Is(err, enough) {
		return nil, false, err
	}
	slices.Reverse(list)
	slices.SortStableFunc(list, func(a, b entry) int { return b.created.Compare(a.created) })
	for _, e := range list[:min(n, len(list))] {
		found = append(found, e.desc)
	}
	return found, len(list) > len(found) || read > maxListed, nil
}

// fetch returns the bytes that desc's digest names, when they are at most limit.
func fetch(ctx context.Context, repo content.Fetcher, desc ocispec.Descriptor, limit int64) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	object, err := piece.ParseDigest(desc.Digest.String())
	if err != nil {
		return nil, refusalf("%v", err)
	}
	if desc.Size < 0 || desc.Size > limit {
		return nil, refusalf("%s has %d bytes, at most %d are read", desc.Digest, desc.Size, limit)
	}
	b, err := content.FetchAll(ctx, repo, desc)
	if errors.Is(err, content.ErrMismatchedDigest) || errors.Is(err, content.ErrTrailingData) {
		return nil, &piece.WrongBytesError{Object: object, Piece: -1}
	}
	return b, err
}

// fetchReferrer fetches the manifest that desc describes and checks in its own
// bytes that it has artifactType and refers to subject.
func fetchReferrer(ctx context.Context, repo content.Fetcher, desc, subject ocispec.Descriptor, artifactType string, limit int64) ([]byte, *ocispec.Manifest, error) {
	b, err := fetch(ctx, repo, desc, limit)
	if err != nil {
		return nil, nil, fmt.Errorf("fetch its manifest: %w", err)
	}
	var m ocispec.Manifest
	switch err := json.Unmarshal(b, &m); {
	case err != nil:
		return nil, nil, refusalf("its manifest is not one: %v", err)
	case m.MediaType != ocispec.MediaTypeImageManifest:
		return nil, nil, refusalf("its manifest says media type %q, not %q", m.MediaType, ocispec.MediaTypeImageManifest)
	case m.ArtifactType != artifactType:
		return nil, nil, refusalf("its manifest says artifact type %q, not %q", m.ArtifactType, artifactType)
	case m.Subject == nil:
		return nil, nil, refusalf("its manifest has no subject")
	case m.Subject.Digest != subject.Digest:
		return nil, nil, refusalf("its subject is %q, not %s", m.Subject.Digest, subject.Digest)
	}
	return b, &m, nil
}

// fetchBundle returns the Sigstore bundle that the referrer desc of subject holds, of at most limit bytes.
func fetchBundle(ctx context.Context, repo content.Fetcher, desc, subject ocispec.Descriptor, limit int64) ([]byte, error) {
	_, m, err := fetchReferrer(ctx, repo, desc, subject, oci.ArtifactTypeBundle, maxBundle)
	if err != nil {
		return nil, err
	}
	if len(m.Layers) != 1 || m.Layers[0].MediaType != oci.ArtifactTypeBundle {
		return nil, refusalf("its manifest has not one layer that is a bundle")
	}
	b, err := fetch(ctx, repo, m.Layers[0], limit)
	if err != nil {
		return nil, fmt.Errorf("fetch its bundle: %w", err)
	}
	return b, nil
}
