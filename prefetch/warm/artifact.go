package warm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2"
	"oras.land/oras-go/v2/content"
	"oras.land/oras-go/v2/errdef"
	"oras.land/oras-go/v2/registry"

	"github.com/spate-project/spate/cache/piece"
	"github.com/spate-project/spate/oci"
	"github.com/spate-project/spate/signing"
)

// maxHistory bounds how many versions History reads.
const maxHistory = 100

// Repository is where a registry keeps the warm sets of all pools, a tag each.
const Repository = "spate/warm"

// ReferenceOf returns the name of a warm set in the registry at host, HOST[:PORT]:
// that of a pool, or the version with a digest.
func ReferenceOf(host, poolOrDigest string) string {
	return registry.Reference{Registry: host, Repository: Repository, Reference: poolOrDigest}.String()
}

// A Signed is a set that a policy admitted, as Read returns it.
type Signed struct {
	Set
	Digest   digest.Digest   // of the manifest; empty for the set before the first
	Previous digest.Digest   // of the manifest of the set that it replaced; empty for the first
	SignedBy string          // the identity
	Steps    []*signing.Step // by which it was admitted
}

// Read reads the warm set of a pool from reference, that of ReferenceOf or one
// with the digest of a version. Errors are those of Policy.Admit: what the policy
// refuses, and the set of another pool, is piece.ErrNotTrusted. A pool without a
// set is errdef.ErrNotFound.
func Read(ctx context.Context, policy *signing.Policy, repo signing.Repository, reference, pool string) (Signed, error) {
	trusted, chain, err := policy.Admit(ctx, repo, reference)
	if err != nil {
		return Signed{}, err
	}
	doc := trusted.Manifest()
	s, err := load(ctx, repo, doc.Bytes)
	if err != nil {
		return Signed{}, fmt.Errorf("read the warm set %s (%s): %w", reference, doc.Descriptor.Digest, err)
	}
	// A signature is over the set and not over the tag that it is found by.
	if s.Pool != pool {
		return Signed{}, &signing.DeniedError{
			Reference: reference, Digest: doc.Descriptor.Digest,
			Rule:    "the warm set of pool " + pool + " is asked for",
			Missing: "it is that of pool " + s.Pool,
			Next:    "find out who tagged it, and change the set of the pool by `spate warm add`",
		}
	}
	s.Digest, s.Steps, s.SignedBy = doc.Descriptor.Digest, chain.Steps, chain.SignedBy()
	return s, nil
}

// History returns set and the versions that it replaced, the newest first, as
// Read does from reference: as many as maxHistory, and as far as the registry has them.
func History(ctx context.Context, policy *signing.Policy, repo signing.Repository, reference string, set Signed) ([]Signed, error) {
	ref, err := registry.ParseReference(reference)
	if err != nil {
		return nil, err
	}
	versions := []Signed{set}
	for set.Previous != "" && len(versions) < maxHistory {
		ref.Reference = set.Previous.String()
		before, err := Read(ctx, policy, repo, ref.String(), set.Pool)
		if errors.Is(err, errdef.ErrNotFound) {
			break
		}
		if err != nil {
			return nil, err
		}
		versions = append(versions, before)
		set = before
	}
	return versions, nil
}

// load reads the set whose manifest has the given bytes, which the caller trusts,
// and fetches the rest by its digest.
func load(ctx context.Context, fetcher content.Fetcher, manifest []byte) (s Signed, err error) {
	var m ocispec.Manifest
	if err := json.Unmarshal(manifest, &m); err != nil {
		return s, fmt.Errorf("its manifest: %w", err)
	}
	switch {
	case m.ArtifactType != oci.ArtifactTypeWarmSet:
		return s, fmt.Errorf("its artifactType is %q instead of %q", m.ArtifactType, oci.ArtifactTypeWarmSet)
	case len(m.Layers) != 1 || m.Layers[0].MediaType != oci.MediaTypeWarmSet:
		return s, fmt.Errorf("its manifest has not one layer of type %s", oci.MediaTypeWarmSet)
	case m.Layers[0].Size < 0 || m.Layers[0].Size > maxSet:
		return s, fmt.Errorf("it has %d bytes, more than %d", m.Layers[0].Size, maxSet)
	}
	if p := m.Annotations[oci.AnnotationWarmSetPrevious]; p != "" {
		if _, err := piece.ParseDigest(p); err != nil {
			return s, fmt.Errorf("the set that it replaced: %w", err)
		}
		s.Previous = digest.Digest(p)
	}
	b, err := content.FetchAll(ctx, fetcher, m.Layers[0])
	if errors.Is(err, errdef.ErrNotFound) {
		return s, errors.New("the registry has its manifest and not its entries") // which is not that there is no set
	}
	if err != nil {
		return s, fmt.Errorf("its entries: %w", err)
	}
	return s, json.Unmarshal(b, &s.Set)
}

// push stores a set that replaces previous, which is empty for the first one, and
// returns the descriptor of its manifest, for the caller to sign and tag.
func push(ctx context.Context, target content.Pusher, s Set, previous digest.Digest) (ocispec.Descriptor, error) {
	b, err := json.Marshal(s)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	layer, err := oras.PushBytes(ctx, target, oci.MediaTypeWarmSet, b)
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("push its entries: %w", err)
	}
	opts := oras.PackManifestOptions{Layers: []ocispec.Descriptor{layer}}
	if previous != "" {
		opts.ManifestAnnotations = map[string]string{oci.AnnotationWarmSetPrevious: previous.String()}
	}
	desc, err := oras.PackManifest(ctx, target, oras.PackManifestVersion1_1, oci.ArtifactTypeWarmSet, opts)
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("push its manifest: %w", err)
	}
	return desc, nil
}
